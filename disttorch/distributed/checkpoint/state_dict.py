"""States of models and optimizers by parameter names, whatever wraps or shards the model.

The keys are those of the plain model: `DistributedDataParallel`'s "module." is left out, and an
optimizer's parameters are called by their names. What one layout gave, another can take.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ...autograd import no_grad
from ...nn import Module
from ...optim import Optimizer
from ...tensor import Tensor
from .optimizer_states import (
    flatten_optimizer_state,
    named_state,
    state_for,
    unflatten_optimizer_state,
)
from .planner_helpers import is_dtensor
from .whole import broadcast_from_first, gather_whole, give_memory_to, part_like, to_cpu

ValueType = Any
DictValueType = dict[str, Any]
OptimizerStateType = dict[str, Any]


@dataclass
class StateDictOptions:
    """What `get_state_dict` gives and `set_state_dict` takes.

    Attributes:
        full_state_dict: whole tensors instead of DTensors.
        cpu_offload: tensors on the CPU; with `full_state_dict` on rank 0 only, others get nothing.
        ignore_frozen_params: leave out parameters that do not require grad.
        keep_submodule_prefixes: with `submodules`, keep their names in front.
        strict: for loading: keys must match.
        broadcast_from_rank0: for loading: only rank 0 has the (full) state; it sends tensor by
            tensor, and each rank keeps its part.
        flatten_optimizer_state_dict: the optimizer's state as one flat dict.
        dsd_fqn_modifiers: accepted as in PyTorch, for modules that rename their children.
    """

    full_state_dict: bool = False
    cpu_offload: bool = False
    ignore_frozen_params: bool = False
    keep_submodule_prefixes: bool = True
    strict: bool = True
    broadcast_from_rank0: bool = False
    flatten_optimizer_state_dict: bool = False
    dsd_fqn_modifiers: str = "_fqn_modifiers"


def _checked(options: StateDictOptions | None) -> StateDictOptions:
    options = options or StateDictOptions()
    if options.broadcast_from_rank0 and not options.full_state_dict:
        raise ValueError("full_state_dict must be True when broadcast_from_rank0 is True.")
    return options


class Names:
    """Keys of a wrapped model and of the plain one."""

    def __init__(self, model: Module) -> None:
        from ..ddp import DistributedDataParallel
        from ..exact import ExactDataParallel

        wrapped = [
            f"{name}." if name else ""
            for name, module in model.named_modules()
            if isinstance(module, DistributedDataParallel | ExactDataParallel)
        ]
        self._wrapped = sorted(wrapped, key=len, reverse=True)  # the inner ones first

    def plain(self, key: str) -> str:
        """The plain model's name for a key of this model."""
        key = key.replace("_fsdp_wrapped_module.", "")
        for prefix in self._wrapped:
            inner = f"{prefix}module."
            if f"{key}.".startswith(inner):
                key = prefix + key[len(inner) :]
        return key


@contextlib.contextmanager
def _in_parts(model: Module) -> Iterator[None]:
    """Inside, the state dicts of a model under `FullyShardedDataParallel` hold DTensors."""
    fsdp = sys.modules.get("disttorch.distributed.fsdp.fully_sharded_data_parallel")
    if fsdp is None or not fsdp.FullyShardedDataParallel.fsdp_modules(model):
        yield
        return
    kind = fsdp.StateDictType.SHARDED_STATE_DICT
    with fsdp.FullyShardedDataParallel.state_dict_type(model, kind):
        yield


def _state_of(model: Module) -> dict[str, Any]:
    with _in_parts(model):
        return model.state_dict()


def _load(model: Module, state: dict[str, Any], strict: bool) -> Any:
    with _in_parts(model):
        return model.load_state_dict(state, strict=strict)


# ---------------------------------------------------------------- getting
@no_grad()
def get_model_state_dict(
    model: Module,
    *,
    submodules: set[Module] | None = None,
    options: StateDictOptions | None = None,
) -> dict[str, ValueType]:
    """The model's state by the plain model's names. A call of all ranks with `full_state_dict`.

    Args:
        submodules: only these modules' (PyTorch: deprecated).
    """
    options = _checked(options)
    names = Names(model)
    state = {names.plain(key): value for key, value in _state_of(model).items()}
    if submodules:
        state = _of_submodules(model, names, state, submodules, options)
    if options.ignore_frozen_params:
        for key, parameter in model.named_parameters():
            if not parameter.requires_grad:
                state.pop(names.plain(key), None)
    return _finished(state, options)


@no_grad()
def get_optimizer_state_dict(
    model: Module,
    optimizers: Optimizer | Iterable[Optimizer],
    *,
    submodules: set[Module] | None = None,
    options: StateDictOptions | None = None,
) -> OptimizerStateType:
    """``{"state": {name: values}, "param_groups": [options and names]}`` of one or more optimizers.

    An optimizer that has made no step yet is left as it is; its state is given as it is before the
    first step. A `ZeroRedundancyOptimizer` gives the states of the parameters that it has on this
    rank; with `full_state_dict`, in a call of all its ranks, of all.
    """
    _no_submodules(submodules, "get_optimizer_state_dict")
    options = _checked(options)
    name_of = {id(parameter): name for name, parameter in _parameters(model).items()}
    together: OptimizerStateType = {"state": {}, "param_groups": []}
    for optimizer in _as_tuple(optimizers):
        one = named_state(optimizer, name_of, options.full_state_dict)
        together["state"].update(one["state"])
        together["param_groups"] += one["param_groups"]
    if options.flatten_optimizer_state_dict:
        together = flatten_optimizer_state(together)
    return _finished(together, options)


def get_state_dict(
    model: Module,
    optimizers: Optimizer | Iterable[Optimizer],
    *,
    submodules: set[Module] | None = None,
    options: StateDictOptions | None = None,
) -> tuple[dict[str, ValueType], OptimizerStateType]:
    """`get_model_state_dict` and `get_optimizer_state_dict`."""
    model_state = get_model_state_dict(model, submodules=submodules, options=options)
    return model_state, get_optimizer_state_dict(model, optimizers, options=options)


def _finished(state: dict, options: StateDictOptions) -> dict:
    if options.full_state_dict:
        return gather_whole(state, options.cpu_offload)
    return to_cpu(state) if options.cpu_offload else state


def _of_submodules(model, names, state, submodules, options) -> dict:
    warnings.warn(
        "Getting submodules only model/optim state_dict is deprecated and will be removed in 2.5. "
        "This feature can be achieved by manually filtering out the state_dict returned from "
        "get_state_dict.",
        FutureWarning,
        stacklevel=3,
    )
    prefixes = [names.plain(n) + "." for n, module in model.named_modules() if module in submodules]
    keep = options.keep_submodule_prefixes
    return {
        key if keep else key[len(prefix) :]: value
        for key, value in state.items()
        for prefix in prefixes
        if key.startswith(prefix)
    }


def _no_submodules(submodules: Any, call: str) -> None:
    if submodules:
        raise NotImplementedError(f"{call}(submodules=...) is not built: filter the result by name")


def _parameters(model: Module) -> dict[str, Tensor]:
    """The parameters that optimizers have, by the plain model's names."""
    _state_of(model)  # lets go of whole parameters that a forward has gathered
    names = Names(model)
    return {names.plain(key): parameter for key, parameter in model.named_parameters()}


def _as_tuple(optimizers: Optimizer | Iterable[Optimizer]) -> tuple[Optimizer, ...]:
    return (optimizers,) if isinstance(optimizers, Optimizer) else tuple(optimizers)


# ---------------------------------------------------------------- setting
@no_grad()
def set_model_state_dict(
    model: Module,
    model_state_dict: dict[str, ValueType],
    *,
    options: StateDictOptions | None = None,
) -> Any:
    """Load a state by the plain model's names. A call of all ranks with `broadcast_from_rank0`.

    Returns:
        The missing and the unexpected keys.

    Raises:
        RuntimeError: keys that do not match, if `strict`; other shapes.
    """
    options = _checked(options)
    if not model_state_dict and not options.broadcast_from_rank0:
        if options.strict and _state_of(model):
            raise RuntimeError("the model's state dict to be loaded is empty")
        return _load(model, {}, False)
    names = Names(model)
    give_memory_to(model)
    own = _state_of(model)
    raw_of = {names.plain(key): key for key in own}

    def fit(path: tuple, value: Any) -> Any:
        target = own.get(raw_of.get(path[0], path[0]))
        return part_like(value, target) if options.full_state_dict else value

    if options.broadcast_from_rank0:
        state = broadcast_from_first(model_state_dict, fit)
    else:
        state = {key: fit((key,), value) for key, value in model_state_dict.items()}
    raw = {raw_of.get(key, key): value for key, value in state.items()}
    return _load(model, raw, options.strict)


@no_grad()
def set_optimizer_state_dict(
    model: Module,
    optimizers: Optimizer | Iterable[Optimizer],
    optim_state_dict: OptimizerStateType,
    *,
    options: StateDictOptions | None = None,
) -> None:
    """Load what `get_optimizer_state_dict` gave, also in another layout, into the optimizers.

    Raises:
        RuntimeError: a parameter's state is missing, if `strict`.
    """
    options = _checked(options)
    parameters = _parameters(model)
    name_of = {id(parameter): key for key, parameter in parameters.items()}

    def fit(path: tuple, value: Any) -> Any:
        target = _parameter_at(path, parameters)
        if options.full_state_dict and isinstance(value, Tensor) and target is not None:
            if is_dtensor(target) and tuple(value.shape) == tuple(target.shape):
                return part_like(value, target)
        return value

    state = optim_state_dict
    if options.broadcast_from_rank0:
        state = broadcast_from_first(state, fit)
    elif options.full_state_dict:
        state = _mapped(state, fit)
    for optimizer in _as_tuple(optimizers):
        one = state
        if "state" not in state or "param_groups" not in state:
            one = unflatten_optimizer_state(optimizer, state, name_of)
        optimizer.load_state_dict(state_for(optimizer, one, name_of, options.strict))


def set_state_dict(
    model: Module,
    optimizers: Optimizer | Iterable[Optimizer],
    *,
    model_state_dict: dict[str, ValueType],
    optim_state_dict: OptimizerStateType,
    options: StateDictOptions | None = None,
) -> Any:
    """`set_model_state_dict`, whose result it returns, and `set_optimizer_state_dict`."""
    # The model first: parameters on the meta device get memory, which the optimizer's states follow
    result = set_model_state_dict(model, model_state_dict, options=options)
    set_optimizer_state_dict(model, optimizers, optim_state_dict, options=options)
    return result


def _parameter_at(path: tuple, parameters: dict[str, Tensor]) -> Tensor | None:
    if path[0] == "state" and len(path) > 1:
        return parameters.get(path[1])
    if isinstance(path[0], str) and path[0].startswith("state."):  # flattened
        return parameters.get(path[0].removeprefix("state.").rpartition(".")[0])
    return None


def _mapped(value: Any, fit: Any, path: tuple = ()) -> Any:
    if isinstance(value, dict):
        return {key: _mapped(entry, fit, (*path, key)) for key, entry in value.items()}
    if type(value) is list:
        return [_mapped(entry, fit, (*path, i)) for i, entry in enumerate(value)]
    return fit(path, value)


__all__ = [
    "StateDictOptions", "get_model_state_dict", "get_optimizer_state_dict", "get_state_dict",
    "set_model_state_dict", "set_optimizer_state_dict", "set_state_dict",
]  # fmt: skip
