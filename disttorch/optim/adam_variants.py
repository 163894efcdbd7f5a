"""Relatives of Adam: Adamax, NAdam and RAdam."""

from __future__ import annotations

from ..tensor import wrap
from .elementwise import ElementwiseOptimizer
from .optimizer import check_lr, check_range, count_step


def _check_adam(lr, betas, eps, weight_decay) -> None:
    check_lr(lr)
    check_range("epsilon value", eps)
    for i in (0, 1):
        check_range(f"beta parameter at index {i}", betas[i], 0.0, 1.0)
    check_range("weight_decay value", weight_decay)


def _means(group, lr) -> dict:
    """The options that NAdam's and RAdam's rules share."""
    beta1, beta2 = map(float, group["betas"])
    return {
        "lr": lr, "beta1": beta1, "beta2": beta2, "eps": group["eps"],
        "wd": group["weight_decay"], "decoupled": group["decoupled_weight_decay"],
        "maximize": group["maximize"],
    }


class Adamax(ElementwiseOptimizer):
    """Adam with the largest (decayed) gradient in place of its mean square (arXiv:1412.6980).

    Args:
        params: what to optimize; see ``Optimizer``.
        lr: learning rate.
        betas: decay of the running mean and of the running maximum.
        eps: added to each magnitude.
        maximize: ascend instead.

    Raises:
        ValueError: for options out of range.
    """

    def __init__(
        self, params, lr=2e-3, betas: tuple = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0, foreach: bool | None = None, *, maximize: bool = False,
        differentiable: bool = False, capturable: bool = False,
    ):
        _check_adam(lr, betas, eps, weight_decay)
        super().__init__(params, {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay,
            "foreach": foreach, "maximize": maximize, "differentiable": differentiable,
            "capturable": capturable,
        })

    _rule = "adamax"
    _counters = ("step",)

    def _shared(self, xp, group):
        beta1, beta2 = map(float, group["betas"])
        return {
            "lr": self._learning_rate(xp, group), "beta1": beta1, "beta2": beta2, "eps": group["eps"],
            "wd": group["weight_decay"], "maximize": group["maximize"],
        }

    def _states(self, xp, group, data, state):
        if not state:
            state["step"] = self._new_count(xp, group)
            state["exp_avg"] = wrap(xp.zeros_like(data))
            state["exp_inf"] = wrap(xp.zeros_like(data))
        return state["exp_avg"]._data, state["exp_inf"]._data

    def _own(self, group, state):
        return {"step": count_step(state)}


class NAdam(ElementwiseOptimizer):
    """Adam with Nesterov momentum (Dozat, ICLR workshop 2016).

    Args:
        params: what to optimize; see ``Optimizer``.
        lr: learning rate.
        betas: decay of the running means of gradient and squared gradient.
        momentum_decay: how fast the momentum rises towards the first beta.
        decoupled_weight_decay: take the decay off the parameters directly.
        maximize: ascend instead.

    Raises:
        ValueError: for options out of range.
    """

    def __init__(
        self, params, lr=2e-3, betas: tuple = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0, momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False, *, foreach: bool | None = None,
        maximize: bool = False, capturable: bool = False, differentiable: bool = False,
    ):
        _check_adam(lr, betas, eps, weight_decay)
        check_range("momentum_decay value", momentum_decay)
        super().__init__(params, {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay,
            "momentum_decay": momentum_decay, "decoupled_weight_decay": decoupled_weight_decay,
            "maximize": maximize, "foreach": foreach, "capturable": capturable,
            "differentiable": differentiable,
        })

    _rule = "nadam"
    _counters = ("step", "mu_product")

    def _shared(self, xp, group):
        shared = _means(group, self._learning_rate(xp, group))
        if self._on_device(xp, group):
            shared["momentum_decay"] = group["momentum_decay"]
        return shared

    def _states(self, xp, group, data, state):
        if not state:
            state["step"] = self._new_count(xp, group)
            state["mu_product"] = self._new_count(xp, group, 1.0)
            state["exp_avg"] = wrap(xp.zeros_like(data))
            state["exp_avg_sq"] = wrap(xp.zeros_like(data))
        return state["exp_avg"]._data, state["exp_avg_sq"]._data

    def _own(self, group, state):
        step, beta1, decay = count_step(state), float(group["betas"][0]), group["momentum_decay"]
        mu = beta1 * (1 - 0.5 * 0.96 ** (step * decay))
        mu_next = beta1 * (1 - 0.5 * 0.96 ** ((step + 1) * decay))
        product = state["mu_product"]._data
        product *= mu
        return {"step": step, "mu": mu, "mu_next": mu_next, "mu_product": float(product)}

    def __setstate__(self, state):
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("decoupled_weight_decay", False)


class RAdam(ElementwiseOptimizer):
    """Adam whose adaptive step waits until its variance is known (Liu et al., arXiv:1908.03265).

    Args:
        params: what to optimize; see ``Optimizer``.
        lr: learning rate.
        betas: decay of the running means of gradient and squared gradient.
        decoupled_weight_decay: take the decay off the parameters directly.
        maximize: ascend instead.

    Raises:
        ValueError: for options out of range.
    """

    def __init__(
        self, params, lr=1e-3, betas: tuple = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0, decoupled_weight_decay: bool = False, *,
        foreach: bool | None = None, maximize: bool = False, capturable: bool = False,
        differentiable: bool = False,
    ):
        _check_adam(lr, betas, eps, weight_decay)
        super().__init__(params, {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay,
            "maximize": maximize, "foreach": foreach, "capturable": capturable,
            "decoupled_weight_decay": decoupled_weight_decay, "differentiable": differentiable,
        })

    _rule = "radam"
    _counters = ("step",)

    def _shared(self, xp, group):
        return _means(group, self._learning_rate(xp, group))

    def _states(self, xp, group, data, state):
        if not state:
            state["step"] = self._new_count(xp, group)
            state["exp_avg"] = wrap(xp.zeros_like(data))
            state["exp_avg_sq"] = wrap(xp.zeros_like(data))
        return state["exp_avg"]._data, state["exp_avg_sq"]._data

    def _own(self, group, state):
        step = count_step(state)
        return {"step": step, "rectification": _rectification(step, float(group["betas"][1]))}

    def __setstate__(self, state):
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("decoupled_weight_decay", False)


def _rectification(step: float, beta2: float) -> float | None:
    """The factor on the adaptive step, or None while too few gradients have been seen."""
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * step * beta2**step / (1 - beta2**step)
    if length <= 5:
        return None
    return ((length - 4) * (length - 2) * longest
            / ((longest - 4) * (longest - 2) * length)) ** 0.5


__all__ = ["Adamax", "NAdam", "RAdam"]
