"""The CPU under the names that devices have: ``torch.cpu``."""

from __future__ import annotations

import contextlib

from . import amp


def is_available() -> bool:
    """True: there is a CPU."""
    return True


def device_count() -> int:
    """1: all CPUs are one device."""
    return 1


def current_device() -> str:
    """"cpu"."""
    return "cpu"


def set_device(device) -> None:
    """Nothing: there is one device."""


def is_initialized() -> bool:
    """True: there is nothing to initialise."""
    return True


def synchronize(device=None) -> None:
    """Nothing: operations on the CPU have ended when they return."""


class Stream:
    """Stands for the one order in which the CPU works."""

    def wait_stream(self, stream) -> None:
        """Nothing: there is one stream."""


def current_stream(device=None) -> Stream:
    """The stream of the CPU."""
    return _STREAM


def stream(stream):
    """A context that changes nothing: there is one stream."""
    return contextlib.nullcontext(stream)


_STREAM = Stream()
__all__ = [
    "Stream", "amp", "current_device", "current_stream", "device_count", "is_available",
    "is_initialized", "set_device", "stream", "synchronize",
]
