"""Student's t-distribution."""

from __future__ import annotations

import math

from .. import ops
from ..tensor import Size
from . import constraints
from .chi2 import Chi2
from .distribution import Distribution
from .utils import broadcast_all


class StudentT(Distribution):
    """Student's t-distribution, shifted and scaled.

    Args:
        df: degrees of freedom, positive.
        loc: the median.
        scale: positive.
    """

    arg_constraints = {"df": constraints.positive, "loc": constraints.real,
                       "scale": constraints.positive}
    support = constraints.real
    has_rsample = True
    _expanded = ("df", "loc", "scale", "_chi2")

    def __init__(self, df, loc=0.0, scale=1.0, validate_args=None):
        self.df, self.loc, self.scale = broadcast_all(df, loc, scale)
        self._chi2 = Chi2(self.df)
        super().__init__(self.df.shape, validate_args=validate_args)

    @property
    def mean(self):
        return ops.where(self.df <= 1, math.nan, self.loc)

    @property
    def mode(self):
        return self.loc

    @property
    def variance(self):
        finite = self.scale.pow(2) * self.df / (self.df - 2)
        result = ops.where(self.df > 2, finite, math.inf)
        return ops.where(self.df <= 1, math.nan, result)

    def rsample(self, sample_shape=Size(())):
        shape = self._extended_shape(sample_shape)
        x = ops.randn(shape, dtype=self.df.dtype, device=self.df.device)
        y = x * ops.rsqrt(self._chi2.rsample(sample_shape) / self.df)
        return self.loc + self.scale * y

    def _log_beta(self):
        """log B(df/2, 1/2)."""
        half = 0.5 * self.df
        return ops.lgamma(half) + 0.5 * math.log(math.pi) - ops.lgamma(half + 0.5)

    def log_prob(self, value):
        self._checked(value)
        y = (value - self.loc) / self.scale
        norm = self.scale.log() + 0.5 * self.df.log() + self._log_beta()
        return -0.5 * (self.df + 1.0) * ops.log1p(y * y / self.df) - norm

    def entropy(self):
        up = 0.5 * (self.df + 1)
        return (self.scale.log() + up * (ops.digamma(up) - ops.digamma(0.5 * self.df))
                + 0.5 * self.df.log() + self._log_beta())


__all__ = ["StudentT"]
