"""What is known about a checkpoint without reading its tensors: PyTorch's classes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ...backend import dtypes
from ...tensor import Size, Tensor, layout_type, strided
from .stateful import StatefulT


@dataclass
class ChunkStorageMetadata:
    """A box of a tensor: where it begins and how large it is, in each dimension."""

    offsets: Size
    sizes: Size


def _default_dtype() -> dtypes.dtype:
    from ... import get_default_dtype

    return get_default_dtype()


@dataclass
class TensorProperties:
    """What a tensor needs to be made again, but its shape."""

    dtype: dtypes.dtype = field(default_factory=_default_dtype)
    layout: layout_type = strided
    requires_grad: bool = False
    pin_memory: bool = False

    @staticmethod
    def create_from_tensor(tensor: Tensor) -> TensorProperties:
        """Those of a tensor."""
        return TensorProperties(tensor.dtype, requires_grad=tensor.requires_grad)


@dataclass
class TensorStorageMetadata:
    """A tensor: its properties, global shape, and the boxes it was saved in."""

    properties: TensorProperties
    size: Size
    chunks: list[ChunkStorageMetadata]


@dataclass
class BytesStorageMetadata:
    """Anything that is no tensor."""


STORAGE_TYPES = TensorStorageMetadata | BytesStorageMetadata
STATE_DICT_TYPE = dict[str, StatefulT | Any]


@dataclass
class StorageMeta:
    """What a storage tells planners about a save or load."""

    checkpoint_id: str | os.PathLike | None = None
    save_id: str | None = None
    load_id: str | None = None
    modules: list[str] = field(default_factory=list)


@dataclass
class Metadata:
    """A whole checkpoint.

    Attributes:
        state_dict_metadata: flat key -> what is saved under it.
        planner_data: flat key -> its path in the nested state dict.
        storage_data: MetadataIndex -> where the storage keeps it.
    """

    state_dict_metadata: dict[str, STORAGE_TYPES]
    planner_data: Any = None
    storage_data: Any = None
    storage_meta: StorageMeta | None = None
    version: str | None = None


@dataclass(frozen=True)
class MetadataIndex:
    """Which part of a state dict: a flat key and, for a part of a tensor, where it begins.

    Attributes:
        index: a guess at its place among the tensor's parts; no part of its identity.
    """

    fqn: str
    offset: Size | None = None
    index: int | None = field(hash=False, compare=False, default=None)

    def __init__(
        self, fqn: str, offset: Sequence[int] | None = None, index: int | None = None
    ) -> None:
        object.__setattr__(self, "fqn", fqn)
        object.__setattr__(self, "index", index)
        if offset is not None:
            object.__setattr__(self, "offset", Size(offset))


__all__ = [
    "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
    "TensorProperties", "TensorStorageMetadata",
]  # fmt: skip
