"""Cross entropy from logits: read once forward, once backward, and no second copy of them in memory.

Shape legend: R rows, C classes. 16-bit logits are computed in float32.
"""

from __future__ import annotations

from .. import dtypes
from .kernel import WARP, kernel
from .rows import aligned, packs, teams, warps, wider

_INT64 = dtypes.int64.np
_PART = 16384  # losses that one block adds up


def _launch(xp, name, x, args):
    """A kernel over the rows of x: a warp a row of few classes, else a block."""
    rows, width = x.shape
    count = packs(width, x.dtype.itemsize)
    name, (grid, block) = (name + "_warps", warps(rows)) if count <= 4 * WARP else (
        name + "_rows", teams(rows, count, 4))
    kernel(xp.cupy, "losses", name, ELEMENT=x.dtype.name)(grid, block, args)


def _total(xp, dtype, losses, shares, rows, mean, wide):
    """(the reduced loss, the sum of the shares), adding in an order given by the rows alone."""
    find, strips = kernel(xp.cupy, "losses", "loss_total", ELEMENT=dtype.name), -(-rows // _PART)
    if strips > 1:
        parts = xp.empty((2, strips), losses.dtype)
        kernel(xp.cupy, "losses", "loss_strips", ELEMENT=dtype.name)(
            (strips,), (512,), (losses, shares, parts[0], parts[1], rows, _PART))
        losses, shares, rows = parts[0], parts[1], strips
    total = xp.empty((), losses.dtype)
    loss = xp.empty((), total.dtype if wide else dtype)
    out = (None, loss) if wide else (loss, None)
    find((1,), (512,), (losses, shares, *out, total, rows, int(mean)))
    return loss, total


def cross_entropy(xp, x, target, weight, ignore_index, reduction, smoothing, wide=False):
    """Loss of logits R×C of any float type at classes R, and what backward needs beside them.

    Args and formula as in ``row_kernels.cross_entropy``; ``wide``: a float32 loss of 16-bit logits.
    A target that is no class makes the loss NaN (and the gradient of its row): looking for it would
    make the CPU wait for the GPU.
    """
    x, rows = aligned(xp, x), x.shape[0]
    much = wider(x.dtype)
    target = xp.ascontiguousarray(target if target.dtype == _INT64 else target.astype(_INT64))
    if weight is not None:
        weight = xp.ascontiguousarray(weight if weight.dtype == much else weight.astype(much))
    weights_sum = weight.sum() if smoothing and weight is not None else None
    losses, sums, shares = (xp.empty(rows, much) for _ in range(3))
    if rows:
        _launch(xp, "cross_entropy", x, (x, target, weight, weights_sum, losses, sums, shares, rows,
                                         x.shape[1], int(ignore_index), float(smoothing)))
    if reduction == "none":
        loss, total = losses if wide else losses.astype(x.dtype, copy=False), None
    else:
        loss, total = _total(xp, x.dtype, losses, shares, rows, reduction == "mean", wide)
    return loss, (target, weight, weights_sum, sums, shares, total if reduction == "mean" else None)


def cross_entropy_backward(xp, g, x, target, weight, aux, ignore_index, reduction, smoothing):
    """Gradient of the logits R×C, of their type; g is that of the loss: a scalar, or R."""
    target, weight, weights_sum, sums, shares, total = aux
    x, g = aligned(xp, x), aligned(xp, g)
    grad, rows = xp.empty(x.shape, x.dtype), x.shape[0]
    if x.size:
        if g.dtype != x.dtype and g.dtype != sums.dtype:
            g = g.astype(sums.dtype)
        each = (g, None) if g.dtype == x.dtype else (None, g)
        _launch(xp, "cross_entropy_backward", x, (
            x, target, weight, weights_sum, sums, shares, total, *each, grad, rows, x.shape[1],
            int(ignore_index), float(smoothing), int(reduction == "none")))
    return grad
