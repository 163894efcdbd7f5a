"""Adafactor: Adam's second moment as the product of a row and a column."""

from __future__ import annotations

from .. import ops
from ..backend import dtypes
from ..tensor import Tensor, wrap
from .elementwise import ElementwiseOptimizer
from .optimizer import count_step, new_step_count


class Adafactor(ElementwiseOptimizer):
    """Steps relative to the size of each parameter, with little memory (arXiv:1804.04235).

    As in PyTorch, ``lr`` bounds the relative step and scales the weight decay.

    Args:
        params: real parameters; see ``Optimizer``.
        lr: the largest relative step; it is min(lr, 1/√t) at step t.
        beta2_decay: the second moment decays by 1 − t^beta2_decay.
        eps: least root of the second moment (None: the type's), and least size of a parameter.
        d: updates of a larger root mean square are scaled down to it.
        weight_decay: taken off the parameters directly, times lr.
        maximize: ascend instead.

    Raises:
        ValueError: for options out of range.
    """

    _updates_parts = False

    def __init__(
        self, params, lr=1e-2, beta2_decay: float = -0.8, eps: tuple = (None, 1e-3),
        d: float = 1.0, weight_decay: float = 0.0, *, foreach: bool | None = None,
        maximize: bool = False,
    ):
        if isinstance(lr, Tensor) and lr.numel() != 1:
            raise ValueError("Tensor lr must be 1-element")
        if not lr >= 0:
            raise ValueError(f"Learning rate should be >= 0 but is: {lr}")
        if not beta2_decay <= 0:
            raise ValueError(f"beta2_decay should be <= 0 but is: {beta2_decay}")
        if eps[0] is not None and not eps[0] >= 0:
            raise ValueError(f"epsilon1 should be >= 0 but is: {eps[0]}")
        if not eps[1] >= 0:
            raise ValueError(f"epsilon2 should be >= 0 but is: {eps[1]}")
        if not d >= 1:
            raise ValueError(f"Clipping threshold d should be >= 1 but is: {d}")
        if not weight_decay >= 0:
            raise ValueError(f"weight_decay should be >= 0 but is: {weight_decay}")
        super().__init__(params, {
            "lr": lr, "beta2_decay": beta2_decay, "eps": eps, "d": d,
            "weight_decay": weight_decay, "foreach": foreach, "maximize": maximize,
        })

    def _update(self, xp, group, param, data, grad):
        if data.dtype.kind == "c":
            raise RuntimeError("Adafactor does not support complex parameters")
        state, lr = self.state[param], float(group["lr"])
        if not state:
            self._start(xp, state, grad)
        step, (eps1, eps2) = count_step(state), group["eps"]
        if eps1 is None:
            eps1 = dtypes.finfo(param.dtype).eps
        p, g = wrap(data), wrap(-grad if group["maximize"] else grad)
        root_size = p.numel() ** 0.5
        alpha = max(eps2, p.norm(2).item() / root_size) * min(lr, 1 / step**0.5)
        if group["weight_decay"]:
            p.mul_(1 - lr * group["weight_decay"])
        variance = _second_moment(state, g, step ** group["beta2_decay"], eps1)
        # eps1 is a bound of the root, so its square bounds the variance
        update = variance.clamp_(min=eps1 * eps1).rsqrt_().mul_(g)
        size = update.norm(2).item() / (root_size * group["d"])
        p.add_(update, alpha=-alpha / max(1.0, size))

    @staticmethod
    def _start(xp, state, grad):
        state["step"] = new_step_count()
        if grad.ndim > 1:
            shape = grad.shape
            state["row_var"] = wrap(xp.zeros((*shape[:-1], 1), grad.dtype))
            state["col_var"] = wrap(xp.zeros((*shape[:-2], 1, shape[-1]), grad.dtype))
        else:
            state["variance"] = wrap(xp.zeros_like(grad))


def _second_moment(state, g, weight: float, eps: float) -> Tensor:
    """The estimate of the mean square of each element, after taking in gradient ``g``."""
    if g.ndim <= 1:
        return state["variance"].lerp_(g * g, weight).clone()
    row, column = state["row_var"], state["col_var"]
    row.lerp_(ops.norm(g, dim=-1, keepdim=True).square_().div_(g.shape[-1]), weight)
    column.lerp_(ops.norm(g, dim=-2, keepdim=True).square_().div_(g.shape[-2]), weight)
    return (row @ column).div_(row.mean(dim=-2, keepdim=True).clamp_(min=eps))


__all__ = ["Adafactor"]
