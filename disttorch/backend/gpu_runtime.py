"""GPUs as such: which there are, memory, streams and events. CuPy is imported when asked for."""

from __future__ import annotations

import functools

from . import cupy_backend


def cupy():
    """The CuPy module; RuntimeError if it, a driver or a GPU is missing."""
    return cupy_backend._cupy()


def current_device() -> int:
    return cupy().cuda.runtime.getDevice()


def set_device(index: int) -> None:
    cupy_backend.gpu()  # checks that there is one at all
    cupy().cuda.Device(index).use()


def synchronize(index: int) -> None:
    cupy().cuda.Device(index).synchronize()


def properties(index: int) -> dict:
    """CUDA's device properties by CUDA's names; the name as text, identifiers as bytes."""
    found = dict(cupy().cuda.runtime.getDeviceProperties(index))
    found["name"] = found["name"].decode()
    return found


def free_and_total(index: int) -> tuple[int, int]:
    """Bytes free on the device, bytes it has."""
    with cupy().cuda.Device(index):
        return tuple(cupy().cuda.runtime.memGetInfo())


def pool_bytes(index: int) -> tuple[int, int]:
    """Bytes handed out by the memory pool, bytes that it holds."""
    with cupy().cuda.Device(index):
        pool = cupy().get_default_memory_pool()
        return pool.used_bytes(), pool.total_bytes()


def free_pool() -> None:
    cupy().get_default_memory_pool().free_all_blocks()
    cupy().get_default_pinned_memory_pool().free_all_blocks()


@functools.cache
def _peak_hook():
    """Notes the most bytes that were handed out at once, on each device.

    CuPy's pool keeps no such figure. The hook costs a Python call per allocation, so it starts when
    the peak is first asked for.
    """
    module = cupy()

    class Peak(module.cuda.MemoryHook):
        name = "disttorch-peak"

        def __init__(self):
            self.peaks = {}

        def malloc_postprocess(self, device_id, size, mem_size, mem_ptr, pmem_id):
            used = module.get_default_memory_pool().used_bytes()
            if used > self.peaks.get(device_id, 0):
                self.peaks[device_id] = used

    hook = Peak()
    hook.__enter__()
    return hook


def peak_bytes(index: int) -> int:
    """The most bytes handed out at once since counting began, or was reset."""
    return max(_peak_hook().peaks.get(index, 0), pool_bytes(index)[0])


def reset_peak(index: int) -> None:
    _peak_hook().peaks.pop(index, None)


def pinned_copy(array):
    """A NumPy array of equal values in page-locked host memory."""
    cupy()
    import cupyx

    out = cupyx.empty_pinned(array.shape, array.dtype)
    out[...] = array
    return out


def is_pinned(array) -> bool:
    """Whether a NumPy array lies in page-locked memory that CuPy allocated."""
    root = array
    while getattr(root, "base", None) is not None:
        root = root.base
    return type(root).__name__ == "PinnedMemoryPointer" or type(
        getattr(root, "obj", None)).__name__ == "PinnedMemoryPointer"


def make_stream(priority: int, pointer: int | None = None):
    module = cupy().cuda
    if pointer is not None:
        return module.ExternalStream(pointer)
    return module.Stream(non_blocking=True, priority=priority)


def null_stream():
    return cupy().cuda.Stream.null


def current_stream():
    return cupy().cuda.get_current_stream()


def make_event(blocking: bool, timing: bool):
    return cupy().cuda.Event(block=blocking, disable_timing=not timing)


def elapsed_ms(start, end) -> float:
    return cupy().cuda.get_elapsed_time(start, end)


def cuda_version() -> int:
    return cupy().cuda.runtime.runtimeGetVersion()


def nccl_version() -> int:
    """22809 is 2.28.9."""
    cupy()
    from cupy.cuda import nccl  # loaded only when asked for

    return nccl.get_version()


def out_of_memory_error() -> type | None:
    """CuPy's exception, if CuPy can be imported."""
    try:
        return cupy().cuda.memory.OutOfMemoryError
    except RuntimeError:
        return None
