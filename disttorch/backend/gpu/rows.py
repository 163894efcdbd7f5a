"""Softmax over rows and columns, and how kernels over rows are launched."""

from __future__ import annotations

import math
from typing import Any

from .. import dtypes
from .kernel import WARP, kernel

THREADS = 128  # of a block whose warps, or parts of them, work on rows of their own
HELD = 4  # packs that a thread holds
FLOATS = frozenset(d.np for d in (dtypes.float16, dtypes.bfloat16, dtypes.float32, dtypes.float64))
F32, F64 = dtypes.float32.np, dtypes.float64.np


def wider(dtype):
    """What elements of a float dtype are added up in."""
    return F64 if dtype == F64 else F32


def aligned(xp, a):
    """``a`` as a contiguous array that starts on 16 bytes; a copy only if it is none."""
    if not xp.is_contiguous(a):  # of 0-dim arrays ascontiguousarray would make 1-dim ones
        a = xp.ascontiguousarray(a)
    return a if a.data.ptr % 16 == 0 else a.copy()


def packs(width: int, itemsize: int) -> int:
    """The most packs of 16 bytes that a row of an aligned array touches."""
    each = 16 // itemsize
    return width // each if width % each == 0 else (width - 2) // each + 2


def team(count: int, most: int = 1024) -> tuple[str, int, int]:
    """Who works on a row of ``count`` packs: (suffix of the kernel, threads of a block, its rows).

    Short rows share a warp, longer ones have one, then a block of up to ``most`` threads that hold the
    row; what is longer yet is read more than once.
    """
    if count <= 8:
        return ("_lanes2", THREADS, THREADS // 2) if count <= 2 else ("_lanes8", THREADS, THREADS // 8)
    if count <= HELD * WARP:
        return ("_warp1" if count <= WARP else "_warp4"), THREADS, THREADS // WARP
    if count <= HELD * most:
        return "_block", block_of(count, HELD), 1
    return "_long", 512, 1


def block_of(count: int, held: int, most: int = 1024) -> int:
    """Threads, whole warps, that hold ``count`` packs, ``held`` each."""
    return min(most, max(1, -(-count // (held * WARP))) * WARP)


_plans: dict[tuple, Any] = {}  # launches by device, kernel, dtype and width


def _plan(xp, name, dtype, width):
    """(prepared launch, rows of a block) of a softmax kernel over rows of ``width`` elements."""
    most = 512 if name == "softmax_backward" else 1024  # backward holds two arrays
    suffix, threads, rows = team(packs(width, dtype.itemsize), most)
    count = 3 if name == "softmax_backward" else 2
    made = kernel(xp.cupy, "softmax", name + suffix, ELEMENT=dtype.name)
    found = made.prepared(threads, (xp.ndarray,) * count + (int,) * 3), rows
    return _plans.setdefault((xp, name, dtype, width), found)


def _columns(xp, name, arrays, axis, logs):
    """A softmax kernel over contiguous arrays of one shape and dtype along an axis but the last."""
    shape, dtype = arrays[0].shape, arrays[0].dtype
    width, inner, rows = shape[axis], math.prod(shape[axis + 1 :]), math.prod(shape[:axis])
    threads, key = min(128, -(-inner // WARP) * WARP), (xp, name, dtype)
    made = _plans.get(key)
    if made is None:
        made = _plans[key] = kernel(xp.cupy, "softmax", name + "_columns", ELEMENT=dtype.name)
    grid = -(-inner // threads), min(rows, 65535)
    made(grid, (threads,), (*arrays, rows, width, inner, logs))


def _launch(xp, name, arrays, axis, logs):
    x = arrays[0]
    shape, size = x.shape, x.size
    if axis < 0:
        axis += len(shape)
    if axis + 1 != len(shape) and math.prod(shape[axis + 1 :]) > 1:
        return _columns(xp, name, arrays, axis, logs)
    width = shape[axis] if shape else 1
    launch, rows = _plans.get((xp, name, x.dtype, width)) or _plan(xp, name, x.dtype, width)
    count = size // width
    launch(-(-count // rows), *arrays, count, width, logs)


def _forward(xp, x, axis, logs):
    if not xp.is_contiguous(x) or x.data.ptr & 15:
        x = aligned(xp, x)
    out = xp.ndarray(x.shape, x.dtype)
    if x.size:
        _launch(xp, "softmax", (x, out), axis, logs)
    return out


def _backward(xp, g, out, axis, logs):
    if g.dtype != out.dtype:
        g = g.astype(out.dtype)
    if not xp.is_contiguous(g) or g.data.ptr & 15:
        g = aligned(xp, g)
    if not xp.is_contiguous(out) or out.data.ptr & 15:
        out = aligned(xp, out)
    grad = xp.ndarray(out.shape, out.dtype)
    if out.size:
        if out.ndim:
            _launch(xp, "softmax_backward", (g, out, grad), axis, logs)
        else:
            grad[...] = 0
    return grad


def softmax(xp, x, axis):
    """exp(x − max) / sum along ``axis``; a row of up to 64 KiB is read once."""
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
