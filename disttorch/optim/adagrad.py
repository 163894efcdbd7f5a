"""Adagrad."""

from __future__ import annotations

from ..backend import namespace_of
from ..tensor import wrap
from .elementwise import ElementwiseOptimizer
from .optimizer import check_lr, check_range, count_step, new_step_count


class Adagrad(ElementwiseOptimizer):
    """Steps by the gradient over the root of the sum of its squares (Duchi et al., JMLR 2011).

    Args:
        params: what to optimize; see ``Optimizer``.
        lr: learning rate; at step t it is lr / (1 + (t − 1)·lr_decay).
        initial_accumulator_value: where the sum starts.
        eps: added to its root.
        maximize: ascend instead.

    Raises:
        ValueError: for options out of range.
    """

    def __init__(
        self, params, lr=1e-2, lr_decay: float = 0, weight_decay: float = 0,
        initial_accumulator_value: float = 0, eps: float = 1e-10, foreach: bool | None = None, *,
        maximize: bool = False, differentiable: bool = False, fused: bool | None = None,
    ):
        check_lr(lr)
        for name, value in (("lr_decay", lr_decay), ("weight_decay", weight_decay),
                            ("initial_accumulator_value", initial_accumulator_value),
                            ("epsilon", eps)):
            check_range(f"{name} value", value)
        super().__init__(params, {
            "lr": lr, "lr_decay": lr_decay, "eps": eps, "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value, "foreach": foreach,
            "maximize": maximize, "differentiable": differentiable, "fused": fused,
        })
        for group in self.param_groups:
            for p in group["params"]:
                data = (p if p._local_tensor is None else p._local_tensor)._data
                self._start(namespace_of(data), group, data, self.state[p])

    @staticmethod
    def _start(xp, group, data, state):
        start = group["initial_accumulator_value"]
        if data.dtype.kind == "c":
            start = complex(start, start)
        state["step"] = new_step_count()
        state["sum"] = wrap(xp.full_like(data, start))

    _rule = "adagrad"

    def _shared(self, xp, group):
        return {"eps": group["eps"], "wd": group["weight_decay"], "maximize": group["maximize"]}

    def _states(self, xp, group, data, state):
        if not state:  # of a group that was added later
            self._start(xp, group, data, state)
        return (state["sum"]._data,)

    def _own(self, group, state):
        decay = 1 + (count_step(state) - 1) * group["lr_decay"]
        return {"lr": float(group["lr"]) / decay}


__all__ = ["Adagrad"]
