"""Where PyTorch has DistributedDataParallel; the class is in ``disttorch.distributed``."""

from __future__ import annotations

__all__ = ["DistributedDataParallel"]  # noqa: F822  (made on use)


def __getattr__(name):
    if name == "DistributedDataParallel":  # on use: plain training must not load MPI
        from ...distributed import DistributedDataParallel

        return DistributedDataParallel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
