"""RMSprop."""

from __future__ import annotations

from ..tensor import wrap
from .elementwise import ElementwiseOptimizer
from .optimizer import check_lr, check_range, count_step


class RMSprop(ElementwiseOptimizer):
    """Steps by the gradient over the root of its running mean square (Hinton, 2012).

    Args:
        params: what to optimize; see ``Optimizer``.
        lr: learning rate.
        alpha: decay of the mean square.
        eps: added to its root.
        momentum: of the steps.
        centered: use the variance instead of the mean square (Graves, arXiv:1308.0850).
        maximize: ascend instead.

    Raises:
        ValueError: for options out of range.
    """

    def __init__(
        self, params, lr=1e-2, alpha: float = 0.99, eps: float = 1e-8, weight_decay: float = 0,
        momentum: float = 0, centered: bool = False, capturable: bool = False,
        foreach: bool | None = None, maximize: bool = False, differentiable: bool = False,
    ):
        check_lr(lr)
        for name, value in (("epsilon", eps), ("momentum", momentum),
                            ("weight_decay", weight_decay), ("alpha", alpha)):
            check_range(f"{name} value", value)
        super().__init__(params, {
            "lr": lr, "momentum": momentum, "alpha": alpha, "eps": eps, "centered": centered,
            "weight_decay": weight_decay, "capturable": capturable, "foreach": foreach,
            "maximize": maximize, "differentiable": differentiable,
        })

    _rule = "rmsprop"
    _counts = False
    _counters = ("step",)

    def _shared(self, xp, group):
        return {
            "lr": self._learning_rate(xp, group), "alpha": group["alpha"], "eps": group["eps"],
            "wd": group["weight_decay"], "momentum": group["momentum"], "maximize": group["maximize"],
        }

    def _states(self, xp, group, data, state):
        if not state:
            state["step"] = self._new_count(xp, group)
            state["square_avg"] = wrap(xp.zeros_like(data))
            if group["momentum"] > 0:
                state["momentum_buffer"] = wrap(xp.zeros_like(data))
            if group["centered"]:
                state["grad_avg"] = wrap(xp.zeros_like(data))
        return (
            state["square_avg"]._data,
            state["grad_avg"]._data if group["centered"] else None,
            state["momentum_buffer"]._data if group["momentum"] > 0 else None,
        )

    def _own(self, group, state):
        count_step(state)
        return {}


__all__ = ["RMSprop"]
