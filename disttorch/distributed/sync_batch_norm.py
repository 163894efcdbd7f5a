"""Batch normalisation whose statistics are those of all ranks' batches together.

Forward gathers each rank's mean, variance and count (2C + 1 numbers) and merges them exactly, for
batches of any sizes (T. F. Chan, G. H. Golub and R. J. LeVeque, "Updating Formulae and a Pairwise
Algorithm for Computing Sample Variances", 1979). Backward adds up the two sums that the gradient of
the input needs (2C numbers).
"""

from __future__ import annotations

from typing import Any

from collectives import ReduceOp

from .. import ops
from ..autograd import is_grad_enabled
from ..autograd.function import Function
from ..autograd.graph import bump_version
from ..backend import dtypes, namespace_of
from ..nn import functional as F
from ..tensor import Tensor, wrap
from .conjugate import AllReduce
from .process_group import ProcessGroup


def global_stats(x: Tensor, pg: ProcessGroup) -> tuple[Tensor, Tensor, int]:
    """(mean [C], biased variance [C], number of values per channel) over all ranks' [N, C, …].

    In float32, or float64 for float64; the same bits on all ranks.
    """
    channels = x.shape[1]
    dims = (0, *range(2, x.dim()))
    count = x.numel() // channels
    wide = dtypes.float64 if x.dtype == dtypes.float64 else dtypes.float32
    if count:
        values = x.detach().to(wide)
        mean = values.mean(dims)
        centred = values - mean.reshape(_column(x))
        var = (centred * centred).mean(dims)
    else:
        mean = var = ops.zeros(channels, dtype=wide, device=x.device)
    mine = ops.cat([mean, var, ops.full((1,), float(count), dtype=wide, device=x.device)])
    rows = namespace_of(mine._data).empty((pg.size(), mine.numel()), mine._data.dtype)
    pg.ranks.all_gather(rows, mine._data)
    everyone = wrap(rows).double()
    means, variances = everyone[:, :channels], everyone[:, channels:-1]
    counts = everyone[:, -1:]
    total = float(counts.sum())
    if total <= 1:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got {int(total)} over "
            f"{pg.size()} ranks (input size {list(x.shape)} on rank {pg.rank()})"
        )
    mean = (counts * means).sum(0) / total
    var = (counts * (variances + (means - mean) ** 2)).sum(0) / total
    return mean.to(wide), var.to(wide), int(total)


def _column(x: Tensor) -> tuple[int, ...]:
    return (1, -1, *(1,) * (x.dim() - 2))


class SyncBatchNormFunction(Function):
    """(x [N, C, …], weight [C] or None, bias, mean, var, total, eps, pg) -> normalised x.

    The statistics are those of `global_stats`; gradients of x flow through them, over all ranks.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor,
        total: int, eps: float, pg: ProcessGroup,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, weight, mean, var)
        ctx.total, ctx.eps, ctx.pg = total, eps, pg
        if not x.numel():
            return x.clone()
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        x, weight, mean, var = ctx.saved_tensors
        dims, column = (0, *range(2, x.dim())), _column(x)
        dtype, wide = x.dtype, mean.dtype
        g, x = grad.to(wide), x.to(wide)
        if is_grad_enabled():
            # For second derivatives the statistics must be seen to depend on x.
            mean = AllReduce.apply(x.sum(dims), ReduceOp.SUM, ctx.pg) / ctx.total
            squares = ((x - mean.reshape(column)) ** 2).sum(dims)
            var = AllReduce.apply(squares, ReduceOp.SUM, ctx.pg) / ctx.total
        inverse = (var + ctx.eps).rsqrt()
        grad_bias: Any = g.sum(dims)
        grad_weight: Any = (g * (x - mean.reshape(column))).sum(dims) * inverse
        grad_x = None
        if ctx.needs_input_grad[0]:
            sums: Any = ops.cat([grad_bias, grad_weight])
            sums = AllReduce.apply(sums, ReduceOp.SUM, ctx.pg) / ctx.total
            sum_g, sum_gx = sums[: len(mean)], sums[len(mean) :]
            scale = inverse if weight is None else inverse * weight.to(wide)
            slope = -scale * inverse * sum_gx
            offset = -scale * sum_g - slope * mean
            grad_x = g * scale.reshape(column) + x * slope.reshape(column) + offset.reshape(column)
            grad_x = grad_x.to(dtype)
        if weight is None:
            grad_weight = None
        elif weight.dtype != wide:
            grad_weight, grad_bias = (t.to(weight.dtype) for t in (grad_weight, grad_bias))
        if not ctx.needs_input_grad[2]:
            grad_bias = None
        return grad_x, grad_weight, grad_bias, None, None, None, None, None


def sync_batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None,
    running_var: Tensor | None, momentum: float, eps: float, pg: ProcessGroup,
) -> Tensor:  # fmt: skip
    """Batch normalisation in training over all ranks of a group; all must call it.

    Args:
        x: [N, C, …]; N may differ between ranks and be 0.
        weight, bias: [C] or None.
        running_mean, running_var: [C] or None; moved by `momentum` towards the statistics of all
            ranks, the variance unbiased.

    Raises:
        ValueError: a single value per channel on all ranks together.
    """
    mean, var, total = global_stats(x, pg)
    for running, batch in ((running_mean, mean), (running_var, var * (total / (total - 1)))):
        if running is not None:
            _move(running, batch, momentum)
    return SyncBatchNormFunction.apply(x, weight, bias, mean, var, total, eps, pg)


def _move(running: Tensor, batch: Tensor, momentum: float) -> None:
    """running = (1 - momentum)·running + momentum·batch, in place and outside any graph."""
    running._data *= 1 - momentum
    running._data += momentum * batch._data
    bump_version(running)
