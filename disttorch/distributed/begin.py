"""The beginning and the end of a job: `init_process_group` and `destroy_process_group`."""

from __future__ import annotations

import atexit
import datetime
from typing import Any

import collectives

from ..backend import cupy_backend, gpu_runtime
from ..backend.devices import device as Device
from ..settings import follow_deterministic
from . import backends, environment
from .constants import default_pg_timeout
from .process_group import Job, ProcessGroup, default_group, job, resolve, seconds_of


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

    Without arguments it works under disttorch-run, mpirun, srun and torchrun's environment
    variables, and in a process of its own (world size 1). In a job that MPI started, MPI knows who
    the ranks are; elsewhere they meet through `init_method` or `store`. After
    `torch.use_deterministic_algorithms(True)` reductions follow one tree by rank order.

    Args:
        backend: None or "gloo" (an alias) for whichever backend connects this job: MPI in a job
            that MPI started, sockets and shared memory otherwise; "mpi"; "tcp"; "local", for one
            rank or inside `run_local`; also one per device type, as "cpu:mpi,cuda:nccl".
        init_method: "env://" (MASTER_ADDR, MASTER_PORT, RANK, WORLD_SIZE), "tcp://HOST:PORT" or
            "file://PATH", the latter two with `rank` and `world_size`.
        timeout: what one call may wait for other ranks; None: 30 minutes.
        world_size, rank: this process's place; checked against MPI's where MPI started the job.
        store: a `Store` that all ranks share, in place of `init_method`; needs both of the above.
        group_name: accepted as in PyTorch, which does not use it either.
        pg_options: accepted as in PyTorch; what they say concerns its own libraries.
        device_id: the device that this rank uses, kept as the group's `bound_device_id`. With
            "nccl" it becomes the current GPU; without it, that is the one which the script chose by
            `torch.cuda.set_device`, or where it chose none, the one of LOCAL_RANK.

    Raises:
        ValueError: initialised already; `rank` or `world_size` contradict the job; both
            `init_method` and `store`; a store without rank and world size.
        NotImplementedError: a backend that disttorch does not have.
        RuntimeError: there is no way to reach the other ranks; mpi4py is missing.
    """
    mine = job()
    if mine.world is not None:
        raise ValueError("trying to initialize the default process group twice!")
    _check_meeting(init_method, store, rank, world_size)
    limit = default_pg_timeout if timeout is None else timeout
    seconds = seconds_of(limit)
    wanted = backends.choose(backend)
    device = _device(device_id)
    ranks = _connect(wanted, mine.inside, init_method, rank, world_size, store, seconds, device)
    _check_place(ranks, world_size, rank)
    used = backends.Backend(collectives.backend_of(ranks))
    host = used if mine.inside is not None else collectives.backend_of(collectives.world())
    if wanted.gloo and ranks.rank == 0:
        backends.warn_of_gloo(used)
    ranks.reset_ledger()
    ranks.timeout = seconds
    follow_deterministic(collectives.set_deterministic)
    members = list(range(ranks.size))
    mine.world = ProcessGroup(
        ranks, members, used, "0", "default_pg", wanted.config(host), device
    )
    mine.groups = [mine.world]
    mine.named = 0
    mine.store = store
    if mine.inside is None:  # threads share one environment, so it cannot tell their ranks
        mine.variables = environment.fill_in(ranks.rank, ranks.size)
        atexit.register(_at_exit, mine)


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
    leaving = chosen is mine.world
    ending = list(mine.groups) if leaving else [chosen]
    if leaving:
        while mine.before_end:
            mine.before_end.pop()()
        _at_exit(mine)
        atexit.unregister(_at_exit)
    mine.groups = [each for each in mine.groups if each not in ending]
    if leaving:
        mine.world = mine.store = None
        environment.take_away(mine.variables)
        mine.variables = []
    for each in ending:
        each.ranks.close()
    if leaving and mine.inside is None:
        collectives.finish()


def default_store() -> Any:
    """The store given to `init_process_group`, or the one that the ranks of this job met in.

    Raises:
        RuntimeError: there was no need of one: MPI connected the ranks, or there is only one.
    """
    world = default_group()
    store = job().store or getattr(world.ranks, "store", None)
    if store is None:
        raise RuntimeError(
            f"this job's ranks met without a store (backend {world.backend!r}): make a TCPStore or "
            "FileStore of your own"
        )
    return store


def _at_exit(mine: Job) -> None:
    """What was asked for at the end of the job."""
    if mine.world is not None:
        from . import reports

        reports.print_if_asked(mine)


def _connect(
    wanted: backends.Choice,
    inside: collectives.Group | None,
    init_method: str | None,
    rank: int,
    world_size: int,
    store: Any,
    seconds: float,
    device: Device | None,
) -> collectives.Group:
    if inside is not None:
        if wanted.cpu not in (None, "local"):
            raise RuntimeError(
                f"backend {wanted.cpu!r} was asked for, but ranks are threads here (run_local)"
            )
        return inside
    ranks = collectives.init(
        wanted.cpu, init_method, rank=rank, world_size=world_size, store=store, timeout=seconds
    )
    if not wanted.nccl:
        return ranks
    from collectives import nccl  # only here: it looks for a GPU

    _take_gpu(device, environment.local_rank(ranks.rank, ranks.size))
    return nccl.connect(ranks)


def _check_meeting(method: str | None, store: Any, rank: int, world_size: int) -> None:
    if store is None:
        return
    if method is not None:
        raise ValueError("Cannot specify both init_method and store.")
    if world_size < 1 or rank < 0:
        raise ValueError(
            f"a store needs world_size and rank, got world_size={world_size} and rank={rank}"
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


def _take_gpu(device: Device | None, local_rank: int | None) -> None:
    """Make the GPU current that NCCL is to use here: the one asked for, else the one that the script has
    chosen by `torch.cuda.set_device`, else the one of this rank's number on its node."""
    count = cupy_backend.device_count()
    if device is not None and device.type == "cuda" and device.index is not None:
        gpu_runtime.set_device(device.index, chosen=True)
    elif count > 1 and local_rank is not None and not gpu_runtime.is_chosen():
        gpu_runtime.set_device(local_rank % count, chosen=True)


def _device(device_id: Any) -> Any:
    if device_id is None:
        return None
    return Device("cuda", device_id) if isinstance(device_id, int) else Device(device_id)
