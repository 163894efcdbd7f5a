"""The collective calls of the ranks of one node, over shared memory.

All ranks of the group make the same calls in the same order. Each call begins with a meeting, in
which ranks also compare what they are about to do; small payloads travel with it, so a small call
costs one meeting. Reductions follow the fixed tree of `collectives.tree` by rank, whatever the size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import check
from ..call import Call
from ..tree import fold
from ..work import CollectiveError
from .layout import NOTE_BYTES, SLOTS, Layout
from .pipeline import Pipeline, typed_slots
from .segment import Segment
from .signals import Signals, Watch

Array = np.ndarray[Any, np.dtype[Any]]
Ufunc = Callable[..., Any]
Counts = Sequence[int] | None

#: Bytes of a slot. Three slots a rank, and the caller's arrays beside them, stay in a core's L2 cache.
CHUNK_BYTES = 256 << 10
#: Up to here each of three or more ranks reduces the whole payload itself: one meeting instead of two.
DIRECT_BYTES = 32 << 10
#: Up to here the views of the slots are kept from call to call.
SMALL_BYTES = 8 << 10
_BYTE = np.dtype(np.uint8)
_MASK = (1 << 63) - 1


class NodeEngine:
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
        chunk_bytes: of a slot: a multiple of 64, at least 64 a rank. The same on all ranks.
        spin: reads of a counter before a waiting rank makes a system call; None chooses.

    Attributes:
        copied, reduced: bytes that this rank copied through shared memory, and bytes of operands
            that it combined.
    """

    def __init__(
        self,
        segment: Segment,
        rank: int,
        size: int,
        members: Sequence[int],
        watch: Watch,
        *,
        chunk_bytes: int = CHUNK_BYTES,
        spin: int | None = None,
    ) -> None:
        layout = self._layout = Layout(size, chunk_bytes)
        if segment.memory.size < layout.nbytes or not 0 <= rank < size == len(members):
            raise ValueError(
                f"rank {rank} of {size} with members {list(members)} and slots of {chunk_bytes} bytes: "
                f"the segment needs {layout.nbytes} bytes, and has {segment.memory.size}"
            )
        self.rank = rank
        self.size = size
        self.members = tuple(members)
        self.copied = 0
        self.reduced = 0
        self._memory = segment.memory
        self._signals = Signals(segment.memory, layout, rank, members, watch, spin)
        self._pipeline = Pipeline(self._signals)
        self._slots: dict[np.dtype[Any], list[list[Array]]] = {}
        self._small: dict[tuple[np.dtype[Any], int], list[list[Array]]] = {}
        self._under_way: Call | None = None
        self._expected: Counts = None
        self._turn = 0
        table = segment.memory[layout.counts : layout.notes].view(np.int64)
        self._counts = table.reshape(2, size, 2, size)  # turn, rank, (sends, expects), peer

    @staticmethod
    def nbytes_for(size: int, chunk_bytes: int = CHUNK_BYTES) -> int:
        """Bytes of the segment that `size` ranks need."""
        return Layout(size, chunk_bytes).nbytes

    # Meetings

    def agree(self, call: Call) -> None:
        """Return when all ranks have come with the same call."""
        self._begin(call)
        self._meet(call)
        self._under_way = None

    barrier = agree
    arrive = agree

    def release(self, call: Call, data: bytes = b"") -> bytes:
        """The second half of a call that began with `arrive`: wait until rank 0 comes here too.

        Between the two, rank 0 acts for all, for example among the leaders of nodes. It does not
        wait here for the others.

        Args:
            data: of rank 0, at most 2046 bytes.

        Returns:
            Rank 0's data.
        """
        _check_note(data)
        signals = self._signals
        # No fingerprint: not everybody may have compared those of the meeting before.
        self._enter(call)
        if self.rank == 0:
            signals.write_note(data)
            signals.post()
        else:
            signals.post()
            signals.wait_for(call, 0)
            data = signals.note(0)
        self._under_way = None
        return data

    def publish(self, call: Call, data: bytes = b"", root: int = 0) -> bytes:
        """Give `root`'s bytes, at most 2046, to all ranks."""
        _check_note(data)
        self._begin(call)
        signals = self._signals
        # The ranks that read the note of a call before have met since they came to that call.
        self._meet(call)
        if self.rank == root:
            signals.write_note(data)
        signals.post()
        signals.wait_for(call, root)
        self._under_way = None
        return data if self.rank == root else signals.note(root)

    def _begin(self, call: Call, counts: Counts = None) -> None:
        self._enter(call)
        self._turn ^= 1
        self._expected = counts
        fingerprint = call.fingerprint
        if counts is not None:
            fingerprint ^= hash(tuple(map(int, counts))) & _MASK
        self._signals.mark(self._turn, fingerprint)

    def _enter(self, call: Call) -> None:
        if self._under_way is not None:
            raise CollectiveError(
                f"{call} cannot run: group {call.group!r} is unusable on rank {self.members[self.rank]} "
                f"since {self._under_way} did not complete; make a new group among the ranks that are left"
            )
        self._under_way = call

    def _meet(self, call: Call) -> None:
        signals = self._signals
        signals.post()
        signals.wait(call)
        if not signals.agreed(self._turn):
            self._mismatch(call)

    def _mismatch(self, call: Call) -> None:
        """All ranks have seen it: exchange what each was about to do, and raise."""
        signals = self._signals
        text, _, place = str(call).rpartition(" at ")
        if self._expected:
            text += f" with parts of {', '.join(map(str, self._expected[:32]))}"
        signals.write_note(f"{text} at {place}".encode())
        signals.post()
        signals.wait(call)
        texts = {
            member: signals.note(rank).decode(errors="replace") for rank, member in enumerate(self.members)
        }
        raise check.mismatch(call.group, call.number, texts)

    # Reductions

    def all_reduce(self, call: Call, buffer: Array, ufunc: Ufunc) -> None:
        """Reduce `buffer` over the ranks, in place.

        Args:
            ufunc: called as ufunc(left, right, out=target), such as np.add.
        """
        self._begin(call)
        if self.size == 1:
            self._meet(call)
        elif buffer.nbytes <= SMALL_BYTES:
            self._reduce_small(call, buffer, ufunc)
        elif self.size == 2 or buffer.nbytes <= DIRECT_BYTES:
            self._reduce_whole(call, buffer, ufunc, None)
        else:
            self._reduce_split(call, buffer, ufunc, None)
        self._under_way = None

    def _reduce_small(self, call: Call, buffer: Array, ufunc: Ufunc) -> None:
        """`_reduce_whole` for a single block, with everything prepared: here microseconds count."""
        pipeline = self._pipeline
        views = self._small.get((buffer.dtype, buffer.size)) or self._prepare(buffer)
        parts = views[pipeline.block % SLOTS]
        pipeline.block += 1
        parts[self.rank][...] = buffer
        self._meet(call)
        _fold(parts, ufunc, buffer)
        self.copied += buffer.nbytes
        self.reduced += (self.size - 1) * buffer.nbytes

    def _prepare(self, buffer: Array) -> list[list[Array]]:
        if len(self._small) >= 1024:
            self._small.clear()
        slots = self._slots_of(buffer.dtype)
        views = [[slot[: buffer.size] for slot in row] for row in slots]
        self._small[buffer.dtype, buffer.size] = views
        return views

    def reduce(self, call: Call, buffer: Array, ufunc: Ufunc, root: int) -> None:
        """Reduce `buffer` over the ranks, in place on `root`; others keep theirs."""
        self._begin(call)
        if self.size == 1:
            self._meet(call)
        elif self.size == 2 or buffer.nbytes <= DIRECT_BYTES:
            self._reduce_whole(call, buffer, ufunc, root)
        else:
            self._reduce_split(call, buffer, ufunc, root)
        self._under_way = None

    def _reduce_whole(self, call: Call, buffer: Array, ufunc: Ufunc, root: int | None) -> None:
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
                _fold(parts, ufunc, out)

        self._pipeline.transfer(call, slots, count, piece, self._meet, put, take)
        self.copied += (root != rank) * buffer.nbytes
        self.reduced += wanted * (self.size - 1) * buffer.nbytes

    def _reduce_split(self, call: Call, buffer: Array, ufunc: Ufunc, root: int | None) -> None:
        """Each rank reduces one part of each block, and all who want it read the results."""
        rank, size, count = self.rank, self.size, buffer.size
        wanted = root is None or root == rank
        slots = self._slots_of(buffer.dtype)
        part = _part(self._layout.slot_bytes, size, buffer.dtype.itemsize)
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
            _fold(parts, ufunc, result)
            if wanted:
                own[...] = result

        def take(begin: int, slots: list[Array]) -> None:
            if wanted:
                for p in others:
                    values = block_part(begin, p)
                    values[...] = slots[p][places[p]][: values.size]

        self._pipeline.reduction(call, slots, count, piece, self._meet, put, combine, take)
        self.copied += 2 * buffer.nbytes * (size - 1) // size if wanted else buffer.nbytes
        self.reduced += buffer.nbytes * (size - 1) // size

    def reduce_scatter(
        self, call: Call, out: Array, buffer: Array, ufunc: Ufunc, counts: Counts = None
    ) -> None:
        """Reduce `buffer` over the ranks, and leave part r of the result in rank r's `out`.

        Args:
            counts: elements of each part, the same on all ranks; None where all are equal.
        """
        self._begin(call, counts)
        rank, size = self.rank, self.size
        edges = _edges(counts, out.size, size)
        slots = self._slots_of(buffer.dtype)
        part = _part(self._layout.slot_bytes, size, buffer.dtype.itemsize)
        others = [p for p in range(size) if p != rank]

        def part_of(p: int, begin: int) -> Array:
            return buffer[edges[p] + begin : max(edges[p] + begin, min(edges[p] + begin + part, edges[p + 1]))]

        def put(begin: int, slots: list[Array]) -> None:
            mine = slots[rank]
            for p in others:
                values = part_of(p, begin)
                mine[part * p : part * p + values.size] = values

        def take(begin: int, slots: list[Array]) -> None:
            own = part_of(rank, begin)
            parts = [slot[part * rank : part * rank + own.size] for slot in slots]
            parts[rank] = own
            _fold(parts, ufunc, out[begin : begin + own.size])

        longest = max(map(int.__sub__, edges[1:], edges))
        self._pipeline.transfer(call, slots, longest, part, self._meet, put, take)
        self.copied += buffer.nbytes - out.nbytes
        self.reduced += (size - 1) * out.nbytes
        self._under_way = None

    # Data as it is

    def broadcast(self, call: Call, buffer: Array, root: int) -> None:
        """Give `root`'s array to all ranks, in `buffer`."""
        self._begin(call)
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
        parts = _split(out, counts, buffer.size, self.size)
        takes = [(rank, 0, part) for rank, part in enumerate(parts)]
        longest = max(part.size for part in parts)
        self._exchange(call, self._layout.slot_bytes, longest, [(0, buffer.view(_BYTE))], takes)

    def gather(self, call: Call, out: Array | None, buffer: Array, root: int, counts: Counts = None) -> None:
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

    def scatter(self, call: Call, out: Array, buffer: Array | None, root: int, counts: Counts = None) -> None:
        """Put part r of `root`'s `buffer` into rank r's `out`; None elsewhere."""
        self._begin(call, counts)
        piece = _part(self._layout.slot_bytes, self.size, 1)
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
        size, rank, itemsize = self.size, self.rank, buffer.itemsize
        piece = _part(self._layout.slot_bytes, size, 1)
        if uneven:
            row = self._counts[self._turn, rank]
            row[0] = buffer.size // size if in_counts is None else in_counts
            row[1] = out.size // size if out_counts is None else out_counts
            self._meet(call)
            sent, expected = self._counts[self._turn].swapaxes(0, 1)
            if not np.array_equal(sent, expected.T):
                check.fits(call.group, call.number, sent.tolist(), expected.tolist())
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
        self.copied += sum(each[-1].size for each in (*sends, *takes))
        self._under_way = None

    def _slots_of(self, dtype: np.dtype[Any]) -> list[list[Array]]:
        slots = self._slots.get(dtype)
        if slots is None:
            slots = self._slots[dtype] = typed_slots(self._memory, self._layout, dtype)
        return slots


def _fold(parts: list[Array], ufunc: Ufunc, out: Array) -> None:
    if len(parts) == 2:
        with np.errstate(all="ignore"):  # overflow is a value: inf, or wrapped around
            ufunc(parts[0], parts[1], out)
    else:
        fold(parts, ufunc, out)


def _part(slot_bytes: int, size: int, itemsize: int) -> int:
    """Elements of each of `size` equal parts of a slot, which begin on cache lines."""
    return slot_bytes // size // 64 * 64 // itemsize


def _edges(counts: Counts, count: int, size: int) -> list[int]:
    edges = [0]
    for each in [count] * size if counts is None else counts:
        edges.append(edges[-1] + each)
    return edges


def _split(array: Array, counts: Counts, count: int, size: int) -> list[Array]:
    """The bytes of each rank's part of `array`."""
    data, itemsize = array.view(_BYTE), array.itemsize
    edges = _edges(counts, count, size)
    return [data[begin * itemsize : end * itemsize] for begin, end in zip(edges, edges[1:])]


def _check_note(data: bytes) -> None:
    if len(data) > NOTE_BYTES - 2:
        raise ValueError(f"{len(data)} bytes do not fit: at most {NOTE_BYTES - 2} do; use broadcast")
