"""Tensors in the safetensors format, through its library: names, shapes and raw bytes, no code.

The functions have the names and arguments of ``safetensors.torch``, and stand in for it in scripts
run by ``python -m disttorch``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from .. import ops
from ..backend import CPU, dtypes, namespace_of
from ..tensor import Tensor
from .archive import atomic_file

_NAMES = {
    "F64": dtypes.float64, "F32": dtypes.float32, "F16": dtypes.float16, "BF16": dtypes.bfloat16,
    "I64": dtypes.int64, "I32": dtypes.int32, "I16": dtypes.int16, "I8": dtypes.int8,
    "U8": dtypes.uint8, "BOOL": dtypes.bool, "C64": dtypes.complex64,
}


def _library():
    try:
        import safetensors
    except ImportError:
        raise ImportError(
            'the safetensors format needs its library: pip install "disttorch[safetensors]"'
        ) from None
    return safetensors


def save(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """The file's bytes for named tensors, from any device.

    Raises:
        TypeError: for a value that is no tensor, or of a dtype the format lacks.
    """
    entries = {}
    for name, t in tensors.items():
        if not isinstance(t, Tensor):
            raise TypeError(f"safetensors hold tensors only; {name!r} is a {type(t).__name__}")
        if t.dtype not in _NAMES.values():
            raise TypeError(f"the safetensors format has no {t.dtype!r}, the dtype of {name!r}")
        xp = namespace_of(t._data)
        entries[name] = CPU.array(xp.to_host(t._data), order="C", copy=True)
    _library()
    from safetensors.numpy import save as save_arrays

    return save_arrays(entries, metadata)


def save_file(
    tensors: Mapping[str, Tensor], filename: str | os.PathLike, metadata: dict[str, str] | None = None
) -> None:
    """Write named tensors to a file, whole or not at all. Arguments and errors as ``save``."""
    data = save(tensors, metadata)
    with atomic_file(os.fspath(filename)) as file:
        file.write(data)


def load(data: bytes) -> dict[str, Tensor]:
    """The tensors in the bytes of a file, on the CPU.

    Raises:
        safetensors.SafetensorError: if the bytes are no such file.
    """
    found = {}
    for name, entry in _library().deserialize(bytes(data)):
        if entry["dtype"] not in _NAMES:
            raise TypeError(f"tensors here have no type like {entry['dtype']}, that of {name!r}")
        dtype, raw = _NAMES[entry["dtype"]], bytearray(entry["data"])
        flat = ops.frombuffer(raw, dtype=dtype) if raw else ops.empty(0, dtype=dtype)
        found[name] = flat.reshape(entry["shape"])
    return found


def load_file(filename: str | os.PathLike, device="cpu") -> dict[str, Tensor]:
    """The tensors of a file, on ``device``. Errors as ``load``."""
    with open(filename, "rb") as file:
        tensors = load(file.read())
    return {name: t.to(device) for name, t in tensors.items()}


def save_model(model, filename: str | os.PathLike, metadata: dict[str, str] | None = None) -> None:
    """Write a module's ``state_dict``; a tensor that it has under several names is stored once."""
    seen: dict[int, str] = {}
    kept, aliases = {}, dict(metadata or {})
    for name, t in model.state_dict().items():
        first = seen.setdefault(id(t._data), name)
        if first == name:
            kept[name] = t
        else:
            aliases[name] = first
    save_file(kept, filename, aliases or None)


def load_model(model, filename: str | os.PathLike, strict: bool = True, device="cpu"):
    """Load what ``save_model`` wrote; returns the names that are missing and unexpected."""
    with _library().safe_open(filename, framework="np") as file:
        aliases = file.metadata() or {}
    state = load_file(filename, device)
    for name, first in aliases.items():
        if name not in state and first in state:
            state[name] = state[first]
    result = model.load_state_dict(state, strict=strict)
    return result.missing_keys, result.unexpected_keys
