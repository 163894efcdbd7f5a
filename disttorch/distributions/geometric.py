"""The geometric distribution."""

from __future__ import annotations

from .. import ops, special
from ..autograd import no_grad
from ..backend.dtypes import finfo
from ..tensor import Size
from . import constraints
from .distribution import Distribution
from .utils import ProbsOrLogits, broadcast_all, softplus


class Geometric(ProbsOrLogits, Distribution):
    """The number of failures before the first success.

    Args:
        probs: the probability of a success, in (0, 1].
        logits: its log-odds; give one of the two.
    """

    arg_constraints = {"probs": constraints.unit_interval, "logits": constraints.real}
    support = constraints.nonnegative_integer
    _expanded = ("probs", "logits")

    def __init__(self, probs=None, logits=None, validate_args=None):
        if self._take(probs, logits):
            (self.probs,) = broadcast_all(probs)
        else:
            (self.logits,) = broadcast_all(logits)
        super().__init__(self._param.shape, validate_args=validate_args)
        if self._validate_args and probs is not None:
            positive = self.probs > 0
            if not positive.all():
                raise ValueError(
                    f"Expected parameter probs ({type(self.probs).__name__} of shape "
                    f"{tuple(self.probs.shape)}) of distribution {self!r} to be positive but "
                    f"found invalid values:\n{self.probs[~positive]}"
                )

    @property
    def mean(self):
        return 1.0 / self.probs - 1.0

    @property
    def mode(self):
        return ops.zeros_like(self.probs)

    @property
    def variance(self):
        return (1.0 / self.probs - 1.0) / self.probs

    def sample(self, sample_shape=Size(())):
        shape, dtype = self._extended_shape(sample_shape), self.probs.dtype
        with no_grad():
            u = ops.rand(shape, dtype=dtype, device=self.probs.device)
            return (u.clamp(min=finfo(dtype).tiny).log() / (-self.probs).log1p()).floor()

    def log_prob(self, value):
        self._checked(value)
        return special.xlog1py(value, -self.probs) + self.probs.log()

    def entropy(self):
        return (softplus(self.logits) - self.probs * self.logits) / self.probs


__all__ = ["Geometric"]
