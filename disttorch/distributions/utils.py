"""Small tools of the distributions: broadcasting parameters, probabilities and logits, triangles."""

from __future__ import annotations

from numbers import Number

from .. import ops
from ..autograd import enable_grad
from ..backend.dtypes import finfo, get_default_dtype
from ..tensor import Tensor

euler_constant = 0.57721566490153286060


def broadcast_all(*values):
    """Parameters as tensors of one shape.

    Args:
        values: tensors, or numbers, which take the dtype and device of the first tensor (the
            default dtype, if there is none).

    Raises:
        ValueError: for anything else.
    """
    if not all(isinstance(v, (Tensor, Number)) for v in values):
        raise ValueError("Input arguments must all be instances of Number, torch.Tensor or "
                         "objects implementing __torch_function__.")
    like = next((v for v in values if isinstance(v, Tensor)), None)
    dtype, device = (get_default_dtype(), None) if like is None else (like.dtype, like.device)
    tensors = [v if isinstance(v, Tensor) else ops.tensor(v, dtype=dtype, device=device)
               for v in values]
    return ops.broadcast_tensors(*tensors)


def clamp_probs(probs: Tensor) -> Tensor:
    """``probs`` kept a rounding error away from 0 and 1."""
    eps = finfo(probs.dtype).eps
    return probs.clamp(min=eps, max=1 - eps)


def kept_within(value: Tensor, low: float | None = None, high: float | None = None) -> Tensor:
    """``value`` moved inside [low, high], its gradient as if it had not been moved."""
    fixed = value.detach()
    return value + (fixed.clamp(min=low, max=high) - fixed)


def logits_to_probs(logits: Tensor, is_binary: bool = False) -> Tensor:
    """Probabilities of log-odds (binary), or of unnormalised log-probabilities (last dim)."""
    return ops.sigmoid(logits) if is_binary else logits.softmax(-1)


def probs_to_logits(probs: Tensor, is_binary: bool = False) -> Tensor:
    """Log-odds (binary) or log-probabilities."""
    inside = clamp_probs(probs)
    return inside.log() - (-inside).log1p() if is_binary else inside.log()


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), exact for every x (``nn.functional.softplus`` is linear above 20)."""
    return -ops.log_sigmoid(-x)


def one_hot(index: Tensor, classes: int, like: Tensor) -> Tensor:
    """``index`` as vectors [..., classes] of the dtype and device of ``like``."""
    zeros = ops.zeros(*index.shape, classes, dtype=like.dtype, device=like.device)
    return zeros.scatter(-1, index.long().unsqueeze(-1), 1.0)


class lazy_property:
    """A property computed when first read, with gradients on, and kept in the instance."""

    def __init__(self, function):
        self.function = function
        self.__doc__, self.__name__ = function.__doc__, function.__name__

    def __get__(self, instance, owner=None):
        if instance is None:
            return self
        with enable_grad():
            value = self.function(instance)
        instance.__dict__[self.__name__] = value  # shadows this descriptor from now on
        return value


class ProbsOrLogits:
    """Mixin of distributions given by either ``probs`` or ``logits``; the other is derived."""

    _is_binary = True

    def _take(self, probs, logits) -> bool:
        """Check that exactly one was given; returns whether it is ``probs``."""
        if (probs is None) == (logits is None):
            raise ValueError("Either `probs` or `logits` must be specified, but not both.")
        return probs is not None

    @property
    def _param(self) -> Tensor:
        return self.__dict__["probs" if "probs" in self.__dict__ else "logits"]

    @lazy_property
    def logits(self) -> Tensor:
        return probs_to_logits(self.probs, self._is_binary)

    @lazy_property
    def probs(self) -> Tensor:
        return logits_to_probs(self.logits, self._is_binary)

    @property
    def param_shape(self):
        return self._param.shape


def tril_matrix_to_vec(mat: Tensor, diag: int = 0) -> Tensor:
    """The lower triangle of [..., n, n] up to ``diag``, row by row, as a vector [..., m].

    Raises:
        ValueError: if ``diag`` is outside [−n, n).
    """
    n = mat.shape[-1]
    if not -n <= diag < n:
        raise ValueError(f"diag ({diag}) provided is outside [{-n}, {n - 1}].")
    rows, columns = ops.tril_indices(n, n, diag, device=mat.device).unbind(0)
    return mat[..., rows, columns]


def vec_to_tril_matrix(vec: Tensor, diag: int = 0) -> Tensor:
    """The inverse of ``tril_matrix_to_vec``: [..., m] to [..., n, n], zero above ``diag``.

    Raises:
        ValueError: if m is not the size of a triangle.
    """
    size = vec.shape[-1]
    n = round((-(1 + 2 * diag) + ((1 + 2 * diag) ** 2 + 8 * size + 4 * abs(diag) * (diag + 1))
               ** 0.5) / 2)
    rows, columns = ops.tril_indices(n, n, diag, device=vec.device).unbind(0)
    if len(rows) != size:
        raise ValueError(f"The size of last dimension is {size} which cannot be expressed as "
                         "the lower triangular part of a square D x D matrix.")
    flat = ops.zeros(*vec.shape[:-1], n * n, dtype=vec.dtype, device=vec.device)
    at = (rows * n + columns).expand(vec.shape)
    return flat.scatter(-1, at, vec).reshape(*vec.shape[:-1], n, n)


def sum_rightmost(value: Tensor, dims: int) -> Tensor:
    """The sum over the last ``dims`` dims."""
    return value if dims == 0 else value.sum(tuple(range(-dims, 0)))
