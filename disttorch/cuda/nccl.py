"""NCCL's version."""

from __future__ import annotations

from ..backend import gpu_runtime
from .which import require


def version() -> tuple[int, int, int]:
    """The version of the NCCL library that CuPy finds, for example (2, 28, 3)."""
    require()
    number = gpu_runtime.nccl_version()
    return number // 10000, number // 100 % 100, number % 100
