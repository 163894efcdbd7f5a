"""Batch and group normalisation on a GPU: moments per channel, the normalising, the backward pass.

Each pass over the data is one launch at the speed of memory, in the layout that the data has; sums
have two stages of a fixed order (``csrc/batchnorm.cu``), in float32 (float64 for float64), and
nothing is read back, the running statistics included. Dtypes for which there is no kernel (integers,
parameters of several dtypes) are computed by the plain formulas, in float32 if they have 16 bits.

Which launches a call needs hangs on the layouts of its arrays alone: that is decided once for each
and kept as a function.

Shape legend: N samples, C channels, S any spatial dims. x: N×C×S; statistics: C.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from .. import batchnorm_kernels, layouts
from ..dtypes import bfloat16, float16, float32, float64
from .kernel import WARP, blocks, kernel

_THREADS = 256
_DEEP = 4  # rows or groups of elements that a thread should have at least
# Blocks of a pass over rows: as many as work at the same time on a large GPU (its multiprocessors have
# registers for four of moments and normalising, three of the others), so that each goes on for long.
_AT_ONCE = {"moments": 528, "normal": 528, "sums": 396, "grad": 396}
_NARROW = 1056  # of those that take single elements
_BLOCKS = 1024  # of a reduction of planes; those of the other passes are four times as many
_COMPUTED = {float32.np: float32.np, float64.np: float64.np, float16.np: float32.np,
             bfloat16.np: float32.np}
_MOST_DECIDED = 8192
_decided: dict[tuple, Any] = {}  # functions


def _keep(key, made):
    if len(_decided) >= _MOST_DECIDED:  # shapes that keep changing
        _decided.clear()
    _decided[key] = made
    return made


def _lying(*arrays) -> tuple:
    """What decisions hang on, of arrays or None."""
    return tuple([None if a is None else (a.shape, a.strides, a.dtype) for a in arrays])


class _Pass:
    """One pass over an array's channels as they lie: a kernel, its grid and its sizes.

    Attributes:
        splits: of a reduction, how many parts a channel's elements have.
        total, unit: how many parts are shared out among the splits, and the elements of each.
    """

    def __init__(self, xp, name: str, array, last: bool, wide: bool, parameter=None):
        n, c = array.shape[:2]
        length, many = math.prod(array.shape[2:]), 16 // array.itemsize
        self.unit = 1
        self.sizes: tuple[int, ...]
        if last:
            wide = wide and c % many == 0
            many = many if wide else 1
            width = min(WARP, 1 << (-(-c // many) - 1).bit_length())
            tiles, rows = -(-c // (many * width)), n * length
            share, most = _THREADS // width * _DEEP, _AT_ONCE[name] if wide else _NARROW
            self.splits = max(1, min(-(-rows // share), most // tiles))
            self.sizes, self.grid, self.total = (rows, c, width, tiles), tiles * self.splits, rows
            family, suffix = "batchnorm", "rows"
        else:
            wide = wide and length % many == 0
            many = many if wide else 1
            self.total, self.unit = n * length // many, many
            self.sizes = (n, c, length)
            self.splits = max(1, min(-(-self.total // (_THREADS * _DEEP)), _BLOCKS // c))
            self.grid = c * self.splits
            if name in ("normal", "grad"):
                self.grid = blocks(self.total * c, _THREADS, 4 * _BLOCKS)
            family, suffix = "batchnorm_planes", "planes"
        name += f"_{suffix}{'_wide' if wide else ''}"
        self.kernel = _kernel(xp, family, name, array, parameter)

    def prepared(self, xp, given: str, eps: bool = False):
        """``f(*arrays)``, or ``f(*arrays, eps)``; ``given``: "a" for an array, "-" for None."""
        sizes, grid = self.sizes, self.grid
        launch = self.kernel.prepared(
            _THREADS, (*_types(xp, given), *(float,) * eps, *(int,) * len(sizes)))
        return lambda *args: launch(grid, *args, *sizes)


def _kernel(xp, family, name, array, parameter):
    """A kernel for an array's dtype and that of a parameter (an array, or None for any)."""
    kind = _COMPUTED[array.dtype] if parameter is None else parameter.dtype
    return kernel(xp.cupy, family, name, ELEMENT=array.dtype.name, PARAM=kind.name)


def _types(xp, given: str) -> tuple:
    return tuple([xp.ndarray if letter == "a" else type(None) for letter in given])


def _given(*arrays) -> str:
    return "".join(["-" if a is None else "a" for a in arrays])


def _finish(xp, name, x, parameter, given: str, numbers: tuple, channels: int):
    """The launch of a second stage: 32 channels a block, a warp for each."""
    made = _kernel(xp, "batchnorm", name, x, parameter)
    launch = made.prepared(WARP * WARP, (*_types(xp, given), *map(type, numbers)))
    return partial(launch, -(-channels // WARP))


def _lies_last(array) -> bool:
    """Whether channels are the innermost dim, as they are where there are no others."""
    if array.ndim < 4:
        return array.ndim == 2 or array.shape[2] == 1
    return layouts.is_channels_last(array)


def _laid(xp, array, last: bool):
    """``f(array)``, dense in that layout; None where arrays that lie like this one are."""
    if array.ndim < 3 or not last:
        return None if array.flags.c_contiguous else xp.ascontiguousarray
    return None if layouts.is_dense(array, last) else lambda a: layouts.dense(xp, a, last)


def _has_kernels(x, *parameters) -> bool:
    """Whether there are kernels for an input and parameters of these dtypes."""
    if x.dtype not in _COMPUTED or not 2 <= x.ndim <= 5 or x.size == 0:
        return False
    kinds = {p.dtype for p in parameters if p is not None}
    return not kinds or len(kinds) == 1 and kinds <= {x.dtype, _COMPUTED[x.dtype]}


def _contiguous(array) -> bool:
    return array is None or array.flags.c_contiguous


# ---- moments -------------------------------------------------------------------------------------
def batch_stats(xp, x, running_mean=None, running_var=None, momentum=0.0, seen=None):
    """(mean, biased variance) per channel; the running ones, where given, move towards them, and
    ``seen``, an int64 of no dims, goes up by one."""
    key = ("moments", xp.index, seen is None, layouts.is_aligned(x),
           _lying(x, running_mean, running_var))
    run = _decided.get(key) or _keep(key, _decide_stats(xp, x, running_mean, running_var, seen))
    return run(x, running_mean, running_var, float(momentum), seen)


def _decide_stats(xp, x, running_mean, running_var, seen):
    if not _has_kernels(x, running_mean, running_var) or not (
            _contiguous(running_mean) and _contiguous(running_var)):
        return partial(batchnorm_kernels.batch_stats, xp)
    last, array, kind = _lies_last(x), xp.ndarray, _COMPUTED[x.dtype]
    lay = _laid(xp, x, last)
    c = x.shape[1]
    first = _Pass(xp, "moments", x, last, lay is not None or layouts.is_aligned(x))
    sizes = (first.splits, c, first.total, first.unit)
    finish = _finish(xp, "finish_moments", x, running_var if running_mean is None else running_mean,
                     "aaa" + _given(running_mean, running_var, seen), (0.0, *sizes), c)
    launch, parts, one = first.prepared(xp, "aa"), (2 * first.splits, c), (c,)

    def run(x, running_mean, running_var, momentum, seen):
        if lay is not None:
            x = lay(x)
        partial, mean, var = array(parts, kind), array(one, kind), array(one, kind)
        launch(x, partial)
        finish(partial, mean, var, running_mean, running_var, seen, momentum, *sizes)
        return mean, var

    return run


# ---- normalising ---------------------------------------------------------------------------------
def normalize_channels(xp, x, weight, bias, mean, var, eps):
    """(x − mean)/√(var + eps)·weight + bias per channel; weight and bias may be None."""
    key = ("normal", xp.index, layouts.is_aligned(x), _lying(x, weight, bias, mean, var))
    run = _decided.get(key) or _keep(key, _decide_normal(xp, x, weight, bias, mean, var))
    return run(x, weight, bias, mean, var, float(eps))


def _decide_normal(xp, x, weight, bias, mean, var):
    if not _has_kernels(x, weight, bias):
        return partial(_plainly, xp, batchnorm_kernels.normalize_channels)
    last = _lies_last(x)
    lay, tidy = _laid(xp, x, last), _tidier(xp, x, weight, bias, mean, var)
    make = layouts.maker(xp, x.shape, x.dtype, last and x.ndim > 2)
    whole = _Pass(xp, "normal", x, last, lay is not None or layouts.is_aligned(x),
                  bias if weight is None else weight)
    launch = whole.prepared(xp, "a" + _given(weight, bias) + "aaa", True)

    def run(x, weight, bias, mean, var, eps):
        if lay is not None:
            x = lay(x)
        if tidy is not None:
            weight, bias, mean, var = tidy(weight, bias, mean, var)
        out = make()
        launch(x, weight, bias, mean, var, out, eps)
        return out

    return run


def _tidier(xp, x, *arrays):
    """``f(*arrays)``: the same contiguous, the last two (statistics) in the dtype that x is computed
    with; None where they are, or where both are None."""
    kind = _COMPUTED[x.dtype]
    if all(map(_contiguous, arrays)) and all(a is None or a.dtype == kind for a in arrays[-2:]):
        return None

    def tidy(*arrays):
        *others, mean, var = [None if a is None else xp.ascontiguousarray(a) for a in arrays]
        return *others, mean.astype(kind, copy=False), var.astype(kind, copy=False)

    return tidy


# ---- backward ------------------------------------------------------------------------------------
def normalize_channels_backward(xp, g, x, weight, mean, var, eps, training, needs):
    """(gradient of x, of weight C, of bias C); each only if ``needs`` says so."""
    key = ("backward", xp.index, bool(training), needs, layouts.is_aligned(x, g),
           _lying(g, x, weight, mean, var))
    run = _decided.get(key) or _keep(
        key, _decide_backward(xp, g, x, weight, mean, var, bool(training), needs))
    return run(g, x, weight, mean, var, float(eps))


def _decide_backward(xp, g, x, weight, mean, var, training, needs):
    if not _has_kernels(x, weight) or g.dtype != x.dtype:
        return partial(_plain_backward, xp, training=training, needs=needs)
    last = _lies_last(x)
    lay_g, lay_x, tidy = _laid(xp, g, last), _laid(xp, x, last), _tidier(xp, x, weight, mean, var)
    aligned = all(lay is not None or layouts.is_aligned(a) for lay, a in ((lay_g, g), (lay_x, x)))
    summed = _decide_sums(xp, x, weight, last, aligned, "a" if training or needs[1] else "-",
                          (False, *needs), x.size // x.shape[1] if training else 0)
    if needs[0]:
        make = layouts.maker(xp, x.shape, x.dtype, last and x.ndim > 2)
        launch = _Pass(xp, "grad", x, last, aligned, weight).prepared(xp, "aaaa" if training else "a-aa")

    def run(g, x, weight, mean, var, eps):
        if lay_g is not None:
            g = lay_g(g)
        if lay_x is not None:
            x = lay_x(x)
        if tidy is not None:
            weight, mean, var = tidy(weight, mean, var)
        _, slopes, gw, gb = summed(g, x, weight, mean, var, eps)
        gx = None
        if slopes is not None:
            gx = make()
            launch(g, x if training else None, slopes, gx)
        return gx, gw, gb

    return run


def _decide_sums(xp, g, weight, last, aligned, inputs, needs, count):
    """``f(g, x, weight, mean, var, eps)``: (2×C of Σ g and Σ g·(x − mean), 4×C of slopes, gradients of
    weight and bias), each only if ``needs`` says so.

    Args:
        inputs: "a" if x takes part in the sums, else "-".
        count: values of a channel, where gradients flow through the statistics; else 0.
    """
    c, kind, array = g.shape[1], _COMPUTED[g.dtype], xp.ndarray
    first, both = _Pass(xp, "sums", g, last, aligned), inputs == "a"
    reduces = needs[0] or count or needs[2] or needs[3]  # else slopes do not hang on g
    sizes = (first.splits if reduces else 0, c)
    of_parameters = kind if weight is None else weight.dtype
    shapes = ((2, c), kind), ((4, c), kind), ((c,), of_parameters), ((c,), of_parameters)
    makes = [partial(array, *s) if n else None for s, n in zip(shapes, needs)]
    with_stats = "aa" if needs[1] or needs[2] else "--"
    given = "a" + _given(*makes) + _given(weight) + with_stats
    finish = _finish(xp, "finish_sums", g, weight, given, (0.0, 0.0, *sizes), c)
    launch = first.prepared(xp, "a" + inputs * 2 + "a")
    parts, numbers, of_stats = (2 * first.splits, c), (float(count), *sizes), with_stats == "aa"

    def run(g, x, weight, mean, var, eps):
        partial = array(parts, kind)
        if both:
            launch(g, x, mean, partial)
        elif reduces:
            launch(g, None, None, partial)
        made = [None if make is None else make() for make in makes]
        if not of_stats:
            mean = var = None
        finish(partial, *made, weight, mean, var, eps, *numbers)
        return made

    return run


def channel_sum(xp, g):
    """Sums of N×C×S over N and S: C, in g's dtype."""
    key = ("sum", xp.index, layouts.is_aligned(g), _lying(g))
    run = _decided.get(key) or _keep(key, _decide_channel_sum(xp, g))
    return run(g)


def _decide_channel_sum(xp, g):
    if not _has_kernels(g):
        return partial(batchnorm_kernels.channel_sum, xp)
    last = _lies_last(g)
    lay = _laid(xp, g, last)
    rounds = g.dtype != _COMPUTED[g.dtype]  # the result is in g's dtype
    aligned = lay is not None or layouts.is_aligned(g)
    summed = _decide_sums(xp, g, g if rounds else None, last, aligned, "-", (False,) * 3 + (True,), 0)

    def run(g):
        if lay is not None:
            g = lay(g)
        return summed(g, None, g if rounds else None, None, None, 0.0)[3]

    return run


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
    g_flat, x_flat = g.reshape(flat), x.reshape(flat)
    aligned = layouts.is_aligned(g_flat, x_flat)
    key = ("group", xp.index, aligned, _lying(g_flat))
    summed, move = _decided.get(key) or _keep(key, _decide_group_backward(xp, g_flat, aligned))
    sums = summed(g_flat, x_flat, None, xp.ascontiguousarray(mean).reshape(-1), None, 0.0)[0]
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
    slopes = xp.concatenate([a.reshape(1, -1) for a in (mean, scale, -along, -level)])
    gx = xp.empty(x.shape, x.dtype)
    move(g_flat, x_flat, slopes, gx)
    return gx, gw, gb


def _decide_group_backward(xp, g, aligned):
    """(the sums of ``_decide_sums``, the launch that makes the gradient of the input of slopes) of a
    batch of one with a channel for each sample's."""
    last = g.shape[2] == 1
    summed = _decide_sums(xp, g, None, last, aligned, "a", (True, False, False, False), 0)
    return summed, _Pass(xp, "grad", g, last, aligned).prepared(xp, "aaaa")


# ---- the plain formulas --------------------------------------------------------------------------
def _widened(x, *others):
    """(x, others) in the dtype that x is computed with."""
    kind = _COMPUTED.get(x.dtype, x.dtype)
    return [None if a is None else a.astype(kind, copy=False) for a in (x, *others)]


def _plainly(xp, formula, x, weight, bias, mean, var, eps):
    return formula(xp, *_widened(x, weight, bias, mean, var), eps).astype(x.dtype, copy=False)


def _plain_backward(xp, g, x, weight, mean, var, eps, *, training, needs):
    wide = _widened(x, g, weight, mean, var)
    gx, gw, gb = batchnorm_kernels.normalize_channels_backward(
        xp, wide[1], wide[0], *wide[2:], eps, training, needs)
    return None if gx is None else gx.astype(x.dtype, copy=False), gw, gb
