"""Softmax over rows and columns, and how kernels over rows are launched."""

from __future__ import annotations

import math

from .. import dtypes
from .kernel import WARP, kernel

WARPS = 4  # rows of a block, where a warp works on each
MOST = 512  # threads of a block that works on one row
FLOATS = frozenset(d.np for d in (dtypes.float16, dtypes.bfloat16, dtypes.float32, dtypes.float64))
F32, F64 = dtypes.float32.np, dtypes.float64.np


def wider(dtype):
    """What elements of a float dtype are added up in."""
    return F64 if dtype == F64 else F32


def aligned(xp, a):
    """``a`` as a contiguous array that starts on 16 bytes; a copy only if it is none."""
    if not a.flags.c_contiguous:  # of 0-dim arrays ascontiguousarray would make 1-dim ones
        a = xp.ascontiguousarray(a)
    return a if a.data.ptr % 16 == 0 else a.copy()


def packs(width: int, itemsize: int) -> int:
    """The most packs of 16 bytes that a row of an aligned array touches."""
    each = 16 // itemsize
    return width // each if width % each == 0 else (width - 2) // each + 2


def warps(rows: int) -> tuple[tuple[int], tuple[int]]:
    """(grid, block) with a warp for each row."""
    return (-(-rows // WARPS),), (WARP * WARPS,)


def teams(rows: int, count: int, held: int) -> tuple[tuple[int], tuple[int]]:
    """(grid, block) with a block for each row of ``count`` packs, of which a thread holds ``held``."""
    threads = -(-count // held)
    return (rows,), (min(MOST, -(-threads // WARP) * WARP),)


def _launch(xp, name, arrays, axis, logs):
    """A softmax kernel over contiguous arrays of one shape and dtype along ``axis``."""
    shape, dtype = arrays[0].shape, arrays[0].dtype
    axis %= len(shape)
    width, inner = shape[axis], math.prod(shape[axis + 1 :])
    rows = math.prod(shape[:axis])
    if inner > 1:
        threads = min(128, -(-inner // WARP) * WARP)
        grid, block = (-(-inner // threads), min(rows, 65535)), (threads,)
        kernel(xp.cupy, "softmax", name + "_columns", ELEMENT=dtype.name)(
            grid, block, (*arrays, rows, width, inner, logs))
        return
    count, held = packs(width, dtype.itemsize), 8 if dtype.itemsize == 4 else 4
    if count <= 4 * WARP:
        kind, (grid, block) = "_warp1" if count <= WARP else "_warp4", warps(rows)
    elif count <= held * MOST:
        kind, (grid, block) = "_block", teams(rows, count, held)
    else:
        kind, (grid, block) = "_long", teams(rows, count, 4)
    kernel(xp.cupy, "softmax", name + kind, ELEMENT=dtype.name)(
        grid, block, (*arrays, rows, width, logs))


def _forward(xp, x, axis, logs):
    x = aligned(xp, x)
    out = xp.empty(x.shape, x.dtype)
    if x.size:
        if x.ndim == 0:
            _launch(xp, "softmax", (x.reshape(1), out.reshape(1)), 0, logs)
        else:
            _launch(xp, "softmax", (x, out), axis, logs)
    return out


def _backward(xp, g, out, axis, logs):
    if g.dtype != out.dtype:
        g = g.astype(out.dtype)
    g, out = aligned(xp, g), aligned(xp, out)
    grad = xp.empty(out.shape, out.dtype)
    if out.size:
        if out.ndim == 0:
            grad[...] = 0
        else:
            _launch(xp, "softmax_backward", (g, out, grad), axis, logs)
    return grad


def softmax(xp, x, axis):
    """exp(x − max) / sum along ``axis``; a row of up to 16K elements is read once."""
    return _forward(xp, x, axis, 0)


def log_softmax(xp, x, axis):
    """x − max − log Σ exp(x − max) along ``axis``."""
    return _forward(xp, x, axis, 1)


def softmax_backward(xp, g, out, axis):
    """out·(g − Σ g·out)."""
    return _backward(xp, g, out, axis, 0)


def log_softmax_backward(xp, g, out, axis):
    """g − exp(out)·Σ g."""
    return _backward(xp, g, out, axis, 1)
