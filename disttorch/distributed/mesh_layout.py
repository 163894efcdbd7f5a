"""The layout of a mesh: where its axes' ranks stand in the list of all ranks.

An axis of a mesh has a number of ranks, which stand a stride apart in the list of all ranks of the
root mesh. An axis made by flattening others may need several such pairs, outer first. (The algebra
is that of C. Cecka, "CuTe Layout Representation and Algebra", 2024, reduced to what slicing and
flattening need.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

from ..backend import CPU
from ..tensor import Tensor


class Axis(NamedTuple):
    """One axis: sizes and strides, outer first; an axis of one rank has none of either."""

    sizes: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def of(cls, pairs: Sequence[tuple[int, int]]) -> Axis:
        """The axis of these (size, stride) pairs, joined where one continues the other."""
        joined: list[tuple[int, int]] = []
        for size, stride in pairs:
            if size == 1:
                continue
            if joined and joined[-1][1] == size * stride:
                joined[-1] = (joined[-1][0] * size, stride)
            else:
                joined.append((size, stride))
        return cls(tuple(s for s, _ in joined), tuple(d for _, d in joined))

    @property
    def size(self) -> int:
        return math.prod(self.sizes)

    @property
    def offsets(self) -> list[int]:
        """Where the axis's ranks stand, relative to its first."""
        steps = [range(0, size * stride, stride) for size, stride in zip(self.sizes, self.strides)]
        return [sum(each) for each in product(*steps)]

    def __str__(self) -> str:
        return str(self.strides[0] if len(self.strides) == 1 else self.strides)


def lines(axes: Sequence[Axis], n: int) -> list[list[int]]:
    """For each sub-mesh of these axes, the places of its ranks in the root's list of `n`."""
    inside = [sum(each) for each in product(*(axis.offsets for axis in axes))]
    taken: set[int] = set()
    found = []
    for begin in range(n):
        if begin not in taken:
            line = [begin + offset for offset in inside]
            taken.update(line)
            found.append(line)
    return found


def grid_of(mesh: Any) -> tuple[tuple[int, ...], list[int]]:
    """Shape and ranks of a tensor, an array or nested lists."""
    grid = mesh._data if isinstance(mesh, Tensor) else mesh
    grid = CPU.asarray(grid.tolist() if hasattr(grid, "tolist") else grid)
    if not grid.size or grid.dtype.kind not in "iu":
        raise ValueError(f"DeviceMesh: mesh must hold ranks, got {mesh!r}")
    return tuple(grid.shape), [int(rank) for rank in grid.reshape(-1)]


def check_axes(axes: Sequence[Axis], names: Sequence[str]) -> None:
    """Refuse axes that share ranks (RuntimeError) or do not go from outer to inner (KeyError)."""
    real = [axis for axis in axes if axis.sizes]
    offsets = [sum(each) for each in product(*(axis.offsets for axis in real))]
    if len(set(offsets)) < len(offsets):
        raise RuntimeError(f"Slicing overlapping dim_names {tuple(names)} is not allowed.")
    if any(a.strides[-1] < b.strides[0] for a, b in zip(real, real[1:])):
        raise KeyError(
            f"Invalid mesh_dim_names {tuple(names)} specified. Mesh dim indices should be in "
            "ascending order."
        )
