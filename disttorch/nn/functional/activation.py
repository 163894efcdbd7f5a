"""Activation functions. Shapes: any, unless said otherwise; the result has the input's shape."""

from __future__ import annotations

from ... import ops
from ...tensor import Tensor


def _maybe_inplace(function, input: Tensor, inplace: bool) -> Tensor:
    """``function(input)``, written into ``input`` if asked for."""
    if not inplace:
        return function(input)
    source = input.clone() if input.requires_grad else input  # backward needs the old values
    return input.copy_(function(source))


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """max(input, 0)."""
    return input.relu_() if inplace else ops.relu(input)


def relu_(input: Tensor) -> Tensor:
    """``relu``, in place."""
    return relu(input, inplace=True)


def threshold(input: Tensor, threshold: float, value: float, inplace: bool = False) -> Tensor:
    """input where it is above ``threshold``, else ``value``."""
    return _maybe_inplace(lambda x: ops.where(x > threshold, x, value), input, inplace)


def hardtanh(
    input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Tensor:
    """input limited to [min_val, max_val].

    Raises:
        ValueError: if min_val is greater than max_val.
    """
    if min_val > max_val:
        raise ValueError("min_val cannot be greater than max_val")

    def limited(x):  # at the limits themselves the gradient is 0, unlike clamp's
        inside = (x > min_val).logical_and(x < max_val)
        return ops.where(inside, x, x.detach().clamp(min_val, max_val))

    return _maybe_inplace(limited, input, inplace)


def hardtanh_(input: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> Tensor:
    """``hardtanh``, in place."""
    return hardtanh(input, min_val, max_val, inplace=True)


def relu6(input: Tensor, inplace: bool = False) -> Tensor:
    """input limited to [0, 6]."""
    return hardtanh(input, 0.0, 6.0, inplace)


def elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """input where positive, else alpha·(exp(input) − 1) (Clevert et al., arXiv:1511.07289)."""
    return _maybe_inplace(lambda x: ops.elu(x, alpha), input, inplace)


def elu_(input: Tensor, alpha: float = 1.0) -> Tensor:
    """``elu``, in place."""
    return elu(input, alpha, inplace=True)


_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946


def selu(input: Tensor, inplace: bool = False) -> Tensor:
    """The self-normalising elu (Klambauer et al., arXiv:1706.02515)."""
    return _maybe_inplace(lambda x: ops.elu(x, _SELU_ALPHA) * _SELU_SCALE, input, inplace)


def celu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """max(0, input) + min(0, alpha·(exp(input/alpha) − 1)) (Barron, arXiv:1704.07483).

    Raises:
        RuntimeError: if alpha is 0.
    """
    if alpha == 0:
        raise RuntimeError("ZeroDivisionError: alpha cannot be 0 for CELU")
    return _maybe_inplace(lambda x: ops.elu(x / alpha) * alpha, input, inplace)


def selu_(input: Tensor) -> Tensor:
    """``selu``, in place."""
    return selu(input, inplace=True)


def celu_(input: Tensor, alpha: float = 1.0) -> Tensor:
    """``celu``, in place."""
    return celu(input, alpha, inplace=True)


def threshold_(input: Tensor, threshold: float, value: float) -> Tensor:
    """``threshold``, in place."""
    return _maybe_inplace(lambda x: ops.where(x > threshold, x, value), input, True)


def rrelu_(
    input: Tensor, lower: float = 1.0 / 8, upper: float = 1.0 / 3, training: bool = False
) -> Tensor:
    """``rrelu``, in place."""
    return rrelu(input, lower, upper, training, inplace=True)


def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """input where positive, else negative_slope·input."""
    return _maybe_inplace(lambda x: ops.leaky_relu(x, negative_slope), input, inplace)


def leaky_relu_(input: Tensor, negative_slope: float = 0.01) -> Tensor:
    """``leaky_relu``, in place."""
    return leaky_relu(input, negative_slope, inplace=True)


def prelu(input: Tensor, weight: Tensor) -> Tensor:
    """input where positive, else weight·input (He et al., arXiv:1502.01852).

    Args:
        input: [N, C, …] or, with one weight, any shape.
        weight: [1] or [C].

    Raises:
        RuntimeError: if the number of weights fits neither.
    """
    if weight.numel() != 1:
        channels = input.shape[1] if input.ndim > 1 else 1
        if weight.ndim != 1 or weight.numel() != channels:
            raise RuntimeError(
                "Mismatch of parameter numbers and input channel size. Found parameter numbers = "
                f"{weight.numel()} and channel size = {channels}."
            )
        weight = weight.reshape([-1] + [1] * (input.ndim - 2))
    elif input.ndim == 0:
        weight = weight.reshape(())
    return ops.where(input > 0, input, input * weight)


def rrelu(
    input: Tensor, lower: float = 1.0 / 8, upper: float = 1.0 / 3, training: bool = False,
    inplace: bool = False,
) -> Tensor:
    """Leaky relu whose slope is drawn from [lower, upper] in training, else their mean."""
    if not training:
        return leaky_relu(input, (lower + upper) / 2, inplace)
    slopes = ops.rand_like(input) * (upper - lower) + lower
    return _maybe_inplace(lambda x: ops.where(x > 0, x, x * slopes), input, inplace)


def glu(input: Tensor, dim: int = -1) -> Tensor:
    """First half along ``dim`` times the sigmoid of the second (Dauphin et al., 1612.08083).

    Raises:
        RuntimeError: if the size along ``dim`` is odd or the input has no dimension.
    """
    if input.ndim == 0:
        raise RuntimeError("glu does not support 0-dimensional tensors")
    size = input.shape[dim]
    if size % 2:
        raise RuntimeError(
            f"Halving dimension must be even, but dimension {dim} is size {size}"
        )
    a, b = input.chunk(2, dim)
    return a * ops.sigmoid(b)


def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """input·Φ(input); ``approximate="tanh"`` for the tanh form (arXiv:1606.08415)."""
    return ops.gelu(input, approximate=approximate)


def logsigmoid(input: Tensor) -> Tensor:
    """log(sigmoid(input)), without overflow."""
    return ops.log_sigmoid(input)


def hardshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    """input where its magnitude is above ``lambd``, else 0."""
    return ops.where((input >= -lambd).logical_and(input <= lambd), 0.0, input)


def softshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    """input moved towards 0 by ``lambd``, 0 between.

    Raises:
        RuntimeError: if lambd is negative.
    """
    if lambd < 0:
        raise RuntimeError(f"lambda must be greater or equal to 0, but found to be {lambd}.")
    return input - input.clamp(-lambd, lambd)


def tanhshrink(input: Tensor) -> Tensor:
    """input − tanh(input)."""
    return input - ops.tanh(input)


def softsign(input: Tensor) -> Tensor:
    """input / (1 + |input|)."""
    return input / (input.abs() + 1)


def softplus(input: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    """log(1 + exp(beta·input)) / beta; the input itself where beta·input > threshold."""
    return ops.softplus(input, beta, threshold)


def softmax(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype=None) -> Tensor:
    """exp(input) / Σ exp(input) along ``dim``; ``dtype`` casts the input first."""
    return ops.softmax(input, dim, dtype=dtype)


def softmin(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype=None) -> Tensor:
    """softmax of −input along ``dim``."""
    return ops.softmax(-input, dim, dtype=dtype)


def log_softmax(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype=None) -> Tensor:
    """log(softmax(input)) along ``dim``, without overflow."""
    return ops.log_softmax(input, dim, dtype=dtype)


def gumbel_softmax(
    logits: Tensor, tau: float = 1, hard: bool = False, eps: float = 1e-10, dim: int = -1
) -> Tensor:
    """A relaxed one-hot sample along ``dim`` (Jang et al., arXiv:1611.01144).

    Args:
        logits: unnormalised log-probabilities.
        tau: temperature, above 0.
        hard: give a true one-hot whose gradient is that of the relaxed sample.
    """
    noise = -ops.rand_like(logits).clamp(min=1e-38).log().neg().log()
    soft = softmax((logits + noise) / tau, dim)
    if not hard:
        return soft
    index = soft.detach().argmax(dim, keepdim=True)
    onehot = ops.zeros_like(soft.detach()).scatter_add(dim, index, ops.ones_like(soft.detach()))
    return onehot - soft.detach() + soft


def tanh(input: Tensor) -> Tensor:
    """Hyperbolic tangent."""
    return ops.tanh(input)


def sigmoid(input: Tensor) -> Tensor:
    """1 / (1 + exp(−input))."""
    return ops.sigmoid(input)


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """relu6(input + 3) / 6."""
    return _maybe_inplace(lambda x: relu6(x + 3) / 6, input, inplace)


def hardswish(input: Tensor, inplace: bool = False) -> Tensor:
    """input·hardsigmoid(input) (Howard et al., arXiv:1905.02244)."""
    return _maybe_inplace(lambda x: x * relu6(x + 3) / 6, input, inplace)


def silu(input: Tensor, inplace: bool = False) -> Tensor:
    """input·sigmoid(input)."""
    return _maybe_inplace(ops.silu, input, inplace)


def mish(input: Tensor, inplace: bool = False) -> Tensor:
    """input·tanh(softplus(input)) (Misra, arXiv:1908.08681)."""
    return _maybe_inplace(lambda x: x * ops.tanh(ops.softplus(x)), input, inplace)
