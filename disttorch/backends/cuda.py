"""Switches of matrix products and attention on the GPU."""

from __future__ import annotations

import contextlib
import os


class _Matmul:
    """``allow_tf32`` is CuPy's own switch, the environment variable CUPY_TF32; the 16-bit switches
    change nothing, as 16-bit products always accumulate in float32."""

    allow_fp16_reduced_precision_reduction = True
    allow_bf16_reduced_precision_reduction = True
    allow_fp16_accumulation = False
    fp32_precision = "none"

    @property
    def allow_tf32(self) -> bool:
        return os.environ.get("CUPY_TF32", "0") == "1"

    @allow_tf32.setter
    def allow_tf32(self, value: bool) -> None:
        os.environ["CUPY_TF32"] = "1" if value else "0"


matmul = _Matmul()
_attention = {"flash": True, "mem_efficient": True, "math": True, "cudnn": True}


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
    write.__doc__ = f"Note a wish for {name} attention; which kernel runs depends on shapes alone."
    return read, write


flash_sdp_enabled, enable_flash_sdp = _switch("flash")
mem_efficient_sdp_enabled, enable_mem_efficient_sdp = _switch("mem_efficient")
math_sdp_enabled, enable_math_sdp = _switch("math")
cudnn_sdp_enabled, enable_cudnn_sdp = _switch("cudnn")


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
