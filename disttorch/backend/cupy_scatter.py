"""Adding to (and reducing into) places of a GPU array, where one place may come several times.

CuPy's ``ufunc.at`` knows few dtypes and no products. Narrow types work in a wider one and are
rounded once at the end; products are a loop of compare-and-swap. The order of several values at
one place is up to the GPU, so sums of floating-point values can differ in the last bits from run
to run. Each function takes the namespace ``xp`` first and becomes a method of it.
"""

from __future__ import annotations

import functools

import numpy as np

_WIDER = {
    "bool": np.int32, "int8": np.int32, "uint8": np.int32, "int16": np.int32, "uint16": np.int32,
    "float16": np.float32, "bfloat16": np.float32,
}  # fmt: skip
_SIGN = np.uint64(1 << 63)


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
    elif ufunc == "multiply":
        _multiply(xp, out, places, values)
    elif out.dtype == np.int64 and ufunc != "add":
        # CuPy's extremes know uint64 only: with the sign bit flipped it orders alike
        result = out.view(np.uint64) ^ _SIGN
        getattr(xp, ufunc).at(result, places, values.astype(np.int64).view(np.uint64) ^ _SIGN)
        out[...] = (result ^ _SIGN).view(np.int64)
    else:
        getattr(xp, ufunc).at(out, places, values.astype(out.dtype, copy=False))


def _multiply(xp, out, places, values):
    wide = np.dtype(np.float64 if out.dtype.kind == "f" else np.int64)
    places = places if isinstance(places, tuple) else (places,)
    flat = functools.reduce(
        lambda sum_, step: sum_ * step[1] + step[0], zip(places, out.shape), xp.zeros((), np.int64))
    rest = out.shape[len(places):]
    if rest:  # whole slices: their elements count up
        flat = flat[(..., *(None,) * len(rest))] * int(np.prod(rest)) + xp.arange(
            int(np.prod(rest))).reshape(rest)
    flat, values = xp.broadcast_arrays(flat, values.astype(wide))
    result = out.astype(wide).reshape(-1)
    _product_kernel(xp.cupy)(values, flat, result)
    out[...] = result.reshape(out.shape).astype(out.dtype)


@functools.cache
def _product_kernel(cupy):
    return cupy.ElementwiseKernel(
        "T value, int64 place", "raw T out",
        """
        unsigned long long* where = reinterpret_cast<unsigned long long*>(&out[place]);
        unsigned long long seen = *where, old, wanted;
        do {
            old = seen;
            T product = *reinterpret_cast<T*>(&old) * value;
            wanted = *reinterpret_cast<unsigned long long*>(&product);
            seen = atomicCAS(where, old, wanted);
        } while (seen != old);
        """,
        "disttorch_multiply_at",
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
