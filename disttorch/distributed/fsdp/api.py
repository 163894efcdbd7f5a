"""Choices of the older wrapper `FullyShardedDataParallel`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from ...nn.modules.batchnorm import _BatchNorm


class ShardingStrategy(Enum):
    """What is cut over the ranks, and when parameters are whole.

    FULL_SHARD: all; parameters are freed after forward (ZeRO-3).
    SHARD_GRAD_OP: all; parameters stay whole from forward to backward (ZeRO-2).
    NO_SHARD: nothing; gradients are averaged.
    HYBRID_SHARD: FULL_SHARD within a row of a mesh, replicas between rows.
    _HYBRID_SHARD_ZERO2: SHARD_GRAD_OP within a row, replicas between rows.
    """

    FULL_SHARD = auto()
    SHARD_GRAD_OP = auto()
    NO_SHARD = auto()
    HYBRID_SHARD = auto()
    _HYBRID_SHARD_ZERO2 = auto()


class BackwardPrefetch(Enum):
    """When backward begins to gather the next unit; here both begin before this one computes."""

    BACKWARD_PRE = auto()
    BACKWARD_POST = auto()


@dataclass
class MixedPrecision:
    """Precisions; see `MixedPrecisionPolicy`.

    Attributes:
        param_dtype, reduce_dtype: of computation and reduction; None: the parameters' own.
        buffer_dtype: what floating buffers are converted to; None: left alone.
        keep_low_precision_grads: not built.
        cast_forward_inputs, cast_root_forward_inputs: either casts the inputs of every unit.
    """

    param_dtype: Any = None
    reduce_dtype: Any = None
    buffer_dtype: Any = None
    keep_low_precision_grads: bool = False
    cast_forward_inputs: bool = False
    cast_root_forward_inputs: bool = True
    _module_classes_to_ignore: Sequence[type] = (_BatchNorm,)


@dataclass
class CPUOffload:
    """Whether shards and their gradients are kept in host memory."""

    offload_params: bool = False


class StateDictType(Enum):
    """What `state_dict()` holds: whole tensors, or DTensors; LOCAL_STATE_DICT is not built."""

    FULL_STATE_DICT = auto()
    LOCAL_STATE_DICT = auto()
    SHARDED_STATE_DICT = auto()


@dataclass
class StateDictConfig:
    """offload_to_cpu: bring what is in the dict to host memory."""

    offload_to_cpu: bool = False


@dataclass
class FullStateDictConfig(StateDictConfig):
    """rank0_only: other ranks get an empty dict."""

    rank0_only: bool = False


@dataclass
class LocalStateDictConfig(StateDictConfig):
    """Of a kind that is not built."""


@dataclass
class ShardedStateDictConfig(StateDictConfig):
    """The values are DTensors in any case."""

    _use_dtensor: bool = True


@dataclass
class OptimStateDictConfig:
    """offload_to_cpu: bring what is in the dict to host memory."""

    offload_to_cpu: bool = True


@dataclass
class FullOptimStateDictConfig(OptimStateDictConfig):
    """rank0_only: other ranks get an empty dict."""

    rank0_only: bool = False


@dataclass
class LocalOptimStateDictConfig(OptimStateDictConfig):
    """Of a kind that is not built."""

    offload_to_cpu: bool = False


@dataclass
class ShardedOptimStateDictConfig(OptimStateDictConfig):
    """The values are DTensors in any case."""

    _use_dtensor: bool = True


@dataclass
class StateDictSettings:
    """A kind of state dict with its two configurations."""

    state_dict_type: StateDictType
    state_dict_config: StateDictConfig
    optim_state_dict_config: OptimStateDictConfig


class OptimStateKeyType(Enum):
    """How an optimizer's state names parameters."""

    PARAM_NAME = auto()
    PARAM_ID = auto()


__all__ = [
    "BackwardPrefetch", "CPUOffload", "FullOptimStateDictConfig", "FullStateDictConfig",
    "LocalOptimStateDictConfig", "LocalStateDictConfig", "MixedPrecision", "OptimStateDictConfig",
    "OptimStateKeyType", "ShardedOptimStateDictConfig", "ShardedStateDictConfig",
    "ShardingStrategy", "StateDictConfig", "StateDictSettings", "StateDictType",
]
