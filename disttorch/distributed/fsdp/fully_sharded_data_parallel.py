"""FullyShardedDataParallel: the older wrapper, a thin layer over `fully_shard`.

Parameters are cut one by one as `fully_shard` does it, and keep their names and shapes: there is no
flat parameter, and `use_orig_params` makes no difference.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ... import cuda
from ...autograd import no_grad
from ...backend import devices
from ...nn import Module, ModuleDict, ModuleList, Parameter
from ...nn.utils import clip_grad_norm_
from ...tensor import Tensor, wrap
from ..device_mesh import DeviceMesh, init_device_mesh
from ..process_group import ProcessGroup, default_group, get_world_size
from . import _full_state
from ._fully_shard import apply_to
from ._policies import CPUOffloadPolicy, DataParallelMeshDims, MixedPrecisionPolicy, OffloadPolicy
from ._state import State, state_of
from ._unit import Unit
from .api import (
    BackwardPrefetch,
    CPUOffload,
    FullOptimStateDictConfig,
    FullStateDictConfig,
    MixedPrecision,
    ShardedOptimStateDictConfig,
    ShardedStateDictConfig,
    ShardingStrategy,
    StateDictConfig,
    StateDictSettings,
    StateDictType,
)
from .module import FSDPModule
from .wrap import auto_wrap

_HYBRID = (ShardingStrategy.HYBRID_SHARD, ShardingStrategy._HYBRID_SHARD_ZERO2)
_KEEPS = (ShardingStrategy.SHARD_GRAD_OP, ShardingStrategy._HYBRID_SHARD_ZERO2)


class FlatParameter(Parameter):
    """PyTorch's class of flattened parameters; none is ever made here."""


class FullyShardedDataParallel(Module):
    """Wraps a module as one unit of sharded data parallelism, with others inside it.

    Args:
        module: the module; a GPU's parameters are where the mesh or group computes.
        process_group: the ranks; None: all. Excludes `device_mesh`.
        sharding_strategy: None: FULL_SHARD. The hybrid ones take a mesh of replicas × shards, or
            without one shard over LOCAL_WORLD_SIZE ranks.
        cpu_offload: whether shards are kept in host memory.
        auto_wrap_policy: which submodules are units of their own; see `wrap`.
        backward_prefetch: None: backward gathers nothing ahead.
        mixed_precision: precisions.
        ignored_modules, ignored_states: modules or parameters to leave alone.
        param_init_fn: initialises a module whose parameters are on the meta device; None: its
            `reset_parameters`.
        device_id: a GPU, the current one, that shards and inputs are brought to; None: where the
            module is. Without effect where a mesh is given.
        sync_module_states: take rank 0's parameters and buffers.
        forward_prefetch, limit_all_gathers, use_orig_params: accepted, see above.

    Raises:
        ValueError: both a group and a mesh; both kinds of ignored things; a hybrid strategy whose
            mesh has not two axes; `device_id` is not the current GPU.
        NotImplementedError: `keep_low_precision_grads`; a tuple of groups.
    """

    def __init__(
        self,
        module: Module,
        process_group: Any = None,
        sharding_strategy: ShardingStrategy | None = None,
        cpu_offload: CPUOffload | None = None,
        auto_wrap_policy: Callable | Any = None,
        backward_prefetch: BackwardPrefetch | None = BackwardPrefetch.BACKWARD_PRE,
        mixed_precision: MixedPrecision | None = None,
        ignored_modules: Iterable[Module] | None = None,
        param_init_fn: Callable[[Module], None] | None = None,
        device_id: Any = None,
        sync_module_states: bool = False,
        forward_prefetch: bool = False,
        limit_all_gathers: bool = True,
        use_orig_params: bool = False,
        ignored_states: Iterable[Any] | None = None,
        device_mesh: DeviceMesh | None = None,
    ) -> None:
        super().__init__()
        strategy = sharding_strategy or ShardingStrategy.FULL_SHARD
        modules, params = _ignored(ignored_modules, ignored_states)
        device = _device_type(device_id, module)
        mesh = _mesh_of(process_group, strategy, device_mesh, device)
        if auto_wrap_policy is not None:
            options = {
                "sharding_strategy": strategy, "cpu_offload": cpu_offload,
                "backward_prefetch": backward_prefetch, "mixed_precision": mixed_precision,
                "param_init_fn": param_init_fn, "sync_module_states": sync_module_states,
                "ignored_states": params, "device_mesh": mesh,
            }  # fmt: skip
            auto_wrap(module, auto_wrap_policy, modules, options, FullyShardedDataParallel)
        _materialize(module, param_init_fn, mesh.device_type)
        if sync_module_states:
            _take_rank_0s(module, mesh)
        dims = None
        if strategy is ShardingStrategy.NO_SHARD:
            dims = DataParallelMeshDims(replicate=mesh.mesh_dim_names[0])  # type: ignore[index]
        offload = cpu_offload is not None and cpu_offload.offload_params
        if isinstance(module, (ModuleList, ModuleDict)):
            warnings.warn(
                "FSDP will not all-gather parameters for containers that do not implement forward: "
                f"{module}",
                stacklevel=2,
            )
        precisions = _precisions(mixed_precision, module)
        apply_to(
            [module], mesh, strategy not in _KEEPS, None, precisions,
            CPUOffloadPolicy() if offload else OffloadPolicy(), params, dims,
        )  # fmt: skip
        self._fsdp_wrapped_module = module
        self.sharding_strategy, self.mesh = strategy, mesh
        self.process_group = mesh.get_group(mesh.ndim - 1)
        if backward_prefetch is None:
            self._state.backward_prefetch = []
        self._settings = StateDictSettings(
            StateDictType.FULL_STATE_DICT, FullStateDictConfig(), FullOptimStateDictConfig()
        )
        self._register_state_dict_hook(
            lambda me, found, prefix, _: _full_state.after_state_dict(me._settings, found, prefix)
        )
        self._register_load_state_dict_pre_hook(
            lambda found, prefix, *_: _full_state.before_load(found, prefix)
        )

    @property
    def module(self) -> Module:
        """The wrapped module."""
        return self._fsdp_wrapped_module

    @property
    def _state(self) -> State:
        state = state_of(self._fsdp_wrapped_module)
        assert state is not None
        return state

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "_fsdp_wrapped_module":
                raise
            return getattr(self._fsdp_wrapped_module, name)

    def __getitem__(self, key: int) -> Any:
        return self._fsdp_wrapped_module[key]  # type: ignore[index]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module on this rank's inputs."""
        return self._fsdp_wrapped_module(*args, **kwargs)

    def check_is_root(self) -> bool:
        """Whether this is the outermost unit; known from the first forward on."""
        return self._state.attach().states[0] is self._state

    @staticmethod
    def fsdp_modules(module: Module, root_only: bool = False) -> list[FullyShardedDataParallel]:
        """The wrappers in a module, itself included; or those that are in no other one."""
        found = [m for m in module.modules() if isinstance(m, FullyShardedDataParallel)]
        if root_only:
            inner = {x for m in found for x in m.modules() if x is not m}
            found = [m for m in found if m not in inner]
        return found

    # ---- gradients -----------------------------------------------------------------------------

    def clip_grad_norm_(self, max_norm: float, norm_type: float = 2.0) -> Tensor:
        """Scale all gradients so that their norm over all ranks is at most `max_norm`.

        Returns:
            The norm before, an ordinary tensor, the same on all ranks.
        """
        total = clip_grad_norm_(self.parameters(), max_norm, norm_type)
        return total if total._local_tensor is None else total.full_tensor()  # type: ignore[attr-defined]

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """Inside, gradients accumulate, whole, on each rank, and none is reduced."""
        units = list(_units(self))
        before = [(u.sync, u.all_reduce) for u in units]
        for unit in units:
            unit.sync = unit.all_reduce = False
        try:
            yield
        finally:
            for unit, (sync, all_reduce) in zip(units, before):
                unit.sync, unit.all_reduce = sync, all_reduce

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop or zero all gradients, those of the shards too."""
        module = self._fsdp_wrapped_module
        assert isinstance(module, FSDPModule)
        module.zero_grad(set_to_none)

    def register_comm_hook(self, state: object, hook: Callable) -> None:
        """Not built: raises NotImplementedError."""
        raise NotImplementedError("FullyShardedDataParallel.register_comm_hook is not built")

    # ---- whole parameters ----------------------------------------------------------------------

    @staticmethod
    @contextlib.contextmanager
    def summon_full_params(
        module: Module,
        recurse: bool = True,
        writeback: bool = True,
        rank0_only: bool = False,
        offload_to_cpu: bool = False,
        with_grads: bool = False,
    ) -> Iterator[None]:
        """Inside, modules show whole parameters in their own dtype; not for forward and backward.

        Args:
            recurse: of wrappers inside too. writeback: keep changes that are made to them.
            rank0_only: other ranks keep showing shards; needs `writeback=False`.
            offload_to_cpu: accepted for parameters that are there already, else not built.
            with_grads: show whole gradients too.

        Raises:
            ValueError: rank0_only together with writeback.
            NotImplementedError: offload_to_cpu of parameters on a GPU.
        """
        if rank0_only and writeback:
            raise ValueError("writeback=True and rank0_only=True is not supported")
        roots = FullyShardedDataParallel.fsdp_modules(module)
        units = [m._state.unit for m in (roots if recurse else roots[:1]) if m._state.unit is not None]
        shown = []
        with no_grad():
            for unit in units:
                unit.reshard()
                for p in unit.params:
                    if offload_to_cpu and not p.sharded.is_cpu:
                        raise NotImplementedError("summon_full_params: offload_to_cpu is not built")
                    whole = Parameter(wrap(p.sharded.full_tensor()._data.copy()), p.whole.requires_grad)
                    grad = p.sharded.grad
                    if with_grads and grad is not None:
                        whole.grad = grad.full_tensor()  # type: ignore[attr-defined]
                    shown.append((p, whole))
        keep_shards = rank0_only and default_group().rank() != 0
        for p, whole in shown:
            p.show(p.sharded if keep_shards else whole)
        try:
            yield
        finally:
            with no_grad():
                for p, whole in shown:
                    if writeback:
                        p.sharded.copy_(whole)
                        if with_grads and whole.grad is not None and p.sharded.grad is not None:
                            p.sharded.grad.copy_(whole.grad)
                    p.show(p.sharded)

    def apply(self, fn: Callable[[Module], None]) -> FullyShardedDataParallel:
        """Call `fn` on all modules while their parameters are whole; changes are kept."""
        with FullyShardedDataParallel.summon_full_params(self):
            super().apply(fn)
        return self

    # ---- state dicts ---------------------------------------------------------------------------

    @staticmethod
    def set_state_dict_type(
        module: Module,
        state_dict_type: StateDictType,
        state_dict_config: StateDictConfig | None = None,
        optim_state_dict_config: Any = None,
    ) -> StateDictSettings:
        """What `state_dict` of the wrappers in `module` gives from now on; returns what was before.

        Raises:
            NotImplementedError: LOCAL_STATE_DICT.
        """
        full = state_dict_type is StateDictType.FULL_STATE_DICT
        settings = StateDictSettings(
            state_dict_type,
            state_dict_config or (FullStateDictConfig() if full else ShardedStateDictConfig()),
            optim_state_dict_config
            or (FullOptimStateDictConfig() if full else ShardedOptimStateDictConfig()),
        )
        _full_state.check_kind(settings)
        before = FullyShardedDataParallel.get_state_dict_type(module)
        for each in FullyShardedDataParallel.fsdp_modules(module):
            each._settings = settings
        return before

    @staticmethod
    def get_state_dict_type(module: Module) -> StateDictSettings:
        """The settings of the wrappers in `module`."""
        found = FullyShardedDataParallel.fsdp_modules(module)
        if not found:
            raise ValueError("there is no FullyShardedDataParallel in this module")
        return found[0]._settings

    @staticmethod
    @contextlib.contextmanager
    def state_dict_type(
        module: Module,
        state_dict_type: StateDictType,
        state_dict_config: StateDictConfig | None = None,
        optim_state_dict_config: Any = None,
    ) -> Iterator[None]:
        """Inside, `state_dict` gives what these settings ask for."""
        before = FullyShardedDataParallel.set_state_dict_type(
            module, state_dict_type, state_dict_config, optim_state_dict_config
        )
        try:
            yield
        finally:
            for each in FullyShardedDataParallel.fsdp_modules(module):
                each._settings = before

    @staticmethod
    def optim_state_dict(
        model: Module, optim: Any, optim_state_dict: Any = None, group: Any = None
    ) -> dict:
        """An optimizer's state by parameters' names, as the model's settings ask for it."""
        settings = FullyShardedDataParallel.get_state_dict_type(model)
        return _full_state.optim_state_dict(model, optim, optim_state_dict, settings)

    @staticmethod
    def optim_state_dict_to_load(
        model: Module,
        optim: Any,
        optim_state_dict: dict,
        is_named_optimizer: bool = False,
        load_directly: bool = False,
        group: Any = None,
    ) -> dict:
        """What `optim.load_state_dict` takes, from what `optim_state_dict` gave."""
        found = _full_state.optim_state_dict_to_load(model, optim, optim_state_dict)
        if load_directly:
            optim.load_state_dict(found)
        return found


def _units(module: Module) -> Iterator[Unit]:
    for each in module.modules():
        state = state_of(each)
        if state is not None and state.unit is not None:
            yield state.unit


def _ignored(modules: Any, states: Any) -> tuple[set[Module], set[Parameter]]:
    if modules is not None and states is not None:
        raise ValueError("Cannot pass both ignored_modules and ignored_states at the same time")
    given = list(modules or states or ())
    found = {m for each in given if isinstance(each, Module) for m in each.modules()}
    params = {p for m in found for p in m.parameters()}
    return found, params | {p for p in given if isinstance(p, Parameter)}


def _device_type(device_id: Any, module: Module) -> str:
    """Where shards live: on the GPU that is asked for, else where the module is."""
    if device_id is None:
        on_gpu = next((p.device.type for p in module.parameters()), "cpu") == "cuda"
        return "cuda" if on_gpu else "cpu"
    chosen = devices.device(device_id)
    if chosen.type == "cuda" and cuda.device_number(chosen) != cuda.current_device():
        raise ValueError(
            f"FullyShardedDataParallel: device_id is {chosen}, but the current GPU is cuda:"
            f"{cuda.current_device()}: call torch.cuda.set_device(device_id) first"
        )
    return chosen.type


def _mesh_of(group: Any, strategy: ShardingStrategy, mesh: Any, device: str) -> DeviceMesh:
    if group is not None and mesh is not None:
        raise ValueError("Cannot pass both process_group and device_mesh at the same time")
    if isinstance(group, tuple):
        raise NotImplementedError(
            "FullyShardedDataParallel: a tuple of process groups is not built; pass a device_mesh of "
            "(replicas, shards)"
        )
    if mesh is None:
        if strategy in _HYBRID:
            row = int(os.environ.get("LOCAL_WORLD_SIZE", get_world_size()))
            shape = (get_world_size() // row, row)
            return init_device_mesh(device, shape, mesh_dim_names=("replicate", "shard"))
        chosen: ProcessGroup = group or default_group()
        return DeviceMesh.from_group(chosen, device, mesh_dim_names=("shard",))
    if (mesh.ndim == 2) != (strategy in _HYBRID):
        raise ValueError(
            f"{strategy} needs a device_mesh of {2 if strategy in _HYBRID else 1} axes, got {mesh}"
        )
    if strategy is ShardingStrategy.NO_SHARD and mesh.mesh_dim_names is None:
        return DeviceMesh.from_group(mesh.get_group(), mesh.device_type, mesh_dim_names=("shard",))
    return mesh


def _precisions(chosen: MixedPrecision | None, module: Module) -> MixedPrecisionPolicy:
    if chosen is None:
        return MixedPrecisionPolicy()
    if chosen.keep_low_precision_grads:
        raise NotImplementedError("MixedPrecision(keep_low_precision_grads=True) is not built")
    if chosen.buffer_dtype is not None:
        for part in module.modules():
            for name, buffer in part._buffers.items():
                if buffer is not None and buffer.is_floating_point():
                    part._buffers[name] = buffer.to(chosen.buffer_dtype)
    return MixedPrecisionPolicy(
        param_dtype=chosen.param_dtype,
        reduce_dtype=chosen.reduce_dtype,
        cast_forward_inputs=chosen.cast_forward_inputs or chosen.cast_root_forward_inputs,
    )


def _materialize(module: Module, initialise: Any, device: str) -> None:
    for part in module.modules():
        own = [p for p in part._parameters.values() if p is not None]
        if any(p.is_meta for p in own):
            if initialise is not None:
                initialise(part)
            else:
                part.to_empty(device=device, recurse=False)
                part.reset_parameters()  # type: ignore[operator]


def _take_rank_0s(module: Module, mesh: DeviceMesh) -> None:
    state = [*module.parameters(), *module.buffers()]
    for t in state:
        if t._local_tensor is None:  # what is cut already was taken when it was cut
            for axis in range(mesh.ndim):
                mesh.get_group(axis).ranks.broadcast(t._data, 0)


__all__ = ["FlatParameter", "FullyShardedDataParallel"]
