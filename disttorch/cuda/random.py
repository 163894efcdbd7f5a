"""Random numbers of GPUs: seeds and states. Seeding does nothing without a GPU."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..backend import cupy_backend, devices
from ..ops.random import Generator, _checked_seed, default_generator
from ..tensor import Tensor
from .which import device_of_number, is_available, require


def _generators() -> tuple[Generator, ...]:
    count = cupy_backend.device_count()
    return tuple(default_generator(devices.device("cuda", i)) for i in range(count))


def manual_seed(seed: int) -> None:
    """Seed the current GPU's generator; nothing without a GPU."""
    seed = _checked_seed(seed)
    if is_available():
        default_generator(device_of_number(None)).manual_seed(seed)


def manual_seed_all(seed: int) -> None:
    """Seed the generators of all GPUs."""
    seed = _checked_seed(seed)
    for g in _generators():
        g.manual_seed(seed)


def seed() -> None:
    """Seed the current GPU's generator from the system's entropy."""
    if is_available():
        default_generator(device_of_number(None)).seed()


def seed_all() -> None:
    """Seed all GPUs' generators from the system's entropy."""
    for g in _generators():
        g.seed()


def initial_seed() -> int:
    """The seed of the current GPU's generator."""
    require()
    return default_generator(device_of_number(None)).initial_seed()


def get_rng_state(device="cuda") -> Tensor:
    """The state of a GPU's generator, a uint8 tensor on the CPU."""
    require()
    return default_generator(device_of_number(device)).get_state()


def get_rng_state_all() -> list[Tensor]:
    """The states of all GPUs' generators."""
    return [g.get_state() for g in _generators()]


def set_rng_state(new_state: Tensor, device="cuda") -> None:
    """Restore what ``get_rng_state`` returned; nothing without a GPU."""
    if is_available():
        default_generator(device_of_number(device)).set_state(new_state)


def set_rng_state_all(new_states: Sequence[Tensor] | Iterable[Tensor]) -> None:
    """Restore what ``get_rng_state_all`` returned."""
    for g, s in zip(_generators(), new_states):
        g.set_state(s)


def __getattr__(name):
    if name == "default_generators":  # made when asked for: they draw seeds, and need the GPUs
        return _generators()
    raise AttributeError(f"module 'torch.cuda.random' has no attribute {name!r} (disttorch lacks it)")


__all__ = [
    "get_rng_state", "get_rng_state_all", "initial_seed", "manual_seed", "manual_seed_all", "seed",
    "seed_all", "set_rng_state", "set_rng_state_all",
]
