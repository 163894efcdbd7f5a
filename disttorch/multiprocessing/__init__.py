"""Python's ``multiprocessing`` with tensors that processes share.

All names of the standard module are here. A tensor sent to another process, through a queue, a pipe,
a pool or as an argument of a process, is moved to shared memory and only a handle is sent: both
processes see what either writes. ``spawn`` runs a function in several processes and raises what any
of them raises.
"""

from __future__ import annotations

import multiprocessing
import resource
from multiprocessing import *  # noqa: F403
from multiprocessing import pool  # noqa: F401

from . import reductions  # noqa: F401
from .reductions import init_reductions
from .spawn import (
    ProcessContext,
    ProcessException,
    ProcessExitedException,
    ProcessRaisedException,
    SpawnContext,
    spawn,
    start_processes,
)

_strategy = "file_descriptor"


def get_all_sharing_strategies() -> set[str]:
    """The names that ``set_sharing_strategy`` takes."""
    return {"file_descriptor", "file_system"}


def get_sharing_strategy() -> str:
    """The name given last to ``set_sharing_strategy``, "file_descriptor" at first."""
    return _strategy


def set_sharing_strategy(new_strategy: str) -> None:
    """Say how shared memory travels between processes.

    It always travels as descriptors of unnamed files, of which nothing can be left behind. Scripts
    choose "file_system" for want of descriptors, so that raises this process's limit of open files
    (and that of processes it starts) to the most the system allows.

    Raises:
        ValueError: for an unknown name.
    """
    global _strategy
    if new_strategy not in get_all_sharing_strategies():
        raise ValueError(f"sharing strategies are {sorted(get_all_sharing_strategies())}, not "
                         f"{new_strategy!r}")
    if new_strategy == "file_system":
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    _strategy = new_strategy


init_reductions()

__all__ = [
    *multiprocessing.__all__,  # type: ignore[attr-defined]
    "ProcessContext", "ProcessException", "ProcessExitedException", "ProcessRaisedException",
    "SpawnContext", "get_all_sharing_strategies", "get_sharing_strategy",
    "set_sharing_strategy", "spawn", "start_processes",
]
