"""``save`` and ``load`` in PyTorch's zip format, both ways.

The archive holds ``NAME/data.pkl`` (the object, without the tensors' bytes), ``NAME/data/0``,
``NAME/data/1``, … (the storages, raw, each beginning at a multiple of 64 bytes), ``NAME/byteorder``
and ``NAME/version``.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import secrets
import stat
import struct
import sys
import zipfile

from ..backend import dtypes, namespace_for, namespace_of
from ..backend.devices import device
from ..tensor import Tensor, wrap
from .pickling import PROTOCOL, TensorPickler, TensorUnpickler

_ALIGNMENT = 64
_CHUNK = 1 << 24
_ZIP64_FIELD = 20  # bytes that zipfile adds to the header of a record above 2 GiB
# How a file begins that PyTorch before 1.6 wrote
_OLD_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"


# ---------------------------------------------------------------- writing
def save(
    obj, f, pickle_module=None, pickle_protocol: int = PROTOCOL,
    _use_new_zipfile_serialization: bool = True, _disable_byteorder_record: bool = False,
) -> None:
    """Write tensors and plain containers to a file that PyTorch can read, too.

    A path is written atomically: the file appears, or is replaced, whole and on disk, or not at
    all. Tensors that share memory share it in the file.

    Args:
        obj: tensors, parameters, numbers, strings, bytes, None, and lists, tuples, dicts,
            OrderedDicts, sets, slices of them; dtypes, devices, sizes.
        f: a path, or a file object open for binary writing.
        pickle_protocol: 2, the only one that PyTorch's safe loading reads.

    Raises:
        pickle.PicklingError: naming the type, for any other object.
        ValueError: for another protocol or the old format.
    """
    if pickle_module not in (None, pickle):
        raise ValueError("save() has its own pickler; leave pickle_module out")
    if pickle_protocol != PROTOCOL:
        raise ValueError(f"pickle_protocol must be {PROTOCOL}, got {pickle_protocol}")
    if not _use_new_zipfile_serialization:
        raise ValueError("the format of PyTorch before 1.6 is not written; use the default")
    data = io.BytesIO()
    pickler = TensorPickler(data)
    pickler.dump(obj)
    if hasattr(f, "write"):
        _write_archive(f, "archive", data.getvalue(), pickler.storages)
        return
    path = os.fspath(f)
    path = os.fsdecode(path) if isinstance(path, bytes) else path
    stem = os.path.splitext(os.path.basename(path))[0]
    name = stem if stem and stem.isascii() else "archive"
    with atomic_file(path) as file:
        _write_archive(file, name, data.getvalue(), pickler.storages)


@contextlib.contextmanager
def atomic_file(path: str):
    """A file to write that takes the place of ``path`` when the block ends without an error.

    Written beside it, flushed to the disk, renamed over it, and the folder flushed, too: whenever
    the machine stops, the old or the new file is there, whole.

    Raises:
        FileNotFoundError: if the folder does not exist.
    """
    path = os.path.realpath(path)
    if os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode):
        with open(path, "wb") as file:  # a device or pipe cannot be replaced
            yield file
        return
    folder, base = os.path.split(path)
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"Parent directory {folder} does not exist.")
    temporary = os.path.join(folder, f".{base[:100]}.{secrets.token_hex(6)}.tmp")
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(descriptor, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    folder_descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(folder_descriptor)
    finally:
        os.close(folder_descriptor)


def _write_archive(file, name: str, data: bytes, storages) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        _write_record(archive, f"{name}/data.pkl", memoryview(data))
        _write_record(archive, f"{name}/.format_version", b"1")
        _write_record(archive, f"{name}/.storage_alignment", str(_ALIGNMENT).encode())
        _write_record(archive, f"{name}/byteorder", sys.byteorder.encode())
        for i, flat in enumerate(storages):
            content = namespace_of(flat).storage_bytes(flat)
            _write_record(archive, f"{name}/data/{i}", content)
        _write_record(archive, f"{name}/version", b"3\n")


def _write_record(archive, name: str, content) -> None:
    info = zipfile.ZipInfo(name)  # its default date makes equal contents equal files
    size = len(content)
    large = size > zipfile.ZIP64_LIMIT - (1 << 20)
    start = archive.start_dir + 30 + len(name) + (_ZIP64_FIELD if large else 0)
    padding = -start % _ALIGNMENT
    if padding:
        padding += _ALIGNMENT if padding < 4 else 0
        info.extra = struct.pack("<2sH", b"FB", padding - 4) + b"Z" * (padding - 4)
    with archive.open(info, "w", force_zip64=large) as record:
        for i in range(0, size, _CHUNK):
            record.write(content[i : i + _CHUNK])
    info.extra = b""  # padding belongs to the record, not to the table of contents


# ---------------------------------------------------------------- reading
def load(f, map_location=None, pickle_module=None, *, weights_only=True, mmap=None, **kwargs):
    """Read what ``save`` or PyTorch (1.6 or later) wrote. Never runs code from the file.

    Args:
        f: a path, or a seekable file object open for binary reading.
        map_location: where to put tensors: a device; a dict of locations; or a function
            ``(1-dim tensor over a storage, location) -> tensor or None``. By default where they
            were saved.
        weights_only: accepted for compatibility; loading is always restricted to tensors and
            plain containers.
        mmap: True is not built.

    Raises:
        pickle.UnpicklingError: if the file refers to anything else, naming it.
        RuntimeError: if it is truncated, damaged or no such file, or for a missing GPU.
    """
    if mmap:
        raise NotImplementedError("load(mmap=True) is not built; leave it out to read the file")
    if pickle_module not in (None, pickle):
        raise ValueError("load() has its own unpickler; leave pickle_module out")
    kwargs.pop("encoding", None)
    if kwargs:
        raise TypeError(f"load() got an unexpected keyword argument '{next(iter(kwargs))}'")
    if hasattr(f, "read"):
        return _load(f, str(getattr(f, "name", "the file")), map_location)
    path = os.fspath(f)
    with open(path, "rb") as file:
        return _load(file, str(f), map_location)


def _load(file, name, map_location):
    place = _Place(map_location)
    try:
        with zipfile.ZipFile(file) as archive:
            return _Reader(archive, name, place).load()
    except pickle.UnpicklingError as error:
        if place.error is not None:
            raise place.error from None
        raise pickle.UnpicklingError(f"{name}: {error}") from error
    except zipfile.BadZipFile as error:
        raise RuntimeError(_not_an_archive(file, name, error)) from error
    except _DAMAGE as error:
        raise RuntimeError(_damaged(name, error)) from error


# What the zip reader raises for an archive whose fields make no sense
_DAMAGE = (
    zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, OSError, ValueError, OverflowError,
    struct.error, NotImplementedError,
)


def _damaged(name, error) -> str:
    return f"{name} is truncated or damaged: {error or type(error).__name__}"


class _Place:
    """A user's ``map_location``; an error of their function is kept apart from the file's."""

    def __init__(self, wanted):
        self.wanted = wanted
        self.error: Exception | None = None

    def call(self, storage: Tensor, location: str) -> Tensor | None:
        try:
            result = self.wanted(storage, location)
            if result is not None and not isinstance(result, Tensor):
                raise TypeError(
                    f"map_location returned {type(result).__name__}; expected a tensor or None"
                )
        except Exception as error:
            self.error = error
            raise
        return result


def _not_an_archive(file, name, error) -> str:
    file.seek(0)
    start = file.read(len(_OLD_MAGIC))
    if start == _OLD_MAGIC:
        return (
            f"{name} has the format of PyTorch before 1.6; load it with torch.load and save it "
            "again with torch.save"
        )
    if not start:
        return f"{name} is empty"
    if start[:2] == b"PK":
        return f"{name} is truncated or damaged: {error}"
    return f"{name} is no file of torch.save: it begins with {start[:8]!r}"


class _Reader:
    """One archive being read: each storage once, where ``map_location`` wants it."""

    def __init__(self, archive: zipfile.ZipFile, name: str, place: _Place):
        self.archive, self.name, self.place = archive, name, place
        self.storages: dict = {}
        self.prefix = self._find_prefix()
        order = self._small_record("byteorder") or b"little"
        if order not in (b"little", b"big"):
            raise RuntimeError(f"{name} is damaged: its byte order is {order!r}")
        self.swap = order.decode() != sys.byteorder

    def _find_prefix(self) -> str:
        names = self.archive.namelist()
        found = [n for n in names if n.count("/") == 1 and n.endswith("/data.pkl")]
        if len(found) != 1:
            raise RuntimeError(
                f"{self.name} is a zip file but none of torch.save: it has {len(found)} records "
                "named */data.pkl"
            )
        prefix = found[0][: -len("data.pkl")]
        if prefix + "constants.pkl" in names:
            raise RuntimeError(
                f"{self.name} is a TorchScript archive; only files of torch.save can be loaded"
            )
        return prefix

    def _info(self, record: str) -> zipfile.ZipInfo:
        info = self.archive.getinfo(self.prefix + record)
        # An archive that states sizes beyond its own would have us allocate them
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise RuntimeError(f"{self.name}: its record {record} is compressed, as no .pt file's")
        if info.file_size > self.archive.start_dir:
            raise RuntimeError(
                f"{self.name} is truncated or damaged: its record {record} claims "
                f"{info.file_size} bytes, more than the file has"
            )
        return info

    def _small_record(self, record: str) -> bytes | None:
        if self.prefix + record not in self.archive.namelist():
            return None
        return self.archive.read(self._info(record))

    def load(self):
        data = self.archive.read(self._info("data.pkl"))
        return TensorUnpickler(io.BytesIO(data), self._storage).load()

    def _storage(self, dtype: dtypes.dtype, key: str, location, count: int):
        if (known := self.storages.get(key)) is not None:
            have, flat = known
            if have is not dtype or flat.size != count:
                raise RuntimeError(f"{self.name} is damaged: two forms of its storage {key}")
            return flat
        try:
            info = self._info(f"data/{key}")
        except KeyError:
            raise RuntimeError(
                f"{self.name} is truncated or damaged: it lacks the record data/{key}"
            ) from None
        if count * dtype.itemsize != info.file_size:
            raise RuntimeError(
                f"{self.name} is damaged: its record data/{key} has {info.file_size} bytes, "
                f"{count} elements of {dtype.name} need {count * dtype.itemsize}"
            )
        flat = self._read(info, dtype, location)
        self.storages[key] = dtype, flat
        return flat

    def _read(self, info, dtype, location):
        wanted = self.place.wanted
        if callable(wanted):
            target = device("cpu")
        else:
            named = wanted.get(location, location) if isinstance(wanted, dict) else wanted
            target = self._device(location if named is None else named)
        xp = namespace_for(target)
        try:
            with self.archive.open(info) as record:
                flat = xp.storage_from_file(record.readinto, info.file_size, dtype.np, self.swap)
        except _DAMAGE as error:
            raise RuntimeError(_damaged(self.name, error)) from error
        if not callable(wanted):
            return flat
        result = self.place.call(wrap(flat), location)
        return wrap(flat).to(self._device(location))._data if result is None else result._data

    def _device(self, where) -> device:
        try:
            target = device(where)
            namespace_for(target)
        except (RuntimeError, TypeError, ImportError) as error:
            raise RuntimeError(
                f"{self.name} holds tensors for {where!r}, which is not here ({error}); use "
                'load(..., map_location="cpu") to load them to the CPU'
            ) from error
        return target


__all__ = ["atomic_file", "load", "save"]
