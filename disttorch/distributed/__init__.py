"""PyTorch's `torch.distributed`, over `collectives`: the only part of disttorch that knows ranks.

    import disttorch.distributed as dist
    dist.init_process_group()          # under disttorch-run, mpirun, srun, torchrun's env, or alone
    dist.all_reduce(tensor)
    model = DistributedDataParallel(model)
    dist.destroy_process_group()

```
begin, groups, process_group   who the ranks are              device_mesh   a grid of them
reductions, moves, p2p, objects, coalescing                   the calls
conjugate, nn.functional, _functional_collectives             those that gradients flow through
reports                                                       counts, flight record, timeline
```
"""

# ruff: noqa: F401, F403  (the imports are the public names)
from __future__ import annotations

import importlib
import os

from collectives.call import hide as _hide
from collectives.store import FileStore, HashStore, PrefixStore, Store, TCPStore

from . import constants, distributed_c10d
from .backends import is_available
from .debug_level import set_debug_level, set_debug_level_from_env
from .distributed_c10d import *
from .distributed_c10d import (
    DebugLevel,
    GroupName,
    _all_gather_base,
    _coalescing_manager,
    _CoalescingManager,
    _get_process_group_name,
    _make_nccl_premul_sum,
    _rank_not_in_group,
    _reduce_scatter_base,
    get_debug_level,
    record_comm,
)
from .errors import DistBackendError, DistError, DistNetworkError, DistStoreError, QueueEmptyError
from .rendezvous import register_rendezvous_handler, rendezvous
from .reports import *
from .threads import run_local

# A call's place in messages and records is where the user made it.
_hide(os.path.dirname(os.path.abspath(__file__)))

# Modules, and names that need others than a script of collectives does.
_LAZY = {
    "DistributedDataParallel": ".ddp",
    "DeviceMesh": ".device_mesh",
    "ExactDataParallel": ".exact",
    "VirtualShardSampler": ".exact",
    "init_device_mesh": ".device_mesh",
    "audit": ".auditing",
    "GradBucket": ".buckets",
    "BuiltinCommHookType": ".buckets",
}
_MODULES = {
    "_composable", "_functional_collectives", "algorithms", "checkpoint", "device_mesh", "elastic",
    "exact", "fsdp", "launch", "launcher", "nn", "optim", "run", "tensor",
}  # fmt: skip


def __getattr__(name):
    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name], __name__), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *_LAZY, *_MODULES})
