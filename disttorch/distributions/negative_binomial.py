"""The negative binomial distribution."""

from __future__ import annotations

from .. import ops
from ..autograd import no_grad
from ..tensor import Size
from . import constraints
from .distribution import Distribution
from .gamma import Gamma
from .utils import ProbsOrLogits, broadcast_all


class NegativeBinomial(ProbsOrLogits, Distribution):
    """The number of successes before ``total_count`` failures.

    Args:
        total_count: the number of failures, nonnegative (not necessarily whole).
        probs: the probability of a success, in [0, 1).
        logits: its log-odds; give one of the two.
    """

    arg_constraints = {"total_count": constraints.greater_than_eq(0),
                       "probs": constraints.half_open_interval(0.0, 1.0),
                       "logits": constraints.real}
    support = constraints.nonnegative_integer
    _expanded = ("total_count", "probs", "logits")

    def __init__(self, total_count, probs=None, logits=None, validate_args=None):
        if self._take(probs, logits):
            self.total_count, self.probs = broadcast_all(total_count, probs)
        else:
            self.total_count, self.logits = broadcast_all(total_count, logits)
        self.total_count = self.total_count.type_as(self._param)
        super().__init__(self._param.shape, validate_args=validate_args)

    @property
    def mean(self):
        return self.total_count * self.logits.exp()

    @property
    def mode(self):
        return ((self.total_count - 1) * self.logits.exp()).floor().clamp(min=0.0)

    @property
    def variance(self):
        return self.mean / ops.sigmoid(-self.logits)

    def sample(self, sample_shape=Size(())):
        """A Poisson number whose rate is gamma distributed."""
        with no_grad():
            mixing = Gamma(self.total_count, (-self.logits).exp(), validate_args=False)
            return ops.poisson(mixing.sample(sample_shape))

    def log_prob(self, value):
        self._checked(value)
        n = self.total_count
        outcome = n * ops.log_sigmoid(-self.logits) + value * ops.log_sigmoid(self.logits)
        orders = ops.lgamma(n + value) - ops.lgamma(1.0 + value) - ops.lgamma(n)
        return outcome + ops.where(n + value == 0, 0.0, orders)


__all__ = ["NegativeBinomial"]
