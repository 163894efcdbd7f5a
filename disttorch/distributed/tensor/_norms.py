"""The common norm of tensors of which ranks hold parts: what `clip_grad_norm_` clips by.

A norm of one rank's parts is not the norm: the p-th powers are added over the ranks that hold
different parts, and over those only, so that a replicated tensor counts once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from collectives import ReduceOp

from ...backend import CPU, namespace_of
from ...tensor import Size, Tensor, wrap
from ._api import DTensor
from ._dtensor_spec import DTensorSpec, TensorMeta
from .placement_types import Replicate

INF = float("inf")


def total_norm(tensors: Sequence[Tensor], p: float) -> DTensor:
    """The p-norm of all tensors seen as one vector; a call of all ranks of their meshes.

    Args:
        tensors: DTensors, on any meshes, and ordinary tensors, which count as equal on all ranks.
        p: of the norm, also ±inf.

    Returns:
        A 0-dim DTensor, replicated on the mesh of the first DTensor: `full_tensor()` or `item()`
        give it without a call.
    """
    powers: dict[tuple, tuple[list, list[float]]] = {}
    first = None
    for t in tensors:
        groups: list[Any] = []
        if isinstance(t, DTensor):
            if any(place.is_partial() for place in t.placements):
                t = t.redistribute(
                    placements=[Replicate() if x.is_partial() else x for x in t.placements]
                )
            first = t if first is None else first
            axes = [i for i, x in enumerate(t.placements) if x.is_shard()]
            groups = [t.device_mesh.get_group(i).ranks for i in axes]
            t = t._local_tensor
        value = _power(t, p)
        powers.setdefault(tuple(map(id, groups)), (groups, []))[1].append(value)
    assert first is not None
    parts = [_over_ranks(groups, _combined(values, p), p) for groups, values in powers.values()]
    total = _combined(parts, p)
    if p not in (INF, -INF, 0.0):
        total = total ** (1 / p)
    xp = namespace_of(first._local_tensor._data)
    wide = xp.vector_norm(first._local_tensor._data, 2.0).dtype
    local = wrap(xp.asarray(total, dtype=wide))
    placed = (Replicate(),) * first.device_mesh.ndim
    return DTensor._wrap(
        local, DTensorSpec(first.device_mesh, placed, TensorMeta(Size(()), (), local.dtype))
    )


def _power(t: Tensor, p: float) -> float:
    """What is to be added up for one tensor: its norm to the power p; the extreme for ±inf."""
    if t._data.size == 0:
        return {INF: 0.0, -INF: INF}.get(p, 0.0)
    norm = float(namespace_of(t._data).vector_norm(t._data, p))
    return norm if p in (INF, -INF, 0.0) else norm**p


def _combined(values: Sequence[float], p: float) -> float:
    """Of powers their sum, of extremes the extreme; a nan stays."""
    if p in (INF, -INF):
        if any(v != v for v in values):
            return float("nan")
        return max(values) if p > 0 else min(values)
    return sum(values)


def _over_ranks(groups: Sequence[Any], value: float, p: float) -> float:
    array = CPU.array([value, value != value], "float64")  # whether it is nan travels beside it
    op = {INF: ReduceOp.MAX, -INF: ReduceOp.MIN}.get(p, ReduceOp.SUM)
    for group in groups:
        if op is not ReduceOp.MIN:
            group.all_reduce(array, op)
        else:
            array[1] = -array[1]
            group.all_reduce(array, op)
            array[1] = -array[1]
    return float("nan") if array[1] > 0 else float(array[0])


def max_over_ranks(self: DTensor, value: Tensor) -> None:
    """Replace a tensor by the maximum over all ranks of the mesh."""
    for axis in range(self.device_mesh.ndim):
        self.device_mesh.get_group(axis).ranks.all_reduce(value._data, ReduceOp.MAX)


DTensor._max_over_ranks = max_over_ranks  # type: ignore[attr-defined]
DTensor._total_norm = staticmethod(total_norm)  # type: ignore[attr-defined]

__all__ = ["total_norm"]
