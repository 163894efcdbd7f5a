"""A transport between threads for testing algorithms: strict, and it counts.

Like a large message on a real network, a send ends only when its receiver has taken it, straight
from the sender's memory. So an algorithm that relies on buffering hangs (and is told so), and one that
changes a buffer under way delivers wrong values.
"""

from __future__ import annotations

import queue
import threading
from collections import defaultdict

import numpy as np

PATIENCE = 20.0  # seconds; only a deadlock waits that long


class Wire:
    """One rank's end. `messages` and `bytes` count what it and its sub-transports have sent."""

    def __init__(self, rank, members, boxes, name="", parent=None):
        self.rank, self.size, self.members = rank, len(members), tuple(members)
        self.watch = parent.watch if parent else None
        self._boxes, self._name, self._parent = boxes, name, parent
        self.messages = self.bytes = 0
        self.closed = False
        self.parts = []
        if parent:
            parent.parts.append(self)

    def sub(self, ranks, name):
        members = [self.members[rank] for rank in ranks]
        return Wire(list(ranks).index(self.rank), members, self._boxes, f"{self._name}/{name}", self)

    def close(self):
        assert not self.closed
        self.closed = True

    def _count(self, nbytes):
        self.messages += 1
        self.bytes += nbytes
        if self._parent:
            self._parent._count(nbytes)

    def isend(self, buffer, dst, tag):
        assert buffer.ndim == 1 and buffer.flags.c_contiguous and 0 <= dst < self.size
        assert dst != self.rank, "algorithms copy what a rank sends to itself"
        taken = threading.Event()
        self._count(buffer.nbytes)
        self._boxes[self._name, self.rank, dst, tag].put((buffer, taken))
        return _Wait(lambda: _must(taken.wait(PATIENCE), f"send {self.rank} -> {dst}"))

    def irecv(self, buffer, src, tag):
        assert buffer.ndim == 1 and buffer.flags.c_contiguous and 0 <= src < self.size

        def take():
            try:
                data, taken = self._boxes[self._name, src, self.rank, tag].get(timeout=PATIENCE)
            except queue.Empty:
                raise TimeoutError(f"recv {self.rank} <- {src}") from None
            assert (data.size, data.dtype) == (buffer.size, buffer.dtype)
            buffer[...] = data
            taken.set()

        return _Wait(take)


class _Wait:
    def __init__(self, act):
        self.wait = act


def _must(happened, what):
    if not happened:
        raise TimeoutError(what)


class _Boxes(defaultdict):
    """Mailboxes by (transport, source, destination, tag), made under a lock."""

    def __init__(self):
        super().__init__(queue.SimpleQueue)
        self._lock = threading.Lock()

    def __missing__(self, key):
        with self._lock:
            return self[key] if key in self else super().__missing__(key)

    def left_over(self):
        return [key for key, box in self.items() if not box.empty()]


def on_wires(n, fn):
    """Run fn(wire) on n ranks that are threads; return (results, wires). No message may be left."""
    boxes = _Boxes()
    wires = [Wire(rank, range(n), boxes) for rank in range(n)]
    results, errors = [None] * n, []

    def run(rank):
        try:
            results[rank] = fn(wires[rank])
        except BaseException as error:
            error.add_note(f"on rank {rank} of {n}")
            errors.append(error)

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * PATIENCE)
    if errors:
        raise errors[0]
    assert not boxes.left_over()
    return results, wires


def data(rank, count, dtype, salt=0):
    """Small whole numbers, different on every rank: their sums are exact in every dtype."""
    values = np.random.default_rng([rank, count, salt]).integers(0, 5, count)
    return values.astype(dtype)
