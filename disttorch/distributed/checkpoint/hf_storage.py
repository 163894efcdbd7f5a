"""Plain safetensors files, as model hubs have them, as a checkpoint to load from.

    state = get_model_state_dict(sharded_model)
    dcp.load(state, storage_reader=HuggingFaceStorageReader("folder/of/the/model"))
    set_model_state_dict(sharded_model, state)

Each rank reads the parts of tensors that its own need. To write such files: `export_safetensors`.
"""

from __future__ import annotations

import json
import math
import os
from typing import Any

from ...backend import dtypes
from ...tensor import Size
from .api import DamagedCheckpoint
from .filesystem import FileSystemReader
from .metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from .tensor_files import DTYPE_NAMES, Stored

_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}
_LARGEST_HEADER = 100_000_000  # bytes; the format's own limit


class HuggingFaceStorageReader(FileSystemReader):
    """Reads the tensors of all ``*.safetensors`` files of a folder, or of one file.

    These files have no checksums; their sizes are checked.

    Raises:
        DamagedCheckpoint: naming a file that is none of the format, or truncated.
        FileNotFoundError: the folder has no such files.
    """

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        folder, names = self.path, []
        if os.path.isfile(folder):
            folder, name = os.path.split(folder)
            names = [name]
        elif os.path.isdir(folder):
            names = sorted(n for n in os.listdir(folder) if n.endswith(".safetensors"))
        if not names:
            raise FileNotFoundError(f"{self.path} has no files *.safetensors")
        self.folder = folder
        saved: dict[str, Any] = {}
        where: dict[MetadataIndex, Stored] = {}
        for name in names:
            for key, (tensor, stored) in _tensors_of(folder, name).items():
                if key in saved:
                    raise DamagedCheckpoint(f"{folder} has the tensor {key!r} in two of its files")
                saved[key] = tensor
                where[MetadataIndex(key, tensor.chunks[0].offsets)] = stored
        paths = {key: (key,) for key in saved}
        self.metadata = Metadata(saved, paths, where, StorageMeta(checkpoint_id=self.path))
        return self.metadata

    def read_data(self, plan: Any, planner: Any) -> Any:
        given, self.path = self.path, self.folder
        try:
            return super().read_data(plan, planner)
        finally:
            self.path = given


def _tensors_of(folder: str, name: str) -> dict[str, tuple[TensorStorageMetadata, Stored]]:
    path = os.path.join(folder, name)
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _LARGEST_HEADER):
            raise DamagedCheckpoint(f"{path} is truncated, or no safetensors file")
        try:
            table = json.loads(file.read(length))
            entries = {key: _entry(about) for key, about in table.items() if key != "__metadata__"}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedCheckpoint(f"{path} has a damaged header: {error}") from None
    found = {}
    for key, (dtype, shape, start, end) in entries.items():
        count = math.prod(shape) * dtype.itemsize
        if end - start != count or start < 0 or 8 + length + end > size:
            raise DamagedCheckpoint(
                f"{path}: the tensor {key!r} of shape {tuple(shape)} at bytes {start} to {end} does "
                f"not fit the file's {size} bytes; the file is truncated or damaged"
            )
        whole = ChunkStorageMetadata(Size([0] * len(shape)), Size(shape))
        found[key] = (
            TensorStorageMetadata(TensorProperties(dtype), Size(shape), [whole]),
            Stored(name, 8 + length + start, count, ()),
        )
    return found


def _entry(about: dict) -> tuple[dtypes.dtype, list[int], int, int]:
    start, end = about["data_offsets"]
    if about["dtype"] not in _DTYPES:
        raise ValueError(f"tensors here have no type like {about['dtype']}")
    return _DTYPES[about["dtype"]], about["shape"], start, end


__all__ = ["HuggingFaceStorageReader"]
