"""Normalisation over trailing dimensions, and vectors brought to unit length."""

from __future__ import annotations

from ... import ops
from ...tensor import Tensor


def layer_norm(
    input: Tensor, normalized_shape, weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """Zero mean and unit variance over the trailing ``normalized_shape`` (arXiv:1607.06450)."""
    return ops.layer_norm(input, normalized_shape, weight, bias, eps)


def rms_norm(
    input: Tensor, normalized_shape, weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """Unit root mean square over the trailing ``normalized_shape`` (arXiv:1910.07467).

    Args:
        eps: added to the mean square; the dtype's machine epsilon by default.
    """
    return ops.rms_norm(input, normalized_shape, weight, eps)


def _p_norm(x: Tensor, p: float, dim, keepdim=False) -> Tensor:
    return x.norm(p, dim, keepdim)


def normalize(input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out=None) -> Tensor:
    """input / max(‖input‖ₚ, eps) along ``dim``."""
    return ops.div(input, _p_norm(input, p, dim, True).clamp(min=eps), out=out)


def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """x1·x2 / (max(‖x1‖, eps)·max(‖x2‖, eps)) along ``dim``; shapes broadcast."""
    n1 = _p_norm(x1, 2.0, dim, True).clamp(min=eps)
    n2 = _p_norm(x2, 2.0, dim, True).clamp(min=eps)
    return ((x1 / n1) * (x2 / n2)).sum(dim)
