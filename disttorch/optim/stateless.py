"""An optimizer lent to other parameters for a while."""

from __future__ import annotations

import contextlib
from collections import defaultdict


def _refuse(what: str):
    return RuntimeError(f"swap_in_optimizer_params_and_state requires {what}")


def _check_group(index: int, group: dict, given: dict) -> None:
    if not isinstance(given, dict) or not isinstance(given.get("params"), list):
        raise _refuse("each optimizer param group to be a dictionary with a list of 'params'.")
    if len(group["params"]) != len(given["params"]):
        raise RuntimeError(
            f"swapin_optim_state param group {index} has {len(given['params'])} params, the live "
            f"optimizer's has {len(group['params'])}."
        )
    if set(group) != set(given):
        raise _refuse(
            "param group keys to exactly match the live optimizer group keys; in only one of the "
            f"two groups {index} are {sorted(set(group) ^ set(given))}."
        )


@contextlib.contextmanager
def swap_in_optimizer_params_and_state(optimizer, swapin_parameters, swapin_optim_state: dict):
    """Within this context the optimizer has other parameters, options and state.

    Changes of the given tensors in place stay; all else is as before afterwards.

    Args:
        optimizer: any optimizer.
        swapin_parameters: name to parameter, in the order of the optimizer's own.
        swapin_optim_state: as of ``optimizer.state_dict()``.

    Raises:
        RuntimeError: if number or keys of groups or parameters differ.
    """
    groups, state = swapin_optim_state["param_groups"], swapin_optim_state["state"]
    if not isinstance(groups, list) or len(groups) != len(optimizer.param_groups):
        raise RuntimeError(
            "swapin_optim_state has a different number of parameter groups than the live optimizer."
        )
    for i, (group, given) in enumerate(zip(optimizer.param_groups, groups)):
        _check_group(i, group, given)
    wanted = sum(len(g["params"]) for g in groups)
    if len(swapin_parameters) != wanted:
        raise RuntimeError(
            f"swapin_parameters has {len(swapin_parameters)} tensors, the optimizer has {wanted}."
        )
    rest = iter(swapin_parameters.values())
    kept_state, kept_groups = optimizer.state, [dict(g) for g in optimizer.param_groups]
    try:
        swapped: defaultdict = defaultdict(dict)
        for group, given in zip(optimizer.param_groups, groups):
            params = [next(rest) for _ in given["params"]]
            group.update({**given, "params": params})
            for p, number in zip(params, given["params"]):
                swapped[p] = dict(state.get(number, {}))
        optimizer.state = swapped
        yield
    finally:
        for group, kept in zip(optimizer.param_groups, kept_groups):
            group.clear()
            group.update(kept)
        optimizer.state = kept_state


__all__ = ["swap_in_optimizer_params_and_state"]
