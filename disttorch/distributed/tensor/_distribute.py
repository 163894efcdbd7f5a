"""Laying whole tensors, and modules, over a mesh."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...autograd import no_grad
from ...nn import Module, Parameter
from ...tensor import Tensor, wrap
from ..device_mesh import DeviceMesh
from ._api import DTensor, DTensorParameter, _default_mesh, _spec_of
from ._redistribute import redistribute_local
from ._utils import normalize_placements
from .placement_types import Partial, Placement, Replicate


def distribute_tensor(
    tensor: Tensor,
    device_mesh: DeviceMesh | None = None,
    placements: Sequence[Placement] | None = None,
    *,
    src_data_rank: int | None = 0,
) -> DTensor:
    """Lay a whole tensor, which every rank has, over a mesh.

    Args:
        device_mesh: the ranks; None: all.
        placements: one for each axis; None: replicated.
        src_data_rank: the rank along each axis whose values count; None: each rank keeps its part
            of its own values, and nothing is sent.

    Returns:
        A DTensor; a Parameter if `tensor` is one. Its memory is its own.

    Raises:
        RuntimeError: a tensor that is a result of recorded operations.
        ValueError: a Partial placement; a number of placements that is not the mesh's.
    """
    mesh = device_mesh or _default_mesh(tensor)
    if not tensor.is_leaf:
        raise RuntimeError(
            "`distribute_tensor` should be used to distribute leaf tensors! but found non-leaf tensor!"
        )
    if isinstance(tensor, DTensor):
        if tensor.device_mesh != mesh:
            raise ValueError(
                f"Cannot distribute a DTensor with device mesh {tensor.device_mesh} to a different "
                f"device mesh {mesh}."
            )
        if normalize_placements(placements, mesh, tensor.ndim) != tensor.placements:
            raise ValueError(
                f"Cannot distribute a DTensor with placements {tensor.placements} to different "
                f"placements {placements}. do you want to call `redistribute` instead?"
            )
        return tensor
    placed = normalize_placements(placements, mesh, tensor.ndim)
    if any(isinstance(p, Partial) for p in placed):
        raise ValueError(f"distribute_tensor takes Shard and Replicate placements, got {placed}")
    with no_grad():
        whole = wrap(tensor._data.copy())
        if src_data_rank is not None:
            for axis in range(mesh.ndim):
                mesh.get_group(axis).ranks.broadcast(whole._data, src_data_rank)
        replicated: tuple[Placement, ...] = (Replicate(),) * mesh.ndim
        spec = _spec_of(mesh, replicated, whole.shape, whole)
        local = wrap(redistribute_local(whole._data, spec, placed))
    made = DTensor._wrap(local, spec.replaced(placed))
    if isinstance(tensor, Parameter):
        return DTensorParameter(made, tensor.requires_grad)
    local.requires_grad_(tensor.requires_grad)
    return made


def distribute_module(
    module: Module,
    device_mesh: DeviceMesh | None = None,
    partition_fn: Callable | None = None,
    input_fn: Callable | None = None,
    output_fn: Callable | None = None,
) -> Module:
    """Make a module's parameters DTensors: by `partition_fn(name, module, mesh)`, else replicated.

    Raises:
        NotImplementedError: `input_fn` or `output_fn`: computing with DTensors is not built.
    """
    if input_fn is not None or output_fn is not None:
        raise NotImplementedError(
            "distribute_module: input_fn and output_fn need operations on DTensors that are not built"
        )
    mesh = device_mesh or _default_mesh(next(module.parameters()))
    for name, part in module.named_modules():
        if partition_fn is not None:
            partition_fn(name, part, mesh)
        for key, param in part._parameters.items():
            if param is not None and not isinstance(param, DTensor):
                part._parameters[key] = distribute_tensor(param, mesh)  # type: ignore[assignment]
    return module


__all__ = ["distribute_module", "distribute_tensor"]
