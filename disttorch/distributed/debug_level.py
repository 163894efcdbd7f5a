"""How much is checked and told, as TORCH_DISTRIBUTED_DEBUG says.

Calls of different ranks are always compared here, which is what PyTorch's DETAIL adds; the level
changes only what a mesh's `repr` shows.
"""

from __future__ import annotations

import enum
import os


class DebugLevel(enum.Enum):
    """Levels of TORCH_DISTRIBUTED_DEBUG."""

    OFF = 0
    INFO = 1
    DETAIL = 2


def get_debug_level() -> DebugLevel:
    """The level set last, at first that of the environment."""
    return _level


def set_debug_level(level: DebugLevel) -> None:
    """Set the level of this process."""
    global _level
    _level = DebugLevel(level)


def set_debug_level_from_env() -> None:
    """Set the level that TORCH_DISTRIBUTED_DEBUG names; OFF without it.

    Raises:
        ValueError: another word than OFF, INFO, DETAIL.
    """
    word = os.environ.get("TORCH_DISTRIBUTED_DEBUG", "OFF").upper() or "OFF"
    if word not in DebugLevel.__members__:
        raise ValueError(f"TORCH_DISTRIBUTED_DEBUG must be one of: OFF, INFO, DETAIL; got {word!r}")
    set_debug_level(DebugLevel[word])


_level = DebugLevel.OFF
set_debug_level_from_env()
