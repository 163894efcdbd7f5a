"""The one place that knows NumPy and CuPy.

Everything above asks here for the *namespace* of an array (``namespace_of(array)``): an object with
NumPy's function names plus the kernels that NumPy lacks. The CPU's is ``numpy_backend.CPU``; the
GPU's is made on first use, so a machine without CUDA never imports CuPy.
"""

from __future__ import annotations

from numpy import ndarray

from . import devices, dtypes
from .meta_backend import META, MetaArray
from .numpy_backend import CPU

__all__ = [
    "CPU", "device_of", "devices", "dtypes", "gpu_arrays", "namespace_for", "namespace_of", "ndarray",
]


# The class of a GPU's arrays (once one has been seen): what finds their namespace
gpu_arrays: dict = {}


def namespace_of(array):
    """The namespace whose functions work on ``array``.

    Raises:
        TypeError: if it is neither a NumPy nor a CuPy array.
    """
    if array.__class__ in gpu_arrays:
        return gpu_arrays[array.__class__]()
    if isinstance(array, CPU.array_types):
        return META if array.__class__ is MetaArray else CPU
    if type(array).__module__.split(".")[0] == "cupy":
        from .cupy_backend import current, finder

        if array.__class__ is current().ndarray:
            gpu_arrays[array.__class__] = finder()  # next time without a look at names
        return current()
    raise TypeError(f"a tensor holds a NumPy or CuPy array, not {type(array).__name__}")


def namespace_for(device: devices.device):
    """The namespace that makes arrays on ``device``.

    Raises:
        RuntimeError: if the device is a GPU and CuPy or a GPU is missing, or of a kind that
            holds no tensors here.
    """
    if device.type == "cpu":
        return CPU
    if device.type == "meta":
        return META
    if device.type != "cuda":
        raise RuntimeError(f"disttorch has the devices cpu, cuda and meta, not {device.type!r}")
    from .cupy_backend import gpu

    return gpu(device)


def device_of(array) -> devices.device:
    """The device an array lives on."""
    if array.__class__ is ndarray:
        return devices.cpu
    return namespace_of(array).device_of(array)
