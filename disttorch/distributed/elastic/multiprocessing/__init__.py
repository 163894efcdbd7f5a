"""What scripts import from `torch.distributed.elastic.multiprocessing`: the decorator `record`."""

from __future__ import annotations

from . import errors

__all__ = ["errors"]
