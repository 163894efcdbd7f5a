"""Linear algebra: ``torch.linalg``."""

from __future__ import annotations

from .ops.linalg_functions import LINALG as _LINALG

globals().update(_LINALG)
__all__ = sorted(_LINALG)
