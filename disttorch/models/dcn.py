"""Deep & Cross Network, second version (Wang et al. 2020, "DCN V2")."""

from __future__ import annotations

import disttorch as torch
from disttorch import nn


class CrossLayer(nn.Module):
    """x0 * (W x + b) + x: one more degree of products of the inputs."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, first: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return first * self.linear(x) + x


class DeepCross(nn.Module):
    """Numbers [B, dense] and ids [B, tables] to logits [B].

    Args:
        dense: how many numbers describe an example.
        table_sizes: ids of each categorical feature.
        width: of an embedding.
        cross_layers: degree of the products, less one.
        hidden: widths of the deep part, which runs beside the cross layers.
        dropout: in the deep part.
    """

    def __init__(self, dense: int, table_sizes: list[int], width: int = 16, cross_layers: int = 3,
                 hidden: tuple = (64, 32), dropout: float = 0.0) -> None:
        super().__init__()
        self.tables = nn.ModuleList([nn.Embedding(n, width) for n in table_sizes])
        inputs = dense + width * len(table_sizes)
        self.cross = nn.ModuleList([CrossLayer(inputs) for _ in range(cross_layers)])
        layers: list[nn.Module] = []
        for a, b in zip((inputs, *hidden), hidden):
            layers += [nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU(), nn.Dropout(dropout)]
        self.deep = nn.Sequential(*layers)
        self.head = nn.Linear(inputs + hidden[-1], 1)

    def forward(self, dense: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        embedded = [table(ids[:, i]) for i, table in enumerate(self.tables)]
        first = x = torch.cat([dense, *embedded], dim=1)
        for layer in self.cross:
            x = layer(first, x)
        return self.head(torch.cat([x, self.deep(first)], dim=1)).squeeze(1)
