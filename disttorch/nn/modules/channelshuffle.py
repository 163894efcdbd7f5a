"""Where PyTorch's users look for ChannelShuffle."""

from .vision import ChannelShuffle

__all__ = ["ChannelShuffle"]
