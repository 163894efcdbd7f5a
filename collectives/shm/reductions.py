"""Calls that combine what the ranks of one node hold, in the fixed tree of `collectives.tree`."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from ..call import Call
from ..tree import fold
from .meetings import Array, Counts, Meetings, Ufunc
from .pipeline import Meet, edges_of, part_of_slot
from .small import quiet

#: Up to here each of three or more ranks reduces the whole payload itself: one meeting instead of two.
DIRECT_BYTES = 32 << 10
#: Bytes of all the others' arrays together that are copied and reduced at a time.
FOLD_BYTES = 512 << 10


class Reductions(Meetings):
    """The reducing calls. See `engine.NodeEngine`."""

    def all_reduce(self, call: Call, buffer: Array, ufunc: Ufunc) -> None:
        """Reduce `buffer` over the ranks, in place.

        Args:
            ufunc: called as ufunc(left, right, out=target), such as np.add.
        """
        self._begin(call)
        if self.size == 1:
            self._meet(call)
        elif buffer.nbytes <= self._small_tree_bytes:
            self._reduce_small(call, buffer, ufunc)
        elif buffer.nbytes >= self.peers.limits["all_reduce"]:
            self._reduce_directly(call, buffer, ufunc)
        else:
            self._reduce_in_slots(call, buffer, ufunc, None, self._meet)
        self._under_way = None

    def _reduce_small(self, call: Call, buffer: Array, ufunc: Ufunc) -> None:
        """`_reduce_whole` for a single block, with everything prepared."""
        slot = self._small_slot(buffer.dtype, buffer.size)
        slot.mine[...] = buffer
        self._meet(call)
        self._quiet(slot.whole.reduce, ufunc, buffer)
        self.sent += buffer.nbytes
        self.received += (self.size - 1) * buffer.nbytes

    def reduce(self, call: Call, buffer: Array, ufunc: Ufunc, root: int) -> None:
        """Reduce `buffer` over the ranks, in place on `root`; others keep theirs."""
        self._begin(call)
        if self.size == 1:
            self._meet(call)
        else:
            self._reduce_in_slots(call, buffer, ufunc, root, self._meet)
        self._under_way = None

    def _reduce_in_slots(
        self, call: Call, buffer: Array, ufunc: Ufunc, root: int | None, meet: Meet
    ) -> None:
        if self.size == 2 or buffer.nbytes <= DIRECT_BYTES:
            self._reduce_whole(call, buffer, ufunc, root, meet)
        else:
            self._reduce_split(call, buffer, ufunc, root, meet)

    def _reduce_whole(
        self, call: Call, buffer: Array, ufunc: Ufunc, root: int | None, meet: Meet
    ) -> None:
        """Who wants the result reduces all of it, from everybody's slots.

        At two ranks that moves as many bytes as any split does: S read from the other rank.
        """
        rank, count = self.rank, buffer.size
        wanted = root is None or root == rank
        slots = self._slots_of(buffer.dtype)
        piece = slots[0][0].size

        def put(begin: int, slots: list[Array]) -> None:
            if root != rank:
                part = buffer[begin : begin + piece]
                slots[rank][: part.size] = part

        def take(begin: int, slots: list[Array]) -> None:
            if wanted:
                out = buffer[begin : begin + piece]
                parts = [slot[: out.size] for slot in slots]
                parts[rank] = out
                self._fold(parts, ufunc, out)

        self._pipeline.transfer(call, slots, count, piece, meet, put, take)
        self.sent += (root != rank) * buffer.nbytes
        self.received += wanted * (self.size - 1) * buffer.nbytes

    def _reduce_split(
        self, call: Call, buffer: Array, ufunc: Ufunc, root: int | None, meet: Meet
    ) -> None:
        """Each rank reduces one part of each block, and all who want it read the results."""
        rank, size, count = self.rank, self.size, buffer.size
        wanted = root is None or root == rank
        slots = self._slots_of(buffer.dtype)
        part = part_of_slot(self._layout.slot_bytes, size, buffer.dtype.itemsize)
        piece = part * size
        # In rank r's slot: its values of the other parts, by part, and in place of part r its result.
        places = [slice(part * p, part * (p + 1)) for p in range(size)]
        others = [p for p in range(size) if p != rank]

        def block_part(begin: int, p: int) -> Array:
            return buffer[begin + part * p : min(begin + part * (p + 1), begin + piece, count)]

        def put(begin: int, slots: list[Array]) -> None:
            mine = slots[rank]
            for p in others:
                values = block_part(begin, p)
                mine[part * p : part * p + values.size] = values

        def combine(begin: int, slots: list[Array]) -> None:
            own = block_part(begin, rank)
            parts = [slot[places[rank]][: own.size] for slot in slots]
            result, parts[rank] = parts[rank], own
            self._fold(parts, ufunc, result)
            if wanted:
                own[...] = result

        def take(begin: int, slots: list[Array]) -> None:
            if wanted:
                for p in others:
                    values = block_part(begin, p)
                    values[...] = slots[p][places[p]][: values.size]

        self._pipeline.reduction(call, slots, count, piece, meet, put, combine, take)
        self.sent += buffer.nbytes  # the others' parts, and the result of this rank's own
        self.received += (1 + wanted) * buffer.nbytes * (size - 1) // size

    def _reduce_directly(self, call: Call, buffer: Array, ufunc: Ufunc) -> None:
        """Each rank reduces one part from everybody's memory into its own, and reads the others'.

        While parts are reduced, a rank changes only the one that nobody else reads.
        """
        peers, rank, size = self.peers, self.rank, self.size
        with peers.offer(buffer):
            self._meet(call)
            if not peers.ready(call):
                self._reduce_in_slots(call, buffer, ufunc, None, self._again)
                return
            edges = _equal_edges(buffer.size, size)
            own = slice(edges[rank], edges[rank + 1])
            self._fold_peers(call, buffer, own, ufunc, buffer[own])
            self._again(call)
            for p in others_of(rank, size):
                part = buffer[edges[p] : edges[p + 1]]
                peers.read(call, p, edges[p] * buffer.itemsize, part)
            peers.finish(call)
        self.sent += buffer.nbytes
        self.received += buffer.nbytes + (size - 2) * buffer[own].nbytes

    def _fold_peers(self, call: Call, buffer: Array, part: slice, ufunc: Ufunc, out: Array) -> None:
        """Reduce a part of what all ranks offer into `out`, which may be that part of `buffer`."""
        rank, itemsize = self.rank, buffer.itemsize
        others = others_of(rank, self.size)
        scratch = self._scratch.view(buffer.dtype).reshape(len(others), -1)
        block = scratch.shape[1]
        parts = [buffer] * self.size
        for begin in range(part.start, part.stop, block):
            end = min(begin + block, part.stop)
            parts[rank] = buffer[begin:end]
            for p, values in zip(others, scratch):
                parts[p] = values[: end - begin]
                self.peers.read(call, p, begin * itemsize, parts[p])
            self._fold(parts, ufunc, out[begin - part.start : end - part.start])

    def _fold(self, parts: list[Array], ufunc: Ufunc, out: Array) -> None:
        if len(parts) == 2:
            self._quiet(ufunc, parts[0], parts[1], out=out)
        else:
            fold(parts, ufunc, out)

    @cached_property
    def _quiet(self) -> Callable[..., Any]:
        return quiet()

    @cached_property
    def _scratch(self) -> Array:
        """A piece of each of the others' arrays, for any dtype: all together stay in the L2 cache."""
        others = self.size - 1
        return np.empty(others * max(FOLD_BYTES // others // 4096, 1) * 4096, np.uint8)

    def reduce_scatter(
        self, call: Call, out: Array, buffer: Array, ufunc: Ufunc, counts: Counts = None
    ) -> None:
        """Reduce `buffer` over the ranks, and leave part r of the result in rank r's `out`.

        Args:
            counts: elements of each part, the same on all ranks; None where all are equal.
        """
        self._begin(call, counts)
        if counts is None and buffer.nbytes <= self._small_tree_bytes:
            self._reduce_scatter_small(call, out, buffer, ufunc)
        elif buffer.nbytes >= self.peers.limits["reduce_scatter"]:
            self._reduce_scatter_directly(call, out, buffer, ufunc, counts)
        else:
            self._reduce_scatter_blocks(call, out, buffer, ufunc, counts, self._meet)
        self.sent += buffer.nbytes - out.nbytes
        self.received += (self.size - 1) * out.nbytes
        self._under_way = None

    def _reduce_scatter_small(self, call: Call, out: Array, buffer: Array, ufunc: Ufunc) -> None:
        slot = self._small_slot(buffer.dtype, buffer.size)
        slot.mine[...] = buffer
        self._meet(call)
        self._quiet(slot.part.reduce, ufunc, out)

    def _reduce_scatter_directly(
        self, call: Call, out: Array, buffer: Array, ufunc: Ufunc, counts: Counts
    ) -> None:
        edges = edges_of(counts, out.size, self.size)
        with self.peers.offer(buffer):
            self._meet(call)
            if not self.peers.ready(call):
                self._reduce_scatter_blocks(call, out, buffer, ufunc, counts, self._again)
                return
            own = slice(edges[self.rank], edges[self.rank + 1])
            self._fold_peers(call, buffer, own, ufunc, out)
            self.peers.finish(call)

    def _reduce_scatter_blocks(
        self, call: Call, out: Array, buffer: Array, ufunc: Ufunc, counts: Counts, meet: Meet
    ) -> None:
        rank, size = self.rank, self.size
        edges = edges_of(counts, out.size, size)
        slots = self._slots_of(buffer.dtype)
        part = part_of_slot(self._layout.slot_bytes, size, buffer.dtype.itemsize)
        others = [p for p in range(size) if p != rank]

        def part_of(p: int, begin: int) -> Array:
            first = min(edges[p] + begin, edges[p + 1])
            return buffer[first : min(first + part, edges[p + 1])]

        def put(begin: int, slots: list[Array]) -> None:
            mine = slots[rank]
            for p in others:
                values = part_of(p, begin)
                mine[part * p : part * p + values.size] = values

        def take(begin: int, slots: list[Array]) -> None:
            own = part_of(rank, begin)
            parts = [slot[part * rank : part * rank + own.size] for slot in slots]
            parts[rank] = own
            self._fold(parts, ufunc, out[begin : begin + own.size])

        longest = max(map(int.__sub__, edges[1:], edges))
        self._pipeline.transfer(call, slots, longest, part, meet, put, take)


def others_of(rank: int, size: int) -> list[int]:
    """The other ranks, beginning with the next one, so that not all read from the same one."""
    return [(rank + step) % size for step in range(1, size)]


def _equal_edges(count: int, size: int) -> list[int]:
    """Where `size` parts of about the same length begin, and the last one ends."""
    return [count * p // size // 16 * 16 for p in range(size)] + [count]
