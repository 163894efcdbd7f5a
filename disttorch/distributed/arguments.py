"""What the calls have in common: checks of their arguments, and how a call is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import collectives
from collectives import ReduceOp

from ..autograd.graph import bump_version
from ..backend import namespace_of
from ..tensor import Tensor
from .process_group import (
    Group,
    ProcessGroup,
    default_group,
    get_group_rank,
    resolve,
    warn_not_in_group,
)
from .work import Work

_NO_COMPLEX = (ReduceOp.MAX, ReduceOp.MIN, ReduceOp.BAND, ReduceOp.BOR, ReduceOp.BXOR)


def member(group: Group, call: str) -> ProcessGroup | None:
    """The group meant; None, with a warning, on a rank outside it."""
    pg = resolve(group)
    if pg is None:
        warn_not_in_group(call)
    return pg


def run(
    async_op: bool,
    call: Callable[[bool], collectives.Work | None],
    written: Sequence[Tensor],
    finish: Callable[[], None] | None = None,
) -> Work | None:
    """Make a transport's call, which takes `async_op`, now or as a `Work`.

    Args:
        written: tensors that the call changes; its result.
        finish: brings the result into them, once the call has succeeded.
    """
    part = call(async_op)
    for tensor in written:
        bump_version(tensor)
    if part is None:
        if finish is not None:
            finish()
        return None
    return Work([part], finish, written)


def peer(
    pg: ProcessGroup,
    rank: int | None,
    group_rank: int | None,
    name: str,
    default: int | None = None,
) -> int:
    """The rank in `pg` that `src`/`dst` or `group_src`/`group_dst` name.

    Raises:
        ValueError: both, neither, or a rank outside the group.
    """
    if group_rank is not None:
        if rank is not None:
            raise ValueError(f"Can't specify both group_{name} and {name}")
        return group_rank
    if rank is None:
        rank = default
    if rank is None:
        raise ValueError(f"Must specify {name} or group_{name}")
    if pg is default_group():
        return rank
    return get_group_rank(pg, rank)


def not_self(pg: ProcessGroup, rank: int, kind: str) -> None:
    """ValueError for a message to oneself; `kind` is "source" or "destination"."""
    if rank == pg.rank():
        raise ValueError(
            f"Invalid {kind} rank: {kind} rank should not be the same as the rank of the current "
            "process."
        )


def array(tensor: Tensor, name: str) -> Any:
    """A tensor's array; TypeError for anything else."""
    if not isinstance(tensor, Tensor):
        raise TypeError(
            f"Invalid function argument. Expected parameter `{name}` of type torch.Tensor but got "
            f"{type(tensor)} instead."
        )
    return tensor._data


def arrays(tensors: Sequence[Tensor], name: str) -> list[Any]:
    """The arrays of a list of tensors; TypeError for anything else."""
    if not isinstance(tensors, (list, tuple)) or not all(isinstance(t, Tensor) for t in tensors):
        found = f"{type(tensors)}"
        if isinstance(tensors, (list, tuple)):
            found += f" with elements of type {[type(t) for t in tensors]}"
        raise TypeError(
            f"Invalid function argument. Expected parameter `{name}` of type List[torch.Tensor] "
            f"but got {found} instead."
        )
    return [t._data for t in tensors]


def one_per_rank(tensors: Sequence[Any], name: str, n: int) -> None:
    """ValueError for a list of another length than the group's size."""
    if len(tensors) != n:
        raise ValueError(f"`{name}` has {len(tensors)} tensors, one per rank is needed: {n}")


def all_like(found: Sequence[Any], name: str, like: Any) -> None:
    """ValueError for arrays that have not the size of `like`."""
    for i, each in enumerate(found):
        if each.size != like.size:
            raise ValueError(
                f"`{name}[{i}]` has shape {list(each.shape)}, the other tensor {list(like.shape)}: "
                "all must be of one size"
            )


def same_dtype(*found: Any) -> None:
    """ValueError for arrays of different dtypes."""
    for each in found[1:]:
        if each.dtype != found[0].dtype:
            raise ValueError(
                f"Invalid usage of tensors with different dtypes: found {found[0].dtype} and "
                f"{each.dtype}"
            )


def supports_complex(reduceOp: Any) -> bool:
    """Whether complex numbers can be reduced so: not by an order or bit by bit."""
    return reduceOp not in _NO_COMPLEX


def check_complex(tensor: Tensor, op: Any, call: str) -> None:
    """ValueError for complex numbers that `op` has no meaning for."""
    if op in _NO_COMPLEX and tensor.is_complex():
        raise ValueError(f"{call} does not support {op} on complex tensors")


# ---- many arrays as one --------------------------------------------------------------------------


def flat_like(like: Any, size: int) -> Any:
    """An uninitialised contiguous array of `size` elements, of the dtype and device of `like`."""
    return namespace_of(like).empty((size,), like.dtype)


def pack(parts: Sequence[Any]) -> Any:
    """All elements of the arrays, one array after the other, in a new flat array."""
    whole = flat_like(parts[0], sum(part.size for part in parts))
    begin = 0
    for part in parts:
        whole[begin : begin + part.size] = part.reshape(-1)
        begin += part.size
    return whole


def unpack(whole: Any, parts: Sequence[Any]) -> None:
    """Fill the arrays from a flat one that holds them one after the other."""
    begin = 0
    for part in parts:
        part[...] = whole[begin : begin + part.size].reshape(part.shape)
        begin += part.size
