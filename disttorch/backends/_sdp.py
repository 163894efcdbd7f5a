"""Which attention kernels may serve a call on a GPU: ``torch.backends.cuda.can_use_flash_attention`` and
its like. The kernels of this library answer to PyTorch's names "flash" and "efficient" alike."""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

from ..backend import META, namespace_of
from ..backend.attention_kernels import ALLOWED


class SDPAParams(NamedTuple):
    """The arguments of ``scaled_dot_product_attention`` as ``can_use_flash_attention`` and its like take
    them; scale is 1/√E."""

    query: object
    key: object
    value: object
    attn_mask: object
    dropout: float
    is_causal: bool
    enable_gqa: bool = False


def is_flash_attention_available() -> bool:
    """Whether there is a GPU, for which attention kernels can be compiled."""
    from ..backend import cupy_backend

    return cupy_backend.is_available()


def can_use_flash_attention(params: SDPAParams, debug: bool = False) -> bool:
    """Whether the attention kernels of this library may serve such a call, by what "flash" is allowed.

    Args:
        debug: warn with the reason if not.
    """
    return _answer("flash", _own(params, "flash"), debug)


def can_use_efficient_attention(params: SDPAParams, debug: bool = False) -> bool:
    """The same by what "mem_efficient" is allowed: they are the same kernels."""
    return _answer("mem_efficient", _own(params, "mem_efficient"), debug)


def can_use_cudnn_attention(params: SDPAParams, debug: bool = False) -> bool:
    """Whether cuDNN is asked to serve such a call; what it has no plan for goes to others allowed."""
    return _answer("cudnn", _cudnn(params), debug)


def _answer(name: str, reason: str, debug: bool) -> bool:
    if reason and debug:
        warnings.warn(f"{name} attention is not used: {reason}", stacklevel=3)
    return not reason


def _own(params: SDPAParams, name: str) -> str:
    """Why the kernels cannot serve a call; empty if they can."""
    from ..ops.attention import has_kernels

    q, k, v = (t._data for t in (params.query, params.key, params.value))  # type: ignore[attr-defined]
    xp = namespace_of(q)
    if xp is META or not xp.fused_half:
        return "the tensors are not on a GPU"
    if not ALLOWED[name]:
        return f"it is switched off (torch.backends.cuda.enable_{name}_sdp)"
    scale = 1 / math.sqrt(q.shape[-1] or 1)
    if not has_kernels(q, k, v, params.attn_mask, params.dropout, scale, params.enable_gqa,
                       params.is_causal):
        return ("it takes float16 and bfloat16 of one dtype up to 128 wide (256 by cuDNN), shapes that "
                "fit, and masks without gradient")
    return ""


def _cudnn(params: SDPAParams) -> str:
    from ..backend.gpu import cudnn

    reason = _own(params, "cudnn")
    if reason:
        return reason
    if params.attn_mask is not None or params.dropout:
        return "it takes neither masks nor dropout"
    if not cudnn.enabled():
        return f"cuDNN is switched off or missing ({cudnn.why_not() or 'torch.backends.cudnn.enabled'})"
    return ""
