"""``torch.mps``, ``torch.xpu``, ``torch.mtia``: kinds of device that disttorch lacks.

Each says that there is none; what would need one raises.
"""

from __future__ import annotations

import types
from typing import Any


def _absent(kind: str, words: str) -> types.ModuleType:
    module: Any = types.ModuleType(f"disttorch.{kind}", f"{words}: not supported, none available.")

    def raiser(name):
        def needs_device(*args, **kwargs):
            raise RuntimeError(f"torch.{kind}.{name}() needs {words}, which disttorch lacks")

        needs_device.__name__ = needs_device.__qualname__ = name
        return needs_device

    def false(*args, **kwargs) -> bool:
        """False: there is none."""
        return False

    def zero(*args, **kwargs) -> int:
        """0: there is none."""
        return 0

    def nothing(*args, **kwargs) -> None:
        """Does nothing: there is none."""

    def none_of_them() -> list:
        """An empty list: there is none."""
        return []

    module.is_available = module.is_bf16_supported = module.is_initialized = false
    module.device_count = module.memory_allocated = module.memory_reserved = zero
    module.max_memory_allocated = module.max_memory_reserved = zero
    module.manual_seed = module.manual_seed_all = module.seed_all = module.empty_cache = nothing
    module.set_rng_state = module.set_rng_state_all = module.reset_peak_memory_stats = nothing
    module.get_rng_state_all = none_of_them
    for name in ("current_device", "current_stream", "get_device_name", "get_device_properties",
                 "get_rng_state", "mem_get_info", "set_device", "stream", "synchronize",
                 "current_allocated_memory", "driver_allocated_memory", "Stream", "Event",
                 "StreamContext"):
        setattr(module, name, raiser(name))
    return module


mps = _absent("mps", "Apple's GPU")
xpu = _absent("xpu", "Intel's GPU")
mtia = _absent("mtia", "Meta's accelerator")
