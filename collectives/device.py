"""The only place here that knows about arrays in GPU memory.

A device array is what offers `__cuda_array_interface__` with a NumPy dtype, in practice CuPy's.
Unless MPI reads device memory by itself (`mpi.cuda_aware`), such arrays travel through pinned host
memory. CuPy is imported when the first device array arrives.

Not yet run on a GPU: the code below follows CuPy's documentation and has not been executed.
"""

from __future__ import annotations

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
                with cupy.cuda.Stream(non_blocking=True) as stream:
                    # (a 0-dim array would come back as 1-dim)
                    cupy.ascontiguousarray(array).reshape(array.shape).get(out=host)
                    stream.synchronize()
        return host

    def upload(self, host: np.ndarray) -> None:
        """Copy `host` into the device array."""
        cupy, array = self._cupy, self._array
        if not array.size:
            return
        with array.device, cupy.cuda.Stream(non_blocking=True) as stream:
            array[...] = cupy.asarray(host)
            stream.synchronize()
