"""One-hot vectors made continuous by a temperature: the concrete, or Gumbel-softmax, distribution."""

from __future__ import annotations

import math

from .. import ops
from ..tensor import Size
from . import constraints
from .categorical import Categorical
from .distribution import Distribution
from .transformed_distribution import TransformedDistribution
from .transforms import ExpTransform
from .utils import clamp_probs


class ExpRelaxedCategorical(Distribution):
    """The logarithm of a ``RelaxedOneHotCategorical``.

    Maddison, Mnih & Teh, "The concrete distribution" (ICLR 2017).

    Args:
        temperature: positive.
        probs: nonnegative weights [..., K].
        logits: log-weights [..., K]. Give one of the two.
    """

    arg_constraints = {"probs": constraints.simplex, "logits": constraints.real_vector}
    support = constraints.real_vector
    has_rsample = True
    _expanded = ("_categorical",)
    _kept = ("temperature",)

    def __init__(self, temperature, probs=None, logits=None, validate_args=None):
        self._categorical = Categorical(probs, logits)
        self.temperature = temperature
        super().__init__(self._categorical.batch_shape, self._categorical.param_shape[-1:],
                         validate_args=validate_args)

    @property
    def param_shape(self):
        return self._categorical.param_shape

    @property
    def logits(self):
        return self._categorical.logits

    @property
    def probs(self):
        return self._categorical.probs

    def rsample(self, sample_shape=Size(())):
        shape = self._extended_shape(sample_shape)
        u = clamp_probs(ops.rand(shape, dtype=self.logits.dtype, device=self.logits.device))
        return ((self.logits - (-u.log()).log()) / self.temperature).log_softmax(-1)

    def log_prob(self, value):
        self._checked(value)
        k = self.event_shape[0]
        scores = (self.logits - value * self.temperature).log_softmax(-1).sum(-1)
        norm = math.lgamma(k) + (k - 1) * ops.log(ops.as_tensor(self.temperature))
        return scores + norm


class RelaxedOneHotCategorical(TransformedDistribution):
    """A point of the simplex that approaches a one-hot vector as the temperature falls.

    Args:
        temperature: positive.
        probs: nonnegative weights [..., K].
        logits: log-weights [..., K]. Give one of the two.
    """

    arg_constraints = {"probs": constraints.simplex, "logits": constraints.real_vector}
    support = constraints.simplex
    has_rsample = True
    _expanded = ("base_dist",)

    def __init__(self, temperature, probs=None, logits=None, validate_args=None):
        base = ExpRelaxedCategorical(temperature, probs, logits, validate_args=validate_args)
        super().__init__(base, ExpTransform(), validate_args=validate_args)

    @property
    def temperature(self):
        return self.base_dist.temperature

    @property
    def logits(self):
        return self.base_dist.logits

    @property
    def probs(self):
        return self.base_dist.probs


__all__ = ["ExpRelaxedCategorical", "RelaxedOneHotCategorical"]
