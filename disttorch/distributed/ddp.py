"""DistributedDataParallel: every rank holds the whole model and a part of the batch."""

from __future__ import annotations

import contextlib
import enum
import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..autograd import is_grad_enabled, no_grad
from ..nn import Module
from ..tensor import Tensor
from . import ddp_setup as setup
from .algorithms.join import Join, Joinable
from .auditing import Auditor
from .buckets import BuiltinCommHookType
from .ddp_delay import DelayedGradients
from .ddp_extras import Extras
from .ddp_guard import Guard, drop_orphans, gradient_hook
from .ddp_join import DDPJoinHook, agree_to_reduce, common_rank
from .ddp_setup import broadcast_tensors
from .ddp_weight import weighted_scale
from .process_group import ProcessGroup
from .reducer import Reducer


class _BufferCommHookLocation(enum.Enum):
    """When a buffers' hook runs."""

    PRE_FORWARD = enum.auto()
    POST_FORWARD = enum.auto()


class DistributedDataParallel(Extras, Module, Joinable):
    """Makes ranks that train on different data keep the same weights.

    Parameters and buffers are copied from rank 0 at construction. In every backward gradients are
    averaged over the ranks, in buckets, while backward goes on; after `backward()` has returned
    `.grad` holds the mean, on every rank the same bits. With a loss that is a mean over the
    samples and equal batches on all ranks, that is the gradient of the whole batch; `weighted`
    makes it so for unequal ones.

    Every backward is reduced, also a second one through the same forward, and one through a direct
    call of the module inside. Only `no_sync` turns that off.

    Args:
        module: the model; must have a parameter that requires grad. Parameters that do not are
            left alone. Do not add, freeze or unfreeze parameters afterwards.
        device_ids: None, or the one GPU that the module is on: inputs are moved there.
        output_device: the same one.
        dim: of the batch, as PyTorch; nothing is cut here, so it has no effect.
        broadcast_buffers: deprecated by PyTorch for `forward_sync_buffers`; False also leaves the
            buffers alone at construction.
        init_sync: verify and copy parameters and buffers at construction.
        process_group: the ranks; None: all.
        bucket_cap_mb: limit of a bucket in MiB; None: 25, and 1 for the first one.
        find_unused_parameters: allow a rank's backward to leave parameters out; it counts as a
            zero gradient there. A parameter that no rank used keeps its `.grad` as it was.
        check_reduction: ignored; PyTorch deprecated it.
        gradient_as_bucket_view: make each `.grad` a view of its bucket: saves a copy and memory.
            What the view shows is overwritten by the next backward.
        static_graph: the parameters used on a rank, and how often each, never change: the first
            backward finds out, and is reduced at its end. Allows reentrant checkpoints of any kind.
        delay_all_reduce_named_params, param_to_hook_all_reduce: (name, parameter) pairs that are
            reduced together, when the gradient of the second argument is there.
        mixed_precision: not built; use autocast with `bf16_compress_hook`.
        device_mesh: the ranks, as a mesh of one dim, in the place of `process_group`.
        skip_all_reduce_unused_params: with `find_unused_parameters`, do not reduce buckets that no
            rank uses; the unused parameters must be the same on all ranks.
        bucket_cap_mb_list: limits in MiB of the first bucket, the second, …; the last one goes on.
        batched_grad_copy: accepted; concerns GPU kernels of PyTorch's.
        forward_sync_buffers: copy rank 0's buffers to all ranks before each training forward;
            None: yes.
        audit_every: compare the parameters' bits across ranks before each so-many-th training
            forward, and raise on all ranks where they have drifted (`dist.audit`).
        unreduced: what an optimizer step with gradients that were never averaged gives: "raise",
            "warn" or "ignore"; None: an error, but one warning where all of them were accumulated
            inside `no_sync()`, as scripts do that average parameters themselves.

    Attributes:
        module: the wrapped model; its keys in `state_dict()` begin with "module.".
        record_events: whether `last_events` is kept.

    Raises:
        RuntimeError: no parameter requires grad; a rank's model differs from rank 0's. In
            backward: parameters without gradient that `find_unused_parameters` does not allow. In
            forward: a parameter that was frozen at construction requires grad now; the previous
            backward was left by an exception; an audit found ranks that differ.
        ValueError: no default group; devices that are not the module's; this rank is not in
            `process_group`.
        NotImplementedError: `mixed_precision`.
    """

    def __init__(
        self,
        module: Module,
        device_ids: Sequence[Any] | None = None,
        output_device: Any = None,
        dim: int = 0,
        broadcast_buffers: bool | None = None,
        init_sync: bool = True,
        process_group: ProcessGroup | None = None,
        bucket_cap_mb: float | None = None,
        find_unused_parameters: bool = False,
        check_reduction: bool = False,
        gradient_as_bucket_view: bool = False,
        static_graph: bool = False,
        delay_all_reduce_named_params: Sequence[tuple[str, Tensor]] | None = None,
        param_to_hook_all_reduce: Tensor | None = None,
        mixed_precision: Any = None,
        device_mesh: Any = None,
        skip_all_reduce_unused_params: bool = False,
        bucket_cap_mb_list: Sequence[float] | None = None,
        batched_grad_copy: bool = False,
        forward_sync_buffers: bool | None = None,
        *,
        audit_every: int | None = None,
        unreduced: str | None = None,
    ) -> None:
        super().__init__()
        Joinable.__init__(self)
        if (delay_all_reduce_named_params is None) != (param_to_hook_all_reduce is None):
            raise ValueError(
                "delay_all_reduce_named_params and param_to_hook_all_reduce need to be set at the "
                "same time."
            )
        if mixed_precision is not None:
            raise NotImplementedError(
                "DistributedDataParallel(mixed_precision=...) is not built: run forward under "
                "torch.autocast and register bf16_compress_hook to reduce in 16 bits"
            )
        self.process_group = setup.group_of(process_group, device_mesh)
        delayed = list(delay_all_reduce_named_params or ())
        self.parameters_to_ignore = set(getattr(module, "_ddp_params_and_buffers_to_ignore", ()))
        self.parameters_to_ignore.update(name for name, _ in delayed)
        named = self._own(module.named_parameters())
        setup.check_trainable(named, bool(delayed))
        everything = [p for _, p in named] or [p for _, p in delayed]
        self.device_ids, self.output_device = setup.choose_device(
            device_ids, output_device, everything
        )
        if check_reduction:
            warnings.warn(
                "The `check_reduction` argument in `DistributedDataParallel` module is deprecated. "
                "Please avoid using it.",
                FutureWarning,
                stacklevel=2,
            )
        self.forward_sync_buffers, init_buffers = setup.sync_buffers_choice(
            broadcast_buffers, forward_sync_buffers
        )
        self.module, self.dim = module, dim
        self.device = everything[0].device
        self.device_type = self.device.type
        self.is_multi_device_module = len({str(p.device) for p in everything}) > 1
        self.find_unused_parameters = find_unused_parameters
        self.gradient_as_bucket_view = gradient_as_bucket_view
        self.batched_grad_copy = batched_grad_copy
        self.skip_all_reduce_unused_params = skip_all_reduce_unused_params
        self.static_graph, self.mixed_precision = static_graph, None
        self.bucket_caps = setup.bucket_caps(bucket_cap_mb, bucket_cap_mb_list)
        self.bucket_bytes_cap = max(self.bucket_caps)
        self.require_backward_grad_sync = True
        self._reduce_next_backward = True
        self._weighted = self._joined_once = False
        self._divide_by_initial_world_size = True
        self._hook_name = ""
        self.buffer_hook: tuple | None = None
        self.unreduced = unreduced
        if init_sync:
            buffers = self._own(module.named_buffers()) if init_buffers else []
            setup.verify_same_model(named + buffers, self.process_group)
            broadcast_tensors([t for _, t in named + buffers], self.process_group)
        self._delayed = None
        if param_to_hook_all_reduce is not None:
            self._delayed = DelayedGradients(self, [p for _, p in delayed], param_to_hook_all_reduce)
        self._auditor = None
        if audit_every is not None:
            self._auditor = Auditor(
                module, audit_every, self.process_group, tuple(self.parameters_to_ignore)
            )
        self._start_reducer()

    def _own(self, named: Any) -> list[tuple[str, Tensor]]:
        return [(name, t) for name, t in named if name not in self.parameters_to_ignore]

    def _start_reducer(self) -> None:
        named = self._own(self.module.named_parameters())
        self._frozen = [(name, p) for name, p in named if not p.requires_grad]
        trained = [(name, p) for name, p in named if p.requires_grad]
        self.reducer = Reducer(
            [name for name, _ in trained],
            [p for _, p in trained],
            self.process_group,
            self.bucket_caps,
            self.find_unused_parameters,
            self.gradient_as_bucket_view,
            self.static_graph,
            self.skip_all_reduce_unused_params,
        )
        self._first_bucket_sizes = [bucket.flat.nbytes for bucket in self.reducer.buckets]
        self._guard = Guard(self.reducer, type(self.module).__name__, self.unreduced)
        self._hook_handles = []
        for i, (name, p) in enumerate(trained):
            drop_orphans(p)
            hook = gradient_hook(self, i, name)
            self._hook_handles.append(p.register_post_accumulate_grad_hook(hook))

    # ---- forward ---------------------------------------------------------------------------------

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """Run the module on this rank's inputs."""
        training = is_grad_enabled()
        if training:
            self.reducer.clock.forward_began()
            self._check_before_forward()
        joining = self._join_config.enable
        if joining:
            self._announce()
        else:
            self._stop_joining()
        if not joining and training and self._auditor is not None and self.require_backward_grad_sync:
            self._auditor.forward()
        syncs = self.require_backward_grad_sync and (training or joining) and self._copies_buffers()
        late = self.buffer_hook is not None and self.buffer_hook[2]
        if syncs and not late:
            self._sync_buffers()
        if self.device_ids:
            inputs, kwargs = setup.to_device((inputs, kwargs), self.device_ids[0])
        out = self.module(*inputs, **kwargs)
        if syncs and late:
            self._sync_buffers()
        if self._delayed is not None:
            self._delayed.prepare()
        if training:
            self.reducer.clock.forward_ended()
        return out

    def _check_before_forward(self) -> None:
        self.reducer.check_in_step()
        for name, p in self._frozen:
            if p.requires_grad:
                raise RuntimeError(
                    f"parameter {name!r} was frozen when the module was wrapped and requires grad "
                    "now: its gradient would not be reduced; wrap the module again"
                )
        self._reduce_next_backward = self.require_backward_grad_sync

    def _announce(self) -> None:
        """Tell ranks without input that an iteration begins and whether it is reduced."""
        work = Join.notify_join_context(self)
        self.reducer.joining = True
        if not self._divide_by_initial_world_size:
            if work is None:
                raise RuntimeError(
                    "divide_by_initial_world_size=False: the number of ranks with input is known "
                    "to the first of Join([...]) only; name the DistributedDataParallel first"
                )
            n = self.process_group.size()
            self.reducer.scale = lambda: n / float(work.result()[0]) if work.wait() else 1.0
        agree_to_reduce(self.process_group, self.require_backward_grad_sync)

    def _stop_joining(self) -> None:
        """After `join`, however it was left."""
        if self.reducer.joining:
            self.reducer.joining, self.reducer.scale = False, None

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

    @contextlib.contextmanager
    def weighted(self, count: float, loss: str = "mean") -> Iterator[None]:
        """Weigh the ranks by their numbers of samples or tokens in backwards made inside.

            with ddp.weighted(len(x)):
                loss.backward()

        After it `.grad` is that of the mean over the samples of all ranks, however unequal. Costs
        one call of 8 bytes. All ranks must use it, also those with the usual number.

        Args:
            count: this rank's number, at least 0. A rank with 0 must run backward all the same; its
                gradients count as zero, whatever they are.
            loss: "mean" if the loss is a mean over `count` samples; "sum" if it is their sum. To
                accumulate gradients over several backwards use sums, and here, around the last one,
                `count` of all of them.

        Raises:
            RuntimeError: inside `join`; a backward in `no_sync`. In backward: all counts are zero.
            ValueError: a negative count; another `loss`.
        """
        if self._join_config.enable:
            raise RuntimeError(
                "DistributedDataParallel.weighted inside join: ranks without input could not take "
                "part; leave join away and run them with count 0 instead"
            )
        self._stop_joining()
        self.reducer.scale = weighted_scale(self.process_group, count, loss)
        self._weighted = True
        try:
            yield
        finally:
            self.reducer.scale, self._weighted = None, False

    def _gradient_stays(self, i: int) -> None:
        if self._weighted:
            raise RuntimeError(
                "DistributedDataParallel.weighted around a backward of no_sync(), which averages "
                'nothing: accumulate sums there, and use weighted(count, loss="sum") around the '
                "last backward only"
            )
        if not self.reducer.local:
            self._guard.on_purpose = True
        if self.require_backward_grad_sync:  # this backward is not inside `no_sync()`
            self._guard.on_purpose = False
        self.reducer.gradient_stays(i)

    # ---- buffers ---------------------------------------------------------------------------------

    @property
    def broadcast_buffers(self) -> bool:
        """PyTorch's former name of `forward_sync_buffers`."""
        return self.forward_sync_buffers

    @broadcast_buffers.setter
    def broadcast_buffers(self, value: bool) -> None:
        self.forward_sync_buffers = value

    @property
    def named_module_buffers(self) -> dict[str, Tensor]:
        """The module's present buffers by name, without those ignored."""
        return dict(self._own(self.module.named_buffers()))

    def _copies_buffers(self) -> bool:
        return self.forward_sync_buffers and self.training and bool(self.named_module_buffers)

    def _sync_buffers(self, candidate: bool = True) -> None:
        root = common_rank(self.process_group, candidate) if self.reducer.joining else 0
        if self.buffer_hook is None:
            broadcast_tensors(list(self.named_module_buffers.values()), self.process_group, root)
            return
        hook, state, _ = self.buffer_hook
        with no_grad():
            futures = hook(state, self.named_module_buffers)
        if futures is not None:
            self.reducer.futures += futures if isinstance(futures, list) else [futures]

    def _register_buffer_comm_hook(
        self,
        state: Any,
        hook: Callable,
        comm_hook_location: _BufferCommHookLocation = _BufferCommHookLocation.POST_FORWARD,
    ) -> None:
        """Have `hook(state, {name: buffer})` bring the ranks' buffers together, before or after
        each training forward, in the place of the copy of rank 0's.

        It may return a Future or a list of them, which are waited for at the end of backward.
        """
        if not callable(hook):
            raise AssertionError(f"hook must be callable, got {type(hook).__name__}")
        self.buffer_hook = (hook, state, comm_hook_location is _BufferCommHookLocation.POST_FORWARD)

    # ---- communication hooks -----------------------------------------------------------------------

    def register_comm_hook(self, state: Any, hook: Callable) -> None:
        """Have `hook(state, bucket: GradBucket)` reduce each bucket, in the place of the mean.

        Called when the bucket is full, in backward, in the same order on all ranks. The gradients
        are not divided by the number of ranks.

        Args:
            state: passed to the hook.
            hook: returns a `torch.futures.Future` of the bucket's new flat tensor.

        Raises:
            TypeError: not callable.
            ValueError: annotated for something else than a GradBucket and its Future.
            RuntimeError: there is one already.
        """
        setup.check_comm_hook(hook)
        self._take_hook(getattr(hook, "__qualname__", type(hook).__name__))
        self.reducer.use_hook(functools.partial(hook, state))

    def _register_builtin_comm_hook(self, comm_hook_type: BuiltinCommHookType) -> None:
        """Register one of the hooks that PyTorch has in C++, by name."""
        from .algorithms.ddp_comm_hooks import default_hooks

        self._take_hook(f"builtin_{comm_hook_type.name.lower()}")
        if comm_hook_type is BuiltinCommHookType.FP16_COMPRESS:
            hook = functools.partial(default_hooks.fp16_compress_hook, self.process_group)
            self.reducer.use_hook(hook)

    def _take_hook(self, name: str) -> None:
        if self._hook_name:
            raise RuntimeError(
                "register_comm_hook or register_builtin_comm_hook can only be called once; "
                f"{self._hook_name} is registered"
            )
        self._hook_name = name

    # ---- ranks without input ---------------------------------------------------------------------

    def join(
        self,
        divide_by_initial_world_size: bool = True,
        enable: bool = True,
        throw_on_early_termination: bool = False,
    ) -> Join:
        """Context around a training loop whose ranks have different numbers of inputs.

        Ranks without input contribute zero gradients until all are through; then all get the model
        of one that was the last.

        Args:
            divide_by_initial_world_size: divide by the number of all ranks, so that every sample
                weighs the same; False: by that of the ranks with input.
            enable: False: do nothing.
            throw_on_early_termination: raise RuntimeError on all ranks once one has no input. Use
                it where the loop has other calls, as those of SyncBatchNorm.
        """
        return Join(
            [self],
            enable,
            throw_on_early_termination,
            divide_by_initial_world_size=divide_by_initial_world_size,
        )

    def join_hook(self, **kwargs: Any) -> DDPJoinHook:
        """The shadow of this wrapper's calls; takes `divide_by_initial_world_size`."""
        return DDPJoinHook(self, kwargs.get("divide_by_initial_world_size", True))

    @property
    def join_device(self) -> Any:
        return self.device

    @property
    def join_process_group(self) -> ProcessGroup:
        return self.process_group

    def _copy_model_from(self, root: int) -> None:
        tensors = [p for _, p in self._own(self.module.named_parameters())]
        if self.forward_sync_buffers:
            tensors += self.named_module_buffers.values()
        broadcast_tensors(tensors, self.process_group, root)
