"""Adam and AdamW."""

from __future__ import annotations

from ..tensor import wrap
from .elementwise import ElementwiseOptimizer
from .optimizer import check_lr, check_range, count_step


class Adam(ElementwiseOptimizer):
    """Steps by the ratio of running means of gradient and squared gradient (arXiv:1412.6980).

    Args:
        params: what to optimize; see ``Optimizer``.
        lr: learning rate.
        betas: decay of the two running means.
        eps: added to the root of the second.
        weight_decay: added to the gradient, or taken off the parameter if
            ``decoupled_weight_decay`` (arXiv:1711.05101).
        amsgrad: use the largest second mean so far (Reddi et al., ICLR 2018).
        maximize: ascend instead.

    Raises:
        ValueError: for options out of range.
    """

    def __init__(
        self, params, lr=1e-3, betas: tuple = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0, amsgrad: bool = False, *, foreach: bool | None = None,
        maximize: bool = False, capturable: bool = False, differentiable: bool = False,
        fused: bool | None = None, decoupled_weight_decay: bool = False,
    ):
        check_lr(lr)
        check_range("epsilon value", eps)
        for i in (0, 1):
            check_range(f"beta parameter at index {i}", betas[i], 0.0, 1.0)
        check_range("weight_decay value", weight_decay)
        super().__init__(params, {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay,
            "amsgrad": amsgrad, "maximize": maximize, "foreach": foreach,
            "capturable": capturable, "differentiable": differentiable, "fused": fused,
            "decoupled_weight_decay": decoupled_weight_decay,
        })

    _rule = "adam"
    _counters = ("step",)
    _scales = True

    def _shared(self, xp, group):
        beta1, beta2 = group["betas"]
        return {
            "lr": self._learning_rate(xp, group), "beta1": float(beta1), "beta2": float(beta2),
            "eps": group["eps"], "wd": group["weight_decay"],
            "decoupled": group["decoupled_weight_decay"], "maximize": group["maximize"],
        }

    def _states(self, xp, group, data, state):
        if not state:
            state["step"] = self._new_count(xp, group)
            state["exp_avg"] = wrap(xp.zeros_like(data))
            state["exp_avg_sq"] = wrap(xp.zeros_like(data))
            if group["amsgrad"]:
                state["max_exp_avg_sq"] = wrap(xp.zeros_like(data))
        largest = state["max_exp_avg_sq"]._data if group["amsgrad"] else None
        return state["exp_avg"]._data, state["exp_avg_sq"]._data, largest

    def _own(self, group, state):
        return {"step": count_step(state)}

    def __setstate__(self, state):
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in (
                ("amsgrad", False), ("maximize", False), ("foreach", None), ("capturable", False),
                ("differentiable", False), ("fused", None),
                ("decoupled_weight_decay", self.defaults.get("decoupled_weight_decay", False)),
            ):
                group.setdefault(name, value)


class AdamW(Adam):
    """Adam whose weight decay shrinks the parameters directly (Loshchilov & Hutter, 1711.05101).

    Arguments as of ``Adam``; ``weight_decay`` is 0.01 by default.
    """

    def __init__(
        self, params, lr=1e-3, betas: tuple = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 1e-2, amsgrad: bool = False, *, maximize: bool = False,
        foreach: bool | None = None, capturable: bool = False, differentiable: bool = False,
        fused: bool | None = None,
    ):
        super().__init__(
            params, lr, betas, eps, weight_decay, amsgrad, foreach=foreach, maximize=maximize,
            capturable=capturable, differentiable=differentiable, fused=fused,
            decoupled_weight_decay=True,
        )

    def __setstate__(self, state):
        super().__setstate__(state)
        for group in self.param_groups:  # older files do not have it
            group["decoupled_weight_decay"] = True


__all__ = ["Adam", "AdamW"]
