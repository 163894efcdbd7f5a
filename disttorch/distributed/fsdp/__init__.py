"""Fully sharded data parallelism.

```
_fully_shard    fully_shard                     _param    one parameter: shard and whole
module          FSDPModule, its methods         _unit     those gathered in one call
_state          the hooks around the passes     _layout   their places in flat buffers
_setup          mesh axes, which parameters     _reduce   their gradients on the way
```
"""

from ._fully_shard import fully_shard, register_fsdp_forward_method, share_comm_ctx
from ._policies import (
    CPUOffloadPolicy,
    DataParallelMeshDims,
    MixedPrecisionPolicy,
    OffloadPolicy,
)
from .module import FSDPModule, UnshardHandle

__all__ = [
    "CPUOffloadPolicy", "DataParallelMeshDims", "FSDPModule", "MixedPrecisionPolicy",
    "OffloadPolicy", "UnshardHandle", "fully_shard", "register_fsdp_forward_method",
    "share_comm_ctx",
]
