"""GPUs as such: which there are, memory, streams and events. CuPy is imported when asked for."""

from __future__ import annotations

import threading

from . import cupy_backend
from .gpu import graphs, transfers


def cupy():
    """The CuPy module; RuntimeError if it, a driver or a GPU is missing."""
    return cupy_backend._cupy()


def current_device() -> int:
    return cupy().cuda.runtime.getDevice()


_chosen = threading.local()


def set_device(index: int, chosen: bool = False) -> None:
    """Make a device this thread's current one; ``chosen``: for good, not for a while."""
    cupy_backend.namespace_of_number(index)  # checks that there is one of this number
    cupy().cuda.Device(index).use()
    if chosen:
        _chosen.device = index


def is_chosen() -> bool:
    """Whether this thread's current device was set, rather than being the first by itself."""
    return hasattr(_chosen, "device") or current_device() != 0


def synchronize(index: int) -> None:
    graphs.refuse("torch.cuda.synchronize()")
    cupy_backend.namespace_of_number(index).synchronize()


def properties(index: int) -> dict:
    """CUDA's device properties by CUDA's names; the name as text, identifiers as bytes."""
    found = dict(cupy().cuda.runtime.getDeviceProperties(index))
    found["name"] = found["name"].decode()
    return found


def free_and_total(index: int) -> tuple[int, int]:
    """Bytes free on the device, bytes it has."""
    with cupy().cuda.Device(index):
        return tuple(cupy().cuda.runtime.memGetInfo())


def pinned_copy(array):
    """A NumPy array of equal values in page-locked host memory."""
    return transfers.pinned_copy(cupy(), array)


def is_pinned(array) -> bool:
    """Whether a NumPy array lies in page-locked memory that CuPy allocated."""
    return transfers.is_pinned(array)


def make_stream(index: int, priority: int, pointer: int | None = None):
    """A new stream of a device, or CuPy's object for one that another library made."""
    module = cupy().cuda
    with module.Device(index):
        if pointer is None:
            return module.Stream(non_blocking=True, priority=priority)
        return module.Stream.from_external(_External(pointer))


class _External:
    """A stream's address, in the form of the CUDA stream protocol."""

    def __init__(self, pointer: int):
        self.pointer = pointer

    def __cuda_stream__(self):
        return 0, self.pointer


def null_stream():
    return cupy().cuda.Stream.null


def current_stream(index: int | None = None):
    """This thread's current stream on a device (default the current one)."""
    return cupy().cuda.get_current_stream(-1 if index is None else index)


def use_stream(index: int, stream) -> None:
    """Make a device and one of its streams this thread's current ones."""
    module = cupy().cuda
    module.Device(index).use()
    stream.use()


def make_event(index: int, blocking: bool, timing: bool):
    module = cupy().cuda
    with module.Device(index):
        return module.Event(block=blocking, disable_timing=not timing)


def elapsed_ms(start, end) -> float:
    return cupy().cuda.get_elapsed_time(start, end)


def can_access_peer(index: int, peer: int) -> bool:
    """Whether a device can read another's memory."""
    return bool(cupy().cuda.runtime.deviceCanAccessPeer(index, peer))


def nvtx():
    """CuPy's binding of NVIDIA's Tools Extension."""
    cupy()
    from cupy.cuda import nvtx as found  # loaded only when asked for

    return found


def nccl_version() -> int:
    """22809 is 2.28.9."""
    cupy()
    from cupy.cuda import nccl  # loaded only when asked for

    return nccl.get_version()
