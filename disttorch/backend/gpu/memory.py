"""GPU memory: an allocator around CuPy's pool that counts, frees late where other streams still read,
and says who holds what when there is no more.

CuPy asks its *allocator function* for every array. Ours takes memory from CuPy's pool as before and
hands it out as a `Block`: a memory object whose end is seen from Python. That costs about 0.25 µs for
an allocation and its end together (a CuPy launch costs 13), and gives

- exact figures: bytes and blocks in use, their peaks and totals, for each device;
- ends that are put off. CuPy's pool gives memory back to the stream that it was allocated for; another
  stream may still be reading it. `record_stream` notes that stream, and when the last array over the
  block is gone, an event is put behind what that stream has been given by then: only after it does the
  pool get the memory back. `keep_until_done` does the same for any object, for example the host memory
  of a copy that is under way;
- `OutOfMemoryError` after a second try with an emptied cache, with one message that a person can use.

Events are looked at when memory is allocated and when the CPU waits for a stream anyway
(`release_done`); nothing polls. While a thread captures a graph, `keep_for` holds what ends meanwhile
(see `graphs`).

Counters are changed by plain statements: CPython switches threads only at calls and backward jumps, of
which `x.n += k` has none.
"""

from __future__ import annotations

import functools
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class OutOfMemoryError(RuntimeError, MemoryError):
    """No GPU memory is left for an array, also after the cache was emptied."""


class Counters:
    """Of one device; bytes as the pool hands them out, in units of 512.

    Attributes:
        live, peak: bytes in use now, and the most at once since the peak was reset.
        blocks, most_blocks: the same for blocks.
        handed, made: bytes and blocks that were ever handed out.
        reserved_peak: the most bytes that the pools were seen to hold.
        retries, failures: allocations that succeeded or failed at the second try.
    """

    __slots__ = ("live", "peak", "blocks", "most_blocks", "handed", "made", "reserved_peak",
                 "retries", "failures")  # fmt: skip

    def __init__(self) -> None:
        self.live = self.peak = self.blocks = self.most_blocks = self.handed = self.made = 0
        self.reserved_peak = self.retries = self.failures = 0


counters: list[Counters] = []
_recorded: dict[int, dict[int, Any]] = {}  # address of a block -> streams that read it, by pointer
_waiting: dict[int, deque] = {}  # stream's pointer -> (event, what is held until then), oldest first
_lock = threading.RLock()  # of _waiting; its holder's own frees come back here
_kept: dict[int, list] = {}  # thread that captures a graph -> what the graph keeps
_private: weakref.WeakSet = weakref.WeakSet()  # pools of graphs


# ---- blocks ----------------------------------------------------------------------------------------


@functools.cache
def _block_types(cupy) -> tuple[Any, Any]:
    """The classes of blocks from the common pool and from a graph's own."""

    class Block(cupy.cuda.UnownedMemory):
        """Memory of the pool, which is held by ``_owner`` until this object ends."""

        __slots__ = ()

        def __del__(self, counters=counters, recorded=_recorded, kept=_kept, put_off=_put_off):
            # the globals as defaults: at the interpreter's end they are gone before the last array is
            c = counters[self.device_id]
            c.live -= self.size
            c.blocks -= 1
            if recorded or kept:
                put_off(self, True)

    class GraphBlock(cupy.cuda.UnownedMemory):
        """Memory of a graph's own pool: what ends stays there, so a capture need not keep it."""

        __slots__ = ()

        def __del__(self, counters=counters, recorded=_recorded, put_off=_put_off):
            c = counters[self.device_id]
            c.live -= self.size
            c.blocks -= 1
            if recorded:
                put_off(self, False)

    return Block, GraphBlock


def _put_off(block, common: bool) -> None:
    """A block has ended: keep its memory for whoever still reads it."""
    if sys.is_finalizing():
        return
    streams = _recorded.pop(block.ptr, None)
    kept = _kept.get(threading.get_ident())
    if kept is not None and (common or streams):
        kept.append(block._owner)  # no events in a capture: the graph keeps it to its end
    elif streams:
        keep_until_done(streams.values(), block._owner)


def make_allocator(cupy, malloc: Callable, kind: type, holder: Any = None) -> Callable:
    """An allocator function for CuPy: memory of ``malloc`` as blocks of a ``kind``.

    Args:
        malloc: ``malloc(size) -> cupy.cuda.MemoryPointer``.
        holder: kept alive by every block, where the pool would not outlive it otherwise.
    """
    MemoryPointer, exhausted = cupy.cuda.MemoryPointer, cupy.cuda.memory.OutOfMemoryError
    waiting, all_counters = _waiting, counters

    def allocate(size):
        if waiting:
            release_done()
        try:
            memory = malloc(size).mem
        except exhausted as error:
            memory = _again(cupy, malloc, size, error)
        device = memory.device_id
        given = memory.size
        block = kind(memory.ptr, given, memory if holder is None else (memory, holder), device)
        c = all_counters[device]
        c.handed += given
        c.made += 1
        c.blocks += 1
        live = c.live = c.live + given
        if live > c.peak:
            c.peak = live
            if c.blocks > c.most_blocks:
                c.most_blocks = c.blocks
        elif c.blocks > c.most_blocks:
            c.most_blocks = c.blocks
        return MemoryPointer(block, 0)

    return allocate


@functools.cache
def install(cupy) -> None:
    """Make CuPy's allocations go through here."""
    counters.extend(Counters() for _ in range(cupy.cuda.runtime.getDeviceCount()))
    cupy.cuda.set_allocator(common_allocator(cupy))


@functools.cache
def common_allocator(cupy) -> Callable:
    """Ours, over whatever allocator was set when first asked for: CuPy's pool, if nobody set one."""
    return make_allocator(cupy, cupy.cuda.get_allocator(), _block_types(cupy)[0])


class PrivatePool:
    """The memory of captured graphs. Nobody else gets it, and none goes back to the driver before the
    last graph and the last array that use it are gone.

    CuPy's pool frees its unused segments when the driver refuses more; those that a graph has captured
    only look unused, so they are held here, too.
    """

    def __init__(self, cupy) -> None:
        self._cupy = cupy
        self._segments: list = []
        self._pool = cupy.cuda.MemoryPool(_segment_source(cupy, self._segments))
        self.allocate = make_allocator(cupy, self._pool.malloc, _block_types(cupy)[1], self._pool)
        _private.add(self)

    def reserved(self) -> int:
        """Bytes that it holds on all devices."""
        return sum(segment.size for segment in self._segments)

    def reserved_on(self, device: int) -> int:
        return sum(segment.size for segment in self._segments if segment.device_id == device)


def _segment_source(cupy, segments: list) -> Callable:
    """A source of segments that are noted (a function of the list alone: no cycle with the pool)."""
    Memory, MemoryPointer = cupy.cuda.Memory, cupy.cuda.MemoryPointer

    def segment(size):
        memory = Memory(size)
        segments.append(memory)
        return MemoryPointer(memory, 0)

    return segment


# ---- ends that are put off -------------------------------------------------------------------------


def record_stream(array, stream) -> None:
    """Note that a CuPy stream reads an array: its memory is not used again before the stream has done
    what it was given until the array ended."""
    memory: Any = array.data.mem
    # memory of other libraries (DLPack) is theirs to give back: its end is not seen here
    if memory.size and isinstance(memory, _block_types(_cupy())):
        _recorded.setdefault(memory.ptr, {})[stream.ptr] = stream


def keep_until_done(streams, thing) -> None:
    """Hold a thing until streams have done what they have been given so far. Inside a capture by this
    thread the graph holds it, since its replays need it again."""
    kept = _kept.get(threading.get_ident())
    if kept is not None:
        kept.append(thing)
        return
    for stream in streams:
        event = _mark(stream)
        with _lock:
            _waiting.setdefault(stream.ptr, deque()).append((event, thing))


def _mark(stream):
    """A new event behind what a stream has been given; events belong to their stream's device."""
    cuda = _cupy().cuda
    index = stream.device_id  # -1: the null stream, that of whatever device is current
    with cuda.Device(index if index >= 0 else cuda.runtime.getDevice()):
        event = cuda.Event(disable_timing=True)
        event.record(stream)
        return event


def _cupy():
    from ..cupy_backend import _cupy as found

    return found()


def release_done(wait: bool = False) -> None:
    """Let go of what waited for streams that have got there.

    Args:
        wait: for them; else those that have not stay.
    """
    if _kept or not _lock.acquire(blocking=wait):
        return  # events are not asked while a graph is captured; or another thread is at it
    try:
        for pointer, queue in list(_waiting.items()):
            while queue and (wait or queue[0][0].done):
                event, _ = queue.popleft()
                if wait:
                    event.synchronize()
            if not queue:
                del _waiting[pointer]
    finally:
        _lock.release()


def waiting_things() -> int:
    """How many things wait for streams."""
    return sum(map(len, list(_waiting.values())))


@contextmanager
def keep_for(kept: list) -> Iterator[None]:
    """Inside, what this thread frees of the common pool is put into ``kept`` instead."""
    thread = threading.get_ident()
    _kept[thread] = kept
    try:
        yield
    finally:
        del _kept[thread]


# ---- figures ---------------------------------------------------------------------------------------


def reserved_bytes(cupy, device: int) -> int:
    """Bytes that the pools hold on a device, graphs' own among them; notes their peak."""
    with cupy.cuda.Device(device):
        common = cupy.get_default_memory_pool().total_bytes()
    held = common + sum(pool.reserved_on(device) for pool in list(_private))
    c = counters[device]
    # A foreign allocator under ours has its own books: then at least what is in use is held
    held = max(held, c.live)
    c.reserved_peak = max(c.reserved_peak, held)
    return held


def reset_peaks(cupy, device: int) -> None:
    """Let the peaks begin at what is in use now."""
    c = counters[device]
    c.peak, c.most_blocks, c.reserved_peak = c.live, c.blocks, 0
    reserved_bytes(cupy, device)


def reset_totals(device: int) -> None:
    """Let the totals begin at what is in use now."""
    c = counters[device]
    c.handed, c.made, c.retries, c.failures = c.live, c.blocks, 0, 0


def empty_cache(cupy) -> None:
    """Give the memory that nothing uses back to the driver, on the current device."""
    release_done()
    reserved_bytes(cupy, cupy.cuda.runtime.getDevice())  # the peak, before it shrinks
    cupy.get_default_memory_pool().free_all_blocks()
    cupy.get_default_pinned_memory_pool().free_all_blocks()


def set_limit(cupy, device: int, size: int) -> None:
    """At most so many bytes for the common pool on a device; 0: no limit."""
    with cupy.cuda.Device(device):
        cupy.get_default_memory_pool().set_limit(size=size)


def limit(cupy, device: int) -> int:
    with cupy.cuda.Device(device):
        return cupy.get_default_memory_pool().get_limit()


# ---- out of memory ---------------------------------------------------------------------------------

def _again(cupy, malloc, size: int, error):
    """The second try, with an emptied cache; raises the message otherwise."""
    device = cupy.cuda.runtime.getDevice()
    release_done(wait=True)  # memory that only waits for other streams is memory, too
    cupy.get_default_memory_pool().free_all_blocks()
    try:
        memory = malloc(size).mem
    except cupy.cuda.memory.OutOfMemoryError:
        counters[device].failures += 1
        raise OutOfMemoryError(_message(cupy, device, size)) from error
    counters[device].retries += 1
    return memory


def _message(cupy, device: int, size: int) -> str:
    free, total = cupy.cuda.runtime.memGetInfo()
    c, held = counters[device], reserved_bytes(cupy, device)
    bound = limit(cupy, device)
    text = (
        f"CUDA out of memory. Tried to allocate {in_words(size)} on GPU {device}, which has "
        f"{in_words(total)}, {in_words(free)} of it free. This process holds {in_words(held)}: "
        f"{in_words(c.live)} in {c.blocks} arrays (at most {in_words(c.peak)} so far) and "
        f"{in_words(held - c.live)} of cached blocks that are too small or in pieces"
    )
    if bound:
        text += f"; set_per_process_memory_fraction allows {in_words(bound)}"
    others = total - free - held
    if others > total // 16:
        text += f"; other processes, libraries and the driver use {in_words(others)}"
    from ...cuda import holders  # the layer that knows tensors; by now all of it is loaded

    advice = (
        "Try a smaller batch, torch.utils.checkpoint, bfloat16 through autocast, "
        "zero_grad(set_to_none=True), or fully_shard over more ranks"
    )
    return "\n  ".join([text + ".", *holders.describe(device), advice + "."])


def in_words(size: int) -> str:
    """A number of bytes for people."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if abs(size) >= unit:
            return f"{size / unit:.2f} {name}"
    return f"{size} bytes"
