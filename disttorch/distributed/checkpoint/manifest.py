"""The manifest of a checkpoint: what it holds, where, and the checksums of everything.

It is written last, in one step; a folder without one is no checkpoint. ``manifest.json`` holds two
keys: the checksum of the text of "checkpoint", and "checkpoint":

    format, version    "disttorch.checkpoint", 1
    save_id, ranks     which save, and by how many ranks
    block              bytes of a tensor that one checksum is of
    files              name -> its size, and the length and checksums of its header
    entries            key -> a tensor: dtype, global shape, and its shards (offsets, shape, file,
                       bytes from and to, checksums); or a value as JSON; or where its bytes are.
                       "path" leads to it in the nested state dict where the key is not the path

Files are in the safetensors format: any of its readers can look into them.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from typing import Any

from ...backend import dtypes
from ...serialization.archive import atomic_file
from ...tensor import Size
from . import values
from .api import DamagedCheckpoint
from .boxes import problems
from .metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from .nested import MapKey, Path
from .tensor_files import BLOCK, Stored

NAME = "manifest.json"
FORMAT, VERSION = "disttorch.checkpoint", 1
_HEAD = re.compile(rb'\{\n"checksum": "([0-9a-f]{32})",\n"checkpoint": ')
_TAIL = b"\n}\n"


def compose(metadata: Metadata, where: dict[MetadataIndex, Any], files: dict, about: dict) -> dict:
    """The manifest of a checkpoint.

    Args:
        where: for each item the `Stored` bytes, or `values.encode`'s bytes to be kept in here.
        files: name -> (size, the header as `Stored`).
        about: more keys.
    """
    entries = {}
    paths = metadata.planner_data or {}
    everything = metadata.state_dict_metadata
    for key in [*(k for k in paths if k in everything), *(k for k in everything if k not in paths)]:
        saved = everything[key]
        if isinstance(saved, TensorStorageMetadata):
            entries[key] = _tensor(key, saved, where)
        else:
            kept = where[MetadataIndex(key)]
            entries[key] = _bytes(kept) if isinstance(kept, Stored) else {
                "kind": "value", "value": json.loads(kept[1:])
            }  # fmt: skip
        path = paths.get(key, (key,))
        if path != (key,):
            entries[key]["path"] = [
                {"key": int(item)} if isinstance(item, MapKey) else item for item in path
            ]
    return {
        "format": FORMAT, "version": VERSION, **about, "block": BLOCK,
        "files": {
            name: {"bytes": size, "header": head.length, "checksums": list(head.checksums)}
            for name, (size, head) in sorted(files.items())
        },
        "entries": entries,
    }  # fmt: skip


def _tensor(key: str, saved: TensorStorageMetadata, where: dict) -> dict:
    shards = [
        {"offsets": list(chunk.offsets), "shape": list(chunk.sizes),
         **_place(where[MetadataIndex(key, chunk.offsets)])}
        for chunk in saved.chunks
    ]  # fmt: skip
    result: dict[str, Any] = {
        "kind": "tensor", "dtype": saved.properties.dtype.name, "shape": list(saved.size),
        "shards": shards,
    }  # fmt: skip
    if saved.properties.requires_grad:
        result["requires_grad"] = True
    return result


def _place(stored: Stored) -> dict:
    return {
        "file": stored.file, "bytes": [stored.start, stored.start + stored.length],
        "checksums": list(stored.checksums),
    }  # fmt: skip


def _bytes(stored: Stored) -> dict:
    return {"kind": "bytes", **_place(stored)}


def write(folder: str, manifest: dict) -> None:
    """Put it into place: from now on the folder is this checkpoint."""
    body = _text(manifest).encode()
    with atomic_file(os.path.join(folder, NAME)) as file:
        file.write(b'{\n"checksum": "' + _digest(body).encode() + b'",\n"checkpoint": ' + body + _TAIL)


def _digest(body: bytes) -> str:
    return hashlib.blake2b(body, digest_size=16).hexdigest()


def _text(manifest: dict) -> str:
    """JSON with a line for each file and entry."""
    lines = []
    for key, value in manifest.items():
        text = json.dumps(value)
        if key in ("files", "entries") and value:
            inner = (f"{json.dumps(name)}: {json.dumps(one)}" for name, one in value.items())
            text = "{\n " + ",\n ".join(inner) + "}"
        lines.append(f"{json.dumps(key)}: {text}")
    return "{" + ",\n".join(lines) + "}"


def read(folder: str) -> dict:
    """The manifest of a folder.

    Raises:
        DamagedCheckpoint: there is none, or it is damaged, or of another format.
    """
    path = os.path.join(folder, NAME)
    try:
        with open(path, "rb") as file:
            text = file.read()
    except (FileNotFoundError, NotADirectoryError):
        raise DamagedCheckpoint(f"{folder} is no whole checkpoint: {_why(folder)}") from None
    head = _HEAD.match(text)
    if head is None or not text.endswith(_TAIL):
        raise DamagedCheckpoint(f"{path} is damaged: it is not in the form it was written in")
    body = text[head.end() : -len(_TAIL)]
    if _digest(body) != head.group(1).decode():
        raise DamagedCheckpoint(f"{path} is damaged: it does not have the checksum it was saved with")
    try:
        manifest = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise DamagedCheckpoint(f"{path} is damaged: {error}") from None
    if manifest.get("format") != FORMAT or manifest.get("version") != VERSION:
        raise DamagedCheckpoint(
            f"{path} has the format {manifest.get('format')!r} version {manifest.get('version')!r}, "
            f"this reader knows {FORMAT!r} version {VERSION}"
        )
    return manifest


def _why(folder: str) -> str:
    if not os.path.isdir(folder):
        return "there is no such folder"
    if os.path.exists(os.path.join(folder, ".metadata")):
        return (
            "it is in PyTorch's own format, whose reading runs code from the file; convert it with "
            "torch.distributed.checkpoint.format_utils.dcp_to_torch_save, then torch_save_to_dcp here"
        )
    return f"{NAME} is missing, its save did not come to an end or failed"


def metadata_of(manifest: dict, folder: str) -> Metadata:
    """A manifest as PyTorch's class; its `storage_data` is MetadataIndex -> `Stored` or bytes.

    Raises:
        DamagedCheckpoint: it says what no save writes: it was made by hand, perhaps to do harm.
    """
    try:
        return _metadata_of(manifest, folder)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedCheckpoint(
            f"{os.path.join(folder, NAME)} is damaged: {type(error).__name__}: {error}"
        ) from error


def _metadata_of(manifest: dict, folder: str) -> Metadata:
    saved: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
    paths: dict[str, Path] = {}
    where: dict[MetadataIndex, Any] = {}
    block = manifest["block"]
    for key, entry in manifest["entries"].items():
        paths[key] = tuple(
            MapKey(item["key"]) if isinstance(item, dict) else item
            for item in entry.get("path", [key])
        )
        if entry["kind"] == "tensor":
            saved[key] = _saved_tensor(key, entry)
            for shard in entry["shards"]:
                where[MetadataIndex(key, shard["offsets"])] = _stored(shard, block)
            continue
        saved[key] = BytesStorageMetadata()
        if entry["kind"] == "value":
            where[MetadataIndex(key)] = values.JSON + json.dumps(entry["value"]).encode()
        else:
            where[MetadataIndex(key)] = _stored(entry, block)
    meta = StorageMeta(checkpoint_id=folder, save_id=manifest.get("save_id"))
    return Metadata(saved, paths, where, meta, str(manifest["version"]))


def _saved_tensor(key: str, entry: dict) -> TensorStorageMetadata:
    dtype, size = dtypes.BY_NAME[entry["dtype"]], Size(entry["shape"])
    chunks = []
    for shard in entry["shards"]:
        chunk = ChunkStorageMetadata(Size(shard["offsets"]), Size(shard["shape"]))
        start, end = shard["bytes"]
        if math.prod(chunk.sizes) * dtype.itemsize != end - start:
            raise ValueError(f"{key!r}: {end - start} bytes for a shard of shape {chunk.sizes}")
        chunks.append(chunk)
    if wrong := problems(size, chunks):
        raise ValueError(f"{key!r} {wrong[0]}")
    properties = TensorProperties(dtype, requires_grad=entry.get("requires_grad", False))
    return TensorStorageMetadata(properties, size, chunks)


def _stored(entry: dict, block: int) -> Stored:
    start, end = entry["bytes"]
    if os.path.basename(entry["file"]) != entry["file"]:
        raise ValueError(f"the file name {entry['file']!r} leads out of the folder")
    if not 0 <= start <= end or len(entry["checksums"]) != -(-(end - start) // block):
        raise ValueError(f"{len(entry['checksums'])} checksums for the bytes {start} to {end}")
    return Stored(entry["file"], start, end - start, tuple(entry["checksums"]), block)


__all__ = ["NAME", "compose", "metadata_of", "read", "write"]
