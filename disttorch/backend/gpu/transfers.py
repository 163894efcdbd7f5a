"""Copies between host and GPU, in the current stream.

From page-locked (*pinned*) host memory the GPU fetches by itself: such a copy can run beside the host
and other streams. With ``non_blocking`` it is only put into the stream, and what it reads or writes in
host memory is held until it is done. From ordinary memory CuPy first copies to a pinned buffer of its
own, so there the source may be changed as soon as the call returns.

CuPy's pinned pool keeps freed blocks for the next copies of the same size.
"""

from __future__ import annotations

import numpy as np

from .. import side_streams
from . import graphs, memory

_LOCKED = "PinnedMemoryPointer"
_PAGEABLE = "a copy from host memory that is not pinned (pin_memory)"


def empty_pinned(cupy, shape, dtype) -> np.ndarray:
    """An array in page-locked host memory, its values undefined."""
    dtype = np.dtype(dtype)
    out = np.empty(0, dtype)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if not size:
        return out.reshape(shape)
    return np.frombuffer(cupy.cuda.alloc_pinned_memory(size), np.uint8, size).view(dtype).reshape(shape)


def pinned_copy(cupy, array: np.ndarray) -> np.ndarray:
    """Equal values in page-locked host memory, row-major."""
    out = empty_pinned(cupy, array.shape, array.dtype)
    out[...] = array
    return out


def is_pinned(array: np.ndarray) -> bool:
    """Whether a NumPy array lies in page-locked memory that CuPy allocated."""
    root = array
    while (below := getattr(root, "base", None)) is not None:
        root = below
    # NumPy puts a memoryview, whose ``obj`` is the exporter, between an array and a buffer
    return type(root).__name__ == _LOCKED or type(getattr(root, "obj", None)).__name__ == _LOCKED


def from_host(xp, array, non_blocking: bool = False):
    """A copy of a NumPy array on the namespace's device.

    Args:
        non_blocking: return before pinned memory has been read; it is held until then. Changing it
            meanwhile changes the copy, as in PyTorch.

    Raises:
        GraphError: for ordinary memory while a graph is captured.
    """
    cupy = xp.cupy
    with xp.device:
        if array.ndim == 0 or not array.size:  # a number goes as an argument of a kernel
            return _done_for_all(cupy, cupy.asarray(array), non_blocking)
        if not (array.flags.c_contiguous and is_pinned(array)):
            graphs.refuse(_PAGEABLE, unasked=not non_blocking)
            array = np.ascontiguousarray(array) if is_pinned(array) else array
            return _done_for_all(cupy, cupy.asarray(array), non_blocking)
        out = cupy.empty(array.shape, array.dtype)
        _fetch(cupy, out, array, non_blocking)
        return out


def _done_for_all(cupy, array, non_blocking: bool):
    """CuPy's copies go on behind the call's back: whoever did not ask for that may use the copy in any
    stream, as in PyTorch, where the host waits for it."""
    if not non_blocking:
        side_streams.after_upload(cupy)
    return array


def to_host(xp, array, non_blocking: bool = False) -> np.ndarray:
    """A copy of an array in host memory.

    Args:
        non_blocking: return pinned memory before it has been written; what it holds may be read after
            the stream was waited for.

    Raises:
        GraphError: while a graph is captured, unless ``non_blocking``.
    """
    if not non_blocking:
        graphs.refuse("reading values of a GPU tensor", unasked=True)
        return array.get()
    cupy = xp.cupy
    with xp.device:
        out = empty_pinned(cupy, array.shape, array.dtype)
        if out.size:
            _send(cupy, xp.ascontiguousarray(array), out)
        return out


def copy_into(xp, target, source, non_blocking: bool) -> bool:
    """Copy between host and GPU straight into memory that is there; False where that needs a detour.

    Args:
        xp: the GPU's namespace.
        target, source: one of CuPy, one of NumPy.
    """
    if target.dtype != source.dtype or target.shape != source.shape or not target.size:
        return False
    if not (target.flags.c_contiguous and source.flags.c_contiguous):
        return False
    with xp.device:
        if isinstance(source, np.ndarray):
            if not is_pinned(source):
                return False
            _fetch(xp.cupy, target, source, non_blocking)
        elif non_blocking and is_pinned(target):
            _send(xp.cupy, source, target)
        else:
            graphs.refuse("copying a GPU tensor to the CPU and waiting for it", unasked=True)
            source.get(out=target)
    return True


def _fetch(cupy, target, source: np.ndarray, non_blocking: bool) -> None:
    """Pinned host memory to the device."""
    stream = cupy.cuda.get_current_stream()
    if not non_blocking:
        graphs.refuse("a copy from the CPU that is waited for (non_blocking=False)", unasked=True)
    runtime = cupy.cuda.runtime  # CuPy's own copy_from_host_async refuses in a capture, CUDA does not
    runtime.memcpyAsync(target.data.ptr, source.ctypes.data, source.nbytes,
                        runtime.memcpyHostToDevice, stream.ptr)
    if non_blocking:
        memory.keep_until_done([stream], source)
    else:
        stream.synchronize()


def _send(cupy, source, target: np.ndarray) -> None:
    """The device to pinned host memory. The source's memory stays its stream's: nothing overtakes."""
    stream = cupy.cuda.get_current_stream()
    runtime = cupy.cuda.runtime
    runtime.memcpyAsync(target.ctypes.data, source.data.ptr, target.nbytes,
                        runtime.memcpyDeviceToHost, stream.ptr)
    memory.keep_until_done([stream], (target, source))
