"""Rotary position embedding, an op of ours: PyTorch has no function for it."""

from __future__ import annotations

import math

from .core import op, wrap_dim
from .samples import case

_CASES = lambda m: [  # noqa: E731
    case(m(2, 3, 4), m.constant(3, 2), m.constant(3, 2), 1, False),
    case(m(2, 3, 4), m.constant(3, 2), m.constant(3, 2), 1, True),
    case(m(2, 3, 2, 6), m.constant(3, 3), m.constant(3, 3), 1, False),
    case(m(2, 2, 3, 6), m.constant(3, 3), m.constant(3, 3), -2, True),
    case(m(0, 3, 4), m.constant(3, 2), m.constant(3, 2), 1, False)]


@op(tensors=("input", "cos", "sin"), method=False, fused=True, name="rotary", node_name="Rotary",
    samples=_CASES)
def rotary(xp, input, cos, sin, dim=-2, interleaved=False):
    """Turn pairs of elements of the last dim by an angle of the position along ``dim``.

    Su et al., "RoFormer", arXiv:2104.09864. Each pair (a, b) becomes (a·cos − b·sin, a·sin + b·cos).

    Args:
        input: …×L×…×D, D even, L along ``dim``.
        cos, sin: L×D/2, of the angle of each pair at each position; no gradient flows to them.
        interleaved: pairs are neighbours (2i, 2i + 1), as in the paper; else (i, i + D/2).

    Raises:
        ValueError: if the shapes do not fit.
    """
    return _turn(xp, input, cos, sin, dim, interleaved, False)


def _turn(xp, input, cos, sin, dim, interleaved, inverse):
    if input.ndim < 2 or input.shape[-1] % 2:
        raise ValueError(f"rotary: the last of at least 2 dims must be even, got {list(input.shape)}")
    dim = wrap_dim(dim, input.ndim)
    want = (input.shape[dim], input.shape[-1] // 2)
    if dim == input.ndim - 1 or cos.shape != want or sin.shape != want:
        raise ValueError(
            f"rotary: an input of shape {list(input.shape)} with positions along dim {dim} needs cos "
            f"and sin of shape {list(want)}, got {list(cos.shape)} and {list(sin.shape)}")
    if input.size == 0:
        return xp.empty(input.shape, input.dtype)
    return xp.rotary(input, cos, sin, math.prod(input.shape[dim + 1 : -1]), interleaved, inverse)


@op(tensors=("input", "cos", "sin"), method=False, fused=True, name="rotary_back",
    node_name="RotaryBack", samples=_CASES)
def _rotary_back(xp, input, cos, sin, dim=-2, interleaved=False):
    """``rotary`` by the opposite angles: its inverse, and its gradient."""
    return _turn(xp, input, cos, sin, dim, interleaved, True)


@rotary.grad("input")
def _(F, g, cos, sin, dim, interleaved):
    return F.rotary_back(g, cos, sin, dim, interleaved)


@_rotary_back.grad("input")
def _(F, g, cos, sin, dim, interleaved):
    return F.rotary(g, cos, sin, dim, interleaved)
