"""Where PyTorch's users look for PixelShuffle."""

from .vision import PixelShuffle, PixelUnshuffle

__all__ = ["PixelShuffle", "PixelUnshuffle"]
