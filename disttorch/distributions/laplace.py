"""The Laplace distribution."""

from __future__ import annotations

import math

from .. import ops
from ..backend.dtypes import finfo
from ..tensor import Size
from . import constraints
from .distribution import Distribution
from .utils import broadcast_all


class Laplace(Distribution):
    """The Laplace (double exponential) distribution.

    Args:
        loc: the mean.
        scale: the mean absolute deviation, positive.
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
        return self.loc

    @property
    def mode(self):
        return self.loc

    @property
    def stddev(self):
        return math.sqrt(2) * self.scale

    @property
    def variance(self):
        return 2 * self.scale.pow(2)

    def rsample(self, sample_shape=Size(())):
        eps = finfo(self.loc.dtype).eps
        # −1 itself is left out: its logarithm is infinite
        u = self.loc.new_empty(self._extended_shape(sample_shape)).uniform_(eps - 1, 1)
        return self.loc - self.scale * u.sign() * ops.log1p(-u.abs())

    def log_prob(self, value):
        self._checked(value)
        return -ops.log(2 * self.scale) - (value - self.loc).abs() / self.scale

    def cdf(self, value):
        self._checked(value)
        away = value - self.loc
        return 0.5 - 0.5 * away.sign() * ops.expm1(-away.abs() / self.scale)

    def icdf(self, value):
        half = value - 0.5
        return self.loc - self.scale * half.sign() * ops.log1p(-2 * half.abs())

    def entropy(self):
        return 1 + ops.log(2 * self.scale)


__all__ = ["Laplace"]
