"""Streams, events and graphs under CuPy's names, over ``order``."""

from __future__ import annotations

import ctypes
import itertools
import time
from typing import NamedTuple

from . import order
from .order import CaptureError

_numbers = itertools.count(0x1000, 0x10)


class Stream:
    """A queue of work; see ``order``."""

    null: Stream
    ptds: Stream

    def __init__(self, null=False, non_blocking=False, ptds=False, priority=None):
        if null:
            self._order = order.DEFAULT
        else:
            self._order = order.StreamState(2 if ptds else next(_numbers), non_blocking)
        self.priority = priority or 0

    @classmethod
    def from_external(cls, obj):
        """A stream of another library, by ``obj.__cuda_stream__()``."""
        version, pointer = obj.__cuda_stream__()
        made = ExternalStream(pointer)
        made.owner = obj
        return made

    ptr = property(lambda self: self._order.number)
    device_id = property(lambda self: 0)
    is_non_blocking = property(lambda self: self._order.non_blocking)

    def __eq__(self, other):
        return isinstance(other, Stream) and other.ptr == self.ptr

    def __hash__(self):
        return hash(self.ptr)

    def __enter__(self):
        _current.entered.append(self)
        self.use()
        return self

    def __exit__(self, *_):
        """As in CuPy: back to the stream of the ``with`` around, whatever ``use()`` has chosen since."""
        _current.entered.pop()
        (_current.entered[-1] if _current.entered else Stream.null).use()

    def use(self):
        _current.stream = self
        order.use(self._order)
        return self

    @property
    def done(self) -> bool:
        return _ask(self._order, self._order.clock, self._order.done)

    def synchronize(self) -> None:
        order.wait_for(self._order)

    def record(self, event=None):
        event = Event() if event is None else event
        event.record(self)
        return event

    def wait_event(self, event) -> None:
        if event._capture is not None and self._order.capture is None:
            event._capture.join(self._order)
        self._order.clock.merge(event._clock)

    def launch_host_func(self, callback, arg) -> None:
        order.give("host function", [], [], lambda: callback(arg), stream=self._order)

    def add_callback(self, callback, arg) -> None:
        if self._order.capture is not None:
            raise CaptureError("cudaStreamAddCallback in a captured stream")
        order.give("callback", [], [], lambda: callback(self, 0, arg), stream=self._order)

    # ---- graphs --------------------------------------------------------------------------------
    def begin_capture(self, mode=None) -> None:
        if self._order.number == 0:
            raise CaptureError("cudaErrorStreamCaptureImplicit: the default stream cannot be captured")
        if self._order.capture is not None:
            raise CaptureError("cudaErrorIllegalState: the stream is under capture")
        Graph(self._order)

    def end_capture(self) -> Graph:
        if self._order.capture is None:
            raise RuntimeError("cudaErrorIllegalState: the stream is not under capture")
        return self._order.capture.end(self._order)

    def is_capturing(self) -> bool:
        return self._order.capture is not None


class ExternalStream(Stream):
    """A stream by its address."""

    def __init__(self, ptr: int, device_id: int = -1):
        if ptr not in order.streams:
            order.StreamState(ptr, False)
        self._order, self.priority = order.streams[ptr], 0


Stream.__module__ = ExternalStream.__module__ = "cupy.cuda.stream"
Stream.null = Stream(null=True)


class _Current(order.threading.local):
    stream = Stream.null

    def __init__(self):
        self.entered: list[Stream] = []


_current = _Current()


def current_stream(device_id: int = -1) -> Stream:
    """The calling thread's stream."""
    return _current.stream


def _ask(state, clock, known) -> bool:
    """What a GPU may answer: work that nobody waited for is not done when first asked."""
    if state is not None and state.capture is not None:
        raise CaptureError("cudaErrorStreamCaptureUnsupported: a query of a stream under capture")
    if known():
        return True
    order.host.learn(clock)  # the next answer is yes
    return False


class Event:
    """A mark in a stream. Work is done at once, but ``done`` says so only from the second time on, or
    when the host has waited: what follows an event must not rely on luck."""

    def __init__(self, block=False, disable_timing=False, interprocess=False):
        self._clock, self._time, self._capture = order.Clock(), None, None
        self._timed, self.ptr = not disable_timing, next(_numbers)

    def record(self, stream=None) -> None:
        stream = current_stream() if stream is None else stream
        state = stream._order
        state.step()
        self._clock, self._capture = order.Clock(state.clock), state.capture
        self._time = time.perf_counter()

    def _known(self) -> bool:
        return all(order.host.clock.get(s, 0) >= n for s, n in self._clock.items())

    @property
    def done(self) -> bool:
        if self._capture is not None:
            raise CaptureError("cudaErrorCapturedEvent: an event of a captured stream is asked")
        return _ask(None, self._clock, self._known)

    def synchronize(self) -> None:
        if self._capture is not None:
            raise CaptureError("cudaErrorCapturedEvent: the host waits for an event of a capture")
        order.counts["synchronisations"] += 1
        order.host.learn(self._clock)


Event.__module__ = "cupy.cuda.stream"


def elapsed_time(start: Event, end: Event) -> float:
    """Milliseconds between two events that the host has waited for."""
    if not (start._timed and end._timed) or start._time is None or end._time is None:
        raise RuntimeError("cudaErrorInvalidResourceHandle: events without time, or not recorded")
    if not end._known():
        raise RuntimeError("cudaErrorNotReady: device not ready")
    return (end._time - start._time) * 1e3


class _Node(NamedTuple):
    what: str
    reads: list
    writes: list
    replay: object


class Graph:
    """What was given to a stream under capture, to be given again.

    While it is taken down, everything is computed, so that shapes and values are there; at the end all
    memory gets its contents back: a capture computes nothing.
    """

    def __init__(self, origin):
        self._origin, self._nodes, self._before = origin, [], {}
        self._joined, self._over = {origin.number: origin}, False
        origin.capture = self
        self.graph = self.graphExec = next(_numbers)

    def join(self, state) -> None:
        """Another stream waits for an event of this capture: its work belongs to the graph."""
        state.capture = self
        self._joined[state.number] = state

    def remember(self, reads, writes) -> None:
        """Keep what memory holds, and its history, before the first operation that touches it."""
        for memory, _, _ in (*reads, *writes):
            if memory.start not in self._before:
                contents = ctypes.string_at(memory.start, memory.end - memory.start)
                self._before[memory.start] = (memory, contents, memory.reads[:], memory.writes[:])

    def note(self, what, reads, writes, replay) -> None:
        self._nodes.append(_Node(what, reads, writes, replay))

    def end(self, state) -> Graph:
        if state is not self._origin:
            raise CaptureError("cudaErrorStreamCaptureUnmatched: the capture began in another stream")
        for other in self._joined.values():
            other.capture = None
        for memory, contents, memory.reads, memory.writes in self._before.values():
            ctypes.memmove(memory.start, contents, len(contents))
        self._before, self._over = {}, True
        for other in self._joined.values():
            if state.clock.get(other.number, 0) < other.count:
                raise CaptureError(
                    f"cudaErrorStreamCaptureUnjoined: stream {other.number:#x} joined the capture, and "
                    "the first stream does not wait for its last work")
        return self

    def launch(self, stream=None) -> None:
        state = order.current() if stream is None else stream._order
        if not self._over:
            raise RuntimeError("the graph is still under capture")
        state.step()
        for node in self._nodes:
            order.give(node.what + " (of a graph)", node.reads, node.writes, node.replay, stream=state)

    def upload(self, stream=None) -> None:
        pass

    def debug_dot_str(self, flags: int = 0) -> str:
        nodes = "; ".join(f'"{i} {n.what}"' for i, n in enumerate(self._nodes))
        return f"digraph {{{nodes}}}"


Graph.__module__ = "cupy.cuda.graph"
