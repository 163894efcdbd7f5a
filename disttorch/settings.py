"""Process-wide switches: threads, determinism, precision of matrix products."""

from __future__ import annotations

import os

from .backend.precision import PRECISION

# Told when deterministic algorithms are asked for: the collectives, once ranks are connected.
_listeners: list = []
_state: dict = {"deterministic": False, "warn_only": False, "interop": None}
_PRECISIONS = ("highest", "high", "medium")


def set_num_threads(n: int) -> None:
    """Set how many threads one operation may use.

    NumPy's BLAS reads its variables when it loads, so a running process is changed through
    threadpoolctl if that is installed; the variables are set as well, for processes started later.
    """
    if not isinstance(n, int) or n <= 0:
        raise RuntimeError(f"expects a positive integer, got {n!r}")
    _state["threads"] = n
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(n)
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return
    _state["limits"] = threadpool_limits(n)


def get_num_threads() -> int:
    """How many threads one operation may use."""
    if "threads" in _state:
        return _state["threads"]
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdigit() and int(given) > 0:
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_num_interop_threads(n: int) -> None:
    """Noted only: operations are not run side by side."""
    if n <= 0:
        raise RuntimeError(f"expects a positive integer, got {n!r}")
    _state["interop"] = n


def get_num_interop_threads() -> int:
    """What was set, or 1: operations are not run side by side."""
    return _state["interop"] or 1


def use_deterministic_algorithms(mode: bool, *, warn_only: bool = False) -> None:
    """Note whether only deterministic kernels may be used. Those on the CPU always are."""
    _state["deterministic"], _state["warn_only"] = bool(mode), bool(warn_only)
    for listener in _listeners:
        listener(bool(mode))


def follow_deterministic(listener) -> None:
    """Have `listener(mode)` called by `use_deterministic_algorithms`, and now if the mode is on."""
    if listener not in _listeners:
        _listeners.append(listener)
    if _state["deterministic"]:
        listener(True)


def are_deterministic_algorithms_enabled() -> bool:
    """Whether only deterministic kernels may be used."""
    return _state["deterministic"]


def is_deterministic_algorithms_warn_only_enabled() -> bool:
    """Whether others only warn."""
    return _state["deterministic"] and _state["warn_only"]


def set_deterministic_debug_mode(debug_mode) -> None:
    """0 or "default", 1 or "warn", 2 or "error"."""
    names = {"default": 0, "warn": 1, "error": 2}
    mode = names.get(debug_mode, debug_mode)
    if mode not in (0, 1, 2):
        raise RuntimeError(f"debug_mode is 0, 1 or 2 or its name, got {debug_mode!r}")
    use_deterministic_algorithms(mode > 0, warn_only=mode == 1)


def get_deterministic_debug_mode() -> int:
    """0, 1 (warn) or 2 (error)."""
    return (1 if _state["warn_only"] else 2) if _state["deterministic"] else 0


def set_float32_matmul_precision(precision: str) -> None:
    """How exact float32 matrix products on GPUs must be.

    Args:
        precision: "highest" computes in float32; "high" and "medium" let factors be rounded to TF32
            (8 bits of exponent, 10 of mantissa), sums stay float32: several times faster. The same as
            ``torch.backends.cuda.matmul.allow_tf32 = True``.

    Raises:
        RuntimeError: for any other word.
    """
    if precision not in _PRECISIONS:
        raise RuntimeError(
            f"Invalid float32 matmul precision {precision!r}: use one of {', '.join(_PRECISIONS)}"
        )
    PRECISION.set_matmul(precision)


def get_float32_matmul_precision() -> str:
    """How exact float32 matrix products must be; "high" after ``allow_tf32 = True``."""
    return PRECISION.matmul


__all__ = [
    "are_deterministic_algorithms_enabled", "get_deterministic_debug_mode",
    "get_float32_matmul_precision", "get_num_interop_threads", "get_num_threads",
    "is_deterministic_algorithms_warn_only_enabled", "set_deterministic_debug_mode",
    "set_float32_matmul_precision", "set_num_interop_threads", "set_num_threads",
    "use_deterministic_algorithms",
]
