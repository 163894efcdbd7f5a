"""Streams (queues of GPU work) and events (marks in them)."""

from __future__ import annotations

from ..backend import devices, gpu_runtime
from .which import device_number, require


class Stream:
    """A queue of work on a GPU.

    Args:
        device: which GPU; default the current one.
        priority: lower numbers run first.
    """

    def __init__(self, device=None, priority: int = 0, *, raw=None):
        require()
        self.index = device_number(device)
        self.priority = priority
        self.raw = gpu_runtime.make_stream(priority) if raw is None else raw

    @property
    def device(self) -> devices.device:
        return devices.device("cuda", self.index)

    @property
    def cuda_stream(self) -> int:
        """The address of the CUDA stream."""
        return self.raw.ptr

    def synchronize(self) -> None:
        """Wait until all its work is done."""
        self.raw.synchronize()

    def query(self) -> bool:
        """Whether all its work is done."""
        return self.raw.done

    def wait_stream(self, stream: Stream) -> None:
        """Work given from now on waits for the work that ``stream`` has now."""
        self.wait_event(stream.record_event())

    def wait_event(self, event: Event) -> None:
        """Work given from now on waits for the event."""
        self.raw.wait_event(event.raw)

    def record_event(self, event: Event | None = None) -> Event:
        """Put a mark behind the work it has now; returns the mark."""
        event = Event() if event is None else event
        event.record(self)
        return event

    def __enter__(self):
        self.raw.__enter__()
        return self

    def __exit__(self, *exc):
        self.raw.__exit__(*exc)

    def __eq__(self, other):
        return isinstance(other, Stream) and self.raw.ptr == other.raw.ptr

    def __hash__(self):
        return hash((self.index, self.raw.ptr))

    def __repr__(self):
        return f"<torch.cuda.Stream device={self.device} cuda_stream={self.cuda_stream:#x}>"


class ExternalStream(Stream):
    """A stream that another library made, by its address."""

    def __init__(self, stream_ptr: int, device=None):
        require()
        super().__init__(device, raw=gpu_runtime.make_stream(0, stream_ptr))


class Event:
    """A mark in a stream.

    Args:
        enable_timing: so that ``elapsed_time`` works.
        blocking: ``synchronize`` sleeps instead of spinning.
    """

    def __init__(self, enable_timing: bool = False, blocking: bool = False,
                 interprocess: bool = False):
        require()
        if interprocess:
            raise NotImplementedError("events shared between processes are not supported")
        self.raw = gpu_runtime.make_event(blocking, enable_timing)

    def record(self, stream: Stream | None = None) -> None:
        """Put the mark behind the work that a stream (default the current one) has now."""
        self.raw.record(None if stream is None else stream.raw)

    def wait(self, stream: Stream | None = None) -> None:
        """Make a stream (default the current one) wait for the mark."""
        (gpu_runtime.current_stream() if stream is None else stream.raw).wait_event(self.raw)

    def query(self) -> bool:
        """Whether the work before the mark is done."""
        return self.raw.done

    def synchronize(self) -> None:
        """Wait for the work before the mark."""
        self.raw.synchronize()

    def elapsed_time(self, end_event: Event) -> float:
        """Milliseconds from this mark to another."""
        return gpu_runtime.elapsed_ms(self.raw, end_event.raw)


class StreamContext:
    """Inside, work goes to ``stream``; None changes nothing."""

    def __init__(self, stream: Stream | None):
        self.stream = stream

    def __enter__(self):
        if self.stream is not None:
            self.stream.__enter__()

    def __exit__(self, *exc):
        if self.stream is not None:
            self.stream.__exit__(*exc)


def stream(stream: Stream | None) -> StreamContext:
    """``with torch.cuda.stream(s):`` work goes to ``s``."""
    return StreamContext(stream)


def set_stream(stream: Stream | None) -> None:
    """Give work to ``stream`` from now on."""
    if stream is not None:
        stream.raw.use()


def current_stream(device=None) -> Stream:
    """The stream that work goes to now."""
    require()
    return Stream(device, raw=gpu_runtime.current_stream())


def default_stream(device=None) -> Stream:
    """The stream that work goes to unless told otherwise."""
    require()
    return Stream(device, raw=gpu_runtime.null_stream())


def is_current_stream_capturing() -> bool:
    """Whether the current stream is recording a graph."""
    require()
    return bool(gpu_runtime.current_stream().is_capturing())
