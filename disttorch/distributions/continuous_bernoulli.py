"""The continuous Bernoulli distribution."""

from __future__ import annotations

import math

from .. import ops
from ..tensor import Size
from . import constraints
from .exp_family import ExponentialFamily
from .utils import ProbsOrLogits, broadcast_all, clamp_probs, softplus


class ContinuousBernoulli(ProbsOrLogits, ExponentialFamily):
    """A density on [0, 1] proportional to probsˣ·(1 − probs)¹⁻ˣ.

    Loaiza-Ganem & Cunningham, "The continuous Bernoulli: fixing a pervasive error in variational
    autoencoders" (NeurIPS 2019).

    Args:
        probs: in (0, 1); values outside are clamped, unless ``validate_args=True`` refuses them.
        logits: its log-odds; give one of the two.
        lims: between these values of ``probs``, around 1/2 where the formulas are 0/0, Taylor
            series are used.
    """

    arg_constraints = {"probs": constraints.unit_interval, "logits": constraints.real}
    support = constraints.unit_interval
    has_rsample = True
    _mean_carrier_measure = 0
    _expanded = ("probs", "logits")
    _kept = ("_lims",)

    def __init__(self, probs=None, logits=None, lims=(0.499, 0.501), validate_args=None):
        if self._take(probs, logits):
            (self.probs,) = broadcast_all(probs)
            if validate_args and not constraints.unit_interval.check(self.probs).all():
                raise ValueError("The parameter probs has invalid values")
            self.probs = clamp_probs(self.probs)
        else:
            (self.logits,) = broadcast_all(logits)
        self._lims = lims
        super().__init__(self._param.shape, validate_args=validate_args)

    def _apart(self):
        """(where the formulas hold, probs there and something harmless elsewhere)."""
        far = (self.probs <= self._lims[0]) | (self.probs > self._lims[1])
        return far, ops.where(far, self.probs, self._lims[0])

    def _log_norm(self):
        """log of 2·artanh(1 − 2p)/(1 − 2p)."""
        far, p = self._apart()
        sign_free = ops.where(p <= 0.5, 1 - 2 * p, 2 * p - 1)
        exact = (ops.log1p(-p) - p.log()).abs().log() - sign_free.log()
        x = (self.probs - 0.5).pow(2)
        return ops.where(far, exact, math.log(2.0) + (4.0 / 3.0 + 104.0 / 45.0 * x) * x)

    @property
    def mean(self):
        far, p = self._apart()
        exact = p / (2.0 * p - 1.0) + 1.0 / (ops.log1p(-p) - p.log())
        x = self.probs - 0.5
        return ops.where(far, exact, 0.5 + (1.0 / 3.0 + 16.0 / 45.0 * x.pow(2)) * x)

    @property
    def stddev(self):
        return self.variance.sqrt()

    @property
    def variance(self):
        far, p = self._apart()
        exact = p * (p - 1.0) / (1.0 - 2.0 * p).pow(2) + 1.0 / (ops.log1p(-p) - p.log()).pow(2)
        x = (self.probs - 0.5).pow(2)
        return ops.where(far, exact, 1.0 / 12.0 - (1.0 / 15.0 - 128.0 / 945.0 * x) * x)

    def rsample(self, sample_shape=Size(())):
        shape = self._extended_shape(sample_shape)
        return self.icdf(ops.rand(shape, dtype=self.probs.dtype, device=self.probs.device))

    def log_prob(self, value):
        self._checked(value)
        return value * self.logits - softplus(self.logits) + self._log_norm()

    def cdf(self, value):
        self._checked(value)
        far, p = self._apart()
        exact = (p.pow(value) * (1.0 - p).pow(1.0 - value) + p - 1.0) / (2.0 * p - 1.0)
        inside = ops.where(far, exact, value)
        return ops.where(value <= 0, 0.0, ops.where(value >= 1, 1.0, inside))

    def icdf(self, value):
        far, p = self._apart()
        exact = (ops.log1p(-p + value * (2.0 * p - 1.0)) - ops.log1p(-p)) / (p.log() - ops.log1p(-p))
        return ops.where(far, exact, value)

    def entropy(self):
        none, all_ = ops.log1p(-self.probs), self.probs.log()
        return self.mean * (none - all_) - self._log_norm() - none

    @property
    def _natural_params(self):
        return (self.logits,)

    def _log_normalizer(self, x):
        low, high = self._lims[0] - 0.5, self._lims[1] - 0.5
        far = (x <= low) | (x > high)
        safe = ops.where(far, x, low)
        exact = safe.expm1().abs().log() - safe.abs().log()
        return ops.where(far, exact, 0.5 * x + x.pow(2) / 24.0 - x.pow(4) / 2880.0)


__all__ = ["ContinuousBernoulli"]
