"""Process groups: who may talk to whom, and the default group that everything uses otherwise.

The default group belongs to the process, or to the thread where ranks are threads (`run_local`).
"""

from __future__ import annotations

import contextlib
import contextvars
import datetime
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import collectives
from collectives import local

from .group_methods import GroupMethods

NOT_INITIALIZED = (
    "Default process group has not been initialized, please make sure to call init_process_group."
)


class ProcessGroup(GroupMethods):
    """Ranks that exchange tensors with each other. Made by `init_process_group`, `new_group`.

    Attributes:
        ranks: the transport, in which ranks are numbered from 0 within this group.
        members: the global rank of each of them.
        backend: what carries calls on host memory: "mpi", "tcp" or "local".
        config: the backend of each device type, as "cpu:mpi,cuda:mpi".
        group_name, group_desc: for messages.
        bound_device_id: the device given to `init_process_group`; None without one.
        coalescing: the `_coalescing_manager` whose block is being run; None outside.
    """

    def __init__(
        self,
        ranks: collectives.Group,
        members: list[int],
        backend: str,
        name: str,
        desc: str,
        config: str = "",
        bound_device_id: Any = None,
    ) -> None:
        self.ranks = ranks
        self.members = members
        self.backend = backend
        self.config = config or f"cpu:{backend},cuda:{backend}"
        self.group_name = name
        self.group_desc = desc
        self.bound_device_id = bound_device_id
        self.coalescing: Any = None

    @property
    def timeout(self) -> float | None:
        """Seconds that a call may wait for other ranks; None for no limit."""
        return self.ranks.timeout

    @timeout.setter
    def timeout(self, seconds: float | None) -> None:
        self.ranks.timeout = seconds

    @contextlib.contextmanager
    def limit(self, timeout: datetime.timedelta | None) -> Iterator[None]:
        """Calls made inside have this timeout; None, or less than zero: the group's own."""
        if timeout is None or timeout < datetime.timedelta(0):
            yield
            return
        before, self.timeout = self.timeout, timeout.total_seconds()
        try:
            yield
        finally:
            self.timeout = before

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


class Job:
    """What one rank has initialised.

    Args:
        inside: the transport that `run_local` gave this thread; None for a whole process.

    Attributes:
        world: the default group.
        groups: all living groups that this rank is in.
        named: how many groups have been made; all ranks count alike.
        variables: what was added to the environment.
        store: the store that ranks met in; None where there was no need of one.
        alike: how many groups of the same ranks have been made by themselves.
        before_end: called before the job's groups are given up, such as waiting for a save under way.
    """

    def __init__(self, inside: collectives.Group | None) -> None:
        self.inside = inside
        self.world: ProcessGroup | None = None
        self.groups: list[ProcessGroup] = []
        self.named = 0
        self.variables: list[str] = []
        self.store: Any = None
        self.alike: Counter[str] = Counter()
        self.before_end: list[Callable[[], None]] = []


_process = Job(None)
_thread: contextvars.ContextVar[Job | None] = contextvars.ContextVar("job", default=None)


def job() -> Job:
    """The calling rank's: of the thread where ranks are threads, else of the process."""
    inside = local.current()
    if inside is None:
        return _process
    mine = _thread.get()
    if mine is None or mine.inside is not inside:
        mine = Job(inside)
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


def is_initialized() -> bool:
    """Whether the default group exists."""
    return job().world is not None


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
    if not isinstance(chosen, ProcessGroup):
        if chosen == GroupMember.NON_GROUP_MEMBER:
            return None
        raise TypeError(f"group must be a ProcessGroup or None, got {chosen!r}")
    if chosen not in mine.groups:
        raise ValueError(f"Invalid process group specified: {chosen!r} was destroyed")
    return chosen


def belonging(chosen: Group) -> ProcessGroup:
    """Like `resolve`, but ValueError where this rank is not in the group."""
    pg = resolve(chosen)
    if pg is None:
        raise ValueError("Invalid process group specified: this rank is not in it")
    return pg


def by_name(name: str) -> ProcessGroup:
    """The living group of this name that this rank is in.

    Raises:
        RuntimeError: there is none.
    """
    default_group()
    for pg in job().groups:
        if pg.group_name == name:
            return pg
    raise RuntimeError(f"Could not resolve the process group registered under the name {name!r}")


def seconds_of(timeout: datetime.timedelta) -> float:
    """A timeout in seconds; TypeError for what is no timedelta."""
    if not isinstance(timeout, datetime.timedelta):
        raise TypeError(
            "Expected timeout argument to be of type datetime.timedelta, got "
            f"{type(timeout).__name__}"
        )
    return timeout.total_seconds()


# ---- ranks ---------------------------------------------------------------------------------------


def get_rank(group: Group = None) -> int:
    """This process's rank in the group (None: in the job); -1 outside the group."""
    chosen = resolve(group)
    return -1 if chosen is None else chosen.rank()


def get_world_size(group: Group = None) -> int:
    """Number of ranks in the group (None: in the job); -1 outside the group."""
    chosen = resolve(group)
    return -1 if chosen is None else chosen.size()


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
    return list(belonging(group).members)


def warn_not_in_group(call: str) -> None:
    """What PyTorch says when a rank calls a collective of a group that it is not in."""
    warnings.warn(
        f"Running {call} on global rank {get_rank()} which does not belong to the given group.",
        stacklevel=4,
    )
