"""Tools around training; each loads when first used."""

from __future__ import annotations

import importlib

_LAZY = (
    "_pytree", "benchmark", "checkpoint", "data", "dlpack", "flop_counter", "hooks", "model_summary",
    "tensorboard",
)


def __getattr__(name):
    if name in _LAZY:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module 'torch.utils' has no attribute {name!r} (disttorch lacks it)")


__all__ = [
    "benchmark", "checkpoint", "data", "dlpack", "flop_counter", "hooks", "model_summary",
    "tensorboard",
]
