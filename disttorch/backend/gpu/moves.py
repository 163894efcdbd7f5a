"""How elements get from one array's strides to another's: which kernel of ``csrc/copies.cu``, and where.

Axes are put into the order of the target's memory, reversed where they run backwards there, and joined
where both arrays go on without a gap. Then the innermost axes decide:

- both contiguous: whole rows in accesses as wide as both alignments allow (``strided``);
- the target's innermost is another than the source's: tiles through shared memory (``transpose``), or,
  where one of the two has at most 32 elements and no gaps, whole planes (``join_planes`` and
  ``part_planes``);
- the source has gaps, is repeated or not aligned: a thread collects 16 bytes (``gather``), also across
  the ends of rows where the target is one stretch (``flow``);
- anything else: element by element, neighbouring threads at neighbouring elements of the target.

Kernels count accesses and strides in 32 bits; what is larger is cut into several launches.
"""

from __future__ import annotations

import functools
import math
import struct
from typing import NamedTuple

from .launch import Structure

BLOCK, STEPS, GATHERED = 256, 4, 2  # threads; accesses of a thread: see csrc/copies.cu
UNITS = {1: "u8", 2: "u16", 4: "u32", 8: "u64", 16: "u128"}
_LIMIT = 1 << 31
_MOST_PLANES = 32
_AXES = {"strided": (2, 3, 4, 8), "gather": (2, 4, 8), "flow": (2, 4, 8)}


class Launch(NamedTuple):
    """One launch: a function of the family compiled for ``unit``, and what follows source and target."""

    name: str
    unit: str
    blocks: int
    places: Structure
    more: tuple[int, ...] = ()


class Axis(NamedTuple):
    """An axis of more than one element; strides of the source and the target in bytes."""

    size: int
    source: int
    target: int


def divisor(size: int) -> tuple[int, int, int]:
    """(size, magic, shift): ``Divisor`` of csrc/places.cuh."""
    shift = (size - 1).bit_length()
    return size, ((1 << 32) * ((1 << shift) - size)) // size + 1, shift


def structure(name: str, layout: str) -> type[Structure]:
    """A class of structures with this layout (``struct``'s codes)."""
    return type(name, (Structure,), {"SIZE": struct.calcsize("<" + layout)})


_AXES_OF = {n: structure(f"Axes{n}", "qqq" + "IIIiii" * n) for n in (2, 3, 4, 8)}
_PLANE = structure("Plane", "qqq" + "IIIiii" * 6 + "qqqq")
_PLANES = structure("Planes", "qqq" + "IIIiii" * 6 + "qqq" + "IIIIII")


def pack_axes(start: tuple[int, int], axes: list[tuple[int, int, int]], count: int, n: int) -> bytes:
    """``Axes<n>`` of csrc/places.cuh; axes (size, source, target) outermost first, in units."""
    axes = [(1, 0, 0)] * (n - len(axes)) + axes
    return struct.pack("<qqq", *start, count) + b"".join(
        [struct.pack("<IIIiii", *divisor(size), f, t, 0) for size, f, t in axes])


def join(axes: list[Axis]) -> list[Axis]:
    """Neighbours through which both arrays go on without a gap, as one."""
    joined: list[Axis] = []
    for axis in axes:
        if joined and joined[-1].source == axis.source * axis.size and (
                joined[-1].target == axis.target * axis.size):
            axis = Axis(joined.pop().size * axis.size, axis.source, axis.target)
        joined.append(axis)
    return joined


def widest(places, size: int) -> int:
    """The widest access, up to 16 bytes, for addresses and strides that are multiples of these."""
    return math.gcd(16, size, *places)


def plan(shape, source, target, itemsize: int, source_at: int, target_at: int) -> list[Launch] | int:
    """The launches that copy.

    Args:
        shape: of both arrays.
        source, target: strides in bytes, 0 in the source where an element is repeated.
        itemsize: bytes of an element: 1, 2, 4, 8 or 16.
        source_at, target_at: the addresses, of which the last four bits count.

    Returns:
        Launches; or a number of bytes, if they are one stretch in both arrays.
    """
    if 0 in shape:
        return []
    axes = [Axis(*a) for a in zip(shape, source, target) if a[0] != 1]
    whole = math.gcd(itemsize, source_at, target_at, *[x for a in axes for x in a[1:]])
    if whole < itemsize:  # elements at odd places: as rows of smaller ones
        axes.append(Axis(itemsize // whole, whole, whole))
        itemsize = whole
    start = [0, 0]
    for i, (size, f, t) in enumerate(axes):
        if t < 0:
            start = [start[0] + (size - 1) * f, start[1] + (size - 1) * t]
            axes[i] = Axis(size, -f, -t)
    axes = join(sorted(axes, key=lambda a: -a.target))
    if not start[0] and not start[1] and (
            not axes or len(axes) == 1 and axes[0].source == axes[0].target == itemsize):
        return itemsize * (axes[0].size if axes else 1)
    return _launches(axes, (start[0], start[1]), itemsize, (source_at, target_at))


def _launches(axes, start, size, at) -> list[Launch]:
    """One launch, or those of two parts: halves where it would not fit."""
    axis, cut = len(axes) - 1, _whole_accesses(axes, size, at[1] + start[1])
    if not cut:
        found = _launch(axes, start, size, (at[0] + start[0], at[1] + start[1]))
        if not isinstance(found, int):
            return [found]
        axis, cut = found, axes[found].size // 2
    n, f, t = axes[axis]
    first = [*axes[:axis], Axis(cut, f, t), *axes[axis + 1:]]
    second = [*axes[:axis], Axis(n - cut, f, t), *axes[axis + 1:]]
    after = (start[0] + cut * f, start[1] + cut * t)
    return [launch for part, begin in ((first, start), (second, after))
            for launch in _launches([a for a in part if a.size != 1], begin, size, at)]


def _whole_accesses(axes, size, target_at) -> int:
    """How much of the last axis to copy apart from its rest: 0, or what is whole 16 bytes of long rows
    that begin at multiples of 16 bytes in the target."""
    n, source, target = axes[-1] if len(axes) > 1 else (0, 0, 0)
    if source != size or target != size or n * size < 1024 or n * size % 8 == 0:
        return 0
    aligned = widest((target_at, *[a.target for a in axes[:-1]]), 16) == 16
    return n - n * size % 16 // size if aligned else 0


def _launch(axes, start, size, at) -> Launch | int:
    """The launch, or which axis to halve because it does not fit."""
    if not axes:
        axes = [Axis(1, size, size)]
    last, others = axes[-1], axes[:-1]
    if last.target != size:
        return _rows("strided", axes, start, size, size)
    target_width = widest((at[1], *[a.target for a in others]), last.size * size)
    if last.source == size:
        width = widest((at[0], *[a.source for a in others]), last.size * size)
        unit = min(width, target_width)
        if unit < 8 and target_width < 16 and _flows(axes, at[1], size, unit):
            return _rows("flow", axes, start, size, unit)
        if target_width == 16 and width <= 4:  # reading goes through the L1 cache, writing does not
            return _rows("gather", axes, start, width, 16, 1)
        return _rows("strided", axes, start, size, min(width, target_width))
    fast = next((i for i, a in enumerate(others) if a.source == size), None)
    if fast is not None and last.source:
        found = _planes(axes, fast, start, size, at)
        if found is None and min(last.size, axes[fast].size) >= 16:
            found = _transpose(axes, fast, start, size, at)
        if found is not None:
            return found
    if target_width == 16 and size < 16:
        return _rows("gather", axes, start, size, 16, last.source // size)
    if size < 8 and _flows(axes, at[1], size, size):
        return _rows("flow", axes, start, size, size)
    return _rows("strided", axes, start, size, size)


def _flows(axes, target_at, size, unit) -> bool:
    """Whether the target is one stretch from a multiple of 16 bytes on, in rows of 16 bytes or more."""
    whole = all(a.target == b.target * b.size for a, b in zip(axes, axes[1:]))
    return whole and target_at % 16 == 0 and axes[-1].size * size >= 16 and (
        math.prod([a.size for a in axes]) * size // unit < _LIMIT - 16)


def _fits(axes: list[tuple[int, int, int]], count: int, most: int) -> int | None:
    """None if sizes, strides and the number of axes fit; else the axis to halve."""
    for i, (n, f, t) in enumerate(axes):
        if n > 1 and max(abs(f), abs(t)) >= _LIMIT:
            return i
    sizes = [a[0] for a in axes]
    if len(axes) > most:
        return sizes.index(min(sizes))
    return sizes.index(max(sizes)) if count >= _LIMIT else None


def _rows(name, axes, start, size, width, step=None) -> Launch | int:
    """``strided`` and ``flow`` by accesses of ``width`` bytes, ``gather`` (which has a ``step``)."""
    unit = size if step is not None else width
    last = axes[-1]
    if width == size:
        inner = (last.size, last.source // size, last.target // size)
    elif step is None:
        inner = (last.size * size // width, 1, 1)
    else:  # the last axis may be of larger elements than those that are collected
        each = last.target
        inner = (last.size * each // width, width // each * last.source // unit, 1)
    counted = [(a.size, a.source // unit, a.target // width) for a in axes[:-1]] + [inner]
    count = math.prod([a[0] for a in counted])
    wrong = _fits(counted, count, 8)
    if wrong is not None:
        return wrong
    n = next(n for n in _AXES[name] if n >= len(counted))
    each = GATHERED * 16 // width if name == "flow" else STEPS if step is None else GATHERED
    blocks = -(-count // (BLOCK * each))
    places = _AXES_OF[n](pack_axes(start, counted, count, n))
    return Launch(f"{name}{n}", UNITS[unit], blocks, places, () if step is None else (step,))


def _batches(axes, skip, size, numbers) -> tuple[list, int, int | None]:
    """(axes of tiles, blocks, axis to halve or None): the axes but ``skip``, then numbers of tiles."""
    kept = [i for i in range(len(axes)) if i not in skip]
    counted = [(axes[i].size, axes[i].source // size, axes[i].target // size) for i in kept]
    blocks = math.prod([a[0] for a in counted], start=math.prod(numbers))
    wrong = _fits(counted, 0, 6 - len(numbers))
    if wrong is not None:
        return [], 0, kept[wrong]
    if blocks >= _LIMIT or any(axes[i].size >= _LIMIT for i in skip):
        sizes = [a.size for a in axes]
        return [], 0, sizes.index(max(sizes))
    return counted + [(n, 0, 0) for n in numbers], blocks, None


def _transpose(axes, fast, start, size, at) -> Launch | int:
    b, a = axes[fast], axes[-1]
    width = min(widest((at[0], *[x.source for x in axes if x is not b]), b.size * size),
                widest((at[1], *[x.target for x in axes if x is not a]), a.size * size))
    many = max(1, min(4, width // size))
    edge = 16 if size == 16 else 32 if size == 8 else 64
    tiles, blocks, wrong = _batches(
        axes, (fast, len(axes) - 1), size, (-(-a.size // edge), -(-b.size // edge)))
    if wrong is not None:
        return wrong
    places = pack_axes(start, tiles, blocks, 6) + struct.pack(
        "<qqqq", a.source // size, b.target // size, a.size, b.size)
    return Launch(f"transpose{many}", UNITS[size], blocks, _PLANE(places))


def _planes(axes, fast, start, size, at) -> Launch | int | None:
    """Few planes to elements side by side (``join``) or back; None if it is not that."""
    b, a = axes[fast], axes[-1]
    if 1 < a.size <= _MOST_PLANES and b.size >= 64 and b.target == a.size * size:
        name, few, length, pitch = "join_planes", a.size, b.size, a.source
    elif 1 < b.size <= _MOST_PLANES and a.size >= 64 and a.source == b.size * size:
        name, few, length, pitch = "part_planes", b.size, a.size, b.target
    else:
        return None
    others = [x for x in axes if x is not a and x is not b]
    steps = [x for o in others for x in o[1:]]
    wide = 16 // size
    if widest((*at, *steps, pitch), length * size) < 16:
        name, wide = name + "1", 1
    room = 4096 if size < 4 else 16384 // size
    high = min(room // few, length) // (16 // size) * (16 // size)
    high = max(high, 16 // size)
    tiles, blocks, wrong = _batches(axes, (fast, len(axes) - 1), size, (-(-length // high),))
    if wrong is not None:
        return wrong
    places = pack_axes(start, tiles, blocks, 6) + struct.pack(
        "<qqqIIIIII", pitch // size, length, high, *divisor(few), *divisor(high // wide))
    return Launch(name, UNITS[size], blocks, _PLANES(places))


@functools.lru_cache(4096)
def is_viewable(shape: tuple, strides: tuple, new: tuple) -> bool:
    """Whether an array of these strides can be seen in another shape (of as many elements)."""
    if 0 in shape:
        return True
    runs: list[list[int]] = []  # (elements, stride of the last axis) of what lies without a gap
    for n, s in zip(shape, strides):
        if n == 1:
            continue
        if runs and runs[-1][1] == n * s:
            runs[-1] = [runs[-1][0] * n, s]
        else:
            runs.append([n, s])
    left = iter([n for n in new if n != 1])
    for size, _ in runs:
        while size > 1:  # new axes must fill each run exactly
            n = next(left)
            if size % n:
                return False
            size //= n
    return True
