"""Ranges and marks that profilers show (NVIDIA Tools Extension)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..backend import gpu_runtime
from .which import require


def range_push(msg: str) -> None:
    """Begin a range inside this thread's innermost one."""
    require()
    gpu_runtime.nvtx().RangePush(msg)


def range_pop() -> None:
    """End this thread's innermost range."""
    require()
    gpu_runtime.nvtx().RangePop()


def mark(msg: str) -> None:
    """A moment."""
    require()
    gpu_runtime.nvtx().Mark(msg)


@contextmanager
def range(msg: str, *args, **kwargs) -> Iterator[None]:
    """A range as a context manager; ``msg`` is formatted with the other arguments."""
    range_push(msg.format(*args, **kwargs))
    try:
        yield
    finally:
        range_pop()


__all__ = ["mark", "range", "range_pop", "range_push"]
