"""Tensors inside what a forward takes and returns."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from ...tensor import Tensor


def map_tensors(fn: Callable[[Tensor], Any], value: Any) -> Any:
    """`value` with every tensor in its tuples, lists, dicts and dataclasses replaced by `fn(it)`."""
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, tuple):
        items = [map_tensors(fn, v) for v in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, list):
        return [map_tensors(fn, v) for v in value]
    if isinstance(value, OrderedDict):
        return OrderedDict((k, map_tensors(fn, v)) for k, v in value.items())
    if isinstance(value, dict):
        return {k: map_tensors(fn, v) for k, v in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        return dataclasses.replace(value, **map_tensors(fn, fields))
    return value


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in `value`, in order."""
    found: list[Tensor] = []

    def note(t: Tensor) -> Tensor:
        found.append(t)
        return t

    map_tensors(note, value)
    return found


def cast_floating(dtype: Any, value: Any) -> Any:
    """`value` with its floating tensors in `dtype`."""

    def cast(t: Tensor) -> Tensor:
        return t.to(dtype) if t.is_floating_point() and t.dtype is not dtype else t

    return map_tensors(cast, value)


__all__ = ["cast_floating", "map_tensors", "tensors_in"]
