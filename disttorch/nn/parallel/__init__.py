"""DataParallel; and where users look for DistributedDataParallel, of ``disttorch.distributed``."""

from __future__ import annotations

from .data_parallel import DataParallel, data_parallel, gather, scatter

__all__ = ["DataParallel", "DistributedDataParallel", "data_parallel", "gather", "scatter"]


def __getattr__(name):
    if name == "DistributedDataParallel":  # on use: plain training must not load MPI
        from ...distributed import DistributedDataParallel

        return DistributedDataParallel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
