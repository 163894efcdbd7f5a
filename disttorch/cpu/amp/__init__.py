"""Mixed precision on the CPU, under its older names; new code uses ``torch.amp``."""

from ...amp import GradScaler as _GradScaler
from ...amp import autocast as _autocast
from ...amp.legacy import legacy_autocast, legacy_scaler
from ...backend.dtypes import bfloat16

autocast = legacy_autocast("cpu", bfloat16, _autocast)
GradScaler = legacy_scaler("cpu", _GradScaler)
__all__ = ["GradScaler", "autocast"]
