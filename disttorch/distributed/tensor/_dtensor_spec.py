"""What a DTensor knows about itself beside its values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from ...tensor import Size
from .placement_types import Placement


class TensorMeta(NamedTuple):
    """Shape, stride and dtype of a whole tensor."""

    shape: Size
    stride: tuple[int, ...]
    dtype: Any


@dataclass(frozen=True)
class DTensorSpec:
    """A mesh, one placement for each of its axes, and the whole tensor's shape, stride and dtype."""

    mesh: Any
    placements: tuple[Placement, ...]
    tensor_meta: TensorMeta

    @property
    def shape(self) -> Size:
        return self.tensor_meta.shape

    @property
    def ndim(self) -> int:
        return len(self.tensor_meta.shape)

    @property
    def device_mesh(self) -> Any:
        return self.mesh

    def replaced(self, placements: tuple[Placement, ...]) -> DTensorSpec:
        """The same tensor lying otherwise."""
        return DTensorSpec(self.mesh, placements, self.tensor_meta)

    def __str__(self) -> str:
        places = "".join(map(str, self.placements))
        return f"Spec({places} on {tuple(self.shape)})"


__all__ = ["DTensorSpec", "TensorMeta"]
