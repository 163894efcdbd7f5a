"""How operands of several shapes and strides lie beside each other: the plan of one elementwise launch.

Axes are put into the order of the result's memory, those of size 1 are dropped, and neighbours that
every operand runs through without a gap become one. What is left as one axis that all operands fill is
a plain stretch of memory, whatever the shapes were.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

MOST_AXES = 6


class Plan(NamedTuple):
    """One launch.

    Attributes:
        shape, size: of the result.
        like: which operand's order of axes a new result gets (``empty_like``); None for row-major.
        axes: 1 for a plain stretch; else how many the kernel is compiled for: 2, 3 or 6.
        inner: the size of the last axis.
        numbers: sizes without the first, then strides of the result and of each operand; in elements.
    """

    shape: tuple
    size: int
    like: int | None
    axes: int
    inner: int
    numbers: tuple


_plans: dict = {}


def plan_for(arrays, out=None) -> Plan | None:
    """The plan for these arrays; None where it would take more than six axes.

    Args:
        out: an array for the result, of any strides; None if it is yet to be made.

    Raises:
        ValueError: for shapes that do not broadcast, or that do not broadcast to ``out``'s.
    """
    key = (*[(a.shape, a.strides, a.itemsize) for a in arrays],
           None if out is None else (out.shape, out.strides, out.itemsize))
    try:
        return _plans[key]
    except KeyError:
        pass
    if len(_plans) > 8192:  # shapes that keep changing
        _plans.clear()
    plan = _plans[key] = _make(arrays, out)
    return plan


def _make(arrays, out):
    shape = np.broadcast_shapes(*[a.shape for a in arrays], *(() if out is None else (out.shape,)))
    if out is not None and out.shape != shape:
        raise ValueError(f"a result of shape {shape} does not fit into one of {out.shape}")
    if any(s % a.itemsize for a in (*arrays, *(() if out is None else (out,))) for s in a.strides):
        return None
    strides = [_spread(a, shape) for a in arrays]
    like = None
    if out is not None:
        to = _spread(out, shape)
        order = sorted(range(len(shape)), key=lambda d: -abs(to[d]))
    else:
        like, order = _leader(arrays, shape, list(range(len(shape))))
        to, step = [0] * len(shape), 1
        for d in reversed(order):
            to[d] = step
            step *= shape[d]
    merged = _merge([(shape[d], *[s[d] for s in (to, *strides)]) for d in order if shape[d] != 1])
    size = math.prod(shape)
    if size == 0 or not merged or len(merged) == 1 and all(s == 1 for s in merged[0][1:]):
        return Plan(shape, size, like, 1, size, ())
    if len(merged) > MOST_AXES:
        return None
    axes = next(n for n in (2, 3, MOST_AXES) if n >= len(merged))
    merged = [(1, *[0] * (len(arrays) + 1))] * (axes - len(merged)) + merged
    columns = list(zip(*merged))
    numbers = (*columns[0][1:], *[s for column in columns[1:] for s in column])
    return Plan(shape, size, like, axes, merged[-1][0], numbers)


def _spread(array, shape):
    """Strides in elements along the axes of ``shape``, 0 where the array is repeated."""
    lead = len(shape) - array.ndim
    own = [0 if n == 1 else s // array.itemsize for n, s in zip(array.shape, array.strides)]
    return [0] * lead + own


def _leader(arrays, shape, order):
    """(the first operand that fills the result's shape without gaps, in which order of axes); if that
    is row-major, (None, ``order``)."""
    for i, a in enumerate(arrays):
        if a.shape != shape:
            continue
        own = _spread(a, shape)
        mine = sorted(order, key=lambda d: -own[d] if shape[d] != 1 else -math.inf)
        step = 1
        for d in reversed(mine):
            if shape[d] != 1 and own[d] != step:
                break
            step *= shape[d]
        else:
            # axes of size 1 do not matter
            kept = [d for d in mine if shape[d] != 1]
            return (None, order) if kept == sorted(kept) else (i, mine)
    return None, order


def _merge(axes):
    """Neighbouring axes (size, strides…) joined where each operand goes on without a gap."""
    merged: list[tuple] = []
    for size, *steps in axes:
        if merged and all(big == small * size for big, small in zip(merged[-1][1:], steps)):
            merged[-1] = (merged[-1][0] * size, *steps)
        else:
            merged.append((size, *steps))
    return merged
