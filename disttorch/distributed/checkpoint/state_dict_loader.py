"""`load`: fill a state dict, whatever ranks and layout saved it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from typing import Any

from ..process_group import ProcessGroup, is_initialized
from .default_planner import DefaultLoadPlanner, EmptyStateDictLoadPlanner
from .metadata import Metadata
from .planner import LoadPlan, LoadPlanner
from .stateful import is_stateful
from .storage import StorageReader
from .storage_setup import storage_for
from .utils import NOT_DISTRIBUTED, Ranks, group_of


def load(
    state_dict: dict[str, Any],
    *,
    checkpoint_id: str | os.PathLike | None = None,
    storage_reader: StorageReader | None = None,
    planner: LoadPlanner | None = None,
    process_group: ProcessGroup | None = None,
    no_dist: bool = False,
) -> None:
    """Load into a state dict, in place. A call of all ranks of the group.

    Each rank reads the parts of tensors that its own need, and checks what it reads. Number of
    ranks and layout may differ from those that saved. Nothing in the file is run.

    Args:
        state_dict: its keys are what is loaded. Tensors are written into; other values are
            replaced; `Stateful` objects are asked for their state and then given the loaded one.
        checkpoint_id: the folder.
        storage_reader, planner: by default `FileSystemReader` and `DefaultLoadPlanner`.
        process_group: the ranks; None: all.
        no_dist: this rank alone.

    Raises:
        CheckpointException: on all ranks, if one failed: keys that the checkpoint lacks, other
            shapes, damaged files (`DamagedCheckpoint`, which names them).
    """
    if no_dist or not is_initialized():
        warnings.warn(NOT_DISTRIBUTED.format("load"), stacklevel=2)
    reader = storage_for(storage_reader, checkpoint_id, reader=True)
    load_stateful_on(Ranks(group_of(process_group, no_dist)), state_dict, reader, planner)


def load_stateful_on(
    ranks: Ranks, state_dict: dict, reader: StorageReader, planner: LoadPlanner | None = None
) -> None:
    """`load` with its communication over ``ranks``."""
    # Asking an object for its state may be a call between ranks: in the same order on all
    keys = sorted(state_dict)
    states = {
        key: state_dict[key].state_dict() if is_stateful(state_dict[key]) else state_dict[key]
        for key in keys
    }
    load_on(ranks, states, reader, planner)
    for key in keys:
        entry = state_dict[key]
        if is_stateful(entry):
            entry.load_state_dict(states[key])
        else:
            state_dict[key] = states[key]


def load_state_dict(
    state_dict: dict[str, Any],
    storage_reader: StorageReader,
    process_group: ProcessGroup | None = None,
    coordinator_rank: int = 0,
    no_dist: bool = False,
    planner: LoadPlanner | None = None,
) -> None:
    """`load` as it was called before PyTorch 2.2."""
    warnings.warn(
        "`load_state_dict` is deprecated and will be removed in future versions. "
        "Please use `load` instead.",
        FutureWarning,
        stacklevel=2,
    )
    storage_reader.reset()
    ranks = Ranks(group_of(process_group, no_dist), coordinator_rank)
    load_on(ranks, state_dict, storage_reader, planner)


def load_on(
    ranks: Ranks, state_dict: dict, reader: StorageReader, planner: LoadPlanner | None = None
) -> None:
    """The steps of `load` for a state dict without `Stateful` objects."""
    chosen = DefaultLoadPlanner() if planner is None else planner

    def local_plan() -> LoadPlan:
        metadata: Metadata = reader.read_metadata()
        chosen.set_up_planner(state_dict, metadata, ranks.is_coordinator)
        reader.set_up_storage_reader(metadata, ranks.is_coordinator, rank=ranks.rank)
        return reader.prepare_local_plan(chosen.create_local_plan())

    def global_plan(plans: list[LoadPlan]) -> list[LoadPlan]:
        return reader.prepare_global_plan(chosen.create_global_plan(plans))

    plan = ranks.reduce_scatter("plan", local_plan, global_plan)
    ranks.all_gather("read", lambda: reader.read_data(chosen.finish_plan(plan), chosen).wait())


def load_keys(
    keys: Iterable[str] | str | None = None,
    *,
    checkpoint_id: str | os.PathLike | None = None,
    storage_reader: StorageReader | None = None,
) -> dict[str, Any]:
    """What a checkpoint holds, as a nested dict, whole and on the CPU, read by this rank alone.

    Args:
        keys: flat keys, or beginnings of them ("model"); None: everything.
    """
    reader = storage_for(storage_reader, checkpoint_id, reader=True)
    chosen = {keys} if isinstance(keys, str) else keys
    found: dict[str, Any] = {}
    load_on(Ranks(None), found, reader, EmptyStateDictLoadPlanner(chosen))
    return found


__all__ = ["load", "load_keys", "load_state_dict"]
