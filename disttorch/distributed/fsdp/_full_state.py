"""State dicts of `FullyShardedDataParallel`: names without the wrapper, whole tensors or DTensors."""

from __future__ import annotations

from typing import Any

from ...autograd import no_grad
from ...nn import Module
from ...tensor import Tensor, wrap
from ..process_group import get_rank
from ..tensor._api import DTensor
from ..tensor._redistribute import redistribute_local
from ..tensor.placement_types import Replicate
from ._state import state_of
from .api import StateDictSettings, StateDictType

WRAPPED = "_fsdp_wrapped_module."


def clean(name: str) -> str:
    """A dotted name without the wrappers' own parts."""
    return name.replace(WRAPPED, "")


def check_kind(settings: StateDictSettings) -> None:
    """Raise NotImplementedError for a kind of state dict that is not built."""
    if settings.state_dict_type is StateDictType.LOCAL_STATE_DICT:
        raise NotImplementedError(
            "LOCAL_STATE_DICT is not built: use SHARDED_STATE_DICT, whose DTensors hold this rank's "
            "part (to_local())"
        )


def after_state_dict(settings: StateDictSettings, destination: dict, prefix: str) -> None:
    """Turn the entries below a wrapper into what the settings ask for; a call of all its ranks."""
    check_kind(settings)
    config = settings.state_dict_config
    full = settings.state_dict_type is StateDictType.FULL_STATE_DICT
    for key in [k for k in destination if k.startswith(prefix + WRAPPED)]:
        value = destination.pop(key)
        value = shown(value, full, config.offload_to_cpu)
        if not (full and getattr(config, "rank0_only", False) and get_rank() != 0):
            destination[prefix + key[len(prefix + WRAPPED) :]] = value


def shown(value: Any, full: bool, to_cpu: bool) -> Any:
    if isinstance(value, DTensor) and full:
        with no_grad():
            array = value.full_tensor()._data
        if all(p.is_replicate() for p in value.placements):
            array = array.copy()  # it is the parameter's own memory
        value = wrap(array)
    if to_cpu and isinstance(value, Tensor):
        value = value.cpu()
    return value


def before_load(state_dict: dict, prefix: str) -> None:
    """Put the wrapper's part of the names back."""
    for key in [k for k in state_dict if k.startswith(prefix)]:
        if not key.startswith(prefix + WRAPPED):
            state_dict[prefix + WRAPPED + key[len(prefix) :]] = state_dict.pop(key)


def _names(model: Module) -> dict[int, str]:
    """The clean name of each shard, and of each parameter that is not sharded, by identity."""
    for module in model.modules():
        state = state_of(module)
        if state is not None and state.unit is not None:
            state.unit.reshard()
    return {id(p): clean(name) for name, p in model.named_parameters()}


def optim_state_dict(model: Module, optim: Any, state_dict: Any, settings: StateDictSettings) -> dict:
    """An optimizer's state by parameters' names; whole where the settings say so.

    Raises:
        ValueError: the optimizer has a parameter that the model has not.
    """
    check_kind(settings)
    given = optim.state_dict() if state_dict is None else state_dict
    names = _by_index(model, optim)
    config = settings.optim_state_dict_config
    full = settings.state_dict_type is StateDictType.FULL_STATE_DICT
    state: dict[str, Any] = {}
    for index, entry in given["state"].items():
        values = {k: shown(v, full, config.offload_to_cpu) for k, v in entry.items()}
        if full:  # a step count must not be the optimizer's own
            same = [k for k, v in values.items() if isinstance(v, Tensor) and v is entry[k]]
            values.update({k: values[k].clone() for k in same})
        state[names[index]] = values
    if full and getattr(config, "rank0_only", False) and get_rank() != 0:
        return {}
    groups = [{**g, "params": [names[i] for i in g["params"]]} for g in given["param_groups"]]
    return {"state": state, "param_groups": groups}


def optim_state_dict_to_load(model: Module, optim: Any, state_dict: dict) -> dict:
    """What `optim.load_state_dict` takes, from what `optim_state_dict` gave (on any ranks)."""
    names = _by_index(model, optim)
    index = {name: i for i, name in names.items()}
    params = [p for g in optim.param_groups for p in g["params"]]
    state = {}
    for name, entry in state_dict["state"].items():
        i = index[clean(name)]
        state[i] = {k: _part_of(params[i], k, v) for k, v in entry.items()}
    groups = [
        {**g, "params": [index[clean(n)] for n in g["params"]]} for g in state_dict["param_groups"]
    ]
    return {"state": state, "param_groups": groups}


def _by_index(model: Module, optim: Any) -> dict[int, str]:
    names = _names(model)
    found: dict[int, str] = {}
    for i, p in enumerate(p for g in optim.param_groups for p in g["params"]):
        if id(p) not in names:
            raise ValueError(
                f"the optimizer's parameter {i} of shape {tuple(p.shape)} is none of the model's: make "
                "the optimizer after wrapping the model"
            )
        found[i] = names[id(p)]
    return found


def _part_of(param: Tensor, key: str, value: Any) -> Any:
    """A whole value of a parameter's state as a DTensor that lies as the parameter does."""
    whole = isinstance(value, Tensor) and not isinstance(value, DTensor)
    if not whole or key == "step" or not isinstance(param, DTensor) or value.shape != param.shape:
        return value
    replicated = param._spec.replaced((Replicate(),) * param.device_mesh.ndim)
    part = redistribute_local(value._data, replicated, param.placements)
    return DTensor._wrap(wrap(part.copy()), param._spec)


__all__ = ["after_state_dict", "before_load", "optim_state_dict", "optim_state_dict_to_load"]
