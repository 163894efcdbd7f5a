"""fully_shard: parameters, gradients and optimizer state cut over the ranks (ZeRO-2 and 3, HSDP).

    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    optimizer = AdamW(model.parameters())      # of DTensors: its state is cut too

(Rajbhandari et al., "ZeRO", SC 2020; Zhao et al., "PyTorch FSDP", VLDB 2023.)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

from ...nn import Module, Parameter
from ..device_mesh import DeviceMesh
from ..tensor.placement_types import Placement, Replicate, Shard
from . import _setup
from ._param import ShardedParam
from ._policies import (
    CPUOffloadPolicy,
    DataParallelMeshDims,
    MixedPrecisionPolicy,
    OffloadPolicy,
)
from ._state import State, state_of
from ._unit import Unit
from .module import FSDPModule

_classes: dict[type, type] = {}


def fully_shard(
    module: Any,
    *,
    mesh: DeviceMesh | None = None,
    reshard_after_forward: bool | int | None = None,
    shard_placement_fn: Callable[[Parameter], Shard | None] | None = None,
    mp_policy: MixedPrecisionPolicy = MixedPrecisionPolicy(),
    offload_policy: OffloadPolicy = OffloadPolicy(),
    ignored_params: set[Parameter] | None = None,
    dp_mesh_dims: DataParallelMeshDims | None = None,
) -> Any:
    """Cut a module's parameters over ranks, as one unit, in place.

    Its parameters become DTensors, cut along dim 0 (parts differ by size where it does not divide;
    some may be empty). Before forward one all_gather makes them whole; before backward another,
    unless they were kept; then one reduce_scatter leaves each rank the mean of its part of the
    gradients. Parameters of submodules that were given to `fully_shard` before are theirs: call it
    from the inside outwards. Values come from each rank's own parameters: start all ranks alike, or
    load a checkpoint. Every rank must run the same units in the same order.

    Args:
        module: the module, or a list of modules that form one unit.
        mesh: of one axis: shards; of two: replicas × shards (HSDP). None: all ranks.
        reshard_after_forward: True frees the whole parameters after forward (ZeRO-3); False keeps
            them until backward (ZeRO-2); a number of ranks shards them over that many until then.
            None: True, but False for the root.
        shard_placement_fn: gives for a parameter the `Shard(dim)` it is cut along; None: dim 0.
        mp_policy: precisions. offload_policy: where shards are kept.
        ignored_params: parameters to leave alone; their gradients are not reduced.
        dp_mesh_dims: which axes shard and replicate, by name.

    Returns:
        `module`, whose class is now `FSDP<class>` with the methods of `FSDPModule`.

    Raises:
        ValueError: a mesh of more than two axes; a scalar parameter; one that another unit has; a
            container without forward; a module that is sharded already.
        NotImplementedError: parameters that are DTensors.
    """
    modules = list(module) if isinstance(module, (list, tuple)) else [module]
    _check_modules(modules)
    apply_to(
        modules, mesh, reshard_after_forward, shard_placement_fn, mp_policy, offload_policy,
        ignored_params, dp_mesh_dims,
    )  # fmt: skip
    return module


def apply_to(
    modules: list[Module],
    mesh: DeviceMesh | None,
    reshard_after_forward: bool | int | None,
    shard_placement_fn: Callable[[Parameter], Shard | None] | None,
    mp_policy: MixedPrecisionPolicy,
    offload_policy: OffloadPolicy,
    ignored_params: set[Parameter] | None,
    dp_mesh_dims: DataParallelMeshDims | None,
) -> None:
    """Make modules one unit; arguments as of `fully_shard`."""
    mesh = mesh or _setup.default_mesh(modules)
    shard_axis, replicate_axis = _setup.data_parallel_axes(mesh, dp_mesh_dims)
    automatic = reshard_after_forward is None
    reshard = _setup.reshard_mode(
        True if reshard_after_forward is None else reshard_after_forward, mesh, shard_axis
    )
    found = _setup.managed_parameters(modules, ignored_params or set())
    keep_on_host = isinstance(offload_policy, CPUOffloadPolicy) and mesh.device_type != "cpu"
    device = None if mesh.device_type == "cpu" else mesh.device_type
    params = []
    for param, places, name in found.values():
        if device is not None and param.device.type != device and not param.is_meta:
            param.data = param.data.to(device)
        placements: list[Placement] = [Replicate() for _ in range(mesh.ndim)]
        if shard_axis is not None:
            placements[shard_axis] = _placement(shard_placement_fn, param, name)
        made = ShardedParam(
            param, places, name, mesh, tuple(placements), shard_axis, mp_policy.param_dtype,
            keep_on_host,
        )
        made.show(made.sharded)
        params.append(made)
    if device is not None:
        _move_buffers(modules, device)
    unit = None
    if params:
        unit = Unit(params, mesh, shard_axis, replicate_axis, reshard, mp_policy, keep_on_host)
    state = State(modules, unit, mp_policy, automatic, device)
    for each in modules:
        each.__dict__["_fsdp_state"] = state
        each.__class__ = _sharded_class(type(each))


def _check_modules(modules: list[Any]) -> None:
    from ...nn import ModuleDict, ModuleList

    if not modules:
        raise ValueError("fully_shard needs at least one module")
    for module in modules:
        if not isinstance(module, Module):
            raise ValueError(f"fully_shard expects an nn.Module, got {type(module).__name__}")
        if isinstance(module, (ModuleList, ModuleDict)):
            raise ValueError(
                f"fully_shard does not support containers that do not implement forward: {module}"
            )
        if state_of(module) is not None:
            raise ValueError(f"fully_shard was applied to this {type(module).__name__} before")


def _placement(choose: Any, param: Parameter, name: str) -> Shard:
    chosen = choose(param) if choose is not None else None
    if chosen is None:
        return Shard(0)
    if not isinstance(chosen, Shard):
        raise NotImplementedError(
            f"shard_placement_fn returned {chosen!r} for {name!r}; built are Shard(dim) and None"
        )
    dim = chosen.dim + param.ndim if chosen.dim < 0 else chosen.dim
    if not 0 <= dim < param.ndim:
        raise ValueError(f"shard_placement_fn: {chosen!r} for {name!r} of {param.ndim} dims")
    return Shard(dim)


def _move_buffers(modules: Iterable[Module], device: Any) -> None:
    for module in _setup.managed_modules(list(modules)):
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.device.type != device:
                module._buffers[name] = buffer.to(device)


def _sharded_class(cls: type) -> type:
    made = _classes.get(cls)
    if made is None:
        body = {"__module__": cls.__module__, "__deepcopy__": _no_deepcopy}
        made = _classes[cls] = type(f"FSDP{cls.__name__}", (FSDPModule, cls), body)
    return made


def _no_deepcopy(self: Any, memo: Any) -> Any:
    raise AssertionError("FSDP does not support deepcopy. Please use state dict for serialization.")


def register_fsdp_forward_method(module: Module, method_name: str) -> None:
    """Gather before a method of an FSDP module, and free after it, as for its forward.

    Does nothing for other modules.

    Raises:
        ValueError: the module has no such method.
    """
    if not isinstance(module, FSDPModule):
        return
    if not hasattr(module, method_name):
        raise ValueError(f"{type(module)} does not have a method {method_name}")
    method = getattr(module, method_name)

    @functools.wraps(method)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        state = module._get_fsdp_state()
        args, kwargs = state.pre_forward(module, args, kwargs)
        return state.post_forward(module, args, method(*args, **kwargs))

    object.__setattr__(module, method_name, wrapped)


def share_comm_ctx(modules: list[FSDPModule]) -> None:
    """Accepted: there is one communication thread for each group, which roots share anyway."""
    for module in modules:
        if not isinstance(module, FSDPModule):
            raise ValueError(f"Expects list of FSDPModules but got {module}")


__all__ = ["fully_shard", "register_fsdp_forward_method", "share_comm_ctx"]
