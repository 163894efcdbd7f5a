"""Which kernels ``scaled_dot_product_attention`` may use on a GPU, inside a ``with`` block."""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Iterator

from ...backend.attention_kernels import ALLOWED


class SDPBackend(enum.IntEnum):
    """Ways to compute attention, with PyTorch's numbers."""

    ERROR = -1
    MATH = 0
    FLASH_ATTENTION = 1
    EFFICIENT_ATTENTION = 2
    CUDNN_ATTENTION = 3
    OVERRIDEABLE = 4


_NAMES = {SDPBackend.MATH: "math", SDPBackend.FLASH_ATTENTION: "flash",
          SDPBackend.EFFICIENT_ATTENTION: "mem_efficient", SDPBackend.CUDNN_ATTENTION: "cudnn"}


@contextlib.contextmanager
def sdpa_kernel(backends: SDPBackend | list[SDPBackend], set_priority: bool = False) -> Iterator[None]:
    """Allow only these ways inside the block; a case that none of them serves is computed by MATH.

    Args:
        backends: one or a list.
        set_priority: taken for PyTorch's sake; the order is cuDNN, flash, math whatever the list's.

    Raises:
        TypeError: if something else than SDPBackend is given.
    """
    given = [backends] if isinstance(backends, SDPBackend) else backends
    if not isinstance(given, (list, tuple)) or not all(isinstance(b, SDPBackend) for b in given):
        raise TypeError(f"sdpa_kernel takes an SDPBackend or a list of them, not {backends!r}")
    before = dict(ALLOWED)
    ALLOWED.update({name: backend in given for backend, name in _NAMES.items()})
    try:
        yield
    finally:
        ALLOWED.update(before)


__all__ = ["SDPBackend", "sdpa_kernel"]
