"""Batch and group normalisation on a GPU: moments per channel, the normalising, the backward pass.

Each pass over the data is one launch at the speed of memory, in the layout that the data has; sums
have two stages of a fixed order (``csrc/batchnorm.cu``), in float32 (float64 for float64), and
nothing is read back, the running statistics included. Dtypes for which there is no kernel (integers,
parameters of several dtypes) are computed by the plain formulas, in float32 if they have 16 bits.

Shape legend: N samples, C channels, S any spatial dims. x: N×C×S; statistics: C.
"""

from __future__ import annotations

import math

from .. import batchnorm_kernels, layouts
from ..dtypes import bfloat16, float16, float32, float64
from .kernel import WARP, blocks, kernel

_THREADS = 256
_DEEP = 4  # rows or groups of elements that a thread should have at least
_BLOCKS = 1024  # of a reduction; those of the other passes are four times as many
_COMPUTED = {float32.np: float32.np, float64.np: float64.np, float16.np: float32.np,
             bfloat16.np: float32.np}


class _Layout:
    """How an array's channels lie: the kernels' suffix, their sizes and the grid for a pass."""

    __slots__ = ("suffix", "sizes", "grid", "channels", "splits")
    grid: tuple[int, ...]

    def __init__(self, array, last: bool, wide: bool, reduces: bool):
        n, c = array.shape[:2]
        length, many = math.prod(array.shape[2:]), 16 // array.itemsize
        self.channels = c
        most = _BLOCKS if reduces else 4 * _BLOCKS
        if last:
            many = many if wide and c % many == 0 else 1
            self.suffix = "rows_wide" if many > 1 else "rows"
            width = min(WARP, 1 << (-(-c // many) - 1).bit_length())
            tiles, rows = -(-c // (many * width)), n * length
            share = _THREADS // width * _DEEP
            self.splits = max(1, min(-(-rows // share), most // tiles, 65535))
            self.sizes, self.grid = (rows, c, width), (tiles, self.splits)
        else:
            many = many if wide and length % many == 0 else 1
            self.suffix = "planes_wide" if many > 1 else "planes"
            total = n * length // many
            self.splits = max(1, min(-(-total // (_THREADS * _DEEP)), most // c, 65535))
            self.sizes = (n, c, length)
            self.grid = (c, self.splits) if reduces else (blocks(total * c, _THREADS, 1 << 16),)


def _lies_last(array) -> bool:
    """Whether channels are the innermost dim, as they are where there are no others."""
    if array.ndim < 4:
        return array.ndim == 2 or array.shape[2] == 1
    return layouts.is_channels_last(array)


def _dense(xp, array, last: bool):
    return xp.ascontiguousarray(array) if array.ndim < 3 else layouts.dense(xp, array, last)


def _has_kernels(x, *parameters) -> bool:
    """Whether there are kernels for an input and parameters of these dtypes."""
    if x.dtype not in _COMPUTED or not 2 <= x.ndim <= 5 or x.size == 0:
        return False
    kinds = {p.dtype for p in parameters if p is not None}
    return not kinds or len(kinds) == 1 and kinds <= {x.dtype, _COMPUTED[x.dtype]}


def _run(xp, name, x, parameter, grid, args, threads=_THREADS):
    """Launch a kernel for x's dtype and that of a parameter (an array, or None for any)."""
    kind = _COMPUTED[x.dtype] if parameter is None else parameter.dtype
    kernel(xp.cupy, "batchnorm", name, ELEMENT=x.dtype.name, PARAM=kind.name)(grid, (threads,), args)


def _finish(xp, name, x, parameter, channels, args):
    each = _THREADS // WARP
    _run(xp, name, x, parameter, (-(-channels // each),), args)


def batch_stats(xp, x, running_mean=None, running_var=None, momentum=0.0):
    """(mean, biased variance) per channel; the running ones, where given, move towards them."""
    if not _has_kernels(x, running_mean, running_var) or not (
            _contiguous(running_mean) and _contiguous(running_var)):
        return batchnorm_kernels.batch_stats(xp, x, running_mean, running_var, momentum)
    last = _lies_last(x)
    x = _dense(xp, x, last)
    layout = _Layout(x, last, layouts.is_aligned(x), reduces=True)
    c, splits, kind = layout.channels, layout.splits, _COMPUTED[x.dtype]
    memory = xp.empty((3 * splits + 2, c), kind)
    partial, mean, var = memory[2:], memory[0], memory[1]
    _run(xp, "moments_" + layout.suffix, x, None, layout.grid, (x, partial, *layout.sizes))
    running = running_var if running_mean is None else running_mean
    _finish(xp, "finish_moments", x, running, c, (
        partial, mean, var, running_mean, running_var, float(momentum), splits, c))
    return mean, var


def _contiguous(array) -> bool:
    return array is None or array.flags.c_contiguous


def normalize_channels(xp, x, weight, bias, mean, var, eps):
    """(x − mean)/√(var + eps)·weight + bias per channel; weight and bias may be None."""
    if not _has_kernels(x, weight, bias):
        return _plainly(xp, batchnorm_kernels.normalize_channels, x, weight, bias, mean, var, eps)
    last = _lies_last(x)
    x = _dense(xp, x, last)
    out = layouts.empty(xp, x.shape, x.dtype, last and x.ndim > 2)
    layout = _Layout(x, last, layouts.is_aligned(x), reduces=False)
    parameter = bias if weight is None else weight
    _run(xp, "normal_" + layout.suffix, x, parameter, layout.grid, (
        x, *_rows(xp, weight, bias), *_stats(xp, x, mean, var), out, float(eps), *layout.sizes))
    return out


def normalize_channels_backward(xp, g, x, weight, mean, var, eps, training, needs):
    """(gradient of x, of weight C, of bias C); each only if ``needs`` says so."""
    if not _has_kernels(x, weight) or g.dtype != x.dtype:
        return _plain_backward(xp, g, x, weight, mean, var, eps, training, needs)
    last = _lies_last(x)
    x, g = _dense(xp, x, last), _dense(xp, g, last)
    mean, var = _stats(xp, x, mean, var)
    (weight,) = _rows(xp, weight)
    sums, gw, gb = _sums(xp, g, x, weight, mean, var, eps, last, needs)
    gx = None
    if needs[0]:
        gx = layouts.empty(xp, x.shape, x.dtype, last and x.ndim > 2)
        layout = _Layout(x, last, layouts.is_aligned(x, g), reduces=False)
        _run(xp, "grad_" + layout.suffix, x, weight, layout.grid, (
            g, x, weight, mean, var, sums if training else None, gx, float(eps), *layout.sizes))
    return gx, gw, gb


def _sums(xp, g, x, weight, mean, var, eps, last, needs):
    """(2×C of Σ g and Σ g·(x − mean), gradient of weight, of bias)."""
    layout = _Layout(g, last, layouts.is_aligned(*((g,) if x is None else (g, x))), reduces=True)
    c, splits, kind = layout.channels, layout.splits, _COMPUTED[g.dtype]
    memory = xp.empty((2 * splits + 2, c), kind)
    sums, partial = memory[:2], memory[2:]
    of_parameters = kind if weight is None else weight.dtype
    gw = xp.empty(c, of_parameters) if needs[1] else None
    gb = xp.empty(c, of_parameters) if needs[2] else None
    _run(xp, "sums_" + layout.suffix, g, None, layout.grid, (g, x, mean, partial, *layout.sizes))
    _finish(xp, "finish_sums", g, weight, c, (
        partial, sums, gw, gb, var, float(eps), splits, c))
    return sums, gw, gb


def channel_sum(xp, g):
    """Sums of N×C×S over N and S: C, in g's dtype."""
    if not _has_kernels(g):
        return batchnorm_kernels.channel_sum(xp, g)
    last = _lies_last(g)
    g = _dense(xp, g, last)
    like = g if g.dtype != _COMPUTED[g.dtype] else None  # the result is rounded to g's dtype
    return _sums(xp, g, None, like, None, None, 0.0, last, (False, False, True))[2]


def _rows(xp, *parameters):
    return tuple(None if p is None else xp.ascontiguousarray(p) for p in parameters)


def _stats(xp, x, mean, var):
    """Statistics in the dtype that is computed with (running ones may have another)."""
    kind = _COMPUTED[x.dtype]
    return (xp.ascontiguousarray(mean.astype(kind, copy=False)),
            xp.ascontiguousarray(var.astype(kind, copy=False)))


# ---- group normalisation of a contiguous N×C×L ---------------------------------------------------
def group_norm(xp, x, weight, bias, groups, eps):
    """(y N×C×L, mean N×G, 1/√(variance + eps) N×G); weight and bias are C or None.

    A sample's group is a channel of a batch of one: first for the moments, then each of its channels
    is normalised by them.
    """
    if not _has_kernels(x, weight, bias):
        return batchnorm_kernels.group_norm(xp, x, weight, bias, groups, eps)
    n, c, length = x.shape
    mean, var = batch_stats(xp, x.reshape(1, n * groups, -1))
    spread = [xp.repeat(a, c // groups) for a in (mean, var)]
    tiled = [None if p is None else xp.tile(p, n) for p in (weight, bias)]
    out = normalize_channels(xp, x.reshape(1, n * c, length), *tiled, *spread, eps)
    rstd = 1 / xp.sqrt(var + eps)
    return out.reshape(x.shape), mean.reshape(n, groups), rstd.reshape(n, groups)


def group_norm_backward(xp, g, x, weight, mean, rstd):
    """(gradient of x N×C×L, of weight C, of bias C)."""
    if not _has_kernels(x, weight) or g.dtype != x.dtype:
        return batchnorm_kernels.group_norm_backward(xp, g, x, weight, mean, rstd)
    n, c, length = x.shape
    groups = mean.shape[1]
    each, flat = c // groups, (1, n * c, length)
    mean = xp.repeat(mean, each, axis=1)
    sums = _sums(xp, g.reshape(flat), x.reshape(flat), None, xp.ascontiguousarray(mean).reshape(-1),
                 None, 0.0, length == 1, (True, False, False))[0]
    total, dots = sums.reshape(2, n, c)
    scale = xp.repeat(rstd, each, axis=1)
    dots = dots * scale
    gw, gb = dots.sum(axis=0), total.sum(axis=0)
    if weight is not None:
        total, dots, scale = total * weight, dots * weight, scale * weight
    # the mean of g·weight over the group and its part along the normalised input are taken out
    level, along = (
        xp.repeat(a.reshape(n, groups, each).sum(axis=2) / (each * length) * factor, each, axis=1)
        for a, factor in ((total, rstd), (dots, rstd * rstd)))
    gx = g * scale[:, :, None]
    gx -= (x - mean[:, :, None]) * along[:, :, None] + level[:, :, None]
    return gx, gw, gb


# ---- the plain formulas --------------------------------------------------------------------------
def _widened(x, *others):
    """(x, others) in the dtype that x is computed with."""
    kind = _COMPUTED.get(x.dtype, x.dtype)
    return [None if a is None else a.astype(kind, copy=False) for a in (x, *others)]


def _plainly(xp, formula, x, weight, bias, mean, var, eps):
    return formula(xp, *_widened(x, weight, bias, mean, var), eps).astype(x.dtype, copy=False)


def _plain_backward(xp, g, x, weight, mean, var, eps, training, needs):
    wide = _widened(x, g, weight, mean, var)
    gx, gw, gb = batchnorm_kernels.normalize_channels_backward(
        xp, wide[1], wide[0], *wide[2:], eps, training, needs)
    return None if gx is None else gx.astype(x.dtype, copy=False), gw, gb
