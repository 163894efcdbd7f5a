"""DistributedDataParallel: every rank holds the whole model and a part of the batch."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

from ..autograd import is_grad_enabled
from ..autograd.graph import bump_version
from ..nn import Module
from ..tensor import Tensor
from .buckets import MIB, Bucket, assign
from .process_group import ProcessGroup, default_group, resolve
from .reducer import Reducer

DEFAULT_CAP_MB = 25


class DistributedDataParallel(Module):
    """Makes ranks that train on different data keep the same weights.

    Parameters and buffers are copied from rank 0 at construction. In every backward gradients are
    averaged over the ranks, in buckets, while backward goes on; after `backward()` has returned
    `.grad` holds the mean, on every rank the same bits. With a loss that is a mean over the
    samples and equal batches on all ranks, that is the gradient of the whole batch.

    Every backward is reduced, also a second one through the same forward. Only `no_sync` turns
    that off.

    Args:
        module: the model; must have a parameter that requires grad. Parameters that do not are
            left alone. Do not add, freeze or unfreeze parameters afterwards.
        device_ids, output_device: the GPU of the module, for modules on GPUs only; not built.
        dim: of the batch, as PyTorch; nothing is cut here, so it has no effect.
        broadcast_buffers: copy rank 0's buffers to all ranks before each training forward.
        init_sync: verify and copy parameters at construction.
        process_group: the ranks; None: all.
        bucket_cap_mb: limit of a bucket in MiB, default 25; the first one has at most 1 MiB.
        find_unused_parameters: allow a rank's backward to leave parameters out; it counts as a
            zero gradient there. A parameter that no rank used keeps its `.grad` as it was.
        check_reduction: ignored; PyTorch deprecated it.
        gradient_as_bucket_view: make each `.grad` a view of its bucket: saves a copy and memory.
            What the view shows is overwritten by the next backward.
        static_graph: the set of parameters used on a rank never changes: unused ones are found in
            the first backward.

    Attributes:
        module: the wrapped model; its keys in `state_dict()` begin with "module.".
        record_events: whether `last_events` is kept.

    Raises:
        RuntimeError: no parameter requires grad; a rank's model differs from rank 0's. In
            backward: parameters without gradient that `find_unused_parameters` does not allow. In
            forward: a parameter that was frozen at construction requires grad now; the previous
            backward was left by an exception.
        ValueError: no default group; `device_ids` for a module on the CPU; this rank is not in
            `process_group`.
    """

    def __init__(
        self,
        module: Module,
        device_ids: Sequence[Any] | None = None,
        output_device: Any = None,
        dim: int = 0,
        broadcast_buffers: bool = True,
        init_sync: bool = True,
        process_group: ProcessGroup | None = None,
        bucket_cap_mb: float | None = None,
        find_unused_parameters: bool = False,
        check_reduction: bool = False,
        gradient_as_bucket_view: bool = False,
        static_graph: bool = False,
    ) -> None:
        super().__init__()
        named = list(module.named_parameters())
        trained = [(name, p) for name, p in named if p.requires_grad]
        if not trained:
            raise RuntimeError(
                "DistributedDataParallel is not needed when a module doesn't have any parameters "
                "that require a gradient."
            )
        _check_devices(device_ids, output_device, [p for _, p in named])
        self.module = module
        self.process_group = _resolve_group(process_group)
        self.device_ids, self.output_device, self.dim = None, None, dim
        self.broadcast_buffers = broadcast_buffers
        self.find_unused_parameters = find_unused_parameters
        self.gradient_as_bucket_view = gradient_as_bucket_view
        self.static_graph = static_graph
        self.bucket_bytes_cap = int(
            (DEFAULT_CAP_MB if bucket_cap_mb is None else bucket_cap_mb) * MIB
        )
        self.require_backward_grad_sync = True
        self._reduce_next_backward = True
        self._frozen = [(name, p) for name, p in named if not p.requires_grad]
        if init_sync:
            state = named + list(module.named_buffers())
            _verify_same_model(state, self.process_group)
            broadcast_tensors([t for _, t in state], self.process_group)
        self.reducer = Reducer(
            [name for name, _ in trained],
            [p for _, p in trained],
            self.process_group,
            self.bucket_bytes_cap,
            find_unused_parameters,
            gradient_as_bucket_view,
            static_graph,
        )
        # The parameters outlive the wrapper if the model is wrapped again: hold it weakly, or two
        # wrappers would reduce the same gradients.
        me = weakref.ref(self)
        for i, (_, p) in enumerate(trained):
            p.register_post_accumulate_grad_hook(_hook(me, i))

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """Run the module on this rank's inputs."""
        if is_grad_enabled():
            self._before_training_forward()
        return self.module(*inputs, **kwargs)

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """Do not reduce gradients of forwards made inside: they accumulate on each rank.

        The next backward outside reduces what has accumulated. As in PyTorch the forward pass
        decides, and the last one at that: put it inside together with its backward.
        """
        before = self.require_backward_grad_sync
        self.require_backward_grad_sync = False
        try:
            yield
        finally:
            self.require_backward_grad_sync = before

    @property
    def record_events(self) -> bool:
        """Whether `last_events` is kept; off by default."""
        return self.reducer.events is not None

    @record_events.setter
    def record_events(self, value: bool) -> None:
        self.reducer.events = [] if value else None

    @property
    def last_events(self) -> list[tuple]:
        """What happened in the last reduced backward, in order; see `Reducer.events`."""
        return list(self.reducer.events or [])

    def _before_training_forward(self) -> None:
        self.reducer.check_in_step()
        for name, p in self._frozen:
            if p.requires_grad:
                raise RuntimeError(
                    f"parameter {name!r} was frozen when the module was wrapped and requires grad "
                    "now: its gradient would not be reduced; wrap the module again"
                )
        self._reduce_next_backward = self.require_backward_grad_sync
        if self.broadcast_buffers and self.training and self.require_backward_grad_sync:
            buffers = list(self.module.buffers())
            if buffers:
                broadcast_tensors(buffers, self.process_group)


def _hook(wrapper: weakref.ref[DistributedDataParallel], i: int) -> Any:
    def hook(parameter: Tensor) -> None:
        ddp = wrapper()
        if ddp is not None and ddp._reduce_next_backward:
            ddp.reducer.gradient_ready(i)

    return hook


def _resolve_group(chosen: ProcessGroup | None) -> ProcessGroup:
    default_group()
    group = resolve(chosen)
    if group is None:
        raise ValueError("DistributedDataParallel: this rank is not in process_group")
    return group


def _check_devices(device_ids: Any, output_device: Any, parameters: Sequence[Tensor]) -> None:
    if not device_ids and output_device is None:
        return
    devices = sorted({str(p.device) for p in parameters})
    if any(device.startswith("cuda") for device in devices):
        raise NotImplementedError(
            "DistributedDataParallel: device_ids is not built; move the module and its inputs to "
            "the device and leave device_ids away"
        )
    raise ValueError(
        "DistributedDataParallel device_ids and output_device arguments only work with modules on "
        f"GPUs, but got device_ids {device_ids}, output_device {output_device}, and module "
        f"parameters on {devices}: leave them away"
    )


def _verify_same_model(named: Sequence[tuple[str, Tensor]], group: ProcessGroup) -> None:
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


def broadcast_tensors(tensors: Sequence[Tensor], group: ProcessGroup) -> None:
    """Replace tensors by those of the group's rank 0, many small ones in one message.

    Args:
        tensors: of the same shapes and dtypes on every rank; changed in place.
    """
    if group.size() == 1:
        return
    for members in assign(range(len(tensors)), tensors, DEFAULT_CAP_MB * MIB, DEFAULT_CAP_MB * MIB):
        if len(members) == 1:
            group.ranks.broadcast(tensors[members[0]]._data, 0)
        else:
            together = Bucket(members, tensors)
            if group.rank() == 0:
                for i, view in zip(members, together.views):
                    view[...] = tensors[i]._data
            group.ranks.broadcast(together.flat, 0)
            if group.rank() != 0:
                for i, view in zip(members, together.views):
                    tensors[i]._data[...] = view
        if group.rank() != 0:
            for i in members:
                bump_version(tensors[i])
