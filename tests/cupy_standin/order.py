"""What happens before what: streams, events, and who may touch which memory when.

Work given to a stream is done at once, so results never depend on order; order is *checked* instead.
Each stream has a clock: for every stream, up to which of its operations all that follows is ordered
behind. Events carry a copy; waiting for one takes the later of both; the host has a clock, too, which
grows when it synchronises and which all later work is ordered behind. A stretch of memory knows its last
writers and readers; touching it without being ordered behind them raises `RaceError`.
"""

from __future__ import annotations

import bisect
import contextlib
import threading
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class RaceError(RuntimeError):
    """Memory is used on a stream while another stream may still be using it."""


class CaptureError(RuntimeError):
    """Something that a stream under capture does not allow."""


counts: Counter = Counter()  # launches, host_reads, synchronisations, uploads, allocations


class Clock(dict):
    """Stream's number -> how many of its operations lie before."""

    def merge(self, other: dict) -> None:
        for stream, number in other.items():
            if number > self.get(stream, 0):
                self[stream] = number


class Host:
    """What the CPU knows to be done."""

    def __init__(self):
        self.clock, self.version = Clock(), 0

    def learn(self, clock: dict) -> None:
        self.clock.merge(clock)
        self.version += 1


host = Host()
_local = threading.local()
streams: dict[int, StreamState] = {}  # by number


class StreamState:
    """The order of one stream. Number 0 is the legacy default stream, which streams that were made
    with ``non_blocking=False`` keep in step with."""

    def __init__(self, number: int, non_blocking: bool):
        self.number, self.non_blocking = number, non_blocking
        self.clock, self.count, self.seen = Clock(), 0, -1
        self.capture = None  # the graph that takes down what is given to it
        streams[number] = self

    def step(self) -> None:
        """One more operation, ordered behind all that this stream must wait for."""
        if self.seen != host.version:
            self.clock.merge(host.clock)
            self.seen = host.version
        if not self.non_blocking:
            for other in streams.values() if self.number == 0 else (streams[0],):
                if other is not self and not other.non_blocking:
                    self.clock.merge(other.clock)
        self.count += 1
        self.clock[self.number] = self.count

    def done(self) -> bool:
        """Whether the host knows that all its work is done."""
        return host.clock.get(self.number, 0) >= self.count


DEFAULT = StreamState(0, False)


class Use(NamedTuple):
    """Bytes low to high of a piece of memory, used by an operation of a stream."""

    low: int
    high: int
    stream: int
    number: int
    what: str


class Memory:
    """The uses of one stretch of device memory that still matter. ``keeper`` owns the bytes."""

    def __init__(self, start: int, size: int, keeper):
        self.start, self.end, self.keeper = start, start + size, keeper
        self.writes: list[Use] = []
        self.reads: list[Use] = []
        self.freed = ""  # what to say of the uses of earlier arrays in this memory
        with _table_lock:
            place = bisect.bisect(_starts, start)
            _starts.insert(place, start)
            _memories.insert(place, self)

    def forget(self) -> None:
        """The memory goes back to the driver."""
        with _table_lock:
            place = bisect.bisect_left(_starts, self.start)
            if place < len(_starts) and _memories[place] is self:
                del _starts[place], _memories[place]

    def _check(self, uses: list[Use], stream: StreamState, low: int, high: int, what: str, how: str):
        clock, number = stream.clock, stream.number
        for use in uses:
            if use.stream != number and use.low < high and low < use.high:
                if clock.get(use.stream, 0) < use.number:
                    raise RaceError(
                        f"{what} {how} bytes {low - self.start} to {high - self.start} of a block of "
                        f"{self.end - self.start} on stream {number:#x}, while {use.what} on stream "
                        f"{use.stream:#x} may still be using them{self.freed}: record an event there "
                        "and wait for it here")

    def read(self, stream: StreamState, low: int, high: int, what: str) -> None:
        self._check(self.writes, stream, low, high, what, "reads")
        self.reads = [u for u in self.reads
                      if u.stream != stream.number or u.low < low or u.high > high]
        self.reads.append(Use(low, high, stream.number, stream.count, what))

    def write(self, stream: StreamState, low: int, high: int, what: str) -> None:
        self._check(self.writes, stream, low, high, what, "writes")
        self._check(self.reads, stream, low, high, what, "writes")
        self.writes = [u for u in self.writes if u.low < low or u.high > high]
        self.reads = [u for u in self.reads if u.low < low or u.high > high]
        self.writes.append(Use(low, high, stream.number, stream.count, what))


_table_lock = threading.RLock()  # a collection inside may end other memory
_starts: list[int] = []
_memories: list[Memory] = []


def memory_at(address: int) -> Memory | None:
    """The device memory that an address lies in."""
    with _table_lock:
        place = bisect.bisect_right(_starts, address) - 1
        found = _memories[place] if place >= 0 else None
    if found is None or not found.start <= address < max(found.end, found.start + 1):
        return None
    return found


# ---- streams of threads ----------------------------------------------------------------------------


def current() -> StreamState:
    """The stream that the calling thread gives work to."""
    return getattr(_local, "stream", DEFAULT)


def use(stream: StreamState) -> None:
    _local.stream = stream


class Span(NamedTuple):
    """Bytes of a piece of memory that an operation touches."""

    memory: Memory
    low: int
    high: int


def give(what: str, reads: list[Span], writes: list[Span], now: Callable[[], None],
         replay: Callable[[], None] | None = None, stream: StreamState | None = None) -> None:
    """Do an operation in the order of the current stream; note it if the stream is under capture.

    Args:
        now: does it. replay: does it again, from the memory's contents then; default ``now``.
    """
    stream = current() if stream is None else stream
    counts["launches"] += 1
    stream.step()
    if stream.capture is not None:
        stream.capture.remember(reads, writes)
    for memory, low, high in reads:
        memory.read(stream, low, high, what)
    for memory, low, high in writes:
        memory.write(stream, low, high, what)
    if stream.capture is not None:
        stream.capture.note(what, reads, writes, replay or now)
    with np.errstate(all="ignore"):  # a GPU computes infinities and NaNs without a word
        now()


# ---- synchronising ---------------------------------------------------------------------------------


def capturing() -> bool:
    return any(s.capture is not None for s in streams.values())


def wait_for(stream: StreamState) -> None:
    """The host waits for a stream."""
    if stream.capture is not None:
        raise CaptureError("cudaErrorStreamCaptureUnsupported: operation not permitted when stream is "
                           "capturing (the host waits for a stream that is under capture)")
    counts["synchronisations"] += 1
    stream.step()
    host.learn(stream.clock)


def wait_for_all() -> None:
    """The host waits for the device."""
    if capturing():
        raise CaptureError("cudaErrorStreamCaptureUnsupported: operation not permitted when stream is "
                           "capturing (cudaDeviceSynchronize)")
    counts["synchronisations"] += 1
    for stream in list(streams.values()):
        stream.step()
        host.learn(stream.clock)


def host_reads(what: str, spans: list[Span]) -> None:
    """A copy to host memory in the current stream that the host waits for."""
    stream = current()
    if stream.capture is not None:
        raise CaptureError(f"cudaErrorStreamCaptureUnsupported: {what} copies to the host and waits for "
                           "it, but the stream is under capture")
    counts["host_reads"] += 1
    stream.step()
    for memory, low, high in spans:
        memory.read(stream, low, high, what)
    host.learn(stream.clock)


@contextlib.contextmanager
def no_host_reads():
    """Inside, nothing may wait for the device: a training step that does cannot be captured."""
    before = counts["host_reads"], counts["synchronisations"], counts["uploads"]
    yield
    after = counts["host_reads"], counts["synchronisations"], counts["uploads"]
    if after != before:
        names = ("reads of device values by the host", "synchronisations", "uploads of host data")
        raise AssertionError("; ".join(
            f"{b - a} {name}" for a, b, name in zip(before, after, names) if b > a))
