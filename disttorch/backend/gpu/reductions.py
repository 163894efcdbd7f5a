"""Reductions of float arrays: each element read once, 16-bit ones added up in float32.

An array is seen as groups of neighbouring axes that are kept or reduced; one launch reduces one group,
two where that group is long and few blocks would share the work. What is no float array is CuPy's.
"""

from __future__ import annotations

import builtins
import math

from .. import plain_kernels, row_kernels
from .kernel import WARP, kernel
from .rows import F32, FLOATS, THREADS, aligned, wider

_BLOCKS = 528  # that work at the same time on a large GPU, four on each of its multiprocessors
_PIECE = 16384  # elements of a row that are worth a block of its own
_ROWS = 64  # rows of a column that are worth a block of its own
_SHALLOW = 512  # rows of a column that one block goes through rather than two launches
_SECOND = {"sum": "sum", "squares": "sum", "largest": "largest", "smallest": "smallest"}


def _power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()


# ---------------------------------------------------------------- launches
def _step(xp, outer, n, inner, what, source, dtype, strips=1, divisor=1.0, root=0):
    """One launch over outer×n×inner elements of ``source`` to outer·strips·inner of ``dtype``.

    Returns:
        (kernel, grid, block, size of the result, its dtype, what follows the arrays).
    """
    chunk, each = -(-n // strips), 16 // source.itemsize
    if inner == 1:
        name, grid, block, parts = "warps_", (-(-outer * WARP // THREADS),), (THREADS,), strips
        if n > 1024 or strips > 1:
            threads = builtins.min(512, -(-chunk * source.itemsize // (64 * WARP)) * WARP)
            name, grid, block = "rows_", (outer * strips,), (threads,)
        rest = outer, n, parts, chunk, divisor, root
    else:
        name, each = ("packs_", each) if inner % each == 0 else ("columns_", 1)
        wide = builtins.min(32, _power_of_2(inner // each))
        if n > 64 and strips * outer * inner < 128 * 32 * each:  # few blocks: deeper ones make more
            wide = builtins.min(wide, 8)
        grid = (-(-inner // (wide * each)), strips, builtins.min(outer, 65535))
        block, rest = (wide, 256 // wide), (outer, n, inner, chunk, divisor, root)
    made = kernel(xp.cupy, "reductions", name + what, ELEMENT=source.name, RESULT=dtype.name)
    return made, grid, block, outer * strips * inner, dtype, rest


def _strips(outer, n, inner, itemsize):
    """Into how many parts the reduced axis is cut, so that there are blocks enough."""
    if inner == 1:
        return builtins.max(1, builtins.min(_BLOCKS // outer, n // _PIECE))
    if n <= _SHALLOW:
        return 1
    each = 16 // itemsize if inner % (16 // itemsize) == 0 else 1
    columns = -(-inner // (32 * each))
    return builtins.max(1, builtins.min(_BLOCKS // (columns * outer), n // _ROWS))


def _steps(xp, outer, n, inner, what, source, dtype, divisor=1.0, root=0):
    """The launches that reduce the middle axis of outer×n×inner: one, or two if it is long."""
    strips = _strips(outer, n, inner, source.itemsize)
    if strips == 1:
        return [_step(xp, outer, n, inner, what, source, dtype, 1, divisor, root)]
    strips, much = -(-n // -(-n // strips)), wider(source)  # none of them empty
    return [_step(xp, outer, n, inner, what, source, much, strips),
            _step(xp, outer, strips, inner, _SECOND[what], much, dtype, 1, divisor, root)]


def _run(xp, x, steps, shape, centre=None):
    """Put the launches into the stream; the last result has ``shape``."""
    for made, grid, block, size, dtype, rest in steps[:-1]:
        out = xp.ndarray(size, dtype)
        made(grid, block, (x, centre, out, *rest))
        x, centre = out, None
    made, grid, block, _, dtype, rest = steps[-1]
    out = xp.ndarray(shape, dtype)
    made(grid, block, (x, centre, out, *rest))
    return out


# ---------------------------------------------------------------- any axes
def _groups(shape, axes):
    """[(size, whether reduced)] of neighbouring axes alike; sizes of 1 left out."""
    groups: list[tuple[int, bool]] = []
    for i, size in enumerate(shape):
        if size == 1:
            continue
        reduced = i in axes
        if groups and groups[-1][1] == reduced:
            groups[-1] = groups[-1][0] * size, reduced
        else:
            groups.append((size, reduced))
    return groups


def _all_steps(xp, shape, axes, what, source, dtype, divisor, root):
    """The launches that reduce some axes of a contiguous array, the last group of them first."""
    groups = _groups(shape, axes)
    left = builtins.sum(g[1] for g in groups)
    if left == 0:  # only axes of size 1
        groups, left = [*groups, (1, True)], 1
    steps: list[tuple] = []
    while left:
        at = builtins.max(i for i, g in enumerate(groups) if g[1])
        outer, n = math.prod(g[0] for g in groups[:at]), groups[at][0]
        inner = math.prod(g[0] for g in groups[at + 1 :])
        left -= 1
        end = (dtype, divisor, root) if left == 0 else (wider(source),)
        steps += _steps(xp, outer, n, inner, what, source, *end)
        source, what = steps[-1][4], _SECOND[what]
        del groups[at]
    return steps


def _in_memory_order(xp, a, axes):
    """(an aligned array, its axes in order of strides, which of those are ``axes``)."""
    order = tuple(range(a.ndim))
    if not a.flags.c_contiguous:
        by_stride = tuple(sorted(order, key=lambda i: -a.strides[i]))
        moved = a.transpose(by_stride)
        if moved.flags.c_contiguous:  # a transposed view: reduced as it lies
            return aligned(xp, moved), by_stride, {i for i, d in enumerate(by_stride) if d in axes}
    return aligned(xp, a), order, set(axes)


_plans: dict[tuple, tuple] = {}  # (launches, shape of the result) by all that decides them


def _over(xp, a, axes, keepdims, what, dtype=None, divisor=1.0, root=0):
    """Reduce the axes (a tuple, not negative) of a float array that is not empty."""
    if not xp.is_contiguous(a) or a.data.ptr & 15:
        return _over_view(xp, a, axes, keepdims, what, dtype, divisor, root)
    key = (xp, a.shape, a.dtype, axes, keepdims, what, dtype, divisor, root)
    found = _plans.get(key)
    if found is None:
        shape = [1 if i in axes else s for i, s in enumerate(a.shape) if keepdims or i not in axes]
        steps = _all_steps(xp, a.shape, axes, what, a.dtype, dtype or a.dtype, divisor, root)
        if len(_plans) > 4096:
            _plans.clear()
        found = _plans[key] = steps, tuple(shape)
    return _run(xp, a, *found)


def _over_view(xp, a, axes, keepdims, what, dtype, divisor, root):
    x, order, reduced = _in_memory_order(xp, a, axes)
    x = _over(xp, x, tuple(sorted(reduced)), True, what, dtype or a.dtype, divisor, root)
    x = x.transpose(sorted(range(a.ndim), key=order.__getitem__))
    return x if keepdims else x.squeeze(axes)


# ---------------------------------------------------------------- what the namespace has
def _axes(a, axis):
    """The axes as a tuple, none negative; None stands for all."""
    if axis is None:
        return tuple(range(a.ndim))
    return tuple(d % a.ndim for d in (axis if isinstance(axis, tuple) else (axis,)))


def _ours(a):
    return a.dtype in FLOATS and a.size


def sum(xp, a, axis=None, keepdims=False, dtype=None):
    """``numpy.sum``; 16-bit floats add up in float32 and are rounded once (or not: ``dtype``)."""
    if not _ours(a) or dtype not in (None, a.dtype) and (dtype != F32 or a.dtype.itemsize == 8):
        return xp.cupy.sum(a, axis=axis, dtype=dtype, keepdims=keepdims)
    return _over(xp, a, _axes(a, axis), keepdims, "sum", dtype and xp.dtype(dtype))


def max(xp, a, axis=None, keepdims=False):
    """``numpy.max``: NaN where there is one."""
    if not _ours(a):
        return xp.cupy.max(a, axis=axis, keepdims=keepdims)
    return _over(xp, a, _axes(a, axis), keepdims, "largest")


def min(xp, a, axis=None, keepdims=False):
    """``numpy.min``: NaN where there is one."""
    if not _ours(a):
        return xp.cupy.min(a, axis=axis, keepdims=keepdims)
    return _over(xp, a, _axes(a, axis), keepdims, "smallest")


def mean_over(xp, a, axes, keepdims):
    """The mean over ``axes`` (a tuple) of an array that is not empty."""
    if not _ours(a):
        return row_kernels.mean_over(xp, a, axes, keepdims)
    count = math.prod(a.shape[d] for d in axes)
    return _over(xp, a, axes, keepdims, "sum", divisor=float(count))


def euclidean_norm(xp, a, axes, keepdims):
    """√Σa² over ``axes`` (a tuple); of complex numbers by the plain formula."""
    if a.dtype not in FLOATS:
        return row_kernels.euclidean_norm(xp, a, axes, keepdims)
    if a.size == 0:
        return sum(xp, a, axes, keepdims)
    return _over(xp, a, axes, keepdims, "squares", root=1)


def variance(xp, a, axes, correction, keepdims, root=False):
    """Σ (a − mean)² / (n − correction) over ``axes`` (None: all), n elements each; or its root.

    Two passes: the mean, then the squares. Complex numbers, empty arrays, and axes that do not lie
    together in memory (16-bit floats then widened) take the plain formula.
    """
    if a.dtype not in FLOATS:
        return row_kernels.variance(xp, a, axes, correction, keepdims, root)
    axes = _axes(a, axes)
    key = (xp, a.shape, a.dtype, axes, correction, keepdims, bool(root))
    if a.size:
        plan = _plans.get(key)
        if plan is None:
            plan = _plans[key] = _variance_plan(xp, *key[1:])
        if plan:
            x, (means, size, squares, shape) = aligned(xp, a), plan
            return _run(xp, x, squares, shape, _run(xp, x, means, size))
    a_wide = a.astype(wider(a.dtype), copy=False)
    out = row_kernels.variance(xp, a_wide, axes, correction, keepdims, root)
    return out.astype(a.dtype, copy=False)


def _variance_plan(xp, shape, dtype, axes, correction, keepdims, root):
    """(launches of the means, how many there are, launches of the result, its shape); or () for axes
    that do not lie together."""
    groups = _groups(shape, axes)
    at = [i for i, g in enumerate(groups) if g[1]]
    if len(at) != 1:
        return ()
    n = groups[at[0]][0]
    outer = math.prod(g[0] for g in groups[: at[0]])
    inner = math.prod(g[0] for g in groups[at[0] + 1 :])
    left = builtins.max(float(n - correction), 0.0)
    result = [1 if i in axes else s for i, s in enumerate(shape) if keepdims or i not in axes]
    return (_steps(xp, outer, n, inner, "sum", dtype, wider(dtype), float(n)), outer * inner,
            _steps(xp, outer, n, inner, "squares", dtype, dtype, left, int(root)), tuple(result))


def sum_rows_to(xp, g, shape):
    """Sum ``g`` down to ``shape``, the shape it was broadcast from (bias gradients: R×C to C)."""
    if not _ours(g):
        return plain_kernels.sum_rows_to(xp, g, shape)
    lead = g.ndim - len(shape)
    axes = tuple(range(lead)) + tuple(
        i + lead for i, s in enumerate(shape) if s == 1 and g.shape[i + lead] != 1)
    if len(axes) == lead:
        return _over(xp, g, axes, False, "sum")
    return _over(xp, g, axes, True, "sum").reshape(shape)
