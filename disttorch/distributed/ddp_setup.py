"""What DistributedDataParallel does before training: same model, same values, where it lives."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from typing import Any

from ..autograd.graph import bump_version
from ..nn.parameter import is_lazy
from ..tensor import Tensor
from ..utils._pytree import tree_map
from .buckets import MIB, Bucket, assign
from .process_group import ProcessGroup, default_group, resolve

DEFAULT_CAP_MB = 25


def group_of(chosen: ProcessGroup | None, device_mesh: Any) -> ProcessGroup:
    """The ranks that average, from DistributedDataParallel's two ways to name them.

    Raises:
        RuntimeError: both given; a mesh of several dims.
        ValueError: no default group; this rank is not in the group.
    """
    if device_mesh is not None:
        if chosen is not None:
            raise RuntimeError("Cannot specify both process_group and device_mesh arguments.")
        if device_mesh.ndim != 1:
            raise RuntimeError(f"Only 1D device mesh is supported, but got {device_mesh}.")
        chosen = device_mesh.get_group(mesh_dim=0)
    default_group()
    group = resolve(chosen)
    if group is None:
        raise ValueError("DistributedDataParallel: this rank is not in process_group")
    return group


def check_trainable(named: Sequence[tuple[str, Tensor]], others: bool) -> None:
    for name, p in named:
        if is_lazy(p):
            raise RuntimeError(
                "Modules with uninitialized parameters can't be used with "
                f"`DistributedDataParallel` ({name}). Run a dummy forward pass to correctly "
                "initialize the modules"
            )
    if not others and not any(p.requires_grad for _, p in named):
        raise RuntimeError(
            "DistributedDataParallel is not needed when a module doesn't have any parameter that "
            "requires a gradient."
        )


def check_comm_hook(hook: Any) -> None:
    """Raise TypeError or ValueError for what cannot be a communication hook."""
    if not callable(hook):
        raise TypeError("Communication hook must be callable.")
    signature = inspect.signature(hook)
    bucket = signature.parameters.get("bucket")
    if bucket is not None and bucket.annotation is not inspect.Parameter.empty:
        if "GradBucket" not in str(bucket.annotation):
            raise ValueError("Communication hook: bucket annotation should be dist.GradBucket.")
    returns = signature.return_annotation
    if returns is not inspect.Signature.empty and "Future" not in str(returns):
        raise ValueError(
            "Communication hook: return annotation should be torch.futures.Future[torch.Tensor]."
        )


def bucket_caps(cap_mb: float | None, each_mb: Sequence[float] | None) -> list[int]:
    """Limits in bytes of the first bucket, the second, …; the last one holds for the rest."""
    if each_mb:
        return [int(mb * MIB) for mb in each_mb]
    if cap_mb is None:  # a small first one, so that reduction starts early
        return [MIB, DEFAULT_CAP_MB * MIB]
    return [int(cap_mb * MIB)]


def sync_buffers_choice(broadcast: bool | None, forward_sync: bool | None) -> tuple[bool, bool]:
    """(whether each forward copies buffers, whether construction does); warns as PyTorch does."""
    if broadcast is not None:
        text = (
            "Both `broadcast_buffers` and `forward_sync_buffers` were specified. The former is "
            "deprecated and its value is ignored."
            if forward_sync is not None
            else "`broadcast_buffers` is deprecated. Use `forward_sync_buffers` instead, which, "
            "unlike it, leaves the copy of the buffers at construction alone."
        )
        warnings.warn(text, FutureWarning, stacklevel=3)
    if forward_sync is not None:
        return forward_sync, True
    return (True, True) if broadcast is None else (broadcast, broadcast)


def choose_device(
    device_ids: Sequence[Any] | None, output_device: Any, parameters: Sequence[Tensor]
) -> tuple[list[int] | None, int | None]:
    """Checked (device_ids, output_device): of one GPU, or None for where the module is.

    Raises:
        ValueError: more than one device; devices for a module on the CPU, on several GPUs, or on
            another GPU.
    """
    if device_ids is not None and len(device_ids) > 1:
        raise ValueError("device_ids can only be None or contain a single element.")
    kinds = {p.device.type for p in parameters}
    if len(kinds) > 1:
        raise ValueError(
            "DistributedDataParallel's input module must be on the same type of devices, but input "
            f"module parameters locate in {kinds}."
        )
    devices = sorted({str(p.device) for p in parameters})
    if not device_ids and output_device is None:
        return None, None
    if not device_ids or kinds == {"cpu"} or len(devices) > 1:
        raise ValueError(
            "DistributedDataParallel device_ids and output_device arguments only work with "
            f"single-device/multiple-device GPU modules or CPU modules, but got device_ids "
            f"{device_ids}, output_device {output_device}, and module parameters {devices}: leave "
            "both away"
        )
    index = _index(device_ids[0])
    if devices != [f"cuda:{index}"]:
        raise ValueError(
            f"DistributedDataParallel: device_ids is [{index}], but the module's parameters are on "
            f"{devices[0]}: move the module to cuda:{index} before wrapping it"
        )
    return [index], index if output_device is None else _index(output_device)


def _index(device: Any) -> int:
    if isinstance(device, int):
        return device
    if isinstance(device, str):
        return int(device.partition(":")[2] or 0)
    return device.index or 0


def to_device(values: Any, index: int) -> Any:
    """Arguments with their tensors on GPU `index`."""
    device = f"cuda:{index}"
    return tree_map(lambda v: v.to(device) if isinstance(v, Tensor) else v, values)


def verify_same_model(named: Sequence[tuple[str, Tensor]], group: ProcessGroup) -> None:
    """Compare names, shapes and dtypes with rank 0's; raise on every rank if any differs."""
    mine = [(name, list(t.shape), t.dtype.name, t.requires_grad) for name, t in named]
    first = group.ranks.broadcast_object(mine, 0)
    verdicts = group.ranks.all_gather_object(_difference(mine, first))
    for rank, verdict in enumerate(verdicts):
        if verdict is not None:
            raise RuntimeError(
                f"DistributedDataParallel: the model on rank {group.members[rank]} differs from "
                f"that on rank {group.members[0]}: {verdict}; build the same model on every rank"
            )


def _difference(mine: list, first: list) -> str | None:
    for (name, shape, dtype, grad), (name_0, shape_0, dtype_0, grad_0) in zip(mine, first):
        if name != name_0:
            return f"{name!r} is in the place of {name_0!r}"
        if shape != shape_0:
            return f"{name!r} has shape {shape}, there {shape_0}"
        if dtype != dtype_0:
            return f"{name!r} is of torch.{dtype}, there of torch.{dtype_0}"
        if grad != grad_0:
            return f"{name!r} has requires_grad={grad}, there {grad_0}"
    if len(mine) != len(first):
        longer, where = (mine, "here") if len(mine) > len(first) else (first, "there")
        return f"{longer[min(len(mine), len(first))][0]!r} exists only {where}"
    return None


def broadcast_tensors(tensors: Sequence[Tensor], group: ProcessGroup, root: int = 0) -> None:
    """Replace tensors by those of one rank, many small ones in one message.

    Args:
        tensors: of the same shapes and dtypes on every rank; changed in place.
        root: the group's rank whose values all get.
    """
    if group.size() == 1:
        return
    sending = group.rank() == root
    for members in assign(range(len(tensors)), tensors, [DEFAULT_CAP_MB * MIB]):
        if len(members) == 1:
            group.ranks.broadcast(tensors[members[0]]._data, root)
        else:
            together = Bucket(members, tensors)
            if sending:
                for i, view in zip(members, together.views):
                    view[...] = tensors[i]._data
            group.ranks.broadcast(together.flat, root)
            if not sending:
                for i, view in zip(members, together.views):
                    tensors[i]._data[...] = view
        if not sending:
            for i in members:
                bump_version(tensors[i])
