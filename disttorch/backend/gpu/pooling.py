"""Pooling on a GPU: one launch for the maxima or sums of all windows, and one for a gradient.

Row-major and channels-last inputs keep their layout; gradients are gathered by place in a fixed
order. Dtypes other than floats are computed by the plain formulas (``pool_kernels``).

Shape legend: leading dims any, S one to three spatial dims, P output dims.
"""

from __future__ import annotations

import math

import numpy as np

from .. import layouts, pool_kernels
from ..dtypes import bfloat16, float16, float32, float64
from .kernel import blocks, kernel

_OURS = (float32.np, bfloat16.np, float16.np, float64.np)
_THREADS = 256


def _ours(x, dims: int) -> bool:
    return x.dtype in _OURS and 1 <= dims <= 3 and x.ndim >= dims


def _three(values, fill) -> tuple:
    return (fill,) * (3 - len(values)) + tuple(values)


class _Lying:
    """An array as rows × channels × three dims, dense: channels-last ones have their channels,
    row-major ones count them among the rows."""

    __slots__ = ("array", "last", "rows", "channels", "steps")

    def __init__(self, xp, array, dims: int, last: bool | None = None):
        if last is None:
            last = array.ndim == dims + 2 and layouts.is_channels_last(array)
        self.last = last
        self.array = array = layouts.dense(xp, array, last)
        size = array.shape[array.ndim - dims :]
        lead = array.shape[: array.ndim - dims]
        places = math.prod(size)
        if last:
            self.rows, self.channels = lead
            across = self.channels
            outer = (places * across, 1)
        else:
            self.rows, self.channels, across = math.prod(lead), 1, 1
            outer = (places, 0)
        inner, below = [], across
        for n in reversed(size):
            inner.append(below)
            below *= n
        self.steps = (*outer, *_three(inner[::-1], 0))

    def is_wide(self, first, *arrays) -> bool:
        """Whether ``first`` and ``arrays``, which lie like this one, can be read 16 bytes of channels at
        a time, as many as that are of the first one's dtype."""
        return (self.last and self.channels * first.itemsize % 16 == 0
                and layouts.is_aligned(first, *arrays))


def _launch(xp, name, dtype, count, args):
    kernel(xp.cupy, "pooling", name, ELEMENT=dtype.name)((blocks(count, _THREADS),), (_THREADS,), args)


def _result(xp, lying, shape, dtype):
    return layouts.empty(xp, shape, dtype, lying.last)


def max_pool(xp, x, windows):
    """(maxima …×P, their places as int64 flat indices into S …×P). windows: one per dim of S."""
    dims = len(windows)
    if not _ours(x, dims) or x.size == 0 or not all(w.count for w in windows):
        return pool_kernels.max_pool(xp, x, windows)
    lying = _Lying(xp, x, dims)
    shape = (*x.shape[: x.ndim - dims], *(w.count for w in windows))
    out, places = (_result(xp, lying, shape, d) for d in (x.dtype, np.dtype(np.int64)))
    tables = _three([w.on_device(xp) for w in windows], None)
    tables = [_single(xp) if t is None else t for t in tables]
    size = _three(x.shape[x.ndim - dims :], 1)
    if lying.is_wide(lying.array) and math.prod(size) < 1 << 31:
        many = 16 // x.itemsize
        _launch(xp, "max_pool_wide", x.dtype, out.size // many, (
            lying.array, *(t[0] for t in tables), out, places, out.size // many, lying.channels,
            *size[1:], *_three([w.count for w in windows], 1), *_three([w.longest for w in windows], 1),
            lying.steps[0]))
        return out, places
    _launch(xp, "max_pool", x.dtype, out.size, (
        lying.array, *(t[0] for t in tables), out, places, out.size, lying.channels, *size[1:],
        *_three([w.count for w in windows], 1), *_three([w.longest for w in windows], 1),
        *lying.steps, int(lying.last)))
    return out, places


_SINGLE = pool_kernels.windows_at((0,), 1, 1)  # the windows of a dim that is not there


def _single(xp):
    return _SINGLE.on_device(xp)


def max_pool_backward(xp, g, places, windows, shape):
    """The gradient of the input …×S: each maximum's gradient at its place."""
    dims = len(windows)
    if not _ours(g, dims) or g.size == 0 or 0 in shape:
        return pool_kernels.max_pool_backward(xp, g, places, windows, shape)
    lying = _Lying(xp, places, dims)
    grads = _Lying(xp, g, dims, lying.last)
    out = _result(xp, lying, shape, g.dtype)
    tables = [_single(xp) if t is None else t
              for t in _three([w.on_device(xp) for w in windows], None)]
    size = _three(shape[len(shape) - dims :], 1)
    if lying.is_wide(grads.array, lying.array):
        many = 16 // g.itemsize
        _launch(xp, "max_pool_grad_wide", g.dtype, out.size // many, (
            grads.array, lying.array, *(t[1] for t in tables), out, out.size // many, lying.channels,
            *size, *_three([w.count for w in windows], 1)))
        return out
    _launch(xp, "max_pool_grad", g.dtype, out.size, (
        grads.array, lying.array, *(t[1] for t in tables), out, out.size, lying.channels,
        *size, *grads.steps, *lying.steps, int(lying.last)))
    return out


def pooled_sum(xp, x, kernel, stride, padding, size):
    """Sums over windows …×P (P = ``size``), zeros outside."""
    return _sums(xp, "pooled_sum", x, kernel, stride, padding, size,
                 (x.shape[x.ndim - len(kernel) :], size))


def spread_sum(xp, g, kernel, stride, padding, size):
    """The adjoint of ``pooled_sum``: …×P back to …×S (S = ``size``)."""
    return _sums(xp, "spread_sum", g, kernel, stride, padding, size,
                 (size, g.shape[g.ndim - len(kernel) :]))


def _sums(xp, name, a, kernel, stride, padding, size, places):
    """One of the two. ``places``: the sizes S and P, whichever of them is the result's."""
    dims = len(kernel)
    if not _ours(a, dims) or a.size == 0 or 0 in size:
        return getattr(pool_kernels, name)(xp, a, kernel, stride, padding, size)
    lying = _Lying(xp, a, dims)
    out = _result(xp, lying, (*a.shape[: a.ndim - dims], *size), a.dtype)
    _launch(xp, name, a.dtype, out.size, (
        lying.array, out, out.size, lying.channels, *_sizes(*places, kernel, stride, padding),
        *lying.steps, int(lying.last)))
    return out


def _sizes(size, out_size, kernel_size, stride, padding) -> tuple:
    return (*_three(size, 1), *_three(out_size, 1), *_three(kernel_size, 1), *_three(stride, 1),
            *_three(padding, 0))
