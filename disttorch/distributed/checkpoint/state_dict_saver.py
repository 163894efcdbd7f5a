"""`save`, and `async_save`, which lets training go on while it writes."""

from __future__ import annotations

import os
import threading
import warnings
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from typing import Any

import collectives

from ..process_group import ProcessGroup, is_initialized, job
from .default_planner import DefaultSavePlanner
from .metadata import STATE_DICT_TYPE, Metadata
from .planner import SavePlan, SavePlanner
from .staging import AsyncStager, copy_state_dict
from .stateful import is_stateful
from .storage import StorageWriter, WriteResult
from .storage_setup import storage_for
from .utils import NOT_DISTRIBUTED, Ranks, background_group_of, group_of


class AsyncCheckpointerType(Enum):
    """What `async_save` writes in."""

    THREAD = "thread"
    PROCESS = "process"


@dataclass
class AsyncSaveResponse:
    """What `async_save` returns with a stager that copies in the background."""

    staging_completion: Future[None]
    upload_completion: Future[None]


def save(
    state_dict: STATE_DICT_TYPE,
    *,
    checkpoint_id: str | os.PathLike | None = None,
    storage_writer: StorageWriter | None = None,
    planner: SavePlanner | None = None,
    process_group: ProcessGroup | None = None,
    no_dist: bool = False,
    use_collectives: bool = True,
) -> Metadata:
    """Save a state dict of all ranks together. A call of all ranks of the group.

    Each rank writes what it has, in parallel; what several ranks have is written once. Only plans
    travel between ranks, no tensors. Other ranks may have other keys.

    Args:
        state_dict: tensors, DTensors, plain values, nested dicts and lists of them, and `Stateful`
            objects, whose state is taken.
        checkpoint_id: the folder.
        storage_writer, planner: by default `FileSystemWriter` and `DefaultSavePlanner`.
        process_group: the ranks; None: all.
        no_dist: this rank alone.
        use_collectives: False is not built: a manifest needs what all ranks wrote.

    Returns:
        What was saved.

    Raises:
        CheckpointException: on all ranks, if one failed. The folder is then what it was before.
    """
    _check_collectives(use_collectives)
    if no_dist or not is_initialized():
        warnings.warn(NOT_DISTRIBUTED.format("save"), stacklevel=2)
    writer = storage_for(storage_writer, checkpoint_id, reader=False)
    ranks = Ranks(group_of(process_group, no_dist))
    return save_on(ranks, states_of(state_dict), writer, planner)


def save_state_dict(
    state_dict: STATE_DICT_TYPE,
    storage_writer: StorageWriter,
    process_group: ProcessGroup | None = None,
    coordinator_rank: int = 0,
    no_dist: bool = False,
    planner: SavePlanner | None = None,
) -> Metadata:
    """`save` as it was called before PyTorch 2.2."""
    warnings.warn(
        "`save_state_dict` is deprecated and will be removed in future versions."
        "Please use `save` instead.",
        FutureWarning,
        stacklevel=2,
    )
    storage_writer.reset()
    ranks = Ranks(group_of(process_group, no_dist), coordinator_rank)
    return save_on(ranks, state_dict, storage_writer, planner)


def save_on(
    ranks: Ranks, state_dict: Mapping, writer: StorageWriter, planner: SavePlanner | None = None
) -> Metadata:
    """The steps of `save`, with their communication over ``ranks``."""
    chosen = DefaultSavePlanner() if planner is None else planner
    made: list[Metadata] = []

    def local_plan() -> SavePlan:
        chosen.set_up_planner(dict(state_dict), writer.storage_meta(), ranks.is_coordinator)
        writer.set_up_storage_writer(ranks.is_coordinator, rank=ranks.rank, use_collectives=True)
        return writer.prepare_local_plan(chosen.create_local_plan())

    def global_plan(plans: list[SavePlan]) -> list[SavePlan]:
        plans, metadata = chosen.create_global_plan(plans)
        made.append(metadata)
        return writer.prepare_global_plan(plans)

    plan = ranks.reduce_scatter("plan", local_plan, global_plan)

    def write() -> list[WriteResult]:
        return writer.write_data(chosen.finish_plan(plan), chosen).wait()

    def finish(results: list[list[WriteResult]]) -> Metadata:
        writer.finish(made[0], results)
        return made[0]

    return ranks.all_reduce("write", write, finish)


def states_of(state_dict: Mapping) -> dict[str, Any]:
    """The state dict with the states of its `Stateful` objects."""
    return {
        key: entry.state_dict() if is_stateful(entry) else entry
        for key, entry in state_dict.items()
    }


def _check_collectives(use_collectives: bool) -> None:
    if not use_collectives:
        raise NotImplementedError(
            "use_collectives=False is not built: the manifest, written last, names what all ranks "
            "wrote; leave it True"
        )


# ---------------------------------------------------------------- in the background
def async_save(
    state_dict: STATE_DICT_TYPE,
    *,
    checkpoint_id: str | os.PathLike | None = None,
    storage_writer: StorageWriter | None = None,
    planner: SavePlanner | None = None,
    process_group: ProcessGroup | None = None,
    async_checkpointer_type: AsyncCheckpointerType = AsyncCheckpointerType.THREAD,
    async_stager: AsyncStager | None = None,
    no_dist: bool = False,
    use_collectives: bool = True,
) -> Future | AsyncSaveResponse:
    """Like `save`, but in a thread, of a copy made before this returns. A call of all ranks.

    The ranks' threads talk over a group of their own, so training may use the group meanwhile. A
    second call waits until the first has written, so that there is at most one copy. The future
    must be done before the process group is destroyed.

    Args:
        async_checkpointer_type: THREAD; writing and checksums leave the interpreter free, PROCESS is
            not built.
        async_stager: makes the copy; by default at once, onto the CPU.
        Others as in `save`.

    Returns:
        A future of what `save` returns or raises; with a stager whose `stage` returns a future, an
        `AsyncSaveResponse`.
    """
    _check_collectives(use_collectives)
    if async_checkpointer_type is not AsyncCheckpointerType.THREAD:
        raise NotImplementedError("async_save in a process is not built: leave THREAD")
    writer = storage_for(storage_writer, checkpoint_id, reader=False)
    group = background_group_of(process_group, no_dist)
    worker = Worker.of(group)
    worker.wait()
    state = states_of(state_dict)
    staged = copy_state_dict(state) if async_stager is None else async_stager.stage(state)

    def work() -> Metadata:
        content = staged.result() if isinstance(staged, Future) else staged
        return save_on(Ranks(group), content, writer, planner)

    upload = worker.submit(work)
    if async_stager is not None and async_stager.should_synchronize_after_execute:
        async_stager.synchronize_staging()
    if not isinstance(staged, Future):
        return upload
    copied: Future[None] = Future()
    staged.add_done_callback(lambda done: _pass_on(done, copied))
    return AsyncSaveResponse(copied, upload)


def _pass_on(done: Future, to: Future) -> None:
    error = done.exception()
    to.set_result(None) if error is None else to.set_exception(error)


class Worker:
    """The thread in which one group's saves are written, one after the other."""

    _alone: Worker | None = None
    _of_group: weakref.WeakKeyDictionary[collectives.Group, Worker] = weakref.WeakKeyDictionary()
    _lock = threading.Lock()

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._last: Future | None = None

    @classmethod
    def of(cls, group: collectives.Group | None) -> Worker:
        """That of a group; None: of this process by itself."""
        with cls._lock:
            if group is None:
                cls._alone = cls._alone or cls()
                return cls._alone
            if group not in cls._of_group:
                cls._of_group[group] = made = cls()
                job().before_end.append(made.wait)
            return cls._of_group[group]

    def wait(self) -> None:
        """Wait for what is under way; its errors are its future's matter."""
        if self._last is not None and not self._last.done():
            self._last.exception()

    def submit(self, work: Callable[[], Any]) -> Future:
        """Do it in the thread."""
        self._last = self._pool.submit(work)
        return self._last


__all__ = ["AsyncCheckpointerType", "AsyncSaveResponse", "async_save", "save", "save_state_dict"]
