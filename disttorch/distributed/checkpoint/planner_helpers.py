"""State dicts' values as items of plans: plain tensors, sharded ones, anything else.

A sharded tensor is a DTensor, or any object that says itself which boxes of a global tensor this
rank has, with PyTorch's methods: ``__create_write_items__(fqn, obj) -> [WriteItem]``,
``__create_chunk_list__() -> [ChunkStorageMetadata]``, ``__get_tensor_shard__(index) -> tensor``.
"""

from __future__ import annotations

import math
from collections.abc import MutableMapping
from typing import Any

from ... import ops
from ...tensor import Size, Tensor
from .boxes import overlap
from .metadata import (
    STATE_DICT_TYPE,
    STORAGE_TYPES,
    BytesStorageMetadata,
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from .planner import LoadItemType, ReadItem, TensorWriteData, WriteItem, WriteItemType


def is_dtensor(obj: Any) -> bool:
    """Whether it is a tensor spread over a mesh."""
    return hasattr(obj, "device_mesh") and hasattr(obj, "placements") and hasattr(obj, "to_local")


def is_tensor(obj: Any) -> bool:
    """Whether it is a tensor, whole or in parts."""
    return isinstance(obj, Tensor) or is_dtensor(obj) or hasattr(obj, "__create_chunk_list__")


def is_here(obj: Any) -> bool:
    """Whether this rank has a part of it: a mesh may have other ranks only."""
    return not is_dtensor(obj) or obj.device_mesh.get_coordinate() is not None


def _chunk_of_dtensor(obj: Any) -> ChunkStorageMetadata:
    from ..tensor._utils import compute_local_shape_and_global_offset

    if any(placement.is_partial() for placement in obj.placements):
        raise ValueError(
            f"a DTensor with placements {tuple(obj.placements)} holds terms of a sum that was not "
            "formed: redistribute it before it is saved or loaded into"
        )
    sizes, offsets = compute_local_shape_and_global_offset(
        obj.shape, obj.device_mesh, obj.placements
    )
    return ChunkStorageMetadata(Size(offsets), Size(sizes))


def _whole(tensor: Tensor) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(Size([0] * tensor.dim()), Size(tensor.shape))


def chunk_list(obj: Any) -> list[ChunkStorageMetadata]:
    """The boxes of a tensor that this rank has.

    Raises:
        ValueError: it is no tensor.
    """
    if hasattr(obj, "__create_chunk_list__"):
        return obj.__create_chunk_list__()
    if is_dtensor(obj):
        return [_chunk_of_dtensor(obj)]
    if isinstance(obj, Tensor):
        return [_whole(obj)]
    raise ValueError(f"Unsupported Type, expecting a tensor or DTensor, but got {type(obj)}")


def create_write_items(fqn: str, obj: Any) -> list[WriteItem]:
    """What this rank could write of a value; nothing for an empty part of a tensor."""
    if hasattr(obj, "__create_write_items__"):
        return obj.__create_write_items__(fqn, obj)
    if not is_tensor(obj):
        return [WriteItem(MetadataIndex(fqn), WriteItemType.BYTE_IO)]
    kind = WriteItemType.SHARD if is_dtensor(obj) else WriteItemType.TENSOR
    size, properties = Size(obj.shape), TensorProperties(obj.dtype, requires_grad=obj.requires_grad)
    return [
        WriteItem(
            MetadataIndex(fqn, chunk.offsets), kind,
            tensor_data=TensorWriteData(chunk, properties, size),
        )
        for chunk in chunk_list(obj)
        if math.prod(chunk.sizes) or not math.prod(size)
    ]  # fmt: skip


def create_read_items(fqn: str, saved: STORAGE_TYPES, obj: Any) -> list[ReadItem]:
    """What this rank reads to fill its part of a value."""
    if isinstance(saved, BytesStorageMetadata):
        index = MetadataIndex(fqn)
        nowhere = Size([0])
        return [ReadItem(LoadItemType.BYTE_IO, index, nowhere, index, nowhere, nowhere)]
    try:
        chunks = chunk_list(obj)
    except ValueError as error:
        if is_tensor(obj):
            raise
        raise ValueError(
            f"Invalid checkpoint metadata for {fqn}: it was saved as a tensor of shape "
            f"{tuple(saved.size)}, the state dict to load into has a {type(obj).__name__} there"
        ) from error
    return create_read_items_for_chunk_list(fqn, saved, chunks)


def create_read_items_for_chunk_list(
    fqn: str, checkpoint_md: TensorStorageMetadata, local_chunks: list[ChunkStorageMetadata]
) -> list[ReadItem]:
    """The parts of saved boxes that make up the wanted ones, whatever the two layouts are."""
    items = []
    for place, wanted in enumerate(local_chunks):
        for number, saved in enumerate(checkpoint_md.chunks):
            common = overlap(saved, wanted)
            if common is None:
                continue
            in_saved, in_wanted, lengths = map(Size, common)
            items.append(
                ReadItem(
                    LoadItemType.TENSOR, MetadataIndex(fqn, wanted.offsets, place), in_wanted,
                    MetadataIndex(fqn, saved.offsets, number), in_saved, lengths,
                )
            )  # fmt: skip
    return items


def find_tensor_shard(obj: Any, index: MetadataIndex) -> Tensor:
    """The part of a tensor that begins at ``index.offset``, as this rank holds it.

    Raises:
        ValueError: this rank has no such part.
    """
    if hasattr(obj, "__get_tensor_shard__"):
        return obj.__get_tensor_shard__(index)
    if is_dtensor(obj):
        return local_of(obj)
    if index.offset is not None and any(index.offset):
        raise ValueError(
            f"FQN: '{index.fqn}' is not sharded, can't find by offset: {tuple(index.offset)}"
        )
    return obj


def give_memory(value: Any) -> Any:
    """Replace tensors without memory (device "meta") in a nested dict or list; returns the value."""
    if isinstance(value, MutableMapping):
        for key, entry in value.items():
            value[key] = give_memory(entry)
    elif type(value) is list:
        value[:] = [give_memory(entry) for entry in value]
    elif is_dtensor(value) and value.is_meta:
        local = ops.empty(tuple(value.to_local().shape), dtype=value.dtype)
        return type(value).from_local(
            local, value.device_mesh, value.placements, shape=value.shape, stride=value.stride()
        )
    elif isinstance(value, Tensor) and value.is_meta:
        return ops.empty(tuple(value.shape), dtype=value.dtype)
    return value


def local_of(obj: Any) -> Tensor:
    """The memory of a DTensor's local part."""
    return obj.detach().to_local()


def find_state_dict_object(state_dict: STATE_DICT_TYPE, index: MetadataIndex) -> Any:
    """The value, or part of a tensor, that an index means.

    Raises:
        ValueError: there is none.
    """
    if index.fqn not in state_dict:
        raise ValueError(f"Could not find FQN: '{index.fqn}'")
    obj = state_dict[index.fqn]
    if is_tensor(obj):
        return find_tensor_shard(obj, index)
    if index.offset is not None:
        raise ValueError(
            f"FQN: '{index.fqn}' is no tensor, can't find by offset: {tuple(index.offset)}"
        )
    return obj


__all__ = [
    "chunk_list", "create_read_items", "create_read_items_for_chunk_list", "create_write_items",
    "find_state_dict_object", "is_dtensor", "is_tensor",
]  # fmt: skip
