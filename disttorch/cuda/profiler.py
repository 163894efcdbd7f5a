"""Which part of a program NVIDIA's profilers record (``nsys profile -c cudaProfilerApi``)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..backend import gpu_runtime
from .which import require


def start() -> None:
    """Begin to record."""
    require()
    gpu_runtime.cupy().cuda.runtime.profilerStart()


def stop() -> None:
    """End to record."""
    require()
    gpu_runtime.cupy().cuda.runtime.profilerStop()


@contextmanager
def profile() -> Iterator[None]:
    """What is done inside is recorded."""
    start()
    try:
        yield
    finally:
        stop()


__all__ = ["profile", "start", "stop"]
