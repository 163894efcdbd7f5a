"""GPUs under PyTorch's names ``torch.cuda.*``, over CuPy.

Without CuPy or a GPU, questions are answered honestly (``is_available()`` is False, counts and
memory are 0), seeding does nothing, and what needs a GPU raises.
"""

from __future__ import annotations

import uuid

from ..backend import cupy_backend, gpu_runtime
from ..backend.gpu import graphs as _graphs
from . import random
from .driver_figures import (
    clock_rate,
    list_gpu_processes,
    memory_usage,
    power_draw,
    temperature,
    utilization,
)
from .graphs import (
    CUDAGraph,
    graph,
    graph_pool_handle,
    make_graphed_callables,
)
from .memory import (
    OutOfMemoryError,
    device_memory_used,
    empty_cache,
    get_allocator_backend,
    get_per_process_memory_fraction,
    ipc_collect,
    max_memory_allocated,
    max_memory_cached,
    max_memory_reserved,
    mem_get_info,
    memory_allocated,
    memory_cached,
    memory_reserved,
    memory_snapshot,
    memory_stats,
    memory_stats_as_nested_dict,
    memory_summary,
    reset_accumulated_memory_stats,
    reset_max_memory_allocated,
    reset_max_memory_cached,
    reset_peak_memory_stats,
    set_per_process_memory_fraction,
)
from .random import (
    get_rng_state,
    get_rng_state_all,
    initial_seed,
    manual_seed,
    manual_seed_all,
    seed,
    seed_all,
    set_rng_state,
    set_rng_state_all,
)
from .runtime import check_error, cudart
from .streams import (
    Event,
    ExternalStream,
    Stream,
    StreamContext,
    current_stream,
    default_stream,
    get_stream_from_external,
    is_current_stream_capturing,
    set_stream,
    stream,
)
from .which import current_device, device_number, is_available, require


def device_count() -> int:
    """The number of visible GPUs."""
    return cupy_backend.device_count()


def is_initialized() -> bool:
    """Whether a GPU can be used (there is no separate initialisation)."""
    return is_available()


def init() -> None:
    """Nothing to initialise; raises if there is no GPU."""
    require()


_lazy_init = init  # libraries call it


def set_device(device) -> None:
    """Make a GPU the current one; a negative number does nothing."""
    index = device_number(device)
    if index >= 0:
        require()
        gpu_runtime.set_device(index, chosen=True)


class device:
    """Context: another GPU is the current one. A negative number does nothing."""

    def __init__(self, device):
        self.index = device_number(device)

    def __enter__(self):
        if self.index >= 0:
            require()
            self.previous = gpu_runtime.current_device()
            gpu_runtime.set_device(self.index)

    def __exit__(self, *exc):
        if self.index >= 0:
            gpu_runtime.set_device(self.previous)


class device_of(device):
    """Context: the GPU of a tensor is the current one; nothing for a CPU tensor."""

    def __init__(self, obj):
        super().__init__(obj.device.index if obj.is_cuda else -1)


def synchronize(device=None) -> None:
    """Wait until the GPU has done all work given to it."""
    require()
    gpu_runtime.synchronize(device_number(device))


def _uuid(found):
    return None if found is None else uuid.UUID(bytes=bytes(found)[:16].ljust(16, b"\0"))


class _Properties:
    """What ``get_device_properties`` tells."""

    def __init__(self, found):
        self.name = found["name"]
        self.major, self.minor = found["major"], found["minor"]
        self.total_memory = found["totalGlobalMem"]
        self.multi_processor_count = found["multiProcessorCount"]
        self.warp_size = found["warpSize"]
        self.max_threads_per_multi_processor = found["maxThreadsPerMultiProcessor"]
        self.max_threads_per_block = found.get("maxThreadsPerBlock", 0)
        self.L2_cache_size = found.get("l2CacheSize", 0)
        self.shared_memory_per_block = found.get("sharedMemPerBlock", 0)
        self.shared_memory_per_block_optin = found.get("sharedMemPerBlockOptin", 0)
        self.shared_memory_per_multiprocessor = found.get("sharedMemPerMultiprocessor", 0)
        self.regs_per_multiprocessor = found.get("regsPerMultiprocessor", 0)
        self.clock_rate, self.memory_clock_rate, self.memory_bus_width = (
            found.get(k, 0) for k in ("clockRate", "memoryClockRate", "memoryBusWidth"))
        self.is_integrated, self.is_multi_gpu_board = (
            int(bool(found.get(k, 0))) for k in ("integrated", "isMultiGpuBoard"))
        self.pci_bus_id, self.pci_device_id, self.pci_domain_id = (
            found.get(k, 0) for k in ("pciBusID", "pciDeviceID", "pciDomainID"))
        self.uuid = _uuid(found.get("uuid"))

    def __repr__(self):
        return (
            f"_CudaDeviceProperties(name='{self.name}', major={self.major}, minor={self.minor}, "
            f"total_memory={self.total_memory >> 20}MB, "
            f"multi_processor_count={self.multi_processor_count})"
        )


def get_device_properties(device=None) -> _Properties:
    """Name, compute capability, memory in bytes and multiprocessors of a GPU.

    Raises:
        AssertionError: for a device that is not there.
    """
    require()
    number = device_number(device)
    if not 0 <= number < device_count():
        raise AssertionError(f"Invalid device id {number}: {device_count()} device(s) are visible")
    return _Properties(gpu_runtime.properties(number))


def get_device_name(device=None) -> str:
    """The GPU's name."""
    return get_device_properties(device).name


def get_device_capability(device=None) -> tuple[int, int]:
    """The compute capability, for example (9, 0)."""
    found = get_device_properties(device)
    return found.major, found.minor


def can_device_access_peer(device, peer_device) -> bool:
    """Whether one GPU can read another's memory; of itself, no.

    Raises:
        AssertionError: for a device that is not there.
    """
    require()
    own, other = device_number(device), device_number(peer_device)
    for number in (own, other):
        if not 0 <= number < device_count():
            raise AssertionError(f"Invalid device id {number}: {device_count()} device(s) are visible")
    return own != other and gpu_runtime.can_access_peer(own, other)


def get_arch_list() -> list[str]:
    """What kernels are compiled for: the GPUs at hand, for example ``["sm_90"]``."""
    return sorted({"sm_{}{}".format(*get_device_capability(i)) for i in range(device_count())})


def get_gencode_flags() -> str:
    """The same as flags of nvcc."""
    numbers = [name.removeprefix("sm_") for name in get_arch_list()]
    return " ".join(f"-gencode compute=compute_{n},code=sm_{n}" for n in numbers)


def is_bf16_supported(including_emulation: bool = True) -> bool:
    """Whether the GPU computes in bfloat16 (compute capability 8 and up)."""
    return is_available() and (including_emulation or get_device_capability()[0] >= 8)


def is_tf32_supported() -> bool:
    """Whether the GPU has TF32 (compute capability 8 and up)."""
    return is_available() and get_device_capability()[0] >= 8


# ---------------------------------------------------------------- waits that are not wanted
def set_sync_debug_mode(debug_mode: int | str) -> None:
    """Tell of calls that make the CPU wait for the GPU (``item()``, copies, ``nonzero`` …).

    ``synchronize()`` and its like are meant to wait, and are not told of.

    Args:
        debug_mode: 0 or "default" says nothing, 1 or "warn" warns, 2 or "error" raises.

    Raises:
        RuntimeError, TypeError: for another mode.
    """
    _graphs.tell_of_waits(debug_mode)


def get_sync_debug_mode() -> int:
    """0, 1 or 2: see ``set_sync_debug_mode``."""
    return _graphs.waits_mode()


def __getattr__(name):
    if name == "default_generators":
        return random.default_generators
    if name.endswith("Tensor"):
        from ..legacy_types import tensor_type

        found = tensor_type(name, "cuda")
        if found is not None:
            return found
    if name in ("amp", "nccl", "nvtx", "profiler"):
        import importlib

        try:
            return importlib.import_module(f".{name}", __name__)
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
    raise AttributeError(f"module 'torch.cuda' has no attribute {name!r} (disttorch lacks it)")


__all__ = [
    "CUDAGraph", "Event", "ExternalStream", "OutOfMemoryError", "Stream", "StreamContext",
    "can_device_access_peer", "check_error", "clock_rate", "cudart", "current_device",
    "current_stream", "default_stream", "device", "device_count", "device_memory_used", "device_of",
    "empty_cache", "get_allocator_backend", "get_arch_list", "get_device_capability",
    "get_device_name", "get_device_properties", "get_gencode_flags",
    "get_per_process_memory_fraction", "get_rng_state", "get_rng_state_all",
    "get_stream_from_external", "get_sync_debug_mode", "graph", "graph_pool_handle", "init",
    "initial_seed", "ipc_collect", "is_available", "is_bf16_supported",
    "is_current_stream_capturing", "is_initialized", "is_tf32_supported", "list_gpu_processes",
    "make_graphed_callables", "manual_seed", "manual_seed_all", "max_memory_allocated",
    "max_memory_cached", "max_memory_reserved", "mem_get_info", "memory_allocated", "memory_cached",
    "memory_reserved", "memory_snapshot", "memory_stats", "memory_stats_as_nested_dict",
    "memory_summary", "memory_usage", "power_draw", "reset_accumulated_memory_stats",
    "reset_max_memory_allocated", "reset_max_memory_cached", "reset_peak_memory_stats", "seed",
    "seed_all", "set_device", "set_per_process_memory_fraction", "set_rng_state",
    "set_rng_state_all", "set_stream", "set_sync_debug_mode", "stream", "synchronize", "temperature",
    "utilization",
]
