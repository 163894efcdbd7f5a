"""How much GPU memory is in use. All figures are bytes, and 0 without a GPU."""

from __future__ import annotations

from collections import OrderedDict

from ..backend import gpu_runtime
from .which import device_number, is_available, require


def memory_allocated(device=None) -> int:
    """Held by tensors now."""
    return gpu_runtime.pool_bytes(device_number(device))[0] if is_available() else 0


def memory_reserved(device=None) -> int:
    """Held by the memory pool now."""
    return gpu_runtime.pool_bytes(device_number(device))[1] if is_available() else 0


def max_memory_allocated(device=None) -> int:
    """The most that tensors held at once, since this or ``reset_peak_memory_stats`` was first
    called: the pool keeps no such figure, and counting costs a little per allocation."""
    return gpu_runtime.peak_bytes(device_number(device)) if is_available() else 0


def max_memory_reserved(device=None) -> int:
    """The most that the pool held: it only shrinks by ``empty_cache``, so what it holds now."""
    return memory_reserved(device)


def reset_peak_memory_stats(device=None) -> None:
    """Start counting the peak anew; nothing without a GPU."""
    if is_available():
        gpu_runtime.reset_peak(device_number(device))


def reset_accumulated_memory_stats(device=None) -> None:
    """Nothing is accumulated."""


def empty_cache() -> None:
    """Give memory that no tensor uses back to the driver."""
    if is_available():
        gpu_runtime.free_pool()


def ipc_collect() -> None:
    """Nothing is shared between processes."""
    require()


def mem_get_info(device=None) -> tuple[int, int]:
    """``(free, total)`` of the whole device."""
    require()
    return gpu_runtime.free_and_total(device_number(device))


def memory_stats(device=None) -> OrderedDict:
    """The figures above under PyTorch's keys; empty without a GPU."""
    if not is_available():
        return OrderedDict()
    return OrderedDict({
        "allocated_bytes.all.current": memory_allocated(device),
        "allocated_bytes.all.peak": max_memory_allocated(device),
        "reserved_bytes.all.current": memory_reserved(device),
        "reserved_bytes.all.peak": max_memory_reserved(device),
    })


def memory_summary(device=None, abbreviated: bool = False) -> str:
    """The figures above as text."""
    require()
    return "\n".join(f"{k:32} {v:>16,}" for k, v in memory_stats(device).items())


memory_cached, max_memory_cached = memory_reserved, max_memory_reserved
reset_max_memory_allocated = reset_max_memory_cached = reset_peak_memory_stats
