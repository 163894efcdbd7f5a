"""How messages look on a connection: everything is fixed-size headers and lengths, nothing is pickled.

- A *record* (the store's requests and answers, lines of a FileStore): a kind, a number of fields, and
  the fields with their lengths.
- A *frame* (an array between ranks): context of the transport, tag, dtype and number of elements,
  then the elements themselves.

All numbers are little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from .work import CollectiveError

_RECORD = struct.Struct("<QHI")  # bytes that follow the length, kind, number of fields
_LENGTH = struct.Struct("<Q")
_PREFIX = _LENGTH.size
LARGEST_RECORD = 1 << 32  # a store is for small values; this only catches nonsense

FRAME = struct.Struct("<QIIQ")  # context, tag, dtype, elements


class WireError(CollectiveError):
    """Bytes that no process of ours would send."""


def pack(kind: int, fields: Sequence[bytes]) -> bytes:
    """One record as bytes."""
    body = b"".join([part for field in fields for part in (_LENGTH.pack(len(field)), field)])
    return _RECORD.pack(_RECORD.size - _PREFIX + len(body), kind, len(fields)) + body


def length_of(data: bytes | bytearray) -> int:
    """Bytes of the record that `data` begins with, itself included; 0 while that is unknown.

    Raises:
        WireError: no sensible length.
    """
    if len(data) < _PREFIX:
        return 0
    (length,) = _LENGTH.unpack_from(data)
    if not _RECORD.size - _PREFIX <= length <= LARGEST_RECORD:
        raise WireError(f"a record claims to have {length} bytes")
    return length + _PREFIX


def unpack(data: bytes | bytearray | memoryview) -> tuple[int, list[bytes]]:
    """The kind and fields of one whole record.

    Raises:
        WireError: the lengths inside do not add up.
    """
    _, kind, count = _RECORD.unpack_from(data)
    fields, at, end = [], _RECORD.size, len(data)
    for _ in range(count):
        if at + _PREFIX > end:
            break
        (length,) = _LENGTH.unpack_from(data, at)
        at += _PREFIX
        if length > end - at:
            break
        fields.append(bytes(data[at : at + length]))
        at += length
    if len(fields) != count or at != end:
        raise WireError(f"a record of kind {kind} does not have the {count} fields it claims")
    return kind, fields


def take(buffer: bytearray) -> tuple[int, list[bytes]] | None:
    """Remove the first record from `buffer` and return it; None while it is not complete."""
    length = length_of(buffer)
    if not length or len(buffer) < length:
        return None
    record = unpack(bytes(buffer[:length]))
    del buffer[:length]
    return record
