"""Where PyTorch's users look for Fold and Unfold."""

from .vision import Fold, Unfold

__all__ = ["Fold", "Unfold"]
