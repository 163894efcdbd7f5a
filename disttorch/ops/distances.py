"""Distances and products of pairs of vectors."""

from __future__ import annotations

from ..tensor import Tensor
from .norms import norm


def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """x1·x2 / (max(‖x1‖, eps)·max(‖x2‖, eps)) along ``dim``; shapes broadcast."""
    n1 = norm(x1, 2.0, dim, True).clamp(min=eps)
    n2 = norm(x2, 2.0, dim, True).clamp(min=eps)
    return ((x1 / n1) * (x2 / n2)).sum(dim)


def pairwise_distance(
    x1: Tensor, x2: Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False
) -> Tensor:
    """‖x1 − x2 + eps‖ₚ over the last dim: [..., D] -> [...]; shapes broadcast."""
    return norm(x1 - x2 + eps, p, -1, keepdim)


def bilinear(
    input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """input1·weight[o]·input2 + bias[o]; see ``nn.functional.bilinear``."""
    from ..nn.functional import bilinear as function

    return function(input1, input2, weight, bias)


FUNCTIONS = {"cosine_similarity": cosine_similarity, "pairwise_distance": pairwise_distance,
             "bilinear": bilinear}
