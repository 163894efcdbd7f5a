"""Device memory: real bytes between guard pages, pools that count like CuPy's, pinned host memory."""

from __future__ import annotations

import contextlib
import ctypes
import sys
import threading
import weakref

import numpy as np
from cuda_host.guards import GuardedMemory

from . import order

UNIT = 512
TOTAL = 16 << 30  # bytes of the device
GARBAGE = 0xFF  # NaN as a float of any size, -1 as an integer
_FILL_AT_MOST = 64 << 20
_taken = [0]  # bytes that the "driver" has given


class OutOfMemoryError(MemoryError):
    """As CuPy's: ``cupy.cuda.memory.OutOfMemoryError``."""


OutOfMemoryError.__module__ = "cupy.cuda.memory"


def round_up(size: int) -> int:
    return -(-size // UNIT) * UNIT


class BaseMemory:
    """Memory on a device: ``ptr``, ``size``, ``device_id``."""

    ptr, size, device_id = 0, 0, 0

    @property
    def device(self):
        from .devices import Device

        return Device(self.device_id)


class Memory(BaseMemory):
    """Memory of its own from the driver (cudaMalloc)."""

    def __init__(self, size: int, used: int | None = None):
        if _taken[0] + size > TOTAL:
            raise OutOfMemoryError(
                f"Out of memory allocating {size:,} bytes (allocated so far: {_taken[0]:,} bytes).")
        self.ptr, self.size, self.device_id = 0, size, 0
        self._guarded = None
        if size:
            guarded = self._guarded = GuardedMemory(size if used is None else used)
            self.ptr = guarded.address
            self.order = order.Memory(guarded.address, guarded.size, guarded)
            _taken[0] += size
            scrub(guarded)

    def check(self) -> None:
        """Raises if somebody has written next to it."""
        if self._guarded is not None and not self._guarded.intact():
            raise RuntimeError(f"something has written next to a block of {self._guarded.size} bytes")

    def __del__(self, finalizing=sys.is_finalizing):
        if not finalizing() and self.__dict__.get("_guarded") is not None:
            self.order.forget()
            _taken[0] -= self.size  # the bytes go when the last NumPy view of them is gone


def scrub(guarded: GuardedMemory) -> None:
    """Fill memory with what no program expects there."""
    ctypes.memset(guarded.address, GARBAGE, min(guarded.size, _FILL_AT_MOST))


class UnownedMemory(BaseMemory):
    """Memory of somebody else, whom ``owner`` keeps alive."""

    def __init__(self, ptr: int, size: int, owner, device_id: int = -1):
        self.ptr, self.size, self._owner = ptr, size, owner
        self.device_id = max(device_id, 0)


class MemoryPointer:
    """An address inside a memory object."""

    def __init__(self, mem, offset: int):
        self.mem, self.ptr = mem, mem.ptr + offset

    device_id = property(lambda self: self.mem.device_id)
    device = property(lambda self: self.mem.device)

    def __int__(self):
        return self.ptr

    def __add__(self, offset: int):
        return MemoryPointer(self.mem, self.ptr - self.mem.ptr + offset)

    __radd__ = __add__

    def __sub__(self, offset: int):
        return self + -offset

    def copy_from_device(self, src: MemoryPointer, size: int) -> None:
        self.copy_from_device_async(src, size)

    def copy_from_device_async(self, src: MemoryPointer, size: int, stream=None) -> None:
        copy(self.ptr, src.ptr, size, stream)

    def memset(self, value: int, size: int) -> None:
        self.memset_async(value, size)

    def memset_async(self, value: int, size: int, stream=None) -> None:
        spans = [span(self.ptr, size)] if size else []
        order.give("memset", [], spans, lambda: ctypes.memset(self.ptr, value, size),
                   stream=None if stream is None else stream._order)

    def copy_from_host(self, mem, size: int) -> None:
        upload(self.ptr, int(getattr(mem, "value", mem)), size, None)

    def copy_from_host_async(self, mem, size: int, stream=None) -> None:
        upload(self.ptr, int(getattr(mem, "value", mem)), size, stream)

    def copy_to_host_async(self, mem, size: int, stream=None) -> None:
        to = int(getattr(mem, "value", mem))
        if not is_pinned(to, size):
            self.copy_to_host(mem, size)  # what CUDA does with ordinary memory
            return
        order.give("copy to pinned memory", [span(self.ptr, size)] if size else [], [],
                   lambda: ctypes.memmove(to, self.ptr, size),
                   stream=None if stream is None else stream._order)

    def copy_to_host(self, mem, size: int) -> None:
        order.host_reads("copy_to_host", [span(self.ptr, size)] if size else [])
        ctypes.memmove(int(getattr(mem, "value", mem)), self.ptr, size)


for _kind in (BaseMemory, Memory, UnownedMemory, MemoryPointer):
    _kind.__module__ = "cupy.cuda.memory"


def span(address: int, size: int) -> order.Span:
    """The bytes at an address, for `order`.

    Raises:
        ValueError: if they are not device memory, or reach beyond it.
    """
    memory = order.memory_at(address)
    if memory is None or address + size > memory.end:
        raise ValueError(f"cudaErrorInvalidValue: {size} bytes at {address:#x} are not device memory")
    return order.Span(memory, address, address + size)


def copy(to: int, source: int, size: int, stream=None) -> None:
    """A copy within the device."""
    if size:
        state = order.current() if stream is None else stream._order
        order.give("memcpy", [span(source, size)], [span(to, size)],
                   lambda: ctypes.memmove(to, source, size), stream=state)


def upload(to: int, source: int, size: int, stream=None) -> None:
    """A copy from host memory."""
    state = order.current() if stream is None else stream._order
    order.counts["uploads"] += 1
    if state.capture is not None and not is_pinned(source, size):
        raise order.CaptureError("an upload of host memory in a captured stream: replays would read the "
                                 "host's memory again, when it may be gone")
    if size:
        order.give("upload", [], [span(to, size)], lambda: ctypes.memmove(to, source, size),
                   stream=state)


# ---- pools -----------------------------------------------------------------------------------------


class PooledMemory(BaseMemory):
    """A block of a pool; gives itself back at its end."""

    def __init__(self, under: MemoryPointer, size: int, pool: MemoryPool, key: tuple):
        self.ptr, self.size, self.device_id = under.ptr, size, under.device_id
        self._under, self._pool, self._key = under, pool._own, key

    def free(self, finalizing=sys.is_finalizing) -> None:
        if finalizing():
            return
        pool, under = self._pool(), self.__dict__.pop("_under", None)
        if pool is not None and under is not None:
            pool._take_back(under, self.size, self._key)

    __del__ = free


PooledMemory.__module__ = "cupy.cuda.memory"


def _driver(size: int, used: int) -> MemoryPointer:
    return MemoryPointer(Memory(size, used), 0)


class MemoryPool:
    """Memory that is kept for the next array of the same size in the same stream.

    As in CuPy a block goes back to the stream that was current when it was allocated, the moment its
    last array ends. The next one finds the uses of the one before in the memory's history.
    """

    def __init__(self, allocator=None):
        self._allocator, self._free, self._limit = allocator, {}, 0
        self._used = self._cached = 0
        self._own = weakref.ref(self)  # one that blocks have to themselves is cleared with a cycle
        # What arrays hold: a collection that ends an array in a cycle must not end it, too
        self._lent: dict[int, MemoryPointer] = {}
        self._lock = threading.RLock()

    def malloc(self, size: int) -> MemoryPointer:
        if size == 0:
            return MemoryPointer(UnownedMemory(0, 0, None, 0), 0)
        rounded = round_up(size)
        # The guard lies right behind what was asked for, where the pool may decide about it
        exact = -(-size // 16) * 16 if self._allocator is None else rounded
        key = (order.current().number, exact)
        hooks = list(getattr(_hooks, "active", {}).values())
        for hook in hooks:
            hook.malloc_preprocess(device_id=0, size=size, mem_size=rounded)
        with self._lock:
            waiting = self._free.get(key)
            if waiting:
                under = waiting.pop()
                self._cached -= rounded
                memory = order.memory_at(under.ptr)
                memory.freed = " (they belonged to an array that has ended)"
                ctypes.memset(under.ptr, GARBAGE, min(exact, _FILL_AT_MOST))
            else:
                under = self._new(rounded, exact)
            self._used += rounded
            self._lent[under.ptr] = under
        order.counts["allocations"] += 1
        out = MemoryPointer(PooledMemory(under, rounded, self, key), 0)
        for hook in hooks:
            hook.malloc_postprocess(device_id=0, size=size, mem_size=rounded, mem_ptr=out.ptr,
                                    pmem_id=id(out.mem))
        return out

    def _new(self, rounded: int, exact: int) -> MemoryPointer:
        if self._limit and self._used + self._cached + rounded > self._limit:
            self.free_all_blocks()
            if self._used + rounded > self._limit:
                raise OutOfMemoryError(
                    f"Out of memory allocating {rounded:,} bytes (allocated so far: "
                    f"{self._used:,} bytes, limit set to: {self._limit:,} bytes).")
        for attempt in range(2):
            try:
                return self._allocator(rounded) if self._allocator else _driver(rounded, exact)
            except OutOfMemoryError:
                if attempt:
                    raise
                self.free_all_blocks()
        raise AssertionError

    def _take_back(self, under: MemoryPointer, size: int, key: tuple) -> None:
        with self._lock:
            self._lent.pop(under.ptr, None)
            self._used -= size
            self._cached += size
            self._free.setdefault(key, []).append(under)

    def free_all_blocks(self, stream=None) -> None:
        with self._lock:
            for key in list(self._free):
                if stream is None or stream.ptr == key[0]:
                    for under in self._free.pop(key):
                        self._cached -= round_up(key[1])
                        getattr(under.mem, "check", lambda: None)()

    def free_all_free(self) -> None:
        self.free_all_blocks()

    def n_free_blocks(self) -> int:
        return sum(map(len, self._free.values()))

    def used_bytes(self) -> int:
        return self._used

    def free_bytes(self) -> int:
        return self._cached

    def total_bytes(self) -> int:
        return self._used + self._cached

    def set_limit(self, size: int | None = None, fraction: float | None = None) -> None:
        if (size is None) == (fraction is None) and size is None:
            size = 0
        self._limit = int(TOTAL * fraction) if fraction is not None else size

    def get_limit(self) -> int:
        return self._limit


MemoryPool.__module__ = "cupy.cuda.memory"
_hooks = threading.local()


class MemoryHook:
    """As CuPy's: told of allocations by the pool."""

    name = "MemoryHook"

    def __enter__(self):
        active = _hooks.__dict__.setdefault("active", {})
        if self.name in active:
            raise KeyError(f"memory hook {self.name} already exists")
        active[self.name] = self
        return self

    def __exit__(self, *_):
        del _hooks.active[self.name]

    def alloc_preprocess(self, **kwargs): ...
    def alloc_postprocess(self, **kwargs): ...
    def malloc_preprocess(self, **kwargs): ...
    def malloc_postprocess(self, **kwargs): ...
    def free_preprocess(self, **kwargs): ...
    def free_postprocess(self, **kwargs): ...


default_pool = MemoryPool()
_allocator = [default_pool.malloc]
_thread_allocator = threading.local()


def alloc(size: int) -> MemoryPointer:
    """Memory from the allocator that is set."""
    return get_allocator()(size)


def get_allocator():
    return getattr(_thread_allocator, "function", None) or _allocator[0]


def set_allocator(allocator=None) -> None:
    if getattr(_thread_allocator, "function", None) is not None:
        raise ValueError("Can't change the global allocator inside `using_allocator` context manager")
    _allocator[0] = allocator or (lambda size: MemoryPointer(Memory(size), 0))


@contextlib.contextmanager
def using_allocator(allocator=None):
    before = getattr(_thread_allocator, "function", None)
    _thread_allocator.function = allocator or (lambda size: MemoryPointer(Memory(size), 0))
    try:
        yield
    finally:
        _thread_allocator.function = before


# ---- pinned host memory ----------------------------------------------------------------------------


class PinnedMemory:
    """Page-locked host memory."""

    def __init__(self, size: int, flags: int = 0):
        self._bytes = np.full(max(size, 1), GARBAGE, np.uint8)
        self.ptr, self.size = self._bytes.ctypes.data, size
        _pinned[self.ptr] = max(size, 1)

    def __del__(self):
        _pinned.pop(self.ptr, None)


_pinned: dict[int, int] = {}  # address -> bytes


def is_pinned(address: int, size: int) -> bool:
    """Whether host memory is page-locked."""
    return any(a <= address and address + size <= a + n for a, n in list(_pinned.items()))


class PinnedMemoryPointer:
    """An address in it, with Python's buffer protocol: instances are ctypes arrays of bytes."""

    def __new__(cls, mem: PinnedMemory, offset: int = 0):
        size = max(mem.size - offset, 1)
        kind = type("PinnedMemoryPointer", (ctypes.c_uint8 * size,), {"size": lambda self: self.nbytes})
        out = kind.from_address(mem.ptr + offset)
        out.mem, out.ptr, out.nbytes = mem, mem.ptr + offset, mem.size - offset
        return out


def alloc_pinned_memory(size: int) -> PinnedMemoryPointer:
    return PinnedMemoryPointer(PinnedMemory(size))


class PinnedMemoryPool:
    """A pool that keeps nothing."""

    def malloc(self, size: int) -> PinnedMemoryPointer:
        return alloc_pinned_memory(size)

    def free_all_blocks(self) -> None:
        pass

    def n_free_blocks(self) -> int:
        return 0


default_pinned_pool = PinnedMemoryPool()
