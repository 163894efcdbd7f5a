"""DistributedDataParallel among ranks of which some have run out of input: the shadow's part.

What a rank with input does in each iteration, and what one without does beside it:

    forward    all_reduce(1): I am here        all_reduce(0)                     [Join]
               all_reduce(1 if it reduces)     all_reduce(0)
               which rank has the buffers      the same, not a candidate
               broadcast of the buffers        the same
    backward   every bucket's reduction        the same, of zeros
"""

from __future__ import annotations

from typing import Any

import collectives

from ..backend import CPU
from .algorithms.join import JoinHook
from .process_group import ProcessGroup


class DDPJoinHook(JoinHook):
    """Shadows forward and backward; at the end all get the last rank's model.

    Args:
        ddp: the wrapper.
        divide_by_initial_world_size: whether ranks without input count in the mean.
    """

    def __init__(self, ddp: Any, divide_by_initial_world_size: bool) -> None:
        self.ddp = ddp
        ddp._divide_by_initial_world_size = divide_by_initial_world_size
        ddp._joined_once = True

    def main_hook(self) -> None:
        """Make the calls of one iteration of the ranks that still have input."""
        ddp = self.ddp
        reduces = agree_to_reduce(ddp.process_group, False)
        if not reduces:
            return
        if ddp._copies_buffers():
            ddp._sync_buffers(candidate=False)
        ddp.reducer.joining = True
        ddp.reducer.shadow()

    def post_hook(self, is_last_joiner: bool) -> None:
        """Copy the model of a rank that joined last to all others."""
        ddp = self.ddp
        root = common_rank(ddp.process_group, is_last_joiner)
        ddp._copy_model_from(root)
        ddp._stop_joining()


def agree_to_reduce(group: ProcessGroup, mine: bool) -> bool:
    """Whether any rank's next backward is reduced."""
    flag = CPU.array([mine])
    group.ranks.all_reduce(flag, collectives.ReduceOp.MAX)
    return bool(flag[0])


def common_rank(group: ProcessGroup, candidate: bool) -> int:
    """The highest of the group's ranks that are candidates; the same on all ranks."""
    rank = CPU.array([group.rank() if candidate else -1])
    group.ranks.all_reduce(rank, collectives.ReduceOp.MAX)
    if rank[0] < 0:
        raise RuntimeError("join: no rank is a candidate, so no one has the model to be copied")
    return int(rank[0])
