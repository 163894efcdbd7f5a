"""How data passes through the slots, block by block.

Each rank has three slots, used in turn for every block of every call. One step of a transfer is

    put block b into my slot b; post; take block b-1 from the others' slots; wait for all posts

Slot b was last used for block b-3. Who has posted for block b-1 took block b-3 before that, and this
rank has waited for those posts: so nothing is overwritten that somebody may still read, although a
wait ends as soon as the others have put their block, not when they have taken ours. The rule holds
across calls, so a call needs no meeting at its end, and a call of one block needs one meeting only.

A rank that has taken the last block is done, and may leave: the others find all they need in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..call import Call
from .layout import SLOTS, Layout
from .signals import Signals

#: Called as step(begin, slots): the block of the payload that begins at `begin` lies in these slots,
#: by rank.
Step = Callable[[int, list[np.ndarray]], None]
Meet = Callable[[Call], None]


def typed_slots(memory: np.ndarray, layout: Layout, dtype: np.dtype) -> list[list[np.ndarray]]:
    """The slots as arrays of a dtype: [slot][rank]."""
    nbytes = layout.slot_bytes // dtype.itemsize * dtype.itemsize
    offsets = [[layout.slot(rank, which) for rank in range(layout.size)] for which in range(SLOTS)]
    return [[memory[at : at + nbytes].view(dtype) for at in row] for row in offsets]


class Pipeline:
    """The slots of all ranks, and the count of blocks that passed through them."""

    def __init__(self, signals: Signals) -> None:
        self._signals = signals
        self.block = 0

    def transfer(
        self,
        call: Call,
        slots: list[list[np.ndarray]],
        length: int,
        piece: int,
        meet: Meet,
        put: Step,
        take: Step,
    ) -> None:
        """Pass blocks of `piece`, `length` in all, from each rank to each other.

        The numbers are the same on all ranks. A length of zero still meets once.

        Args:
            slots: as `typed_slots` gives them.
            meet: the first post and wait, with which ranks also compare their calls.
            put: writes a block to this rank's slot.
            take: reads the others' slots.
        """
        signals = self._signals
        block = self.block
        now = slots[block % SLOTS]
        if length:
            put(0, now)
        meet(call)
        for begin in range(piece, length, piece):
            before, block = now, block + 1
            now = slots[block % SLOTS]
            put(begin, now)
            signals.post()
            take(begin - piece, before)
            signals.wait(call)
        if length:
            take((length - 1) // piece * piece, now)
        self.block = block + 1

    def reduction(
        self,
        call: Call,
        slots: list[list[np.ndarray]],
        length: int,
        piece: int,
        meet: Meet,
        put: Step,
        combine: Step,
        take: Step,
    ) -> None:
        """Pass blocks on in two stages: `put` is what others `combine`, whose results they `take`.

        One step is: put block b+1, combine block b, post, take the results of block b-1, wait.
        What is put and what is combined lie in different parts of a slot. By the rule above, the
        part of block b+1 that is put may be overwritten once block b-2 is combined, and the part of
        block b that is combined once the results of block b-3 are taken: both happen before the posts
        for which the step before has waited.
        """
        signals = self._signals
        first = block = self.block
        now = slots[block % SLOTS]
        put(0, now)
        meet(call)
        for begin in range(0, length, piece):
            following = slots[(block + 1) % SLOTS]
            if begin + piece < length:
                put(begin + piece, following)
            combine(begin, now)
            signals.post()
            if block > first:
                take(begin - piece, slots[(block - 1) % SLOTS])
            signals.wait(call)
            now, block = following, block + 1
        take((length - 1) // piece * piece, slots[(block - 1) % SLOTS])
        self.block = block


def part_of_slot(slot_bytes: int, size: int, itemsize: int) -> int:
    """Elements of each of `size` equal parts of a slot, which begin on cache lines."""
    return slot_bytes // size // 64 * 64 // itemsize


def edges_of(counts: Sequence[int] | None, count: int, size: int) -> list[int]:
    """Where each rank's part begins, and the last one ends; `count` is each part's if all are equal."""
    edges = [0]
    for each in [count] * size if counts is None else counts:
        edges.append(edges[-1] + each)
    return edges
