"""The planners that `save` and `load` use by default."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterable, Mapping
from typing import Any

from ... import ops
from ...tensor import Tensor
from . import values
from .boxes import problems
from .metadata import (
    STATE_DICT_TYPE,
    STORAGE_TYPES,
    BytesStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorStorageMetadata,
)
from .nested import Path, flatten_state_dict, set_element
from .planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    WriteItem,
    WriteItemType,
)
from .planner_helpers import (
    create_read_items,
    create_write_items,
    find_state_dict_object,
    give_memory,
    is_here,
    is_tensor,
)
from .stateful import RankLocal

SMALL = 1 << 14  # bytes of a replica that is not worth spreading


class DefaultSavePlanner(SavePlanner):
    """Saves nested state dicts flat, and what several ranks have by one of them.

    Args:
        flatten_state_dict: enter nested dicts and lists; False: each is one value.
        flatten_sharded_tensors, dedup_replicated_tensors, enable_plan_caching: accepted as in
            PyTorch; there are no nested sharded tensors here, replicas are always written once,
            and plans are made anew each time.
        dedup_save_to_lowest_rank: the lowest rank that has a replica writes it; by default
            replicas above 16 KiB are spread so that all ranks write about as many bytes.
    """

    def __init__(
        self,
        flatten_state_dict: bool = True,
        flatten_sharded_tensors: bool = True,
        dedup_replicated_tensors: bool | None = None,
        dedup_save_to_lowest_rank: bool = False,
        enable_plan_caching: bool = False,
    ) -> None:
        self.flatten_state_dict = flatten_state_dict
        self.flatten_sharded_tensors = flatten_sharded_tensors
        self.dedup_save_to_lowest_rank = dedup_save_to_lowest_rank
        self.mappings: dict[str, Path] = {}

    def set_up_planner(
        self,
        state_dict: STATE_DICT_TYPE,
        storage_meta: StorageMeta | None = None,
        is_coordinator: bool = False,
    ) -> None:
        if self.flatten_state_dict:
            state_dict, self.mappings = flatten_state_dict(state_dict)
        self.state_dict = state_dict
        self.is_coordinator = is_coordinator

    def create_local_plan(self) -> SavePlan:
        self.plan = create_default_local_save_plan(self.state_dict, self.is_coordinator)
        if self.flatten_state_dict:
            self.plan = dataclasses.replace(self.plan, planner_data=self.mappings)
        return self.plan

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        check_agreement(all_plans)
        deduped = dedup_save_plans(all_plans, self.dedup_save_to_lowest_rank)
        self.global_plan, self.metadata = create_default_global_save_plan(deduped)
        if self.flatten_state_dict:
            merged: dict[str, Path] = {}
            for plan in all_plans:  # in the order of the state dict
                for key, path in (plan.planner_data or {}).items():
                    merged.setdefault(key, path)
            self.metadata = dataclasses.replace(self.metadata, planner_data=merged)
        errors = [
            f"key:{key} {problem}"
            for key, saved in self.metadata.state_dict_metadata.items()
            if isinstance(saved, TensorStorageMetadata)
            for problem in problems(saved.size, saved.chunks)
        ]
        if errors:
            raise ValueError(f"Failed to validate global plan: {'; '.join(errors)[:500]}")
        return self.global_plan, self.metadata

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        self.plan = new_plan
        return new_plan

    def resolve_data(self, write_item: WriteItem) -> Tensor | io.BytesIO:
        return self.transform_object(write_item, self.lookup_object(write_item.index))

    def lookup_object(self, index: MetadataIndex) -> Any:
        """The value that an index means; for planners that extend this one."""
        return find_state_dict_object(self.state_dict, index)

    def transform_object(self, write_item: WriteItem, object: Any) -> Any:
        """The value as it is written; for planners that extend this one."""
        if write_item.type != WriteItemType.BYTE_IO:
            return object
        if isinstance(object, RankLocal):
            object = object.value
        try:
            return io.BytesIO(values.encode(object))
        except Exception as error:
            error.add_note(f"while saving the key {write_item.index.fqn!r}")
            raise


class DefaultLoadPlanner(LoadPlanner):
    """Loads into the tensors of a nested state dict, and puts loaded values into their places.

    Tensors on the meta device are replaced by ones with memory.

    Args:
        flatten_state_dict, flatten_sharded_tensors: as in `DefaultSavePlanner`.
        allow_partial_load: leave keys that the checkpoint lacks as they are.
    """

    def __init__(
        self,
        flatten_state_dict: bool = True,
        flatten_sharded_tensors: bool = True,
        allow_partial_load: bool = False,
    ) -> None:
        self.flatten_state_dict = flatten_state_dict
        self.flatten_sharded_tensors = flatten_sharded_tensors
        self.allow_partial_load = allow_partial_load
        self.original_state_dict: STATE_DICT_TYPE = {}
        self.mappings: dict[str, Path] = {}

    def set_up_planner(
        self,
        state_dict: STATE_DICT_TYPE,
        metadata: Metadata | None = None,
        is_coordinator: bool = False,
    ) -> None:
        self.original_state_dict = give_memory(state_dict)
        if self.flatten_state_dict:
            state_dict, self.mappings = flatten_state_dict(state_dict)
        self.state_dict = state_dict
        self.metadata = metadata
        self.is_coordinator = is_coordinator

    def create_local_plan(self) -> LoadPlan:
        assert self.metadata is not None
        return create_default_local_load_plan(
            self.state_dict, self.metadata, not self.allow_partial_load
        )

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        return global_plan

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        return central_plan

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        key, loaded = read_item.dest_index.fqn, values.decode(value.getvalue())
        present = self.state_dict[key]
        if isinstance(present, RankLocal):
            present.value, present.found = loaded, True
        elif self.flatten_state_dict:
            set_element(self.original_state_dict, self.mappings[key], loaded)
        else:
            self.state_dict[key] = loaded

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        return self.transform_tensor(read_item, self.lookup_tensor(read_item.dest_index))

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        pass

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        """The tensor that an index means; for planners that extend this one."""
        return find_state_dict_object(self.state_dict, index)

    def transform_tensor(self, read_item: ReadItem, tensor: Tensor) -> Tensor:
        """The part of it that an item fills; for planners that extend this one."""
        tensor = tensor.detach()
        for dim, (start, length) in enumerate(zip(read_item.dest_offsets, read_item.lengths)):
            if length != tensor.shape[dim]:
                tensor = tensor.narrow(dim, start, length)
        return tensor


class EmptyStateDictLoadPlanner(DefaultLoadPlanner):
    """Fills an empty dict with what the checkpoint holds, every tensor whole and on the CPU.

    Args:
        keys: load only these flat keys, and what lies below them; None: everything.
    """

    def __init__(self, keys: Iterable[str] | None = None, *args: Any, **kwargs: Any) -> None:
        self.keys = None if keys is None else set(keys)
        super().__init__(*args, **kwargs)

    def _included(self, key: str) -> bool:
        if self.keys is None or key in self.keys:
            return True
        parts = key.split(".")
        return any(".".join(parts[:n]) in self.keys for n in range(1, len(parts)))

    def set_up_planner(
        self,
        state_dict: STATE_DICT_TYPE,
        metadata: Metadata | None = None,
        is_coordinator: bool = False,
    ) -> None:
        assert metadata is not None and not state_dict
        paths: Mapping[str, Path] = metadata.planner_data or {}
        for key, saved in metadata.state_dict_metadata.items():
            if not self._included(key):
                continue
            value: Any = None
            if isinstance(saved, TensorStorageMetadata):
                value = ops.empty(tuple(saved.size), dtype=saved.properties.dtype)
            set_element(state_dict, paths.get(key, (key,)), value)
        super().set_up_planner(state_dict, metadata, is_coordinator)


# ---------------------------------------------------------------- plans
def create_default_local_save_plan(state_dict: Mapping, is_coordinator: bool) -> SavePlan:
    """All that this rank has of a flat state dict."""
    items: list[WriteItem] = []
    for fqn, obj in state_dict.items():
        if is_here(obj):
            items += create_write_items(fqn, obj)
    return SavePlan(items)


def check_agreement(all_plans: list[SavePlan]) -> None:
    """Refuse a key that is one thing on one rank and another on another.

    Raises:
        ValueError: naming the key and two ranks.
    """
    seen: dict[str, tuple[Any, int]] = {}
    for rank, plan in enumerate(all_plans):
        for item in plan.items:
            data = item.tensor_data
            what = None if data is None else (tuple(data.size), data.properties.dtype)
            before, first = seen.setdefault(item.index.fqn, (what, rank))
            if before != what:
                raise ValueError(
                    f"the key {item.index.fqn!r} is {_text(before)} on rank {first} and "
                    f"{_text(what)} on rank {rank}: save what differs between ranks under keys of "
                    "their own, or as a RankLocal"
                )


def _text(what: tuple | None) -> str:
    return "no tensor" if what is None else f"a tensor of shape {what[0]} and {what[1]}"


def dedup_save_plans(all_plans: list[SavePlan], to_lowest_rank: bool = False) -> list[SavePlan]:
    """Each item in one plan only: the largest first, to the rank that has least to write.

    Small ones all go to the lowest rank that has them: should ranks' values differ, as the buffers
    of normalisations under FSDP do, those that belong together come from one rank.
    """
    holders: dict[MetadataIndex, list[int]] = {}
    size_of: dict[MetadataIndex, int] = {}
    for rank, plan in enumerate(all_plans):
        for item in plan.items:
            holders.setdefault(item.index, []).append(rank)
            size_of[item.index] = item.chunk_bytes()
    load = [0] * len(all_plans)
    writer: dict[MetadataIndex, int] = {}
    for index, ranks in holders.items():
        if len(ranks) == 1:
            writer[index] = ranks[0]
            load[ranks[0]] += size_of[index]
    for index in sorted(holders, key=lambda i: -size_of[i]):
        if index not in writer:
            ranks = holders[index]
            lowest = to_lowest_rank or size_of[index] <= SMALL
            chosen = min(ranks) if lowest else min(ranks, key=lambda r: (load[r], r))
            writer[index] = chosen
            load[chosen] += size_of[index]
    return [
        dataclasses.replace(plan, items=[i for i in plan.items if writer[i.index] == rank])
        for rank, plan in enumerate(all_plans)
    ]


def create_default_global_save_plan(
    all_plans: list[SavePlan], rewrite_index_hints: bool = True
) -> tuple[list[SavePlan], Metadata]:
    """The plans with each part's place among its tensor's parts, and the checkpoint they make."""
    saved: dict[str, STORAGE_TYPES] = {}
    plans = []
    for plan in all_plans:
        items = []
        for item in plan.items:
            fqn, data = item.index.fqn, item.tensor_data
            if data is None:
                saved[fqn] = BytesStorageMetadata()
            else:
                tensor = saved.setdefault(fqn, TensorStorageMetadata(data.properties, data.size, []))
                assert isinstance(tensor, TensorStorageMetadata)
                if rewrite_index_hints:
                    index = dataclasses.replace(item.index, index=len(tensor.chunks))
                    item = dataclasses.replace(item, index=index)
                tensor.chunks.append(data.chunk)
            items.append(item)
        plans.append(dataclasses.replace(plan, items=items))
    return plans, Metadata(saved)


def create_default_local_load_plan(
    state_dict: Mapping, metadata: Metadata, strict: bool = True
) -> LoadPlan:
    """What this rank reads to fill a flat state dict.

    Raises:
        RuntimeError: the checkpoint lacks a key, unless not ``strict``.
        ValueError: a tensor was saved with another shape, or no tensor.
    """
    items: list[ReadItem] = []
    for fqn, obj in state_dict.items():
        saved = metadata.state_dict_metadata.get(fqn)
        if saved is None:
            if strict and not isinstance(obj, RankLocal):
                raise RuntimeError(f"Missing key in checkpoint state_dict: {fqn}.")
            continue
        if (
            isinstance(saved, TensorStorageMetadata)
            and is_tensor(obj)
            and tuple(saved.size) != tuple(obj.shape)
        ):
            raise ValueError(
                f"Size mismatch between saved {tuple(saved.size)} and current: {tuple(obj.shape)} "
                f"for {fqn}"
            )
        if is_here(obj):
            items += create_read_items(fqn, saved, obj)
    return LoadPlan(items)


def create_default_global_load_plan(all_plans: list[LoadPlan]) -> list[LoadPlan]:
    """Nothing needs to be agreed on: the plans as they are."""
    return all_plans


__all__ = [
    "DefaultLoadPlanner", "DefaultSavePlanner", "create_default_global_load_plan",
    "create_default_global_save_plan", "create_default_local_load_plan",
    "create_default_local_save_plan",
]  # fmt: skip
