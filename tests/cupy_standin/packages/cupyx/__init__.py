"""What disttorch uses of ``cupyx``."""

import contextlib

import numpy as _np
from cupy_standin import memory as _memory


@contextlib.contextmanager
def errstate(*, linalg=None, fallback_mode=None):
    yield  # NumPy always raises for singular matrices


def empty_pinned(shape, dtype=float, order="C"):
    dtype = _np.dtype(dtype)
    size = int(_np.prod(shape)) * dtype.itemsize
    memory = _memory.alloc_pinned_memory(size)
    return _np.frombuffer(memory, dtype, size // dtype.itemsize).reshape(shape)
