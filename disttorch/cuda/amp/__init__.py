"""Mixed precision on GPUs, under its older names; new code uses ``torch.amp``."""

from __future__ import annotations

import functools

from ...amp import GradScaler as _GradScaler
from ...amp import autocast as _autocast
from ...amp import custom_bwd as _custom_bwd
from ...amp import custom_fwd as _custom_fwd
from ...amp.legacy import deprecated, legacy_autocast, legacy_scaler
from ...backend.dtypes import float16

autocast = legacy_autocast("cuda", float16, _autocast)
GradScaler = legacy_scaler("cuda", _GradScaler)


@functools.wraps(_custom_fwd, assigned=("__doc__",), updated=())
def custom_fwd(fwd=None, *, cast_inputs=None):
    deprecated("torch.cuda.amp.custom_fwd(args...)",
               "torch.amp.custom_fwd(args..., device_type='cuda')")
    return _custom_fwd(fwd, device_type="cuda", cast_inputs=cast_inputs)


@functools.wraps(_custom_bwd, assigned=("__doc__",), updated=())
def custom_bwd(bwd):
    deprecated("torch.cuda.amp.custom_bwd(args...)",
               "torch.amp.custom_bwd(args..., device_type='cuda')")
    return _custom_bwd(bwd, device_type="cuda")


__all__ = ["GradScaler", "autocast", "custom_bwd", "custom_fwd"]
