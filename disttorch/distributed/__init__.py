"""PyTorch's `torch.distributed`, over `collectives`: the only part of disttorch that knows ranks.

    import disttorch.distributed as dist
    dist.init_process_group()          # under disttorch-run, mpirun, srun, or alone
    dist.all_reduce(tensor)
    model = DistributedDataParallel(model)
    dist.destroy_process_group()
"""

from __future__ import annotations

import importlib

from collectives import ReduceOp

from .api import (
    all_gather,
    all_gather_into_tensor,
    all_gather_object,
    all_reduce,
    all_to_all,
    all_to_all_single,
    barrier,
    broadcast,
    broadcast_object_list,
    gather,
    irecv,
    isend,
    recv,
    reduce,
    reduce_scatter,
    reduce_scatter_tensor,
    scatter,
    send,
)
from .backends import (
    Backend,
    is_available,
    is_backend_available,
    is_gloo_available,
    is_mpi_available,
    is_nccl_available,
    is_ucc_available,
)
from .counts import ledger, reset_ledger
from .process_group import (
    GroupMember,
    ProcessGroup,
    destroy_process_group,
    get_backend,
    get_global_rank,
    get_group_rank,
    get_node_local_rank,
    get_process_group_ranks,
    get_rank,
    get_world_size,
    group,
    init_process_group,
    is_initialized,
    new_group,
)
from .threads import run_local
from .work import Work

_LAZY = {"DistributedDataParallel": ".ddp"}  # needs nn, which a script of collectives does not


def __getattr__(name):
    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name], __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "Backend", "DistributedDataParallel", "GroupMember", "ProcessGroup", "ReduceOp", "Work",
    "all_gather", "all_gather_into_tensor", "all_gather_object", "all_reduce", "all_to_all",
    "all_to_all_single", "barrier", "broadcast", "broadcast_object_list", "destroy_process_group",
    "gather", "get_backend", "get_global_rank", "get_group_rank", "get_node_local_rank",
    "get_process_group_ranks", "get_rank", "get_world_size", "group", "init_process_group",
    "irecv", "is_available", "is_backend_available", "is_gloo_available", "is_initialized",
    "is_mpi_available", "is_nccl_available", "is_ucc_available", "isend", "ledger", "new_group",
    "recv", "reduce", "reduce_scatter", "reduce_scatter_tensor", "reset_ledger", "run_local",
    "scatter", "send",
]
