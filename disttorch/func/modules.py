"""Modules as functions of their parameters."""

from __future__ import annotations

import contextlib

from ..tensor import Tensor


def functional_call(module, parameter_and_buffer_dicts, args=None, kwargs=None, *,
                    tie_weights=True, strict=False):
    """Call ``module`` with other tensors in place of its parameters and buffers.

    Args:
        parameter_and_buffer_dicts: ``{"layer.weight": tensor}``, or a sequence of such dicts.
        args: a tuple of arguments, or one argument.
        tie_weights: a tensor that the module holds under several names is replaced under all.
        strict: the names must be exactly the module's.

    Raises:
        RuntimeError: under ``strict``, if names are missing or unknown.
        ValueError: if two dicts give the same name.
    """
    replaced = _merged(parameter_and_buffer_dicts)
    own = {**dict(module.named_parameters(remove_duplicate=False)),
           **dict(module.named_buffers(remove_duplicate=False))}
    if strict:
        missing, unknown = sorted(own.keys() - replaced.keys()), sorted(replaced.keys() - own)
        if missing or unknown:
            raise RuntimeError(f"Missing key(s): {missing}. Unexpected key(s): {unknown}.")
    if tie_weights:
        replaced = _tied(own, replaced)
    if args is None:
        args = ()
    elif not isinstance(args, tuple):
        args = (args,)
    with _swapped(module, replaced):
        return module(*args, **(kwargs or {}))


def _merged(dicts):
    if isinstance(dicts, dict):
        return dict(dicts)
    out: dict = {}
    for d in dicts:
        repeated = out.keys() & d.keys()
        if repeated:
            raise ValueError(
                f"{sorted(repeated)} appeared in multiple dictionaries; behavior of functional "
                "call is ambiguous"
            )
        out.update(d)
    return out


def _tied(own, replaced):
    groups: dict = {}
    for name, t in own.items():
        groups.setdefault(id(t), []).append(name)
    out = dict(replaced)
    for names in groups.values():
        given = [n for n in names if n in replaced]
        if not given:
            continue
        if any(replaced[n] is not replaced[given[0]] for n in given):
            raise ValueError(
                f"functional_call got multiple values for keys {sorted(given)}, which are tied. "
                "Consider using tie_weights=False"
            )
        out.update(dict.fromkeys(names, replaced[given[0]]))
    return out


@contextlib.contextmanager
def _swapped(module, tensors):
    undo = []
    try:
        for name, value in tensors.items():
            path, _, last = name.rpartition(".")
            try:
                owner = module.get_submodule(path)
            except AttributeError:
                continue
            for table in (owner._parameters, owner._buffers):
                if last in table:
                    undo.append((table, last, table[last]))
                    table[last] = value
        yield
    finally:
        for table, last, value in reversed(undo):
            table[last] = value


def stack_module_state(models) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """``(parameters, buffers)`` of several modules of one class, stacked along a new first dim."""
    from .. import ops

    models = list(models)
    if not models:
        raise RuntimeError("stack_module_state: Expected at least one model, got 0.")
    if len({type(m) for m in models}) > 1:
        raise RuntimeError("stack_module_state: Expected all models to be of the same class.")
    if len({m.training for m in models}) > 1:
        raise RuntimeError(
            "stack_module_state: Expected all models to have the same training/eval mode."
        )
    params = {
        name: ops.stack([dict(m.named_parameters())[name].detach() for m in models])
        .requires_grad_(p.requires_grad)
        for name, p in models[0].named_parameters()
    }
    buffers = {
        name: ops.stack([dict(m.named_buffers())[name] for m in models])
        for name, _ in models[0].named_buffers()
    }
    return params, buffers
