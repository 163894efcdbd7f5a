"""Process groups: who may talk to whom, and the default group that everything uses otherwise.

The default group belongs to the process, or to the thread where ranks are threads (`run_local`).
"""

from __future__ import annotations

import contextvars
import datetime
import os
import warnings
from typing import Any

import collectives
from collectives import local

from . import backends, environment

NOT_INITIALIZED = (
    "Default process group has not been initialized, please make sure to call init_process_group."
)


class ProcessGroup:
    """Ranks that exchange tensors with each other. Made by `init_process_group`, `new_group`.

    Attributes:
        ranks: the transport, in which ranks are numbered from 0 within this group.
        members: the global rank of each of them.
        backend: "mpi" or "local".
        timeout: seconds that a call of this group may take; None for no limit.
        group_name, group_desc: for messages.
    """

    def __init__(
        self,
        ranks: collectives.Group,
        members: list[int],
        backend: str,
        timeout: float | None,
        name: str,
        desc: str,
    ) -> None:
        self.ranks = ranks
        self.members = members
        self.backend = backend
        self.timeout = timeout
        self.group_name = name
        self.group_desc = desc

    def rank(self) -> int:
        """This process's rank in this group."""
        return self.ranks.rank

    def size(self) -> int:
        """Number of ranks in this group."""
        return self.ranks.size

    def name(self) -> str:
        """The backend's name."""
        return self.backend

    def __repr__(self) -> str:
        return (
            f"ProcessGroup({self.group_name!r}, {self.backend}, rank {self.rank()} of "
            f"{self.size()}, global ranks {self.members})"
        )


class _Job:
    """What one rank has initialised.

    Args:
        inside: the transport that `run_local` gave this thread; None for a whole process.
    """

    def __init__(self, inside: collectives.Group | None) -> None:
        self.inside = inside
        self.world: ProcessGroup | None = None
        self.groups: list[ProcessGroup] = []
        self.named = 0
        self.variables: list[str] = []


_process = _Job(None)
_thread: contextvars.ContextVar[_Job | None] = contextvars.ContextVar("job", default=None)


def job() -> _Job:
    """The calling rank's: of the thread where ranks are threads, else of the process."""
    inside = local.current()
    if inside is None:
        return _process
    mine = _thread.get()
    if mine is None or mine.inside is not inside:
        mine = _Job(inside)
        _thread.set(mine)
    return mine


class _World(type):
    """Makes `WORLD` an attribute of the class whose value depends on who asks."""

    @property
    def WORLD(cls) -> ProcessGroup | None:
        """The default group; None before `init_process_group`."""
        return job().world


class GroupMember(metaclass=_World):
    """Holds the default group, and what `new_group` returns to ranks outside the new group."""

    NON_GROUP_MEMBER = -100


class group(metaclass=_World):
    """Holds the default group: `group.WORLD`."""


Group = ProcessGroup | int | None  # int: GroupMember.NON_GROUP_MEMBER


def default_group() -> ProcessGroup:
    """The default group; raises ValueError before `init_process_group`."""
    world = job().world
    if world is None:
        raise ValueError(NOT_INITIALIZED)
    return world


def resolve(chosen: Group) -> ProcessGroup | None:
    """The group that a `group=` argument means; None where this rank is not in it.

    Raises:
        ValueError: not initialised, or a group that was destroyed.
        TypeError: not a group.
    """
    mine = job()
    if mine.world is None:
        raise ValueError(NOT_INITIALIZED)
    if chosen is None or chosen is mine.world:
        return mine.world
    if chosen == GroupMember.NON_GROUP_MEMBER:
        return None
    if not isinstance(chosen, ProcessGroup):
        raise TypeError(f"group must be a ProcessGroup or None, got {chosen!r}")
    if chosen not in mine.groups:
        raise ValueError(f"Invalid process group specified: {chosen!r} was destroyed")
    return chosen


# ---- begin and end -------------------------------------------------------------------------------


def init_process_group(
    backend: str | None = None,
    init_method: str | None = None,
    timeout: datetime.timedelta | None = None,
    world_size: int = -1,
    rank: int = -1,
    store: Any = None,
    group_name: str = "",
    pg_options: Any = None,
    device_id: Any = None,
) -> None:
    """Connect this process with the other ranks of its job and make the default group.

    Without arguments it works under disttorch-run, mpirun and srun, and in a process of its own
    (world size 1; MPI is then neither imported nor initialised). MPI knows who the ranks are, so
    no rendezvous takes place: `init_method` is looked at only where that would be needed.

    Args:
        backend: None or "gloo" (an alias) for whichever backend connects this job; "mpi";
            "local", for one rank or inside `run_local`; also as "cpu:mpi,cuda:mpi".
        init_method: "env://", or any other in a job that MPI started.
        timeout: what one call on tensors may take (calls on objects and `new_group` have no limit
            yet). None, the default, sets none; with a limit every call is handed to another
            thread, which costs some 30 microseconds.
        world_size, rank: checked against what MPI says where they are given.
        device_id: the device that this rank uses; not needed by any backend here.

    Raises:
        ValueError: initialised already; `rank` or `world_size` contradict the job.
        NotImplementedError: the NCCL backend, a store, `pg_options`, a rendezvous without MPI.
        RuntimeError: there is no way to reach the other ranks; mpi4py is missing.
    """
    mine = job()
    if mine.world is not None:
        raise ValueError("trying to initialize the default process group twice!")
    if store is not None or pg_options is not None:
        raise NotImplementedError("init_process_group: store and pg_options are not built")
    seconds = _seconds(timeout)
    wanted, gloo = backends.choose(backend)
    _check_method(init_method, mine.inside)
    ranks = _connect(wanted, mine.inside)
    _check_place(ranks, world_size, rank)
    used = backends.Backend(_kind(ranks))
    if gloo and ranks.rank == 0:
        backends.warn_of_gloo(used)
    ranks.reset_ledger()
    members = list(range(ranks.size))
    mine.world = ProcessGroup(ranks, members, used, seconds, group_name or "0", "default_pg")
    mine.groups = [mine.world]
    mine.named = 0
    if mine.inside is None:  # threads share one environment, so it cannot tell their ranks
        mine.variables = environment.fill_in(ranks.rank, ranks.size)


def destroy_process_group(group: ProcessGroup | None = None) -> None:
    """Forget a group once everything under way in it has ended; None: all groups.

    Raises:
        ValueError: not initialised, or not a living group.
        Exception: what an asynchronous call raised that nobody waited for.
    """
    chosen = resolve(group)
    mine = job()
    if chosen is None:
        return
    ending = list(mine.groups) if chosen is mine.world else [chosen]
    mine.groups = [each for each in mine.groups if each not in ending]
    if chosen is mine.world:
        mine.world = None
        environment.take_away(mine.variables)
        mine.variables = []
    for each in ending:
        each.ranks.close()


def is_initialized() -> bool:
    """Whether the default group exists."""
    return job().world is not None


def _connect(wanted: str | None, inside: collectives.Group | None) -> collectives.Group:
    if inside is None:
        return collectives.init(wanted)
    if wanted == "mpi":
        raise RuntimeError("backend 'mpi' was asked for, but ranks are threads here (run_local)")
    return inside


def _kind(ranks: collectives.Group) -> str:
    return "local" if isinstance(ranks, local.LocalGroup) else "mpi"


def _check_method(method: str | None, inside: collectives.Group | None) -> None:
    if method in (None, "env://") or inside is not None or collectives.started_by_mpi():
        return
    raise NotImplementedError(
        f"init_method {method!r} needs a rendezvous without MPI, which is not built yet: start "
        "the ranks with 'disttorch-run --nproc-per-node N SCRIPT' or 'mpirun -n N python SCRIPT'"
    )


def _check_place(ranks: collectives.Group, world_size: int, rank: int) -> None:
    if world_size not in (-1, ranks.size):
        raise ValueError(
            f"world_size is {world_size} but this job has {ranks.size} rank(s): start it with "
            f"'disttorch-run --nproc-per-node {world_size} SCRIPT', or leave world_size away"
        )
    if rank not in (-1, ranks.rank):
        raise ValueError(
            f"rank is {rank} but this process is rank {ranks.rank} of {ranks.size}: leave rank "
            "away, the launcher numbers the ranks"
        )


def _seconds(timeout: datetime.timedelta | None) -> float | None:
    if timeout is None:
        return None
    if not isinstance(timeout, datetime.timedelta):
        raise TypeError(
            "Expected timeout argument to be of type datetime.timedelta, got "
            f"{type(timeout).__name__}"
        )
    return timeout.total_seconds()


# ---- groups --------------------------------------------------------------------------------------


def new_group(
    ranks: list[int] | None = None,
    timeout: datetime.timedelta | None = None,
    backend: str | None = None,
    pg_options: Any = None,
    use_local_synchronization: bool = False,
    group_desc: str | None = None,
    device_id: Any = None,
) -> ProcessGroup | int:
    """Make a group of some ranks. Every rank of the job must call this, in the same order.

    Args:
        ranks: global ranks, in any order; None: all.
        timeout: as in `init_process_group`; None: that of the default group.
        backend: None or the default group's.

    Returns:
        The group, or `GroupMember.NON_GROUP_MEMBER` on ranks outside it.
    """
    world = default_group()
    if pg_options is not None or use_local_synchronization:
        raise NotImplementedError(
            "new_group: pg_options and use_local_synchronization are not built; all ranks must "
            "call new_group"
        )
    wanted, _ = backends.choose(backend)
    if wanted not in (None, world.backend):
        raise ValueError(f"new_group: backend {wanted!r} differs from the job's {world.backend!r}")
    members = _checked_members(ranks, world)
    seconds = world.timeout if timeout is None else _seconds(timeout)
    part = world.ranks.split(0 if world.rank() in members else None, world.rank())
    mine = job()
    mine.named += 1
    if part is None:
        return GroupMember.NON_GROUP_MEMBER
    made = ProcessGroup(
        part, members, world.backend, seconds, str(mine.named), group_desc or "undefined"
    )
    mine.groups.append(made)
    return made


def _checked_members(ranks: list[int] | None, world: ProcessGroup) -> list[int]:
    if ranks is None:
        return list(world.members)
    members = sorted(ranks)
    if len(set(members)) < len(members):
        raise ValueError(f"new_group: ranks {list(ranks)} name a rank twice")
    if not members or members[0] < 0 or members[-1] >= world.size():
        raise ValueError(
            f"new_group: ranks must be some of 0 to {world.size() - 1}, got {list(ranks)}"
        )
    return members


def get_rank(group: Group = None) -> int:
    """This process's rank in the group (None: in the job); -1 outside the group."""
    chosen = resolve(group)
    return -1 if chosen is None else chosen.rank()


def get_world_size(group: Group = None) -> int:
    """Number of ranks in the group (None: in the job); -1 outside the group."""
    chosen = resolve(group)
    return -1 if chosen is None else chosen.size()


def get_backend(group: Group = None) -> backends.Backend:
    """The backend of the group: "mpi" or "local", also where "gloo" was asked for."""
    chosen = resolve(group)
    if chosen is None:
        raise ValueError("Invalid process group specified: this rank is not in it")
    return backends.Backend(chosen.backend)


def get_global_rank(group: ProcessGroup, group_rank: int) -> int:
    """The rank in the job of a group's rank."""
    chosen = resolve(group)
    if chosen is None or not 0 <= group_rank < chosen.size():
        raise ValueError(f"Group rank {group_rank} is not part of group {group}")
    return chosen.members[group_rank]


def get_group_rank(group: ProcessGroup, global_rank: int) -> int:
    """The rank in a group of a rank of the job."""
    chosen = resolve(group)
    if chosen is None or global_rank not in chosen.members:
        raise ValueError(f"Global rank {global_rank} is not part of group {group}")
    return chosen.members.index(global_rank)


def get_process_group_ranks(group: ProcessGroup | None) -> list[int]:
    """The ranks in the job of a group's members, by their rank in the group."""
    chosen = resolve(group)
    if chosen is None:
        raise ValueError("Invalid process group specified: this rank is not in it")
    return list(chosen.members)


def get_node_local_rank(fallback_rank: int | None = None) -> int:
    """This rank's number on its node, from LOCAL_RANK; ranks that are threads share one node.

    Raises:
        RuntimeError: LOCAL_RANK is not set and there is no `fallback_rank`.
    """
    inside = local.current()
    if inside is not None:
        return inside.rank
    if "LOCAL_RANK" in os.environ:
        return int(os.environ["LOCAL_RANK"])
    if fallback_rank is not None:
        return int(fallback_rank)
    raise RuntimeError(
        "LOCAL_RANK is not in the environment: call init_process_group first, start the job with "
        "disttorch-run, or pass fallback_rank"
    )


def warn_not_in_group(call: str) -> None:
    """What PyTorch says when a rank calls a collective of a group that it is not in."""
    warnings.warn(
        f"Running {call} on global rank {get_rank()} which does not belong to the given group.",
        stacklevel=4,
    )
