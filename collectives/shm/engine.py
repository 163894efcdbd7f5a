"""The collective calls of the ranks of one node, over shared memory.

All ranks of the group make the same calls in the same order. Each call begins with a meeting, in
which ranks also compare what they are about to do; small payloads travel with it, so a small call
costs one meeting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .. import check
from ..call import Call
from .meetings import Array, Counts
from .pipeline import Meet, edges_of, part_of_slot
from .reductions import Reductions, others_of

_BYTE = np.dtype(np.uint8)


@dataclass(slots=True)
class Passage:
    """The bytes that pass between the ranks in one call; slots are named by their ranks.

    Attributes:
        piece: bytes of every array that pass at a time, where they pass through slots.
        longest: bytes of the longest array of any rank.
        limit: from how many on ranks read each other's memory.
        offered: what others then read of.
        sends: what this rank gives: (offset in its slot, array).
        takes: what it gets: (from which rank, offset in its slot, offset in what it offers, array).
        own: (target, source) of what this rank gives to itself.
    """

    piece: int
    longest: int
    limit: int
    offered: Array | None = None
    sends: Sequence[tuple[int, Array]] = ()
    takes: Sequence[tuple[int, int, int, Array]] = ()
    own: tuple[Array, Array] | None = None

    def copy_own(self, begin: int = 0, end: int | None = None) -> None:
        if self.own is not None:
            target, source = self.own
            target[begin:end] = source[begin:end]


class NodeEngine(Reductions):
    """One rank's side of a group inside a node. Used by one thread at a time.

    Arrays are flat and contiguous; `out` and `buffer` do not overlap. Sizes are checked by whoever
    calls; that they are the same on all ranks is checked here.

    Every call raises MismatchError, on every rank, where ranks made different calls, and what
    `watch.look` raises while this rank waits. After any error the group is unusable, and further
    calls raise CollectiveError.

    Args:
        segment: of `nbytes_for(size, chunk_bytes)` bytes, the same one on all ranks.
        rank: of this process in the group, 0 … size-1.
        size: number of ranks.
        members: the job's number of each rank, for `watch` and for messages.
        watch: see `signals.Watch`.
        chunk_bytes: of a slot: a multiple of 64, at least 64 a rank. The same on all ranks;
            None chooses by `size`.
        spin: reads of a counter before a waiting rank makes a system call; None chooses.
        direct_bytes: from how many bytes on ranks read each other's memory, if the system lets them
            (see `peers`); None chooses. The same on all ranks.

    Attributes:
        sent, received: bytes of this rank's that it wrote or offered for others, once for all who
            read them, and bytes that it read of the others'.
        peers: reads their memory; says whether it may.
    """

    def broadcast(self, call: Call, buffer: Array, root: int) -> None:
        """Give `root`'s array to all ranks, in `buffer`."""
        self._begin(call)
        if buffer.nbytes <= self._small_bytes:
            slot = self._small_slot(buffer.dtype, buffer.size).rows[root]
            if self.rank == root:
                slot[...] = buffer
            self._meet(call)
            if self.rank == root:
                self.sent += buffer.nbytes
            else:
                buffer[...] = slot
                self.received += buffer.nbytes
            self._under_way = None
            return
        data = buffer.view(_BYTE)
        passage = Passage(self._layout.slot_bytes, data.size, self.peers.limits["broadcast"])
        if self.rank == root:
            passage.offered = buffer
            passage.sends = [(0, data)]
        else:
            passage.takes = [(root, 0, 0, data)]
        self._pass(call, passage)

    def all_gather(self, call: Call, out: Array, buffer: Array, counts: Counts = None) -> None:
        """Put everybody's `buffer` behind each other into `out`, in rank order.

        Args:
            counts: elements of each rank's part, the same on all ranks; None where all are equal.
        """
        self._begin(call, counts)
        if counts is None and buffer.nbytes <= self._small_bytes:
            slot = self._small_slot(buffer.dtype, buffer.size)
            slot.mine[...] = buffer
            self._meet(call)
            out.reshape(slot.everybody.shape)[...] = slot.everybody
            self.sent += buffer.nbytes
            self.received += out.nbytes - buffer.nbytes
            self._under_way = None
            return
        parts = _split(out, counts, buffer.size, self.size)
        longest = max(part.size for part in parts)
        passage = Passage(self._layout.slot_bytes, longest, self.peers.limits["all_gather"], buffer)
        passage.own = parts[self.rank], buffer.view(_BYTE)
        passage.sends = [(0, buffer.view(_BYTE))]
        passage.takes = [(rank, 0, 0, parts[rank]) for rank in others_of(self.rank, self.size)]
        self._pass(call, passage)

    def gather(
        self, call: Call, out: Array | None, buffer: Array, root: int, counts: Counts = None
    ) -> None:
        """Put everybody's `buffer` behind each other into `root`'s `out`; None elsewhere."""
        self._begin(call, counts)
        if counts is None and buffer.nbytes <= self._small_bytes:
            slot = self._small_slot(buffer.dtype, buffer.size)
            if self.rank != root:
                slot.mine[...] = buffer
                self.sent += buffer.nbytes
            self._meet(call)
            if out is not None:
                rows = out.reshape(slot.everybody.shape)
                rows[...] = slot.everybody
                rows[root] = buffer
                self.received += out.nbytes - buffer.nbytes
            self._under_way = None
            return
        longest = buffer.itemsize * (buffer.size if counts is None else max(counts))
        passage = Passage(self._layout.slot_bytes, longest, self.peers.limits["gather"], buffer)
        if self.rank != root:
            passage.sends = [(0, buffer.view(_BYTE))]
        else:
            assert out is not None
            parts = _split(out, counts, buffer.size, self.size)
            passage.own = parts[root], buffer.view(_BYTE)
            passage.takes = [(rank, 0, 0, parts[rank]) for rank in others_of(root, self.size)]
        self._pass(call, passage)

    def scatter(
        self, call: Call, out: Array, buffer: Array | None, root: int, counts: Counts = None
    ) -> None:
        """Put part r of `root`'s `buffer` into rank r's `out`; None elsewhere."""
        self._begin(call, counts)
        if counts is None and out.nbytes * self.size <= self._small_bytes:
            slot = self._small_slot(out.dtype, out.size * self.size)
            if buffer is not None:
                slot.mine[...] = buffer
                self.sent += buffer.nbytes - out.nbytes
            self._meet(call)
            out[...] = slot.to_me[root]
            self.received += out.nbytes * (self.rank != root)
            self._under_way = None
            return
        longest = out.itemsize * (out.size if counts is None else max(counts))
        piece = part_of_slot(self._layout.slot_bytes, self.size, 1)
        passage = Passage(piece, longest, self.peers.limits["scatter"], buffer)
        if self.rank != root:
            begin = edges_of(counts, out.size, self.size)[self.rank] * out.itemsize
            passage.takes = [(root, piece * self.rank, begin, out.view(_BYTE))]
        else:
            assert buffer is not None
            parts = _split(buffer, counts, out.size, self.size)
            passage.own = out.view(_BYTE), parts[root]
            passage.sends = [(piece * rank, parts[rank]) for rank in others_of(root, self.size)]
        self._pass(call, passage)

    def all_to_all(
        self, call: Call, out: Array, buffer: Array, out_counts: Counts = None, in_counts: Counts = None
    ) -> None:
        """Part s of rank r's `buffer` becomes part r of rank s's `out`.

        Args:
            out_counts: elements that come from each rank; None where all are equal.
            in_counts: elements that go to each rank; None where all are equal.

        Raises:
            MismatchError: on every rank, where a rank expects another count than is sent to it.
        """
        uneven = call.count < 0 or out_counts is not None or in_counts is not None
        self._begin(call, () if uneven else None)
        if not uneven and buffer.nbytes <= self._small_bytes:
            slot = self._small_slot(buffer.dtype, buffer.size)
            slot.mine[...] = buffer
            self._meet(call)
            out.reshape(slot.to_me.shape)[...] = slot.to_me
            moved = buffer.nbytes - buffer.nbytes // self.size
            self.sent += moved
            self.received += moved
            self._under_way = None
            return
        me, others = self.rank, others_of(self.rank, self.size)
        sources = _split(buffer, in_counts, buffer.size // self.size, self.size)
        targets = _split(out, out_counts, out.size // self.size, self.size)
        piece = part_of_slot(self._layout.slot_bytes, self.size, 1)
        passage = Passage(piece, sources[0].size, self.peers.limits["all_to_all"], buffer)
        passage.own = targets[me], sources[me]
        passage.sends = [(piece * rank, sources[rank]) for rank in others]
        if not uneven:
            begin = passage.longest * me
            passage.takes = [(rank, piece * me, begin, targets[rank]) for rank in others]
            self._pass(call, passage)
            return
        # What this rank reads of the others' arrays depends on counts that the first meeting brings.
        with self.peers.offer(buffer):
            sent = self._counts_of_all(call, out, buffer, out_counts, in_counts) * buffer.itemsize
            passage.longest = int(sent.max())
            begins = sent[:, :me].sum(1).tolist()
            passage.takes = [(rank, piece * me, begins[rank], targets[rank]) for rank in others]
            self._pass_on(call, passage, self._again)

    def _counts_of_all(
        self, call: Call, out: Array, buffer: Array, out_counts: Counts, in_counts: Counts
    ) -> Array:
        """Meet; what each rank (row) sends to each (column)."""
        row = self._counts[self._turn, self.rank]
        row[0] = buffer.size // self.size if in_counts is None else in_counts
        row[1] = out.size // self.size if out_counts is None else out_counts
        self._meet(call)
        sent, expected = self._counts[self._turn].swapaxes(0, 1)
        if not np.array_equal(sent, expected.T):
            check.fits(call, self.members, sent.tolist(), expected.tolist())
        return sent

    def _pass(self, call: Call, passage: Passage) -> None:
        """Meet, and let the bytes pass."""
        if passage.longest < passage.limit:
            self._pass_on(call, passage, self._meet)
            return
        with self.peers.offer(passage.offered):
            self._meet(call)
            self._pass_on(call, passage, self._again)

    def _pass_on(self, call: Call, passage: Passage, meet: Meet) -> None:
        if passage.longest < passage.limit or not self.peers.ready(call):
            self._through_slots(call, passage, meet)
        else:
            for source, _, begin, array in passage.takes:
                self.peers.read(call, source, begin, array)
            self.peers.finish(call, passage.copy_own)
        self.sent += sum(array.size for _, array in passage.sends)
        self.received += sum(array.size for _, _, _, array in passage.takes)
        self._under_way = None

    def _through_slots(self, call: Call, passage: Passage, meet: Meet) -> None:
        rank, piece = self.rank, passage.piece

        def put(begin: int, slots: list[Array]) -> None:
            mine = slots[rank]
            for offset, array in passage.sends:
                part = array[begin : begin + piece]
                mine[offset : offset + part.size] = part

        def take(begin: int, slots: list[Array]) -> None:
            for source, offset, _, array in passage.takes:
                part = array[begin : begin + piece]
                part[...] = slots[source][offset : offset + part.size]
            passage.copy_own(begin, begin + piece)

        slots = self._slots_of(_BYTE)
        self._pipeline.transfer(call, slots, passage.longest, piece, meet, put, take)


def _split(array: Array, counts: Counts, count: int, size: int) -> list[Array]:
    """The bytes of each rank's part of `array`."""
    data, itemsize = array.view(_BYTE), array.itemsize
    edges = edges_of(counts, count, size)
    return [data[begin * itemsize : end * itemsize] for begin, end in zip(edges, edges[1:])]
