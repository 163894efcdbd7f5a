"""Muon: momentum whose update is made orthogonal."""

from __future__ import annotations

import math

from ..backend import dtypes
from ..tensor import Tensor, wrap
from .elementwise import ElementwiseOptimizer


class Muon(ElementwiseOptimizer):
    """Steps by the orthogonal factor of the momentum of each weight matrix (K. Jordan, 2024).

    For the matrices of hidden layers; biases, embeddings and the like go to another optimizer.

    Args:
        params: two-dimensional parameters; see ``Optimizer``.
        lr: learning rate.
        weight_decay: taken off the parameters directly.
        momentum: decay of the running mean of gradients.
        nesterov: look ahead by one momentum step.
        ns_coefficients: a, b, c of the Newton-Schulz iteration a·X + (b·XXᵀ + c·(XXᵀ)²)·X.
        eps: least norm to divide by.
        ns_steps: iterations.
        adjust_lr_fn: "original" (or None): times √max(1, rows/columns); "match_rms_adamw": times
            0.2·√max(rows, columns), for rates tuned for AdamW (Liu et al., arXiv:2502.16982).

    Raises:
        ValueError: for options out of range or a parameter that is no matrix.
    """

    _updates_parts = False

    def __init__(
        self, params, lr: float = 1e-3, weight_decay: float = 0.1, momentum: float = 0.95,
        nesterov: bool = True, ns_coefficients: tuple = (3.4445, -4.7750, 2.0315),
        eps: float = 1e-7, ns_steps: int = 5, adjust_lr_fn: str | None = None,
    ):
        if isinstance(lr, Tensor) and lr.numel() != 1:
            raise ValueError("Tensor lr must be 1-element")
        for name, value in (("Learning rate", lr), ("momentum", momentum),
                            ("weight decay", weight_decay)):
            if not value >= 0:
                raise ValueError(f"{name} should be >= 0 but is: {value}")
        if adjust_lr_fn not in (None, "original", "match_rms_adamw"):
            raise ValueError(f"Adjust learning rate function {adjust_lr_fn} is not supported")
        super().__init__(params, {
            "lr": lr, "weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov,
            "ns_coefficients": ns_coefficients, "eps": eps, "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn,
        })
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim != 2:
                    raise ValueError(
                        "Muon only supports 2D parameters whereas we found a parameter with size: "
                        f"{p.shape}"
                    )

    def _update(self, xp, group, param, data, grad):
        if data.dtype.kind == "c":
            raise RuntimeError("Muon does not support complex parameters")
        state, momentum, lr = self.state[param], group["momentum"], float(group["lr"])
        if not state:
            state["momentum_buffer"] = wrap(xp.zeros_like(grad))
        buf = state["momentum_buffer"]._data
        buf += (grad - buf) * (1 - momentum)
        update = grad + (buf - grad) * momentum if group["nesterov"] else buf
        update = _orthogonal(
            xp, update, group["ns_coefficients"], group["ns_steps"], group["eps"]
        )
        data *= 1 - lr * group["weight_decay"]
        step = update * (lr * _ratio(group["adjust_lr_fn"], data.shape))
        data -= step.astype(data.dtype)


def _ratio(adjust: str | None, shape) -> float:
    rows, columns = shape
    if adjust == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1, rows / columns))


def _orthogonal(xp, matrix, coefficients, steps, eps):
    """About U·Vᵀ of the matrix's singular value decomposition, in float32.

    Like PyTorch it iterates in bfloat16: products are summed in float32 and rounded.
    """
    if steps >= 100:
        raise ValueError("Number of steps must be less than 100 for computational efficiency")
    if len(coefficients) != 3:
        raise ValueError("Coefficients must be a tuple of exactly 3 values")
    a, b, c = coefficients

    def rounded(x):
        return x.astype(dtypes.bfloat16.np).astype("float32")

    x = rounded(matrix)
    tall = matrix.shape[0] > matrix.shape[1]
    if tall:
        x = x.T
    norm = rounded(xp.sqrt((x * x).sum(dtype="float32")))
    x = rounded(x / xp.maximum(norm, eps))
    for _ in range(steps):
        gram = rounded(x @ x.T)
        polynomial = rounded(gram * b + (gram @ gram) * c)
        x = rounded(x * a + polynomial @ x)
    return x.T if tall else x


__all__ = ["Muon"]
