"""The state of autocast: per thread, with one flag for all threads that op calls look at.

``switch.on`` is false unless some thread is inside an enabled region, so that outside of autocast
an op call pays for one attribute and nothing else.
"""

from __future__ import annotations

import threading

from ..backend import dtypes

DEVICES = ("cpu", "cuda")


class _Switch:
    """Whether any thread casts, and the function that does it (set by ``ops.autocast``)."""

    __slots__ = ("cast", "on")

    def __init__(self):
        self.on, self.cast = False, None


class _State(threading.local):
    """What ``torch.autocast`` has set in this thread.

    Attributes:
        dtypes: device type to its lower-precision dtype.
        enabled: the device types whose operations are cast.
        nesting: how many regions are open; the cache is dropped when the last one ends.
        cache: id of a weight (and whether gradients were recorded) to the weight, its version and
            its cast.
    """

    def __init__(self):
        self.dtypes = {"cpu": dtypes.bfloat16, "cuda": dtypes.float16}
        self.enabled: frozenset = frozenset()
        self.cache_enabled, self.nesting = True, 0
        self.cache: dict = {}


switch, state = _Switch(), _State()
_users = 0  # (thread, device type) pairs that are enabled, and profilers
_lock = threading.Lock()


def check_device_type(device_type) -> str:
    """``device_type`` if autocast knows it.

    Raises:
        TypeError, RuntimeError: if it is no string, or another device.
    """
    if not isinstance(device_type, str):
        raise TypeError(
            "autocast takes the type of a device as a string ('cpu' or 'cuda'), not "
            f"{type(device_type).__name__}"
        )
    if device_type not in DEVICES:
        raise RuntimeError(
            f"unknown device type for autocast: '{device_type}'; disttorch has 'cpu' and 'cuda'"
        )
    return device_type


def set_enabled(device_type: str, enabled: bool) -> None:
    """Cast operations on this type of device in this thread, or stop doing so."""
    if (device_type in state.enabled) == bool(enabled):
        return
    state.enabled = state.enabled ^ {device_type}
    hold(enabled)


def hold(on: bool) -> None:
    """Make every operation take the path that looks here (a region, a profiler), or end that."""
    global _users
    with _lock:
        _users += 1 if on else -1
        switch.on = _users > 0


__all__ = ["DEVICES", "check_device_type", "hold", "set_enabled", "state", "switch"]
