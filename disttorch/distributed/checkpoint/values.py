"""Values that are no tensors, as bytes and back: JSON where that can hold them.

Plain JSON has no tuples, bytes, sets, or keys but strings; these are objects ``{"$": kind, "v":
content}``. What holds tensors is written in the format of ``disttorch.save``, whose reader builds
tensors and plain containers and never runs code.
"""

from __future__ import annotations

import base64
import io
import json
import math
import pickle
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

from ...backend import dtypes
from ...backend.devices import device
from ...serialization.archive import load as load_archive
from ...serialization.archive import save as save_archive
from ...tensor import Size

JSON, ARCHIVE = b"J", b"Z"  # the first byte of an encoded value


class _NoJson(Exception):
    pass


def encode(value: Any) -> bytes:
    """The bytes for a value.

    Raises:
        pickle.PicklingError: naming the type, for one that could not be read without running code.
    """
    try:
        plain = _to_json(value)
        return JSON + json.dumps(plain, allow_nan=False, separators=(",", ":")).encode()
    except _NoJson:
        out = io.BytesIO(ARCHIVE)
        out.seek(1)
        save_archive(value, out)
        return out.getvalue()


def decode(data: bytes) -> Any:
    """The value of ``encode``'s bytes.

    Raises:
        pickle.UnpicklingError: for others.
    """
    kind = bytes(data[:1])
    if kind == JSON:
        return from_json(json.loads(data[1:]))
    if kind == ARCHIVE:
        return load_archive(io.BytesIO(data[1:]), map_location="cpu")
    raise pickle.UnpicklingError(f"a value of unknown kind {kind!r}")


def _tagged(kind: str, content: Any) -> dict:
    return {"$": kind, "v": content}


def _items(kind: str) -> Callable[[Any], dict]:
    return lambda value: _tagged(kind, [_to_json(v) for v in value])


def _pairs(kind: str) -> Callable[[Any], dict]:
    return lambda value: _tagged(kind, [[_to_json(k), _to_json(v)] for k, v in value.items()])


def _dict(value: dict) -> dict:
    if all(type(k) is str for k in value) and "$" not in value:
        return {k: _to_json(v) for k, v in value.items()}
    return _pairs("dict")(value)


def _float(value: float) -> Any:
    return value if math.isfinite(value) else _tagged("float", repr(value))


def _base64(kind: str) -> Callable[[Any], dict]:
    return lambda value: _tagged(kind, base64.b64encode(value).decode())


_WRITE: dict[type, Callable[[Any], Any]] = {
    type(None): lambda v: v, bool: lambda v: v, int: lambda v: v, str: lambda v: v, float: _float,
    list: lambda v: [_to_json(entry) for entry in v], dict: _dict, OrderedDict: _pairs("ordered"),
    Counter: _pairs("counter"), tuple: _items("tuple"), set: _items("set"),
    frozenset: _items("frozenset"), Size: lambda v: _tagged("size", list(v)),
    bytes: _base64("bytes"), bytearray: _base64("bytearray"),
    complex: lambda v: _tagged("complex", [_float(v.real), _float(v.imag)]),
    dtypes.dtype: lambda v: _tagged("dtype", v.name),
    device: lambda v: _tagged("device", str(v)),
    slice: lambda v: _tagged("slice", [_to_json(x) for x in (v.start, v.stop, v.step)]),
    range: lambda v: _tagged("range", [v.start, v.stop, v.step]),
}  # fmt: skip


def _to_json(value: Any) -> Any:
    write = _WRITE.get(type(value))
    if write is not None:
        return write(value)
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        return _to_json(value.item())  # a NumPy number: what it holds
    raise _NoJson


_READ: dict[str, Callable[[Any], Any]] = {
    "float": float, "tuple": lambda v: tuple(map(from_json, v)), "set": lambda v: set(map(from_json, v)),
    "frozenset": lambda v: frozenset(map(from_json, v)), "size": Size,
    "dict": lambda v: {from_json(k): from_json(x) for k, x in v},
    "ordered": lambda v: OrderedDict((from_json(k), from_json(x)) for k, x in v),
    "counter": lambda v: Counter({from_json(k): from_json(x) for k, x in v}),
    "bytes": base64.b64decode, "bytearray": lambda v: bytearray(base64.b64decode(v)),
    "complex": lambda v: complex(*map(from_json, v)), "dtype": dtypes.BY_NAME.__getitem__,
    "device": device, "slice": lambda v: slice(*map(from_json, v)), "range": lambda v: range(*v),
}  # fmt: skip


def from_json(plain: Any) -> Any:
    """The value that ``encode`` wrote as this JSON."""
    if type(plain) is list:
        return [from_json(entry) for entry in plain]
    if type(plain) is not dict:
        return plain
    kind = plain.get("$")
    if kind is None:
        return {k: from_json(v) for k, v in plain.items()}
    if kind not in _READ:
        raise pickle.UnpicklingError(f"a value of unknown kind {kind!r}")
    return _READ[kind](plain["v"])


__all__ = ["decode", "encode", "from_json"]
