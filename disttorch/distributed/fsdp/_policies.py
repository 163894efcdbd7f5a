"""What `fully_shard` may be told: precisions, and where the shards are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class MixedPrecisionPolicy:
    """Precisions of a unit; the shards that the optimizer sees keep the parameters' own dtype.

    Attributes:
        param_dtype: what parameters are gathered and computed in; None: their own.
        reduce_dtype: what gradients are reduced, and without synchronisation accumulated, in; None:
            that of the gradient.
        output_dtype: what floating outputs of the forward are cast to; None: left alone.
        cast_forward_inputs: cast floating inputs to `param_dtype`.
    """

    param_dtype: Any = None
    reduce_dtype: Any = None
    output_dtype: Any = None
    cast_forward_inputs: bool = True


@dataclass
class OffloadPolicy:
    """Shards stay on the device that computes."""


@dataclass
class CPUOffloadPolicy(OffloadPolicy):
    """Shards, their gradients and the optimizer's state stay in host memory.

    Before a gather the shard is copied to the device, after a reduction the gradient back. For a
    mesh of CPUs that is where they are anyway: nothing changes.

    Attributes:
        pin_memory: accepted; copies go through ordinary host memory.
    """

    pin_memory: bool = True


@dataclass
class DataParallelMeshDims:
    """Names of a mesh's axes that are data parallel, for `fully_shard(dp_mesh_dims=)`.

    Attributes:
        shard: the axis that shards; replicate: the axis that replicates (HSDP).

    Raises:
        ValueError: neither is given.
    """

    shard: str | tuple[str, ...] | None = None
    replicate: str | tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.shard is None and self.replicate is None:
            raise ValueError("At least one of shard or replicate must be set in DataParallelMeshDims")


__all__ = ["CPUOffloadPolicy", "DataParallelMeshDims", "MixedPrecisionPolicy", "OffloadPolicy"]
