"""Cross entropy from logits: read once forward, once backward, and no second copy of them in memory.

Shape legend: R rows, C classes. 16-bit logits are computed in float32.
"""

from __future__ import annotations

from typing import Any

from .. import dtypes
from .kernel import WARP, kernel
from .rows import HELD, THREADS, aligned, block_of, packs, wider

_INT64 = dtypes.int64.np
_PART = 16384  # losses that one block adds up
_plans: dict[tuple, Any] = {}  # launches by device and what else decides them


def _launch(xp, name, x, args):
    """A kernel over the rows of x: a warp a row of few classes, else a block."""
    rows, width = x.shape
    types = tuple(map(type, args))
    key = xp, name, width, x.dtype, types
    found = _plans.get(key)
    if found is None:
        count = packs(width, x.dtype.itemsize)
        kind, threads, each = "_warps", THREADS, THREADS // WARP
        if count > HELD * WARP:
            kind, threads, each = "_rows", block_of(count, HELD, 512), 1
        made = kernel(xp.cupy, "losses", name + kind, ELEMENT=x.dtype.name)
        found = _plans[key] = made.prepared(threads, types), each
    launch, each = found
    launch(-(-rows // each), *args)


def _total(xp, dtype, stats, rows, mean, wide):
    """The reduced loss; the sum of the shares goes to the end of ``stats``.

    The order of additions is given by the number of rows alone.
    """
    strips = -(-rows // _PART)
    losses, between, count = stats, 2 * rows, rows
    if strips > 1:
        losses, between, count = xp.ndarray(2 * strips, stats.dtype), strips, strips
        kernel(xp.cupy, "losses", "loss_strips", ELEMENT=dtype.name)(
            (strips,), (512,), (stats, losses, rows, _PART))
    loss, threads = xp.ndarray((), stats.dtype if wide else dtype), block_of(count, 8)
    launch = _plans.get((xp, dtype, wide, threads))
    if launch is None:
        array, none = xp.ndarray, type(None)
        types = (array, int, *((none, array) if wide else (array, none)), array, int, int, int)
        launch = kernel(xp.cupy, "losses", "loss_total", ELEMENT=dtype.name).prepared(threads, types)
        _plans[xp, dtype, wide, threads] = launch
    launch(1, losses, between, *((None, loss) if wide else (loss, None)), stats, rows, count, mean)
    return loss


def cross_entropy(xp, x, target, weight, ignore_index, reduction, smoothing, wide=False):
    """Loss of logits R×C of any float type at classes R, and what backward needs beside them.

    Args and formula as in ``row_kernels.cross_entropy``; ``wide``: a float32 loss of 16-bit logits.
    A target that is no class makes the loss NaN (and the gradient of its row): looking for it would
    make the CPU wait for the GPU.
    """
    if not xp.is_contiguous(x) or x.data.ptr & 15:
        x = aligned(xp, x)
    rows, much = x.shape[0], wider(x.dtype)
    if target.dtype != _INT64:
        target = target.astype(_INT64)
    if not xp.is_contiguous(target):
        target = xp.ascontiguousarray(target)
    if weight is not None:
        weight = xp.ascontiguousarray(weight if weight.dtype == much else weight.astype(much))
    weights_sum = weight.sum() if smoothing and weight is not None else None
    stats = xp.ndarray(3 * rows + 1, much)  # losses, log Σ exp, shares; and the shares' sum
    if rows:
        _launch(xp, "cross_entropy", x, (x, target, weight, weights_sum, stats, rows, x.shape[1],
                                         int(ignore_index), float(smoothing)))
    if reduction != "none":
        loss = _total(xp, x.dtype, stats, rows, int(reduction == "mean"), bool(wide))
    else:
        loss = stats[:rows]
        loss = loss if wide else loss.astype(x.dtype, copy=False)
    return loss, (target, weight, weights_sum, stats)


def cross_entropy_backward(xp, g, x, target, weight, aux, ignore_index, reduction, smoothing):
    """Gradient of the logits R×C, of their type; g is that of the loss: a scalar, or R."""
    target, weight, weights_sum, stats = aux
    if not xp.is_contiguous(x) or x.data.ptr & 15:
        x = aligned(xp, x)
    if not xp.is_contiguous(g):
        g = xp.ascontiguousarray(g)
    grad, rows = xp.ndarray(x.shape, x.dtype), x.shape[0]
    if x.size:
        if g.dtype != x.dtype and g.dtype != stats.dtype:
            g = g.astype(stats.dtype)
        each = (g, None) if g.dtype == x.dtype else (None, g)
        _launch(xp, "cross_entropy_backward", x, (
            x, target, weight, weights_sum, stats, *each, grad, rows, x.shape[1], int(ignore_index),
            float(smoothing), int(reduction == "none"), int(reduction == "mean")))
    return grad
