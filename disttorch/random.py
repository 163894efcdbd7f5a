"""Random state under PyTorch's name ``torch.random``."""

from __future__ import annotations

import contextlib

from .backend import devices
from .ops import random as _random
from .ops.random import (
    Generator,
    get_rng_state,
    initial_seed,
    manual_seed,
    seed,
    set_rng_state,
)

default_generator: Generator


def __getattr__(name):
    if name == "default_generator":  # made when first asked for, as it draws a seed
        return _random.default_generator(devices.cpu)
    raise AttributeError(f"module 'torch.random' has no attribute {name!r} (disttorch lacks it)")


@contextlib.contextmanager
def fork_rng(devices=None, enabled=True, _caller="fork_rng", _devices_kw="devices",
             device_type="cuda"):
    """Inside this context, random numbers are drawn as usual; afterwards the states are as before.

    Args:
        devices: the GPUs (numbers or devices) whose state is kept too; all by default.
        enabled: False makes it do nothing.
        device_type: the kind of device that ``devices`` counts.
    """
    if not enabled:
        yield
        return
    from . import cuda
    from .cuda.which import device_of_number

    if devices is None:
        devices = range(cuda.device_count())
    kept = [device_of_number(d) for d in devices] if device_type == "cuda" else []
    generators = [_random.default_generator(d) for d in (_cpu, *kept)]
    states = [g.get_state() for g in generators]
    try:
        yield
    finally:
        for g, s in zip(generators, states):
            g.set_state(s)


_cpu = devices.cpu
__all__ = [
    "fork_rng", "get_rng_state", "initial_seed", "manual_seed", "seed", "set_rng_state",
]
