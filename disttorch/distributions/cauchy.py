"""The Cauchy distribution."""

from __future__ import annotations

import math

from .. import ops
from ..tensor import Size
from . import constraints
from .distribution import Distribution
from .utils import broadcast_all


class Cauchy(Distribution):
    """The Cauchy distribution: its mean does not exist (nan), its variance is infinite.

    Args:
        loc: the median.
        scale: the half width at half maximum, positive.
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}
    support = constraints.real
    has_rsample = True
    _expanded = ("loc", "scale")

    def __init__(self, loc, scale, validate_args=None):
        self.loc, self.scale = broadcast_all(loc, scale)
        super().__init__(self.loc.shape, validate_args=validate_args)

    @property
    def mean(self):
        return ops.full_like(self.loc, math.nan)

    @property
    def mode(self):
        return self.loc

    @property
    def variance(self):
        return ops.full_like(self.loc, math.inf)

    def rsample(self, sample_shape=Size(())):
        draw = self.loc.new_empty(self._extended_shape(sample_shape)).cauchy_()
        return self.loc + draw * self.scale

    def log_prob(self, value):
        self._checked(value)
        z = (value - self.loc) / self.scale
        return -math.log(math.pi) - self.scale.log() - (z * z).log1p()

    def cdf(self, value):
        self._checked(value)
        return ops.atan((value - self.loc) / self.scale) / math.pi + 0.5

    def icdf(self, value):
        return ops.tan(math.pi * (value - 0.5)) * self.scale + self.loc

    def entropy(self):
        return math.log(4 * math.pi) + self.scale.log()


__all__ = ["Cauchy"]
