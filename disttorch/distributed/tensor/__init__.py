"""Tensors that lie on a mesh of ranks: sharded and replicated parameters and their gradients.

```
placement_types   Shard, Replicate, Partial       _utils          which part a rank holds
_api              DTensor                         _redistribute   changing how a tensor lies
_ops, _norms      what it can compute             _distribute     distribute_tensor
_factories        zeros, ones, full, …
```
Layers computed with DTensors (tensor parallelism) are not built: what is not raises by name.
"""

from . import _norms, _ops  # noqa: F401  (they complete DTensor)
from ._api import DTensor
from ._distribute import distribute_module, distribute_tensor
from ._factories import empty, full, ones, rand, randn, zeros
from .device_mesh import DeviceMesh, init_device_mesh  # noqa: F401
from .placement_types import Partial, Placement, Replicate, Shard

__all__ = [
    "DTensor", "Partial", "Placement", "Replicate", "Shard", "distribute_module",
    "distribute_tensor", "empty", "full", "ones", "rand", "randn", "zeros",
]
