"""Switches of computing libraries, under PyTorch's names.

They hold the values that scripts set and read. What disttorch does not have behind a switch (cuDNN
autotuning, MKL, ...) is marked in its module; setting it then changes nothing.
"""

from . import cpu, cuda, cudnn, mkl, mkldnn, mps, openmp

__all__ = ["cpu", "cuda", "cudnn", "mkl", "mkldnn", "mps", "openmp"]
