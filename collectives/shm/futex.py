"""The two system calls with which a rank sleeps until another changes a word of shared memory.

ctypes releases the GIL during each call, so other threads of the process go on computing.
"""

from __future__ import annotations

import ctypes
import platform
import sys

_NUMBERS = {"x86_64": 202}
_NUMBER = _NUMBERS.get(platform.machine(), 0) if sys.maxsize > 1 << 32 else 0
_WAIT, _WAKE, _EVERYBODY = 0, 1, 0x7FFFFFFF


class _Timespec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


if sys.platform == "linux" and _NUMBER:
    _libc = ctypes.CDLL(None, use_errno=True)
    _syscall = _libc.syscall
    _syscall.restype = ctypes.c_long
    yield_core = _libc.sched_yield


def why_not() -> str:
    """Why ranks of this machine cannot signal each other so; "" where they can."""
    if sys.platform != "linux":
        return f"futexes are Linux's, and this is {sys.platform}"
    if not _NUMBER:
        # Python has no memory fences between plain stores: their order must be the processor's.
        return (
            f"a {platform.machine()} processor may reorder stores to shared memory, and Python has "
            "no instruction against it"
        )
    word = ctypes.c_uint32(0)
    if wake(ctypes.addressof(word)) != 0:
        return f"the system refuses futex calls (errno {ctypes.get_errno()})"
    return ""


def wait(address: int, seen: int, milliseconds: int) -> None:
    """Sleep while the 32-bit word at `address` is `seen`, until `wake`, a signal or the time is up."""
    limit = _Timespec(milliseconds // 1000, milliseconds % 1000 * 1_000_000)
    _syscall(
        ctypes.c_long(_NUMBER),
        ctypes.c_void_p(address),
        ctypes.c_long(_WAIT),
        ctypes.c_uint32(seen),
        ctypes.byref(limit),
        ctypes.c_void_p(None),
        ctypes.c_long(0),
    )


def wake(address: int) -> int:
    """Wake everybody who sleeps on the word at `address`; returns how many, or -1."""
    return _syscall(
        ctypes.c_long(_NUMBER),
        ctypes.c_void_p(address),
        ctypes.c_long(_WAKE),
        ctypes.c_long(_EVERYBODY),
        ctypes.c_void_p(None),
        ctypes.c_void_p(None),
        ctypes.c_long(0),
    )
