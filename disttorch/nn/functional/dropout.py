"""Dropout: random zeros in training, scaled so that the expectation stays."""

from __future__ import annotations

import warnings

from ... import ops
from ...tensor import Tensor


def _check_probability(p: float) -> None:
    if p < 0.0 or p > 1.0:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Zero elements with probability ``p`` and scale the others by 1/(1−p), if ``training``.

    Raises:
        ValueError: if p is not a probability.
    """
    _check_probability(p)
    if not training or p == 0.0:
        return input
    out = ops.dropout(input, p, True)
    return input.copy_(out) if inplace else out


def _channels_dropped(input: Tensor, p, training, inplace) -> Tensor:
    """Zero whole channels: one draw for each of the two leading dimensions."""
    if not training or p == 0.0:
        return input
    mask = dropout(ops.ones_like(input.detach()[:, :, *[slice(0, 1)] * (input.ndim - 2)]), p)
    return input.mul_(mask) if inplace else input * mask


def _channel_dropout(input, p, training, inplace, spatial, name, batched):
    _check_probability(p)
    if input.ndim not in batched:
        expected = " or ".join(f"{n}D" for n in batched)
        message = f"{name}: Expected {expected} input, but received a {input.ndim}-D input."
        if name == "dropout1d":
            raise RuntimeError(message)
        warnings.warn(message, stacklevel=3)
    if input.ndim == spatial + 1:
        return _channels_dropped(input.unsqueeze(0), p, training, inplace).squeeze(0)
    return _channels_dropped(input, p, training, inplace)


def dropout1d(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False):
    """Zero whole channels of [N, C, L] or [C, L]."""
    return _channel_dropout(input, p, training, inplace, 1, "dropout1d", (2, 3))


def dropout2d(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False):
    """Zero whole channels of [N, C, H, W] (Tompson et al., arXiv:1411.4280).

    A 3-dim input counts as [N, C, L], as in PyTorch.
    """
    _check_probability(p)
    if input.ndim not in (3, 4):
        warnings.warn(
            f"dropout2d: Received a {input.ndim}-D input; [N, C, H, W] is expected and the two "
            "leading dimensions are taken as N and C.",
            stacklevel=2,
        )
    return _channels_dropped(input, p, training, inplace)


def dropout3d(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False):
    """Zero whole channels of [N, C, D, H, W] or [C, D, H, W]."""
    return _channel_dropout(input, p, training, inplace, 3, "dropout3d", (4, 5))


# The negative saturation value of selu: −scale·alpha
_SATURATION = -1.7580993408473766


def _alpha(input: Tensor, keep: Tensor, p: float) -> Tensor:
    if p == 1.0:
        return input * 0
    a = ((1 - p) * (1 + p * _SATURATION**2)) ** -0.5
    b = -a * _SATURATION * p
    return (input * keep + (1 - keep) * _SATURATION) * a + b


def alpha_dropout(input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False):
    """Dropout that keeps mean and variance of selu's outputs (arXiv:1706.02515).

    Raises:
        ValueError: if p is not a probability.
    """
    _check_probability(p)
    if not training or p == 0.0:
        return input
    keep = dropout(ops.ones_like(input.detach()), p) * (1 - p)
    out = _alpha(input, keep, p)
    return input.copy_(out) if inplace else out


def feature_alpha_dropout(
    input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
):
    """``alpha_dropout`` of whole channels of [N, C, …].

    Raises:
        ValueError: if p is not a probability.
    """
    _check_probability(p)
    if not training or p == 0.0:
        return input
    ones = ops.ones_like(input.detach()[:, :, *[slice(0, 1)] * (input.ndim - 2)])
    out = _alpha(input, dropout(ones, p) * (1 - p), p)
    return input.copy_(out) if inplace else out
