"""LayerNorm and RMSNorm over rows; statistics in float32 (float64 of float64), outputs as the input.

Shape legend: R rows, C columns (normalised together).
"""

from __future__ import annotations

import math

from .kernel import WARP, kernel
from .rows import aligned, block_of, packs, team, wider

_MOST = 512  # threads of a block in backward, as in csrc/norms.cu
_BLOCKS = 264  # that share the rows of a backward pass: two for each multiprocessor of a large GPU
_SHARED = 96 << 10  # bytes that a block may have on every GPU
_COUNTED = 1 << 30  # rows that the one-pass backward counts in 32 bits
_STRIPS = 128  # of rows, whose columns are added up apart
_forwards: dict[tuple, tuple] = {}  # launches by device, dtypes and width
_backwards: dict[tuple, tuple] = {}


def _weight_type(dtype, *weights):
    """What weights are read as: x's type if all have it, else what x is computed in."""
    alike = all(w is None or w == dtype for w in weights)
    return dtype if alike else wider(dtype)


def _read_as(xp, w, dtype):
    """A weight as a contiguous array of ``dtype`` on 16 bytes."""
    if w is None:
        return None
    if w.dtype != dtype:
        w = w.astype(dtype)
    return w if xp.is_contiguous(w) and not w.data.ptr & 15 else aligned(xp, w)


# ---------------------------------------------------------------- forward
def _forward_plan(xp, key):
    """(prepared launch, rows of a block, what weights are read as) for rows of one width."""
    _, _, width, dtype, weight, bias = key
    suffix, threads, rows = team(packs(width, dtype.itemsize))
    read = _weight_type(dtype, weight, bias)
    made = kernel(xp.cupy, "norms", "norm" + suffix, ELEMENT=dtype.name, WEIGHT=read.name)
    array = xp.ndarray
    types = (array, type(None) if weight is None else array, type(None) if bias is None else array,
             array, array, int, int, float, int)
    return _forwards.setdefault(key, (made.prepared(threads, types), rows, read))


def _forward(xp, x, weight, bias, ndim, eps, centred):
    shape, dtype = x.shape, x.dtype
    width = shape[-1] if ndim == 1 else math.prod(shape[-ndim:])
    rows = x.size // width if width else math.prod(shape[:-ndim])
    if not xp.is_contiguous(x) or x.data.ptr & 15:
        x = aligned(xp, x)
    out = xp.ndarray(shape, dtype)
    stats = xp.ndarray(2 * rows if centred else rows, wider(dtype))
    if x.size == 0:
        stats[...] = math.nan
        return out, (stats,)
    key = (xp, centred, width, dtype, None if weight is None else weight.dtype,
           None if bias is None else bias.dtype)
    launch, per_block, read = _forwards.get(key) or _forward_plan(xp, key)
    weight, bias = _read_as(xp, weight, read), _read_as(xp, bias, read)
    launch(-(-rows // per_block), x, weight, bias, out, stats, rows, width, float(eps), centred)
    return out, (stats,)


# ---------------------------------------------------------------- backward
class _Plan:
    """How backward goes over rows of one width, dtype and weight; ``many``: more than 32 bits count."""

    def __init__(self, xp, width, dtype, weight, many):
        self.read, self.width = _weight_type(dtype, weight), width
        self.wide, array, none = wider(dtype), xp.ndarray, type(None)
        count = packs(width, dtype.itemsize)
        held = 1 if dtype.itemsize == 2 else 2
        types = array, array, none if weight is None else array, array, array
        self.strips = (width % (16 // dtype.itemsize) != 0 or count > 2 * held * _MOST
                       or 64 * count > _SHARED or many)
        find = lambda name: kernel(xp.cupy, "norms", name, ELEMENT=dtype.name,  # noqa: E731
                                   WEIGHT=self.read.name)
        self.finish = find("norm_finish").prepared(_MOST, (array,) * 3 + (int,) * 2)
        if self.strips:
            made, threads = find("norm_backward_long"), block_of(count, 2, _MOST)
            self.launch = made.prepared(threads, (*types, int, int, int))
            self.columns = find("norm_columns")
            return
        # two packs of 16-bit elements a thread are fewer instructions, one pack twice the threads
        wide = count > (384 if held == 1 else held * _MOST)
        held *= 1 + wide
        self.team = block_of(count, held, _MOST)
        self.teams = 1 if wide else max(1, _MOST // self.team)
        threads = self.team * self.teams
        made = find("norm_backward_wide" if wide else "norm_backward_block")
        self.shared = 64 * held * threads
        if self.shared > 40 << 10:
            made.allow_shared(_SHARED)  # the kernel's for all widths
        self.run, self.threads = made, (threads,)

    def blocks(self, rows):
        """Enough to fill the GPU, each with several rows where there are that many."""
        return min(_BLOCKS, -(-rows // (2 * self.teams)))

    def parts(self, xp, g, x, weight, stats, grad, rows, affine, centred):
        """Launch; returns the sums of columns by blocks or strips, 2×n×C, or None."""
        width = self.width
        if not self.strips:
            blocks = self.blocks(rows)
            parts = xp.ndarray((2, blocks, width), self.wide) if affine else None
            self.run((blocks,), self.threads,
                     (g, x, weight, stats, grad, parts, rows, width, self.team, centred), self.shared)
            return parts
        self.launch(rows, g, x, weight, stats, grad, rows, width, centred)
        if not affine:
            return None
        chunk = -(-rows // min(_STRIPS, rows))
        strips = -(-rows // chunk)
        parts = xp.ndarray((2, strips, width), self.wide)
        grid = -(-width // 128), strips
        self.columns(grid, (128,), (g, x, stats, parts, rows, width, chunk, centred))
        return parts


def _backward(xp, g, x, weight, ndim, stats, affine, centred):
    """(grad x, grad weight, grad bias), the latter of the shape of the last axes, or None."""
    shape, dtype = x.shape, x.dtype
    last = shape[-ndim:]
    width = last[0] if ndim == 1 else math.prod(last)
    if g.dtype != dtype:
        g = g.astype(dtype)
    if not xp.is_contiguous(g) or g.data.ptr & 15:
        g = aligned(xp, g)
    if not xp.is_contiguous(x) or x.data.ptr & 15:
        x = aligned(xp, x)
    grad = xp.ndarray(shape, dtype)
    if x.size == 0:
        out = dtype if weight is None else weight.dtype
        return (grad, *((xp.zeros(last, out), xp.zeros(last, out)) if affine else (None, None)))
    rows = x.size // width
    key = (xp, width, dtype, None if weight is None else weight.dtype, rows > _COUNTED)
    plan = _backwards.get(key)
    if plan is None:
        plan = _backwards[key] = _Plan(*key)
    parts = plan.parts(xp, g, x, _read_as(xp, weight, plan.read), stats, grad, rows, affine, centred)
    if parts is None:
        return grad, None, None
    gw, gb = xp.ndarray(last, plan.read), xp.ndarray(last, plan.read)
    plan.finish(2 * -(-width // WARP), parts, gw, gb, parts.shape[1], width)
    return grad, gw, gb


# ---------------------------------------------------------------- what the namespace has
def layer_norm_over(xp, x, weight, bias, ndim, eps):
    """LayerNorm over the last ``ndim`` axes: (y, what backward needs beside x and weight).

    weight and bias have the shape of those axes and any float type, or are None.
    """
    return _forward(xp, x, weight, bias, ndim, eps, 1)


def layer_norm_over_backward(xp, g, x, weight, ndim, aux, affine=True):
    """(grad x, grad weight, grad bias); the latter None unless ``affine``. Deterministic."""
    return _backward(xp, g, x, weight, ndim, *aux, affine, 1)


def rms_norm_over(xp, x, weight, ndim, eps):
    """RMSNorm over the last ``ndim`` axes: (y, what backward needs beside x and weight)."""
    return _forward(xp, x, weight, None, ndim, eps, 0)


def rms_norm_over_backward(xp, g, x, weight, ndim, aux, affine=True):
    """(grad x, grad weight; None unless ``affine``). Deterministic."""
    return _backward(xp, g, x, weight, ndim, *aux, affine, 0)[:2]
