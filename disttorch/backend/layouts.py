"""The order of dims in memory: row-major (N, C, spatial), or channels last (N, spatial, C).

An array's layout is read off its strides, so views keep it without any mark. Shape legend: N
samples, C channels, S one to three spatial dims; an array is N×C×S in either layout.
"""

from __future__ import annotations

import functools
import math

import numpy as np

# from the innermost dim of a channels-last array outwards
_INSIDE_OUT = {4: (1, 3, 2, 0), 5: (1, 4, 3, 2, 0)}
_TO_LAST = {3: (0, 2, 1), 4: (0, 2, 3, 1), 5: (0, 2, 3, 4, 1)}
_FROM_LAST = {3: (0, 2, 1), 4: (0, 3, 1, 2), 5: (0, 4, 1, 2, 3)}


def is_channels_last(array) -> bool:
    """Whether the strides of a 4- or 5-dim array put channels innermost, dense or not.

    PyTorch's rule: what could be either (one channel, or one place) is row-major, unless its
    strides say that it was made channels last.
    """
    order = _INSIDE_OUT.get(array.ndim)
    if order is None:
        return False
    shape, strides = array.shape, array.strides
    below, channel = 0, strides[1]
    if channel == 0:
        return False
    for d in order:
        if shape[d] == 0 or strides[d] < below or d == 0 and below == channel:
            return False
        below = strides[d] * shape[d]
    return True


def is_dense(array, last: bool) -> bool:
    """Whether the elements lie without gaps in that layout."""
    if last:
        array = array.transpose(_TO_LAST[array.ndim])
    return array.flags.c_contiguous


def maker(xp, shape: tuple, dtype, last: bool):
    """``f()`` that makes an array N×C×S of that layout, not filled."""
    dtype, empty = np.dtype(dtype), xp.empty
    if not last:
        return functools.partial(empty if xp.ndarray is np.ndarray else xp.ndarray, shape, dtype)
    if xp.ndarray is np.ndarray:
        moved, order = (shape[0], *shape[2:], shape[1]), _FROM_LAST[len(shape)]
        return lambda: empty(moved, dtype).transpose(order)
    # on a GPU an owner of its memory, no view: a gradient that is handed on then need not be copied
    array, allocate, size = xp.ndarray, xp.cupy.cuda.alloc, dtype.itemsize
    strides, bytes_ = tuple(s * size for s in strides_of(shape, True)), math.prod(shape) * size
    return lambda: array(shape, dtype, allocate(bytes_), strides)


def empty(xp, shape: tuple, dtype, last: bool):
    """An array N×C×S of that layout, not filled."""
    return maker(xp, shape, dtype, last)() if last else xp.empty(shape, dtype)


def dense(xp, array, last: bool):
    """The array, or a copy of it, dense in that layout."""
    if not last:
        return xp.ascontiguousarray(array)
    moved = array.transpose(_TO_LAST[array.ndim])
    if moved.flags.c_contiguous:
        return array
    return xp.ascontiguousarray(moved).transpose(_FROM_LAST[array.ndim])


def moved(array):
    """An array N×C×S as a view N×S×C."""
    return array.transpose(_TO_LAST[array.ndim])


def moved_back(array):
    """An array N×S×C as a view N×C×S."""
    return array.transpose(_FROM_LAST[array.ndim])


def copied(xp, array, last: bool):
    """A dense copy in that layout, its dims of one element with that layout's strides, too."""
    if not last:
        return xp.contiguous_copy(array)
    n = array.ndim
    return xp.contiguous_copy(array.transpose(_TO_LAST[n])).transpose(_FROM_LAST[n])


def rows(array):
    """A dense channels-last array as a matrix (N·S)×C."""
    return array.transpose(_TO_LAST[array.ndim]).reshape(-1, array.shape[1])


def from_rows(matrix, shape: tuple):
    """A contiguous matrix (N·S)×C as a channels-last array N×C×S."""
    return matrix.reshape(shape[0], *shape[2:], shape[1]).transpose(_FROM_LAST[len(shape)])


def strides_of(shape: tuple, last: bool) -> list[int]:
    """The strides, in elements, of a dense array of that layout."""
    order = [*range(len(shape))]
    if last:
        order = [0, *range(2, len(shape)), 1]
    strides, below = [0] * len(shape), 1
    for d in reversed(order):
        strides[d] = below
        below *= shape[d]
    return strides


def is_aligned(*arrays) -> bool:
    """Whether all begin at multiples of 16 bytes, as accesses of 16 bytes at once need it."""
    for array in arrays:
        host = isinstance(array, np.ndarray)
        if (array.__array_interface__["data"][0] if host else array.data.ptr) % 16:
            return False
    return True
