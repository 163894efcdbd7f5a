"""Losses that ask for a margin, and likelihoods of Poisson and normal distributions.

Shape legend: N batch, C classes. ``reduction`` is "mean", "sum" or "none".
"""

from __future__ import annotations

import math

from ... import ops
from ...tensor import Tensor
from .loss import legacy_reduction, reduce_loss
from .normalization import pairwise_distance


def _check_reduction(reduction: str) -> None:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"{reduction} is not a valid value for reduction")


# ---------------------------------------------------------------- two or three inputs
def hinge_embedding_loss(
    input: Tensor, target: Tensor, margin: float = 1.0, size_average=None, reduce=None,
    reduction: str = "mean",
) -> Tensor:
    """input where target is 1, max(0, margin − input) where it is −1; shapes broadcast."""
    reduction = legacy_reduction(size_average, reduce, reduction)
    apart = ops.where(target != 1, (margin - input).clamp(min=0), 0.0)
    return reduce_loss(apart + ops.where(target != -1, input, 0.0), reduction)


def cosine_embedding_loss(
    input1: Tensor, input2: Tensor, target: Tensor, margin: float = 0, size_average=None,
    reduce=None, reduction: str = "mean",
) -> Tensor:
    """1 − cos where target is 1, max(0, cos − margin) where it is −1.

    Args:
        input1, input2: [N, D] or [D].
        target: [N] or [].

    Raises:
        RuntimeError: if the numbers of dimensions do not fit.
    """
    reduction = legacy_reduction(size_average, reduce, reduction)
    if target.ndim not in (0, 1):
        raise RuntimeError("0D or 1D target tensor expected, multi-target not supported")
    if not input1.ndim == input2.ndim == target.ndim + 1:
        raise RuntimeError(
            f"{target.ndim}D target tensor expects {target.ndim + 1}D input tensors, but found "
            f"inputs with sizes {list(input1.shape)} and {list(input2.shape)}."
        )
    eps = 1e-12
    dot = (input1 * input2).sum(-1)
    sizes = ((input1 * input1).sum(-1) + eps) * ((input2 * input2).sum(-1) + eps)
    cos = dot / sizes.sqrt()
    loss = ops.where(target == 1, 1 - cos, 0.0)
    loss = loss + ops.where(target == -1, (cos - margin).clamp(min=0), 0.0)
    return reduce_loss(loss, reduction)


def margin_ranking_loss(
    input1: Tensor, input2: Tensor, target: Tensor, margin: float = 0, size_average=None,
    reduce=None, reduction: str = "mean",
) -> Tensor:
    """max(0, −target·(input1 − input2) + margin): which of two is to be ranked higher.

    Raises:
        RuntimeError: if the numbers of dimensions differ.
    """
    reduction = legacy_reduction(size_average, reduce, reduction)
    if not input1.ndim == input2.ndim == target.ndim:
        raise RuntimeError(
            "margin_ranking_loss : All input tensors should have same dimension but got sizes: "
            f"input1: {input1.shape}, input2: {input2.shape}, target: {target.shape} "
        )
    return reduce_loss((-target * (input1 - input2) + margin).clamp(min=0), reduction)


def triplet_margin_loss(
    anchor: Tensor, positive: Tensor, negative: Tensor, margin: float = 1.0, p: float = 2,
    eps: float = 1e-6, swap: bool = False, size_average=None, reduce=None, reduction: str = "mean",
) -> Tensor:
    """max(0, ‖anchor − positive‖ₚ − ‖anchor − negative‖ₚ + margin) (BMVC 2016, paper 119).

    Args:
        eps: added to each difference.
        swap: take the distance of positive and negative where it is the smaller one.

    Raises:
        ValueError, RuntimeError: if the margin is not positive or the dimensions differ.
    """
    reduction = legacy_reduction(size_average, reduce, reduction)
    return triplet_margin_with_distance_loss(
        anchor, positive, negative, margin=margin, swap=swap, reduction=reduction,
        distance_function=lambda a, b: pairwise_distance(a, b, p, eps),
    )


def triplet_margin_with_distance_loss(
    anchor: Tensor, positive: Tensor, negative: Tensor, *, distance_function=None,
    margin: float = 1.0, swap: bool = False, reduction: str = "mean",
) -> Tensor:
    """``triplet_margin_loss`` with any function of two tensors as the distance."""
    _check_reduction(reduction)
    if margin <= 0:
        raise ValueError(f"margin must be greater than 0, got {margin}")
    if not anchor.ndim == positive.ndim == negative.ndim:
        raise RuntimeError(
            "The anchor, positive, and negative tensors are expected to have the same number of "
            f"dimensions, but got: anchor {anchor.ndim}D, positive {positive.ndim}D, and negative "
            f"{negative.ndim}D inputs"
        )
    distance = pairwise_distance if distance_function is None else distance_function
    near, far = distance(anchor, positive), distance(anchor, negative)
    if swap:
        far = ops.minimum(far, distance(positive, negative))
    return reduce_loss((margin + near - far).clamp(min=0), reduction)


# ---------------------------------------------------------------- classes
def multi_margin_loss(
    input: Tensor, target: Tensor, p: int = 1, margin: float = 1.0, weight: Tensor | None = None,
    size_average=None, reduce=None, reduction: str = "mean",
) -> Tensor:
    """Σ over the other classes of max(0, margin − x[target] + x[i])ᵖ / C.

    Args:
        input: [N, C] or [C].
        target: int64 [N] or [].
        p: 1 or 2.
        weight: factor of each target class, [C].

    Raises:
        ValueError, RuntimeError: if p, weight or target do not fit.
    """
    reduction = legacy_reduction(size_average, reduce, reduction)
    if p not in (1, 2):
        raise ValueError("only p == 1 and p == 2 supported")
    if weight is not None and weight.ndim != 1:
        raise ValueError("weight must be one-dimensional")
    rows = input.reshape(1, -1) if input.ndim < 2 else input
    picks, classes = target.reshape(-1), rows.shape[1]
    if picks.numel() != rows.shape[0] or target.ndim > 1:
        raise RuntimeError(
            "multi_margin_loss: target tensor should be 1-D with size equal to the number of "
            f"input samples (batch size). Expected target size [{rows.shape[0]}], but got "
            f"{list(target.shape)}. Input has shape {list(input.shape)}."
        )
    if weight is not None and weight.numel() != classes:
        raise RuntimeError(
            f"inconsistent weight size, expected {classes} but got {list(weight.shape)}"
        )
    if bool(((picks < 0) | (picks >= classes)).any()):
        raise RuntimeError("target out of range")
    index = picks.unsqueeze(1)
    loss = (margin - rows.gather(1, index) + rows).clamp(min=0)
    if p == 2:
        loss = loss * loss
    if weight is not None:
        loss = loss * weight[picks].unsqueeze(1)
    others = ops.arange(classes, device=input.device) != index
    loss = ops.where(others, loss, 0.0).sum(1) / classes
    return reduce_loss(loss.reshape(target.shape), reduction)


def multilabel_margin_loss(
    input: Tensor, target: Tensor, size_average=None, reduce=None, reduction: str = "mean"
) -> Tensor:
    """Σ over targets j and other classes i of max(0, 1 − x[j] + x[i]) / C.

    Args:
        input: [N, C] or [C].
        target: int64 of the same shape: class indices, ended by the first −1.

    Raises:
        RuntimeError: if the shapes differ or an index is out of range.
    """
    reduction = legacy_reduction(size_average, reduce, reduction)
    if input.shape != target.shape:
        raise RuntimeError(
            f"inconsistent target size: {list(target.shape)} for input of size: "
            f"{list(input.shape)}"
        )
    rows, picks = (t.reshape(-1, input.shape[-1] if input.ndim else 1) for t in (input, target))
    classes = rows.shape[1]
    if bool(((picks < -1) | (picks >= classes)).any()):
        raise RuntimeError("argument #2 'target' is out of range")
    given = (picks < 0).cumsum(1) == 0
    index = picks.clamp(min=0)
    named = ops.zeros_like(rows.detach()).scatter_add(1, index, given.to(rows.dtype)) > 0
    loss = (1 - rows.gather(1, index).unsqueeze(2) + rows.unsqueeze(1)).clamp(min=0)
    counts = given.unsqueeze(2) & named.logical_not().unsqueeze(1)
    loss = ops.where(counts, loss, 0.0).sum((1, 2)) / classes
    return reduce_loss(loss.reshape(input.shape[:-1]), reduction)


def soft_margin_loss(
    input: Tensor, target: Tensor, size_average=None, reduce=None, reduction: str = "mean"
) -> Tensor:
    """log(1 + exp(−target·input)), target 1 or −1."""
    reduction = legacy_reduction(size_average, reduce, reduction)
    return reduce_loss(-ops.log_sigmoid(target * input), reduction)


def multilabel_soft_margin_loss(
    input: Tensor, target: Tensor, weight: Tensor | None = None, size_average=None, reduce=None,
    reduction: str = "mean",
) -> Tensor:
    """The mean over classes (the last dim) of binary cross entropies of logits.

    Args:
        input, target: [N, C]; targets 0 or 1.
        weight: factor of each class, [C].
    """
    reduction = legacy_reduction(size_average, reduce, reduction)
    _check_reduction(reduction)
    loss = -(target * ops.log_sigmoid(input) + (1 - target) * ops.log_sigmoid(-input))
    if weight is not None:
        loss = loss * weight
    return reduce_loss(loss.sum(-1) / input.shape[-1], reduction)


# ---------------------------------------------------------------- likelihoods
def poisson_nll_loss(
    input: Tensor, target: Tensor, log_input: bool = True, full: bool = False, size_average=None,
    eps: float = 1e-8, reduce=None, reduction: str = "mean",
) -> Tensor:
    """Negative log-likelihood of counts under Poisson distributions, without the constant.

    Args:
        log_input: ``input`` is the logarithm of the rate; otherwise the rate.
        full: add Stirling's approximation of log(target!) where target is above 1.
        eps: added to the rate under the logarithm.
    """
    reduction = legacy_reduction(size_average, reduce, reduction)
    _check_reduction(reduction)
    if log_input:
        loss = input.exp() - target * input
    else:
        loss = input - target * (input + eps).log()
    if full:
        stirling = target * target.log() - target + 0.5 * (2 * math.pi * target).log()
        loss = loss + ops.where(target > 1, stirling, 0.0)
    return reduce_loss(loss, reduction)


def gaussian_nll_loss(
    input: Tensor, target: Tensor, var: Tensor | float, full: bool = False, eps: float = 1e-6,
    reduction: str = "mean",
) -> Tensor:
    """Negative log-likelihood of values under normal distributions (Nix & Weigend, ICNN 1994).

    Args:
        input: means; target: values.
        var: variances: one number, the input's shape, that without the last dim, or with one dim
            of 1.
        full: add the constant log(2π)/2.
        eps: the least variance; the gradient is that of the variance as it was raised.

    Raises:
        ValueError: if a variance is negative or of another shape.
    """
    if isinstance(var, float):
        if var < 0:
            raise ValueError("var has negative entry/entries")
        var = ops.full_like(input.detach(), var)
    elif bool((var < 0).any()):
        raise ValueError("var has negative entry/entries")
    if var.shape != input.shape:
        if input.shape[:-1] == var.shape:
            var = var.unsqueeze(-1)
        elif input.ndim != var.ndim or (
            sum(v for n, v in zip(input.shape, var.shape) if n != v) != 1
        ):
            raise ValueError("var is of incorrect size")
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(reduction + " is not valid")
    # the floor moves the value only: the gradient passes as if it were not there
    var = var + (var.detach().clamp(min=eps) - var.detach())
    loss = 0.5 * (var.log() + (input - target) ** 2 / var)
    if full:
        loss = loss + 0.5 * math.log(2 * math.pi)
    return reduce_loss(loss, reduction)


def ctc_loss(
    log_probs: Tensor, targets: Tensor, input_lengths: Tensor, target_lengths: Tensor,
    blank: int = 0, reduction: str = "mean", zero_infinity: bool = False,
) -> Tensor:
    """The loss of label sequences without alignment: see ``ops.ctc_loss``."""
    _check_reduction(reduction)
    return ops.ctc_loss(
        log_probs, targets, input_lengths, target_lengths, blank, reduction, zero_infinity
    )


__all__ = [
    "cosine_embedding_loss", "ctc_loss", "gaussian_nll_loss", "hinge_embedding_loss",
    "margin_ranking_loss", "multi_margin_loss", "multilabel_margin_loss",
    "multilabel_soft_margin_loss", "poisson_nll_loss", "soft_margin_loss", "triplet_margin_loss",
    "triplet_margin_with_distance_loss",
]
