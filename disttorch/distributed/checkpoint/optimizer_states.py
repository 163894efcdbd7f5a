"""Optimizers' states by parameter names, nested or flat."""

from __future__ import annotations

from typing import Any

from ... import ops
from ...optim import Optimizer
from ...tensor import Tensor


def here(optimizer: Optimizer) -> Optimizer:
    """The optimizer that has the states on this rank: that inside a ZeroRedundancyOptimizer."""
    from ..optim import ZeroRedundancyOptimizer

    return optimizer.optim if isinstance(optimizer, ZeroRedundancyOptimizer) else optimizer


def named_state(optimizer: Optimizer, name_of: dict[int, str], whole: bool) -> dict[str, Any]:
    """An optimizer's `state_dict` with names instead of numbers.

    Args:
        whole: also what other ranks have of a ZeroRedundancyOptimizer.

    Raises:
        RuntimeError: it has a parameter that the model lacks.
    """
    local = here(optimizer)
    if local is optimizer:
        return _named_state(optimizer, name_of)
    zero: Any = optimizer
    values = _named_state(local, name_of)["state"]
    if whole:
        host = {n: {k: _on_host(v) for k, v in entry.items()} for n, entry in values.items()}
        for part in zero.process_group.ranks.all_gather_object(host):
            values = part | values
    groups = [
        {**group, "params": [_name(p, name_of) for p in group["params"]]}
        for group in zero.param_groups
    ]
    return {"state": values, "param_groups": groups}


def _on_host(value: Any) -> Any:
    return value.detach().cpu() if isinstance(value, Tensor) else value


def _named_state(optimizer: Optimizer, name_of: dict[int, str]) -> dict[str, Any]:
    fresh = not optimizer.state
    if fresh:
        _make_state(optimizer)
    try:
        state = optimizer.state_dict()
        names = [_name(p, name_of) for group in optimizer.param_groups for p in group["params"]]
        values = {names[k] if isinstance(k, int) else k: v for k, v in state["state"].items()}
        groups = [
            {**group, "params": [names[i] for i in group["params"]]}
            for group in state["param_groups"]
        ]
    finally:
        if fresh:
            optimizer.state.clear()
    if fresh:
        values = {
            name: {k: _before_first_step(k, v) for k, v in entry.items()}
            for name, entry in values.items()
        }
    return {"state": values, "param_groups": groups}


def _name(parameter: Tensor, name_of: dict[int, str]) -> str:
    try:
        return name_of[id(parameter)]
    except KeyError:
        raise RuntimeError(
            f"the optimizer has a parameter of shape {tuple(parameter.shape)} that is none of the "
            "model's: give the model that holds all of its parameters"
        ) from None


def _before_first_step(key: str, value: Any) -> Any:
    if key != "step":
        return value
    return ops.zeros_like(value) if isinstance(value, Tensor) else type(value)(0)


def _make_state(optimizer: Optimizer) -> None:
    """Let an optimizer make its state by a step that changes nothing: no gradient, no rate."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = [p.grad for p in parameters]
    rates = [group.get("lr") for group in optimizer.param_groups]
    called = optimizer.__dict__.get("_opt_called")
    for p in parameters:
        if p.requires_grad:
            p.grad = p.detach().clone().zero_()  # a DTensor's lies as it does
    try:
        for group, rate in zip(optimizer.param_groups, rates):
            if rate is not None:
                group["lr"] = ops.zeros_like(rate) if isinstance(rate, Tensor) else 0.0
        optimizer.step()
    finally:
        for group, rate in zip(optimizer.param_groups, rates):
            if rate is not None:
                group["lr"] = rate
        for p, gradient in zip(parameters, gradients):
            p.grad = gradient
        if called is not None:
            optimizer._opt_called = called  # type: ignore[attr-defined]
        else:
            optimizer.__dict__.pop("_opt_called", None)


def state_for(
    optimizer: Optimizer, state: dict[str, Any], name_of: dict[int, str], strict: bool
) -> dict[str, Any]:
    """The part of a named state that belongs to one optimizer, in the order of its groups.

    Raises:
        RuntimeError: a parameter has no saved options, or no state although others have.
    """
    saved = state["state"]
    if saved and all(isinstance(key, int) for key in saved):
        return state
    own = {id(p) for group in here(optimizer).param_groups for p in group["params"]}
    group_of = {name: group for group in state["param_groups"] for name in group["params"]}
    values: dict[str, Any] = {}
    groups = []
    for group in optimizer.param_groups:
        names = [_name(p, name_of) for p in group["params"]]
        for name, parameter in zip(names, group["params"]):
            if name in saved:
                values[name] = saved[name]
            elif saved and strict and parameter.requires_grad and id(parameter) in own:
                raise RuntimeError(
                    f"Missing optimizer state for parameter '{name}' in checkpoint. The parameter "
                    "requires gradients but has no saved optimizer state. To load anyway, use "
                    "StateDictOptions(strict=False)."
                )
        found = [group_of[name] for name in names if name in group_of]
        if not found and strict:
            raise RuntimeError(f"the saved optimizer has none of the parameters {names[:5]}")
        options = found[0] if found else group
        groups.append({**{k: v for k, v in options.items() if k != "params"}, "params": names})
    return {"state": values, "param_groups": groups}


def flatten_optimizer_state(state: dict[str, Any]) -> dict[str, Any]:
    """``state.NAME.exp_avg``, ``param_groups.NAME.lr``, …: PyTorch's flat form.

    Raises:
        NotImplementedError: a state that is neither tensor, number nor dict of those.
    """
    flat: dict[str, Any] = {}

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, entry in value.items():
                add(f"{prefix}.{key}", entry)
        elif isinstance(value, (Tensor, int, float)):
            flat[prefix] = value
        else:
            raise NotImplementedError(
                "Flattening optimizer state_dict only supports tensor, int, float, dict states now. "
                f"Type is {type(value)}."
            )

    for name, entry in state["state"].items():
        add(f"state.{name}", entry)
    for group in state["param_groups"]:
        for name in group["params"]:
            for key, value in group.items():
                if key != "params":
                    flat[f"param_groups.{name}.{key}"] = value
    return flat


def unflatten_optimizer_state(
    optimizer: Optimizer, flat: dict[str, Any], name_of: dict[int, str]
) -> dict[str, Any]:
    """The nested form of what `flatten_optimizer_state` gave, for one optimizer.

    Raises:
        RuntimeError: parameters of one group that were saved with different options.
    """
    state: dict[str, Any] = {}
    groups = []
    for group in optimizer.param_groups:
        names = [_name(p, name_of) for p in group["params"]]
        for name in names:
            below = f"state.{name}."
            entry: dict[str, Any] = {}
            for key, value in flat.items():
                if key.startswith(below):
                    *parents, last = key[len(below) :].split(".")
                    place = entry
                    for parent in parents:
                        place = place.setdefault(parent, {})
                    place[last] = value
            if entry:
                state[name] = entry
        options: dict[str, Any] = {"params": names}
        for key in group:
            saved = [flat[k] for n in names if (k := f"param_groups.{n}.{key}") in flat]
            if any(value != saved[0] for value in saved):
                raise RuntimeError(
                    "All the parameters in the same parameter group should have the same saved "
                    f"param_group value. But {names[0]}.{key} is {saved[0]} while others differ."
                )
            if saved:
                options[key] = saved[0]
        groups.append(options)
    return {"state": state, "param_groups": groups}


__all__ = ["flatten_optimizer_state", "named_state", "state_for", "unflatten_optimizer_state"]
