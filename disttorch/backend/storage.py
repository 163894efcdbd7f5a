"""Arrays as stretches of memory: what lies behind a view, and bytes to arrays and back.

A file keeps each piece of memory (a *storage*) once, and every tensor as a window onto one: an
offset, a shape and strides counted in elements.
"""

from __future__ import annotations

import math

import numpy as np

_CHUNK = 1 << 24  # bytes read at a time: file objects make a copy of each piece


def storage_of(xp, array):
    """The memory behind an array, and where in it the array lies.

    Returns:
        ``(flat, offset, strides)``: ``flat`` is a 1-dim array over the whole memory that the array
        is a view of; offset and strides count elements. An array whose place in its memory cannot
        be told in elements (negative strides, a view under another type) stands on a copy of its
        own.
    """
    flat, offset = _whole(array)
    size = array.itemsize
    if flat is None or any(s < 0 or s % size for s in array.strides):
        flat, offset, array = array.reshape(-1, order="C").copy(), 0, xp.ascontiguousarray(array)
    return flat, offset, _element_strides(array)


def _element_strides(array):
    return tuple(s // array.itemsize for s in array.strides)


def offset_of(xp, array) -> int:
    """Elements between the start of the memory that an array stands on and its first element."""
    return (_address(array) - _address(_root(array))) // array.itemsize if array.size else 0


def _root(array):
    """The array that owns the memory of this one."""
    while (below := _array_below(array)) is not None:
        array = below
    return array


def _whole(array):
    """(1-dim array over all the memory that owns ``array``, offset in elements), or (None, 0)."""
    root = _root(array)
    # NumPy lays out results like their operands: an owner may have its dims in any order
    root = root.transpose(sorted(range(root.ndim), key=lambda d: -root.strides[d]))
    if root.dtype != array.dtype or not root.flags.c_contiguous:
        return None, 0
    distance = _address(array) - _address(root)
    if distance % array.itemsize:
        return None, 0
    return root.reshape(-1), distance // array.itemsize


def _array_below(array):
    base = array.base
    if base is not None and not isinstance(base, type(array)):
        base = getattr(base, "base", None)  # NumPy's strided views stand on a holder of the array
    return base if isinstance(base, type(array)) else None


def _address(array) -> int:
    if isinstance(array, np.ndarray):
        return array.__array_interface__["data"][0]
    return array.data.ptr


def is_writeable(array) -> bool:
    """Whether it may be written: not read-only, and no element stands for several.

    CuPy knows no read-only arrays, so there an expanded one is told by its strides.
    """
    if isinstance(array, np.ndarray):
        return array.flags.writeable
    return not any(s == 0 and n > 1 for s, n in zip(array.strides, array.shape))


def memory_key(xp, flat):
    """What tells two storages apart: address, length and element type."""
    return (_address(flat), flat.nbytes, flat.dtype.str, flat.dtype.name)


def storage_bytes(xp, flat):
    """The bytes of a 1-dim array as a buffer, without a copy on the CPU."""
    return memoryview(xp.to_host(flat).view(np.uint8))


def storage_from_file(xp, read_into, nbytes: int, np_dtype, swap: bool):
    """A 1-dim array filled by ``read_into(buffer) -> bytes read``; ``swap`` reverses byte order.

    Raises:
        EOFError: if fewer bytes came than asked for.
    """
    flat = np.empty(nbytes // np_dtype.itemsize, np_dtype)
    view, got = flat.view(np.uint8).data, 0
    while got < flat.nbytes:
        n = read_into(view[got : got + _CHUNK])
        if not n:
            raise EOFError(f"{got} of {nbytes} bytes")
        got += n
    if swap:
        flat.byteswap(inplace=True)
    return xp.from_host(flat)


def window(xp, flat, offset: int, shape: tuple, strides: tuple):
    """The view of ``flat`` with this offset, shape and strides, in elements.

    Raises:
        ValueError: if it would reach outside the storage.
    """
    if len(shape) != len(strides) or offset < 0 or min((*shape, *strides), default=0) < 0:
        raise ValueError(f"shape {shape} and strides {strides} at offset {offset} are no window")
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides))
    count = math.prod(shape)
    if count and last >= flat.size:
        raise ValueError(
            f"a tensor of shape {shape} with strides {strides} at offset {offset} reaches element "
            f"{last} of a storage that has {flat.size}"
        )
    if not count:
        return flat[:0].reshape(shape)
    step = flat.itemsize
    return xp.lib.stride_tricks.as_strided(flat[offset:], shape, tuple(s * step for s in strides))


class _Memory:
    """Keeps an array's memory alive under another array that looks at it."""

    def __init__(self, array):
        self.owner = array
        self.__array_interface__ = {**array.__array_interface__,
                                    "data": (_address(array), False)}


def writeable_alias(array):
    """The same memory as an array that may be written to, where only a flag forbade it.

    Meant for memory whose owner allows writing but had no means to say so.
    """
    return np.asarray(_Memory(array))
