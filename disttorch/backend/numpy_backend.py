"""The CPU namespace: NumPy's functions by name, plus the kernels that NumPy lacks."""

from __future__ import annotations

import ctypes
import inspect
import sys

import numpy as np

from . import (
    attention_kernels,
    batchnorm_kernels,
    bessel_kernels,
    conv_kernels,
    devices,
    gamma_kernels,
    kernels,
    matmul_kernels,
    optim_kernels,
    optim_kernels_more,
    plain_copies,
    pool_kernels,
    resample_kernels,
    row_kernels,
    special_kernels,
    storage,
    stride_kernels,
)
from .rng import Generator

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def _keep_freed_memory() -> None:
    """Let glibc reuse freed blocks of any size instead of returning them to the system.

    By default every array above a few hundred KB is a fresh mmap whose pages the kernel must zero
    again at first touch: a training step frees and allocates the same sizes over and over, and the
    page faults cost more than the arithmetic.
    """
    if sys.platform.startswith("linux"):
        try:
            mallopt = ctypes.CDLL(None).mallopt
        except (OSError, AttributeError):  # musl has no mallopt
            return
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)


def bind_kernels(namespace, *modules) -> None:
    """Make every function ``f(xp, ...)`` of the modules a method of ``namespace``."""
    for module in modules:
        for name, value in vars(module).items():
            if inspect.isfunction(value) and not name.startswith("_"):
                if next(iter(inspect.signature(value).parameters), None) == "xp":
                    setattr(namespace, name, value.__get__(namespace))


class NumpyNamespace:
    """NumPy's functions plus fused kernels; what an op's forward receives as ``xp``."""

    name = "numpy"
    ndarray = np.ndarray
    array_types = (np.ndarray, np.generic)
    # NumPy computes 16-bit floats one conversion at a time: ops widen them to float32 first
    widens_half = True
    steps_on_device = False  # optimizers count on the host anyway
    fused_half = False  # no kernels that take them as they are
    fused = None  # nor elementwise functions of one launch; see ``gpu/elementwise.py``

    def __init__(self):
        bind_kernels(self, kernels, plain_copies, optim_kernels, optim_kernels_more, storage,
                     stride_kernels, special_kernels,
                     bessel_kernels, gamma_kernels, conv_kernels, pool_kernels,
                     batchnorm_kernels, resample_kernels, matmul_kernels, attention_kernels,
                     row_kernels)

    def __getattr__(self, name):
        value = getattr(np, name)  # raises an AttributeError that names numpy
        setattr(self, name, value)
        return value

    @staticmethod
    def device_of(array) -> devices.device:
        return devices.cpu

    @staticmethod
    def from_host(array, non_blocking=False):
        """A NumPy array as this namespace's array: itself."""
        return array

    @staticmethod
    def to_host(array, non_blocking=False):
        """This namespace's array as a NumPy array: itself."""
        return array

    @staticmethod
    def make_generator(seed: int) -> Generator:
        return Generator(seed)

    @staticmethod
    def synchronize() -> None:
        """NumPy calls return when they are done."""


_keep_freed_memory()
CPU = NumpyNamespace()
