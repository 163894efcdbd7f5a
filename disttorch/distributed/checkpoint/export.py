"""A checkpoint's tensors as plain safetensors files, for programs that know no checkpoints.

Read and written slab by slab: memory for one slab is enough, whatever the size of the model.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterator
from typing import Any

from ... import ops
from ...autograd import no_grad
from ...serialization.archive import atomic_file
from ...tensor import Size
from .boxes import overlap
from .filesystem import FileSystemReader, sync_folder
from .metadata import ChunkStorageMetadata, MetadataIndex, TensorStorageMetadata
from .tensor_files import SLAB, Entry, FileOfBlocks, bytes_of, write_file

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


def export_safetensors(
    checkpoint_id: str | os.PathLike,
    target: str | os.PathLike,
    *,
    prefix: str | None = "model",
    max_shard_size: int | str | None = None,
    metadata: dict[str, str] | None = None,
) -> list[str]:
    """Write a checkpoint's tensors into one safetensors file, or several with an index.

    Run it on one rank.

    Args:
        checkpoint_id: the folder of the checkpoint.
        target: the file (``model.safetensors``); the folder, if `max_shard_size` is given.
        prefix: only the tensors below this key, without it in their names; None: all.
        max_shard_size: bytes, or "5GB": begin a new file ``model-00001-of-00003.safetensors``
            rather than exceed it, and write ``model.safetensors.index.json``.
        metadata: more text for the files' headers.

    Returns:
        The paths written.

    Raises:
        DamagedCheckpoint: the checkpoint is torn, or a file missing or altered.
        ValueError: nothing to write.
    """
    reader = FileSystemReader(checkpoint_id)
    source = _Source(reader.path, reader.read_metadata())
    entries = source.entries("" if prefix is None else f"{prefix}.")
    if not entries:
        raise ValueError(f"{reader.path} has no tensors below the key {prefix!r}")
    about = {"format": "pt", **(metadata or {})}
    if max_shard_size is None:
        path = os.path.abspath(os.fspath(target))
        _write(path, entries, about)
        return [path]
    return _write_sharded(os.path.abspath(os.fspath(target)), entries, about, max_shard_size)


def _write(path: str, entries: list[Entry], about: dict[str, str]) -> None:
    temporary = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.tmp")
    write_file(temporary, entries, about)  # removes what it began, should it fail
    os.replace(temporary, path)
    sync_folder(os.path.dirname(path))


def _write_sharded(folder: str, entries: list[Entry], about: dict, limit: int | str) -> list[str]:
    os.makedirs(folder, exist_ok=True)
    most = _bytes(limit)
    groups: list[list[Entry]] = [[]]
    for entry in entries:
        if groups[-1] and sum(e.length for e in groups[-1]) + entry.length > most:
            groups.append([])
        groups[-1].append(entry)
    paths, weight_map = [], {}
    for number, group in enumerate(groups, start=1):
        name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        paths.append(os.path.join(folder, name))
        _write(paths[-1], group, about)
        weight_map.update({entry.name: name for entry in group})
    index = {
        "metadata": {"total_size": sum(e.length for e in entries)},
        "weight_map": dict(sorted(weight_map.items())),
    }
    paths.append(os.path.join(folder, "model.safetensors.index.json"))
    with atomic_file(paths[-1]) as file:
        file.write(json.dumps(index, indent=2).encode())
    return paths


def _bytes(size: int | str) -> int:
    if isinstance(size, int):
        return size
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]I?)?B?\s*", size.upper())
    if found is None:
        raise ValueError(f"max_shard_size must be bytes or like '5GB', '500MB', '2GiB', got {size!r}")
    return int(float(found[1]) * _UNITS[found[2] or ""])


class _Source:
    """A checkpoint's tensors, each as pieces of bytes in the order of its elements."""

    def __init__(self, folder: str, metadata: Any) -> None:
        self.folder, self.metadata = folder, metadata

    def entries(self, prefix: str) -> list[Entry]:
        return [
            Entry(
                key[len(prefix) :], saved.properties.dtype, tuple(saved.size),
                saved.size.numel() * saved.properties.dtype.itemsize,
                functools.partial(self._pieces, key, saved),
            )
            for key, saved in self.metadata.state_dict_metadata.items()
            if isinstance(saved, TensorStorageMetadata) and key.startswith(prefix)
        ]  # fmt: skip

    def _pieces(self, key: str, saved: TensorStorageMetadata) -> Iterator[memoryview]:
        if not saved.size.numel():
            return
        size = tuple(saved.size)
        row = saved.size.numel() // size[0] if size else 1
        step = max(1, SLAB // (row * saved.properties.dtype.itemsize)) if size else 1
        for start in range(0, size[0] if size else 1, step):
            offsets = [start, *[0] * (len(size) - 1)] if size else []
            sizes = [min(step, size[0] - start), *size[1:]] if size else []
            yield self._slab(key, saved, ChunkStorageMetadata(Size(offsets), Size(sizes)))

    @no_grad()
    def _slab(self, key: str, saved: TensorStorageMetadata, box: ChunkStorageMetadata) -> memoryview:
        slab = ops.empty(tuple(box.sizes), dtype=saved.properties.dtype)
        for chunk in saved.chunks:
            common = overlap(chunk, box)
            if common is None:
                continue
            in_chunk, in_slab, lengths = common
            part = slab
            for dim, (place, length) in enumerate(zip(in_slab, lengths)):
                part = part.narrow(dim, place, length)
            stored = self.metadata.storage_data[MetadataIndex(key, chunk.offsets)]
            with FileOfBlocks(self.folder, stored.file) as file:
                file.read_box(
                    stored, chunk.sizes, saved.properties.dtype, in_chunk, part, repr(key)
                )
        return bytes_of(slab)


__all__ = ["export_safetensors"]
