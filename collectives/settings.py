"""Switches for the whole process, read from the environment once."""

from __future__ import annotations

import os
from dataclasses import dataclass

DEFAULT_TIMEOUT = 1800.0  # seconds, as PyTorch's


def _switch(name: str, default: bool) -> bool:
    text = os.environ.get(name, "")
    if text not in ("", "0", "1"):
        raise ValueError(f"{name}={text}: set it to 1 (on) or 0 (off)")
    return default if text == "" else text == "1"


@dataclass
class Settings:
    """What holds for all groups of this process.

    Attributes:
        deterministic: DISTTORCH_DETERMINISTIC; reductions in one fixed tree by rank order.
        checks: DISTTORCH_CHECKS; whether ranks compare their calls before data moves.
        shared_memory: DISTTORCH_SHM; whether ranks of one node may use it.
    """

    deterministic: bool
    checks: bool
    shared_memory: bool


settings = Settings(
    _switch("DISTTORCH_DETERMINISTIC", False),
    _switch("DISTTORCH_CHECKS", True),
    _switch("DISTTORCH_SHM", True),
)


def set_deterministic(mode: bool) -> None:
    """Make reductions of all groups follow one tree by rank order, or let them be as fast as can be.

    Every rank must call it at the same place in its program.
    """
    settings.deterministic = bool(mode)
