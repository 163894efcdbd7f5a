"""A tensor that this process has boxes of, without any mesh or group: any layout can say so."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ...backend import dtypes
from ...tensor import Size, Tensor
from .metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from .planner import TensorWriteData, WriteItem, WriteItemType
from .planner_helpers import chunk_list, find_tensor_shard, is_here


class LocalShards:
    """Boxes of one global tensor. Can be saved, and loaded into, as part of a state dict.

    Tensor, pipeline or expert parallel layouts that have no DTensor can be written with it: all
    ranks together must cover the tensor; a box that several ranks have is written once.

    Args:
        shape: of the global tensor.
        shards: (offsets, tensor) of each box that is here.
        dtype: of the tensor; taken from the first box if None.

    Raises:
        ValueError: no boxes and no dtype.
    """

    requires_grad = False

    def __init__(
        self,
        shape: Sequence[int],
        shards: Sequence[tuple[Sequence[int], Tensor]],
        dtype: dtypes.dtype | None = None,
    ) -> None:
        if dtype is None:
            if not shards:
                raise ValueError("LocalShards without shards needs their dtype")
            dtype = shards[0][1].dtype
        self.shape, self.dtype = Size(shape), dtype
        self.shards = {tuple(offsets): tensor for offsets, tensor in shards}

    @classmethod
    def copy_of(cls, obj: Any) -> LocalShards:
        """Copies, on the CPU, of the boxes that this rank has of a sharded tensor."""
        from .staging import copy_state_dict

        if not is_here(obj):
            return cls(obj.shape, [], obj.dtype)
        boxes = [
            (chunk.offsets, find_tensor_shard(obj, MetadataIndex("", chunk.offsets)))
            for chunk in chunk_list(obj)
        ]
        return cls(obj.shape, [(o, copy_state_dict(t.detach())) for o, t in boxes], obj.dtype)

    def size(self, dim: int | None = None) -> Any:
        """The global shape, or one of its sizes."""
        return self.shape if dim is None else self.shape[dim]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [ChunkStorageMetadata(Size(o), Size(t.shape)) for o, t in self.shards.items()]

    def __create_write_items__(self, fqn: str, obj: Any) -> list[WriteItem]:
        return [
            WriteItem(
                MetadataIndex(fqn, chunk.offsets), WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk, TensorProperties(self.dtype), self.shape),
            )
            for chunk in self.__create_chunk_list__()
            if math.prod(chunk.sizes) or not math.prod(self.shape)
        ]  # fmt: skip

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        assert index.offset is not None
        return self.shards[tuple(index.offset)]

    def __repr__(self) -> str:
        return f"LocalShards({tuple(self.shape)}, {self.dtype}, at {list(self.shards)})"


__all__ = ["LocalShards"]
