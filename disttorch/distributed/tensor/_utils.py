"""Which part of a tensor a rank holds: shapes and offsets from a mesh and placements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...tensor import Size
from .placement_types import Placement, Replicate, Shard


def compute_local_shape_and_global_offset(
    global_shape: Sequence[int], mesh: Any, placements: Sequence[Placement]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shape of this rank's part of a tensor, and where it begins in the whole.

    Args:
        global_shape: of the whole tensor.
        mesh: the DeviceMesh; placements: one for each of its axes. Axes that cut the same dim cut
            one after the other, the first axis outermost.

    Returns:
        (local shape, offsets). Of an empty part the offset is the dim's size; outside the mesh the
        shape is (0,) and the offset ().
    """
    place = mesh.get_coordinate()
    if place is None:
        return (0,), ()
    return local_part(global_shape, mesh.shape, place, placements)


def local_part(
    global_shape: Sequence[int],
    mesh_shape: Sequence[int],
    place: Sequence[int],
    placements: Sequence[Placement],
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(shape, offsets) of the part at one place of a mesh; see the function above."""
    shape, offset = list(global_shape), [0] * len(global_shape)
    for axis, placement in enumerate(placements):
        if isinstance(placement, Shard):
            dim = placement.dim
            size, begin = placement.local_shard_size_and_offset(
                shape[dim], mesh_shape[axis], place[axis]
            )
            shape[dim] = size
            offset[dim] += begin
    return tuple(shape), tuple(offset)


def global_shape_of(local_shape: Sequence[int], mesh: Any, placements: Sequence[Placement]) -> Size:
    """The whole tensor's shape where every rank holds a part of this shape."""
    shape = list(local_shape)
    for axis, placement in enumerate(placements):
        if isinstance(placement, Shard):
            shape[placement.dim] *= mesh.shape[axis]
    return Size(shape)


def row_major_stride(shape: Sequence[int]) -> tuple[int, ...]:
    """Elements between neighbours along each dim of a contiguous tensor."""
    stride, step = [], 1
    for size in reversed(shape):
        stride.append(step)
        step *= max(size, 1)
    return tuple(reversed(stride))


def normalize_placements(
    placements: Sequence[Placement] | None, mesh: Any, ndim: int
) -> tuple[Placement, ...]:
    """One placement for each axis of the mesh, dims counted from the front; default: replicated.

    Raises:
        ValueError: a number of placements that is not the number of axes.
        IndexError: a dim that the tensor has not.
        TypeError: something else than a Placement.
    """
    if placements is None:
        return tuple(Replicate() for _ in range(mesh.ndim))
    placements = tuple(placements)
    if len(placements) != mesh.ndim:
        raise ValueError(
            f"`placements` must have the same length as `device_mesh.ndim`! Found placements length: "
            f"{len(placements)}, and device_mesh.ndim: {mesh.ndim}."
        )
    found: list[Placement] = []
    for placement in placements:
        if not isinstance(placement, Placement):
            raise TypeError(f"a placement must be Shard, Replicate or Partial, got {placement!r}")
        if isinstance(placement, Shard):
            dim = placement.dim + ndim if placement.dim < 0 else placement.dim
            if not 0 <= dim < ndim:
                raise IndexError(
                    f"{placement!r} cuts a dim that a tensor of {ndim} dims does not have"
                )
            placement = placement if dim == placement.dim else Shard(dim)
        found.append(placement)
    return tuple(found)


__all__ = ["compute_local_shape_and_global_offset"]
