"""Copies and pickles of tensors."""

from __future__ import annotations

from .autograd.modes import no_grad
from .backend import namespace_of
from .tensor import Tensor, current_node, wrap


def rebuild_tensor(cls, array, requires_grad, attributes):
    """What a pickled tensor is made of."""
    t = wrap(array)
    if cls is not Tensor:
        t.__class__ = cls
    t._rg = requires_grad
    t.__dict__.update(attributes)
    return t


def reduce_tensor(t: Tensor):
    if current_node(t) is not None:
        raise RuntimeError(
            "Only Tensors created explicitly by the user (graph leaves) support pickling and the "
            "deepcopy protocol at the moment; use tensor.detach()."
        )
    array = namespace_of(t._data).to_host(t._data)
    return rebuild_tensor, (type(t), array, t._rg, user_attributes(t))


def user_attributes(t: Tensor) -> dict:
    """Attributes that users hung on a tensor (ours begin with an underscore)."""
    return {k: v for k, v in t.__dict__.items() if not k.startswith("_")}


def deepcopy_tensor(t: Tensor, memo: dict) -> Tensor:
    import copy

    if id(t) in memo:
        return memo[id(t)]
    if current_node(t) is not None:
        raise RuntimeError(
            "Only Tensors created explicitly by the user (graph leaves) support the deepcopy "
            "protocol at the moment."
        )
    with no_grad():
        twin = wrap(t._data.copy())
        if type(t) is not Tensor:
            twin.__class__ = type(t)
        twin._rg = t._rg
        if t._grad is not None:
            twin._grad = deepcopy_tensor(t._grad, memo)
        memo[id(t)] = twin
        twin.__dict__.update(copy.deepcopy(user_attributes(t), memo))
    return twin
