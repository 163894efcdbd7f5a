"""Arrays put together on the GPU: concatenation, repetition, rows by number, frames (``csrc/joins.cu``).

Each is one launch that writes every element of the result once. Functions take the namespace ``xp``
first and become methods of it, over CuPy's of the same name; calls that have more to them than moving
elements of one dtype (numbers among the arrays, counts given as arrays, no axis) go to CuPy's.
"""

from __future__ import annotations

import functools
import math
import struct
from itertools import product
from typing import NamedTuple

import numpy as np

from .. import layouts, plain_copies
from .kernel import kernel
from .moves import BLOCK, STEPS, UNITS, divisor, structure, widest

_LIMIT = 1 << 31
_ADDRESSES = struct.Struct("<QQ").pack
_PARTS = {n: structure(f"Parts{n}", "QQqqIIIIII" * n + "q") for n in (4, 64)}
_TAKEN = structure("Taken", "IIIIIIqq")
_FRAME = structure("Frame", "16sq" + "III" * 4 + "i" * 12)
_PER_BLOCK = BLOCK * STEPS


# ---------------------------------------------------------------- many arrays into one
def concatenate(xp, arrays, axis=0, out=None, **options):
    """``numpy.concatenate``."""
    if out is not None or options or axis is None:
        return xp.cupy.concatenate(arrays, axis, out, **options)
    if len(arrays) and all(_has_last(xp, a) for a in arrays):
        axis = axis + arrays[0].ndim if axis < 0 else axis
        axis = 0 if axis == 0 else arrays[0].ndim - 1 if axis == 1 else axis - 1
        return layouts.moved_back(concatenate(xp, [layouts.moved(a) for a in arrays], axis))
    found = _joined(xp, arrays, axis, False)
    return xp.cupy.concatenate(arrays, axis) if found is None else found


def _has_last(xp, a) -> bool:
    """Whether channels are innermost in an array: then they are in what is made of it."""
    return (a.__class__ is xp.ndarray and a.ndim in (4, 5) and not xp.is_contiguous(a)
            and layouts.is_channels_last(a) and layouts.is_dense(a, True))


def stack(xp, arrays, axis=0, out=None, **options):
    """``numpy.stack``."""
    found = _joined(xp, arrays, axis, True) if out is None and not options else None
    return xp.cupy.stack(arrays, axis, out, **options) if found is None else found


class _Join(NamedTuple):
    """How arrays of some shapes become one.

    Attributes:
        shape: of the result.
        places: where along the axis each array lies: an index of the result, None for an empty array.
        tables: the launches, if all are contiguous: (launch, blocks, class of its table, the arrays
            with their offsets in the result and what follows their addresses, the rest of the table).
    """

    shape: tuple
    places: list
    tables: list


_joins: dict[tuple, _Join | None] = {}


def _joined(xp, arrays, axis, new):
    """The arrays one behind the other along an axis (a ``new`` one); None if that is not ours."""
    array, is_contiguous = xp.ndarray, xp.is_contiguous
    if not arrays or any(a.__class__ is not array for a in arrays):
        return None
    dtype = arrays[0].dtype
    if any(a.dtype != dtype for a in arrays):
        return None
    bits, whole = 0, True
    for a in arrays:
        bits |= a.data.ptr
        whole = whole and is_contiguous(a)
    key = (xp.index, axis, new, dtype, bits & 15, whole, *[a.shape for a in arrays])
    plan = _joins.get(key, _joins)
    if plan is _joins:
        if len(_joins) > 4096:  # shapes that keep changing
            _joins.clear()
        shapes = [a.shape for a in arrays]
        plan = _joins[key] = _plan_join(xp, shapes, dtype, axis, new, bits & 15, whole)
    if plan is None:
        return None
    out = array(plan.shape, dtype)
    if not whole:
        for a, at in zip(arrays, plan.places):
            if at is not None:
                xp.copier.move(out[at], a)
        return out
    to = out.data.ptr
    for launch, blocks, kind, parts, rest in plan.tables:
        table = [_ADDRESSES(arrays[i].data.ptr + start, to + offset) + tail
                 for i, start, offset, tail in parts]
        launch(blocks, kind(b"".join(table) + rest))
    return out


def _plan_join(xp, shapes, dtype, axis, new, bits, whole) -> _Join | None:
    first, size = shapes[0], dtype.itemsize
    rank = len(first) + new
    if not -rank <= axis < rank:
        return None
    axis %= rank
    if any(len(s) != len(first) or (s if new else s[:axis]) != (first if new else first[:axis])
           or not new and s[axis + 1:] != first[axis + 1:] for s in shapes):
        return None
    sizes = [1 if new else s[axis] for s in shapes]
    shape = (*first[:axis], sum(sizes), *first[axis + (not new):])
    below = math.prod(shape[axis + 1:]) * size
    rows, pitch = math.prod(shape[:axis]), sum(sizes) * below
    lead, at, places, parts = (slice(None),) * axis, 0, [], []
    for i, n in enumerate(sizes):
        empty = not (n and below and rows)
        places.append(None if empty else (*lead, i if new else slice(at, at + n)))
        if not empty:
            parts.append((i, at * below, n * below))
        at += n
    return _Join(shape, places, _tables(xp, parts, rows, pitch, bits) if whole else [])


def _tables(xp, parts, rows: int, pitch: int, bits: int) -> list:
    """The launches for parts (number, offset in the result, bytes of a row), rows ``pitch`` apart."""
    unit = widest([bits, *[x for p in parts for x in p[1:]]], pitch)
    entries = []
    for i, offset, width in parts:
        most = max(1, (_LIMIT - _PER_BLOCK) // (width // unit))  # rows, whose accesses fit 32 bits
        entries += [(i, row * width, row * pitch + offset, width // unit, min(most, rows - row))
                    for row in range(0, rows, most)]
    made = []
    for start in range(0, len(entries), 64):
        some, block, packed = entries[start:start + 64], 0, []
        for i, source, offset, width, n in some:
            packed.append((i, source, offset, struct.pack(
                "<qqIIIIII", width, pitch // unit, *divisor(width), n * width, block, 0)))
            block += -(-n * width // _PER_BLOCK)
        room = 4 if len(some) <= 4 else 64
        rest = bytes(56 * (room - len(some))) + struct.pack("<q", len(some))
        made.append((_launch(xp, f"join{room}", unit, _PARTS[room]), block, _PARTS[room], packed, rest))
    return made


_launches: dict[tuple, object] = {}


def _launch(xp, name, unit, *types):
    """A function of the family for accesses of ``unit`` bytes."""
    key = (xp.index, name, unit, types)
    found = _launches.get(key)
    if found is None:
        found = _launches[key] = kernel(xp.cupy, "joins", name, UNIT=UNITS[unit]).prepared(BLOCK, types)
    return found


# ---------------------------------------------------------------- rows by number
def take(xp, a, indices, axis=None, **options):
    """``numpy.take``; a number out of range wraps around (index checks have noted it)."""
    if options or axis is None or a.__class__ is not xp.ndarray or indices.__class__ is not xp.ndarray:
        return xp.cupy.take(a, indices, axis, **options)
    kind, size = indices.dtype.kind, indices.itemsize
    if kind not in "iu" or not a.ndim:
        return xp.cupy.take(a, indices, axis)
    if not xp.is_contiguous(a):
        a = xp.contiguous_copy(a)
    if kind == "u" or size < 4:
        indices = xp.cast(indices, _INT64)
    if not xp.is_contiguous(indices):
        indices = xp.contiguous_copy(indices)
    shape, launch, blocks, places = _taken(
        xp, a.shape, a.itemsize, indices.shape, indices.itemsize, axis, a.data.ptr & 15)
    if blocks is None:
        return xp.cupy.take(a, indices, axis)
    out = xp.ndarray(shape, a.dtype)
    if blocks:
        launch(blocks, a, indices, out, places)
    return out


_INT64 = np.dtype(np.int64)


@functools.lru_cache(4096)
def _taken(xp, shape, size, numbers, number_size, axis, bits) -> tuple:
    """(the result's shape, launch, blocks or None if there is no kernel, the kernel's structure)."""
    axis = axis + len(shape) if axis < 0 else axis
    if not 0 <= axis < len(shape):
        return (), None, None, None
    rows, picks, outer = shape[axis], math.prod(numbers), math.prod(shape[:axis])
    result = (*shape[:axis], *numbers, *shape[axis + 1:])
    if not math.prod(result):
        return result, None, 0, None
    row = math.prod(shape[axis + 1:]) * size
    unit = widest((bits,), row)
    width = row // unit
    count = outer * picks * width
    if not rows or count >= _LIMIT:
        return (), None, None, None
    launch = _launch(xp, "take_i64" if number_size == 8 else "take_i32", unit, *[xp.ndarray] * 3, _TAKEN)
    places = _TAKEN(struct.pack("<IIIIIIqq", *divisor(width), *divisor(picks), rows, count))
    return result, launch, -(-count // _PER_BLOCK), places


def take_along_axis(xp, a, indices, axis):
    """``numpy.take_along_axis``, where the other axes have equal sizes."""
    axis = axis + a.ndim if axis is not None and axis < 0 else axis
    shape, numbers = a.shape, indices.shape
    if (axis is None or len(shape) != len(numbers) or indices.dtype.kind != "i" or indices.itemsize < 4
            or a.itemsize not in UNITS or not shape[axis] or indices.size >= _LIMIT
            or shape[:axis] != numbers[:axis] or shape[axis + 1:] != numbers[axis + 1:]):
        return xp.cupy.take_along_axis(a, indices, axis)
    out = xp.ndarray(numbers, a.dtype)
    if out.size:
        if not xp.is_contiguous(a) or a.data.ptr % a.itemsize:
            a = xp.contiguous_copy(a)
        if not xp.is_contiguous(indices):
            indices = xp.contiguous_copy(indices)
        launch, blocks, places = _picked(xp, shape, a.itemsize, numbers[axis], indices.itemsize, axis)
        launch(blocks, a, indices, out, places)
    return out


@functools.lru_cache(4096)
def _picked(xp, shape, size, picks, number_size, axis) -> tuple:
    inner, outer = math.prod(shape[axis + 1:]), math.prod(shape[:axis])
    name = "pick_i64" if number_size == 8 else "pick_i32"
    places = _TAKEN(struct.pack(
        "<IIIIIIqq", *divisor(inner), *divisor(picks), shape[axis], inner * picks * outer))
    launch = _launch(xp, name, size, *[xp.ndarray] * 3, _TAKEN)
    return launch, -(-inner * picks * outer // _PER_BLOCK), places


def counted_from_ends(xp, index, n):
    """Indices from −n to n − 1 as indices from 0."""
    found = xp.fused.remainder(index, n)
    return plain_copies.counted_from_ends(xp, index, n) if found is NotImplemented else found


# ---------------------------------------------------------------- frames
def framed(xp, source, shape: tuple, starts: tuple, value=0):
    """``source`` inside an array of ``shape``, beginning at ``starts``; ``value`` around it."""
    if _has_last(xp, source):
        shape, starts = ((x[0], *x[2:], x[1]) for x in (shape, starts))
        return layouts.moved_back(framed(xp, layouts.moved(source), shape, starts, value))
    out = xp.ndarray(shape, source.dtype)
    if not out.size:
        return out
    key = (xp.index, shape, starts, value, source.shape, source.strides, source.dtype,
           source.data.ptr & 15, out.data.ptr & 15)
    found = _frames.get(key)
    if found is None:
        if len(_frames) > 8192:  # shapes that keep changing
            _frames.clear()
        found = _frames[key] = _frame(xp, source, shape, starts, value, key[-2:])
    if found:
        launch, blocks, places = found
        launch(blocks, source, out, places)
    else:
        xp.fill_with(out, value)
        xp.assign(out[tuple([slice(s, s + n) for s, n in zip(starts, source.shape)])], source)
    return out


_frames: dict[tuple, tuple] = {}


def _frame_axes(source, shape, starts):
    """Axes (size, first, end, stride in bytes); one that the source fills is joined with that before."""
    axes: list[tuple] = []
    for n, start, own, stride in zip(shape, starts, source.shape, source.strides):
        if axes and own == n and (axes[-1][3] == n * stride or axes[-1][2] - axes[-1][1] <= 1):
            size, low, high, _ = axes[-1]
            axes[-1] = (size * n, low * n, high * n, stride)
        else:
            axes.append((n, start, start + own, stride))
    return axes


def _frame(xp, source, shape, starts, value, at) -> tuple:
    """(launch, blocks, the kernel's structure), or () where it does not fit."""
    axes, size = _frame_axes(source, shape, starts), source.itemsize
    inner, lead = axes[-1] if axes else (1, 0, 1, size), axes[:-1]
    unit = size
    if inner[3] == size:
        steps = [a[3] for a in lead]
        unit = max(size, widest((*at, *steps, inner[1] * size, inner[2] * size), inner[0] * size))
    each = unit // size
    counted = [(n, low, high, stride // unit) for n, low, high, stride in lead]
    counted.append((inner[0] // each, inner[1] // each, inner[2] // each, inner[3] * each // unit))
    count = math.prod([a[0] for a in counted])
    if len(axes) > 4 or size > 8 or at[0] % size or count >= _LIMIT or any(
            abs(a[3]) >= _LIMIT for a in counted):
        return ()
    counted = [(1, 0, 1, 0)] * (4 - len(counted)) + counted
    bits = np.full(16 // size, value).astype(source.dtype).tobytes()
    places = _FRAME(struct.pack(
        "<16sq" + "III" * 4 + "i" * 12, bits, count, *[x for a in counted for x in divisor(a[0])],
        *[a[1] for a in counted], *[a[2] for a in counted], *[a[3] for a in counted]))
    return (_launch(xp, "frame", unit, xp.ndarray, xp.ndarray, _FRAME), -(-count // _PER_BLOCK), places)


# ---------------------------------------------------------------- repeated and rolled
def repeat(xp, a, repeats, axis=None):
    """``numpy.repeat``."""
    if repeats.__class__ is not int or a.__class__ is not xp.ndarray:
        return xp.cupy.repeat(a, repeats, axis)
    if axis is None:
        a, axis = xp.reshaped(a, (a.size,)), 0
    axis = axis + a.ndim if axis < 0 else axis
    head, tail = a.shape[:axis + 1], a.shape[axis + 1:]
    many = a[(slice(None),) * (axis + 1) + (None,)]
    out = xp.contiguous_copy(xp.cupy.broadcast_to(many, (*head, repeats, *tail)))
    return out.reshape((*a.shape[:axis], a.shape[axis] * repeats, *tail))


def tile(xp, a, reps):
    """``numpy.tile``."""
    reps = (reps,) if reps.__class__ is int else tuple(reps)
    if a.__class__ is not xp.ndarray:
        return xp.cupy.tile(a, reps)
    rank = max(len(reps), a.ndim)
    reps, shape = (1,) * (rank - len(reps)) + reps, (1,) * (rank - a.ndim) + a.shape
    split = tuple([x for n in shape for x in (1, n)])
    out = xp.contiguous_copy(xp.cupy.broadcast_to(
        a.reshape(split), tuple([x for r, n in zip(reps, shape) for x in (r, n)])))
    return out.reshape(tuple([r * n for r, n in zip(reps, shape)]))


def roll(xp, a, shift, axis=None):
    """``numpy.roll``: a copy for each of the parts that stay together."""
    if axis is None:
        return roll(xp, xp.reshaped(a, (a.size,)), sum(shift) if isinstance(shift, tuple) else shift,
                    0).reshape(a.shape)
    axes = axis if isinstance(axis, tuple) else (axis,)
    shifts = [0] * a.ndim
    for d, s in zip(axes, shift if isinstance(shift, tuple) else (shift,) * len(axes)):
        shifts[d] += s
    out = xp.ndarray(a.shape, a.dtype)
    if not a.size:
        return out
    cuts = [[(slice(n - s % n, n), slice(0, s % n)), (slice(0, n - s % n), slice(s % n, n))] if s % n
            else [(slice(None), slice(None))] for n, s in zip(a.shape, shifts)]
    for parts in product(*cuts):
        xp.copier.move(out[tuple([p[1] for p in parts])], a[tuple([p[0] for p in parts])])
    return out
