"""Adding to (and reducing into) places of a GPU array, where one place may come several times.

**Rows** (``add_rows``: the gradient of an embedding, ``index_add``, ``index_put`` along the first dim)
are summed without atomics: the indices are sorted stably (``csrc/sort.cu``), and each row of the result
is the sum of its rows in their given order (``csrc/scatter.cu``), in float32 or float64, rounded once.
So the same call gives the same bits on every run.

**Single elements** (``scatter_add``, the backward of ``gather``, ``index_put`` with several indices) are
added by atomics, whose order is up to the GPU; with ``use_deterministic_algorithms(True)`` they go the
way of the rows. Sums of integers are the same in any order. Products and extremes are loops of
compare-and-swap; products of floats depend on the order.

**Indices out of range** are found without waiting for the GPU: a kernel notes one in memory of the host,
and the IndexError comes with the next check of indices, ``synchronize`` or copy to the host. Until then
an index wraps around (CuPy's functions) or is left out (the sums of rows).

Each function takes the namespace ``xp`` first and becomes a method of it.
"""

from __future__ import annotations

import functools

import numpy as np

from .kernel import blocks, kernel, type_name
from .transfers import empty_pinned

_WIDER = {
    "bool": np.int32, "int8": np.int32, "uint8": np.int32, "int16": np.int32, "uint16": np.int32,
    "float16": np.float32, "bfloat16": np.float32,
}  # fmt: skip
_FLOATS = ("float32", "float64", "float16", "bfloat16")
_TILE, _MOST_TILES, _DIGITS = 4096, 256, 256  # keys of a block, blocks; see sort.cu
_RUN, _THREADS = 32, 128


def deterministic() -> bool:
    """Whether single elements, too, must be added in a fixed order."""
    from ... import settings

    return settings.are_deterministic_algorithms_enabled()


# ---------------------------------------------------------------- indices
def index_outside(xp, index, low: int, high: int):
    """Have the GPU note an index below ``low`` or from ``high`` on; returns None.

    Raises:
        IndexError: for what an earlier call has found meanwhile.
    """
    if xp.outside is None:
        flag = empty_pinned(xp.cupy, (4,), np.int64)
        flag[:] = 0
        xp.outside = flag, flag.ctypes.data
    raise_outside(xp)
    n = index.size
    if n:
        index = _indices(xp, index)
        kernel(xp.cupy, "sort", "check_index", INDEX=index.dtype)(
            (blocks(n, 256, 1024),), (256,), (index, n, low, high, xp.outside[1]))


def check_places(xp, shape, index) -> None:
    """Have the GPU note places out of range among indices of an array (CuPy takes them modulo its size).

    Args:
        shape: of the array.
        index: integer arrays, masks and slices, one for each leading dim (a mask for as many as it has).
    """
    dim = 0
    for i in index:
        if isinstance(i, slice):
            dim += 1
        elif i.dtype.kind == "b":
            dim += i.ndim
        else:
            index_outside(xp, i, -shape[dim], shape[dim])
            dim += 1


def raise_outside(xp) -> None:
    """Raise an IndexError if a kernel has noted an index out of range."""
    if xp.outside is not None and (flag := xp.outside[0])[0]:
        flag[0] = 0
        raise IndexError(
            f"index {flag[1]} is out of range: it must be at least {flag[2]} and less than {flag[3]} "
            "(found on the GPU after the call had returned, so this line may not be the one to look at: "
            "run the script on the CPU to see which is)"
        )


def _indices(xp, index):
    if type_name(index.dtype) not in ("int64", "int32"):
        index = index.astype(np.int64)
    return xp.ascontiguousarray(index)


def _sorted(xp, index, size: int):
    """(keys, positions): the indices in order, and where each was, both uint32 [N]."""
    cupy, n = xp.cupy, index.size
    index = _indices(xp, index)
    room = xp.empty(4 * n, np.uint32)
    keys, other, positions, other_positions = (room[i * n : (i + 1) * n] for i in range(4))
    kernel(cupy, "sort", "index_keys", INDEX=index.dtype)(
        (blocks(n, 256, 1024),), (256,), (index, keys, n, size))
    tiles = min(_MOST_TILES, -(-n // _TILE))
    tile = -(-n // (tiles * _DIGITS)) * _DIGITS
    grid, block = (-(-n // tile),), (_DIGITS,)
    counts = xp.empty(grid[0] * _DIGITS, np.uint32)
    count = kernel(cupy, "sort", "sort_count", INDEX="int64")
    move = kernel(cupy, "sort", "sort_move", INDEX="int64")
    before = None
    for shift in range(0, max(1, (size - 1).bit_length()), 8):
        count(grid, block, (keys, counts, n, tile, shift))
        move(grid, block, (keys, before, other, positions, counts, n, tile, shift))
        keys, other = other, keys
        before, positions, other_positions = positions, other_positions, positions
    return keys, before


# ---------------------------------------------------------------- sums
def add_rows(xp, out, index, rows):
    """``out[index[i]] += rows[i]`` in the order of i, in place; returns ``out``.

    Args:
        out: V×W. Floats and complex numbers as this module's text says; other types by atomics.
        index: N integers, from 0 to V − 1; others are left out.
        rows: N×W.
    """
    if out.dtype.kind == "c" and out.flags.c_contiguous:
        part, rows = out.real.dtype, xp.ascontiguousarray(rows)
        add_rows(xp, out.view(part), index, rows.view(part))
        return out
    name = type_name(out.dtype)
    if name not in _FLOATS or out.shape[0] >= 1 << 32 or index.size >= 1 << 31:
        _scatter(xp, "add", out, index, rows)
        return out
    n, width = rows.shape
    if not n or not width:
        return out
    flat, rows = xp.ascontiguousarray(out), xp.ascontiguousarray(rows.astype(out.dtype, copy=False))
    keys, positions = _sorted(xp, index, out.shape[0])
    lanes = 16 // out.itemsize
    packed = width % lanes == 0 and (flat.data.ptr | rows.data.ptr) % 16 == 0
    runs = -(-n // _RUN)
    grid, block = (-(-runs * (width // lanes if packed else width) // _THREADS),), (_THREADS,)
    double = out.itemsize == 8
    parts = xp.empty((runs, 2, width), np.float64 if double else np.float32) if runs > 1 else None
    size = out.shape[0]
    kernel(xp.cupy, "scatter", "sum_sorted", ELEMENT=name)(
        grid, block, (keys, positions, rows, flat, parts, n, width, size, _RUN, int(packed)))
    if runs > 1:
        kernel(xp.cupy, "scatter", "join_sorted", ELEMENT=name)(
            grid, block, (keys, flat, parts, n, width, size, _RUN, int(packed)))
    if flat is not out:
        out[...] = flat
    return out


def add_along_axis(xp, out, index, values, axis):
    """``out[i][index[i][j]] += values[i][j]`` (for axis 1), in place; returns ``out``."""
    places = list(xp.indices(index.shape, sparse=True))
    places[axis] = index
    scatter_at(xp, "add", out, tuple(places), values)
    return out


def scatter_at(xp, ufunc, out, places, values):
    """``ufunc.at(out, places, values)`` in place; ``ufunc`` is "add", "multiply", "maximum" or
    "minimum", ``places`` an index array or a tuple of such that broadcast."""
    values = xp.asarray(values)
    if ufunc == "add" and out.dtype.kind not in "biu" and deterministic():
        _add_in_order(xp, out, places, values)
    else:
        _scatter(xp, ufunc, out, places, values)


def _add_in_order(xp, out, places, values):
    """Every element is a row of its own, numbered in C order."""
    flat = xp.ascontiguousarray(out)
    index = xp.arange(out.size).reshape(out.shape)[places]
    values = xp.ascontiguousarray(xp.broadcast_to(values.astype(out.dtype, copy=False), index.shape))
    add_rows(xp, flat.reshape(-1, 1), index.reshape(-1), values.reshape(-1, 1))
    if flat is not out:
        out[...] = flat


def _scatter(xp, ufunc, out, places, values):
    """By atomics, in any order; narrow types in a wider one, rounded once at the end (CuPy's ``add.at``
    knows few types, its ``multiply.at`` does not exist, its extremes round float64 to float32)."""
    if out.dtype.kind == "c":
        if ufunc != "add":
            raise NotImplementedError(f"{ufunc} of complex values at repeated places of a GPU array")
        _scatter(xp, ufunc, out.real, places, values.real)
        _scatter(xp, ufunc, out.imag, places, values.imag)
        return
    wide = _WIDER.get(out.dtype.name)
    if wide is not None:
        result = out.astype(wide)
        _scatter(xp, ufunc, result, places, values.astype(wide))
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
