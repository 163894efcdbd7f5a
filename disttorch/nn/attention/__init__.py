"""Which kernels ``scaled_dot_product_attention`` may use, inside a ``with`` block.

``bias`` has causal masks that need not be stored.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Iterator, Sequence

from ...backend.attention_kernels import ALLOWED
from ...backends._sdp import SDPAParams, can_use_efficient_attention, can_use_flash_attention
from . import bias


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
_OWN = SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION


@contextlib.contextmanager
def sdpa_kernel(backends: SDPBackend | Sequence[SDPBackend], set_priority: bool = False,
                ) -> Iterator[dict]:
    """Allow only these ways inside the block. On a GPU FLASH_ATTENTION and EFFICIENT_ATTENTION are the
    same kernels; on the CPU FLASH_ATTENTION and MATH are the same. A call that none of those allowed
    serves is a RuntimeError.

    Args:
        backends: one or a list.
        set_priority: whether to try them in the order of the list; else cuDNN's come before the
            kernels of this library. Products and a softmax (MATH) always come last.

    Raises:
        AssertionError: if something else than SDPBackend is given.
    """
    given = [backends] if isinstance(backends, SDPBackend) else backends
    if not isinstance(given, (list, tuple)) or not all(isinstance(b, SDPBackend) for b in given):
        raise AssertionError(
            "Backend must be an instance of SDPBackend or a list of SDPBackend instances, got "
            f"{backends!r}"
        )
    before = dict(ALLOWED)
    ALLOWED.update({name: backend in given for backend, name in _NAMES.items()})
    if set_priority:
        kernels = [b for b in given if b in _OWN or b is SDPBackend.CUDNN_ATTENTION]
        ALLOWED["own first"] = bool(kernels) and kernels[0] in _OWN
    try:
        yield {}
    finally:
        ALLOWED.update(before)


__all__ = ["SDPAParams", "SDPBackend", "bias", "can_use_efficient_attention", "can_use_flash_attention",
           "sdpa_kernel"]
