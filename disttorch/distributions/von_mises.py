"""The von Mises distribution on the circle."""

from __future__ import annotations

import math

from .. import ops, special
from ..autograd import no_grad
from ..backend import dtypes
from ..tensor import Size
from . import constraints
from .distribution import Distribution
from .utils import broadcast_all


class VonMises(Distribution):
    """The von Mises distribution over angles; samples lie in [−π, π).

    Args:
        loc: an angle in radians.
        concentration: positive.
    """

    arg_constraints = {"loc": constraints.real, "concentration": constraints.positive}
    support = constraints.real
    has_rsample = False
    _expanded = ("loc", "concentration")

    def __init__(self, loc, concentration, validate_args=None):
        self.loc, self.concentration = broadcast_all(loc, concentration)
        super().__init__(self.loc.shape, validate_args=validate_args)

    @property
    def mean(self):
        """The circular mean."""
        return self.loc

    @property
    def mode(self):
        return self.loc

    @property
    def variance(self):
        """The circular variance 1 − I₁(κ)/I₀(κ)."""
        return 1 - special.i1e(self.concentration) / special.i0e(self.concentration)

    def log_prob(self, value):
        self._checked(value)
        kappa = self.concentration
        log_i0 = special.i0e(kappa).log() + kappa  # i0 itself overflows
        return kappa * ops.cos(value - self.loc) - math.log(2 * math.pi) - log_i0

    def sample(self, sample_shape=Size(())):
        """By rejection from a wrapped Cauchy distribution (Best & Fisher, 1979), in float64."""
        with no_grad():
            shape = self._extended_shape(sample_shape)
            kappa = self.concentration.to(dtypes.float64).expand(shape)
            angle = _centred(kappa.reshape(-1)).reshape(shape)
            turned = angle + math.pi + self.loc.to(dtypes.float64)
            return (turned % (2 * math.pi) - math.pi).to(self.loc.dtype)


def _proposal(kappa):
    """The parameter r of the wrapped Cauchy; its small-κ limit where the formula cancels."""
    tau = 1 + (1 + 4 * kappa * kappa).sqrt()
    rho = (tau - (2 * tau).sqrt()) / (2 * kappa)
    exact = (1 + rho * rho) / (2 * rho)
    return ops.where(kappa < 1e-5, 1 / kappa + kappa, exact)


def _centred(kappa):
    """Samples around 0, one for each κ of a vector; a round accepts at least 2 of 3."""
    out, r = ops.zeros_like(kappa), _proposal(kappa)
    left = ops.arange(kappa.numel(), device=kappa.device)
    while left.numel():
        k, rr = kappa[left], r[left]
        u = ops.rand(3, left.numel(), dtype=kappa.dtype, device=kappa.device)
        z = ops.cos(math.pi * u[0])
        f = (1 + rr * z) / (rr + z)
        c = k * (rr - f)
        accept = (c * (2 - c) > u[1]) | (ops.log(c / u[1]) + 1 - c >= 0)
        out[left[accept]] = ((u[2] - 0.5).sign() * ops.acos(f.clamp(min=-1, max=1)))[accept]
        left = left[~accept]
    return out


__all__ = ["VonMises"]
