"""Adadelta, Rprop and averaged SGD."""

from __future__ import annotations

from .. import ops
from ..tensor import wrap
from .elementwise import ElementwiseOptimizer
from .optimizer import check_lr, check_range, count_step


class Adadelta(ElementwiseOptimizer):
    """Steps by the ratio of the running roots of past steps and gradients (arXiv:1212.5701).

    Args:
        params: what to optimize; see ``Optimizer``.
        lr: factor on the step.
        rho: decay of the two running mean squares.
        eps: added to both.
        maximize: ascend instead.

    Raises:
        ValueError: for options out of range.
    """

    def __init__(
        self, params, lr=1.0, rho: float = 0.9, eps: float = 1e-6, weight_decay: float = 0,
        foreach: bool | None = None, *, capturable: bool = False, maximize: bool = False,
        differentiable: bool = False,
    ):
        check_lr(lr)
        if not 0.0 <= rho <= 1.0:
            raise ValueError(f"Invalid rho value: {rho}")
        check_range("epsilon value", eps)
        check_range("weight_decay value", weight_decay)
        super().__init__(params, {
            "lr": lr, "rho": rho, "eps": eps, "weight_decay": weight_decay, "maximize": maximize,
            "capturable": capturable, "foreach": foreach, "differentiable": differentiable,
        })

    _rule = "adadelta"
    _counts = False
    _counters = ("step",)

    def _shared(self, xp, group):
        return {
            "lr": self._learning_rate(xp, group), "rho": group["rho"], "eps": group["eps"],
            "wd": group["weight_decay"], "maximize": group["maximize"],
        }

    def _states(self, xp, group, data, state):
        if not state:
            state["step"] = self._new_count(xp, group)
            state["square_avg"] = wrap(xp.zeros_like(data))
            state["acc_delta"] = wrap(xp.zeros_like(data))
        return state["square_avg"]._data, state["acc_delta"]._data

    def _own(self, group, state):
        count_step(state)
        return {}


class Rprop(ElementwiseOptimizer):
    """A step size for each element, by the signs of its gradients (Riedmiller & Braun, 1993).

    Args:
        params: what to optimize; see ``Optimizer``.
        lr: the first step size.
        etas: its factors when the gradient's sign changes and when it stays.
        step_sizes: the smallest and the largest.
        maximize: ascend instead.

    Raises:
        ValueError: for options out of range.
    """

    def __init__(
        self, params, lr=1e-2, etas: tuple = (0.5, 1.2), step_sizes: tuple = (1e-6, 50), *,
        capturable: bool = False, foreach: bool | None = None, maximize: bool = False,
        differentiable: bool = False,
    ):
        check_lr(lr)
        if not 0.0 < etas[0] < 1.0 < etas[1]:
            raise ValueError(f"Invalid eta values: {etas[0]}, {etas[1]}")
        super().__init__(params, {
            "lr": lr, "etas": etas, "step_sizes": step_sizes, "foreach": foreach,
            "maximize": maximize, "differentiable": differentiable, "capturable": capturable,
        })

    _rule = "rprop"
    _counts = False
    _counters = ("step",)

    def _shared(self, xp, group):
        return {
            "etas": group["etas"], "limits": group["step_sizes"], "maximize": group["maximize"],
        }

    def _states(self, xp, group, data, state):
        if not state:
            start = float(group["lr"])
            if data.dtype.kind == "c":
                start = complex(start, start)
            state["step"] = self._new_count(xp, group)
            state["prev"] = wrap(xp.zeros_like(data))
            state["step_size"] = wrap(xp.full_like(data, start))
        return state["prev"]._data, state["step_size"]._data

    def _own(self, group, state):
        count_step(state)
        return {}


class ASGD(ElementwiseOptimizer):
    """SGD that also keeps the average of the parameters, ``ax`` (Polyak & Juditsky, 1992).

    Args:
        params: what to optimize; see ``Optimizer``.
        lr: the first learning rate; at step t it is lr / (1 + lambd·lr·t)^alpha.
        lambd: decay of the parameters and of the rate.
        alpha: power of that decay.
        t0: the step at which averaging begins.
        maximize: ascend instead.

    Raises:
        ValueError: for options out of range.
    """

    def __init__(
        self, params, lr=1e-2, lambd: float = 1e-4, alpha: float = 0.75, t0: float = 1e6,
        weight_decay: float = 0, foreach: bool | None = None, maximize: bool = False,
        differentiable: bool = False, capturable: bool = False,
    ):
        check_lr(lr)
        check_range("weight_decay value", weight_decay)
        super().__init__(params, {
            "lr": lr, "lambd": lambd, "alpha": alpha, "t0": t0, "weight_decay": weight_decay,
            "foreach": foreach, "maximize": maximize, "differentiable": differentiable,
            "capturable": capturable,
        })

    _rule = "asgd"
    _counters = ("step", "eta", "mu")

    def _shared(self, xp, group):
        shared = {"lambd": group["lambd"], "wd": group["weight_decay"], "maximize": group["maximize"]}
        if self._on_device(xp, group):
            shared |= {"lr": self._learning_rate(xp, group), "alpha": group["alpha"], "t0": group["t0"]}
        return shared

    def _states(self, xp, group, data, state):
        if not state:
            state["step"] = self._new_count(xp, group)
            state["eta"] = self._new_count(xp, group, float(group["lr"]))
            state["mu"] = self._new_count(xp, group, 1.0)
            state["ax"] = wrap(xp.zeros_like(data))
        return (state["ax"]._data,)

    def _own(self, group, state):
        step, lr = count_step(state), float(group["lr"])
        own = {"eta": state["eta"].item(), "mu": state["mu"].item()}  # as the step before left them
        # by way of the default type, also where a loaded state has a wider one
        state["eta"].copy_(ops.tensor(lr / (1 + group["lambd"] * lr * step) ** group["alpha"]))
        state["mu"].copy_(ops.tensor(1 / max(1, step - group["t0"])))
        return own


__all__ = ["ASGD", "Adadelta", "Rprop"]
