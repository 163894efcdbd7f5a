"""Rotary position embedding in one launch (``row_kernels.rotary`` is the formula)."""

from __future__ import annotations

from .kernel import blocks, kernel
from .rows import aligned, wider


def rotary(xp, x, cos, sin, inner, interleaved, inverse):
    """Pairs of elements of x, …×L×inner×D of any float type, turned by the angles of cos, sin: L×D/2.

    Args as in ``row_kernels.rotary``. Computed in float32 (float64 of float64), rounded once.
    """
    x, out = aligned(xp, x), xp.empty(x.shape, x.dtype)
    if x.size == 0:
        return out
    much, each, width = wider(x.dtype), 16 // x.dtype.itemsize, x.shape[-1]
    cos, sin = (aligned(xp, a if a.dtype == much else a.astype(much)) for a in (cos, sin))
    if interleaved:
        name, step = "rotary_neighbours", each if width % each == 0 else 2
        n = x.size // step
    else:
        name, step = "rotary_halves", each if width // 2 % each == 0 else 1
        n = x.size // 2 // step
    if step == each:
        name += "_packs"
    kernel(xp.cupy, "rotary", name, ELEMENT=x.dtype)(
        (blocks(n, 256),), (256,),
        (x, cos, sin, out, n, cos.shape[0], inner, width, -1.0 if inverse else 1.0))
    return out
