from cupy_standin.devices import Device
from cupy_standin.memory import (
    BaseMemory,
    Memory,
    MemoryHook,
    MemoryPointer,
    MemoryPool,
    PinnedMemory,
    PinnedMemoryPointer,
    PinnedMemoryPool,
    UnownedMemory,
    alloc,
    alloc_pinned_memory,
    get_allocator,
    set_allocator,
    using_allocator,
)
from cupy_standin.streams import Event, ExternalStream, Graph, Stream
from cupy_standin.streams import current_stream as get_current_stream
from cupy_standin.streams import elapsed_time as get_elapsed_time

from . import memory, nvtx, runtime, stream


def is_available() -> bool:
    return True


__all__ = [
    "BaseMemory", "Device", "Event", "ExternalStream", "Graph", "Memory", "MemoryHook", "MemoryPointer",
    "MemoryPool", "PinnedMemory", "PinnedMemoryPointer", "PinnedMemoryPool", "Stream", "UnownedMemory",
    "alloc", "alloc_pinned_memory", "get_allocator", "get_current_stream", "get_elapsed_time", "memory",
    "nvtx", "runtime", "set_allocator", "stream", "using_allocator"]
