"""Handles that remove hooks."""

from ..autograd.graph import RemovableHandle

__all__ = ["RemovableHandle"]
