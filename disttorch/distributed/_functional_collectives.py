"""Collectives as functions of tensors, under the names that tensor-parallel code imports.

Results are new tensors and complete when a call returns, so `wait_tensor` gives back what it gets.
All calls are differentiable; the `_autograd` names of PyTorch are the same functions here. `group`
may be a process group, its name, a list of global ranks, lists of them that together hold all ranks
of the job, a mesh of one axis, or `(mesh, axis)`. `tag` is accepted as in PyTorch and not needed.

Gradients, and what ranks must have in common for them, are explained in `nn.functional`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from collectives import ReduceOp

from ..ops import PUBLIC
from ..tensor import Tensor
from . import arguments
from .conjugate import AllGather, AllReduce, Broadcast, ReduceScatter
from .device_mesh import DeviceMesh
from .groups import new_group, new_subgroups_by_enumeration
from .nn.functional import exchange
from .process_group import ProcessGroup, belonging, by_name, default_group, job

_OPS = {
    "sum": ReduceOp.SUM, "avg": ReduceOp.AVG, "product": ReduceOp.PRODUCT, "min": ReduceOp.MIN,
    "max": ReduceOp.MAX, "band": ReduceOp.BAND, "bor": ReduceOp.BOR, "bxor": ReduceOp.BXOR,
}  # fmt: skip
REDUCE_OP_TO_STR = {op: name for name, op in _OPS.items()}


class AsyncCollectiveTensor(Tensor):
    """The type of PyTorch's results that are still under way. Results here never are, so no call
    returns one; the type is for `isinstance` in code that waits where it must."""

    def wait(self) -> Tensor:
        """The complete tensor."""
        return self

    trigger_wait = wait


def wait_tensor(tensor: Tensor) -> Tensor:
    """`tensor`, complete: it was so before."""
    arguments.array(tensor, "tensor")
    return tensor


def all_reduce(self: Tensor, reduceOp: str, group: Any, tag: str = "") -> Tensor:
    """The reduction ("sum", "avg", "product", "min", "max", …) of all ranks' tensors."""
    op = _op(reduceOp)
    arguments.check_complex(self, op, "all_reduce")
    return AllReduce.apply(self, op, _resolve_group(group))


def broadcast(self: Tensor, src: int, group: Any, tag: str = "") -> Tensor:
    """The tensor of the group's rank `src`."""
    return Broadcast.apply(self, src, _resolve_group(group))


def all_gather_single(self: Tensor, gather_dim: int, group: Any, tag: str = "") -> Tensor:
    """All ranks' tensors, joined along `gather_dim` in rank order."""
    rows = AllGather.apply(self, _resolve_group(group))
    return PUBLIC["cat"](list(rows.unbind(0)), dim=gather_dim)


def reduce_scatter_single(
    self: Tensor, reduceOp: str, scatter_dim: int, group: Any, tag: str = ""
) -> Tensor:
    """This rank's part, along `scatter_dim`, of the reduction of all ranks' tensors.

    Raises:
        ValueError: the dimension does not divide by the group's size.
    """
    pg, op = _resolve_group(group), _op(reduceOp)
    arguments.check_complex(self, op, "reduce_scatter")
    if self.shape[scatter_dim] % pg.size():
        raise ValueError(
            f"input dimension {scatter_dim} ({self.shape[scatter_dim]}) must be a multiple of "
            f"group_size {pg.size()}"
        )
    parts = self.chunk(pg.size(), dim=scatter_dim)
    return ReduceScatter.apply(PUBLIC["stack"](list(parts)), op, pg)


def all_to_all_single(
    self: Tensor,
    output_split_sizes: Sequence[int] | None,
    input_split_sizes: Sequence[int] | None,
    group: Any,
    tag: str = "",
) -> Tensor:
    """Part r of every rank's tensor goes to rank r; returns what came, in rank order.

    Args:
        output_split_sizes, input_split_sizes: rows (dim 0) of each part; both, or neither: equal.
    """
    pg = _resolve_group(group)
    if (output_split_sizes is None) != (input_split_sizes is None):
        raise ValueError("all_to_all_single: give both split sizes, or neither")
    rows = self.shape[0] if output_split_sizes is None else sum(output_split_sizes)
    return exchange(
        self, output_split_sizes, input_split_sizes, (rows, *self.shape[1:]), pg
    )


def permute_tensor(self: Tensor, src_dst: Sequence[int], group: Any, tag: str = "") -> Tensor:
    """Send this rank's tensor to rank `src_dst[rank]`; return what comes, of the same shape.

    A send and a receive as one differentiable call: gradients go the reverse way.

    Args:
        src_dst: a permutation of the group's ranks.
    """
    pg = _resolve_group(group)
    if sorted(src_dst) != list(range(pg.size())):
        raise ValueError(
            f"permute_tensor: src_dst must be a permutation of 0 to {pg.size() - 1}, got "
            f"{list(src_dst)}"
        )
    x = self.reshape(1) if self.dim() == 0 else self
    rows, me = x.shape[0], pg.rank()
    ins = [rows if r == src_dst[me] else 0 for r in range(pg.size())]
    outs = [rows if src_dst[r] == me else 0 for r in range(pg.size())]
    return exchange(x, outs, ins, x.shape, pg).reshape(self.shape)


# ---- several at once -----------------------------------------------------------------------------


def all_reduce_coalesced(
    self: Sequence[Tensor], reduceOp: str, group: Any, tag: str = ""
) -> list[Tensor]:
    """`all_reduce` of each tensor."""
    pg = _resolve_group(group)
    return [all_reduce(tensor, reduceOp, pg) for tensor in self]


def all_gather_single_coalesced(self: Sequence[Tensor], group: Any, tag: str = "") -> list[Tensor]:
    """`all_gather_single` along dim 0 of each tensor."""
    pg = _resolve_group(group)
    return [all_gather_single(tensor, 0, pg) for tensor in self]


def reduce_scatter_single_coalesced(
    inputs: Sequence[Tensor], reduceOp: str, scatter_dim: Sequence[int], group: Any, tag: str = ""
) -> list[Tensor]:
    """`reduce_scatter_single` of each tensor along its own dimension."""
    pg = _resolve_group(group)
    return [
        reduce_scatter_single(tensor, reduceOp, dim, pg)
        for tensor, dim in zip(inputs, scatter_dim, strict=True)
    ]


all_gather_tensor = all_gather_tensor_autograd = all_gather_single_autograd = all_gather_single
reduce_scatter_tensor = reduce_scatter_tensor_autograd = reduce_scatter_single
reduce_scatter_single_autograd = reduce_scatter_single
all_to_all_single_autograd = all_to_all_single
all_gather_into_tensor_coalesced = all_gather_single_coalesced
reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced


# ---- which group ---------------------------------------------------------------------------------


def _op(name: str) -> ReduceOp:
    if str(name).lower() not in _OPS:
        raise ValueError(f"unknown reduction {name!r}: use one of {', '.join(_OPS)}")
    return _OPS[str(name).lower()]


def _resolve_group(group: Any, tag: str = "") -> ProcessGroup:
    """The group that any of the accepted forms means.

    Lists of ranks that no group has yet make one, which is a call of all ranks of the job.

    Raises:
        ValueError: none of these forms; lists of different lengths; this rank is in none of them.
    """
    if isinstance(group, str):
        return by_name(group)
    if isinstance(group, ProcessGroup) or group is None:
        return belonging(group)
    if isinstance(group, DeviceMesh):
        if group.ndim != 1:
            raise ValueError(
                f"Only 1D mesh is supported, got {group!r}: pass (mesh, axis) for more axes"
            )
        return group.get_group()
    if isinstance(group, tuple):
        if len(group) == 2 and isinstance(group[0], DeviceMesh) and isinstance(group[1], int):
            return group[0].get_group(group[1])
        raise ValueError(f"Invalid tuple for group must be (DeviceMesh, int), got {group!r}")
    if isinstance(group, list) and group:
        return _of_ranks(group if isinstance(group[0], list) else [group])
    raise ValueError(
        "Invalid type for group, must be one of List, Processgroup, DeviceMesh or (DeviceMesh, "
        f"int), got {group!r}"
    )


def _of_ranks(rows: list[list[int]]) -> ProcessGroup:
    if len({len(row) for row in rows}) > 1:
        raise ValueError(f"group sizes must be identical found {[len(row) for row in rows]}")
    me = default_group().rank()
    mine = next((row for row in rows if me in row), None)
    for pg in job().groups:
        if pg.members == mine:
            return pg
    made = new_group(rows[0]) if len(rows) == 1 else new_subgroups_by_enumeration(rows)[0]
    return belonging(made)
