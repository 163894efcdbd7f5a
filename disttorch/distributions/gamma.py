"""The gamma distribution."""

from __future__ import annotations

from .. import ops
from ..backend.dtypes import finfo
from ..ops.random_gamma import standard_log_gamma
from ..tensor import Size
from . import constraints
from .exp_family import ExponentialFamily
from .utils import broadcast_all, kept_within


class Gamma(ExponentialFamily):
    """The gamma distribution; ``rsample`` has implicit gradients (see ``ops/random_gamma.py``).

    Args:
        concentration: the shape, positive.
        rate: the inverse scale, positive.
    """

    arg_constraints = {"concentration": constraints.positive, "rate": constraints.positive}
    support = constraints.nonnegative
    has_rsample = True
    _mean_carrier_measure = 0
    _expanded = ("concentration", "rate")

    def __init__(self, concentration, rate, validate_args=None):
        self.concentration, self.rate = broadcast_all(concentration, rate)
        super().__init__(self.concentration.shape, validate_args=validate_args)

    @property
    def mean(self):
        return self.concentration / self.rate

    @property
    def mode(self):
        return ((self.concentration - 1) / self.rate).clamp(min=0)

    @property
    def variance(self):
        return self.concentration / self.rate.pow(2)

    def rsample(self, sample_shape=Size(())):
        shape = self._extended_shape(sample_shape)
        value = standard_log_gamma(self.concentration.expand(shape)).exp() / self.rate.expand(shape)
        return kept_within(value, finfo(value.dtype).tiny)  # log_prob must stay finite

    def log_prob(self, value):
        self._checked(value)
        a, rate = self.concentration, self.rate
        return ops.xlogy(a, rate) + ops.xlogy(a - 1, value) - rate * value - ops.lgamma(a)

    def entropy(self):
        a = self.concentration
        return a - self.rate.log() + ops.lgamma(a) + (1.0 - a) * ops.digamma(a)

    def cdf(self, value):
        self._checked(value)
        return ops.igamma(self.concentration, self.rate * value)

    @property
    def _natural_params(self):
        return self.concentration - 1, -self.rate

    def _log_normalizer(self, x, y):
        return ops.lgamma(x + 1) + (x + 1) * ops.log(-y.reciprocal())


__all__ = ["Gamma"]
