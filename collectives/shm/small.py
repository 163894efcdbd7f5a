"""What a call of a few bytes needs, prepared once for each length: microseconds count."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from functools import cached_property
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Ufunc = Callable[..., Any]
Step = tuple[Array, Array, Array]


class SmallSlot:
    """Views of the beginning of every rank's slot.

    Args:
        slots: of all ranks, by rank.
        rank: whose own is `mine`.
        count: elements.

    Attributes:
        mine: this rank's.
        rows: each rank's.
        everybody: all of them as one array [rank, element].
    """

    def __init__(self, slots: list[Array], rank: int, count: int) -> None:
        self._rank = rank
        self.rows = [slot[:count] for slot in slots]
        self.mine = self.rows[rank]
        stride = slots[-1].ctypes.data - slots[-2].ctypes.data if len(slots) > 1 else 0
        shape, itemsize = (len(slots), count), slots[0].itemsize
        self.everybody = np.lib.stride_tricks.as_strided(slots[0], shape, (stride, itemsize))

    @cached_property
    def whole(self) -> Tree:
        """Reduces the ranks' arrays."""
        return Tree(self.everybody)

    @cached_property
    def part(self) -> Tree:
        """Reduces this rank's part of them."""
        return Tree(self.to_me)

    @cached_property
    def to_me(self) -> Array:
        """This rank's part of each rank's array: [rank, element]."""
        size, count = self.everybody.shape
        width = count // size
        return self.everybody[:, width * self._rank : width * (self._rank + 1)]


class Tree:
    """The fixed tree of `collectives.tree` over the rows of an array, level by level."""

    def __init__(self, rows: Array) -> None:
        steps: list[Step] = []
        self._row = _build(rows, steps)
        self._steps, self._last = steps[:-1], steps[-1][:2] if steps else None

    def reduce(self, ufunc: Ufunc, out: Array) -> None:
        """Reduce the rows as they are now into `out`."""
        if self._last is None:
            out[...] = self._row
            return
        for left, right, target in self._steps:
            ufunc(left, right, out=target)
        left, right = self._last
        ufunc(left, right, out=out)


def _build(rows: Array, steps: list[Step]) -> Array:
    """Append the steps that reduce `rows`; returns where the result will be."""
    leaves = len(rows)
    if leaves == 1:
        return rows[0]
    half = 1 << (leaves - 1).bit_length() - 1  # the largest power of two below
    if 2 * half != leaves:
        left, right = _build(rows[:half], steps), _build(rows[half:], steps)
    else:
        while len(rows) > 2:
            level = np.empty((len(rows) // 2, *rows.shape[1:]), rows.dtype)
            steps.append((rows[::2], rows[1::2], level))
            rows = level
        left, right = rows
    steps.append((left, right, np.empty(rows.shape[1:], rows.dtype)))
    return steps[-1][2]


def quiet() -> Callable[..., Any]:
    """A function that calls what it is given where overflow is a value: inf, or wrapped around.

    `np.errstate` does the same, and takes longer than the addition of two small arrays. NumPy keeps
    its state in a context variable. Used by one thread at a time, and not inside itself.
    """
    context = copy_context()
    context.run(np.seterr, all="ignore")
    return context.run
