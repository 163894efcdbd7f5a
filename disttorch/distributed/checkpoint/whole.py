"""State dicts of whole tensors: gathered from parts, sent from rank 0, cut into parts again.

One tensor at a time: no rank needs more than the state dict it is to hold and one tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ... import ops
from ...nn import Module
from ...tensor import Tensor
from ..process_group import default_group, get_rank, is_initialized
from .planner_helpers import is_dtensor


def gather_whole(value: Any, first_only: bool) -> Any:
    """A state dict with DTensors made whole. A call of all ranks of their meshes.

    Args:
        first_only: on the CPU, and on rank 0 only; others get an empty dict.
    """
    keep = not first_only or not is_initialized() or get_rank() == 0

    def walk(entry: Any) -> Any:
        if is_dtensor(entry):
            entry = entry.detach().full_tensor()
        if isinstance(entry, Tensor):
            return (entry.detach().cpu() if first_only else entry) if keep else None
        if isinstance(entry, Mapping):
            return {key: walk(below) for key, below in entry.items()}
        if type(entry) in (list, tuple):
            return type(entry)(walk(below) for below in entry)
        return entry

    result = walk(value)
    return result if keep else {}


def to_cpu(value: Any) -> Any:
    """A state dict with its tensors, or their parts, on the CPU."""
    if is_dtensor(value):
        return value if value.device.type == "cpu" else value.cpu()
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, Mapping):
        return {key: to_cpu(entry) for key, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)(to_cpu(entry) for entry in value)
    return value


def part_like(value: Any, target: Any) -> Any:
    """This rank's part of a whole tensor, laid out as ``target``; the value itself if that is whole."""
    if not isinstance(value, Tensor) or is_dtensor(value) or not is_dtensor(target):
        return value
    if tuple(value.shape) != tuple(target.shape):
        return value  # the one who loads it says which tensor has which shapes
    from ..tensor import distribute_tensor

    whole = value.detach().to(target.device)
    return distribute_tensor(whole, target.device_mesh, target.placements, src_data_rank=None)


def give_memory_to(model: Module) -> None:
    """Give the parameters and buffers of a model that are on the meta device memory, in place.

    Values are to be loaded into it. Buffers that no state dict has become nan, so that a use shows.
    """
    for module in model.modules():
        everything = {**module._parameters, **module._buffers}
        held = {key: t for key, t in everything.items() if t is not None}
        without = [t for t in held.values() if t.is_meta]
        if not without:
            continue
        mesh = next((t.device_mesh for t in without if is_dtensor(t)), None)
        kept = {key: t.detach().clone() for key, t in held.items() if not t.is_meta}
        module.to_empty(device="cpu" if mesh is None else mesh.device_type, recurse=False)
        for key, value in kept.items():
            table = module._parameters if key in module._parameters else module._buffers
            table[key].detach().copy_(value)  # type: ignore[union-attr]
        for key in module._non_persistent_buffers_set:
            buffer = module._buffers.get(key)
            if buffer is not None and key not in kept and buffer.is_floating_point():
                buffer.fill_(float("nan"))


class _Coming:
    """Stands for a tensor that is sent after the rest."""

    def __init__(self, tensor: Tensor) -> None:
        self.shape, self.dtype = tuple(tensor.shape), tensor.dtype


def broadcast_from_first(value: Any, fit: Callable[[tuple, Any], Any]) -> Any:
    """Rank 0's nested dict on all ranks of the job, each tensor as ``fit(path, tensor)`` makes it."""
    group = default_group()
    first = group.rank() == 0
    skeleton = _replaced(value) if first else None
    skeleton = group.ranks.broadcast_object(skeleton, 0)

    def walk(path: tuple, plan: Any, mine: Any) -> Any:
        if isinstance(plan, _Coming):
            return fit(path, _receive(plan, mine if first else None, group))
        if isinstance(plan, dict):
            return {k: walk((*path, k), p, mine[k] if first else None) for k, p in plan.items()}
        if type(plan) in (list, tuple):
            return type(plan)(
                walk((*path, i), p, mine[i] if first else None) for i, p in enumerate(plan)
            )
        return plan

    return walk((), skeleton, value)


def _receive(plan: _Coming, mine: Tensor | None, group: Any) -> Tensor:
    tensor = ops.empty(plan.shape, dtype=plan.dtype) if mine is None else mine.detach().contiguous()
    if tensor.numel():
        group.ranks.broadcast(tensor._data, 0)
    return tensor


def _replaced(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _Coming(value)
    if isinstance(value, Mapping):
        return {key: _replaced(entry) for key, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_replaced(entry) for entry in value)
    return value


__all__ = ["broadcast_from_first", "gather_whole", "part_like", "to_cpu"]
