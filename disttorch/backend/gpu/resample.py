"""Maps along one dim on a GPU (resizing, padding by copies, uneven means): one launch each.

The input's layout is kept. Weights are float32 (float64 for float64); dtypes other than floats are
computed by the plain formula (``resample_kernels``).
"""

from __future__ import annotations

import math

from .. import layouts, resample_kernels
from ..dtypes import bfloat16, float16, float32, float64
from .kernel import blocks, kernel

_COMPUTED = {float32.np: float32.np, float64.np: float64.np, float16.np: float32.np,
             bfloat16.np: float32.np}
_THREADS = 256


def apply_taps(xp, x, axis, taps):
    """The map along one axis."""
    if x.dtype not in _COMPUTED or x.size == 0 or taps.index.shape[1] == 0:
        return resample_kernels.apply_taps(xp, x, axis, taps)
    last = axis > 1 and layouts.is_channels_last(x)
    x = layouts.dense(xp, x, last)
    n = taps.index.shape[1]
    shape = (*x.shape[:axis], n, *x.shape[axis + 1 :])
    out = layouts.empty(xp, shape, x.dtype, last)
    index, weight = taps.arrays(xp, _COMPUTED[x.dtype])
    inner = math.prod(x.shape[axis + 1 :]) * (x.shape[1] if last else 1)
    run = kernel(xp.cupy, "resample", "apply_taps", ELEMENT=x.dtype.name)
    run((blocks(out.size, _THREADS),), (_THREADS,), (
        x, index, weight, out, out.size, x.shape[axis], n, inner, index.shape[0]))
    return out
