"""Switches of matrix products and attention on the GPU."""

from __future__ import annotations

import contextlib

from ..backend.attention_kernels import ALLOWED as _attention
from ..backend.precision import PRECISION
from ._sdp import (  # noqa: F401
    SDPAParams,
    can_use_cudnn_attention,
    can_use_efficient_attention,
    can_use_flash_attention,
    is_flash_attention_available,
)

_FP32 = ("none", "ieee", "tf32")
_REDUCTIONS = {
    "allow_fp16_reduced_precision_reduction": "float16",
    "allow_bf16_reduced_precision_reduction": "bfloat16",
}


class _Matmul:
    """How products on the GPU are computed.

    Attributes:
        allow_tf32: whether float32 products may use TF32; False unless set. One with
            ``torch.set_float32_matmul_precision``, which then says "high" or "highest".
        fp32_precision: the same as "tf32" or "ieee"; "none" until one of them was set.
        allow_fp16_reduced_precision_reduction, allow_bf16_reduced_precision_reduction: whether a product
            of 16-bit floats that is split along the summed dim may add up its parts in 16 bits (True).
            Also a pair of bools: (that, whether it may be split); the second is only noted, cuBLAS has
            no such switch. Read it under the name with ``_split_k``.
        allow_fp16_accumulation: False always: sums of 16-bit products are float32.
    """

    def __getattr__(self, name):
        if name == "allow_tf32":
            return PRECISION.tf32
        if name == "fp32_precision":
            return PRECISION.matmul_fp32
        if name == "allow_fp16_accumulation":
            return False
        if name in _REDUCTIONS:
            return getattr(PRECISION, _REDUCTIONS[name] + "_sums")
        if name.removesuffix("_split_k") in _REDUCTIONS:
            return getattr(PRECISION, _REDUCTIONS[name.removesuffix("_split_k")] + "_split")
        raise AttributeError(f"Unknown attribute {name}")

    def __setattr__(self, name, value):
        if name == "allow_tf32":
            _need_bool("set_allow_tf32_cublas", value)
            PRECISION.set_matmul("high" if value else "highest")
        elif name == "fp32_precision":
            _set_fp32_precision(value)
        elif name in _REDUCTIONS:
            sums, split = _pair(value, name)
            if sums and not split:
                raise RuntimeError(
                    "allow_splitk=False is not supported when reduced precision reductions are enabled"
                )
            setattr(PRECISION, _REDUCTIONS[name] + "_sums", sums)
            setattr(PRECISION, _REDUCTIONS[name] + "_split", split)
        elif name == "allow_fp16_accumulation":
            _need_bool("set_allow_fp16_accumulation_cublas", value)
            if value:
                raise RuntimeError(
                    "allow_fp16_accumulation=True is not supported: sums of float16 products are "
                    "float32 here; leave it False"
                )
        else:
            raise AttributeError(f"Unknown attribute {name}")


def _need_bool(function: str, value) -> None:
    if not isinstance(value, bool):
        raise RuntimeError(f"{function} expects a bool, but got {type(value).__name__}")


def _set_fp32_precision(value) -> None:
    if value == "bf16":
        raise RuntimeError("backend 'cuda' does not support precision 'bf16'")
    if value not in _FP32:
        raise RuntimeError(f"Unknown precision: {value}")
    PRECISION.set_matmul("high" if value == "tf32" else "highest")
    PRECISION.matmul_fp32 = value


def _pair(value, name: str) -> tuple[bool, bool]:
    """(whether sums may be 16-bit, whether products may be split), by a bool or one or two of them."""
    if isinstance(value, bool):
        return value, True
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{name} expects a bool or a tuple/list of bools, but got {type(value)!r}")
    if not 1 <= len(value) <= 2:
        raise TypeError(f"{name} expects one or two bools, but got {len(value)} values")
    for which, given in zip(("allow_reduced_precision", "allow_splitk"), value):
        if not isinstance(given, bool):
            raise TypeError(f"{name} expects a bool for {which}, but got {type(given)!r}")
    return value[0], value[1] if len(value) == 2 else True


matmul = _Matmul()


def is_built() -> bool:
    """Whether a GPU could be used: whether CuPy is installed."""
    import importlib.util

    return importlib.util.find_spec("cupy") is not None


def _switch(name):
    def read() -> bool:
        return _attention[name]

    def write(enabled: bool) -> None:
        _attention[name] = bool(enabled)

    read.__doc__ = f"The value last set for {name} attention."
    write.__doc__ = (
        f"Allow {name} attention on a GPU or not: 'cudnn' is cuDNN's, 'flash' and 'mem_efficient' are "
        "the kernels of this library, 'math' are products and a softmax; in this order."
    )
    return read, write


flash_sdp_enabled, enable_flash_sdp = _switch("flash")
mem_efficient_sdp_enabled, enable_mem_efficient_sdp = _switch("mem_efficient")
math_sdp_enabled, enable_math_sdp = _switch("math")
cudnn_sdp_enabled, enable_cudnn_sdp = _switch("cudnn")
_reduced_math = False


def allow_fp16_bf16_reduction_math_sdp(enabled: bool) -> None:
    """Noted: 'math' attention of 16-bit floats adds up in float32 either way."""
    global _reduced_math
    _reduced_math = bool(enabled)


def fp16_bf16_reduction_math_sdp_allowed() -> bool:
    """The value last set."""
    return _reduced_math


@contextlib.contextmanager
def sdp_kernel(enable_flash=True, enable_math=True, enable_mem_efficient=True, enable_cudnn=True):
    """Other wishes for attention kernels inside a ``with`` block."""
    before = dict(_attention)
    _attention.update(flash=enable_flash, math=enable_math, mem_efficient=enable_mem_efficient,
                      cudnn=enable_cudnn)
    try:
        yield
    finally:
        _attention.update(before)
