"""The collectives that move tensors as they are: broadcast, gathers, scatters, all_to_all; barriers.

What holds for all of them is said in `reductions`.
"""

from __future__ import annotations

import datetime
import warnings
from collections.abc import Sequence
from typing import Any

from ..futures import Future
from ..tensor import Tensor
from . import arguments, coalescing
from .process_group import Group, seconds_of
from .reductions import uneven
from .work import Work


def broadcast(
    tensor: Tensor,
    src: int | None = None,
    group: Group = None,
    async_op: bool = False,
    group_src: int | None = None,
) -> Work | None:
    """Replace `tensor` on every rank by that of rank `src`."""
    data = arguments.array(tensor, "tensor")
    pg = arguments.member(group, "broadcast")
    if pg is None:
        return None
    root = arguments.peer(pg, src, group_src, "src")
    written = [] if pg.rank() == root else [tensor]
    work = arguments.run(
        async_op, lambda later: pg.ranks.broadcast(data, root, later), written
    )
    if work is not None:
        work._outputs = [tensor]
    return work


# ---- everyone gets everything --------------------------------------------------------------------


def all_gather(
    tensor_list: list[Tensor], tensor: Tensor, group: Group = None, async_op: bool = False
) -> Work | None:
    """Fill `tensor_list` (one tensor per rank) with all ranks' tensors, in rank order.

    Tensors of different ranks may differ in size: entry r has the size of rank r's tensor.
    """
    outs, data = arguments.arrays(tensor_list, "tensor_list"), arguments.array(tensor, "tensor")
    arguments.same_dtype(data, *outs)
    pg = arguments.member(group, "all_gather")
    if pg is None:
        return None
    arguments.one_per_rank(outs, "tensor_list", pg.size())
    counts = uneven(outs)
    if counts is None:
        arguments.all_like(outs, "tensor_list", data)
    whole = arguments.flat_like(data, sum(out.size for out in outs))
    return arguments.run(
        async_op,
        lambda later: pg.ranks.all_gather(whole, data, later, counts),
        tensor_list,
        lambda: arguments.unpack(whole, outs),
    )


def all_gather_single(
    output_tensor: Tensor, input_tensor: Tensor, group: Group = None, async_op: bool = False
) -> Work | None:
    """Fill `output_tensor` (group size x the input's elements) with all inputs in rank order."""
    out = arguments.array(output_tensor, "output_tensor")
    data = arguments.array(input_tensor, "input_tensor")
    pg = arguments.member(group, "all_gather_into_tensor")
    if pg is None:
        return None
    if pg.coalescing is not None:
        return coalescing.hold(pg, all_gather_single, input_tensor, output_tensor, None, async_op)
    return arguments.run(
        async_op, lambda later: pg.ranks.all_gather(out, data, later), [output_tensor]
    )


def all_gather_into_tensor(
    output_tensor: Tensor, input_tensor: Tensor, group: Group = None, async_op: bool = False
) -> Work | None:
    """The older name of `all_gather_single`."""
    return all_gather_single(output_tensor, input_tensor, group, async_op)


_all_gather_base = all_gather_into_tensor


def all_gather_coalesced(
    output_tensor_lists: list[list[Tensor]],
    input_tensor_list: list[Tensor],
    group: Group = None,
    async_op: bool = False,
) -> Future | None:
    """`all_gather` of several tensors: entry i of list r is filled with rank r's input i.

    Returns:
        With `async_op=True` a future of all output tensors, list after list.
    """
    inputs = arguments.arrays(input_tensor_list, "input_tensor_list")
    if not isinstance(output_tensor_lists, (list, tuple)):
        raise TypeError("Invalid function argument: output_tensor_lists should be a list")
    outs = [arguments.arrays(each, "output_tensor_lists") for each in output_tensor_lists]
    arguments.same_dtype(*inputs, *(out for each in outs for out in each))
    pg = arguments.member(group, "all_gather_coalesced")
    if pg is None:
        return None
    arguments.one_per_rank(outs, "output_tensor_lists", pg.size())
    for each in outs:
        if [out.size for out in each] != [data.size for data in inputs]:
            raise ValueError(
                f"output_tensor_lists: each list needs tensors of {[d.size for d in inputs]} "
                f"elements, got {[out.size for out in each]}"
            )
    mine = arguments.pack(inputs)
    whole = arguments.flat_like(mine, mine.size * pg.size())
    work = arguments.run(
        async_op,
        lambda later: pg.ranks.all_gather(whole, mine, later),
        [t for each in output_tensor_lists for t in each],
        lambda: arguments.unpack(whole, [out for each in outs for out in each]),
    )
    return None if work is None else work.get_future()


# ---- one rank and all ----------------------------------------------------------------------------


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
    data = arguments.array(tensor, "tensor")
    outs = arguments.arrays(gather_list, "gather_list") if gather_list else []
    arguments.same_dtype(data, *outs)
    pg = arguments.member(group, "gather")
    if pg is None:
        return None
    root = arguments.peer(pg, dst, group_dst, "dst", default=0)
    check_output_list(gather_list, pg.rank() == root)
    if pg.rank() != root:
        return arguments.run(
            async_op, lambda later: pg.ranks.gather(None, data, root, later), []
        )
    assert gather_list is not None
    arguments.one_per_rank(outs, "gather_list", pg.size())
    arguments.all_like(outs, "gather_list", data)
    whole = arguments.flat_like(data, data.size * pg.size())
    return arguments.run(
        async_op,
        lambda later: pg.ranks.gather(whole, data, root, later),
        gather_list,
        lambda: arguments.unpack(whole, outs),
    )


def check_output_list(found: Sequence[Any] | None, here: bool) -> None:
    """ValueError where the list that only the destination has is missing there, or given elsewhere."""
    if here and not found:
        raise ValueError("Argument ``gather_list`` must be specified on destination rank.")
    if found and not here:
        raise ValueError("Argument ``gather_list`` must NOT be specified on non-destination ranks.")


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
    out = arguments.array(tensor, "tensor")
    parts = arguments.arrays(scatter_list, "scatter_list") if scatter_list else []
    arguments.same_dtype(out, *parts)
    pg = arguments.member(group, "scatter")
    if pg is None:
        return None
    root = arguments.peer(pg, src, group_src, "src", default=0)
    whole = None
    if pg.rank() == root:
        if not parts:
            raise ValueError("Argument ``scatter_list`` must be specified on source rank.")
        arguments.one_per_rank(parts, "scatter_list", pg.size())
        arguments.all_like(parts, "scatter_list", out)
        whole = arguments.pack(parts)
    elif parts:
        raise ValueError("Argument ``scatter_list`` must NOT be specified on non-source ranks.")
    return arguments.run(
        async_op, lambda later: pg.ranks.scatter(out, whole, root, later), [tensor]
    )


# ---- everyone to everyone ------------------------------------------------------------------------


def all_to_all_single(
    output: Tensor,
    input: Tensor,
    output_split_sizes: Sequence[int] | None = None,
    input_split_sizes: Sequence[int] | None = None,
    group: Group = None,
    async_op: bool = False,
) -> Work | None:
    """Send part r of `input` to rank r; `output` collects what was received, in rank order.

    Args:
        output_split_sizes, input_split_sizes: rows (dim 0) of each part; None or empty: equal
            parts. All ranks give sizes, or none does.
    """
    if not isinstance(output, Tensor) or not isinstance(input, Tensor):
        arguments.array(output, "output"), arguments.array(input, "input")
    out, data = output._data, input._data
    arguments.same_dtype(out, data)
    pg = arguments.member(group, "all_to_all_single")
    if pg is None:
        return None
    outs = ins = None
    if output_split_sizes or input_split_sizes:
        outs = _counts(out, output_split_sizes, pg.size(), "output")
        ins = _counts(data, input_split_sizes, pg.size(), "input")
    return arguments.run(
        async_op, lambda later: pg.ranks.all_to_all(out, data, later, outs, ins), [output]
    )


def _counts(array: Any, sizes: Sequence[int] | None, n: int, name: str) -> list[int]:
    """Elements of each part, from its rows."""
    rows = array.shape[0] if array.ndim else 0
    if not sizes:
        if rows % n:
            raise ValueError(f"{name}: {rows} rows do not divide into {n} equal parts")
        sizes = [rows // n] * n
    if len(sizes) != n or sum(sizes) != rows or min(sizes) < 0:
        raise ValueError(
            f"{name}_split_sizes {list(sizes)} must be {n} sizes whose sum is the {rows} rows of "
            f"{name}"
        )
    width = array.size // rows if rows else 0
    return [int(size) * width for size in sizes]


def all_to_all(
    output_tensor_list: list[Tensor],
    input_tensor_list: list[Tensor],
    group: Group = None,
    async_op: bool = False,
) -> Work | None:
    """Send entry r of `input_tensor_list` to rank r; entry r of the outputs comes from rank r.

    Sizes may differ from entry to entry; what is sent and what is expected must agree.
    """
    outs = arguments.arrays(output_tensor_list, "output_tensor_list")
    parts = arguments.arrays(input_tensor_list, "input_tensor_list")
    arguments.same_dtype(*outs, *parts)
    pg = arguments.member(group, "all_to_all")
    if pg is None:
        return None
    arguments.one_per_rank(outs, "output_tensor_list", pg.size())
    arguments.one_per_rank(parts, "input_tensor_list", pg.size())
    mine = arguments.pack(parts)
    whole = arguments.flat_like(mine, sum(out.size for out in outs))
    outs_of, parts_of = [out.size for out in outs], [part.size for part in parts]
    return arguments.run(
        async_op,
        lambda later: pg.ranks.all_to_all(whole, mine, later, outs_of, parts_of),
        output_tensor_list,
        lambda: arguments.unpack(whole, outs),
    )


# ---- meeting -------------------------------------------------------------------------------------


def barrier(
    group: Group = None,
    async_op: bool = False,
    device_ids: Any = None,
    timeout: datetime.timedelta | None = None,
) -> Work | None:
    """Wait until every rank of the group has come here.

    Args:
        device_ids: accepted as in PyTorch; what is under way on a device is not waited for.
        timeout: for this call alone.
    """
    pg = arguments.member(group, "barrier")
    if pg is None:
        return None
    with pg.limit(timeout):
        return arguments.run(async_op, pg.ranks.barrier, [])


def monitored_barrier(
    group: Group = None,
    timeout: datetime.timedelta | float | None = None,
    wait_all_ranks: bool = False,
) -> None:
    """A barrier that names the ranks that do not come within `timeout` (default: the group's).

    Args:
        wait_all_ranks: accepted as in PyTorch; all ranks that are missing are named in any case.

    Raises:
        CollectiveTimeout: a TimeoutError and RuntimeError that names them.
    """
    pg = arguments.member(group, "monitored_barrier")
    if pg is None:
        return
    if isinstance(timeout, float):
        warnings.warn(
            f"Please specify timeout arg as a timedelta. Converting current value of {timeout} "
            "assuming it represents seconds",
            stacklevel=2,
        )
        timeout = datetime.timedelta(seconds=timeout)
    seconds = pg.timeout if timeout is None else seconds_of(timeout)
    pg.ranks.monitored_barrier(seconds)


__all__ = [
    "all_gather", "all_gather_coalesced", "all_gather_into_tensor", "all_gather_single",
    "all_to_all", "all_to_all_single", "barrier", "broadcast", "gather", "monitored_barrier",
    "scatter",
]
