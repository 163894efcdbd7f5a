"""Views by strides that stay views of the array's owner, which NumPy's ``as_strided`` hides.

Whether a result shares memory with an input is told by ``.base``: it must be the array that owns
the memory. Each function takes the namespace ``xp`` first and becomes a method of it.
"""

from __future__ import annotations

import math

import numpy as np


def strided_view(xp, array, shape: tuple, strides: tuple, offset: int = 0):
    """A view that begins ``offset`` bytes after the array's first element (strides in bytes)."""
    if not isinstance(array, np.ndarray):
        flat, start, _ = xp.storage_of(array)
        first = start + offset // array.itemsize
        return xp.lib.stride_tricks.as_strided(flat[first:], shape, strides)
    flat, start, _ = xp.storage_of(array)
    if math.prod(shape) == 0:
        return flat[:0].reshape(shape)
    # The constructor takes a contiguous buffer only, and knows no 16-bit brain floats
    memory = flat if flat.dtype.kind != "V" else flat.view(np.uint16)
    return np.ndarray(shape, array.dtype, memory, start * array.itemsize + offset, strides)


def geometry(xp, array) -> tuple:
    """``(strides, offset, storage size)`` of an array in its memory, all in elements."""
    flat, offset, strides = xp.storage_of(array)
    return strides, offset, flat.size


def strided_window(xp, array, shape: tuple, strides: tuple, offset: int):
    """The view of the array's whole memory with this geometry (in elements).

    Raises:
        ValueError: if it would reach outside the memory.
    """
    flat, _, _ = xp.storage_of(array)
    if math.prod(shape):
        last = offset + sum((n - 1) * s for n, s in zip(shape, strides))
        if last >= flat.size:
            raise ValueError(f"{last + 1} elements for a storage of {flat.size}")
    size = array.itemsize
    return strided_view(xp, flat, shape, tuple(s * size for s in strides), offset * size)


def strided_places(xp, shape: tuple, strides: tuple, offset: int):
    """The position in memory of every element of a geometry, an array of ``shape``."""
    places = xp.full(shape, offset, dtype=np.int64)
    for dim, (n, s) in enumerate(zip(shape, strides)):
        places += (xp.arange(n) * s).reshape((n,) + (1,) * (len(shape) - dim - 1))
    return places
