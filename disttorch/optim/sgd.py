"""Stochastic gradient descent."""

from __future__ import annotations

from ..tensor import wrap
from .optimizer import ElementwiseOptimizer, check_lr, check_range


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
        super().__init__(params, {
            "lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay,
            "nesterov": nesterov, "maximize": maximize, "foreach": foreach,
            "differentiable": differentiable, "fused": fused,
        })

    _rule = "sgd"
    _counts = False
    _scales = True

    def _keeps_state(self, group):
        return bool(group["momentum"])

    def _shared(self, xp, group):
        return {
            "lr": self._learning_rate(xp, group), "momentum": group["momentum"],
            "dampening": group["dampening"], "wd": float(group["weight_decay"]),
            "nesterov": group["nesterov"], "maximize": group["maximize"],
        }

    def _prepare(self, xp, group, param, data, state):
        if not group["momentum"]:
            return (None,), {"first": False}
        first = state.get("momentum_buffer") is None
        if first:
            state["momentum_buffer"] = wrap(xp.zeros_like(data))
        # Without dampening the first step is one from zero: also if GradScaler skips it, in graphs, too
        return (state["momentum_buffer"]._data,), {"first": first and group["dampening"] != 0}


__all__ = ["SGD"]
