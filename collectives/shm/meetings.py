"""The ranks of one node come together, compare what they are about to do, and pass notes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import check
from ..call import Call
from ..work import CollectiveError
from .layout import NOTE_BYTES, SLOTS, Layout, slot_bytes_for
from .peers import PeerMemory
from .pipeline import Pipeline, typed_slots
from .segment import Segment
from .signals import Signals, Watch
from .small import SmallSlot

Array = np.ndarray[Any, np.dtype[Any]]
Ufunc = Callable[..., Any]
Counts = Sequence[int] | None

#: Up to here the views of the slots are kept from call to call: microseconds count.
SMALL_BYTES = 128 << 10
#: The same for reductions over three and more ranks, where memory for partial results is kept, too.
SMALL_TREE_BYTES = 8 << 10
_MASK = (1 << 63) - 1


class Meetings:
    """What every call begins with. See `engine.NodeEngine`."""

    def __init__(
        self,
        segment: Segment,
        rank: int,
        size: int,
        members: Sequence[int],
        watch: Watch,
        *,
        chunk_bytes: int | None = None,
        spin: int | None = None,
        direct_bytes: int | None = None,
    ) -> None:
        layout = self._layout = Layout(size, chunk_bytes or slot_bytes_for(size))
        if segment.memory.size < layout.nbytes or not 0 <= rank < size == len(members):
            raise ValueError(
                f"rank {rank} of {size} with members {list(members)} and slots of {layout.slot_bytes} "
                f"bytes: the segment needs {layout.nbytes} bytes, and has {segment.memory.size}"
            )
        self.rank = rank
        self.size = size
        self.members = tuple(members)
        self.sent = 0
        self.received = 0
        self._memory = segment.memory
        self._signals = Signals(segment.memory, layout, rank, members, watch, spin)
        self._pipeline = Pipeline(self._signals)
        self.peers = PeerMemory(
            segment.memory, layout, rank, members, self._signals, watch, direct_bytes
        )
        self._slots: dict[np.dtype[Any], list[list[Array]]] = {}
        self._small_bytes = min(SMALL_BYTES, layout.slot_bytes)
        small_tree = SMALL_BYTES if size == 2 else SMALL_TREE_BYTES
        self._small_tree_bytes = min(small_tree, layout.slot_bytes)
        self._small: dict[tuple[np.dtype[Any], int], list[SmallSlot]] = {}
        self._under_way: Call | None = None
        self._expected: Counts = None
        self._turn = 0
        table = segment.memory[layout.counts : layout.notes].view(np.int64)
        self._counts = table.reshape(2, size, 2, size)  # turn, rank, (sends, expects), peer

    @staticmethod
    def nbytes_for(size: int, chunk_bytes: int | None = None) -> int:
        """Bytes of the segment that `size` ranks need."""
        return Layout(size, chunk_bytes or slot_bytes_for(size)).nbytes

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
                f"since {self._under_way} did not complete; make a new group of the ranks that are left"
            )
        self._under_way = call

    def _meet(self, call: Call) -> None:
        signals = self._signals
        signals.post()
        signals.wait(call)
        if not signals.agreed(self._turn):
            self._mismatch(call)

    def _again(self, call: Call) -> None:
        """Meet once more in the same call."""
        self._signals.post()
        self._signals.wait(call)

    def _mismatch(self, call: Call) -> None:
        """All ranks have seen it: exchange what each was about to do, and raise."""
        signals = self._signals
        text, _, place = str(call).rpartition(" at ")
        if self._expected:
            text += f" with parts of {', '.join(map(str, self._expected[:32]))}"
        signals.write_note(f"{text} at {place}".encode())
        signals.post()
        signals.wait(call)
        notes = [signals.note(rank).decode(errors="replace") for rank in range(self.size)]
        raise check.mismatch(call.group, call.number, dict(zip(self.members, notes)))

    def _slots_of(self, dtype: np.dtype[Any]) -> list[list[Array]]:
        slots = self._slots.get(dtype)
        if slots is None:
            slots = self._slots[dtype] = typed_slots(self._memory, self._layout, dtype)
        return slots

    def _small_slot(self, dtype: np.dtype[Any], count: int) -> SmallSlot:
        """The next slots, as `count` elements of them are used."""
        views = self._small.get((dtype, count))
        if views is None:
            if len(self._small) >= 1024:
                self._small.clear()
            views = [SmallSlot(row, self.rank, count) for row in self._slots_of(dtype)]
            self._small[dtype, count] = views
        pipeline = self._pipeline
        block = pipeline.block
        pipeline.block = block + 1
        return views[block % SLOTS]


def _check_note(data: bytes) -> None:
    if len(data) > NOTE_BYTES - 2:
        raise ValueError(f"{len(data)} bytes do not fit: at most {NOTE_BYTES - 2} do; use broadcast")
