"""How much GPU memory is in use, by whom, and limits. All figures are bytes, and 0 without a GPU.

Memory comes from CuPy's caching pool: what a tensor gives back stays with the process for the next one,
until ``empty_cache``. *Allocated* is what arrays hold, *reserved* what the pool has from the driver.
The figures are exact and cost nothing to ask for, with one exception: the peak of what is reserved is
looked at when it is asked for, before ``empty_cache`` and when memory runs out.
"""

from __future__ import annotations

from collections import OrderedDict

from ..backend import gpu_runtime
from ..backend.gpu import memory as pool
from ..backend.gpu.memory import OutOfMemoryError, in_words
from . import holders
from .which import device_number, is_available, require


def _counters(device) -> pool.Counters:
    return pool.counters[device_number(device)]


def memory_allocated(device=None) -> int:
    """Held by arrays now."""
    return _counters(device).live if is_available() else 0


def memory_reserved(device=None) -> int:
    """Held by the memory pool now, graphs' own pools among it."""
    if not is_available():
        return 0
    return pool.reserved_bytes(gpu_runtime.cupy(), device_number(device))


def max_memory_allocated(device=None) -> int:
    """The most that arrays held at once, since the start or ``reset_peak_memory_stats``."""
    return _counters(device).peak if is_available() else 0


def max_memory_reserved(device=None) -> int:
    """The most that the pool was seen to hold, since the start or ``reset_peak_memory_stats``."""
    memory_reserved(device)
    return _counters(device).reserved_peak if is_available() else 0


def reset_peak_memory_stats(device=None) -> None:
    """Let all peaks begin anew; nothing without a GPU."""
    if is_available():
        pool.reset_peaks(gpu_runtime.cupy(), device_number(device))


def reset_accumulated_memory_stats(device=None) -> None:
    """Let the totals begin anew; nothing without a GPU."""
    if is_available():
        pool.reset_totals(device_number(device))


def empty_cache() -> None:
    """Give memory that nothing uses back to the driver, on the current GPU; pinned memory, too."""
    if is_available():
        pool.empty_cache(gpu_runtime.cupy())


def ipc_collect() -> None:
    """Nothing is shared between processes."""
    require()


def mem_get_info(device=None) -> tuple[int, int]:
    """``(free, total)`` of the whole device, whoever uses it."""
    require()
    return gpu_runtime.free_and_total(device_number(device))


def device_memory_used(device=None) -> int:
    """What of the whole device is in use, by whomever."""
    free, total = mem_get_info(device)
    return total - free


def set_per_process_memory_fraction(fraction: float, device=None) -> None:
    """Let the pool take at most this part of a GPU's memory; 1 takes the limit away.

    The private pools of CUDA graphs are not counted.

    Raises:
        TypeError, ValueError: for anything but a number from 0 to 1.
    """
    if not isinstance(fraction, float):
        raise TypeError("Invalid type for fraction argument, must be `float`")
    if not 0 <= fraction <= 1:
        raise ValueError(f"Invalid fraction value: {fraction}. Allowed range: 0~1")
    require()
    index = device_number(device)
    # CuPy reads 0 as no limit, so nothing at all is 1 byte
    size = 0 if fraction == 1 else max(1, int(fraction * mem_get_info(index)[1]))
    pool.set_limit(gpu_runtime.cupy(), index, size)


def get_per_process_memory_fraction(device=None) -> float:
    """The part of a GPU's memory that the pool may take; 1.0 without a limit."""
    require()
    index = device_number(device)
    limit = pool.limit(gpu_runtime.cupy(), index)
    return limit / mem_get_info(index)[1] if limit else 1.0


def memory_stats(device=None) -> OrderedDict:
    """The figures under PyTorch's keys; empty without a GPU.

    ``allocated_bytes`` and ``allocation`` (blocks) with ``current``, ``peak``, ``allocated`` (ever) and
    ``freed``, and the same as ``active_bytes`` and ``active`` (memory that waits for a stream is not
    among it); ``reserved_bytes`` with ``current`` and ``peak``; ``num_alloc_retries`` and ``num_ooms``.
    PyTorch's other keys are about its own allocator.
    """
    if not is_available():
        return OrderedDict()
    reserved, c = memory_reserved(device), _counters(device)
    stats = {"num_alloc_retries": c.retries, "num_ooms": c.failures,
             "reserved_bytes.all.current": reserved, "reserved_bytes.all.peak": c.reserved_peak}
    for names, figures in ((("allocated_bytes", "active_bytes"), (c.live, c.peak, c.handed)),
                           (("allocation", "active"), (c.blocks, c.most_blocks, c.made))):
        now, peak, ever = figures
        for name in names:
            stats |= {f"{name}.all.current": now, f"{name}.all.peak": peak,
                      f"{name}.all.allocated": ever, f"{name}.all.freed": ever - now}
    return OrderedDict(sorted(stats.items()))


def memory_stats_as_nested_dict(device=None) -> dict:
    """``memory_stats`` as nested dicts, a level for each part of a key."""
    nested: dict = {}
    for key, value in memory_stats(device).items():
        *path, last = key.split(".")
        place = nested
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return nested


def memory_summary(device=None, abbreviated: bool = False) -> str:
    """The figures as a table, and who holds what: for people.

    Args:
        abbreviated: only the figures.
    """
    require()
    index = device_number(device)
    s, (free, total) = memory_stats(index), mem_get_info(index)
    rows = [f"GPU {index}: {in_words(total)}, {in_words(free)} free",
            f"{'':12}{'now':>14}{'peak':>14}{'ever':>14}{'freed':>14}"]
    for name, key in (("allocated", "allocated_bytes"), ("reserved", "reserved_bytes")):
        cells = [s.get(f"{key}.all.{k}") for k in ("current", "peak", "allocated", "freed")]
        rows.append(f"{name:12}" + "".join(f"{'' if c is None else in_words(c):>14}" for c in cells))
    cells = [s[f"allocation.all.{k}"] for k in ("current", "peak", "allocated", "freed")]
    rows.append(f"{'blocks':12}" + "".join(f"{c:>14,}" for c in cells))
    rows.append(f"second tries that succeeded: {s['num_alloc_retries']}, failed: {s['num_ooms']}")
    if not abbreviated:
        rows += holders.describe(index)
    return "\n".join(rows)


def get_allocator_backend() -> str:
    """PyTorch's name for a caching allocator of the library's own."""
    return "native"


def memory_snapshot(*args, **kwargs):
    """CuPy's pool does not tell where its segments lie.

    Raises:
        NotImplementedError: always.
    """
    raise NotImplementedError(_NO_SNAPSHOT)


_record_memory_history = _dump_snapshot = _snapshot = memory_snapshot
_NO_SNAPSHOT = (
    "snapshots and histories of GPU memory are not supported, since CuPy's pool does not tell where its "
    "segments lie: print torch.cuda.memory_summary(), which names the tensors that hold memory"
)

memory_cached, max_memory_cached = memory_reserved, max_memory_reserved
reset_max_memory_allocated = reset_max_memory_cached = reset_peak_memory_stats

__all__ = [
    "OutOfMemoryError", "device_memory_used", "empty_cache", "get_allocator_backend",
    "get_per_process_memory_fraction",
    "ipc_collect", "max_memory_allocated", "max_memory_cached", "max_memory_reserved", "mem_get_info",
    "memory_allocated", "memory_cached", "memory_reserved", "memory_stats",
    "memory_snapshot", "memory_stats_as_nested_dict", "memory_summary", "reset_accumulated_memory_stats",
    "reset_max_memory_allocated", "reset_max_memory_cached", "reset_peak_memory_stats",
    "set_per_process_memory_fraction",
]
