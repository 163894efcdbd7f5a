"""Posting and waiting between the ranks of one node.

Each rank has a counter in the segment that only it writes. A rank has come to the k-th meeting when
its counter has reached k; all ranks meet in the same order, so their counters stay in step.
Counters are 32 bits wide (what a futex compares) and wrap around.

A waiting rank first spins for a few microseconds, which is faster than any system call but holds the
GIL; then it yields its core again and again; then it sleeps in a futex.
"""

from __future__ import annotations

import functools
import operator
import os
import threading
import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ..call import Call
from . import futex
from .layout import CORE_BYTES, NOTE_BYTES, Layout

_MASK = 0xFFFFFFFF
_BEHIND = 0x7FFFFFFF  # distance to the target, modulo 2^32: more than that is a negative one

_MAIN = threading.main_thread().ident

# Before it sleeps, a waiting rank reads a counter so often (20 reads a microsecond), and then offers its
# core, and with it the GIL, to whoever wants it so often (twice a microsecond if nobody does).
PATIENCE = (100, 100)
CROWDED = (5, 20)  # with more ranks than cores
BESIDE = (5, 20)  # in a thread beside the main one, which is computing and wants the GIL


class Watch(Protocol):
    """Knows of every rank whether it can still come."""

    def look(self, call: Call, missing: Sequence[int], /) -> None:
        """Raise if one of the job's ranks `missing` can never come, or the call's time is up."""


class Signals:
    """One rank's counter, and its view of the others'.

    Args:
        memory: the segment.
        layout: what lies where in it.
        rank: of this process in the group.
        members: the job's number of each rank of the group.
        watch: asked about once a millisecond while this rank waits.
        spins: how often a counter is read before this rank sleeps; None chooses by the cores.
    """

    def __init__(
        self,
        memory: np.ndarray,
        layout: Layout,
        rank: int,
        members: Sequence[int],
        watch: Watch,
        spins: int | None = None,
    ) -> None:
        self._layout = layout
        self._rank = rank
        self._members = members
        self._watch = watch
        self._spins = spins
        self._chosen: tuple[int, int] | None = None
        self._bytes = memory.data
        words = memory[: layout.sleepers]
        self._words = words.view(np.uint32).data
        self._marks = words.view(np.uint64).data
        self._mine = layout.post(rank) // 4
        # Beginning with the next rank, so that not all of them wait for the same one.
        self._peers = [(rank + step) % layout.size for step in range(1, layout.size)]
        self._theirs = [layout.post(peer) // 4 for peer in self._peers]
        self._my_mark = layout.fingerprint(rank, 0) // 8
        self._their_marks = [layout.fingerprint(peer, 0) // 8 for peer in self._peers]
        row = layout.sleeper_row(rank)
        self._sleepers = memory[row : row + layout.row_bytes].view(np.uint64).data
        self._many = layout.size > 8
        self._address = memory.ctypes.data
        self._fence = threading.Lock()
        self.count = self._words[self._mine]
        mask = sum(1 << core for core in os.sched_getaffinity(0) if core < CORE_BYTES * 8)
        row = layout.core_row(rank)
        self._bytes[row : row + CORE_BYTES] = mask.to_bytes(CORE_BYTES, "little")

    def mark(self, turn: int, fingerprint: int) -> None:
        """Publish the fingerprint of a call, before the post that belongs to it. `turn`: 0, 1, 0, …"""
        self._marks[self._my_mark + turn] = fingerprint

    def agreed(self, turn: int) -> bool:
        """Whether all ranks, which have posted, have published the same fingerprint."""
        marks = self._marks
        mine = marks[self._my_mark + turn]
        for index in self._their_marks:  # noqa: SIM110 (a generator costs more than the comparison)
            if marks[index + turn] != mine:
                return False
        return True

    def post(self) -> None:
        """Come to the next meeting: whatever was written to the segment before is seen by the others."""
        self.count = count = self.count + 1 & _MASK
        # Taking and giving back a lock are full memory fences. One lies before the store, for data
        # written past the cache; one between it and the look at who sleeps: a rank that began to
        # sleep before it saw the store is seen here, so no wake-up is lost.
        fence = self._fence
        fence.acquire()
        self._words[self._mine] = count
        fence.release()
        if self._sleepers[0] or self._many and any(self._sleepers):
            futex.wake(self._address + 4 * self._mine)

    def wait(self, call: Call) -> None:
        """Return when all ranks have come to the meeting to which this rank has come.

        Raises:
            What `watch.look` raises.
        """
        words, target = self._words, self.count
        for index in self._theirs:
            if words[index] - target & _MASK > _BEHIND:
                self._linger(call, self._peers)
                return

    def wait_for(self, call: Call, peer: int) -> None:
        """Return when `peer` has come to the meeting to which this rank has come."""
        if self._missing([peer]):
            self._linger(call, [peer])

    def write_note(self, data: bytes) -> None:
        """Leave up to `NOTE_BYTES` - 2 bytes for the others; the next post delivers them."""
        data = data[: NOTE_BYTES - 2]
        start = self._layout.note(self._rank)
        self._bytes[start : start + 2 + len(data)] = len(data).to_bytes(2, "little") + data

    def note(self, rank: int) -> bytes:
        """What that rank left."""
        start = self._layout.note(rank)
        length = int.from_bytes(self._bytes[start : start + 2], "little")
        return bytes(self._bytes[start + 2 : start + 2 + length])

    def _missing(self, peers: Sequence[int]) -> list[int]:
        words, target, post = self._words, self.count, self._layout.post
        return [peer for peer in peers if words[post(peer) // 4] - target & _MASK > _BEHIND]

    def _linger(self, call: Call, peers: Sequence[int]) -> None:
        """Spin, yield, and then sleep until the peers have come."""
        spins, yields = self._patience()
        words, target, post = self._words, self.count, self._layout.post
        for peer in peers:
            index = post(peer) // 4
            while words[index] - target & _MASK > _BEHIND:
                if spins:
                    spins -= 1
                elif yields:
                    yields -= 1
                    futex.yield_core()
                else:
                    self._sleep(call, peers)
                    return

    def _patience(self) -> tuple[int, int]:
        """How often to spin and to yield before sleeping."""
        if threading.get_ident() != _MAIN:
            return BESIDE
        if self._spins is not None:
            return self._spins, 0
        if self._chosen is None:
            crowded = self.crowded()
            if crowded is None:
                return CROWDED
            self._chosen = CROWDED if crowded else PATIENCE
        return self._chosen

    def crowded(self) -> bool | None:
        """Whether the ranks are more than the cores they may run on; None before all have attached."""
        # A launcher may have bound each rank to one core: what counts is the union.
        rows = [self._layout.core_row(rank) for rank in range(self._layout.size)]
        masks = [int.from_bytes(self._bytes[row : row + CORE_BYTES], "little") for row in rows]
        if not all(masks):
            return None
        return min(functools.reduce(operator.or_, masks).bit_count(), _quota()) < len(rows)

    def _sleep(self, call: Call, peers: Sequence[int]) -> None:
        words, layout = self._words, self._layout
        milliseconds = 1
        look_at = time.monotonic() + 0.001
        while missing := self._missing(peers):
            peer = missing[0]
            index = layout.post(peer) // 4
            bell = layout.sleeper_row(peer) + self._rank
            seen = words[index]
            if seen - self.count & _MASK <= _BEHIND:
                continue
            # If the peer posts after `seen` was read, the word differs and the call returns at once.
            self._bytes[bell] = 1
            futex.wait(self._address + 4 * index, seen, milliseconds)
            self._bytes[bell] = 0
            now = time.monotonic()
            if now < look_at:
                continue
            missing = self._missing(peers)
            if not missing:
                return
            try:
                self._watch.look(call, [self._members[peer] for peer in missing])
            except Exception:
                if self._missing(peers):
                    raise
                return  # it left after it had come
            milliseconds = min(milliseconds + 1, 10)
            look_at = now + 0.001 * milliseconds


def _quota() -> float:
    """How many cores a container may keep busy at once."""
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:
            quota, period = file.read().split()
            return float("inf") if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return float("inf")
