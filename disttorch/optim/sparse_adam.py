"""Adam for gradients of which few rows are not zero."""

from __future__ import annotations

from ..tensor import wrap
from .elementwise import ElementwiseOptimizer
from .optimizer import check_lr, check_range


class SparseAdam(ElementwiseOptimizer):
    """Adam that leaves rows without gradient, and their running means, as they are.

    It is for embeddings, where a batch touches few rows. PyTorch tells those rows by sparse
    gradients; gradients here are dense, so a row (along dim 0) counts as touched if any element of
    its gradient is not zero. On such gradients the results are PyTorch's.

    Args:
        params: real parameters; see ``Optimizer``.
        lr: learning rate.
        betas: decay of the running means of gradient and squared gradient.
        eps: added to the root of the second.
        maximize: ascend instead.

    Raises:
        ValueError: for options out of range or complex parameters.
    """

    def __init__(
        self, params, lr=1e-3, betas: tuple = (0.9, 0.999), eps: float = 1e-8,
        maximize: bool = False,
    ):
        check_lr(lr)
        if not lr > 0:
            raise ValueError(f"Invalid learning rate: {lr}")
        if not eps > 0:
            raise ValueError(f"Invalid epsilon value: {eps}")
        for i in (0, 1):
            check_range(f"beta parameter at index {i}", betas[i], 0.0, 1.0)
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "maximize": maximize})
        found = [
            [i, k] for i, group in enumerate(self.param_groups)
            for k, p in enumerate(group["params"]) if p.is_complex()
        ]
        if found:
            raise ValueError(
                f"Complex params at indices {found}: SparseAdam does not support complex parameters"
            )

    def _update(self, xp, group, param, data, grad):
        state = self.state[param]
        if not state:
            state["step"] = 0
            state["exp_avg"] = wrap(xp.zeros_like(data))
            state["exp_avg_sq"] = wrap(xp.zeros_like(data))
        state["step"] += 1
        touched = (grad != 0).reshape(grad.shape[0], -1).any(axis=1) if grad.ndim else ...
        if grad.ndim and not touched.any():
            return
        beta1, beta2 = map(float, group["betas"])
        means = state["exp_avg"]._data, state["exp_avg_sq"]._data
        rows = [a[touched].copy() for a in (data, *means)]
        xp.adam_step(
            rows[0], grad[touched], *rows[1:], step=state["step"], lr=float(group["lr"]),
            beta1=beta1, beta2=beta2, eps=group["eps"], maximize=group["maximize"],
            scaled_eps=True,
        )
        for array, changed in zip((data, *means), rows):
            array[touched] = changed


__all__ = ["SparseAdam"]
