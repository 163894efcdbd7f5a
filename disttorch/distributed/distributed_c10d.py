"""PyTorch's name of the module that its process groups live in: the same objects as in the package,
and the private names that other code imports from there."""

# ruff: noqa: F401, F403, F811  (the imports are the names)
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NewType

from collectives import ReduceOp
from collectives.store import FileStore, HashStore, PrefixStore, Store, TCPStore

from .arguments import supports_complex
from .backends import (
    Backend,
    BackendConfig,
    get_default_backend_for_device,
    is_backend_available,
    is_gloo_available,
    is_mpi_available,
    is_nccl_available,
    is_ucc_available,
    is_xccl_available,
)
from .begin import default_store as _get_default_store
from .begin import destroy_process_group, init_process_group
from .coalescing import _coalescing_manager, _CoalescingManager
from .constants import default_pg_nccl_timeout, default_pg_timeout
from .debug_level import DebugLevel, get_debug_level
from .groups import *
from .groups import rank_not_in_group as _rank_not_in_group
from .groups import set_group_timeout as _set_pg_timeout
from .moves import *
from .moves import _all_gather_base
from .objects import *
from .options import *
from .p2p import *
from .process_group import (
    GroupMember,
    ProcessGroup,
    get_global_rank,
    get_group_rank,
    get_process_group_ranks,
    get_rank,
    get_world_size,
    group,
    is_initialized,
)
from .process_group import by_name as _resolve_process_group
from .process_group import default_group as _get_default_group
from .process_group import warn_not_in_group as _warn_not_in_group
from .reductions import *
from .reductions import _make_nccl_premul_sum, _reduce_scatter_base
from .work import Work

GroupName = NewType("GroupName", str)


def _get_process_group_name(pg: ProcessGroup) -> str:
    """The group's name."""
    return pg.group_name


def _get_group_size(group: ProcessGroup | None) -> int:
    """Number of ranks in the group."""
    return get_world_size(group)


def _get_pg_default_device(group: ProcessGroup | None = None) -> Any:
    """The device that any tensor of a group may be on: its own, or the CPU."""
    from ..backend.devices import device

    pg = _get_default_group() if group is None else group
    return pg.bound_device_id or device("cpu")


_get_object_coll_device = _get_pg_default_device


@contextmanager
def record_comm(name: str) -> Iterator[None]:
    """Name what is done inside for the profiler: `profiler.record_function` of this name."""
    from ..profiler import record_function

    with record_function(name):
        yield


_OTHERS = {"annotations", "Any", "Iterator", "NewType", "contextmanager"}
__all__ = [name for name in dir() if not name.startswith("_") and name not in _OTHERS]
