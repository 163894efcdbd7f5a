"""Anomaly mode: which line of the forward made the gradient that went wrong."""

from __future__ import annotations

import traceback
import warnings
from pathlib import Path

from .modes import state

_PACKAGE = str(Path(__file__).resolve().parent.parent)


class set_detect_anomaly:
    """Switch anomaly mode on or off, at once; as a context, until its end.

    In anomaly mode every recorded operation remembers the lines that led to it, and a backward that
    gives NaN raises. Both cost time: use it to find an error.

    Args:
        mode: True to switch on.
        check_nan: raise when an operation's gradient holds NaN.
    """

    def __init__(self, mode: bool, check_nan: bool = True):
        self.previous = state.anomaly, state.check_nan
        state.anomaly, state.check_nan = bool(mode), bool(check_nan)

    def __enter__(self):
        return None

    def __exit__(self, *exc):
        state.anomaly, state.check_nan = self.previous


class detect_anomaly:
    """Anomaly mode for the length of a ``with`` block; see ``set_detect_anomaly``."""

    def __init__(self, check_nan: bool = True):
        self.check_nan = bool(check_nan)
        warnings.warn(
            "Anomaly Detection has been enabled. This mode will increase the runtime and should "
            "only be enabled for debugging.",
            stacklevel=2,
        )

    def __enter__(self):
        self.previous = state.anomaly, state.check_nan
        state.anomaly, state.check_nan = True, self.check_nan

    def __exit__(self, *exc):
        state.anomaly, state.check_nan = self.previous


def is_anomaly_enabled() -> bool:
    """Whether this thread is in anomaly mode."""
    return state.anomaly


def is_anomaly_check_nan_enabled() -> bool:
    """Whether anomaly mode looks for NaN."""
    return state.check_nan


def set_anomaly_enabled(mode: bool, check_nan: bool = True) -> None:
    """Switch anomaly mode on or off."""
    state.anomaly, state.check_nan = bool(mode), bool(check_nan)


def user_trace() -> str:
    """The calls that lead here, without those inside this package."""
    frames = [f for f in traceback.extract_stack() if not f.filename.startswith(_PACKAGE)]
    return "".join(traceback.format_list(frames))
