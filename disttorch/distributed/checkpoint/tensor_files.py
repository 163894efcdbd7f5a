"""Files of tensors in the safetensors format, written and read piece by piece.

    8 bytes  length of the header, little-endian
    header   JSON: name -> {"dtype": "F32", "shape": [..], "data_offsets": [from, to]}, then spaces
    data     the tensors' bytes, one after the other, row by row

Nothing is held in memory but the piece at hand. While bytes pass, each block of ``BLOCK`` of a
tensor gets a checksum (CRC-32: several times as fast as a cryptographic one, and damage is no
adversary), so that a reader of a part checks what it reads.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from ... import ops
from ...backend import CPU, dtypes, namespace_of
from ...tensor import Tensor
from .api import DamagedCheckpoint

BLOCK = 1 << 20
SLAB = 1 << 22  # bytes of a tensor that are held at a time: they stay in the cache
_ALIGNMENT = 64  # of the data: readers that map the file into memory like it

DTYPE_NAMES = {
    dtypes.float64: "F64", dtypes.float32: "F32", dtypes.float16: "F16", dtypes.bfloat16: "BF16",
    dtypes.int64: "I64", dtypes.int32: "I32", dtypes.int16: "I16", dtypes.int8: "I8",
    dtypes.uint8: "U8", dtypes.bool: "BOOL", dtypes.complex64: "C64",
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """Where bytes lie: a file, the first byte, how many, and the checksum of each block, if any."""

    file: str
    start: int
    length: int
    checksums: tuple[str, ...]
    block: int = BLOCK


@dataclass
class Entry:
    """A tensor to be written.

    Attributes:
        dtype: None for plain bytes.
        pieces: gives the bytes when they are needed: buffers that make up ``length`` bytes.
    """

    name: str
    dtype: dtypes.dtype | None
    shape: tuple[int, ...]
    length: int
    pieces: Callable[[], Iterable[memoryview]]


def checksum(data) -> str:
    """The checksum of a block."""
    return f"{zlib.crc32(data):08x}"


def header_of(entries: Sequence[Entry], about: dict[str, str]) -> bytes:
    """The length and the header of a file of these tensors.

    Raises:
        ValueError: two tensors of one name.
    """
    table: dict = {"__metadata__": about}
    start = 0
    for entry in entries:
        if entry.name in table:
            raise ValueError(f"two tensors of a file have the name {entry.name!r}")
        shape, name = list(entry.shape), "U8"
        if entry.dtype is dtypes.complex128:  # the format has no name for it
            shape, name = [*shape, 2], "F64"
        elif entry.dtype is not None:
            name = DTYPE_NAMES[entry.dtype]
        table[entry.name] = {
            "dtype": name, "shape": shape, "data_offsets": [start, start + entry.length],
        }  # fmt: skip
        start += entry.length
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


class _BlockSums:
    """Checksums of the blocks of a stream."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self._crc = self._fill = 0

    def split(self, data: memoryview) -> Iterator[memoryview]:
        """The bytes in pieces that end with a block, each counted."""
        while data.nbytes:
            part = data[: BLOCK - self._fill]
            self._crc = zlib.crc32(part, self._crc)
            self._fill += part.nbytes
            data = data[part.nbytes :]
            if self._fill == BLOCK:
                self._close()
            yield part

    def _close(self) -> None:
        self.done.append(f"{self._crc:08x}")
        self._crc = self._fill = 0

    def finish(self) -> tuple[str, ...]:
        if self._fill:
            self._close()
        return tuple(self.done)


def write_file(
    path: str, entries: Sequence[Entry], about: dict[str, str], sync: bool = True
) -> tuple[int, Stored, list[Stored]]:
    """Write a file; it is on the disk when this returns, and gone if it fails.

    Args:
        sync: flush it to the disk; without, a crash of the machine may lose it.

    Returns:
        Its size, its header, and each tensor, as stored.
    """
    name = os.path.basename(path)
    header = header_of(entries, about)
    stored, place = [], len(header)
    try:
        with open(path, "wb") as file:
            file.write(header)
            for entry in entries:
                sums = _BlockSums()
                for piece in entry.pieces():
                    for part in sums.split(piece):
                        file.write(part)
                stored.append(Stored(name, place, entry.length, sums.finish()))
                place += entry.length
            file.flush()
            if file.tell() != place:
                raise RuntimeError(f"{path}: wrote {file.tell()} bytes instead of {place}")
            if sync:
                os.fsync(file.fileno())
    except BaseException:
        if os.path.exists(path):
            os.unlink(path)
        raise
    sums = _BlockSums()
    for _ in sums.split(memoryview(header)):
        pass
    return place, Stored(name, 0, len(header), sums.finish()), stored


def bytes_of(tensor: Tensor) -> memoryview:
    """A tensor's bytes, row by row; a view where it lies so in the memory of the CPU."""
    array = namespace_of(tensor._data).to_host(tensor._data)
    return memoryview(CPU.ascontiguousarray(array).reshape(-1).view(dtypes.uint8.np))


def tensor_entry(
    name: str, dtype: dtypes.dtype, shape: Sequence[int], get: Callable[[], Tensor]
) -> Entry:
    """A tensor that is asked for when its turn comes."""
    return Entry(
        name, dtype, tuple(shape), math.prod(shape) * dtype.itemsize, lambda: [bytes_of(get())]
    )


# ---------------------------------------------------------------- reading
class FileOfBlocks:
    """A file of a checkpoint being read, each block checked.

    Raises:
        DamagedCheckpoint: naming the file: it is missing, short or altered.
    """

    def __init__(self, folder: str, name: str) -> None:
        self.path = os.path.join(folder, name)
        self._buffer = bytearray()
        try:
            self.file = open(self.path, "rb", buffering=0)  # noqa: SIM115
        except FileNotFoundError:
            raise DamagedCheckpoint(f"{self.path} is missing") from None

    def __enter__(self) -> FileOfBlocks:
        return self

    def __exit__(self, *unused: object) -> None:
        self.file.close()

    def read(self, stored: Stored, start: int, end: int, what: str) -> tuple[bytearray, int]:
        """Bytes ``start`` to ``end`` of something stored: in a buffer, and from where in it.

        The next call uses the same buffer.
        """
        first, last = start // stored.block, -(-end // stored.block)
        begin, stop = first * stored.block, min(last * stored.block, stored.length)
        if len(self._buffer) < stop - begin:
            self._buffer = bytearray(stop - begin)
        view, got = memoryview(self._buffer)[: stop - begin], 0
        self.file.seek(stored.start + begin)
        while got < len(view):
            n = self.file.readinto(view[got:])
            if not n:
                raise DamagedCheckpoint(
                    f"{self.path} is truncated: it ends at byte {stored.start + begin + got}, inside "
                    f"{what}"
                )
            got += n
        for block in range(first, last) if stored.checksums else ():
            at = block * stored.block - begin
            if checksum(view[at : at + stored.block]) != stored.checksums[block]:
                place = stored.start + block * stored.block
                raise DamagedCheckpoint(
                    f"{self.path} is damaged: the bytes from {place} on, of {what}, do not have the "
                    "checksum they were saved with"
                )
        return self._buffer, start - begin

    def check(self, stored: Stored, what: str) -> None:
        """Read something stored to its end, a piece at a time."""
        for start in range(0, stored.length, SLAB):
            self.read(stored, start, min(start + SLAB, stored.length), what)

    def read_box(
        self, stored: Stored, shape: Sequence[int], dtype: dtypes.dtype, offsets: Sequence[int],
        target: Tensor, what: str,
    ) -> None:  # fmt: skip
        """Copy the box of ``target``'s shape at ``offsets`` of a stored tensor into ``target``."""
        if not target.numel():
            return
        row, skip = list(shape), 0
        place, wanted = list(offsets), list(target.shape)
        while wanted and wanted[0] == 1:  # one index of a leading dimension: a smaller tensor
            row.pop(0)
            skip += place.pop(0) * math.prod(row)
            wanted.pop(0)
            target = target.select(0, 0)
        if not wanted:
            self._rows(stored, skip, 1, (), dtype, what, [target])
            return
        width = math.prod(row[1:])
        step = max(1, SLAB // max(1, width * dtype.itemsize))
        for first in range(0, wanted[0], step):
            count = min(step, wanted[0] - first)
            start = skip + (place[0] + first) * width
            box = (place[1:], wanted[1:])
            part = target.narrow(0, first, count)
            self._rows(stored, start, count * width, (count, *row[1:]), dtype, what, [part], box)

    def _rows(self, stored, start, count, shape, dtype, what, target, box=((), ())) -> None:
        size = dtype.itemsize
        buffer, at = self.read(stored, start * size, (start + count) * size, what)
        rows = ops.frombuffer(buffer, dtype=dtype, count=count, offset=at).reshape(shape)
        for dim, (offset, length) in enumerate(zip(*box), start=1):
            rows = rows.narrow(dim, offset, length)
        target[0].copy_(rows)


__all__ = ["BLOCK", "Entry", "FileOfBlocks", "Stored", "tensor_entry", "write_file"]
