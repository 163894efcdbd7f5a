"""Changing how a tensor lies on a mesh, with the collectives that this needs.

    from       to          call along the axis
    Shard      Replicate   all_gather
    Partial    Replicate   all_reduce
    Partial    Shard       reduce_scatter
    Replicate  Shard       none: each rank keeps its part
    Shard      Shard       all_gather, then each rank keeps its part
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from collectives import ReduceOp

from ...autograd import Function
from ...backend import namespace_of
from ...tensor import Tensor, wrap
from ._dtensor_spec import DTensorSpec
from ._utils import local_part
from .placement_types import Partial, Placement, Replicate, Shard, _NormPartial

_OPS = {
    "sum": ReduceOp.SUM,
    "avg": ReduceOp.AVG,
    "product": ReduceOp.PRODUCT,
    "max": ReduceOp.MAX,
    "min": ReduceOp.MIN,
}


def redistribute_local(
    array: Any, spec: DTensorSpec, placements: Sequence[Placement]
) -> Any:
    """This rank's part under other placements, as an array; a call of all ranks of the mesh.

    Args:
        array: this rank's part under `spec`; it is not changed, but may be returned.
        placements: one for each axis, dims counted from the front.

    Raises:
        RuntimeError: from anything but Partial to Partial.
    """
    mesh, current = spec.mesh, list(spec.placements)
    place = mesh.get_coordinate()
    for axis in sorted(_to_undo(current, placements), reverse=True):
        source, target = current[axis], placements[axis]
        group = mesh.get_group(axis).ranks
        if isinstance(source, Shard):
            whole, _ = local_part(
                spec.shape, mesh.shape, place, [*current[:axis], *[Replicate()] * (mesh.ndim - axis)]
            )
            array = _gather(group, array, source.dim, whole[source.dim])
            current[axis] = Replicate()
        elif isinstance(source, Partial):
            if isinstance(target, Shard) and not any(
                p.is_shard(target.dim) for p in (*current, *placements[axis + 1 :])
            ) and not isinstance(source, _NormPartial):
                array = _reduce_scatter(group, array, target.dim, source)
                current[axis] = target
            else:
                array = _reduce(group, array, source)
                current[axis] = Replicate()
    for axis, target in enumerate(placements):
        if current[axis] == target:
            continue
        if isinstance(target, Partial):
            raise RuntimeError(
                f"Can not redistribute from {current[axis]!r} to {target!r}: redistributing to "
                "Partial is for internal use only"
            )
        if isinstance(target, Shard):
            array = _own_part(array, target, mesh.shape[axis], place[axis])
            current[axis] = target
    return array


def _to_undo(current: Sequence[Placement], target: Sequence[Placement]) -> set[int]:
    """The axes that must be gathered or reduced: those that change, and those cut inside them."""
    axes: set[int] = set()
    for axis, (a, b) in enumerate(zip(current, target)):
        if a != b:
            axes.add(axis)
            dims = {p.dim for p in (a, b) if isinstance(p, Shard)}
            for inner in range(axis + 1, len(current)):
                if any(current[inner].is_shard(dim) for dim in dims):
                    axes.add(inner)
    return {axis for axis in axes if not current[axis].is_replicate()}


def _gather(group: Any, array: Any, dim: int, size: int) -> Any:
    xp = namespace_of(array)
    if dim:
        array = xp.moveaxis(array, dim, 0)
    rest = array.shape[1:]
    width = 1
    for s in rest:
        width *= s
    counts = [
        Shard(0).local_shard_size_and_offset(size, group.size, r)[0] * width
        for r in range(group.size)
    ]
    out = xp.empty((size, *rest), array.dtype)
    group.all_gather(out, xp.contiguous_copy(array), counts=counts)
    return xp.contiguous_copy(xp.moveaxis(out, 0, dim)) if dim else out


def _reduce_scatter(group: Any, array: Any, dim: int, source: Partial) -> Any:
    xp = namespace_of(array)
    if dim:
        array = xp.moveaxis(array, dim, 0)
    size, rest = array.shape[0], array.shape[1:]
    width = 1
    for s in rest:
        width *= s
    rows = [Shard(0).local_shard_size_and_offset(size, group.size, r)[0] for r in range(group.size)]
    out = xp.empty((rows[group.rank], *rest), array.dtype)
    group.reduce_scatter(
        out, xp.contiguous_copy(array), _OPS[source.reduce_op], counts=[n * width for n in rows]
    )
    return xp.contiguous_copy(xp.moveaxis(out, 0, dim)) if dim else out


def _reduce(group: Any, array: Any, source: Partial) -> Any:
    xp = namespace_of(array)
    if not isinstance(source, _NormPartial):
        out = array.copy()
        group.all_reduce(out, _OPS[source.reduce_op])
        return out
    p = source.norm_type
    if p in (float("inf"), float("-inf")):
        out = array.copy()
        group.all_reduce(out, ReduceOp.MAX if p > 0 else ReduceOp.MIN)
        return out
    out = xp.asarray(array if p == 0 else array**p).copy()
    group.all_reduce(out, ReduceOp.SUM)
    return out if p == 0 else xp.asarray(out ** (1 / p)).astype(array.dtype)


def _own_part(array: Any, placement: Shard, ranks: int, rank: int) -> Any:
    size, begin = placement.local_shard_size_and_offset(array.shape[placement.dim], ranks, rank)
    index = [slice(None)] * array.ndim
    index[placement.dim] = slice(begin, begin + size)
    # A copy: a view would keep the whole alive
    return namespace_of(array).contiguous_copy(array[tuple(index)])


class Redistribute(Function):
    """(local, spec, placements) -> this rank's part under other placements; gradients go back."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, spec: DTensorSpec, placements: tuple) -> Tensor:
        ctx.spec, ctx.placements = spec, placements
        array = redistribute_local(local._data, spec, placements)
        return wrap(array.copy() if array is local._data else array)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        # The gradient of a value that was to be summed is the whole gradient on every rank
        source = tuple(Replicate() if p.is_partial() else p for p in ctx.spec.placements)
        back = Redistribute.apply(grad, ctx.spec.replaced(ctx.placements), source)
        return back, None, None


__all__ = ["Redistribute", "redistribute_local"]
