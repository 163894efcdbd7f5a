"""A BERT-like encoder (Devlin et al. 2018) with its two heads: masked words and next sentence.

Shapes: B sequences, T positions, C = width, V ids in the vocabulary.
"""

from __future__ import annotations

import disttorch as torch
from disttorch import nn


class BERT(nn.Module):
    """Ids [B, T] int64 to features [B, T, C] and the pooled first position [B, C].

    Args:
        vocabulary_size: V.
        width: C; heads: attention heads; layers: encoder layers.
        feed_forward: width inside them.
        positions: the largest T.
        segments: number of sentence types.
        dropout: dropout probability.
        pad_id: the id that attention never looks at.
    """

    def __init__(self, vocabulary_size: int = 30522, width: int = 768, heads: int = 12,
                 layers: int = 12, feed_forward: int = 3072, positions: int = 512,
                 segments: int = 2, dropout: float = 0.1, pad_id: int = 0) -> None:
        super().__init__()
        self.pad_id = pad_id
        self.words = nn.Embedding(vocabulary_size, width, padding_idx=pad_id)
        self.positions = nn.Embedding(positions, width)
        self.segments = nn.Embedding(segments, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(dropout)
        layer = nn.TransformerEncoderLayer(
            width, heads, feed_forward, dropout, activation="gelu", batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.pooler = nn.Linear(width, width)

    def forward(self, ids: torch.Tensor, segments: torch.Tensor | None = None) -> tuple:
        positions = torch.arange(ids.shape[1], device=ids.device)
        x = self.words(ids) + self.positions(positions)
        x = x + self.segments(torch.zeros_like(ids) if segments is None else segments)
        x = self.encoder(
            self.dropout(self.norm(x)), src_key_padding_mask=ids.eq(self.pad_id)
        )
        return x, torch.tanh(self.pooler(x[:, 0]))


class BERTForPreTraining(nn.Module):
    """Logits of the words [B, T, V] and of "is the next sentence" [B, 2]; options as of ``BERT``.

    The output layer shares its weight with the embedding of the words.
    """

    def __init__(self, **options) -> None:
        super().__init__()
        self.bert = BERT(**options)
        count, width = self.bert.words.weight.shape
        self.transform = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width, eps=1e-12)
        )
        self.decoder = nn.Linear(width, count)
        self.decoder.weight = self.bert.words.weight
        self.next_sentence = nn.Linear(width, 2)

    def forward(self, ids: torch.Tensor, segments: torch.Tensor | None = None) -> tuple:
        features, pooled = self.bert(ids, segments)
        return self.decoder(self.transform(features)), self.next_sentence(pooled)
