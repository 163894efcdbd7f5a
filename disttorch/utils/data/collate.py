"""Samples into batches: tensors are stacked, containers are batched element by element."""

from __future__ import annotations

import copy
from collections.abc import Mapping, MutableMapping, MutableSequence, Sequence

from ... import ops
from ...backend.dtypes import float64
from ...tensor import Tensor, wrap
from .worker import shared_stack, worth_sharing

_BAD = (
    "default_collate: batch must contain tensors, numpy arrays, numbers, dicts or lists; found {}"
)


def _is_numpy(value) -> bool:
    return type(value).__module__ == "numpy" and type(value).__name__ not in ("str_", "bytes_")


def default_convert(data):
    """NumPy arrays in nested containers as tensors; everything else as it is."""
    if isinstance(data, Tensor):
        return data
    if _is_numpy(data):
        return data if data.dtype.kind in "SUO" else ops.as_tensor(data)
    if isinstance(data, Mapping):
        return _mapping_like(data, {k: default_convert(v) for k, v in data.items()})
    if isinstance(data, tuple) and hasattr(data, "_fields"):
        return type(data)(*(default_convert(d) for d in data))
    if isinstance(data, tuple):
        return [default_convert(d) for d in data]
    if isinstance(data, Sequence) and not isinstance(data, (str, bytes)):
        return _sequence_like(data, [default_convert(d) for d in data])
    return data


def _mapping_like(data, items: dict):
    """A mapping of the same type (keeping its other attributes), or a dict if that cannot be."""
    try:
        if isinstance(data, MutableMapping):
            twin = copy.copy(data)
            twin.update(items)
            return twin
        return type(data)(items)
    except TypeError:
        return items


def _sequence_like(data, items: list):
    try:
        if isinstance(data, MutableSequence):
            twin = copy.copy(data)
            for i, item in enumerate(items):
                twin[i] = item
            return twin
        return type(data)(items)
    except TypeError:
        return items


def collate_tensor_fn(batch, *, collate_fn_map=None):
    """Stack tensors along a new first dim; in a loading worker, in memory to be shared."""
    if worth_sharing(batch):
        return wrap(shared_stack([t._data for t in batch]))
    return ops.stack(list(batch), 0)


def collate_numpy_array_fn(batch, *, collate_fn_map=None):
    """Stack NumPy arrays (numbers, not strings) into a tensor."""
    if batch[0].dtype.kind in "SUO":
        raise TypeError(_BAD.format(batch[0].dtype))
    return collate([ops.as_tensor(b) for b in batch], collate_fn_map=collate_fn_map)


def collate_float_fn(batch, *, collate_fn_map=None):
    """Python floats as a float64 tensor."""
    return ops.tensor(list(batch), dtype=float64)


def collate_int_fn(batch, *, collate_fn_map=None):
    """Python ints (bools) as an int64 (bool) tensor."""
    return ops.tensor(list(batch))


def collate_str_fn(batch, *, collate_fn_map=None):
    """Strings stay a list."""
    return batch


default_collate_fn_map: dict = {
    Tensor: collate_tensor_fn,
    float: collate_float_fn,
    int: collate_int_fn,
    str: collate_str_fn,
    bytes: collate_str_fn,
}


def collate(batch, *, collate_fn_map: dict | None = None):
    """Batch samples, with a function for each type of leaf.

    Args:
        batch: a list of samples of one structure.
        collate_fn_map: type (or tuple of types) to ``f(batch, *, collate_fn_map)``.

    Raises:
        TypeError: for a type without a function.
        RuntimeError: if sequences differ in length.
    """
    first = batch[0]
    functions = collate_fn_map or {}
    if type(first) in functions:
        return functions[type(first)](batch, collate_fn_map=collate_fn_map)
    for kind, function in functions.items():
        if isinstance(first, kind):
            return function(batch, collate_fn_map=collate_fn_map)
    if _is_numpy(first):
        return collate_numpy_array_fn(batch, collate_fn_map=collate_fn_map)

    def again(values):
        return collate(values, collate_fn_map=collate_fn_map)

    if isinstance(first, Mapping):
        return _mapping_like(first, {k: again([d[k] for d in batch]) for k in first})
    if isinstance(first, tuple) and hasattr(first, "_fields"):
        return type(first)(*(again(values) for values in zip(*batch)))
    if isinstance(first, Sequence):
        if any(len(sample) != len(first) for sample in batch):
            raise RuntimeError("each element in list of batch should be of equal size")
        columns = [again(values) for values in zip(*batch)]
        return columns if isinstance(first, tuple) else _sequence_like(first, columns)
    raise TypeError(_BAD.format(type(first)))


def default_collate(batch):
    """Batch samples: tensors and arrays are stacked along a new first dim, numbers become a
    tensor, strings a list; dicts, tuples and lists are batched element by element.

    Raises:
        TypeError, RuntimeError: if the samples cannot be batched.
    """
    return collate(batch, collate_fn_map=default_collate_fn_map)


__all__ = ["collate", "default_collate", "default_collate_fn_map", "default_convert"]
