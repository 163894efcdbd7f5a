"""LayerNorm and RMSNorm over rows; statistics in float32 (float64 of float64), outputs as the input.

Shape legend: R rows, C columns (normalised together).
"""

from __future__ import annotations

import math

from .kernel import WARP, kernel
from .reductions import reduce_middle
from .rows import F64, FLOATS, MOST, aligned, packs, teams, warps, wider

_BLOCKS = 264  # that share the rows of a backward pass: two for each multiprocessor of a large GPU
_STRIPS = 128  # of rows, whose columns are added up apart


def _weight_type(x, *weights):
    """What weights are read as: x's type if all have it, else what x is computed in."""
    alike = all(w is None or w.dtype == x.dtype for w in weights)
    return x.dtype if alike else wider(x.dtype)


def _as(xp, w, dtype):
    if w is None:
        return None
    return aligned(xp, w if w.dtype == dtype else w.astype(dtype))


def _find(xp, x, weight_type, name):
    return kernel(xp.cupy, "norms", name, ELEMENT=x.dtype.name, WEIGHT=weight_type.name)


def _forward(xp, x, weight, bias, eps, centred):
    rows, width = x.shape
    read = _weight_type(x, weight, bias)
    x, weight, bias = aligned(xp, x), _as(xp, weight, read), _as(xp, bias, read)
    out, scales = xp.empty(x.shape, x.dtype), xp.empty(rows, wider(x.dtype))
    means = xp.empty(rows, scales.dtype) if centred else None
    if width == 0:
        scales[...] = math.nan
        if centred:
            means[...] = math.nan
    elif rows:
        count, held = packs(width, x.dtype.itemsize), 8 if x.dtype.itemsize == 4 else 4
        if count <= 4 * WARP:
            name, (grid, block) = "norm_warp1" if count <= WARP else "norm_warp4", warps(rows)
        else:
            name, (grid, block) = "norm_block", teams(rows, count, held)
            if count > held * MOST:
                name = "norm_long"
        _find(xp, x, read, name)(
            grid, block, (x, weight, bias, out, means, scales, rows, width, float(eps)))
    return out, means, scales


def _fits(x, count):
    """Whether backward can keep a row, and the sums of its columns, in registers."""
    held = 2 if x.dtype.itemsize == 2 else 4
    return x.shape[1] % (16 // x.dtype.itemsize) == 0 and count <= held * MOST


def _backward_in_registers(xp, g, x, weight, read, means, scales, grad, count, affine):
    """One pass; returns the sums of columns of each block, 2×blocks×C, or None."""
    rows, width = x.shape
    wide, shared = wider(x.dtype), 0
    if count <= 3 * WARP:
        name, block = "norm_backward_warp1" if count <= WARP else "norm_backward_warp3", 256
        blocks, shared = min(_BLOCKS, -(-rows // 8)), 2 * width * wide.itemsize
    else:
        name, held = "norm_backward_block", 2 if x.dtype.itemsize == 2 else 4
        (block,) = teams(rows, count, held)[1]
        blocks = min(_BLOCKS if block > 128 else 2 * _BLOCKS, rows)
    parts = xp.empty((2, blocks, width), wide) if affine else None
    args = (g, x, weight, means, scales, grad, parts, rows, width)
    _find(xp, x, read, name)((blocks,), (block,), args, shared=shared)
    return parts


def _backward_long(xp, g, x, weight, read, means, scales, grad, count, affine):
    """Rows of any width or alignment; returns the sums of columns of strips of rows, or None."""
    rows, width = x.shape
    grid, block = teams(rows, count, 4)
    _find(xp, x, read, "norm_backward_long")(
        grid, block, (g, x, weight, means, scales, grad, rows, width))
    if not affine:
        return None
    chunk = -(-rows // min(_STRIPS, rows))
    strips = -(-rows // chunk)
    parts = xp.empty((2, strips, width), wider(x.dtype))
    _find(xp, x, read, "norm_columns")(
        (-(-width // 128), strips), (128,), (g, x, means, scales, parts, rows, width, chunk))
    return parts


def _backward(xp, g, x, weight, means, scales, affine):
    read = _weight_type(x, weight)
    out = x.dtype if weight is None else weight.dtype
    if g.dtype != x.dtype:
        g = g.astype(x.dtype)
    g, x, weight = aligned(xp, g), aligned(xp, x), _as(xp, weight, read)
    grad, width = xp.empty(x.shape, x.dtype), x.shape[1]
    if x.size == 0:
        return (grad, *((xp.zeros(width, out), xp.zeros(width, out)) if affine else (None, None)))
    count = packs(width, x.dtype.itemsize)
    run = _backward_in_registers if _fits(x, count) else _backward_long
    parts = run(xp, g, x, weight, read, means, scales, grad, count, affine)
    if parts is None:
        return grad, None, None
    if out not in FLOATS or (out == F64) != (parts.dtype == F64):
        out = parts.dtype  # the engine casts
    both = reduce_middle(xp, parts, 2, parts.shape[1], width, "sum", out).reshape(2, width)
    return grad, both[0], both[1]


def layer_norm(xp, x, weight, bias, eps):
    """(y R×C, mean R, 1/√(variance + eps) R); weight and bias are C, of any float type, or None."""
    return _forward(xp, x, weight, bias, eps, True)


def layer_norm_backward(xp, g, x, weight, mean, rstd, affine=True):
    """(grad x R×C, grad weight C, grad bias C); the latter None unless ``affine``. Deterministic."""
    return _backward(xp, g, x, weight, mean, rstd, affine)


def rms_norm(xp, x, weight, eps):
    """(x·weight/√(mean x² + eps) R×C, that factor without the weight R)."""
    out, _, scales = _forward(xp, x, weight, None, eps, False)
    return out, scales


def rms_norm_backward(xp, g, x, weight, rstd, affine=True):
    """(grad x R×C, grad weight C; None unless ``affine``). Deterministic."""
    return _backward(xp, g, x, weight, None, rstd, affine)[:2]
