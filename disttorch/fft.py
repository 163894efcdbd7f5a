"""Fourier transforms: ``torch.fft``."""

from __future__ import annotations

from .ops.fft import FFT as _FFT

globals().update(_FFT)
__all__ = sorted(_FFT)
