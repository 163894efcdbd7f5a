"""Fourier transforms: ``torch.fft``."""

from __future__ import annotations

from .ops.autocast import points as _points
from .ops.fft import FFT as _FFT

globals().update(_FFT | _points(_FFT, "fft."))
__all__ = sorted(_FFT)
