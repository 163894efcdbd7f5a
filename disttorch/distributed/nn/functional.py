"""Collectives that return new tensors, and that gradients flow through.

The loss that gradients belong to is the sum over ranks of what each rank computes; `conjugate` has
the rule of every call. Two things follow from ranks running backward together: tensors given to a
call must require grad on all ranks or on none, and what every rank returns must take part in its
loss.

`group` None is the whole job; `src` and `dst` are ranks of the job, as in `torch.distributed`.
Errors are those of the calls of the same names there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from collectives import ReduceOp

from ...ops import PUBLIC
from ...tensor import Tensor
from .. import arguments
from ..conjugate import (
    AllGather,
    AllReduce,
    AllToAll,
    Broadcast,
    Gather,
    Into,
    Reduce,
    ReduceScatter,
    Scatter,
)
from ..process_group import Group, ProcessGroup, belonging

_stack = PUBLIC["stack"]


def all_reduce(tensor: Tensor, op: Any = ReduceOp.SUM, group: Group = None) -> Tensor:
    """The reduction of all ranks' tensors, on every rank."""
    pg = _group(tensor, group)
    arguments.check_complex(tensor, op, "all_reduce")
    return AllReduce.apply(tensor, op, pg)


def reduce(tensor: Tensor, dst: int, op: Any = ReduceOp.SUM, group: Group = None) -> Tensor:
    """The reduction of all ranks' tensors on rank `dst`; zeros elsewhere."""
    pg = _group(tensor, group)
    arguments.check_complex(tensor, op, "reduce")
    return Reduce.apply(tensor, arguments.peer(pg, dst, None, "dst"), op, pg)


def broadcast(tensor: Tensor, src: int, group: Group = None) -> Tensor:
    """Rank `src`'s tensor, on every rank; the others give one of the same shape."""
    pg = _group(tensor, group)
    return Broadcast.apply(tensor, arguments.peer(pg, src, None, "src"), pg)


def all_gather(tensor: Tensor, group: Group = None) -> tuple[Tensor, ...]:
    """All ranks' tensors, all of one shape, in rank order, on every rank."""
    pg = _group(tensor, group)
    return _rows(AllGather.apply(tensor, pg), pg)


def gather(tensor: Tensor, dst: int = 0, group: Group = None) -> tuple[Tensor, ...]:
    """All ranks' tensors in rank order on rank `dst`; zeros elsewhere."""
    pg = _group(tensor, group)
    return _rows(Gather.apply(tensor, arguments.peer(pg, dst, None, "dst"), pg), pg)


def scatter(tensors: Sequence[Tensor], src: int = 0, group: Group = None) -> Tensor:
    """Entry r of rank `src`'s tensors, on rank r; the others give tensors of the same shapes."""
    pg = _list_group(tensors, "tensors", group)
    arguments.all_like([t._data for t in tensors], "tensors", tensors[0]._data)
    root = arguments.peer(pg, src, None, "src")
    return Scatter.apply(_stack(list(tensors)), root, pg)


def reduce_scatter(
    output: Tensor, input_list: Sequence[Tensor], op: Any = ReduceOp.SUM, group: Group = None
) -> Tensor:
    """The reduction of entry r of all ranks' `input_list`, on rank r, in the memory of `output`."""
    pg = _list_group(input_list, "input_list", group)
    arguments.check_complex(output, op, "reduce_scatter")
    arguments.all_like([t._data for t in input_list], "input_list", output._data)
    return Into.apply(output, ReduceScatter.apply(_stack(list(input_list)), op, pg))


def all_to_all(
    output_tensor_list: Sequence[Tensor], input_tensor_list: Sequence[Tensor], group: Group = None
) -> tuple[Tensor, ...]:
    """Entry r of every rank's inputs goes to rank r; what comes from rank r is entry r returned.

    The results lie in the memory of `output_tensor_list`, whose shapes say what is expected.
    """
    pg = _list_group(input_tensor_list, "input_tensor_list", group)
    outs = arguments.arrays(output_tensor_list, "output_tensor_list")
    arguments.one_per_rank(outs, "output_tensor_list", pg.size())
    received = AllToAll.apply(pg, [out.shape for out in outs], *input_tensor_list)
    return tuple(Into.apply(out, got) for out, got in zip(output_tensor_list, received))


def all_to_all_single(
    output: Tensor,
    input: Tensor,
    output_split_sizes: Sequence[int] | None = None,
    input_split_sizes: Sequence[int] | None = None,
    group: Group = None,
) -> Tensor:
    """Part r of every rank's `input` goes to rank r; returns what came, in rank order, in `output`.

    Args:
        output_split_sizes, input_split_sizes: rows (dim 0) of each part; None: equal parts.
    """
    pg = _group(input, group)
    arguments.array(output, "output")
    return Into.apply(
        output, exchange(input, output_split_sizes, input_split_sizes, output.shape, pg)
    )


def exchange(
    input: Tensor,
    output_split_sizes: Sequence[int] | None,
    input_split_sizes: Sequence[int] | None,
    out_shape: Sequence[int],
    pg: ProcessGroup,
) -> Tensor:
    """`all_to_all_single` into a new tensor of `out_shape`, of which dim 0 is divided."""
    n = pg.size()
    ins = _sizes(input_split_sizes, input.shape, n, "input")
    outs = _sizes(output_split_sizes, out_shape, n, "output")
    parts = input.split(ins) if input.shape[0] else [input] * n
    received = AllToAll.apply(pg, [(rows, *out_shape[1:]) for rows in outs], *parts)
    return PUBLIC["cat"](received)


def _all_gather_base(output_tensor: Tensor, input_tensor: Tensor, group: Group = None) -> Tensor:
    """All ranks' tensors one after the other, in the memory of `output_tensor`."""
    pg = _group(input_tensor, group)
    arguments.array(output_tensor, "output_tensor")
    return Into.apply(output_tensor, AllGather.apply(input_tensor, pg))


def _sizes(sizes: Sequence[int] | None, shape: Sequence[int], n: int, name: str) -> list[int]:
    rows = shape[0] if len(shape) else 0
    if not sizes:
        if rows % n:
            raise ValueError(f"{name}: {rows} rows do not divide into {n} equal parts")
        return [rows // n] * n
    if len(sizes) != n or sum(sizes) != rows or min(sizes) < 0:
        raise ValueError(
            f"{name}_split_sizes {list(sizes)} must be {n} sizes whose sum is the {rows} rows of "
            f"{name}"
        )
    return list(sizes)


def _group(tensor: Tensor, group: Group) -> ProcessGroup:
    arguments.array(tensor, "tensor")
    return belonging(group)


def _list_group(tensors: Sequence[Tensor], name: str, group: Group) -> ProcessGroup:
    arguments.arrays(tensors, name)
    pg = belonging(group)
    arguments.one_per_rank(tensors, name, pg.size())
    return pg


def _rows(stacked: Tensor, pg: ProcessGroup) -> tuple[Tensor, ...]:
    """A tensor of its own for each rank; not views, so that each may be changed in place."""
    return tuple(stacked[rank].clone() for rank in range(pg.size()))


__all__ = [
    "all_gather", "all_reduce", "all_to_all", "all_to_all_single", "broadcast", "gather", "reduce",
    "reduce_scatter", "scatter",
]
