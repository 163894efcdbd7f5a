"""The streams that a program gives work to by choice, and how backward comes to terms with them.

PyTorch runs the backward of every node in the stream of its forward. Here all of backward runs in the
stream that is current where it is called, and the streams are ordered around it: before, the current
stream waits for all others, since a node may have saved what they have not finished; after, they wait
for it, since memory that backward has freed is theirs to use again. So results are the same and need no
calls of the user's; what is lost is that backwards of two streams could overlap.

A program that uses no stream of its own never gets here: ``used`` stays empty.

Likewise a copy from ordinary host memory: PyTorch's host waits for it, so programs use what they have
copied in any stream. Here the host goes on, and the streams wait: those in use, and those to come.
"""

from __future__ import annotations

import weakref
from typing import Any

from .gpu import graphs

used: Any = weakref.WeakValueDictionary()  # (device, address) -> CuPy stream


_uploads: dict[tuple[int, int], Any] = {}  # (device, stream's address) -> event behind its last upload


def note(index: int, stream) -> None:
    """Work is given to a stream."""
    key = index, stream.ptr
    if key not in used:
        used[key] = stream
        if not graphs.is_capturing():
            for (device, _), event in list(_uploads.items()):
                if device == index:
                    stream.wait_event(event)


def after_upload(cupy) -> None:
    """All streams wait for the copy that the current one has just been given."""
    if graphs.is_capturing():
        return
    stream = cupy.cuda.get_current_stream()
    key = cupy.cuda.runtime.getDevice(), stream.ptr
    event = _uploads.get(key)
    if event is None:
        event = _uploads[key] = cupy.cuda.Event(disable_timing=True)
    stream.record(event)
    if used:
        for _, other in _others(cupy):
            other.wait_event(event)


def _others(cupy):
    """(current stream, another) for all others; in a capture those that are part of one, else not."""
    device = cupy.cuda.runtime.getDevice()
    current = cupy.cuda.get_current_stream()
    capturing = current.ptr != 0 and current.is_capturing()
    candidates = [*used.items(), ((device, 0), cupy.cuda.Stream.null)]
    seen = {current.ptr}
    for (index, pointer), stream in candidates:
        if index != device or pointer in seen:
            continue
        if capturing != (pointer != 0 and stream.is_capturing()):
            continue
        seen.add(pointer)
        yield current, stream


def before_backward() -> None:
    """The current stream waits for all others."""
    from .cupy_backend import _cupy

    cupy = _cupy()
    for current, stream in _others(cupy):
        current.wait_event(stream.record(cupy.cuda.Event(disable_timing=True)))


def after_backward() -> None:
    """All others wait for the current stream."""
    from .cupy_backend import _cupy

    cupy = _cupy()
    event = None
    for current, stream in _others(cupy):
        if event is None:
            event = current.record(cupy.cuda.Event(disable_timing=True))
        stream.wait_event(event)
