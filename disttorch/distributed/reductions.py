"""The collectives that combine values: all_reduce, reduce, reduce_scatter and their variants.

`src` and `dst` are ranks of the job also where a `group` is given; `group_src` and `group_dst` are
ranks of that group. A call on a rank that is not in the group warns and does nothing. With
`async_op=True` a call returns a `Work` at once, and None otherwise. What a call writes into counts
as changed in place: autograd notices if a backward still needed the old values.

Errors of all calls, beside those of `collectives.Group`: ValueError before `init_process_group`,
for a rank outside the group and for tensors of different dtypes; TypeError for what is no tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from collectives import PremulSum, ReduceOp

from ..futures import Future
from ..tensor import Tensor
from . import arguments
from .arguments import supports_complex
from .coalescing import hold
from .process_group import Group
from .work import Work

Op = Any  # ReduceOp, or what `_make_nccl_premul_sum` returns


def _make_nccl_premul_sum(factor: float | Tensor) -> PremulSum:
    """The reduction SUM of what each rank has multiplied by `factor`, a number or one-element tensor."""
    return PremulSum(float(factor.item() if isinstance(factor, Tensor) else factor))


class _ReduceOps:
    """The operations under the names of before PyTorch 1.0; deprecated: use `ReduceOp`."""

    SUM, PRODUCT, MIN, MAX = ReduceOp.SUM, ReduceOp.PRODUCT, ReduceOp.MIN, ReduceOp.MAX


reduce_op = _ReduceOps()


def all_reduce(
    tensor: Tensor, op: Op = ReduceOp.SUM, group: Group = None, async_op: bool = False
) -> Work | None:
    """Replace `tensor` on every rank by the reduction of all ranks' tensors."""
    data = arguments.array(tensor, "tensor")
    pg = arguments.member(group, "all_reduce")
    if pg is None:
        return None
    arguments.check_complex(tensor, op, "all_reduce")
    if pg.coalescing is not None:
        return hold(pg, all_reduce, tensor, None, op, async_op)
    return arguments.run(async_op, lambda later: pg.ranks.all_reduce(data, op, later), [tensor])


def all_reduce_coalesced(
    tensors: Sequence[Tensor], op: Op = ReduceOp.SUM, group: Group = None, async_op: bool = False
) -> Future[list[Tensor]] | None:
    """`all_reduce` of several tensors of one dtype, as one call.

    Returns:
        With `async_op=True` a future of the tensors.
    """
    tensors = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    found = arguments.arrays(tensors, "tensors")
    arguments.same_dtype(*found)
    pg = arguments.member(group, "all_reduce_coalesced")
    if pg is None or not found:
        return None
    arguments.check_complex(tensors[0], op, "all_reduce_coalesced")
    whole = arguments.pack(found)
    work = arguments.run(
        async_op,
        lambda later: pg.ranks.all_reduce(whole, op, later),
        tensors,
        lambda: arguments.unpack(whole, found),
    )
    return None if work is None else work.get_future()


def reduce(
    tensor: Tensor,
    dst: int | None = None,
    op: Op = ReduceOp.SUM,
    group: Group = None,
    async_op: bool = False,
    group_dst: int | None = None,
) -> Work | None:
    """Replace `tensor` on rank `dst` by the reduction of all ranks' tensors; others keep theirs."""
    data = arguments.array(tensor, "tensor")
    pg = arguments.member(group, "reduce")
    if pg is None:
        return None
    arguments.check_complex(tensor, op, "reduce")
    root = arguments.peer(pg, dst, group_dst, "dst")
    written = [tensor] if pg.rank() == root else []
    return arguments.run(
        async_op, lambda later: pg.ranks.reduce(data, root, op, later), written
    )


def reduce_scatter(
    output: Tensor,
    input_list: list[Tensor],
    op: Op = ReduceOp.SUM,
    group: Group = None,
    async_op: bool = False,
) -> Work | None:
    """Reduce entry r of all ranks' `input_list` into `output` of rank r.

    Entries may differ in size, but entry r must be of one size on all ranks.
    """
    out = arguments.array(output, "output")
    parts = arguments.arrays(input_list, "input_list")
    arguments.same_dtype(out, *parts)
    pg = arguments.member(group, "reduce_scatter")
    if pg is None:
        return None
    arguments.one_per_rank(parts, "input_list", pg.size())
    arguments.check_complex(output, op, "reduce_scatter")
    counts = uneven(parts)
    if counts is None:
        arguments.all_like(parts, "input_list", out)
    whole = arguments.pack(parts)
    return arguments.run(
        async_op,
        lambda later: pg.ranks.reduce_scatter(out, whole, op, later, counts),
        [output],
    )


def reduce_scatter_single(
    output: Tensor,
    input: Tensor,
    op: Op = ReduceOp.SUM,
    group: Group = None,
    async_op: bool = False,
) -> Work | None:
    """Reduce all ranks' `input` and give rank r the r-th of as many equal parts as ranks."""
    out, data = arguments.array(output, "output"), arguments.array(input, "input")
    pg = arguments.member(group, "reduce_scatter_tensor")
    if pg is None:
        return None
    arguments.check_complex(input, op, "reduce_scatter_tensor")
    if pg.coalescing is not None:
        return hold(pg, reduce_scatter_single, input, output, op, async_op)
    return arguments.run(
        async_op, lambda later: pg.ranks.reduce_scatter(out, data, op, later), [output]
    )


def reduce_scatter_tensor(
    output: Tensor,
    input: Tensor,
    op: Op = ReduceOp.SUM,
    group: Group = None,
    async_op: bool = False,
) -> Work | None:
    """The older name of `reduce_scatter_single`."""
    return reduce_scatter_single(output, input, op, group, async_op)


_reduce_scatter_base = reduce_scatter_tensor


def uneven(parts: Sequence[Any]) -> list[int] | None:
    """The sizes of the arrays where they differ; None where all are of one size."""
    counts = [part.size for part in parts]
    return counts if len(set(counts)) > 1 else None


__all__ = [
    "ReduceOp", "all_reduce", "all_reduce_coalesced", "reduce", "reduce_op", "reduce_scatter",
    "reduce_scatter_single", "reduce_scatter_tensor", "supports_complex",
]
