"""Checkpoints in a folder: each rank writes files of its own, rank 0 the manifest at the end.

Files have names that no other save uses. Until the manifest is replaced, in one step, the folder
is the checkpoint it was before; afterwards files that the manifest does not name are removed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import secrets
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ...autograd import no_grad
from ...futures import Future
from . import manifest, values
from .api import DamagedCheckpoint
from .boxes import slices_text
from .metadata import Metadata, StorageMeta
from .planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem, SavePlan, SavePlanner, WriteItem
from .storage import StorageReader, StorageWriter, WriteResult
from .tensor_files import Entry, FileOfBlocks, Stored, tensor_entry, write_file

INLINE = 1 << 16  # a value up to this size is kept in the manifest, where one can read it
_OURS = re.compile(r"rank-\d+-[0-9a-f]{12}(-\d+)?\.safetensors|\.manifest\.json\.[0-9a-f]+\.tmp")


def _path(checkpoint_id: str | os.PathLike) -> str:
    return os.fsdecode(checkpoint_id)


def sync_folder(folder: str) -> None:
    """Flush the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class FileSystemWriter(StorageWriter):
    """Writes a checkpoint into a folder.

    Args:
        path: the folder; made if it does not exist.
        single_file_per_rank: False: one file for each tensor.
        sync_files: flush files to the disk; False: a crash of the machine may lose the checkpoint.
        thread_count: how many files of a rank are written at a time; each is a file of its own.
        per_thread_copy_ahead: accepted as in PyTorch; one tensor at a time is copied from a GPU.
        overwrite: replace a checkpoint that the folder holds, with a warning; False: refuse.

    Raises:
        OSError: the disk is full, … The checkpoint that was there before stays as it is.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        single_file_per_rank: bool = True,
        sync_files: bool = True,
        thread_count: int = 1,
        per_thread_copy_ahead: int = 10_000_000,
        overwrite: bool = True,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        if thread_count < 1:
            raise ValueError(f"thread_count must be at least 1, got {thread_count}")
        self.path = _path(path)
        self.single_file_per_rank, self.sync_files = single_file_per_rank, sync_files
        self.thread_count, self.overwrite = thread_count, overwrite
        self.save_id = secrets.token_hex(6)
        self.rank = 0
        self.warns = True  # of a checkpoint that is replaced

    @property
    def checkpoint_id(self) -> str:
        """The folder."""
        return self.path

    def reset(self, checkpoint_id: str | os.PathLike | None = None) -> None:
        if checkpoint_id:
            self.path = _path(checkpoint_id)
        self.save_id = secrets.token_hex(6)

    def storage_meta(self) -> StorageMeta:
        return StorageMeta(checkpoint_id=self.path, save_id=self.save_id)

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self.rank = kwargs.get("rank") or 0
        self.is_coordinator = is_coordinator

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        os.makedirs(self.path, exist_ok=True)
        if os.path.exists(os.path.join(self.path, manifest.NAME)):
            if not self.overwrite:
                raise RuntimeError(f"Checkpoint already exists in {self.path} and overwrite=False.")
            if self.warns and self.is_coordinator:
                self._warn_of_replacing()
        return plan

    def _warn_of_replacing(self) -> None:
        warnings.warn(
            f"Detected an existing checkpoint in {self.path}, overwriting it; to be asked, pass "
            "storage_writer=FileSystemWriter(path, overwrite=False)",
            stacklevel=3,
        )

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        self.ranks = len(plans)
        return [
            dataclasses.replace(plan, storage_data=f"rank-{rank:05d}-{self.save_id}")
            for rank, plan in enumerate(plans)
        ]

    @no_grad()
    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        results: list[WriteResult] = []
        entries: list[tuple[WriteItem, Entry]] = []
        for item in plan.items:
            if item.tensor_data is None:
                data = planner.resolve_data(item)
                assert isinstance(data, io.BytesIO)
                content = data.getvalue()
                if len(content) <= INLINE and content[:1] == values.JSON:
                    results.append(WriteResult(item.index, len(content), content))
                    continue
                entries.append((item, _bytes_entry(item, content)))
            else:
                entries.append((item, _tensor_entry(item, planner)))
        groups = self._groups(entries)
        names = [
            f"{plan.storage_data}{f'-{i}' if len(groups) > 1 else ''}.safetensors"
            for i in range(len(groups))
        ]
        with ThreadPoolExecutor(self.thread_count) as pool:
            for part in pool.map(self._write_group, names, groups):
                results += part
        if groups and self.sync_files:
            sync_folder(self.path)
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def _groups(self, entries: list) -> list[list]:
        """Which entries share a file."""
        if not entries:
            return []
        if not self.single_file_per_rank:
            return [[pair] for pair in entries]
        groups: list[list] = [[] for _ in range(min(self.thread_count, len(entries)))]
        sizes = [0] * len(groups)
        for pair in sorted(entries, key=lambda pair: -pair[1].length):
            least = sizes.index(min(sizes))
            groups[least].append(pair)
            sizes[least] += pair[1].length
        return groups

    @no_grad()
    def _write_group(self, name: str, group: list[tuple[WriteItem, Entry]]) -> list[WriteResult]:
        about = {"format": "pt", "checkpoint": f"rank {self.rank}, see {manifest.NAME}"}
        path = os.path.join(self.path, name)
        size, header, stored = write_file(path, [e for _, e in group], about, self.sync_files)
        return [
            WriteResult(item.index, place.length, (place, size, header))
            for (item, _), place in zip(group, stored)
        ]

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        where: dict = {}
        files: dict = {}
        for result in (r for part in results for r in part):
            if isinstance(result.storage_data, bytes):
                where[result.index] = result.storage_data
            else:
                where[result.index], size, header = result.storage_data
                files[header.file] = size, header
        about = {"save_id": self.save_id, "ranks": len(results)}
        if self.sync_files:
            sync_folder(os.path.dirname(os.path.abspath(self.path)))  # the folder's own name
        manifest.write(self.path, manifest.compose(metadata, where, files, about))
        metadata.storage_data, metadata.storage_meta = where, self.storage_meta()
        remove_unnamed(self.path, files)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike) -> bool:
        return isinstance(checkpoint_id, os.PathLike) or "://" not in str(checkpoint_id)


def remove_unnamed(folder: str, named: Any) -> None:
    """Remove files of other saves: of those before, and of those that did not come to an end."""
    for name in os.listdir(folder):
        if name not in named and _OURS.fullmatch(name):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(folder, name))


def _tensor_entry(item: WriteItem, planner: SavePlanner) -> Entry:
    data = item.tensor_data
    assert data is not None
    name = item.index.fqn
    if tuple(data.chunk.sizes) != tuple(data.size):
        name += slices_text(data.chunk.offsets, data.chunk.sizes)
    dtype, shape = data.properties.dtype, tuple(data.chunk.sizes)

    def get() -> Any:
        tensor: Any = planner.resolve_data(item)
        tensor = tensor.detach()
        if tuple(tensor.shape) != shape or tensor.dtype is not dtype:
            raise RuntimeError(
                f"{name!r} was planned as {dtype} of shape {shape}, the planner gave {tensor.dtype} "
                f"of shape {tuple(tensor.shape)}"
            )
        return tensor

    return tensor_entry(name, dtype, shape, get)


def _bytes_entry(item: WriteItem, content: bytes) -> Entry:
    size = len(content)
    return Entry(item.index.fqn, None, (size,), size, lambda: [memoryview(content)])


class FileSystemReader(StorageReader):
    """Reads a checkpoint from a folder: only what is asked for, and checks every block it reads.

    Raises:
        DamagedCheckpoint: naming the file: torn, missing or altered.
    """

    def __init__(self, path: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        self.path = _path(path)
        self.metadata: Metadata | None = None

    @property
    def checkpoint_id(self) -> str:
        """The folder."""
        return self.path

    def reset(self, checkpoint_id: str | os.PathLike | None = None) -> None:
        if checkpoint_id:
            self.path = _path(checkpoint_id)
        self.metadata = None

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        self.metadata = manifest.metadata_of(manifest.read(self.path), self.path)
        return self.metadata

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        self.metadata = metadata

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    @no_grad()
    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        assert self.metadata is not None
        by_file: dict[str, list[tuple[ReadItem, Stored]]] = {}
        for item in plan.items:
            stored = self.metadata.storage_data[item.storage_index]
            if isinstance(stored, bytes):
                planner.load_bytes(item, io.BytesIO(stored))
            else:
                by_file.setdefault(stored.file, []).append((item, stored))
        for name, items in by_file.items():
            with FileOfBlocks(self.path, name) as file:
                for item, stored in sorted(items, key=lambda pair: pair[1].start):
                    self._read_item(file, item, stored, planner)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _read_item(
        self, file: FileOfBlocks, item: ReadItem, stored: Stored, planner: LoadPlanner
    ) -> None:
        assert self.metadata is not None
        fqn = item.storage_index.fqn
        if item.type == LoadItemType.BYTE_IO:
            data, start = file.read(stored, 0, stored.length, repr(fqn))
            planner.load_bytes(item, io.BytesIO(data[start : start + stored.length]))
            return
        saved: Any = self.metadata.state_dict_metadata[fqn]
        chunk = saved.chunks[item.storage_index.index]
        target = planner.resolve_tensor(item).detach()
        if tuple(target.shape) != tuple(item.lengths):
            raise RuntimeError(
                f"{fqn!r}: the planner gave a tensor of shape {tuple(target.shape)} for a box of "
                f"shape {tuple(item.lengths)}"
            )
        dtype = saved.properties.dtype
        file.read_box(stored, chunk.sizes, dtype, item.storage_offsets, target, repr(fqn))
        planner.commit_tensor(item, target)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike) -> bool:
        return FileSystemWriter.validate_checkpoint_id(checkpoint_id)


# ---------------------------------------------------------------- is it whole?
def verify(
    checkpoint_id: str | os.PathLike, contents: bool = True, part: tuple[int, int] = (0, 1)
) -> None:
    """Check a checkpoint against its manifest.

    Args:
        contents: read every file and compare all checksums; False: presence and sizes only.
        part: (r, n): only files r, r + n, …, for n ranks that share the work.

    Raises:
        DamagedCheckpoint: naming each file that is missing, torn or altered.
    """
    folder = _path(checkpoint_id)
    found = manifest.read(folder)
    inside: dict[str, list[tuple[str, Stored]]] = {}
    for index, stored in manifest.metadata_of(found, folder).storage_data.items():
        if isinstance(stored, Stored):
            inside.setdefault(stored.file, []).append((index.fqn, stored))
    wrong = []
    missing = set(inside) - set(found["files"])
    if missing:
        raise DamagedCheckpoint(f"{folder}: the manifest does not list its files {sorted(missing)}")
    for name in sorted(found["files"])[part[0] :: part[1]]:
        try:
            _verify_file(folder, name, found, inside.get(name, []) if contents else None)
        except DamagedCheckpoint as error:
            wrong.append(str(error))
    if wrong:
        raise DamagedCheckpoint("; ".join(wrong))


def _verify_file(
    folder: str, name: str, found: dict, contents: list[tuple[str, Stored]] | None
) -> None:
    about, block = found["files"][name], found["block"]
    with FileOfBlocks(folder, name) as file:
        size = os.fstat(file.file.fileno()).st_size
        if size != about["bytes"]:
            raise DamagedCheckpoint(
                f"{file.path} has {size} bytes, its checkpoint was saved with {about['bytes']}"
            )
        if contents is None:
            return
        file.check(Stored(name, 0, about["header"], tuple(about["checksums"]), block), "its header")
        for fqn, stored in contents:
            file.check(stored, repr(fqn))


def is_whole(checkpoint_id: str | os.PathLike) -> bool:
    """Whether a folder has a valid manifest, and all files in the sizes it names."""
    try:
        verify(checkpoint_id, contents=False)
    except DamagedCheckpoint:
        return False
    return True


__all__: Sequence[str] = ["FileSystemReader", "FileSystemWriter", "is_whole", "verify"]
