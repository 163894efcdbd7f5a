"""Translation by two recurrent networks and additive attention (Bahdanau et al. 2014).

Shapes: B pairs, S source and T target positions, C = width, V ids.
"""

from __future__ import annotations

import disttorch as torch
from disttorch import nn


class Encoder(nn.Module):
    """Ids [B, S] to features of both directions [B, S, 2C] and a first state [1, B, C]."""

    def __init__(self, vocabulary_size: int, width: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, width)
        self.dropout = nn.Dropout(dropout)
        self.rnn = nn.GRU(width, width, batch_first=True, bidirectional=True)
        self.bridge = nn.Linear(2 * width, width)

    def forward(self, ids: torch.Tensor) -> tuple:
        features, last = self.rnn(self.dropout(self.embedding(ids)))
        state = torch.tanh(self.bridge(torch.cat([last[0], last[1]], dim=-1)))
        return features, state.unsqueeze(0)


class AdditiveAttention(nn.Module):
    """A weighted mean of the source's features, weighted by how well they fit a state."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(2 * width, width)
        self.score = nn.Linear(width, 1, bias=False)

    def forward(self, state, features, mask) -> tuple:
        """state [B, C], features [B, S, 2C], mask [B, S] (True: look) to ([B, 2C], [B, S])."""
        hidden = torch.tanh(self.query(state).unsqueeze(1) + self.key(features))
        scores = self.score(hidden).squeeze(-1).masked_fill(~mask, float("-inf"))
        weights = torch.softmax(scores, dim=-1)
        return torch.bmm(weights.unsqueeze(1), features).squeeze(1), weights


class Seq2Seq(nn.Module):
    """Source ids [B, S] and target ids [B, T] to logits [B, T, V] and weights [B, T, S].

    ``logits[:, t]`` sees targets up to and including ``t``: shift them by one for training.

    Args:
        source_size, target_size: ids in the two vocabularies.
        width: of all layers.
        dropout: after the embeddings.
        pad_id: the source id that attention never looks at.
    """

    def __init__(self, source_size: int, target_size: int, width: int = 256, dropout: float = 0.0,
                 pad_id: int = 0) -> None:
        super().__init__()
        self.pad_id = pad_id
        self.encoder = Encoder(source_size, width, dropout)
        self.embedding = nn.Embedding(target_size, width)
        self.dropout = nn.Dropout(dropout)
        self.attention = AdditiveAttention(width)
        self.cell = nn.GRUCell(3 * width, width)
        self.head = nn.Linear(4 * width, target_size)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> tuple:
        features, state = self.encoder(source)
        state, mask = state[0], source.ne(self.pad_id)
        logits, weights = [], []
        for embedded in self.dropout(self.embedding(target)).unbind(dim=1):
            state, scores, looked = self.step(embedded, state, features, mask)
            logits.append(scores)
            weights.append(looked)
        return torch.stack(logits, dim=1), torch.stack(weights, dim=1)

    def step(self, embedded, state, features, mask) -> tuple:
        """One target position: (new state, logits [B, V], attention weights [B, S])."""
        context, weights = self.attention(state, features, mask)
        state = self.cell(torch.cat([embedded, context], dim=-1), state)
        return state, self.head(torch.cat([state, context, embedded], dim=-1)), weights

    @torch.no_grad()
    def translate(self, source: torch.Tensor, begin_id: int, end_id: int, limit: int = 50):
        """The likeliest id at each step, [B, at most limit], until all sequences have ended."""
        features, state = self.encoder(source)
        state, mask = state[0], source.ne(self.pad_id)
        ids = torch.full((source.shape[0],), begin_id, dtype=torch.int64, device=source.device)
        ended, written = torch.zeros_like(ids, dtype=torch.bool), []
        for _ in range(limit):
            state, logits, _ = self.step(self.embedding(ids), state, features, mask)
            ids = logits.argmax(dim=-1).masked_fill(ended, end_id)
            written.append(ids)
            ended = ended | ids.eq(end_id)
            if ended.all():
                break
        return torch.stack(written, dim=1)
