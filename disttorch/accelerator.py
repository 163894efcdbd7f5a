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


class device_index:
    """Context: another accelerator, by its number, is the current one; None changes nothing."""

    def __init__(self, device: int | None):
        self.device = device

    def __enter__(self):
        if self.device is not None:
            self._context = _require().device(self.device)
            self._context.__enter__()

    def __exit__(self, *exc):
        if self.device is not None:
            self._context.__exit__(*exc)


class Event(cuda.Event):
    """``torch.Event``: a mark in a stream of the accelerator; arguments as of ``torch.cuda.Event``,
    after the kind of device."""

    def __init__(self, device=None, *, enable_timing: bool = False, blocking: bool = False,
                 interprocess: bool = False):
        if device is not None:
            cuda.device_number(device)  # raises for a kind that is no GPU
        super().__init__(enable_timing, blocking, interprocess)


def get_memory_info(device=None) -> tuple[int, int]:
    """Bytes free on it, bytes it has."""
    return _require().mem_get_info(device)


memory_allocated, max_memory_allocated = cuda.memory_allocated, cuda.max_memory_allocated
memory_reserved, max_memory_reserved = cuda.memory_reserved, cuda.max_memory_reserved
memory_stats, reset_peak_memory_stats = cuda.memory_stats, cuda.reset_peak_memory_stats
reset_accumulated_memory_stats = cuda.reset_accumulated_memory_stats
get_device_capability = cuda.get_device_capability
