"""Devices: where a tensor's array lives. ``cpu`` is NumPy, ``cuda:i`` is CuPy on device i."""

from __future__ import annotations

import re
import threading

_FORM = re.compile(r"^(cpu|cuda|meta|mps|xpu)(?::(\d+))?$")


class device:
    """A place for tensors: ``device("cpu")``, ``device("cuda")``, ``device("cuda", 1)``.

    Tensors on ``meta`` have shapes and dtypes but no values (see ``meta_backend``). ``mps`` and
    ``xpu`` can be named and compared, but hold no tensors.

    Raises:
        RuntimeError: if the text names no device kind.
    """

    __slots__ = ("type", "index")
    type: str
    index: int | None

    def __init__(self, type: str | int | device, index: int | None = None):
        if isinstance(type, device):
            index = type.index if index is None else index
            type = type.type
        elif isinstance(type, int):
            index, type = type, "cuda"
        if index is not None and index < 0:
            raise RuntimeError(f"Device index must not be negative, but is {index}")
        if not isinstance(type, str):
            raise TypeError(f"device() takes a string, an int or a device, got {type!r}")
        found = _FORM.match(type)
        if not found:
            raise RuntimeError(
                f"Expected one of cpu, cuda, cuda:N as the device, got {type!r}"
            )
        if found[2] is not None and index is not None:
            raise RuntimeError(
                f"type (string) must not include an index because index was passed "
                f"explicitly: {type}"
            )
        self.type = found[1]
        self.index = int(found[2]) if found[2] is not None else index

    def __eq__(self, other):
        if isinstance(other, device):
            return self.type == other.type and self.index == other.index
        return NotImplemented

    def __hash__(self):
        return hash((self.type, self.index))

    def __str__(self):
        return self.type if self.index is None else f"{self.type}:{self.index}"

    def __repr__(self):
        if self.index is None:
            return f"device(type='{self.type}')"
        return f"device(type='{self.type}', index={self.index})"

    def __reduce__(self):
        return (device, (str(self),))

    def __enter__(self):
        _chosen.stack.append(self)
        return self

    def __exit__(self, *exc):
        _chosen.stack.pop()


cpu = device("cpu")


class _Chosen(threading.local):
    """The devices of the ``with`` blocks that this thread is in."""

    def __init__(self):
        self.stack: list[device] = []


_chosen = _Chosen()
_default: device | None = None


def set_default_device(d: device | str | int | None) -> None:
    """Set where factories put tensors when no ``device=`` is given; None means the CPU."""
    global _default
    _default = None if d is None else device(d)


def get_default_device() -> device:
    """Where factories put tensors: the innermost ``with device(...)``, else the default."""
    if _chosen.stack:
        return _chosen.stack[-1]
    return _default or cpu
