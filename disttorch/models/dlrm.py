"""A recommender in the manner of DLRM (Naumov et al. 2019): products of embeddings as features."""

from __future__ import annotations

import disttorch as torch
from disttorch import nn


def mlp(sizes: list[int], last_relu: bool) -> nn.Sequential:
    """Linear layers with ReLU between them, and after the last one if asked for."""
    layers: list[nn.Module] = []
    for index, (inputs, outputs) in enumerate(zip(sizes, sizes[1:])):
        layers.append(nn.Linear(inputs, outputs))
        if last_relu or index < len(sizes) - 2:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


class DLRM(nn.Module):
    """Numbers [B, dense] and bags of ids to logits [B].

    Args:
        dense: how many numbers describe an example.
        table_sizes: ids of each categorical feature.
        width: of an embedding.
        bottom, top: hidden widths of the layers below and above the products.
    """

    def __init__(self, dense: int, table_sizes: list[int], width: int = 16,
                 bottom: tuple = (64, 32), top: tuple = (64, 32)) -> None:
        super().__init__()
        self.bottom = mlp([dense, *bottom, width], last_relu=True)
        self.tables = nn.ModuleList([nn.EmbeddingBag(n, width, mode="sum") for n in table_sizes])
        features = len(table_sizes) + 1
        self.register_buffer("pairs", torch.tril_indices(features, features, offset=-1))
        self.top = mlp([width + features * (features - 1) // 2, *top, 1], last_relu=False)

    def forward(self, dense, ids: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """``ids`` [tables, N] and ``offsets`` [tables, B] as ``nn.EmbeddingBag`` takes them."""
        first = self.bottom(dense)
        bags = [table(i, o) for table, i, o in zip(self.tables, ids, offsets)]
        features = torch.stack([first, *bags], dim=1)  # [B, features, width]
        products = torch.bmm(features, features.transpose(1, 2))
        crossed = products[:, self.pairs[0], self.pairs[1]]
        return self.top(torch.cat([first, crossed], dim=1)).squeeze(1)
