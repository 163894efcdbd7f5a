"""Messages between two ranks.

`src` and `dst` are ranks of the job also where a `group` is given; `group_src` and `group_dst` are
ranks of that group.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..autograd.graph import bump_version
from ..tensor import Tensor
from . import arguments
from .process_group import Group, ProcessGroup, get_global_rank, get_rank, resolve
from .work import Work


def isend(
    tensor: Tensor,
    dst: int | None = None,
    group: Group = None,
    tag: int = 0,
    group_dst: int | None = None,
) -> Work | None:
    """Start sending `tensor` to rank `dst`; it may not be changed before `wait` has returned."""
    data = arguments.array(tensor, "tensor")
    pg = arguments.member(group, "isend")
    if pg is None:
        return None
    peer = arguments.peer(pg, dst, group_dst, "dst")
    return _started(pg, Work([pg.ranks.isend(data, peer, tag)], outputs=[tensor]))


def irecv(
    tensor: Tensor,
    src: int | None = None,
    group: Group = None,
    tag: int = 0,
    group_src: int | None = None,
) -> Work | None:
    """Start receiving into `tensor`, of the size and dtype of what is sent, from rank `src`.

    `src` None takes a message from any rank of the group; `Work.source_rank` names it afterwards.
    """
    data = arguments.array(tensor, "tensor")
    pg = arguments.member(group, "irecv")
    if pg is None:
        return None
    peer = None
    if src is not None or group_src is not None:
        peer = arguments.peer(pg, src, group_src, "src")
    work = Work([pg.ranks.irecv(data, peer, tag)], outputs=[tensor])
    bump_version(tensor)
    return _started(pg, work)


def send(
    tensor: Tensor,
    dst: int | None = None,
    group: Group = None,
    tag: int = 0,
    group_dst: int | None = None,
) -> None:
    """Send `tensor` to rank `dst`; return when it may be changed again."""
    arguments.array(tensor, "tensor")
    pg = arguments.member(group, "send")
    if pg is None:
        return
    peer = arguments.peer(pg, dst, group_dst, "dst")
    arguments.not_self(pg, peer, "destination")
    pg.ranks.send(tensor._data, peer, tag)


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
    arguments.array(tensor, "tensor")
    pg = arguments.member(group, "recv")
    if pg is None:
        return -1
    peer = None
    if src is not None or group_src is not None:
        peer = arguments.peer(pg, src, group_src, "src")
        arguments.not_self(pg, peer, "source")
    source = pg.ranks.recv(tensor._data, peer, tag)
    bump_version(tensor)
    return pg.members[source]


def _started(pg: ProcessGroup, work: Work) -> Work:
    if pg.coalescing is not None:
        pg.coalescing.append(work)
    return work


# ---- many at once --------------------------------------------------------------------------------


class P2POp:
    """One message of `batch_isend_irecv`.

    Args:
        op: `isend` or `irecv`.
        tensor: what is sent, or received into.
        peer: the other rank, of the job.
        group_peer: the other rank, of `group`, in place of `peer`.
    """

    def __init__(
        self,
        op: Callable,
        tensor: Tensor,
        peer: int | None = None,
        group: Group = None,
        tag: int = 0,
        group_peer: int | None = None,
    ) -> None:
        if op not in (isend, irecv):
            raise ValueError(
                "Invalid ``op``. Expected ``op`` to be of type ``torch.distributed.isend`` or "
                "``torch.distributed.irecv``."
            )
        arguments.array(tensor, "tensor")
        pg = resolve(group)
        if pg is None:
            raise ValueError(f"P2POp: rank {get_rank()} is not in the given group")
        self.op, self.tensor, self.group, self.tag = op, tensor, pg, tag
        self.group_peer = arguments.peer(pg, peer, group_peer, "peer")
        self.peer = get_global_rank(pg, self.group_peer) if peer is None else peer

    def __repr__(self) -> str:
        me, other = get_rank(self.group), self.group_peer
        src, dst = (me, other) if self.op is isend else (other, me)
        return (
            f"P2POp({self.op.__name__} pg={self.group.group_name}, group_src={src}, "
            f"group_dst={dst},  {self.tensor.shape}, {self.tensor.dtype})"
        )


def batch_isend_irecv(p2p_op_list: list[P2POp]) -> list[Work]:
    """Start all of these messages; returns their handles, in order.

    Raises:
        ValueError: not a list of `P2POp`; messages of different groups.
    """
    if not isinstance(p2p_op_list, list) or not all(isinstance(op, P2POp) for op in p2p_op_list):
        raise ValueError(
            "Invalid ``p2p_op_list``. Each op is expected to to be of type "
            "``torch.distributed.P2POp``."
        )
    if any(op.group is not p2p_op_list[0].group for op in p2p_op_list):
        raise ValueError("All ops need to use the same group.")
    works: list[Any] = []
    for op in p2p_op_list:
        other = "group_dst" if op.op is isend else "group_src"
        works.append(op.op(op.tensor, group=op.group, tag=op.tag, **{other: op.group_peer}))
    return works


__all__ = ["P2POp", "batch_isend_irecv", "irecv", "isend", "recv", "send"]
