"""cuDNN's switches: convolutions and attention on a GPU go through it where it is installed.

``enabled``: whether it is used at all. ``deterministic``: leave out its nondeterministic algorithms.
``benchmark``: when a convolution is first seen, time up to ``benchmark_limit`` algorithms (None or 0:
all) and keep the fastest; never while a CUDA graph is captured. ``allow_tf32``: whether float32
convolutions may round their inputs to TF32; ``fp32_precision`` ("ieee" or "tf32") says the same of all
operations, ``conv.fp32_precision`` of convolutions, before ``allow_tf32``, unless they are "none".
"""

from __future__ import annotations

import contextlib

enabled = True
benchmark = False
benchmark_limit = 10
deterministic = False
allow_tf32 = True
fp32_precision = "none"


class _Operation:
    """Switches of one kind of operation."""

    fp32_precision = "none"


conv = _Operation()


def is_available() -> bool:
    """Whether there are a GPU and cuDNN (``pip install nvidia-cudnn-frontend``)."""
    from ..backend import cupy_backend
    from ..backend.gpu import cudnn

    return cupy_backend.is_available() and cudnn.available()


def version() -> int | None:
    """cuDNN's version (91300 is 9.13.0), None without it."""
    from ..backend.gpu import cudnn

    return cudnn.version()


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
