"""What `fully_shard` finds out before it shards: the axes of the mesh, the parameters of a unit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...nn import Module, Parameter
from ..device_mesh import DeviceMesh, init_device_mesh
from ..groups import get_backend, new_subgroups_by_enumeration
from ..process_group import get_world_size
from ..tensor._api import DTensor
from ._policies import DataParallelMeshDims
from ._state import state_of

Places = dict[int, tuple[Parameter, list[tuple[Module, str]], str]]


def default_mesh(modules: Sequence[Module]) -> DeviceMesh:
    """All ranks of the job on one axis; of GPUs if a parameter is on one, or the backend is NCCL."""
    on_gpu = any(p.device.type == "cuda" for m in modules for p in m.parameters())
    nccl = "nccl" in str(get_backend())
    device = "cuda" if on_gpu or nccl else "cpu"
    return init_device_mesh(device, (get_world_size(),))


def data_parallel_axes(
    mesh: DeviceMesh, dims: DataParallelMeshDims | None
) -> tuple[int | None, int | None]:
    """(the axis that shards, the axis that replicates); None for one that there is not.

    Raises:
        ValueError: a mesh of more than two axes, or a name that is none of its axes.
        NotImplementedError: names of several axes for one purpose, or axes for other purposes.
    """
    if dims is None:
        if mesh.ndim not in (1, 2):
            raise ValueError(f"fully_shard expects a 1D or 2D DeviceMesh but got {mesh}")
        return mesh.ndim - 1, 0 if mesh.ndim == 2 else None
    names = mesh.mesh_dim_names
    if names is None:
        raise ValueError("mesh must have mesh_dim_names when dp_mesh_dims is specified")
    found: list[int | None] = []
    for chosen in (dims.shard, dims.replicate):
        if isinstance(chosen, tuple) and len(chosen) > 1:
            raise NotImplementedError(
                f"dp_mesh_dims: several axes {chosen} for one purpose are not built: flatten them"
            )
        name = chosen[0] if isinstance(chosen, tuple) else chosen
        if name is not None and name not in names:
            raise ValueError(f"dp_mesh_dims: {name!r} is no axis of {mesh}, which has {names}")
        found.append(None if name is None else names.index(name))
    if len([a for a in found if a is not None]) < mesh.ndim:
        raise NotImplementedError(
            f"dp_mesh_dims: {mesh} has axes beside {dims}; tensor parallel parameters are not built"
        )
    return found[0], found[1]


def reshard_mode(reshard: bool | int, mesh: DeviceMesh, axis: int | None) -> Any:
    """True, False, or the group of this many ranks that holds the parameters until backward.

    Raises:
        ValueError: no divisor of the axis's size.
    """
    if isinstance(reshard, bool):
        return reshard if axis is not None else False
    if not isinstance(reshard, int):
        raise ValueError(
            "reshard_after_forward should be a bool or an int representing the group size to reshard "
            f"to, not {reshard!r}"
        )
    size = 1 if axis is None else mesh.shape[axis]
    if reshard < 1 or reshard > size or size % reshard:
        raise ValueError(
            "If passing reshard_after_forward as an int, it should be a factor of "
            f"{size}, not {reshard}"
        )
    if reshard == 1:
        return False
    if reshard == size:
        return True
    assert axis is not None
    # Kept with the mesh: every unit of it uses the same groups
    groups = mesh.__dict__.setdefault("_fsdp_smaller_groups", {})
    if (axis, reshard) not in groups:
        rows = mesh._lines([mesh._axes[axis]])
        parts = [row[i : i + reshard] for row in rows for i in range(0, size, reshard)]
        group, _ = new_subgroups_by_enumeration(parts, group_desc="fsdp_after_forward")
        groups[axis, reshard] = group
    return groups[axis, reshard]


def managed_modules(roots: Sequence[Module]) -> list[Module]:
    """The modules whose own parameters form a unit: all below, but for those sharded already."""
    found: list[Module] = []

    def visit(module: Module) -> None:
        if state_of(module) is not None or module in found:
            return
        for child in module.children():
            visit(child)
        found.append(module)

    for root in roots:
        visit(root)
    # parameters are taken in the order of `parameters()`, not of this walk
    return [m for root in roots for m in root.modules() if m in found]


def managed_parameters(roots: Sequence[Module], ignored: set[Parameter]) -> Places:
    """Parameters of a unit by identity, with all places that hold them and a name for messages.

    Raises:
        ValueError: one that another unit has (shared across units), of 0 dims, or not initialised.
    """
    skipped = {id(p) for p in ignored}
    found: Places = {}
    managed = dict.fromkeys(managed_modules(roots))
    paths = {m: name for root in roots for name, m in root.named_modules()}
    for module in managed:
        for name, param in module._parameters.items():
            if param is None or id(param) in skipped:
                continue
            path = f"{paths.get(module, '')}.{name}".lstrip(".")
            _check(path, param)
            found.setdefault(id(param), (param, [], path))[1].append((module, name))
    return found


def _check(path: str, param: Any) -> None:
    if isinstance(param, DTensor):
        raise NotImplementedError(
            f"parameter {path!r} is a DTensor already; fully_shard of tensor parallel parameters is "
            "not built"
        )
    if param.ndim == 0:
        raise ValueError(
            f"fully_shard doesn't support scalar parameters. Change {path} to a 1D tensor with numel "
            "equal to 1."
        )
    if "_replaced_by" in param.__dict__:
        raise ValueError(
            f"Parameter '{path}' is shared with a parameter already managed by another FSDP group. "
            "For shared/tied parameters, use fully_shard([module_a, module_b]) to place them in the "
            "same FSDP group."
        )


__all__ = ["data_parallel_axes", "default_mesh", "managed_parameters", "reshard_mode"]
