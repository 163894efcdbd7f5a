"""The binomial distribution."""

from __future__ import annotations

from .. import ops
from ..autograd import no_grad
from ..tensor import Size
from . import constraints
from .bernoulli import enumerated
from .distribution import Distribution
from .utils import ProbsOrLogits, broadcast_all, softplus


class Binomial(ProbsOrLogits, Distribution):
    """The number of successes among ``total_count`` trials.

    Args:
        total_count: the number of trials, an int or a tensor.
        probs: the probability of a success.
        logits: its log-odds; give one of the two.
    """

    arg_constraints = {"total_count": constraints.nonnegative_integer,
                       "probs": constraints.unit_interval, "logits": constraints.real}
    has_enumerate_support = True
    _expanded = ("total_count", "probs", "logits")

    def __init__(self, total_count=1, probs=None, logits=None, validate_args=None):
        if self._take(probs, logits):
            self.total_count, self.probs = broadcast_all(total_count, probs)
        else:
            self.total_count, self.logits = broadcast_all(total_count, logits)
        self.total_count = self.total_count.type_as(self._param)
        super().__init__(self._param.shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self):
        return constraints.integer_interval(0, self.total_count)

    @property
    def mean(self):
        return self.total_count * self.probs

    @property
    def mode(self):
        return ops.minimum(((self.total_count + 1) * self.probs).floor(), self.total_count)

    @property
    def variance(self):
        return self.total_count * self.probs * (1 - self.probs)

    def sample(self, sample_shape=Size(())):
        shape = self._extended_shape(sample_shape)
        with no_grad():
            return ops.binomial(self.total_count.expand(shape), self.probs.expand(shape))

    def log_prob(self, value):
        self._checked(value)
        n = self.total_count
        choices = ops.lgamma(n + 1) - ops.lgamma(value + 1) - ops.lgamma(n - value + 1)
        return choices + value * self.logits - n * softplus(self.logits)

    def entropy(self):
        self._one_count("entropy")
        log_prob = self.log_prob(self.enumerate_support(False))
        return -(log_prob.exp() * log_prob).sum(0)

    def _one_count(self, method):
        most = int(self.total_count.max())
        if self.total_count.min() != most:
            raise NotImplementedError(f"Inhomogeneous total count not supported by `{method}`.")
        return most

    def enumerate_support(self, expand=True):
        most = self._one_count("enumerate_support")
        values = ops.arange(1 + most, dtype=self._param.dtype, device=self._param.device)
        return enumerated(values, self._batch_shape, expand)


__all__ = ["Binomial"]
