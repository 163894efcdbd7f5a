"""Bernoulli made continuous by a temperature."""

from __future__ import annotations

from .. import ops
from ..tensor import Size
from . import constraints
from .distribution import Distribution
from .transformed_distribution import TransformedDistribution
from .transforms import SigmoidTransform
from .utils import ProbsOrLogits, broadcast_all, clamp_probs, softplus


class LogitRelaxedBernoulli(ProbsOrLogits, Distribution):
    """The logit of a ``RelaxedBernoulli``.

    Maddison, Mnih & Teh, "The concrete distribution" (ICLR 2017).

    Args:
        temperature: positive.
        probs: the probability of 1.
        logits: its log-odds; give one of the two.
    """

    arg_constraints = {"probs": constraints.unit_interval, "logits": constraints.real}
    support = constraints.real
    has_rsample = True
    _expanded = ("probs", "logits")
    _kept = ("temperature",)

    def __init__(self, temperature, probs=None, logits=None, validate_args=None):
        self.temperature = temperature
        if self._take(probs, logits):
            (self.probs,) = broadcast_all(probs)
        else:
            (self.logits,) = broadcast_all(logits)
        super().__init__(self._param.shape, validate_args=validate_args)

    def rsample(self, sample_shape=Size(())):
        shape = self._extended_shape(sample_shape)
        p = clamp_probs(self.probs.expand(shape))
        u = clamp_probs(ops.rand(shape, dtype=p.dtype, device=p.device))
        return (u.log() - (-u).log1p() + p.log() - (-p).log1p()) / self.temperature

    def log_prob(self, value):
        self._checked(value)
        gap = self.logits - value * self.temperature
        return ops.log(ops.as_tensor(self.temperature)) + gap - 2 * softplus(gap)


class RelaxedBernoulli(TransformedDistribution):
    """A value in (0, 1) that approaches a Bernoulli variable as the temperature falls.

    Args:
        temperature: positive.
        probs: the probability of 1.
        logits: its log-odds; give one of the two.
    """

    arg_constraints = {"probs": constraints.unit_interval, "logits": constraints.real}
    support = constraints.unit_interval
    has_rsample = True
    _expanded = ("base_dist",)

    def __init__(self, temperature, probs=None, logits=None, validate_args=None):
        base = LogitRelaxedBernoulli(temperature, probs, logits)
        super().__init__(base, SigmoidTransform(), validate_args=validate_args)

    @property
    def temperature(self):
        return self.base_dist.temperature

    @property
    def logits(self):
        return self.base_dist.logits

    @property
    def probs(self):
        return self.base_dist.probs


__all__ = ["LogitRelaxedBernoulli", "RelaxedBernoulli"]
