"""Arrays moved between ranks: one interface (`Group`), several ways to carry it out.

    import collectives
    group = collectives.world()            # all ranks of this job; one rank if nothing started us
    group.all_reduce(gradient)             # NumPy or CuPy array, in place
    work = group.all_reduce(other, collectives.ReduceOp.AVG, async_op=True)
    work.wait()

Backends: `local` (ranks are threads, or just one rank), `mpi`, and `tcp` for processes that no MPI
started. This package knows arrays and nothing of tensors. MPI is imported and initialised only by
`world` or `init`, and only when this process was started by MPI or asked for it.
"""

from __future__ import annotations

import os
from typing import Any

from . import local
from .buffers import PremulSum, ReduceOp
from .group import Group
from .local import run_ranks, single
from .settings import DEFAULT_TIMEOUT, set_deterministic
from .work import (
    CollectiveError,
    CollectiveTimeout,
    MismatchError,
    RankFailedError,
    Work,
)

__all__ = [
    "CollectiveError",
    "CollectiveTimeout",
    "Group",
    "MismatchError",
    "PremulSum",
    "RankFailedError",
    "ReduceOp",
    "Work",
    "finish",
    "init",
    "run_ranks",
    "set_deterministic",
    "single",
    "started_by_mpi",
    "world",
]

BACKENDS = ("mpi", "tcp", "local")

_world: Group | None = None


def started_by_mpi() -> bool:
    """Whether mpiexec, mpirun or srun (with a PMI) started this process; looks at variables only.

    SLURM_PROCID alone does not count: srun sets it for programs without MPI too.
    """
    if any(name in os.environ for name in ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")):
        return True
    return "SLURM_PROCID" in os.environ and any(
        name.startswith(("PMI_", "PMI2_", "PMIX_")) for name in os.environ
    )


def world() -> Group:
    """The group of all ranks: that of `run_ranks` in its threads, else what `init()` chooses."""
    inside = local.current()
    if inside is not None:
        return inside
    return _world if _world is not None else init()


def init(
    backend: str | None = None,
    init_method: str | None = None,
    *,
    rank: int = -1,
    world_size: int = -1,
    store: Any = None,
    timeout: float | None = DEFAULT_TIMEOUT,
) -> Group:
    """Choose how ranks are connected and return the group of all of them. Repeated calls agree.

    Args:
        backend: "mpi"; "tcp", processes that find each other by themselves; "local", a single
            rank; None: "mpi" in a process started by MPI, "tcp" where a rendezvous is given or
            the environment has RANK and a WORLD_SIZE above 1, "local" otherwise.
        init_method: of "tcp": "env://" (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT),
            "tcp://HOST:PORT" or "file:///PATH".
        rank, world_size: of "tcp", where the environment does not tell.
        store: of "tcp": where ranks find each other's addresses, in place of `init_method`.
        timeout: seconds that a call may wait for other ranks; None for no limit.

    Raises:
        ValueError: an unknown backend.
        RuntimeError: already initialised with another backend; more than one rank was asked for
            (WORLD_SIZE) but nothing says how to reach the others; mpi4py is missing.
    """
    global _world
    if backend not in (None, *BACKENDS):
        raise ValueError(f"unknown backend {backend!r}: use 'mpi', 'tcp', 'local' or None")
    if _world is not None:
        current = backend_of(_world)
        if backend not in (None, current):
            raise RuntimeError(f"already initialised with backend {current!r}, not {backend!r}")
        return _world
    chosen = backend or _guess(init_method, world_size, store)
    if chosen == "mpi":
        _world = _mpi_world(timeout)
    elif chosen == "tcp":
        from .tcp import world as tcp_world

        _world = tcp_world.connect(init_method, rank, world_size, store, timeout)
    else:
        _world = _single_world()
    return _world


def finish() -> None:
    """Leave the job, so that `init` may be called again with other ranks.

    The ranks of an MPI job stay connected as long as their processes live, and `init` finds them
    again. Collective for "tcp": every rank must call it.
    """
    global _world
    ending, _world = _world, None
    if ending is None:
        return
    ending.close()
    if backend_of(ending) == "tcp":
        from .tcp import world as tcp_world

        tcp_world.disconnect(ending)


def backend_of(group: Group) -> str:
    """ "mpi", "tcp" or "local"."""
    return getattr(group, "backend", "local")


def _guess(init_method: str | None, world_size: int, store: Any) -> str:
    if started_by_mpi():
        return "mpi"
    size = world_size if world_size > 0 else _environment_size()
    if size == 1:
        return "local"
    asked = store is not None or init_method not in (None, "env://")
    return "tcp" if asked or "RANK" in os.environ or world_size > 1 else "local"


def _environment_size() -> int:
    text = os.environ.get("WORLD_SIZE", "")
    return int(text) if text.isdigit() else 1 if text == "" else 0


def _single_world() -> Group:
    asked = os.environ.get("WORLD_SIZE", "1")
    if asked not in ("", "1"):
        raise RuntimeError(
            f"WORLD_SIZE is {asked} but nothing says which rank this is (RANK) and no MPI started "
            f"this process, so there is no way to reach the other ranks: start it with "
            f"'disttorch-run --nproc-per-node {asked} SCRIPT' or 'mpirun -n {asked} python SCRIPT', "
            "or unset WORLD_SIZE"
        )
    return single()


def _mpi_world(timeout: float | None) -> Group:
    try:
        from . import mpi
    except ImportError as error:
        raise RuntimeError(
            f"the mpi backend needs mpi4py and an MPI library ({error}): "
            "pip install mpi4py mpich, or mpi4py alone with a system MPI"
        ) from error
    return mpi.world(timeout)
