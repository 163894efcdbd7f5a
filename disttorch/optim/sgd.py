"""Stochastic gradient descent."""

from __future__ import annotations

from ..tensor import wrap
from .elementwise import ElementwiseOptimizer
from .optimizer import check_lr, check_range


class SGD(ElementwiseOptimizer):
    """p −= lr·v, v = momentum·v + (1 − dampening)·(g + weight_decay·p).

    Args:
        params: what to optimize; see ``Optimizer``.
        lr: learning rate.
        momentum: 0 keeps no v.
        nesterov: look ahead by one momentum step (Sutskever et al., ICML 2013).
        maximize: ascend instead.

    Raises:
        ValueError: for options out of range.
    """

    def __init__(
        self, params, lr=1e-3, momentum: float = 0, dampening: float = 0, weight_decay: float = 0,
        nesterov: bool = False, *, maximize: bool = False, foreach: bool | None = None,
        differentiable: bool = False, fused: bool | None = None,
    ):
        check_lr(lr)
        check_range("momentum value", momentum)
        check_range("weight_decay value", weight_decay)
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")
        self._starting: set[int] = set()  # the states whose buffer the next step fills
        super().__init__(params, {
            "lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay,
            "nesterov": nesterov, "maximize": maximize, "foreach": foreach,
            "differentiable": differentiable, "fused": fused,
        })

    _rule = "sgd"
    _counts = False
    _counters = ()
    _scales = True

    def __setstate__(self, state):
        self._starting = set()
        super().__setstate__(state)

    def _keeps_state(self, group):
        return bool(group["momentum"])

    def _shared(self, xp, group):
        return {
            "lr": self._learning_rate(xp, group), "momentum": group["momentum"],
            "dampening": group["dampening"], "wd": float(group["weight_decay"]),
            "nesterov": group["nesterov"], "maximize": group["maximize"],
        }

    def _states(self, xp, group, data, state):
        if not group["momentum"]:
            return (None,)
        if state.get("momentum_buffer") is None:
            state["momentum_buffer"] = wrap(xp.zeros_like(data))
            # Without dampening the first step is one from zero, also skipped by GradScaler or in graphs
            if group["dampening"] != 0:
                self._starting.add(id(state))
        return (state["momentum_buffer"]._data,)

    def _own(self, group, state):
        first = id(state) in self._starting
        self._starting.discard(id(state))
        return {"first": first}


__all__ = ["SGD"]
