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

import numpy as np

from .kernel import kernel
from .moves import BLOCK, STEPS, UNITS, divisor, structure, widest

_LIMIT = 1 << 31
_PART, _PAD = struct.Struct("<QQqqIIIIII"), bytes(56)
_PARTS = {n: structure(f"Parts{n}", "QQqqIIIIII" * n + "q") for n in (4, 64)}
_TAKEN = structure("Taken", "IIIIIIqq")
_FRAME = structure("Frame", "16sq" + "III" * 4 + "i" * 12)
_PER_BLOCK = BLOCK * STEPS


# ---------------------------------------------------------------- many arrays into one
def concatenate(xp, arrays, axis=0, out=None, **options):
    """``numpy.concatenate``."""
    first = arrays[0] if len(arrays) else None
    if out is not None or options or axis is None or not _alike(xp, arrays) or not first.ndim:
        return xp.cupy.concatenate(arrays, axis, out, **options)
    axis = axis + first.ndim if axis < 0 else axis
    lead, tail = first.shape[:axis], first.shape[axis + 1:]
    if any(a.shape[:axis] != lead or a.shape[axis + 1:] != tail or a.ndim != first.ndim for a in arrays):
        return xp.cupy.concatenate(arrays, axis)  # raises
    made = xp.ndarray((*lead, sum([a.shape[axis] for a in arrays]), *tail), first.dtype)
    _fill_parts(xp, made, arrays, axis, [a.shape[axis] for a in arrays])
    return made


def stack(xp, arrays, axis=0, out=None, **options):
    """``numpy.stack``."""
    if out is not None or options or not _alike(xp, arrays) or any(
            a.shape != arrays[0].shape for a in arrays):
        return xp.cupy.stack(arrays, axis, out, **options)
    shape = arrays[0].shape
    axis = axis + len(shape) + 1 if axis < 0 else axis
    made = xp.ndarray((*shape[:axis], len(arrays), *shape[axis:]), arrays[0].dtype)
    _fill_parts(xp, made, arrays, axis, None)
    return made


def _alike(xp, arrays) -> bool:
    """Whether all are arrays of one dtype."""
    return len(arrays) > 0 and all(
        a.__class__ is xp.ndarray and a.dtype == arrays[0].dtype for a in arrays)


def _fill_parts(xp, out, arrays, axis, sizes) -> None:
    """Write arrays one behind the other along an axis of ``out``; ``sizes``: how much of the axis each
    takes, None for one place each (``stack``)."""
    if not out.size:
        return
    below = math.prod(out.shape[axis + 1:]) * out.itemsize
    pitch, rows, at = out.shape[axis] * below, math.prod(out.shape[:axis]), 0
    parts = []
    for i, a in enumerate(arrays):
        n = 1 if sizes is None else sizes[i]
        if not n:
            continue
        if xp.is_contiguous(a):
            parts.append((a.data.ptr, out.data.ptr + at * below, n * below))
        else:
            lead = (slice(None),) * axis
            xp.copier.move(out[(*lead, i if sizes is None else slice(at, at + n))], a)
        at += n
    if parts:
        _join(xp, parts, rows, pitch)


def _join(xp, parts, rows: int, pitch: int) -> None:
    """Rows of contiguous parts (address, address of the target, bytes of a row) to rows ``pitch`` bytes
    apart."""
    unit = widest([x for p in parts for x in p], pitch)
    for start in range(0, len(parts), 64):
        some = parts[start:start + 64]
        most = 4 if len(some) <= 4 else 64
        packed, block = [], 0
        for source, target, width in some:
            width //= unit
            per = max(1, (_LIMIT - _PER_BLOCK) // width)  # rows of a launch, whose accesses fit 32 bits
            if rows > per:
                _join_by_pieces(xp, source, target, width * unit, rows, pitch, per)
                continue
            count = rows * width
            packed.append(_PART.pack(
                source, target, width, pitch // unit, *divisor(width), count, block, 0))
            block += -(-count // _PER_BLOCK)
        if packed:
            table = b"".join(packed) + _PAD * (most - len(packed)) + struct.pack("<q", len(packed))
            _launch(xp, f"join{most}", unit, _PARTS[most])(block, _PARTS[most](table))


def _join_by_pieces(xp, source, target, width, rows, pitch, per) -> None:
    for first in range(0, rows, per):
        part = source + first * width, target + first * pitch, width
        _join(xp, [part], min(per, rows - first), pitch)


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
    if (options or axis is None or a.__class__ is not xp.ndarray or indices.__class__ is not xp.ndarray
            or indices.dtype.kind not in "iu" or not a.ndim):
        return xp.cupy.take(a, indices, axis, **options)
    axis = axis + a.ndim if axis < 0 else axis
    shape = a.shape
    rows, picks, outer = shape[axis], indices.size, math.prod(shape[:axis])
    width = math.prod(shape[axis + 1:]) * a.itemsize
    out = xp.ndarray((*shape[:axis], *indices.shape, *shape[axis + 1:]), a.dtype)
    if not out.size:
        return out
    if not xp.is_contiguous(a):
        a = xp.contiguous_copy(a)
    unit = widest((a.data.ptr, out.data.ptr), width)
    width //= unit
    if not rows or outer * picks * width >= _LIMIT:
        return xp.cupy.take(a, indices, axis)
    if indices.dtype.name not in ("int64", "int32"):
        indices = xp.cast(indices, np.dtype(np.int64))
    indices = xp.ascontiguousarray(indices)
    places, blocks = _taken(width, picks, rows, outer)
    name = "take_i64" if indices.itemsize == 8 else "take_i32"
    _launch(xp, name, unit, xp.ndarray, xp.ndarray, xp.ndarray, _TAKEN)(
        blocks, a, indices, out, places)
    return out


@functools.lru_cache(4096)
def _taken(width: int, picks: int, rows: int, outer: int) -> tuple:
    count = outer * picks * width
    return (_TAKEN(struct.pack("<IIIIIIqq", *divisor(width), *divisor(picks), rows, count)),
            -(-count // _PER_BLOCK))


# ---------------------------------------------------------------- frames
def framed(xp, source, shape: tuple, starts: tuple, value=0):
    """``source`` inside an array of ``shape``, beginning at ``starts``; ``value`` around it."""
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
    if len(axes) > 4 or size > 8 or count >= _LIMIT or any(abs(a[3]) >= _LIMIT for a in counted):
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
    if repeats.__class__ is not int or axis is None or a.__class__ is not xp.ndarray:
        return xp.cupy.repeat(a, repeats, axis)
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
