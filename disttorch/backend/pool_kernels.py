"""Pooling: maxima and sums over windows of the last dims, one dim after the other.

A maximum over a box is the maximum over rows of the maxima within each row, and a sum likewise:
k + k steps instead of k·k. Going along the last dim first keeps PyTorch's choice among equal
elements, the first in memory order.

Shape legend: leading dims any, S spatial dims, P output dims.
"""

from __future__ import annotations

import functools
import math

import numpy as np


class Windows:
    """Where the windows of one dim are.

    Attributes:
        size: of the dim pooled over.
        places: [number of windows, longest window]; a shorter window repeats its last place.
        steps: for each column of ``places`` a slice of the dim where that is possible, else the
            column itself.
        overlap: whether windows share places.
        longest: how many places the longest window has.
    """

    def __init__(self, size: int, places: np.ndarray):
        self.size, self.places = size, places
        self.count, self.longest = places.shape
        self._on_device: dict = {}
        self.steps = [_as_slice(column) for column in places.T]
        self.overlap = bool((places[1:, 0] <= places[:-1, -1]).any())

    def on_device(self, xp):
        """(``places``, [first, end][size]: which windows may hold each place) as int32 arrays of the
        namespace, made once. Windows begin, and end, in the order of their numbers."""
        if id(xp) not in self._on_device:
            every = np.arange(self.size)
            ranges = np.stack([np.searchsorted(self.places[:, -1], every, "left"),
                               np.searchsorted(self.places[:, 0], every, "right")])
            self._on_device[id(xp)] = tuple(
                xp.from_host(np.ascontiguousarray(a, np.int32)) for a in (self.places, ranges))
        return self._on_device[id(xp)]

    def __eq__(self, other):
        return self.size == other.size and np.array_equal(self.places, other.places)

    def __hash__(self):
        return hash((self.size, self.places.shape))


def _as_slice(column):
    step = column[1] - column[0] if len(column) > 1 else 1
    if len(column) and step > 0 and (np.diff(column) == step).all():
        return slice(int(column[0]), int(column[-1]) + 1, int(step))
    return np.ascontiguousarray(column)


@functools.lru_cache(256)
def regular_windows(size, count, kernel, stride, padding, dilation) -> Windows:
    """Windows at equal distances; the part over the padding is left out."""
    starts = np.arange(count) * stride - padding
    # the first element that is not padding: elements are ``dilation`` apart
    starts = starts + np.maximum(-starts + dilation - 1, 0) // dilation * dilation
    firsts = np.arange(count) * stride - padding
    ends = np.minimum(firsts + (kernel - 1) * dilation, size - 1)
    lasts = starts + (ends - starts) // dilation * dilation
    places = np.minimum(starts[:, None] + np.arange(kernel) * dilation, lasts[:, None])
    return Windows(size, places)


@functools.lru_cache(256)
def adaptive_windows(size, count) -> Windows:
    """``count`` windows of nearly equal length that cover the dim."""
    k = np.arange(count)
    starts, ends = k * size // count, -(-(k + 1) * size // count)
    longest = int((ends - starts).max()) if count else 1
    return Windows(size, np.minimum(starts[:, None] + np.arange(longest), ends[:, None] - 1))


def windows_at(starts: tuple, size: int, kernel: int) -> Windows:
    """Windows of one length at given places."""
    return Windows(size, np.asarray(starts)[:, None] + np.arange(kernel))


def _slab(xp, a, axis, step):
    if isinstance(step, slice):
        return a[(slice(None),) * axis + (step,)]
    return xp.take(a, xp.asarray(step), axis=axis)


def max_pool(xp, x, windows):
    """(maxima …×P, their places as int64 flat indices into S …×P). windows: one per dim of S."""
    best, places = x, None
    sizes = [w.size for w in windows]
    for i in range(len(windows) - 1, -1, -1):
        axis = x.ndim - len(windows) + i
        weight = math.prod(sizes[i + 1 :])
        best, places = _max_along(xp, best, places, axis, windows[i], weight)
    return best, places


def _max_along(xp, x, places, axis, window, weight):
    best = found = None
    after = (1,) * (x.ndim - axis - 1)
    for step, column in zip(window.steps, window.places.T):
        here = xp.asarray(column * weight).reshape(-1, *after)
        candidate = _slab(xp, x, axis, step)
        if places is not None:
            here = _slab(xp, places, axis, step) + here
        if best is None:
            best = xp.array(candidate)
            found = here if places is not None else xp.array(xp.broadcast_to(here, best.shape))
            continue
        better = candidate > best
        better |= candidate != candidate  # a NaN wins
        xp.copyto(best, candidate, where=better)
        xp.copyto(found, here, where=better)
    return best, found


def max_pool_backward(xp, g, places, windows, shape):
    """The gradient of the input …×S: each maximum's gradient at its place."""
    size = tuple(shape[len(shape) - len(windows) :])
    return unpool(xp, g, places, size, not any(w.overlap for w in windows))


def unpool(xp, values, places, size, unique):
    """Zeros …×S with ``values`` …×P added at flat indices ``places``; ``unique``: none repeats."""
    lead, area = values.shape[: values.ndim - len(size)], math.prod(size)
    rows = math.prod(lead)
    flat = places.reshape(rows, -1) + (xp.arange(rows) * area)[:, None]
    if unique:
        out = xp.zeros(rows * area, values.dtype)
        out[flat.reshape(-1)] = values.reshape(-1)
    else:
        out = xp.bincount(flat.reshape(-1), values.reshape(-1), rows * area)
        out = out.astype(values.dtype, copy=False)
    return out.reshape(*lead, *size)


def pooled_sum(xp, x, kernel, stride, padding, size):
    """Sums over windows …×P (P = ``size``), zeros outside."""
    for i, (k, s, p, n) in enumerate(zip(kernel, stride, padding, size)):
        axis = x.ndim - len(kernel) + i
        x = _sum_along(xp, x, axis, k, s, p, n)
    return x


def _edge(k, s, n):
    """The length that n windows span."""
    return (n - 1) * s + k


def _sum_along(xp, x, axis, k, s, p, n):
    before, length = (slice(None),) * axis, x.shape[axis]
    missing = max(_edge(k, s, n) - p - length, 0)
    if p or missing:
        widths = [(0, 0)] * x.ndim
        widths[axis] = (p, missing)
        x = xp.pad(x, widths)
    total = xp.array(x[(*before, slice(0, _edge(1, s, n), s))])
    for j in range(1, k):
        total += x[(*before, slice(j, j + _edge(1, s, n), s))]
    return total


def spread_sum(xp, g, kernel, stride, padding, size):
    """The adjoint of ``pooled_sum``: …×P back to …×S (S = ``size``)."""
    for i in range(len(kernel) - 1, -1, -1):
        axis = g.ndim - len(kernel) + i
        g = _spread_along(xp, g, axis, kernel[i], stride[i], padding[i], size[i])
    return g


def _spread_along(xp, g, axis, k, s, p, size):
    before, n = (slice(None),) * axis, g.shape[axis]
    shape = list(g.shape)
    shape[axis] = max(_edge(k, s, n), p + size)
    total = xp.zeros(shape, g.dtype)
    for j in range(k):
        total[(*before, slice(j, j + _edge(1, s, n), s))] += g
    return xp.ascontiguousarray(total[(*before, slice(p, p + size))])


def pool_divisor(xp, dtype, kernel, stride, padding, size, out_size, include_pad):
    """How many elements each window counts: an array of shape P, or a number if all are equal."""
    result = np.ones(())
    for k, s, p, length, n in zip(kernel, stride, padding, size, out_size):
        start = np.arange(n) * s - p
        end = np.minimum(start + k, length + p)
        if not include_pad:
            start, end = np.maximum(start, 0), np.minimum(end, length)
        result = result[..., None] * (end - start)
    if result.size and (result == result.flat[0]).all():
        return result.dtype.type(result.flat[0]).astype(dtype)
    return xp.asarray(result.astype(dtype))


# ---------------------------------------------------------------- windows as columns
def im2col(xp, x, kernel, dilation, padding, stride):
    """N×C×H×W to N×(C·KH·KW)×(number of windows)."""
    n, c = x.shape[:2]
    size = xp.conv_output_size(x.shape[2:], kernel, stride, padding, dilation)
    x = xp.pad(x, [(0, 0), (0, 0), *((p, p) for p in padding)])
    strides = (
        *x.strides[:2], *(a * d for a, d in zip(x.strides[2:], dilation)),
        *(a * s for a, s in zip(x.strides[2:], stride)),
    )
    view = xp.lib.stride_tricks.as_strided(x, (n, c, *kernel, *size), strides)
    return view.reshape(n, c * math.prod(kernel), math.prod(size))


def col2im(xp, cols, size, kernel, dilation, padding, stride):
    """The adjoint of ``im2col``: overlapping elements add up. N×(C·KH·KW)×L to N×C×H×W."""
    n, c = cols.shape[0], cols.shape[1] // math.prod(kernel)
    out_size = xp.conv_output_size(size, kernel, stride, padding, dilation)
    cols = cols.reshape(n, c, *kernel, *out_size)
    total = xp.zeros((n, c, *(s + 2 * p for s, p in zip(size, padding))), cols.dtype)
    for offset in np.ndindex(*kernel):
        at = tuple(
            slice(o * d, o * d + s * (m - 1) + 1, s)
            for o, d, s, m in zip(offset, dilation, stride, out_size)
        )
        total[(slice(None), slice(None), *at)] += cols[(slice(None), slice(None), *offset)]
    inside = tuple(slice(p, p + s) for p, s in zip(padding, size))
    return xp.ascontiguousarray(total[(slice(None), slice(None), *inside)])
