"""Who holds GPU memory: the living tensors, found through Python's garbage collector.

Looked at only when memory runs out or a summary is asked for: it walks over all objects of the process.
"""

from __future__ import annotations

import gc
from collections import Counter
from typing import Any

from ..autograd.graph import Node
from ..backend.gpu.memory import counters, in_words
from ..tensor import Tensor

LARGEST = 6  # tensors that are named one by one
_PARAMETER, _GRADIENT, _STATE = "parameters", "gradients", "optimizer state"
_SAVED, _OTHER = "saved for backward", "other tensors"
_ORDER = (_PARAMETER, _GRADIENT, _STATE, _SAVED, _OTHER)  # the first that fits counts


def _memory_on(device: int, value: Any):
    """The memory that a tensor's array lies in, if that is on the device."""
    array = getattr(value, "_data", None)
    pointer = getattr(array, "data", None)
    memory = getattr(pointer, "mem", None)  # CuPy's; NumPy's arrays have none
    return memory if memory is not None and memory.device_id == device and memory.size else None


def _tensors(value: Any, depth: int = 3):
    """The tensors of nested containers."""
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, dict):
        for item in list(value.values()):
            yield from _tensors(item, depth - 1)
    elif depth and isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item, depth - 1)


def _claims(thing: Any):
    """(kind, tensor) for what an object makes known about tensors."""
    if isinstance(thing, Tensor):
        kind = _PARAMETER if type(thing).__name__ == "Parameter" else _OTHER
        yield kind, thing
        if isinstance(thing._grad, Tensor):
            yield _GRADIENT, thing._grad
    elif isinstance(thing, Node):
        for t in _tensors(thing.saved):
            yield _SAVED, t
    elif hasattr(type(thing), "add_param_group"):  # an optimizer, of whichever module
        for t in _tensors(getattr(thing, "state", None)):
            yield _STATE, t


def find(device: int) -> dict[str, list]:
    """``{kind: [(bytes, "shape dtype")]}`` of the memories that tensors hold, each counted once, the
    largest first."""
    held: dict[int, tuple[int, int, str]] = {}  # address -> (place in _ORDER, bytes, description)
    for thing in gc.get_objects():
        try:
            for kind, tensor in _claims(thing):
                memory = _memory_on(device, tensor)
                if memory is None:
                    continue
                place, before = _ORDER.index(kind), held.get(memory.ptr)
                if before is None or place < before[0]:
                    shape = "×".join(map(str, tensor._data.shape)) or "a number"
                    held[memory.ptr] = place, memory.size, f"{shape} {tensor._data.dtype.name}"
        except Exception:  # an object of somebody's that does not like to be looked at
            continue
    kinds: dict[str, list] = {kind: [] for kind in _ORDER}
    for place, size, text in sorted(held.values(), key=lambda entry: -entry[1]):
        kinds[_ORDER[place]].append((size, text))
    return kinds


def describe(device: int) -> list[str]:
    """Lines for people: bytes by kind, and the largest tensors."""
    kinds = find(device)
    sums = {kind: sum(size for size, _ in entries) for kind, entries in kinds.items()}
    nameless = counters[device].live - sum(sums.values())
    parts = [f"{kind} {in_words(n)} in {len(kinds[kind])}" for kind, n in sums.items() if n]
    if nameless > 0:
        parts.append(f"arrays of no tensor (results under way, workspaces) {in_words(nameless)}")
    lines = ["Held by: " + (", ".join(parts) or "nothing") + "."]
    grouped: Counter = Counter()
    for kind, entries in kinds.items():
        for size, text in entries:
            grouped[size, text, kind] += 1
    largest = sorted(grouped.items(), key=lambda entry: -entry[0][0] * entry[1])[:LARGEST]
    if largest:
        lines.append("Largest: " + "; ".join(
            f"{n} of {text} ({kind}, {in_words(size)} each)" if n > 1 else
            f"{text} ({kind}, {in_words(size)})"
            for (size, text, kind), n in largest
        ) + ".")
    return lines
