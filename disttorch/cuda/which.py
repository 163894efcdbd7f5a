"""Which GPU is meant."""

from __future__ import annotations

from ..backend import cupy_backend, devices, gpu_runtime


class NoGpuError(RuntimeError, AssertionError):
    """A GPU is needed and there is none. PyTorch raises the one or the other, by its build."""


def is_available() -> bool:
    """Whether CuPy is installed and finds a usable GPU."""
    return cupy_backend.is_available()


def require() -> None:
    """Raise NoGpuError, saying why, unless there is a usable GPU."""
    try:
        gpu_runtime.cupy()
    except RuntimeError as error:
        raise NoGpuError(f"Torch not compiled with CUDA enabled ({error})") from None


def current_device() -> int:
    """The number of the current GPU."""
    require()
    return gpu_runtime.current_device()


def device_number(device) -> int:
    """The number of a GPU given as number, text, device or None (the current one)."""
    if isinstance(device, int):
        return device
    if device is None:
        return current_device()
    d = devices.device(device)
    if d.type != "cuda":
        raise ValueError(f"Expected a cuda device, but got: {d}")
    return current_device() if d.index is None else d.index


def device_of_number(device) -> devices.device:
    """The device object of a GPU given in any of these forms."""
    return devices.device("cuda", device_number(device))
