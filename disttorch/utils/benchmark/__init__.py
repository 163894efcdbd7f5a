"""Timing of small pieces of code, with the API of ``torch.utils.benchmark``.

    timer = Timer("x @ x", setup="x = torch.randn(64, 64)")
    print(timer.blocked_autorange())
"""

from .timer import Compare, Measurement, Timer, timer

__all__ = ["Compare", "Measurement", "Timer", "timer"]
