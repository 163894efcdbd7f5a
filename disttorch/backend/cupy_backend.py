"""The GPU namespace: CuPy's functions by name, plus the kernels that CuPy lacks.

CuPy is imported when a tensor is first put on a GPU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from . import (
    attention_kernels,
    batchnorm_kernels,
    bessel_kernels,
    conv_kernels,
    devices,
    gamma_kernels,
    matmul_kernels,
    optim_kernels,
    optim_kernels_more,
    plain_copies,
    plain_kernels,
    pool_kernels,
    resample_kernels,
    row_kernels,
    special_kernels,
    storage,
    stride_kernels,
)
from .gpu import attention as gpu_attention
from .gpu import (
    batchnorm,
    casts,
    convolution,
    copies,
    elementwise,
    gemm,
    gradients,
    graphs,
    joins,
    linear,
    losses,
    memory,
    multi,
    norms,
    pooling,
    reductions,
    resample,
    rotary,
    rows,
    scatter,
    transfers,
)
from .gpu import random as gpu_random
from .numpy_backend import CPU, bind_kernels

_NO_CUPY = (
    'the device "cuda" needs CuPy: pip install "disttorch[cuda12]" (or cuda13); '
    "importing it failed with: {}"
)


@functools.cache
def _cupy():
    try:
        import cupy
    except ImportError as error:
        raise RuntimeError(_NO_CUPY.format(error)) from None
    if not cupy.is_available():
        raise RuntimeError(
            "No CUDA GPUs are available: CuPy is installed, but it finds no driver or no device"
        )
    memory.install(cupy)
    return cupy


def is_available() -> bool:
    """Whether CuPy is installed and finds a usable GPU. Never raises."""
    try:
        return _cupy() is not None
    except RuntimeError:
        return False


def device_count() -> int:
    """The number of visible GPUs; 0 without CuPy or a driver."""
    return _cupy().cuda.runtime.getDeviceCount() if is_available() else 0


def _sortable(a):
    return a.astype(np.float32) if a.dtype.name == "bfloat16" else a


class _Linalg:
    """``cupy.linalg``, with NumPy's broadcasting and NumPy's error for a singular matrix."""

    def __init__(self, cupy):
        self._cupy = cupy

    def __getattr__(self, name):
        function = getattr(self._cupy.linalg, name)
        if not callable(function) or isinstance(function, type):
            return function
        from cupyx import errstate

        @functools.wraps(function)
        def checked(*args, **kwargs):
            with errstate(linalg="raise"):  # CuPy's default is to return nonsense quietly
                return function(*args, **kwargs)

        setattr(self, name, checked)
        return checked

    def solve(self, a, b):
        """X of aX = b. a: *×N×N, b: *×N×M."""
        cp = self._cupy
        lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        a, b = cp.broadcast_to(a, lead + a.shape[-2:]), cp.broadcast_to(b, lead + b.shape[-2:])
        if b.size == 0:
            return cp.zeros(b.shape, np.result_type(a.dtype, b.dtype))
        from cupyx import errstate

        with errstate(linalg="raise"):
            return cp.linalg.solve(a, b)


class CupyNamespace:
    """CuPy's functions on one device; what an op's forward receives as ``xp``."""

    name = "cupy"
    widens_half = True  # the ops that no kernel of ``gpu/`` computes in one go (``Op(fused=True)``)
    fused_half = True
    steps_on_device = True  # where optimizers are asked to (fused, capturable)
    outside = None  # where kernels note indices out of range: see gpu/scatter.py

    def __init__(self, index: int):
        self.cupy = _cupy()
        count = self.cupy.cuda.runtime.getDeviceCount()
        if not 0 <= index < count:
            raise RuntimeError(
                f"CUDA error: invalid device ordinal: cuda:{index}, but {count} device(s) are visible"
            )
        self.index, self.device = index, self.cupy.cuda.Device(index)
        self.ndarray = self.cupy.ndarray
        self.array_types = (self.cupy.ndarray,)
        self.linalg = _Linalg(self.cupy)
        self.fused = elementwise.Fused(self.cupy)
        self.copier, self.is_contiguous = copies.Copier(self.cupy), copies.contiguity(self.cupy)
        self.caster = casts.Caster(self.fused, self.is_contiguous)
        bind_kernels(self, plain_kernels, plain_copies, optim_kernels, optim_kernels_more, storage,
                     stride_kernels, special_kernels,
                     bessel_kernels, gamma_kernels, conv_kernels, pool_kernels,
                     batchnorm_kernels, resample_kernels, matmul_kernels, scatter, gpu_random, gemm,
                     linear, copies, joins, convolution, batchnorm, attention_kernels,
                     gpu_attention, row_kernels, rows, norms, reductions, losses, rotary, multi,
                     gradients, pooling, resample)

    def __getattr__(self, name):
        value = getattr(self.cupy, name)
        setattr(self, name, value)
        return value

    def erf(self, x):
        """The error function."""
        from cupyx.scipy.special import erf

        return erf(x)

    def indices(self, dimensions, dtype=int, sparse=False):
        """``numpy.indices``, of which CuPy lacks the sparse form."""
        if not sparse:
            return self.cupy.indices(dimensions, dtype)
        rank = len(dimensions)
        return tuple(
            self.ramp(0, 1, n, np.dtype(dtype)).reshape((1,) * i + (n,) + (1,) * (rank - i - 1))
            for i, n in enumerate(dimensions)
        )

    def broadcast_arrays(self, *arrays):
        """``numpy.broadcast_arrays``: numbers become arrays, too."""
        return self.cupy.broadcast_arrays(*map(self.cupy.asarray, arrays))

    def tril(self, a, k=0):
        """``numpy.tril``, also of 16-bit brain floats (CuPy's returns float32)."""
        return self.cupy.tril(a, k).astype(a.dtype, copy=False)

    def triu(self, a, k=0):
        """``numpy.triu``; see ``tril``."""
        return self.cupy.triu(a, k).astype(a.dtype, copy=False)

    def sort(self, a, axis=-1, kind=None):
        """``numpy.sort``; CuPy sorts no 16-bit brain floats, and float32 orders them alike."""
        return self.cupy.sort(_sortable(a), axis, kind).astype(a.dtype, copy=False)

    def argsort(self, a, axis=-1, kind=None):
        """``numpy.argsort``; see ``sort``."""
        return self.cupy.argsort(_sortable(a), axis, kind)

    def partition(self, a, kth, axis=-1):
        """``numpy.partition``; see ``sort``."""
        return self.cupy.partition(_sortable(a), kth, axis).astype(a.dtype, copy=False)

    def argpartition(self, a, kth, axis=-1):
        """``numpy.argpartition``; see ``sort``."""
        return self.cupy.argpartition(_sortable(a), kth, axis)

    @staticmethod
    def device_of(array) -> devices.device:
        return _device(array.device.id)

    def from_host(self, array, non_blocking=False):
        """A copy of a NumPy array on this device; see ``gpu.transfers``."""
        return transfers.from_host(self, array, non_blocking)

    def to_host(self, array, non_blocking=False):
        """A copy of the array in host memory (waits for it, unless ``non_blocking``)."""
        found = transfers.to_host(self, array, non_blocking)
        if not non_blocking:
            scatter.raise_outside(self)
        return found

    def copy_into(self, target, source, non_blocking):
        """Copy between host and this device into memory that is there; False if that needs a detour."""
        return transfers.copy_into(self, target, source, non_blocking)

    def make_generator(self, seed: int) -> gpu_random.GpuGenerator:
        return gpu_random.GpuGenerator(seed, self)

    def synchronize(self) -> None:
        """Wait until the device has done all work given to it."""
        graphs.refuse("waiting for the GPU")
        self.device.synchronize()
        memory.release_done()
        scatter.raise_outside(self)


@functools.cache
def _namespace(index: int) -> CupyNamespace:
    return CupyNamespace(index)


def namespace_of_number(index: int) -> CupyNamespace:
    """The namespace of the GPU with this number."""
    return _namespace(index)


def gpu(device: devices.device | None = None) -> CupyNamespace:
    """The namespace of a GPU; without an index, of the current one.

    Raises:
        RuntimeError: if CuPy, a driver or that device is missing.
    """
    if device is None or device.index is None:
        return _namespace(_cupy().cuda.runtime.getDevice())
    return _namespace(device.index)


@functools.cache
def _get_device():
    return _cupy().cuda.runtime.getDevice


def current() -> CupyNamespace:
    """The namespace of the current GPU."""
    return _namespace(_get_device()())


def finder() -> Callable[[], CupyNamespace]:
    """``current`` with few steps, as ops call it some times each: with one GPU, nothing is asked."""
    if device_count() > 1:
        return current
    only = current()
    return lambda: only


@functools.cache
def _device(index: int) -> devices.device:
    return devices.device("cuda", index)


__all__ = ["CPU", "CupyNamespace", "current", "device_count", "gpu", "is_available"]
