"""Linear algebra: ``torch.linalg``."""

from __future__ import annotations

from .ops.autocast import points as _points
from .ops.linalg_functions import LINALG as _LINALG

globals().update(_LINALG | _points(_LINALG, "linalg."))
__all__ = sorted(_LINALG)
