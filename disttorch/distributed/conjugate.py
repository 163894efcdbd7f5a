"""The collectives as differentiable functions, each with the call that is its gradient.

Let the loss be the sum over ranks of what each rank computes. The gradient of that sum with respect
to one rank's input is then itself a collective of the ranks' gradients, the conjugate call:

    call                        its gradient
    all_reduce(SUM)             all_reduce(SUM)
    all_gather                  reduce_scatter(SUM)        and the other way round
    broadcast                   reduce(SUM) to the root    and the other way round
    gather                      scatter                    and the other way round
    all_to_all                  all_to_all with the sizes exchanged
    AVG, PREMUL_SUM             those of SUM, scaled
    MIN, MAX                    those of SUM, to the ranks that hold the extreme, in equal shares
    PRODUCT                     those of SUM, times the product of the other ranks' inputs

Each gradient is made of these same functions, so it can be differentiated again. (S. Rajbhandari
et al. and M. Shoeybi et al. use such pairs by hand; "conjugate" is Megatron-LM's word.)

Every rank runs the gradient's call in its backward, in the order that the graph prescribes: the
inputs must require grad on all ranks or on none, and every rank's loss must depend on its outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from collectives import PremulSum, ReduceOp

from ..autograd.function import Function
from ..autograd.graph import bump_version
from ..backend import namespace_of
from ..tensor import Tensor, wrap
from .arguments import pack, unpack
from .process_group import ProcessGroup

_EXTREMES = (ReduceOp.MIN, ReduceOp.MAX)


def scale_of(op: Any, n: int) -> float | None:
    """What SUM is multiplied by where `op` is a multiple of it; None for other operations."""
    if op is ReduceOp.SUM:
        return 1.0
    if op is ReduceOp.AVG:
        return 1.0 / n
    return op.factor if isinstance(op, PremulSum) else None


def _scaled(grad: Tensor, scale: float | None) -> Tensor:
    return grad if scale in (None, 1.0) else grad * scale


def _shares(x: Tensor, extreme: Tensor, total: Any) -> Tensor:
    """How much of the gradient of the extreme value each element of `x` gets.

    Args:
        total: adds up a tensor over the ranks that might hold the same value.
    """
    holds = (x.detach() == extreme.detach()).to(x.dtype)
    return holds / total(holds)


def _empty(like: Tensor, shape: Sequence[int]) -> Any:
    return namespace_of(like._data).empty(tuple(shape), like._data.dtype)


def _zeros(like: Tensor, shape: Sequence[int]) -> Tensor:
    return wrap(namespace_of(like._data).zeros(tuple(shape), like._data.dtype))


# ---- reductions ----------------------------------------------------------------------------------


def _reduced_gradient(ctx: Any, grad: Tensor, spread: Any) -> Tensor:
    """The gradient of one rank's input to a reduction.

    Args:
        ctx: has op, pg, and for other operations than sums the input, saved.
        spread: brings every rank's part of the output's gradient to the ranks of the inputs.
    """
    op, pg = ctx.op, ctx.pg
    scale = scale_of(op, pg.size())
    if scale is not None:
        return _scaled(spread(grad), scale)
    (x,) = ctx.saved_tensors
    if op in _EXTREMES:
        extreme = AllReduce.apply(x.detach(), op, pg)
        return spread(grad) * _shares(
            x, extreme, lambda holds: AllReduce.apply(holds, ReduceOp.SUM, pg)
        )
    if op is ReduceOp.PRODUCT:
        others = others_product(x, pg)
        return spread(grad) * (others.conj() if others.is_complex() else others)
    raise RuntimeError(f"{op} has no gradient: use SUM, AVG, PRODUCT, MIN, MAX or a premultiplied sum")


def others_product(x: Tensor, pg: ProcessGroup) -> Tensor:
    """The product of all other ranks' tensors; not by division, which zeros forbid."""
    rows = AllGather.apply(x, pg)
    product = None
    for rank in range(pg.size()):
        if rank != pg.rank():
            product = rows[rank] if product is None else product * rows[rank]
    return x * 0 + 1 if product is None else product


class AllReduce(Function):
    """(x, op, pg) -> the reduction of all ranks' x, on every rank."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, op: Any, pg: ProcessGroup) -> Tensor:
        ctx.op, ctx.pg = op, pg
        if scale_of(op, pg.size()) is None:
            ctx.save_for_backward(x)
        out = wrap(x._data.copy())
        pg.ranks.all_reduce(out._data, op)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        def spread(g: Tensor) -> Tensor:
            return AllReduce.apply(g, ReduceOp.SUM, ctx.pg)

        return _reduced_gradient(ctx, grad, spread), None, None


class Reduce(Function):
    """(x, root, op, pg) -> the reduction of all ranks' x on the root; zeros elsewhere."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, root: int, op: Any, pg: ProcessGroup) -> Tensor:
        ctx.op, ctx.root, ctx.pg = op, root, pg
        if scale_of(op, pg.size()) is None:
            ctx.save_for_backward(x)
        out = wrap(x._data.copy())
        pg.ranks.reduce(out._data, root, op)
        return out if pg.rank() == root else _zeros(x, x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        def spread(g: Tensor) -> Tensor:
            return Broadcast.apply(g, ctx.root, ctx.pg)

        return _reduced_gradient(ctx, grad, spread), None, None, None


class ReduceScatter(Function):
    """(x, op, pg) with x of shape [n, ...] -> the reduction of all ranks' x[r], on rank r."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, op: Any, pg: ProcessGroup) -> Tensor:
        ctx.op, ctx.pg = op, pg
        if scale_of(op, pg.size()) is None:
            ctx.save_for_backward(x)
        out = _empty(x, x.shape[1:])
        pg.ranks.reduce_scatter(out, x._data, op)
        return wrap(out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        def spread(g: Tensor) -> Tensor:
            return AllGather.apply(g, ctx.pg)

        return _reduced_gradient(ctx, grad, spread), None, None


# ---- moves ---------------------------------------------------------------------------------------


class Broadcast(Function):
    """(x, root, pg) -> the root's x, on every rank."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, root: int, pg: ProcessGroup) -> Tensor:
        ctx.root, ctx.pg = root, pg
        out = wrap(x._data.copy())
        pg.ranks.broadcast(out._data, root)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        return Reduce.apply(grad, ctx.root, ReduceOp.SUM, ctx.pg), None, None


class AllGather(Function):
    """(x, pg) -> all ranks' x, of shape [n, *x.shape], on every rank."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, pg: ProcessGroup) -> Tensor:
        ctx.pg = pg
        out = _empty(x, (pg.size(), *x.shape))
        pg.ranks.all_gather(out, x._data)
        return wrap(out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        return ReduceScatter.apply(grad, ReduceOp.SUM, ctx.pg), None


class Gather(Function):
    """(x, root, pg) -> all ranks' x, of shape [n, *x.shape], on the root; zeros elsewhere."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, root: int, pg: ProcessGroup) -> Tensor:
        ctx.root, ctx.pg = root, pg
        shape = (pg.size(), *x.shape)
        if pg.rank() != root:
            pg.ranks.gather(None, x._data, root)
            return _zeros(x, shape)
        out = _empty(x, shape)
        pg.ranks.gather(out, x._data, root)
        return wrap(out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        return Scatter.apply(grad, ctx.root, ctx.pg), None, None


class Scatter(Function):
    """(x, root, pg) with x of shape [n, ...] -> the root's x[r], on rank r."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, root: int, pg: ProcessGroup) -> Tensor:
        ctx.root, ctx.pg = root, pg
        out = _empty(x, x.shape[1:])
        pg.ranks.scatter(out, x._data if pg.rank() == root else None, root)
        return wrap(out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        return Gather.apply(grad, ctx.root, ctx.pg), None, None


class AllToAll(Function):
    """(pg, shapes, *parts) -> what rank r sent to this rank, of `shapes[r]`, as a tuple over r."""

    @staticmethod
    def forward(
        ctx: Any, pg: ProcessGroup, shapes: Sequence[Sequence[int]], *parts: Tensor
    ) -> tuple:
        ctx.pg, ctx.shapes = pg, [tuple(part.shape) for part in parts]
        mine = pack([part._data for part in parts])
        outs = [_empty(parts[0], shape) for shape in shapes]
        whole = _empty(parts[0], (sum(out.size for out in outs),))
        pg.ranks.all_to_all(
            whole, mine, False, [out.size for out in outs], [part._data.size for part in parts]
        )
        unpack(whole, outs)
        return tuple(wrap(out) for out in outs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        return None, None, *AllToAll.apply(ctx.pg, ctx.shapes, *grads)


class Into(Function):
    """(target, value) -> `target`, whose memory now holds `value`; gradients go to `value`."""

    @staticmethod
    def forward(ctx: Any, target: Tensor, value: Tensor) -> Tensor:
        target._data[...] = value._data.reshape(target._data.shape)
        bump_version(target)
        ctx.shape = value.shape
        return target

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        return None, grad.reshape(ctx.shape)
