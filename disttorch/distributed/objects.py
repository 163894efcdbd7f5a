"""Python objects between ranks.

Objects are pickled, and unpickling runs code: only between the trusted ranks of one job. They
travel through host memory, so `device` arguments are accepted and not needed.
"""

from __future__ import annotations

from typing import Any

from . import arguments
from .moves import check_output_list
from .process_group import Group


def broadcast_object_list(
    object_list: list,
    src: int | None = None,
    group: Group = None,
    device: Any = None,
    group_src: int | None = None,
) -> None:
    """Replace the entries of `object_list` on every rank by those of rank `src` (default 0).

    Raises:
        ValueError: a list of another length than on `src`; its entries are then unchanged.
    """
    pg = arguments.member(group, "broadcast_object_list")
    if pg is None:
        return
    root = arguments.peer(pg, src, group_src, "src", default=0)
    received = pg.ranks.broadcast_object(object_list, root)
    if len(received) != len(object_list):
        raise ValueError(
            f"broadcast_object_list: rank {root} of the group sent {len(received)} objects, this "
            f"rank's list has {len(object_list)} entries"
        )
    object_list[:] = received


def all_gather_object(object_list: list, obj: Any, group: Group = None) -> None:
    """Fill `object_list` (one entry per rank) with all ranks' objects, in rank order.

    Raises:
        ValueError: a list of another length than the group's size.
    """
    pg = arguments.member(group, "all_gather_object")
    if pg is None:
        return
    if len(object_list) != pg.size():
        raise ValueError(
            f"all_gather_object: object_list has {len(object_list)} entries, the group has "
            f"{pg.size()} ranks"
        )
    object_list[:] = pg.ranks.all_gather_object(obj)


def gather_object(
    obj: Any,
    object_gather_list: list | None = None,
    dst: int | None = None,
    group: Group = None,
    group_dst: int | None = None,
) -> None:
    """Fill `object_gather_list` on rank `dst` (default 0) with all ranks' objects, in rank order.

    Raises:
        ValueError: the list is missing on `dst`, given elsewhere, or not of the group's size.
    """
    pg = arguments.member(group, "gather_object")
    if pg is None:
        return
    root = arguments.peer(pg, dst, group_dst, "dst", default=0)
    here = pg.rank() == root
    check_output_list(object_gather_list, here)
    if here and len(object_gather_list or ()) != pg.size():
        raise ValueError(
            f"gather_object: object_gather_list has {len(object_gather_list or ())} entries, the "
            f"group has {pg.size()} ranks"
        )
    received = pg.ranks.gather_object(obj, root)
    if here:
        assert object_gather_list is not None
        object_gather_list[:] = received


def scatter_object_list(
    scatter_object_output_list: list,
    scatter_object_input_list: list | None = None,
    src: int | None = None,
    group: Group = None,
    group_src: int | None = None,
) -> None:
    """Put entry r of rank `src`'s input list (default 0) into the first entry of rank r's output.

    Raises:
        ValueError: no output list; on `src`, no input list or not one entry per rank.
    """
    pg = arguments.member(group, "scatter_object_list")
    if pg is None:
        return
    root = arguments.peer(pg, src, group_src, "src", default=0)
    if not isinstance(scatter_object_output_list, list) or not scatter_object_output_list:
        raise ValueError(
            "Expected argument scatter_object_output_list to be a list of size at least 1."
        )
    here = pg.rank() == root
    if here and scatter_object_input_list is None:
        raise ValueError("source rank must provide non-None scatter_object_input_list")
    values = scatter_object_input_list if here else None
    scatter_object_output_list[0] = pg.ranks.scatter_object(values, root)


def send_object_list(
    object_list: list,
    dst: int | None = None,
    group: Group = None,
    device: Any = None,
    group_dst: int | None = None,
    use_batch: bool = False,
) -> None:
    """Send a list of objects to rank `dst`. `use_batch` is accepted as in PyTorch: messages of one
    pair of ranks need no batch here."""
    pg = arguments.member(group, "send_object_list")
    if pg is None:
        return
    peer = arguments.peer(pg, dst, group_dst, "dst")
    arguments.not_self(pg, peer, "destination")
    pg.ranks.send_object(list(object_list), peer)


def recv_object_list(
    object_list: list,
    src: int | None = None,
    group: Group = None,
    device: Any = None,
    group_src: int | None = None,
    use_batch: bool = False,
) -> int:
    """Replace the entries of `object_list` by what rank `src` (None: any) sends.

    Returns:
        The sender's rank in the job; -1 on a rank outside the group.

    Raises:
        ValueError: a list of another length than what was sent; its entries are then unchanged.
    """
    pg = arguments.member(group, "recv_object_list")
    if pg is None:
        return -1
    peer = None
    if src is not None or group_src is not None:
        peer = arguments.peer(pg, src, group_src, "src")
        arguments.not_self(pg, peer, "source")
    received, source = pg.ranks.recv_object(peer)
    if len(received) != len(object_list):
        raise ValueError(
            f"recv_object_list: rank {pg.members[source]} sent {len(received)} objects, this "
            f"rank's list has {len(object_list)} entries"
        )
    object_list[:] = received
    return pg.members[source]


__all__ = [
    "all_gather_object", "broadcast_object_list", "gather_object", "recv_object_list",
    "scatter_object_list", "send_object_list",
]
