"""Losses. Elementwise ones take input and target of one shape; ``reduction`` is "mean", "sum" or
"none". ``size_average`` and ``reduce`` are PyTorch's older spelling of it."""

from __future__ import annotations

import warnings

from ... import ops
from ...autograd import Function
from ...tensor import Tensor


def legacy_reduction(size_average, reduce, reduction: str) -> str:
    """The ``reduction`` that the deprecated flags stand for, if any is given."""
    if size_average is None and reduce is None:
        return reduction
    chosen = "none" if reduce is False else "sum" if size_average is False else "mean"
    warnings.warn(
        "size_average and reduce args will be deprecated, please use "
        f"reduction='{chosen}' instead.",
        stacklevel=3,
    )
    return chosen


def reduce_loss(loss: Tensor, reduction: str) -> Tensor:
    """The mean, the sum or all of ``loss``.

    Raises:
        ValueError: for another reduction.
    """
    if reduction == "mean":
        return loss.mean()
    if reduction == "sum":
        return loss.sum()
    if reduction == "none":
        return loss
    raise ValueError(f"{reduction} is not a valid value for reduction")


def _warn_of_broadcast(input, target):
    if input.shape != target.shape:
        warnings.warn(
            f"Using a target size ({target.shape}) that is different to the input size "
            f"({input.shape}). This will likely lead to incorrect results due to broadcasting. "
            "Please ensure they have the same size.",
            stacklevel=3,
        )


def _weighted(loss, weight, reduction):
    """Reduce an elementwise loss; weights make the mean a weighted one."""
    if weight is None:
        return reduce_loss(loss, reduction)
    loss = loss * weight
    if reduction == "mean":
        return loss.sum() / weight.expand(loss.shape).sum()
    return reduce_loss(loss, reduction)


# ---------------------------------------------------------------- classes
def cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None = None, size_average=None,
    ignore_index: int = -100, reduce=None, reduction: str = "mean", label_smoothing: float = 0.0,
) -> Tensor:
    """Cross entropy between logits and classes.

    Args:
        input: logits [C], [N, C] or [N, C, d1, …].
        target: class indices [], [N] or [N, d1, …], or probabilities of the input's shape.
        weight: factor of each class, [C].
        ignore_index: a target index that contributes neither loss nor gradient.
        label_smoothing: share of the target spread over all classes (arXiv:1512.00567).
    """
    return ops.cross_entropy(
        input, target, weight, ignore_index=ignore_index,
        reduction=legacy_reduction(size_average, reduce, reduction),
        label_smoothing=label_smoothing,
    )


def nll_loss(
    input: Tensor, target: Tensor, weight: Tensor | None = None, size_average=None,
    ignore_index: int = -100, reduce=None, reduction: str = "mean",
) -> Tensor:
    """Negative log-likelihood of class indices.

    Args:
        input: log-probabilities [C], [N, C] or [N, C, d1, …].
        target: int64 class indices [], [N] or [N, d1, …].
        weight: factor of each class, [C].
        ignore_index: a target index that contributes neither loss nor gradient.
    """
    return ops.nll_loss(
        input, target, weight, ignore_index=ignore_index,
        reduction=legacy_reduction(size_average, reduce, reduction),
    )


# ---------------------------------------------------------------- distances
def mse_loss(
    input: Tensor, target: Tensor, size_average=None, reduce=None, reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """(input − target)²."""
    reduction = legacy_reduction(size_average, reduce, reduction)
    _warn_of_broadcast(input, target)
    d = input - target
    return _weighted(d * d, weight, reduction)


def l1_loss(
    input: Tensor, target: Tensor, size_average=None, reduce=None, reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """|input − target|."""
    reduction = legacy_reduction(size_average, reduce, reduction)
    _warn_of_broadcast(input, target)
    return _weighted((input - target).abs(), weight, reduction)


def smooth_l1_loss(
    input: Tensor, target: Tensor, size_average=None, reduce=None, reduction: str = "mean",
    beta: float = 1.0,
) -> Tensor:
    """Quadratic below ``beta``, linear above (Girshick, arXiv:1504.08083).

    Raises:
        ValueError: if beta is negative.
    """
    reduction = legacy_reduction(size_average, reduce, reduction)
    _warn_of_broadcast(input, target)
    if beta < 0:
        raise ValueError(f"smooth_l1_loss does not support negative values for beta, got {beta}")
    d = input - target
    size = d.abs()
    if beta == 0:
        return reduce_loss(size, reduction)
    return reduce_loss(ops.where(size < beta, d * d * (0.5 / beta), size - 0.5 * beta), reduction)


def huber_loss(
    input: Tensor, target: Tensor, reduction: str = "mean", delta: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Quadratic up to ``delta``, linear with slope delta above (Huber, 1964).

    Raises:
        ValueError: if delta is not positive.
    """
    if delta <= 0:
        raise ValueError(f"huber_loss does not support non-positive values for delta, got {delta}")
    _warn_of_broadcast(input, target)
    d = input - target
    size = d.abs()
    loss = ops.where(size <= delta, d * d * 0.5, (size - 0.5 * delta) * delta)
    return reduce_loss(loss if weight is None else loss * weight, reduction)


# ---------------------------------------------------------------- probabilities
def binary_cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None = None, size_average=None, reduce=None,
    reduction: str = "mean",
) -> Tensor:
    """−(target·log(input) + (1 − target)·log(1 − input)), logs limited to −100 from below.

    Args:
        input: probabilities.
        target: probabilities of the same shape.
        weight: factor of each element; broadcasts.

    Raises:
        ValueError: if the shapes differ.
        RuntimeError: if an input is outside [0, 1].
    """
    reduction = legacy_reduction(size_average, reduce, reduction)
    if target.shape != input.shape:
        raise ValueError(
            f"Using a target size ({target.shape}) that is different to the input size "
            f"({input.shape}) is deprecated. Please ensure they have the same size."
        )
    x = input.detach()
    if bool(((x < 0).logical_or(x > 1)).any()):
        raise RuntimeError("all elements of input should be between 0 and 1")
    loss = BinaryCrossEntropy.apply(input, target)
    return reduce_loss(loss if weight is None else loss * weight, reduction)


class BinaryCrossEntropy(Function):
    """The elementwise loss, with a gradient that stays finite at 0 and 1."""

    @staticmethod
    def forward(ctx, input, target):
        ctx.save_for_backward(input, target)
        return -(
            target * input.log().clamp(min=-100)
            + (1 - target) * (1 - input).log().clamp(min=-100)
        )

    @staticmethod
    def backward(ctx, grad):
        input, target = ctx.saved_tensors
        rest = 1 - input
        grad_input = grad * (input - target) / (rest * input).clamp(min=1e-12)
        return grad_input, grad * (rest.log() - input.log())


def binary_cross_entropy_with_logits(
    input: Tensor, target: Tensor, weight: Tensor | None = None, size_average=None, reduce=None,
    reduction: str = "mean", pos_weight: Tensor | None = None,
) -> Tensor:
    """Binary cross entropy of sigmoid(input), without overflow.

    Args:
        input: logits.
        target: probabilities of the same shape.
        weight: factor of each element; ``pos_weight``: of the positive part. Both broadcast.

    Raises:
        ValueError: if the shapes differ.
    """
    reduction = legacy_reduction(size_average, reduce, reduction)
    if target.shape != input.shape:
        raise ValueError(
            f"Target size ({target.shape}) must be the same as input size ({input.shape})"
        )
    log_sigmoid = ops.log_sigmoid(input)
    if pos_weight is not None:
        log_sigmoid = ((pos_weight - 1) * target + 1) * log_sigmoid
    loss = (1 - target) * input - log_sigmoid
    return reduce_loss(loss if weight is None else loss * weight, reduction)


def kl_div(
    input: Tensor, target: Tensor, size_average=None, reduce=None, reduction: str = "mean",
    log_target: bool = False,
) -> Tensor:
    """target·(log(target) − input), elementwise.

    Args:
        input: log-probabilities.
        target: probabilities, or their logarithms with ``log_target``.
        reduction: also "batchmean": the sum divided by the size of dim 0.
    """
    reduction = legacy_reduction(size_average, reduce, reduction)
    if reduction == "mean":
        warnings.warn(
            "reduction: 'mean' divides the total loss by both the batch size and the support "
            "size. 'batchmean' divides only by the batch size, and aligns with the KL div math "
            "definition.",
            stacklevel=2,
        )
    if log_target:
        loss = target.exp() * (target - input)
    else:
        logs = ops.where(target > 0, target, 1.0).log()  # 0·log 0 counts as 0
        loss = target * logs - target * input
    if reduction == "batchmean":
        return loss.sum() / input.shape[0] if input.ndim else loss.sum()
    return reduce_loss(loss, reduction)
