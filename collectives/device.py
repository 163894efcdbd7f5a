"""The only place here that knows about arrays in GPU memory.

A device array is what offers `__cuda_array_interface__` with a NumPy dtype, in practice CuPy's.
Unless MPI reads device memory by itself (`mpi.cuda_aware`) or NCCL carries them (`nccl`), such
arrays travel through pinned host memory. CuPy is imported when the first device array arrives.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


def is_device_array(array: Any) -> bool:
    """Whether `array` lives in GPU memory."""
    if isinstance(array, np.ndarray):
        return False
    # Ask the type: CuPy's property raises for dtypes that the protocol cannot express (bfloat16).
    return hasattr(type(array), "__cuda_array_interface__")


def synchronize() -> None:
    """Wait until the calling thread's current stream has done all that was put into it."""
    import cupy

    cupy.cuda.get_current_stream().synchronize()


def may_overlap(a: Any, b: Any) -> bool:
    """Whether two arrays, one of them in GPU memory, might share memory: by their address ranges."""
    (low, high), (other_low, other_high) = _range(a), _range(b)
    return low < other_high and other_low < high


def _range(array: Any) -> tuple[float, float]:
    """The addresses between which all elements lie; all addresses where they cannot be told."""
    first = getattr(getattr(array, "data", None), "ptr", None)
    if first is None:
        return float("-inf"), float("inf")
    if not array.size:
        return first, first
    reach = [(n - 1) * step for n, step in zip(array.shape, array.strides)]
    low = first + sum(step for step in reach if step < 0)
    return low, first + sum(step for step in reach if step > 0) + array.itemsize


@contextlib.contextmanager
def in_stream(cupy: Any, stream: Any) -> Iterator[Any]:
    """Inside, array operations of this thread on the current device go to `stream`; afterwards to
    where they went. CuPy's own `with stream:` goes back to the stream of the `with` around it, not to
    one that `use()` has chosen."""
    before = cupy.cuda.get_current_stream()
    try:
        with stream:
            yield stream
    finally:
        before.use()


class HostBridge:
    """Copies one device array to pinned host memory and back.

    Make it in the thread that calls the collective: the current stream is a property of the
    thread, and an event recorded there marks when the array's content is ready. The copies may
    run in another thread. They are complete when a method returns, so the result may be used on
    any stream after `Work.wait`.
    """

    def __init__(self, array: Any) -> None:
        import cupy

        self._cupy = cupy
        self._array = cupy.asarray(array)
        with self._array.device:
            self._produced = cupy.cuda.get_current_stream().record()

    def download(self, read: bool) -> np.ndarray:
        """A pinned host array of the same shape and dtype, filled if `read`."""
        cupy, array = self._cupy, self._array
        with array.device:
            pinned = cupy.cuda.alloc_pinned_memory(max(array.nbytes, 1))
            host = np.frombuffer(pinned, array.dtype, array.size).reshape(array.shape)
            # Also when nothing is read: earlier kernels may still use what we will overwrite.
            self._produced.synchronize()
            if read and array.size:
                with in_stream(cupy, cupy.cuda.Stream(non_blocking=True)) as stream:
                    # ascontiguousarray makes one dim of none
                    cupy.ascontiguousarray(array).reshape(array.shape).get(out=host)
                    stream.synchronize()
        return host

    def upload(self, host: np.ndarray) -> None:
        """Copy `host` into the device array."""
        cupy, array = self._cupy, self._array
        if not array.size:
            return
        with array.device, in_stream(cupy, cupy.cuda.Stream(non_blocking=True)) as stream:
            array[...] = cupy.asarray(host)
            stream.synchronize()


class Gpu:
    """One GPU's streams and events. Made on the device that is current then.

    Attributes:
        index: the device's number in this process.
    """

    def __init__(self) -> None:
        import cupy

        self._cupy = cupy
        self.index = cupy.cuda.Device().id

    def identity(self) -> str:
        """The same text in all processes that use this GPU, and in no other."""
        properties = self._cupy.cuda.runtime.getDeviceProperties(self.index)
        boot = Path("/proc/sys/kernel/random/boot_id")
        host = boot.read_text().strip() if boot.exists() else ""
        bus = self._cupy.cuda.Device(self.index).pci_bus_id
        return f"{host} {bytes(properties['uuid']).hex()} {bus}"

    def index_of(self, array: Any) -> int:
        """The number of the device that holds an array."""
        return array.device.id

    def stream(self) -> Any:
        """A new stream, which waits for no other unless told."""
        with self._cupy.cuda.Device(self.index):
            return self._cupy.cuda.Stream(non_blocking=True)

    def address(self, stream: Any) -> int:
        return stream.ptr

    @contextlib.contextmanager
    def on(self, stream: Any) -> Iterator[None]:
        """Inside, array operations of this thread go to `stream` of this GPU."""
        with self._cupy.cuda.Device(self.index), in_stream(self._cupy, stream):
            yield

    def record(self, stream: Any = None) -> Any:
        """A mark behind all that `stream` (None: the thread's current one) has been given."""
        with self._cupy.cuda.Device(self.index):
            event = self._cupy.cuda.Event(disable_timing=True)
            event.record(stream if stream is not None else self._cupy.cuda.get_current_stream())
            return event

    def wait(self, event: Any, stream: Any = None) -> None:
        """What `stream` (None: the current one) is given from now on waits for the mark."""
        with self._cupy.cuda.Device(self.index):
            (stream if stream is not None else self._cupy.cuda.get_current_stream()).wait_event(event)

    def capturing(self) -> bool:
        """Whether the thread's current stream is being captured into a CUDA graph."""
        stream = self._cupy.cuda.get_current_stream()
        return stream.ptr != 0 and bool(stream.is_capturing())

    def done(self, event: Any) -> bool:
        """Whether all before the mark has been done."""
        return event.done

    def pointer(self, array: Any) -> int:
        """The address of a contiguous array's first element."""
        return array.data.ptr

    def empty(self, size: int, dtype: np.dtype) -> Any:
        """A flat array, allocated for the current stream."""
        return self._cupy.empty(size, dtype)

    def to_host(self, array: Any) -> np.ndarray:
        return self._cupy.asnumpy(array)

    def from_host(self, array: np.ndarray) -> Any:
        with self._cupy.cuda.Device(self.index):
            return self._cupy.asarray(array)


class Staged:
    """A caller's device array as a flat contiguous buffer in device memory, for one call.

    `load` and `store` only enqueue, on the stream that is current where they are called.

    Args:
        array: the caller's array.
        wire: dtype to reduce in; None moves the array in its own.
    """

    def __init__(self, array: Any, wire: np.dtype | None) -> None:
        self._array = array
        self._wire = array.dtype if wire is None else wire
        self._is_copy = True

    @property
    def nbytes(self) -> int:
        return self._array.size * self._wire.itemsize

    def load(self, *, read: bool = True, private: bool = False) -> Any:
        """The buffer: the array's own memory where layout and dtype allow, else a copy."""
        array = self._array
        in_place = array.flags.c_contiguous and not private
        flat = array.reshape(-1) if in_place else array.flatten()
        if flat.dtype == self._wire:
            self._is_copy = not in_place
            return flat
        if flat.dtype == np.bool_ and self._wire == np.uint8:
            self._is_copy = not in_place
            return flat.view(np.uint8)
        return flat.astype(self._wire)

    def store(self, buffer: Any) -> None:
        """Bring a changed buffer back into the caller's array, rounding once if it is wider."""
        if self._is_copy:
            if self._array.dtype == np.bool_ and buffer.dtype == np.uint8:
                buffer = buffer.view(np.bool_)
            self._array[...] = buffer.reshape(self._array.shape).astype(self._array.dtype, copy=False)
