"""Adding to (and reducing into) places of a GPU array, where one place may come several times.

CuPy's ``add.at`` knows few dtypes, ``multiply.at`` does not exist, and the extremes' rounds float64
to float32. Narrow types work in a wider one and are rounded once at the end; what is no sum is a
loop of compare-and-swap. The order of several values at one place is up to the GPU, so sums of
floating-point values can differ in the last bits from run to run. Each function takes the namespace
``xp`` first and becomes a method of it.
"""

from __future__ import annotations

import functools

import numpy as np

_WIDER = {
    "bool": np.int32, "int8": np.int32, "uint8": np.int32, "int16": np.int32, "uint16": np.int32,
    "float16": np.float32, "bfloat16": np.float32,
}  # fmt: skip


def scatter_at(xp, ufunc, out, places, values):
    """``ufunc.at(out, places, values)`` in place; ``ufunc`` is "add", "multiply", "maximum" or
    "minimum", ``places`` an index array or a tuple of such that broadcast."""
    values = xp.asarray(values)
    if out.dtype.kind == "c":
        if ufunc != "add":
            raise NotImplementedError(f"{ufunc} of complex values at repeated places of a GPU array")
        scatter_at(xp, ufunc, out.real, places, values.real)
        scatter_at(xp, ufunc, out.imag, places, values.imag)
        return
    wide = _WIDER.get(out.dtype.name)
    if wide is not None:
        result = out.astype(wide)
        scatter_at(xp, ufunc, result, places, values.astype(wide))
        out[...] = result.astype(out.dtype)
    elif ufunc == "add":
        xp.add.at(out, places, values.astype(out.dtype, copy=False))
    else:
        _swap_in(xp, ufunc, out, places, values)


def _swap_in(xp, ufunc, out, places, values):
    wide = np.dtype(np.float64 if out.dtype.kind == "f" else np.int64)
    places = places if isinstance(places, tuple) else (places,)
    flat = functools.reduce(
        lambda sum_, step: sum_ * step[1] + step[0], zip(places, out.shape), xp.zeros((), np.int64))
    rest = out.shape[len(places):]
    if rest:  # whole slices: their elements count up
        n = int(np.prod(rest))
        flat = flat[(..., *(None,) * len(rest))] * n + xp.arange(n).reshape(rest)
    flat, values = xp.broadcast_arrays(flat, values.astype(wide))
    result = out.astype(wide).reshape(-1)
    _kernel(xp.cupy, ufunc)(values, flat, result)
    out[...] = result.reshape(out.shape).astype(out.dtype)


_NEW = {  # from `was` and `value`; NaN wins, as in NumPy
    "multiply": "was * value",
    "maximum": "was >= value || was != was ? was : value",
    "minimum": "was <= value || was != was ? was : value",
}


@functools.cache
def _kernel(cupy, ufunc):
    return cupy.ElementwiseKernel(
        "T value, int64 place", "raw T out",
        f"""
        unsigned long long* where = reinterpret_cast<unsigned long long*>(&out[place]);
        unsigned long long seen = *where, old;
        do {{
            old = seen;
            T was = *reinterpret_cast<T*>(&old);
            T wanted = {_NEW[ufunc]};
            seen = atomicCAS(where, old, *reinterpret_cast<unsigned long long*>(&wanted));
        }} while (seen != old);
        """,
        f"disttorch_{ufunc}_at",
    )


def add_rows(xp, out, index, rows):
    """``out[index[i]] += rows[i]``, in place; returns ``out``."""
    scatter_at(xp, "add", out, index, rows)
    return out


def add_along_axis(xp, out, index, values, axis):
    """``out[i][index[i][j]] += values[i][j]`` (for axis 1), in place; returns ``out``."""
    places = list(xp.indices(index.shape, sparse=True))
    places[axis] = index
    scatter_at(xp, "add", out, tuple(places), values)
    return out
