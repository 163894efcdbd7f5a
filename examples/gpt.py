"""A small GPT: a decoder-only Transformer in the public API, nothing else.

Shapes: B sequences, T positions, C = width, H heads, V ids in the vocabulary.

Papers: Vaswani et al. 2017 (attention), Radford et al. 2019 (pre-norm GPT-2 and its scaled
initialisation), Press and Wolf 2017 (weight tying).
"""

from __future__ import annotations

from dataclasses import dataclass

import disttorch as torch
import disttorch.nn.functional as F
from disttorch import nn


@dataclass
class GPTConfig:
    """The shape of a model: what two models must share to share weights."""

    vocabulary_size: int
    context: int
    layers: int
    heads: int
    width: int
    dropout: float = 0.0
    tie: bool = False


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which a position sees itself and those before it."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        self.query_key_value = nn.Linear(config.width, 3 * config.width)
        self.output = nn.Linear(config.width, config.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, C = x.shape
        q, k, v = (
            part.reshape(B, T, self.heads, C // self.heads).transpose(1, 2)  # [B, H, T, C/H]
            for part in self.query_key_value(x).chunk(3, dim=-1)
        )
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        return self.output(y.transpose(1, 2).reshape(B, T, C))


class FeedForward(nn.Module):
    """Two linear layers, four times as wide between them."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.input = nn.Linear(config.width, 4 * config.width)
        self.activation = nn.GELU(approximate="tanh")
        self.output = nn.Linear(4 * config.width, config.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output(self.activation(self.input(x)))


class Block(nn.Module):
    """Attention and feed-forward, each after a layer norm and added to its input."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = CausalSelfAttention(config)
        self.feed_forward_norm = nn.LayerNorm(config.width)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class GPT(nn.Module):
    """The whole model: ids [B, T] int64 to logits [B, T, V].

    Weights are drawn from the default generator: seed it before, equally on every rank.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.character = nn.Embedding(config.vocabulary_size, config.width)
        self.position = nn.Embedding(config.context, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.layers)])
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.vocabulary_size, bias=False)
        if config.tie:
            self.head.weight = self.character.weight
        self.initialise()

    def initialise(self) -> None:
        """Draw all weights: again, or for the first time after :meth:`to_empty`."""
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:  # biases, and the factors of layer norms
                nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)
                continue
            # The sum of 2L residual branches should not grow with depth.
            residual = name.endswith("output.weight")
            scale = (2 * self.config.layers) ** -0.5 if residual else 1.0
            nn.init.normal_(parameter, std=0.02 * scale)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(ids.shape[1], device=ids.device)
        x = self.dropout(self.character(ids) + self.position(positions))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    def decay_groups(self, weight_decay: float) -> list[dict]:
        """Return AdamW's parameter groups: matrices decay, biases and norms do not."""
        parameters = list(self.parameters())
        return [
            {
                "params": [p for p in parameters if p.dim() >= 2],
                "weight_decay": weight_decay,
            },
            {
                "params": [p for p in parameters if p.dim() < 2],
                "weight_decay": 0.0,
            },
        ]

    @torch.no_grad()
    def generate(
        self,
        ids: torch.Tensor,
        count: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Continue ``ids`` ([1, T] int64) by ``count`` ids drawn one by one.

        Args:
            ids: the prompt; only its last ``context`` ids are seen.
            count: how many ids to add.
            temperature: the logits are divided by it; below 1 the likely becomes likelier.
            top_k: draw among the ``top_k`` likeliest ids only.
            generator: source of the draws, so that sampling leaves the training's untouched.

        Returns:
            Prompt and continuation, [1, T + count] int64.
        """
        was_training = self.training
        self.eval()
        for _ in range(count):
            logits = self(ids[:, -self.config.context :])[0, -1].float() / temperature
            candidates = None
            if top_k is not None and top_k < len(logits):
                logits, candidates = torch.topk(logits, top_k)
            drawn = torch.multinomial(F.softmax(logits, dim=-1), 1, generator=generator)
            if candidates is not None:
                drawn = candidates[drawn]
            ids = torch.cat([ids, drawn.unsqueeze(0)], dim=1)
        self.train(was_training)
        return ids
