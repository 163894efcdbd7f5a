"""A language model of LSTM layers (Zaremba et al. 2014; tied weights: Press and Wolf 2017)."""

from __future__ import annotations

import disttorch as torch
from disttorch import nn


class LSTMLanguageModel(nn.Module):
    """Ids [B, T] int64 to logits [B, T, V] and the state after the last position.

    Args:
        vocabulary_size: V.
        width: of the embedding and of each layer.
        layers: LSTM layers.
        dropout: after the embedding, between layers and before the output.
        tie: share the weight of the embedding and the output layer.
    """

    def __init__(self, vocabulary_size: int, width: int = 256, layers: int = 2,
                 dropout: float = 0.0, tie: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, width)
        self.dropout = nn.Dropout(dropout)
        self.lstm = nn.LSTM(width, width, layers, dropout=dropout if layers > 1 else 0.0,
                            batch_first=True)
        self.head = nn.Linear(width, vocabulary_size)
        if tie:
            self.head.weight = self.embedding.weight
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.zeros_(self.head.bias)

    def forward(self, ids: torch.Tensor, state: tuple | None = None) -> tuple:
        """``state`` is what an earlier call returned second, to go on from there."""
        x, state = self.lstm(self.dropout(self.embedding(ids)), state)
        return self.head(self.dropout(x)), state

    @torch.no_grad()
    def generate(self, ids: torch.Tensor, count: int, temperature: float = 1.0) -> torch.Tensor:
        """Continue ids [B, T] by ``count`` drawn ones, carrying the state along."""
        logits, state = self(ids)
        for _ in range(count):
            drawn = torch.multinomial(torch.softmax(logits[:, -1] / temperature, dim=-1), 1)
            ids = torch.cat([ids, drawn], dim=1)
            logits, state = self(drawn, state)
        return ids
