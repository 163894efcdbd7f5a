"""Normalisation by statistics of the batch, of channels or of trailing dims; unit vectors and
distances."""

from __future__ import annotations

from ... import ops
from ...ops import channel_norms as norms
from ...tensor import Tensor


def layer_norm(
    input: Tensor, normalized_shape, weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Zero mean and unit variance over the trailing ``normalized_shape`` (arXiv:1607.06450)."""
    return ops.layer_norm(input, normalized_shape, weight, bias, eps)


def rms_norm(
    input: Tensor, normalized_shape, weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """Unit root mean square over the trailing ``normalized_shape`` (arXiv:1910.07467).

    Args:
        eps: added to the mean square; the dtype's machine epsilon by default.
    """
    return ops.rms_norm(input, normalized_shape, weight, eps)


def _p_norm(x: Tensor, p: float, dim, keepdim=False) -> Tensor:
    return x.norm(p, dim, keepdim)


def normalize(input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out=None) -> Tensor:
    """input / max(‖input‖ₚ, eps) along ``dim``."""
    return ops.div(input, _p_norm(input, p, dim, True).clamp(min=eps), out=out)


def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """x1·x2 / (max(‖x1‖, eps)·max(‖x2‖, eps)) along ``dim``; shapes broadcast."""
    return ops.cosine_similarity(x1, x2, dim, eps)


def pairwise_distance(
    x1: Tensor, x2: Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False
) -> Tensor:
    """‖x1 − x2 + eps‖ₚ over the last dim: [..., D] -> [...]; shapes broadcast."""
    return ops.pairwise_distance(x1, x2, p, eps, keepdim)


def pdist(input: Tensor, p: float = 2.0) -> Tensor:
    """Distances between all pairs of rows i < j: [N, D] -> [N·(N−1)/2]."""
    return ops.pdist(input, p)


# ---------------------------------------------------------------- by channel
def batch_norm(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None,
    weight: Tensor | None = None, bias: Tensor | None = None, training: bool = False,
    momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:
    """Zero mean and unit variance per channel of [N, C, ...] (arXiv:1502.03167).

    Args:
        running_mean, running_var: [C]; used when not ``training``, else moved by ``momentum``
            towards the batch's mean and unbiased variance.

    Raises:
        ValueError: in training with a single value per channel.
        RuntimeError: if sizes do not fit.
    """
    return counted_batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


def counted_batch_norm(
    input, running_mean, running_var, weight, bias, training, momentum, eps, seen=None
) -> Tensor:
    """``batch_norm``; ``seen``, an integer tensor of no dims or None, goes up by one in training."""
    if training and input.ndim > 1 and input.numel() == input.shape[1]:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {input.shape}"
        )
    return norms.batch_norm(
        input, weight, bias, running_mean, running_var, training, momentum, eps, seen=seen
    )


def instance_norm(
    input: Tensor, running_mean: Tensor | None = None, running_var: Tensor | None = None,
    weight: Tensor | None = None, bias: Tensor | None = None, use_input_stats: bool = True,
    momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:
    """Zero mean and unit variance per sample and channel of [N, C, ...] (arXiv:1607.08022).

    Raises:
        ValueError: with a single value per channel.
    """
    if use_input_stats:
        spatial = 1
        for n in input.shape[2:]:
            spatial *= n
        if spatial == 1:
            raise ValueError(
                "Expected more than 1 spatial element when training, got input size "
                f"{input.shape}"
            )
    return norms.instance_norm(
        input, weight, bias, running_mean, running_var, use_input_stats, momentum, eps
    )


def group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Zero mean and unit variance per sample and group of channels (arXiv:1803.08494).

    Raises:
        RuntimeError: if the channels do not divide into the groups.
        ValueError: with a single value per group.
    """
    if input.ndim >= 2 and num_groups > 0:
        each = input.numel() // (input.shape[0] or 1) // num_groups * input.shape[0]
        if input.numel() and each == 1:
            raise ValueError(
                "Expected more than 1 value per channel when training, got input size "
                f"{input.shape}"
            )
    return norms.group_norm(input, num_groups, weight, bias, eps)


def local_response_norm(
    input: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Tensor:
    """input / (k + alpha·mean of squares over ``size`` neighbouring channels)^beta.

    Krizhevsky et al., NIPS 2012.

    Raises:
        ValueError: for fewer than 3 dims.
    """
    if input.ndim < 3:
        raise ValueError(
            "Expected 3D or higher dimensionality                          input (got "
            f"{input.ndim} dimensions)"
        )
    if input.numel() == 0:
        return input
    squares = (input * input).flatten(2)
    padded = ops.constant_pad_nd(squares, (0, 0, size // 2, (size - 1) // 2))
    average = ops.pooling.avg_pool2d(padded, (size, 1), 1)
    scale = (average * alpha + k).pow(beta)
    return input / scale.reshape(input.shape)
