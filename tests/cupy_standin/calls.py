"""Calling NumPy for CuPy: what may be an operand, and what becomes of a result."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import ml_dtypes
import numpy as np

from .arrays import ndarray, produce, view_of

NAMES = json.loads((Path(__file__).parent / "cupy_names.json").read_text())
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
HOST_ONLY = {  # ask about types and shapes, or make no array
    "result_type", "can_cast", "promote_types", "min_scalar_type", "broadcast_shapes", "common_type",
    "iinfo", "finfo", "issubdtype", "isscalar", "dtype", "size", "ndim", "shape", "get_printoptions",
    "set_printoptions", "printoptions", "base_repr", "binary_repr", "format_float_positional",
    "format_float_scientific", "mask_indices", "ndindex", "s_", "index_exp", "newaxis", "errstate",
    "get_array_wrap", "typename", "iscomplexobj", "isrealobj", "isfortran",
}  # fmt: skip
UPLOADS = {"take", "searchsorted", "isin", "in1d", "digitize"}  # NumPy arrays are copied over
# what CuPy answers with values whose shape only the device knows, so that the host waits
WAITS = {"nonzero", "flatnonzero", "argwhere", "unique", "extract", "compress", "histogram", "bincount",
          "setdiff1d", "union1d", "intersect1d", "unique_values", "unique_counts", "trim_zeros"}
NO_BFLOAT16 = {"sort", "argsort", "partition", "argpartition", "lexsort", "msort"}


def host(value):
    """Device arrays as NumPy's views, also inside of lists and tuples.

    Raises:
        TypeError: for NumPy arrays, as CuPy.
    """
    if isinstance(value, ndarray):
        return value._np
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(map(host, value))
    if isinstance(value, dict):
        return {k: host(v) for k, v in value.items()}
    if hasattr(value, "__cuda_array_interface__") and not isinstance(value, type):
        return _moved(value)._np
    return value


def _moved(value) -> ndarray:
    from .functions import asarray

    return asarray(value)


def inputs_of(*values) -> list[ndarray]:
    found: list[ndarray] = []
    for value in values:
        if isinstance(value, ndarray):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += inputs_of(*value)
        elif isinstance(value, dict):
            found += inputs_of(*value.values())
    return found


def _owner(inputs, got: np.ndarray) -> ndarray | None:
    """The operand whose memory a result lies in."""
    if got.base is None or not got.size:
        return None
    address = got.__array_interface__["data"][0]
    for array in inputs:
        if array._span is not None and array._span.memory.start <= address < array._span.memory.end:
            return array
    return None


def settle(what: str, inputs: list[ndarray], compute, order_: str = "C"):
    """The device's form of what ``compute()`` returns: views stay views, the rest becomes new arrays."""
    with np.errstate(all="ignore"):
        got = compute()
    several = isinstance(got, (tuple, list))
    values = list(got) if several else [got]
    same = {id(a._np): a for a in inputs}
    out: list = [None] * len(values)
    fresh = []
    for i, value in enumerate(values):
        if not isinstance(value, (np.ndarray, np.generic, float, int, bool, complex)) or value is None:
            out[i] = value
        elif id(value) in same:
            out[i] = same[id(value)]
        elif isinstance(value, np.ndarray) and (owner := _owner(inputs, value)) is not None:
            out[i] = view_of(owner, value)
        else:
            fresh.append(i)
    if fresh:
        def pick():
            again = compute()
            again = list(again) if several else [again]
            return [np.asarray(again[i]) for i in fresh]

        made = [np.asarray(values[i]) for i in fresh]
        first = [True]

        def once():
            if first[0]:
                first[0] = False
                return made
            return pick()

        for i, array in zip(fresh, produce(what, inputs, once, order_)):
            out[i] = array
    return tuple(out) if several else out[0]


def _around(arr, indices, axis):
    n = arr.size if axis is None else arr.shape[axis]
    return arr, indices % n if n else indices, axis


def plain_function(name: str, function, parameters):
    anything = parameters is None or any(p.startswith("**") for p in parameters)
    allowed = None if anything else set(parameters)

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        unknown = set(kwargs) - allowed if allowed is not None else ()
        if unknown:
            raise TypeError(f"{name}() got an unexpected keyword argument {min(unknown)!r}")
        out = kwargs.pop("out", None)
        if name in UPLOADS:
            args = tuple(_moved(a) if isinstance(a, np.ndarray) else a for a in args)
        inputs = inputs_of(args, kwargs)
        if name in NO_BFLOAT16 and any(a.dtype == BFLOAT16 for a in inputs):
            raise TypeError(f"{name} is not supported for bfloat16")
        if name in WAITS:
            for a in inputs:
                a._host(name)
        given, named = host(args), host(kwargs)
        if name == "take":  # CuPy takes places out of range modulo the size
            named["mode"] = "wrap"
        elif name == "take_along_axis":
            given = _around(*given, **named)
            named = {}
        got = settle(name, inputs, lambda: function(*given, **named))
        if out is not None:
            out[...] = got
            return out
        return got

    return wrapper
