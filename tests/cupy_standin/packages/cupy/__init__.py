"""The stand-in under CuPy's name; see ``cupy_standin``."""

from cupy_standin import functions as _functions
from cupy_standin import kernels as _kernels
from cupy_standin import memory as _memory
from cupy_standin import methods as _methods  # noqa: F401, gives arrays their methods
from cupy_standin.arrays import ndarray
from cupy_standin.functions import ufunc

from . import cuda, fft, lib, linalg, random

__version__ = "14.2.0"
globals().update(_functions.table)
RawKernel, RawModule = _kernels.RawKernel, _kernels.RawModule
ElementwiseKernel, ReductionKernel = _kernels.ElementwiseKernel, _kernels.ReductionKernel


def get_default_memory_pool():
    return _memory.default_pool


def get_default_pinned_memory_pool():
    return _memory.default_pinned_pool


__all__ = ["ElementwiseKernel", "RawKernel", "RawModule", "ReductionKernel", "cuda", "fft",
           "get_default_memory_pool", "get_default_pinned_memory_pool", "lib", "linalg", "ndarray",
           "random", "ufunc"]
