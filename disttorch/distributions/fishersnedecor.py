"""The Fisher-Snedecor (F) distribution."""

from __future__ import annotations

import math

from .. import ops
from ..backend.dtypes import finfo
from ..tensor import Size
from . import constraints
from .distribution import Distribution
from .gamma import Gamma
from .utils import broadcast_all, kept_within


class FisherSnedecor(Distribution):
    """The distribution of the ratio of two χ² variables, each over its degrees of freedom.

    Args:
        df1, df2: degrees of freedom, positive.
    """

    arg_constraints = {"df1": constraints.positive, "df2": constraints.positive}
    support = constraints.positive
    has_rsample = True
    _expanded = ("df1", "df2", "_gamma1", "_gamma2")

    def __init__(self, df1, df2, validate_args=None):
        self.df1, self.df2 = broadcast_all(df1, df2)
        self._gamma1 = Gamma(self.df1 * 0.5, self.df1)
        self._gamma2 = Gamma(self.df2 * 0.5, self.df2)
        super().__init__(self.df1.shape, validate_args=validate_args)

    @property
    def mean(self):
        return ops.where(self.df2 > 2, self.df2 / (self.df2 - 2), math.nan)

    @property
    def mode(self):
        inside = (self.df1 - 2) / self.df1 * self.df2 / (self.df2 + 2)
        return ops.where(self.df1 > 2, inside, math.nan)

    @property
    def variance(self):
        less = self.df2 - 2
        finite = (2 * self.df2.pow(2) * (self.df1 + less)
                  / (self.df1 * less.pow(2) * (self.df2 - 4)))
        return ops.where(self.df2 > 4, finite, math.nan)

    def rsample(self, sample_shape=Size(())):
        above, below = self._gamma1.rsample(sample_shape), self._gamma2.rsample(sample_shape)
        value = above / below
        return kept_within(value, finfo(value.dtype).tiny)

    def log_prob(self, value):
        self._checked(value)
        a, b, ratio = self.df1 * 0.5, self.df2 * 0.5, self.df1 / self.df2
        norm = ops.lgamma(a + b) - ops.lgamma(a) - ops.lgamma(b)
        return (norm + a * ratio.log() + (a - 1) * value.log()
                - (a + b) * ops.log1p(ratio * value))


__all__ = ["FisherSnedecor"]
