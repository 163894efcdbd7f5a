"""The Dirichlet distribution."""

from __future__ import annotations

from .. import ops
from ..backend.dtypes import finfo
from ..ops.random_gamma import standard_log_gamma
from ..tensor import Size
from . import constraints
from .exp_family import ExponentialFamily
from .utils import kept_within, one_hot


class Dirichlet(ExponentialFamily):
    """The Dirichlet distribution over the simplex.

    ``rsample`` normalises gamma variates, whose gradients are implicit; it works on logarithms, so
    that small concentrations do not end in 0/0.

    Args:
        concentration: positive, [..., K].
    """

    arg_constraints = {"concentration": constraints.independent(constraints.positive, 1)}
    support = constraints.simplex
    has_rsample = True
    _expanded = ("concentration",)

    def __init__(self, concentration, validate_args=None):
        if concentration.dim() < 1:
            raise ValueError("`concentration` parameter must be at least one-dimensional.")
        self.concentration = concentration
        super().__init__(concentration.shape[:-1], concentration.shape[-1:], validate_args)

    def rsample(self, sample_shape=Size(())):
        shape = self._extended_shape(sample_shape)
        value = standard_log_gamma(self.concentration.expand(shape)).softmax(-1)
        limits = finfo(value.dtype)
        return kept_within(value, limits.tiny, 1 - limits.eps / 2)

    def log_prob(self, value):
        self._checked(value)
        c = self.concentration
        return ops.xlogy(c - 1.0, value).sum(-1) + ops.lgamma(c.sum(-1)) - ops.lgamma(c).sum(-1)

    @property
    def mean(self):
        return self.concentration / self.concentration.sum(-1, True)

    @property
    def mode(self):
        """The densest point; a corner where all concentrations are below 1."""
        above = (self.concentration - 1).clamp(min=0.0)
        inside = above / above.sum(-1, True)
        corner = one_hot(inside.argmax(-1), inside.shape[-1], inside)
        return ops.where((self.concentration < 1).all(-1, keepdim=True), corner, inside)

    @property
    def variance(self):
        total = self.concentration.sum(-1, True)
        return self.concentration * (total - self.concentration) / (total.pow(2) * (total + 1))

    def entropy(self):
        c = self.concentration
        k, total = c.shape[-1], c.sum(-1)
        return (ops.lgamma(c).sum(-1) - ops.lgamma(total) - (k - total) * ops.digamma(total)
                - ((c - 1.0) * ops.digamma(c)).sum(-1))

    @property
    def _natural_params(self):
        return (self.concentration,)

    def _log_normalizer(self, x):
        return ops.lgamma(x).sum(-1) - ops.lgamma(x.sum(-1))


__all__ = ["Dirichlet"]
