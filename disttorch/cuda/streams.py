"""Streams (queues of GPU work) and events (marks in them).

Work goes to the calling thread's current stream of the current GPU: the default stream, until
``torch.cuda.stream(s)`` or ``set_stream`` chooses another. Streams do not wait for each other unless
told (``wait_stream``, ``wait_event``), a tensor used in another stream than its own is kept by
``Tensor.record_stream``, and ``loss.backward()`` orders the streams around it by itself.
"""

from __future__ import annotations

from typing import Any

from ..backend import cupy_backend, devices, gpu_runtime, side_streams
from ..backend.gpu import graphs, memory
from .which import device_number, require

_BETWEEN_PROCESSES = (
    "events shared between processes are not supported: let the processes meet in a collective of "
    "torch.distributed, which orders GPU work"
)


class Stream:
    """A queue of work on a GPU.

    Args:
        device: which GPU; default the current one.
        priority: lower numbers run first; see ``priority_range``.
        stream_id, device_index, device_type: of a stream that exists, to have it again.
    """

    device_type = 1  # CUDA in PyTorch's list

    def __init__(self, device=None, priority: int = 0, *, stream_id: int | None = None,
                 device_index: int | None = None, device_type: int = 1, raw=None):
        require()
        self.index = device_number(device if device_index is None else device_index)
        if stream_id is not None:
            raw = gpu_runtime.make_stream(self.index, 0, stream_id) if stream_id else (
                gpu_runtime.null_stream())
        self.raw = gpu_runtime.make_stream(self.index, priority) if raw is None else raw
        self._entered: list[StreamContext] = []

    @staticmethod
    def priority_range() -> tuple[int, int]:
        """The least and the greatest priority that make a difference."""
        return 0, -5  # CUDA's on every GPU since Volta; it cuts off what lies outside

    @property
    def priority(self) -> int:
        """The lower, the sooner its work runs; 0 by default."""
        return 0 if self.raw.ptr == 0 else self.raw.priority

    @property
    def device(self) -> devices.device:
        return devices.device("cuda", self.index)

    @property
    def device_index(self) -> int:
        return self.index

    @property
    def cuda_stream(self) -> int:
        """The address of the CUDA stream."""
        return self.raw.ptr

    stream_id = native_handle = cuda_stream

    def synchronize(self) -> None:
        """Wait until all its work is done."""
        graphs.refuse("Stream.synchronize()")
        self.raw.synchronize()
        memory.release_done()

    def query(self) -> bool:
        """Whether all its work is done."""
        graphs.refuse("Stream.query()")
        return self.raw.done

    def wait_stream(self, stream: Stream) -> None:
        """Work given from now on waits for the work that ``stream`` has now."""
        self.wait_event(stream.record_event())

    def wait_event(self, event: Event) -> None:
        """Work given from now on waits for the event; nothing if that was never recorded."""
        event.wait(self)

    def record_event(self, event: Event | None = None) -> Event:
        """Put a mark behind the work it has now; returns the mark."""
        event = Event() if event is None else event
        event.record(self)
        return event

    def __cuda_stream__(self) -> tuple[int, int]:
        """Version and address, for other libraries."""
        return 0, self.raw.ptr

    def __enter__(self):
        """Like ``torch.cuda.stream``: one stream may be entered again inside itself."""
        context = StreamContext(self)
        context.__enter__()
        self._entered.append(context)
        return self

    def __exit__(self, *exc):
        self._entered.pop().__exit__(*exc)

    def __eq__(self, other):
        return isinstance(other, Stream) and (self.index, self.raw.ptr) == (other.index, other.raw.ptr)

    def __hash__(self):
        return hash((self.index, self.raw.ptr))

    def __repr__(self):
        return f"<torch.cuda.Stream device={self.device} cuda_stream={self.cuda_stream:#x}>"


class ExternalStream(Stream):
    """A stream that another library made, by its address; that library keeps it alive."""

    def __init__(self, stream_ptr: int, device=None):
        require()
        index = device_number(device)
        super().__init__(index, raw=gpu_runtime.make_stream(index, 0, stream_ptr))


class Event:
    """A mark in a stream.

    Args:
        enable_timing: so that ``elapsed_time`` works.
        blocking: ``synchronize`` sleeps instead of spinning.
        interprocess: not supported.

    Raises:
        NotImplementedError: for ``interprocess=True``.
    """

    def __init__(self, enable_timing: bool = False, blocking: bool = False,
                 interprocess: bool = False, external: bool = False):
        require()
        if interprocess:
            raise NotImplementedError(_BETWEEN_PROCESSES)
        if external:
            raise NotImplementedError(
                "events that are nodes of a CUDA graph (external=True) are not supported: record them "
                "around the replay"
            )
        self.enable_timing, self.blocking = enable_timing, blocking
        self.index: int | None = None  # the GPU, known with the first record
        self.raw: Any = None
        self._captured = False

    @property
    def device(self) -> devices.device | None:
        return None if self.index is None else devices.device("cuda", self.index)

    @property
    def cuda_event(self) -> int:
        """The address of the CUDA event; 0 before it was recorded."""
        return 0 if self.raw is None else self.raw.ptr

    def record(self, stream: Stream | None = None) -> None:
        """Put the mark behind the work that a stream (default the current one) has now.

        Raises:
            RuntimeError: in a stream of another GPU than before.
        """
        stream = current_stream() if stream is None else stream
        if self.index not in (None, stream.index):
            raise RuntimeError(
                f"Event device {self.index} does not match recording stream's device {stream.index}: "
                "make an event for each GPU"
            )
        if self.raw is None:
            self.index = stream.index
            self.raw = gpu_runtime.make_event(self.index, self.blocking, self.enable_timing)
        self.raw.record(stream.raw)
        self._captured = graphs.is_capturing()

    def wait(self, stream: Stream | None = None) -> None:
        """Make a stream (default the current one) wait for the mark."""
        if self.raw is not None:
            (current_stream() if stream is None else stream).raw.wait_event(self.raw)

    def query(self) -> bool:
        """Whether the work before the mark is done; also if there is none.

        Raises:
            GraphError: in a capture, and for an event that belongs to one.
        """
        self._refuse("Event.query()")
        return self.raw is None or self.raw.done

    def synchronize(self) -> None:
        """Wait for the work before the mark."""
        self._refuse("Event.synchronize()")
        if self.raw is not None:
            self.raw.synchronize()

    def elapsed_time(self, end_event: Event) -> float:
        """Milliseconds from this mark to another.

        Raises:
            ValueError: for events made without ``enable_timing=True``.
            RuntimeError: for events that were not recorded, or have not been reached.
        """
        self._refuse("Event.elapsed_time()")
        if not (self.enable_timing and end_event.enable_timing):
            raise ValueError("Both events must be created with argument 'enable_timing=True'.")
        if self.raw is None or end_event.raw is None:
            raise RuntimeError("Both events must be recorded before calculating elapsed time.")
        if not (self.raw.done and end_event.raw.done):
            raise RuntimeError(
                "Both events must be completed before calculating elapsed time: synchronize() the "
                "second first."
            )
        return gpu_runtime.elapsed_ms(self.raw, end_event.raw)

    def _refuse(self, what: str) -> None:
        graphs.refuse(what)
        if self._captured:
            raise graphs.GraphError(
                f"{what} asks an event that was recorded while a CUDA graph was captured: record one "
                "around the replay"
            )

    def ipc_handle(self):
        """Not supported.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(_BETWEEN_PROCESSES)

    @classmethod
    def from_ipc_handle(cls, device, handle):
        """Not supported.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(_BETWEEN_PROCESSES)

    def __repr__(self):
        return "<torch.cuda.Event uninitialized>" if self.raw is None else (
            f"<torch.cuda.Event {self.raw.ptr:#x}>"
        )


class StreamContext:
    """Inside, work goes to ``stream`` and its GPU; None changes nothing."""

    def __init__(self, stream: Stream | None):
        self.stream = stream

    def __enter__(self):
        if self.stream is not None:
            self._device = gpu_runtime.current_device()
            self._before = gpu_runtime.current_stream(self.stream.index)
            _use(self.stream.index, self.stream.raw)
            # CuPy's `with stream:` inside comes back to the stream entered last, not to one in use
            self.stream.raw.__enter__()
        return self.stream

    def __exit__(self, *exc):
        if self.stream is not None:
            self.stream.raw.__exit__(None, None, None)
            gpu_runtime.use_stream(self.stream.index, self._before)
            if self._device != self.stream.index:
                gpu_runtime.set_device(self._device)


def _use(index: int, raw) -> None:
    gpu_runtime.use_stream(index, raw)
    side_streams.note(index, raw)


def stream(stream: Stream | None) -> StreamContext:
    """``with torch.cuda.stream(s):`` work goes to ``s``."""
    return StreamContext(stream)


def set_stream(stream: Stream | None) -> None:
    """Give this thread's work to ``stream``, on its GPU, from now on."""
    if stream is not None:
        _use(stream.index, stream.raw)


def current_stream(device=None) -> Stream:
    """The stream that this thread's work goes to now, on a GPU (default the current one)."""
    require()
    index = device_number(device)
    return Stream(index, raw=gpu_runtime.current_stream(index))


def default_stream(device=None) -> Stream:
    """The stream that work goes to unless told otherwise."""
    require()
    return Stream(device, raw=gpu_runtime.null_stream())


def get_stream_from_external(data_ptr: int, device=None) -> ExternalStream:
    """A stream that another library made, by its address."""
    return ExternalStream(data_ptr, device)


def is_current_stream_capturing() -> bool:
    """Whether the current stream is recording a graph; False without a GPU."""
    if not cupy_backend.is_available():
        return False
    raw = gpu_runtime.current_stream()
    return raw.ptr != 0 and bool(raw.is_capturing())
