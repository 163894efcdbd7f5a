"""A GPT-2-like decoder (Radford et al. 2019): pre-norm blocks, learnt positions, tied output.

Shapes: B sequences, T positions, C = width, H heads, V ids in the vocabulary.
"""

from __future__ import annotations

import disttorch as torch
import disttorch.nn.functional as F
from disttorch import nn


class CausalSelfAttention(nn.Module):
    """Attention in which a position sees itself and those before it."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, C = x.shape
        q, k, v = (
            part.view(B, T, self.heads, C // self.heads).transpose(1, 2)  # [B, H, T, C/H]
            for part in self.qkv(x).split(C, dim=2)
        )
        y = F.scaled_dot_product_attention(
            q, k, v, dropout_p=self.dropout if self.training else 0.0, is_causal=True
        )
        return self.output(y.transpose(1, 2).reshape(B, T, C))


class Block(nn.Module):
    """Attention and a feed-forward layer, each after a norm and added to its input."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = CausalSelfAttention(width, heads, dropout)
        self.norm2 = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.feed_forward(self.norm2(x)))


class GPT(nn.Module):
    """Ids [B, T] int64 to logits [B, T, V].

    Args:
        vocabulary_size: V; context: the largest T.
        layers, heads, width: of the Transformer.
        dropout: dropout probability.
    """

    def __init__(self, vocabulary_size: int = 50257, context: int = 1024, layers: int = 12,
                 heads: int = 12, width: int = 768, dropout: float = 0.0) -> None:
        super().__init__()
        self.context = context
        self.tokens = nn.Embedding(vocabulary_size, width)
        self.positions = nn.Embedding(context, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList([Block(width, heads, dropout) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary_size, bias=False)
        self.head.weight = self.tokens.weight
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                # the sum of 2 * layers residual branches should not grow with depth
                residual = name.endswith(("attention.output.weight", "feed_forward.2.weight"))
                scale = (2 * layers) ** -0.5 if residual else 1.0
                nn.init.normal_(parameter, std=0.02 * scale)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        length = ids.shape[1]
        if length > self.context:
            raise ValueError(f"{length} positions, but the context is {self.context}; cut them")
        positions = torch.arange(length, device=ids.device)
        x = self.dropout(self.tokens(ids) + self.positions(positions))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    @torch.no_grad()
    def generate(self, ids: torch.Tensor, count: int, temperature: float = 1.0,
                 top_k: int | None = None) -> torch.Tensor:
        """Continue ids [B, T] by ``count`` drawn ones; only the last ``context`` are looked at."""
        for _ in range(count):
            logits = self(ids[:, -self.context :])[:, -1] / temperature
            if top_k is not None:
                least = torch.topk(logits, top_k).values[:, -1:]
                logits = logits.masked_fill(logits < least, float("-inf"))
            ids = torch.cat([ids, torch.multinomial(F.softmax(logits, dim=-1), 1)], dim=1)
        return ids
