"""Whichever accelerator there is: here CUDA GPUs or none."""

from __future__ import annotations

from . import cuda
from .backend import devices

_NONE = "Cannot access accelerator device when none is available."


def is_available() -> bool:
    """Whether there is one."""
    return cuda.is_available()


def device_count() -> int:
    """How many there are."""
    return cuda.device_count()


def current_accelerator(check_available: bool = False):
    """The kind as a device, or None."""
    return devices.device("cuda") if is_available() else None


def _require():
    if not is_available():
        raise RuntimeError(_NONE)
    return cuda


def current_device_index() -> int:
    """The number of the current one."""
    return _require().current_device()


current_device_idx = current_device_index


def set_device_index(device) -> None:
    """Make one the current one."""
    _require().set_device(device)


set_device_idx = set_device_index


def current_stream(device=None):
    """The stream that work goes to."""
    return _require().current_stream(device)


def set_stream(stream) -> None:
    """Give work to another stream."""
    _require().set_stream(stream)


def synchronize(device=None) -> None:
    """Wait until all work is done."""
    _require().synchronize(device)


def empty_cache() -> None:
    """Give unused memory back."""
    cuda.empty_cache()
