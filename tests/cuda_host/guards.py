"""Memory whose borders are watched: reading or writing next to an array is an error, not luck."""

from __future__ import annotations

import ctypes
import mmap
import sys

import numpy as np

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
PAGE = mmap.PAGESIZE
ALIGNMENT = 16
_CANARY = 0xA5


class GuardedMemory:
    """``size`` bytes at ``address`` (a multiple of 16), an untouchable page before and behind them.

    What lies between the last byte and that page, less than 16 bytes, holds a pattern.
    """

    def __init__(self, size: int):
        self.size = size
        padded = max(-(-size // ALIGNMENT) * ALIGNMENT, ALIGNMENT)
        pages = -(-padded // PAGE) * PAGE
        self._whole = pages + 2 * PAGE
        base = _LIBC.mmap(None, self._whole, 3, 0x22, -1, 0)  # read and write; private and anonymous
        if base in (None, ctypes.c_void_p(-1).value):
            raise MemoryError(f"mmap of {self._whole} bytes failed with {ctypes.get_errno()}")
        self._base = base
        _LIBC.mprotect(base, PAGE, 0)
        _LIBC.mprotect(base + PAGE + pages, PAGE, 0)
        self.address = base + PAGE + pages - padded
        ctypes.memset(base + PAGE, _CANARY, pages - padded)
        ctypes.memset(self.address + size, _CANARY, padded - size)
        self._padding = padded - size

    def intact(self) -> bool:
        """Whether the pattern around the memory is still there."""
        start, end = self._base + PAGE, self.address + self.size
        return all(ctypes.string_at(at, n) == bytes([_CANARY]) * n
                   for at, n in ((start, self.address - start), (end, self._padding)))

    def array(self) -> np.ndarray:
        """The bytes as an array, which must not outlive this object."""
        return np.frombuffer((ctypes.c_uint8 * self.size).from_address(self.address), np.uint8)

    def close(self) -> None:
        """Give the memory back."""
        if self._base:
            _LIBC.munmap(self._base, self._whole)
            self._base = 0

    def __del__(self, finalizing=sys.is_finalizing):
        if not finalizing():  # else the process ends with it
            self.close()


class Argument:
    """An array argument in guarded memory, as ``Library.launch`` takes it."""

    def __init__(self, pointer: int, dtype: np.dtype):
        self.pointer, self.dtype = pointer, dtype


class Guarded:
    """Copies of the memory that some NumPy arrays own, in guarded memory; copied back at the end."""

    def __init__(self, arrays: list[np.ndarray]):
        self._owners: dict[int, tuple[np.ndarray, GuardedMemory]] = {}
        self._broken: list[str] = []
        for a in arrays:
            root = _root(a)
            if id(root) not in self._owners:
                memory = GuardedMemory(root.nbytes)
                self._owners[id(root)] = (root, memory)
                memory.array()[:] = _bytes_of(root)

    def get(self, array: np.ndarray) -> Argument:
        root = _root(array)
        start = array.__array_interface__["data"][0] - root.__array_interface__["data"][0]
        return Argument(self._owners[id(root)][1].address + start, array.dtype)

    def explain(self, address: int) -> str:
        """Which array an address is next to."""
        if not address:
            return ""
        for root, memory in self._owners.values():
            past = address - memory.address
            if -PAGE <= past < root.nbytes + 2 * PAGE:
                return (f": byte {past} of an array of {root.nbytes} bytes "
                        f"({root.dtype.name} {root.shape})")
        return f": address {address:#x}"

    def close(self) -> None:
        for root, memory in self._owners.values():
            if root.flags.writeable:
                _bytes_of(root)[:] = memory.array()
            if not memory.intact():
                self._broken.append(f"{root.dtype.name} {root.shape}")
            memory.close()

    def check(self, name: str) -> None:
        from .library import KernelError

        if self._broken:
            raise KernelError(f"{name} has written next to an array: {', '.join(self._broken)}")


def _root(array: np.ndarray) -> np.ndarray:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _bytes_of(root: np.ndarray) -> np.ndarray:
    flat = root if root.flags.c_contiguous else root.T
    return flat.reshape(-1).view(np.uint8) if root.size else np.empty(0, np.uint8)
