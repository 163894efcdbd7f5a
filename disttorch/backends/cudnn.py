"""cuDNN's switches. disttorch computes with CuPy and kernels of its own: they change nothing."""

from __future__ import annotations

import contextlib

enabled = True
benchmark = False
benchmark_limit = 10
deterministic = False
allow_tf32 = True
fp32_precision = "none"


def is_available() -> bool:
    """Whether cuDNN is used: never."""
    return False


def version() -> None:
    """cuDNN's version: none."""
    return None


@contextlib.contextmanager
def flags(enabled=None, benchmark=None, benchmark_limit=None, deterministic=None, allow_tf32=None,
          fp32_precision=None):
    """Other values inside a ``with`` block."""
    given = {k: v for k, v in locals().items() if v is not None}
    here = globals()
    before = {k: here[k] for k in given}
    here.update(given)
    try:
        yield
    finally:
        here.update(before)
