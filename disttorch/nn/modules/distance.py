"""Where PyTorch's users look for distances between vectors."""

from .vision import CosineSimilarity, PairwiseDistance

__all__ = ["CosineSimilarity", "PairwiseDistance"]
