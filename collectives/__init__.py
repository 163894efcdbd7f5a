"""Arrays moved between ranks: one interface (`Group`), several ways to carry it out.

    import collectives
    group = collectives.world()            # all ranks of this job; one rank if nothing started us
    group.all_reduce(gradient)             # NumPy or CuPy array, in place
    work = group.all_reduce(other, collectives.ReduceOp.AVG, async_op=True)
    work.wait()

Backends: `local` (ranks are threads, or just one rank) and `mpi`. This package knows arrays and
nothing of tensors. MPI is imported and initialised only by `world` or `init`, and only when this
process was started by MPI or asked for it.
"""

from __future__ import annotations

import os

from . import local
from .buffers import ReduceOp
from .group import Group
from .local import run_ranks, single
from .work import CollectiveError, MismatchError, RankFailedError, Work

__all__ = [
    "CollectiveError",
    "Group",
    "MismatchError",
    "RankFailedError",
    "ReduceOp",
    "Work",
    "init",
    "run_ranks",
    "single",
    "started_by_mpi",
    "world",
]

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


def init(backend: str | None = None) -> Group:
    """Choose how ranks are connected and return the group of all of them. Repeated calls agree.

    Args:
        backend: "mpi"; "local", a single rank; None, which is "mpi" in a process started by MPI
            and "local" otherwise.

    Raises:
        ValueError: an unknown backend.
        RuntimeError: already initialised with another backend; more than one rank was asked for
            (WORLD_SIZE) but no MPI started this process; mpi4py is missing.
    """
    global _world
    if backend not in (None, "mpi", "local"):
        raise ValueError(f"unknown backend {backend!r}: use 'mpi', 'local' or None")
    chosen = backend or ("mpi" if started_by_mpi() else "local")
    if _world is not None:
        current = "local" if isinstance(_world, local.LocalGroup) else "mpi"
        if backend not in (None, current):
            raise RuntimeError(f"already initialised with backend {current!r}, not {backend!r}")
        return _world
    _world = _mpi_world() if chosen == "mpi" else _single_world()
    return _world


def _single_world() -> Group:
    asked = os.environ.get("WORLD_SIZE", "1")
    if asked not in ("", "1"):
        raise RuntimeError(
            f"WORLD_SIZE is {asked} but no MPI started this process, so there is no way to reach "
            f"the other ranks: start it with 'disttorch-run --nproc-per-node {asked} SCRIPT' or "
            f"'mpirun -n {asked} python SCRIPT', or unset WORLD_SIZE"
        )
    return single()


def _mpi_world() -> Group:
    try:
        from . import mpi
    except ImportError as error:
        raise RuntimeError(
            f"the mpi backend needs mpi4py and an MPI library ({error}): "
            "pip install mpi4py mpich, or mpi4py alone with a system MPI"
        ) from error
    return mpi.world()
