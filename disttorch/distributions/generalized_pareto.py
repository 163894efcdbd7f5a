"""The generalised Pareto distribution."""

from __future__ import annotations

import math

from .. import ops
from ..tensor import Size
from . import constraints
from .distribution import Distribution
from .utils import broadcast_all


class GeneralizedPareto(Distribution):
    """The generalised Pareto distribution; exponential where ``concentration`` is 0.

    Args:
        loc: the lower end.
        scale: positive.
        concentration: the shape ξ; below 0 the support ends at loc − scale/ξ.
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive,
                       "concentration": constraints.real}
    has_rsample = True
    _expanded = ("loc", "scale", "concentration")

    def __init__(self, loc, scale, concentration, validate_args=None):
        self.loc, self.scale, self.concentration = broadcast_all(loc, scale, concentration)
        super().__init__(self.loc.shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self):
        end = self.loc - self.scale / self.concentration
        upper = ops.where(self.concentration < 0, end, math.inf)
        return constraints.interval(self.loc, upper)

    def _shape_parts(self):
        """(where ξ is 0, ξ with 1 in those places, where a branch must not divide by 0)."""
        zero = ops.isclose(self.concentration, ops.zeros_like(self.concentration))
        return zero, ops.where(zero, 1.0, self.concentration)

    @property
    def mean(self):
        xi = self.concentration
        return ops.where(xi < 1, self.loc + self.scale / (1 - xi), math.inf)

    @property
    def mode(self):
        return self.loc

    @property
    def variance(self):
        xi = self.concentration
        finite = self.scale.pow(2) / ((1 - xi).pow(2) * (1 - 2 * xi))
        return ops.where(xi < 0.5, finite, math.inf)

    def rsample(self, sample_shape=Size(())):
        shape = self._extended_shape(sample_shape)
        return self.icdf(ops.rand(shape, dtype=self.loc.dtype, device=self.loc.device))

    def log_survival_function(self, value):
        """log P(X > value)."""
        self._checked(value)
        return self._log_survival(value)

    def _log_survival(self, value):
        z = (value - self.loc) / self.scale
        zero, xi = self._shape_parts()
        return ops.where(zero, -z, -ops.log1p(xi * z) / xi)

    def log_prob(self, value):
        self._checked(value)
        z = (value - self.loc) / self.scale
        zero, xi = self._shape_parts()
        return ops.where(zero, -z, -(1 + 1 / xi) * ops.log1p(xi * z)) - self.scale.log()

    def log_cdf(self, value):
        """log P(X <= value)."""
        return ops.log1p(-self.log_survival_function(value).exp())

    def cdf(self, value):
        return self.log_cdf(value).exp()

    def icdf(self, value):
        zero, xi = self._shape_parts()
        log_tail = ops.log1p(-value)
        return self.loc + self.scale * ops.where(zero, -log_tail, ops.expm1(-xi * log_tail) / xi)

    def entropy(self):
        return self.scale.log() + self.concentration + 1


__all__ = ["GeneralizedPareto"]
