"""Fully sharded data parallelism.

```
_fully_shard    fully_shard                     _param    one parameter: shard and whole
module          FSDPModule, its methods         _unit     those gathered in one call
_state          the hooks around the passes     _layout   their places in flat buffers
_setup          mesh axes, which parameters     _reduce   their gradients on the way
```
FullyShardedDataParallel (fully_sharded_data_parallel, api, wrap, sharded_grad_scaler) is the older
wrapper, a layer over the same engine.
"""

from ._fully_shard import fully_shard, register_fsdp_forward_method, share_comm_ctx
from ._policies import (
    CPUOffloadPolicy,
    DataParallelMeshDims,
    MixedPrecisionPolicy,
    OffloadPolicy,
)
from .api import (
    BackwardPrefetch,
    CPUOffload,
    FullOptimStateDictConfig,
    FullStateDictConfig,
    LocalOptimStateDictConfig,
    LocalStateDictConfig,
    MixedPrecision,
    OptimStateDictConfig,
    OptimStateKeyType,
    ShardedOptimStateDictConfig,
    ShardedStateDictConfig,
    ShardingStrategy,
    StateDictConfig,
    StateDictSettings,
    StateDictType,
)
from .fully_sharded_data_parallel import FlatParameter, FullyShardedDataParallel
from .module import FSDPModule, UnshardHandle

__all__ = [
    "BackwardPrefetch", "CPUOffload", "CPUOffloadPolicy", "DataParallelMeshDims", "FSDPModule",
    "FlatParameter", "FullOptimStateDictConfig", "FullStateDictConfig", "FullyShardedDataParallel",
    "LocalOptimStateDictConfig", "LocalStateDictConfig", "MixedPrecision", "MixedPrecisionPolicy",
    "OffloadPolicy", "OptimStateDictConfig", "OptimStateKeyType", "ShardedOptimStateDictConfig",
    "ShardedStateDictConfig", "ShardingStrategy", "StateDictConfig", "StateDictSettings",
    "StateDictType", "UnshardHandle", "fully_shard", "register_fsdp_forward_method",
    "share_comm_ctx",
]
