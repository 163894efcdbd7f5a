"""Files of tensors in PyTorch's format."""

from .archive import atomic_file, load, save

__all__ = ["atomic_file", "load", "save"]
