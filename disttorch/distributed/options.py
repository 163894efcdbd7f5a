"""The option objects that methods of `ProcessGroup` take, with PyTorch's names and defaults."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from typing import Any

from collectives import ReduceOp

UNSET = datetime.timedelta(milliseconds=-1)  # the group's own timeout


@dataclass
class _Options:
    timeout: datetime.timedelta = UNSET
    asyncOp: bool = True


@dataclass
class _Reducing(_Options):
    reduceOp: Any = ReduceOp.SUM


@dataclass
class _Rooted(_Options):
    rootRank: int = 0


class AllgatherOptions(_Options):
    """Of `ProcessGroup.allgather`."""


class AllToAllOptions(_Options):
    """Of `ProcessGroup.alltoall` and `alltoall_base`."""


class AllreduceOptions(_Reducing):
    """Of `ProcessGroup.allreduce`: `reduceOp`."""


class AllreduceCoalescedOptions(AllreduceOptions):
    """Of `ProcessGroup.allreduce_coalesced`: `reduceOp`."""


class ReduceScatterOptions(_Reducing):
    """Of `ProcessGroup.reduce_scatter`: `reduceOp`."""


class GatherOptions(_Rooted):
    """Of `ProcessGroup.gather`: `rootRank`, a rank of the group."""


class ScatterOptions(_Rooted):
    """Of `ProcessGroup.scatter`: `rootRank`, a rank of the group."""


@dataclass
class BroadcastOptions(_Rooted):
    """Of `ProcessGroup.broadcast`: `rootRank`, a rank of the group."""

    rootTensor: int = 0


@dataclass
class ReduceOptions(_Rooted):
    """Of `ProcessGroup.reduce`: `reduceOp` and `rootRank`, a rank of the group."""

    reduceOp: Any = ReduceOp.SUM
    rootTensor: int = 0


@dataclass
class BarrierOptions(_Options):
    """Of `ProcessGroup.barrier`. Devices are not needed: a barrier here is one of processes."""

    device_ids: list[int] = field(default_factory=list)
    device: Any = None


__all__ = [
    "AllToAllOptions", "AllgatherOptions", "AllreduceCoalescedOptions", "AllreduceOptions",
    "BarrierOptions", "BroadcastOptions", "GatherOptions", "ReduceOptions", "ReduceScatterOptions",
    "ScatterOptions",
]
