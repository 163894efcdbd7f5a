"""Which storage a checkpoint's name means."""

from __future__ import annotations

import os
from typing import Any

from .filesystem import FileSystemReader, FileSystemWriter


def storage_for(storage: Any, checkpoint_id: str | os.PathLike | None, reader: bool) -> Any:
    """The storage given, set to the checkpoint; or one chosen by its name.

    Raises:
        RuntimeError: neither is given, or no storage has such names.
    """
    if storage is not None:
        if checkpoint_id is not None:
            storage.reset(checkpoint_id)
        return storage
    if not checkpoint_id:
        raise RuntimeError(
            "`checkpoint_id` must be specified if storage_reader/storage_writer is None."
        )
    kind = FileSystemReader if reader else FileSystemWriter
    if not kind.validate_checkpoint_id(checkpoint_id):
        raise RuntimeError(
            f"Cannot detect which StorageReader or StorageWriter to use for {checkpoint_id!r}. "
            "Please specify the storage_reader/storage_writer."
        )
    return kind(checkpoint_id)


__all__ = ["storage_for"]
