"""The collectives under PyTorch's names, on tensors.

`src` and `dst` are ranks of the job also where a `group` is given; `group_src` and `group_dst` are
ranks of that group. A call on a rank that is not in the group warns and does nothing. With
`async_op=True` a call returns a `Work` at once, and None otherwise. What a call writes into counts
as changed in place: autograd notices if a backward still needed the old values.

Errors of all calls, beside those of `collectives.Group`: ValueError before `init_process_group`,
and for a rank outside the group; TypeError for an argument that is no tensor.
"""

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

# ---- collectives ---------------------------------------------------------------------------------


def all_reduce(
    tensor: Tensor, op: ReduceOp = ReduceOp.SUM, group: Group = None, async_op: bool = False
) -> Work | None:
    """Replace `tensor` on every rank by the reduction of all ranks' tensors."""
    pg = _member(group, "all_reduce")
    if pg is None:
        return None
    array = _array(tensor, "tensor")
    return _run(pg, async_op, lambda later: pg.ranks.all_reduce(array, op, later), [tensor])


def reduce(
    tensor: Tensor,
    dst: int | None = None,
    op: ReduceOp = ReduceOp.SUM,
    group: Group = None,
    async_op: bool = False,
    group_dst: int | None = None,
) -> Work | None:
    """Replace `tensor` on rank `dst` by the reduction of all ranks' tensors."""
    pg = _member(group, "reduce")
    if pg is None:
        return None
    root, array = _peer(pg, dst, group_dst, "dst"), _array(tensor, "tensor")
    written = [tensor] if pg.rank() == root else []
    return _run(pg, async_op, lambda later: pg.ranks.reduce(array, root, op, later), written)


def broadcast(
    tensor: Tensor,
    src: int | None = None,
    group: Group = None,
    async_op: bool = False,
    group_src: int | None = None,
) -> Work | None:
    """Replace `tensor` on every rank by that of rank `src`."""
    pg = _member(group, "broadcast")
    if pg is None:
        return None
    root, array = _peer(pg, src, group_src, "src"), _array(tensor, "tensor")
    written = [] if pg.rank() == root else [tensor]
    return _run(pg, async_op, lambda later: pg.ranks.broadcast(array, root, later), written)


def all_gather(
    tensor_list: list[Tensor], tensor: Tensor, group: Group = None, async_op: bool = False
) -> Work | None:
    """Fill `tensor_list` (one tensor per rank, each of the size of `tensor`) in rank order."""
    pg = _member(group, "all_gather")
    if pg is None:
        return None
    array = _array(tensor, "tensor")
    outs = _arrays(tensor_list, "tensor_list", pg.size(), array)
    flat = _rows(array, pg.size())
    return _run(
        pg,
        async_op,
        lambda later: pg.ranks.all_gather(flat, array, later),
        tensor_list,
        lambda: _unpack(flat, outs),
    )


def all_gather_into_tensor(
    output_tensor: Tensor, input_tensor: Tensor, group: Group = None, async_op: bool = False
) -> Work | None:
    """Fill `output_tensor` (group size x the input's elements) with all inputs in rank order."""
    pg = _member(group, "all_gather_into_tensor")
    if pg is None:
        return None
    out, array = _array(output_tensor, "output_tensor"), _array(input_tensor, "input_tensor")
    return _run(
        pg, async_op, lambda later: pg.ranks.all_gather(out, array, later), [output_tensor]
    )


def gather(
    tensor: Tensor,
    gather_list: list[Tensor] | None = None,
    dst: int | None = None,
    group: Group = None,
    async_op: bool = False,
    group_dst: int | None = None,
) -> Work | None:
    """Fill `gather_list` on rank `dst` (default 0) with all ranks' tensors, in rank order.

    Raises:
        ValueError: `gather_list` is missing on `dst`, or given elsewhere.
    """
    pg = _member(group, "gather")
    if pg is None:
        return None
    root, array = _peer(pg, dst, group_dst, "dst", default=0), _array(tensor, "tensor")
    if pg.rank() != root:
        if gather_list:
            raise ValueError(
                "Argument ``gather_list`` must NOT be specified on non-destination ranks."
            )
        return _run(pg, async_op, lambda later: pg.ranks.gather(None, array, root, later), [])
    if not gather_list:
        raise ValueError("Argument ``gather_list`` must be specified on destination rank.")
    outs = _arrays(gather_list, "gather_list", pg.size(), array)
    flat = _rows(array, pg.size())
    return _run(
        pg,
        async_op,
        lambda later: pg.ranks.gather(flat, array, root, later),
        gather_list,
        lambda: _unpack(flat, outs),
    )


def scatter(
    tensor: Tensor,
    scatter_list: list[Tensor] | None = None,
    src: int | None = None,
    group: Group = None,
    async_op: bool = False,
    group_src: int | None = None,
) -> Work | None:
    """Give each rank its tensor of `scatter_list`, which only rank `src` (default 0) has.

    Raises:
        ValueError: `scatter_list` is missing on `src`, or given elsewhere.
    """
    pg = _member(group, "scatter")
    if pg is None:
        return None
    root, out = _peer(pg, src, group_src, "src", default=0), _array(tensor, "tensor")
    if pg.rank() != root:
        if scatter_list:
            raise ValueError("Argument ``scatter_list`` must NOT be specified on non-source ranks.")
        flat = None
    else:
        if not scatter_list:
            raise ValueError("Argument ``scatter_list`` must be specified on source rank.")
        flat = _pack(_arrays(scatter_list, "scatter_list", pg.size(), out))
    return _run(pg, async_op, lambda later: pg.ranks.scatter(out, flat, root, later), [tensor])


def reduce_scatter(
    output: Tensor,
    input_list: list[Tensor],
    op: ReduceOp = ReduceOp.SUM,
    group: Group = None,
    async_op: bool = False,
) -> Work | None:
    """Reduce entry r of all ranks' `input_list` into `output` of rank r."""
    pg = _member(group, "reduce_scatter")
    if pg is None:
        return None
    out = _array(output, "output")
    flat = _pack(_arrays(input_list, "input_list", pg.size(), out))
    return _run(
        pg, async_op, lambda later: pg.ranks.reduce_scatter(out, flat, op, later), [output]
    )


def reduce_scatter_tensor(
    output: Tensor,
    input: Tensor,
    op: ReduceOp = ReduceOp.SUM,
    group: Group = None,
    async_op: bool = False,
) -> Work | None:
    """Reduce all ranks' `input` and give rank r the r-th of as many equal parts as ranks."""
    pg = _member(group, "reduce_scatter_tensor")
    if pg is None:
        return None
    out, array = _array(output, "output"), _array(input, "input")
    return _run(
        pg, async_op, lambda later: pg.ranks.reduce_scatter(out, array, op, later), [output]
    )


def all_to_all_single(
    output: Tensor,
    input: Tensor,
    output_split_sizes: Sequence[int] | None = None,
    input_split_sizes: Sequence[int] | None = None,
    group: Group = None,
    async_op: bool = False,
) -> Work | None:
    """Send part r of `input` to rank r; `output` collects what was received, in rank order.

    With split sizes, `output` and `input` must not share memory.

    Args:
        output_split_sizes, input_split_sizes: rows (dim 0) of each part; None: equal parts. All
            ranks give both, or none does.
    """
    pg = _member(group, "all_to_all_single")
    if pg is None:
        return None
    out, array = _array(output, "output"), _array(input, "input")
    if output_split_sizes is None and input_split_sizes is None:
        return _run(pg, async_op, lambda later: pg.ranks.all_to_all(out, array, later), [output])
    outs = _split_rows(out, output_split_sizes, pg.size(), "output")
    parts = _split_rows(array, input_split_sizes, pg.size(), "input")
    return _exchange(pg, outs, parts, [output], async_op)


def all_to_all(
    output_tensor_list: list[Tensor],
    input_tensor_list: list[Tensor],
    group: Group = None,
    async_op: bool = False,
) -> Work | None:
    """Send entry r of `input_tensor_list` to rank r; entry r of the outputs comes from rank r.

    Sizes may differ from entry to entry; what is sent and what is expected must agree. Outputs and
    inputs must not share memory.
    """
    pg = _member(group, "all_to_all")
    if pg is None:
        return None
    outs = _arrays(output_tensor_list, "output_tensor_list", pg.size())
    parts = _arrays(input_tensor_list, "input_tensor_list", pg.size())
    return _exchange(pg, outs, parts, output_tensor_list, async_op)


def barrier(group: Group = None, async_op: bool = False, device_ids: Any = None) -> Work | None:
    """Wait until every rank of the group has come here. `device_ids` concerns NCCL only."""
    pg = _member(group, "barrier")
    if pg is None:
        return None
    return _run(pg, async_op, pg.ranks.barrier, [])


# ---- messages ------------------------------------------------------------------------------------


def isend(
    tensor: Tensor,
    dst: int | None = None,
    group: Group = None,
    tag: int = 0,
    group_dst: int | None = None,
) -> Work | None:
    """Start sending `tensor` to rank `dst`; keep it unchanged until `wait`."""
    pg = _member(group, "isend")
    if pg is None:
        return None
    peer, array = _peer(pg, dst, group_dst, "dst"), _array(tensor, "tensor")
    return Work([pg.ranks.isend(array, peer, tag)], timeout=pg.timeout)


def irecv(
    tensor: Tensor,
    src: int | None = None,
    group: Group = None,
    tag: int = 0,
    group_src: int | None = None,
) -> Work | None:
    """Start receiving into `tensor` from rank `src`; None takes a message from any rank."""
    pg = _member(group, "irecv")
    if pg is None:
        return None
    peer = None
    if src is not None or group_src is not None:
        peer = _peer(pg, src, group_src, "src")
    work = Work([pg.ranks.irecv(_array(tensor, "tensor"), peer, tag)], timeout=pg.timeout)
    bump_version(tensor)
    return work


def send(
    tensor: Tensor,
    dst: int | None = None,
    group: Group = None,
    tag: int = 0,
    group_dst: int | None = None,
) -> None:
    """Send `tensor` to rank `dst`; return when it may be changed again."""
    work = isend(tensor, dst, group, tag, group_dst)
    if work is not None:
        work.wait()


def recv(
    tensor: Tensor,
    src: int | None = None,
    group: Group = None,
    tag: int = 0,
    group_src: int | None = None,
) -> int:
    """Receive into `tensor` from rank `src` (None: any); return the sender's rank in the job.

    Returns -1 on a rank outside the group.
    """
    work = irecv(tensor, src, group, tag, group_src)
    if work is None:
        return -1
    work.wait()
    pg = resolve(group)
    assert pg is not None
    return pg.members[work.source_rank()]


# ---- objects -------------------------------------------------------------------------------------


def broadcast_object_list(
    object_list: list,
    src: int | None = None,
    group: Group = None,
    device: Any = None,
    group_src: int | None = None,
) -> None:
    """Replace the entries of `object_list` on every rank by those of rank `src` (default 0).

    Objects are pickled, and unpickling runs code: only between the trusted ranks of one job.
    `device` is not needed: objects travel through host memory.

    Raises:
        ValueError: a list of another length than on `src`; its entries are then unchanged.
    """
    pg = _member(group, "broadcast_object_list")
    if pg is None:
        return
    root = _peer(pg, src, group_src, "src", default=0)
    received = pg.ranks.broadcast_object(object_list, root)
    if len(received) != len(object_list):
        raise ValueError(
            f"broadcast_object_list: rank {root} of the group sent {len(received)} objects, this "
            f"rank's list has {len(object_list)} entries"
        )
    object_list[:] = received


def all_gather_object(object_list: list, obj: Any, group: Group = None) -> None:
    """Fill `object_list` (one entry per rank) with all ranks' objects, in rank order. Pickled.

    Raises:
        ValueError: a list of another length than the group's size.
    """
    pg = _member(group, "all_gather_object")
    if pg is None:
        return
    if len(object_list) != pg.size():
        raise ValueError(
            f"all_gather_object: object_list has {len(object_list)} entries, the group has "
            f"{pg.size()} ranks"
        )
    object_list[:] = pg.ranks.all_gather_object(obj)


# ---- shared --------------------------------------------------------------------------------------


def _member(group: Group, call: str) -> ProcessGroup | None:
    pg = resolve(group)
    if pg is None:
        warn_not_in_group(call)
    return pg


def _run(
    pg: ProcessGroup,
    async_op: bool,
    call: Callable[[bool], collectives.Work | None],
    written: Sequence[Tensor],
    finish: Callable[[], None] | None = None,
) -> Work | None:
    """Make a transport's call, which takes `async_op`, now or as a `Work`."""
    later = async_op or pg.timeout is not None
    part = call(later)
    for tensor in written:
        bump_version(tensor)
    if part is None:
        if finish is not None:
            finish()
        return None
    work = Work([part], finish, pg.timeout)
    if async_op:
        return work
    work.wait()
    return None


def _peer(
    pg: ProcessGroup,
    rank: int | None,
    group_rank: int | None,
    name: str,
    default: int | None = None,
) -> int:
    """The rank in `pg` that `src`/`dst` or `group_src`/`group_dst` name."""
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


def _array(tensor: Tensor, name: str) -> Any:
    if not isinstance(tensor, Tensor):
        raise TypeError(
            f"Invalid function argument. Expected parameter `{name}` of type torch.Tensor, but "
            f"got {type(tensor).__name__}"
        )
    return tensor._data


def _arrays(tensors: Sequence[Tensor], name: str, n: int, like: Any = None) -> list[Any]:
    """The arrays of a list of `n` tensors, each of the size and dtype of `like` where given."""
    if not isinstance(tensors, (list, tuple)):
        raise TypeError(
            f"Invalid function argument. Expected parameter `{name}` of type list of "
            f"torch.Tensor, but got {type(tensors).__name__}"
        )
    arrays = [_array(tensor, f"{name}[{i}]") for i, tensor in enumerate(tensors)]
    if len(arrays) != n:
        raise ValueError(f"`{name}` has {len(arrays)} tensors, one per rank is needed: {n}")
    for i, array in enumerate(arrays):
        if like is not None and (array.size, array.dtype) != (like.size, like.dtype):
            raise ValueError(
                f"`{name}[{i}]` has shape {list(array.shape)} and dtype {array.dtype}, the other "
                f"tensor {list(like.shape)} and {like.dtype}: all must be alike"
            )
    return arrays


def _rows(like: Any, n: int) -> Any:
    """An uninitialised contiguous array that holds `n` arrays like the given one."""
    return namespace_of(like).empty((n, like.size), like.dtype)


def _pack(arrays: list[Any]) -> Any:
    rows = _rows(arrays[0], len(arrays))
    for row, array in zip(rows, arrays):
        row[...] = array.reshape(-1)
    return rows


def _unpack(rows: Any, arrays: list[Any]) -> None:
    for row, array in zip(rows, arrays):
        array[...] = row.reshape(array.shape)


def _split_rows(array: Any, sizes: Sequence[int] | None, n: int, name: str) -> list[Any]:
    rows = array.shape[0] if array.ndim else 0
    if sizes is None:
        if rows % n:
            raise ValueError(f"{name}: {rows} rows do not divide into {n} equal parts")
        sizes = [rows // n] * n
    if len(sizes) != n or sum(sizes) != rows or min(sizes) < 0:
        raise ValueError(
            f"{name}_split_sizes {list(sizes)} must be {n} sizes whose sum is the {rows} rows of "
            f"{name}"
        )
    starts = [sum(sizes[:r]) for r in range(n)]
    return [array[start : start + size] for start, size in zip(starts, sizes)]


def _exchange(
    pg: ProcessGroup, outs: list[Any], parts: list[Any], written: list[Tensor], async_op: bool
) -> Work | None:
    """Send `parts[r]` to rank r and receive `outs[r]` from it, as messages."""
    me, ranks = pg.rank(), pg.ranks
    if (outs[me].size, outs[me].dtype) != (parts[me].size, parts[me].dtype):
        raise ValueError(
            f"this rank's part for itself has shape {list(parts[me].shape)} and dtype "
            f"{parts[me].dtype}, but {list(outs[me].shape)} and {outs[me].dtype} are expected"
        )
    tag = ranks.largest_tag  # users' messages begin at tag 0
    others = [r for r in range(pg.size()) if r != me]
    under_way = [ranks.isend(parts[r], r, tag) for r in others]
    under_way += [ranks.irecv(outs[r], r, tag) for r in others]
    outs[me][...] = parts[me].reshape(outs[me].shape)
    for tensor in written:
        bump_version(tensor)
    work = Work(under_way, timeout=pg.timeout)
    if async_op:
        return work
    work.wait()
    return None
