"""How a gamma variate moves with its shape parameter, at a fixed quantile.

With F the distribution function and p the density, a sample x of Gamma(a, 1) that stays at its
quantile moves by dx/da = −(∂F/∂a)/p (Figurnov, Mohamed & Mnih, "Implicit reparameterization
gradients", NeurIPS 2018). Everything is in z = log x: for small a, x itself underflows.
"""

from __future__ import annotations

import numpy as np

from .special_kernels import in_blocks

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)
_NODES, _WEIGHTS = (_NODES + 1) / 2, _WEIGHTS / 2  # on [0, 1]
_NEGLIGIBLE = 45.0  # exp(−45) = 3e-20
_TERMS = 80


def _by_series(xp, a, z):
    """dz/da from the power series of the incomplete gamma function; for x <= a + 1, a < 10.

    F = x^a e^(−x)/Γ(a+1)·S with S = Σ xⁿ/((a+1)…(a+n)), differentiated term by term.
    """
    x = xp.exp(z)
    term = total = xp.ones_like(a)
    log_slope = slope = xp.zeros_like(a)
    for n in range(1, _TERMS):
        term = term * x / (a + n)
        log_slope = log_slope - 1 / (a + n)
        total = total + term
        slope = slope + term * log_slope
    return -((z - xp.digamma(a + 1)) * total + slope) / a


def _range_below(xp, a, x):
    """The s where a·s − x·(1 − exp(−s)) reaches _NEGLIGIBLE, for x <= a."""
    k = _NEGLIGIBLE / a
    s = (k + xp.sqrt(k * k + 8 * k)) / 2  # beyond it; the function is convex: Newton descends
    for _ in range(6):
        s = s - (a * s + x * xp.expm1(-s) - _NEGLIGIBLE) / (a - x * xp.exp(-s))
    return s


def _range_above(xp, a, x):
    """The s where x·(exp(s) − 1) − a·s reaches _NEGLIGIBLE, for x >= a."""
    s = xp.minimum(xp.sqrt(2 * _NEGLIGIBLE / x), xp.maximum(1.5, xp.log(4 * _NEGLIGIBLE / x)))
    for _ in range(6):
        s = s - (x * xp.expm1(s) - a * s - _NEGLIGIBLE) / (x * xp.exp(s) - a)
    return s


def _by_quadrature(xp, a, z):
    """dz/da = ∓∫ (log t − ψ(a)) p(t)/p(x) dt/x over the side of x away from the mode.

    With t = x·exp(±s) the integrand falls monotonically, and Gauss-Legendre nodes over the range
    where it matters give about 12 digits.
    """
    x = xp.exp(z)
    side = xp.where(x <= a, -1.0, 1.0)
    reach = xp.where(x <= a, _range_below(xp, xp.maximum(a, x), x),
                     _range_above(xp, a, xp.maximum(a * (1 + 1e-12), x)))
    offset, total = z - xp.digamma(a), xp.zeros_like(a)
    for node, weight in zip(_NODES, _WEIGHTS, strict=True):
        t = side * reach * float(node)
        total = total + float(weight) * (offset + t) * xp.exp(a * t - x * xp.expm1(t))
    return side * reach * total


@in_blocks
def log_gamma_variate_slope(xp, a, z):
    """dz/da of z = log x, x a sample of Gamma(a, 1), at a fixed quantile; broadcast float arrays."""
    near = (a < 10) & (xp.exp(z) <= a + 1)
    out = xp.empty_like(a)
    for mask, method in ((near, _by_series), (~near, _by_quadrature)):
        if mask.any():
            out[mask] = method(xp, a[mask], z[mask])
    return out
