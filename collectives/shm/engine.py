"""The collective calls of the ranks of one node, over shared memory.

All ranks of the group make the same calls in the same order. Each call begins with a meeting, in
which ranks also compare what they are about to do; small payloads travel with it, so a small call
costs one meeting.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .. import check
from ..call import Call
from .meetings import Array, Counts
from .pipeline import edges_of, part_of_slot
from .reductions import Reductions

_BYTE = np.dtype(np.uint8)


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

    Attributes:
        sent, received: bytes that this rank wrote for others, once for all who read them, and
            bytes that it read of what others wrote.
    """

    def broadcast(self, call: Call, buffer: Array, root: int) -> None:
        """Give `root`'s array to all ranks, in `buffer`."""
        self._begin(call)
        if buffer.nbytes <= self._small_bytes:
            slot = self._small_slots(buffer)[root]
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
        sends, takes = [], []
        if self.rank == root:
            sends.append((0, data))
        else:
            takes.append((root, 0, data))
        self._exchange(call, self._layout.slot_bytes, data.size, sends, takes)

    def all_gather(self, call: Call, out: Array, buffer: Array, counts: Counts = None) -> None:
        """Put everybody's `buffer` behind each other into `out`, in rank order.

        Args:
            counts: elements of each rank's part, the same on all ranks; None where all are equal.
        """
        self._begin(call, counts)
        if counts is None and buffer.nbytes <= self._small_bytes:
            slots = self._small_slots(buffer)
            slots[self.rank][...] = buffer
            self._meet(call)
            np.concatenate(slots, out=out)
            self.sent += buffer.nbytes
            self.received += out.nbytes - buffer.nbytes
            self._under_way = None
            return
        parts = _split(out, counts, buffer.size, self.size)
        takes = [(rank, 0, part) for rank, part in enumerate(parts)]
        longest = max(part.size for part in parts)
        self._exchange(call, self._layout.slot_bytes, longest, [(0, buffer.view(_BYTE))], takes)

    def gather(
        self, call: Call, out: Array | None, buffer: Array, root: int, counts: Counts = None
    ) -> None:
        """Put everybody's `buffer` behind each other into `root`'s `out`; None elsewhere."""
        self._begin(call, counts)
        sends, takes = [], []
        if self.rank != root:
            sends.append((0, buffer.view(_BYTE)))
        else:
            assert out is not None
            parts = _split(out, counts, buffer.size, self.size)
            takes = [(rank, 0, part) for rank, part in enumerate(parts) if rank != root]
            parts[root][...] = buffer.view(_BYTE)
        longest = buffer.itemsize * (buffer.size if counts is None else max(counts))
        self._exchange(call, self._layout.slot_bytes, longest, sends, takes)

    def scatter(
        self, call: Call, out: Array, buffer: Array | None, root: int, counts: Counts = None
    ) -> None:
        """Put part r of `root`'s `buffer` into rank r's `out`; None elsewhere."""
        self._begin(call, counts)
        piece = part_of_slot(self._layout.slot_bytes, self.size, 1)
        sends, takes = [], []
        if self.rank != root:
            takes.append((root, piece * self.rank, out.view(_BYTE)))
        else:
            assert buffer is not None
            parts = _split(buffer, counts, out.size, self.size)
            sends = [(piece * rank, part) for rank, part in enumerate(parts) if rank != root]
            out.view(_BYTE)[...] = parts[root]
        longest = out.itemsize * (out.size if counts is None else max(counts))
        self._exchange(call, piece, longest, sends, takes)

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
            slots = self._small_slots(buffer)
            slots[self.rank][...] = buffer
            self._meet(call)
            width = buffer.size // self.size
            begin = self.rank * width
            np.concatenate([slot[begin : begin + width] for slot in slots], out=out)
            self.sent += (self.size - 1) * width * buffer.itemsize
            self.received += (self.size - 1) * width * buffer.itemsize
            self._under_way = None
            return
        size, rank, itemsize = self.size, self.rank, buffer.itemsize
        piece = part_of_slot(self._layout.slot_bytes, size, 1)
        if uneven:
            row = self._counts[self._turn, rank]
            row[0] = buffer.size // size if in_counts is None else in_counts
            row[1] = out.size // size if out_counts is None else out_counts
            self._meet(call)
            sent, expected = self._counts[self._turn].swapaxes(0, 1)
            if not np.array_equal(sent, expected.T):
                check.fits(call, self.members, sent.tolist(), expected.tolist())
            longest = int(sent.max()) * itemsize
        else:
            longest = buffer.size // size * itemsize
        sources = _split(buffer, in_counts, buffer.size // size, size)
        targets = _split(out, out_counts, out.size // size, size)
        targets[rank][...] = sources[rank]
        sends = [(piece * r, part) for r, part in enumerate(sources) if r != rank]
        takes = [(r, piece * rank, part) for r, part in enumerate(targets) if r != rank]
        self._exchange(call, piece, longest, sends, takes, self._again if uneven else self._meet)

    def _again(self, call: Call) -> None:
        self._signals.post()
        self._signals.wait(call)

    def _exchange(
        self,
        call: Call,
        piece: int,
        longest: int,
        sends: list[tuple[int, Array]],
        takes: list[tuple[int, int, Array]],
        meet: Callable[[Call], None] | None = None,
    ) -> None:
        """Pass bytes on, `piece` of each array at a time.

        Args:
            longest: bytes of the longest array of any rank.
            sends: (offset in my slot, array).
            takes: (rank, offset in its slot, array).
            meet: the first meeting.
        """
        rank = self.rank

        def put(begin: int, slots: list[Array]) -> None:
            mine = slots[rank]
            for offset, array in sends:
                part = array[begin : begin + piece]
                mine[offset : offset + part.size] = part

        def take(begin: int, slots: list[Array]) -> None:
            for source, offset, array in takes:
                part = array[begin : begin + piece]
                part[...] = slots[source][offset : offset + part.size]

        slots = self._slots_of(_BYTE)
        self._pipeline.transfer(call, slots, longest, piece, meet or self._meet, put, take)
        self.sent += sum(array.size for _, array in sends)
        self.received += sum(array.size for source, _, array in takes if source != rank)
        self._under_way = None


def _split(array: Array, counts: Counts, count: int, size: int) -> list[Array]:
    """The bytes of each rank's part of `array`."""
    data, itemsize = array.view(_BYTE), array.itemsize
    edges = edges_of(counts, count, size)
    return [data[begin * itemsize : end * itemsize] for begin, end in zip(edges, edges[1:])]
