"""Bessel functions: series near zero; beyond, asymptotic forms and exponentially exact sums.

Computed in float64 like ``special_kernels``; the numbers in brackets are formulas of Abramowitz &
Stegun.
"""

from __future__ import annotations

import math

from .special_kernels import chebyshev, in_blocks, polynomial

_EULER = 0.5772156649015329
_SPLIT = 8.0  # J and Y: power series below, modulus and phase above
_TERMS = 32


def _series(order, sign):
    """Coefficients of J (sign −1) or I (+1) over (x/2)^order in x²/4 (9.1.10, 9.6.10)."""
    return [sign**k / (math.factorial(k) * math.factorial(k + order)) for k in range(_TERMS)]


def _log_series(order, sign):
    """The same coefficients times ψ(k + 1) + ψ(k + order + 1), for Y (9.1.11) and K (9.6.11)."""
    psi = [-_EULER]
    for k in range(1, _TERMS + order + 1):
        psi.append(psi[-1] + 1 / k)
    return [c * (psi[k] + psi[k + order]) for k, c in enumerate(_series(order, sign))]


_J, _I = [_series(n, -1) for n in (0, 1)], [_series(n, 1) for n in (0, 1)]
_Y_LOG, _K_LOG = [_log_series(n, -1) for n in (0, 1)], [_log_series(n, 1) for n in (0, 1)]
# P and Q·x/8 of J = √(2/πx)(P cos χ − Q sin χ) (9.2.5) as Chebyshev series in 2·(8/x)² − 1
_P0 = (
    0.9994603493475187, -0.0005365220468132117, 3.0751847875194745e-06, -5.1705945376060975e-08,
    1.6306464635151382e-09, -7.86409137723707e-11, 5.168262387349193e-12,
    -4.3045788699253914e-13, 4.3265957431549404e-14, -5.069034095935236e-15,
    6.748072215733873e-16, -1.0011513723467786e-16, 1.6305919233744186e-17,
)
_Q0 = (
    -0.015555854605337009, 6.838519942611649e-05, -7.414498411060647e-07,
    1.7972457247968992e-08, -7.27191593686632e-10, 4.2201219046687385e-11,
    -3.206747420996635e-12, 3.006145125351706e-13, -3.336328185322427e-14,
    4.255225040245461e-15, -6.09993013164005e-16, 9.662128970303257e-17, -1.6686065214378146e-17,
)
_P1 = (
    1.0009030408600137, 0.0008989898330859408, -3.987284300488908e-06, 6.177633960644299e-08,
    -1.8718907491063067e-09, 8.816898659582339e-11, -5.704863640395645e-12,
    4.699195515230542e-13, -4.6842237839904895e-14, 5.452674896044717e-15,
    -7.221180842274018e-16, 1.0667689114335412e-16, -1.7312313216116335e-17,
)
_Q1 = (
    0.04677778706953532, -9.62772354915708e-05, 9.138615257955454e-07, -2.0959781384083424e-08,
    8.229193327650554e-10, -4.686363688176945e-11, 3.5152187949686082e-12, -3.2643156743279e-13,
    3.5967765829165294e-14, -4.5612523950772974e-15, 6.508282957783384e-16,
    -1.0269147531823243e-16, 1.767635548776479e-17,
)

_P, _Q = (_P0, _P1), (_Q0, _Q1)


def _small_j(x, order):
    return (x / 2) ** order * polynomial(x * x / 4, _J[order])


def _far(xp, x, order, second):
    """J (or Y, ``second``) for x >= 8; sine and cosine of x − (2·order + 1)π/4 without rounding."""
    t = 2 * (_SPLIT / x) ** 2 - 1
    p, q = chebyshev(t, _P[order]), chebyshev(t, _Q[order]) * _SPLIT / x
    sine, cosine = xp.sin(x) * math.sqrt(0.5), xp.cos(x) * math.sqrt(0.5)
    cos_chi, sin_chi = (sine + cosine, sine - cosine) if order == 0 else (
        sine - cosine, -sine - cosine)
    value = p * sin_chi + q * cos_chi if second else p * cos_chi - q * sin_chi
    return xp.where(xp.isinf(x), 0, xp.sqrt(2 / (math.pi * x)) * value)


def _bessel_j(xp, x, order):
    size = xp.absolute(x)
    near = _small_j(xp.minimum(size, _SPLIT), order)
    out = xp.where(size < _SPLIT, near, _far(xp, xp.maximum(size, _SPLIT), order, False))
    return xp.where(x < 0, -out, out) if order else out


def _bessel_y(xp, x, order):
    near = xp.clip(x, 0, _SPLIT)
    log_part = 2 / math.pi * xp.log(near / 2) * _small_j(near, order)
    rest = (near / 2) ** order * polynomial(near * near / 4, _Y_LOG[order]) / math.pi
    out = log_part - rest - (2 / (math.pi * near) if order else 0)
    out = xp.where(x < _SPLIT, out, _far(xp, xp.maximum(x, _SPLIT), order, True))
    return xp.where(x == 0, -xp.inf, xp.where(x < 0, xp.nan, out))


@in_blocks
def bessel_j0(xp, x):
    """J of order 0."""
    return _bessel_j(xp, x, 0)


@in_blocks
def bessel_j1(xp, x):
    """J of order 1."""
    return _bessel_j(xp, x, 1)


@in_blocks
def bessel_y0(xp, x):
    """Y of order 0; NaN below 0."""
    return _bessel_y(xp, x, 0)


@in_blocks
def bessel_y1(xp, x):
    """Y of order 1; NaN below 0."""
    return _bessel_y(xp, x, 1)


# ---------------------------------------------------------------- modified: I and K
_I_SPLIT = 20.0


def _hankel(order, terms=26):
    """Coefficients in 1/x of √(2πx)·e^(−x)·I(x) (9.7.1)."""
    out = [1.0]
    for k in range(1, terms):
        out.append(-out[-1] * (4 * order * order - (2 * k - 1) ** 2) / (8 * k))
    return out


_I_FAR = [_hankel(0), _hankel(1)]
_I_NEAR = [[1 / (math.factorial(k) * math.factorial(k + n)) for k in range(60)] for n in (0, 1)]


def _scaled_i(xp, x, order):
    """e^(−|x|)·I(x)."""
    size = xp.absolute(x)
    near = xp.minimum(size, _I_SPLIT)
    small = (near / 2) ** order * polynomial(near * near / 4, _I_NEAR[order]) * xp.exp(-near)
    far = xp.maximum(size, _I_SPLIT)
    large = polynomial(1 / far, _I_FAR[order]) / xp.sqrt(2 * math.pi * far)
    out = xp.where(size < _I_SPLIT, small, large)
    out = xp.where(x < 0, -out, out) if order else out
    return xp.where(xp.isnan(x), x, out)


def _unscaled_i(xp, x, order):
    # e^|x| in two factors: I is finite a little beyond the overflow of e^|x|
    half = xp.exp(xp.absolute(x) / 2)
    out = _scaled_i(xp, x, order) * half * half
    return xp.where(xp.isinf(x), xp.copysign(xp.inf, x) if order else xp.inf, out)


@in_blocks
def i0(xp, x):
    """I of order 0."""
    return _unscaled_i(xp, x, 0)


@in_blocks
def i0e(xp, x):
    """e^(−|x|)·I of order 0."""
    return _scaled_i(xp, x, 0)


@in_blocks
def i1(xp, x):
    """I of order 1."""
    return _unscaled_i(xp, x, 1)


@in_blocks
def i1e(xp, x):
    """e^(−|x|)·I of order 1."""
    return _scaled_i(xp, x, 1)


def _scaled_k(xp, x, order):
    """e^x·K(x): series up to 2, then the integral ∫ e^(−x(cosh t − 1)) cosh(order·t) dt (9.6.24),
    where the trapezoid rule of step h errs by e^(−2π²/(h²x)) only."""
    near = xp.clip(x, 0, 2)
    log_part = (-1) ** (order + 1) * xp.log(near / 2) * (
        (near / 2) ** order * polynomial(near * near / 4, _I[order]))
    rest = (-1) ** order * 0.5 * (near / 2) ** order * polynomial(near * near / 4, _K_LOG[order])
    small = (log_part + rest + (1 / near if order else 0)) * xp.exp(near)
    far, step = xp.maximum(x, 2), 0.125
    total = 0.5
    for k in range(1, 54):
        t = k * step
        total = total + xp.exp(-far * (math.cosh(t) - 1)) * math.cosh(order * t)
    # for large x the integrand is narrower than the step: the asymptotic series (9.7.2)
    tail = [c * (-1) ** k for k, c in enumerate(_I_FAR[order])]
    wide = polynomial(1 / xp.maximum(far, 25), tail) * xp.sqrt(math.pi / (2 * far))
    large = xp.where(far > 25, wide, total * step)
    out = xp.where(x <= 2, small, large)
    return xp.where(x == 0, xp.inf, xp.where(x < 0, xp.nan, xp.where(xp.isnan(x), x, out)))


@in_blocks
def scaled_modified_bessel_k0(xp, x):
    """e^x·K of order 0."""
    return _scaled_k(xp, x, 0)


@in_blocks
def scaled_modified_bessel_k1(xp, x):
    """e^x·K of order 1."""
    return _scaled_k(xp, x, 1)


@in_blocks
def modified_bessel_k0(xp, x):
    """K of order 0; NaN below 0."""
    return _scaled_k(xp, x, 0) * xp.exp(-x)


@in_blocks
def modified_bessel_k1(xp, x):
    """K of order 1; NaN below 0."""
    return _scaled_k(xp, x, 1) * xp.exp(-x)


@in_blocks
def spherical_bessel_j0(xp, x):
    """sin(x)/x; 1 at 0."""
    safe = xp.where(x == 0, 1, x)
    return xp.where(x == 0, 1, xp.where(xp.isinf(x), 0, xp.sin(safe) / safe))
