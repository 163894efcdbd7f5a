"""Times after which PyTorch gives up; the same here."""

from __future__ import annotations

import datetime

from collectives.settings import DEFAULT_TIMEOUT

#: What a call may wait for other ranks unless a timeout is given.
default_pg_timeout = datetime.timedelta(seconds=DEFAULT_TIMEOUT)
#: NCCL's own default in PyTorch. Calls on GPU arrays have `default_pg_timeout` here, like all others.
default_pg_nccl_timeout = datetime.timedelta(minutes=10)

__all__ = ["default_pg_nccl_timeout", "default_pg_timeout"]
