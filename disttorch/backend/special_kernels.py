"""Special functions by array calls of any namespace: error functions, gamma functions, zeta.

Every function computes in float64 and rounds once to the input's type, so float32 results are
correctly rounded almost always and float64 results are good to about 1e-14 of their size (near a
zero, of the terms that cancel). On the CPU they run over blocks that stay in the cache.

Books: Abramowitz & Stegun (A&S); NIST Digital Library of Mathematical Functions (DLMF).
"""

from __future__ import annotations

import functools
import math

_BLOCK = 1 << 13  # elements of a block: 64 KiB of float64, a dozen temporaries fit in L2


def in_blocks(function):
    """``function(xp, *float64 arrays)`` over broadcast arrays of any float type, in blocks."""

    @functools.wraps(function)
    def wrapper(xp, x, *others):
        dtype = x.dtype
        if xp.name != "numpy":
            return function(xp, *(xp.asarray(a, xp.float64) for a in (x, *others))).astype(dtype)
        arrays = xp.broadcast_arrays(x, *others) if others else (x,)
        flat = [xp.ascontiguousarray(a).reshape(-1) for a in arrays]
        out = xp.empty(flat[0].size, dtype)
        with xp.errstate(all="ignore"):
            for start in range(0, out.size, _BLOCK):
                part = slice(start, start + _BLOCK)
                out[part] = function(xp, *(a[part].astype(xp.float64) for a in flat))
        return out.reshape(arrays[0].shape)

    return wrapper


def polynomial(x, coefficients):
    """Σ coefficients[k]·x^k by Horner's rule."""
    total = x * 0 + coefficients[-1]
    for c in coefficients[-2::-1]:
        total = total * x + c
    return total


def chebyshev(x, coefficients):
    """Σ coefficients[k]·T_k(x) by Clenshaw's recurrence."""
    a = b = x * 0
    for c in coefficients[:0:-1]:
        a, b = 2 * x * a - b + c, a
    return x * a - b + coefficients[0]


def _by_case(xp, condition, x, one, other):
    """one(x) where the condition holds, else other(x), each computed for its elements only."""
    out = xp.empty_like(x)
    out[condition] = one(x[condition])
    rest = ~condition
    out[rest] = other(x[rest])
    return out


# ---------------------------------------------------------------- error functions
# erf(x)/x in x², A&S 7.1.5
_ERF_SERIES = tuple((-1) ** k * 2 / math.sqrt(math.pi) / (math.factorial(k) * (2 * k + 1))
                    for k in range(24))
# (1 + 2x)·exp(x²)·erfc(x) for x >= 0 as a Chebyshev series in (x − 3.75)/(x + 3.75)
_ERFCX = (
    1.1775789345674017, -0.004590054580646478, -0.08424913336651792, 0.05920993999819189,
    -0.026658668435305753, 0.009074997670705265, -0.002413163540417608, 0.0004907758365258086,
    -6.916973302501207e-05, 4.13902798607301e-06, 7.74038306619849e-07, -2.1886401049234397e-07,
    1.076499946567091e-08, 4.521959811218287e-09, -7.754400208831351e-10,
    -6.318088340886684e-11, 2.86879501093067e-11, 1.9455868545777347e-13, -9.65469674843344e-13,
    3.25254814814874e-14, 3.3478119482868056e-14, -1.864562880419313e-15,
    -1.2507950530688648e-15, 7.418235256624044e-17, 5.068148904796111e-17,
)


def _scaled_erfc(x):
    """exp(x²)·erfc(x) for x >= 0."""
    return chebyshev(1 - 7.5 / (x + 3.75), _ERFCX) / (1 + 2 * x)


def _erf_near_zero(x):
    return x * polynomial(x * x, _ERF_SERIES)


def _erfc(xp, x):
    def near(v):
        return 1 - _erf_near_zero(v)

    def far(v):
        size = xp.absolute(v)
        tail = xp.exp(-size * size) * _scaled_erfc(size)
        return xp.where(v < 0, 2 - tail, tail)

    return _by_case(xp, xp.absolute(x) < 1, x, near, far)


def _erf(xp, x):
    def far(v):
        size = xp.absolute(v)
        return xp.copysign(1 - xp.exp(-size * size) * _scaled_erfc(size), v)

    return _by_case(xp, xp.absolute(x) < 1, x, _erf_near_zero, far)


@in_blocks
def erfc(xp, x):
    """1 − erf(x), exact in the tail."""
    return _erfc(xp, x)


@in_blocks
def erfcx(xp, x):
    """exp(x²)·erfc(x), which neither overflows nor vanishes for large x."""
    size = xp.absolute(x)
    scaled = _scaled_erfc(size)
    return xp.where(x < 0, 2 * xp.exp(x * x) - scaled, scaled)


def _inverse_start(xp, log_term):
    """A start for inverse erf, relative error 2e-3; log_term is log(1 − y²) (S. Winitzki, 2008)."""
    a = 0.147
    t = 2 / (math.pi * a) + log_term / 2
    return xp.sqrt(xp.maximum(xp.sqrt(t * t - log_term / a) - t, 0))


def _erfc_inverse(xp, q):
    """z >= 0 with erfc(z) = q for q in (0, 1], by Halley's iteration on the scaled function."""
    z = _inverse_start(xp, xp.log(q) + xp.log(2 - q))
    for _ in range(4):
        step = (q * xp.exp(z * z) - _scaled_erfc(z)) * (math.sqrt(math.pi) / 2)
        z = z - step / (1 + z * step)
    return z


@in_blocks
def erfinv(xp, y):
    """x with erf(x) = y; ±inf at ±1 and NaN outside."""
    def inner(v):
        x = _inverse_start(xp, xp.log1p(-v * v))
        for _ in range(2):  # an error of 2e-3 becomes 1e-8, then 1e-24
            step = (_erf_near_zero(x) - v) * xp.exp(x * x) * (math.sqrt(math.pi) / 2)
            x = x - step / (1 + x * step)
        return x

    def outer(v):
        return _erfc_inverse(xp, xp.clip(1 - v, 1e-17, 0.5))

    size = xp.absolute(y)
    x = _by_case(xp, size <= 0.5, size, inner, outer)
    x = xp.where(size == 1, xp.inf, xp.where(size > 1, xp.nan, x))
    return xp.copysign(x, y)


@in_blocks
def ndtri(xp, p):
    """x with ndtr(x) = p: the quantile of the standard normal distribution."""
    lower = xp.minimum(p, 1 - p)
    x = math.sqrt(2) * _erfc_inverse(xp, xp.clip(2 * lower, 5e-324, 1))
    x = xp.where(lower == 0, xp.inf, xp.where(lower < 0, xp.nan, x))
    return xp.where(p < 0.5, -x, x)


@in_blocks
def ndtr(xp, x):
    """The standard normal distribution function."""
    return 0.5 * _erfc(xp, x * -math.sqrt(0.5))


@in_blocks
def log_ndtr(xp, x):
    """log(ndtr(x)), exact in the lower tail."""
    low = xp.log(_scaled_erfc(xp.maximum(-x, 1) * math.sqrt(0.5)) / 2) - x * x / 2
    high = xp.log1p(-0.5 * _erfc(xp, xp.maximum(x, -1) * math.sqrt(0.5)))
    return xp.where(x < -1, low, high)


# ---------------------------------------------------------------- gamma functions
# B_2k, the Bernoulli numbers of the asymptotic series
_BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510,
              43867 / 798, -174611 / 330)
_SHIFT = 10  # the asymptotic series are used above this


def _sine_of_pi(xp, x):
    """sin(πx) and cos(πx) of the part of x beyond the nearest even integer."""
    r = x - 2 * xp.round(x / 2)
    return xp.sin(math.pi * r), xp.cos(math.pi * r)


def _lgamma(xp, x):
    y = xp.where(x < 0.5, 1 - x, x)
    low = y < _SHIFT  # Γ(y) = Γ(y + 10) / (y(y + 1)…(y + 9)), into reach of the series
    z, start = xp.where(low, y + _SHIFT, y), xp.where(low, y, 1)
    product = start
    for k in range(1, _SHIFT):
        product = product * (start + k)
    product = xp.where(low, product, 1)
    w = 1 / (z * z)
    series = polynomial(w, [b / (2 * k * (2 * k - 1)) for k, b in enumerate(_BERNOULLI, 1)]) / z
    out = (z - 0.5) * xp.log(z) - z + 0.5 * math.log(2 * math.pi) + series - xp.log(product)
    whole = xp.floor(x) == x
    sine = xp.where(whole & (x <= 0), 0, xp.absolute(_sine_of_pi(xp, x)[0]))
    out = xp.where(x < 0.5, xp.log(math.pi / sine) - out, out)
    return xp.where(xp.isinf(x), xp.inf, xp.where((x == 1) | (x == 2), 0, out))


@in_blocks
def lgamma(xp, x):
    """log |Γ(x)| by Stirling's series (DLMF 5.11.1) and the reflection formula."""
    return _lgamma(xp, x)


@in_blocks
def digamma(xp, x):
    """The derivative of log Γ (DLMF 5.11.2); −inf at +0 and NaN at negative integers."""
    y = xp.where(x < 0.5, 1 - x, x)
    low = y < _SHIFT
    z, start = xp.where(low, y + _SHIFT, y), xp.where(low, y, 1)
    total = 1 / start
    for k in range(1, _SHIFT):
        total = total + 1 / (start + k)
    total = xp.where(low, total, 0)
    w = 1 / (z * z)
    series = w * polynomial(w, [b / (2 * k) for k, b in enumerate(_BERNOULLI, 1)])
    out = xp.log(z) - 0.5 / z - series - total
    sine, cosine = _sine_of_pi(xp, x)
    out = xp.where(x < 0.5, out - math.pi * cosine / sine, out)
    whole = (xp.floor(x) == x) & (x < 0)
    out = xp.where(x == 0, xp.copysign(xp.inf, -x), xp.where(whole, xp.nan, out))
    return xp.where(x == -xp.inf, xp.nan, out)


@in_blocks
def zeta(xp, s, q):
    """Hurwitz's Σ (q + k)^(−s) over k >= 0, by Euler and Maclaurin's formula (DLMF 25.11.28)."""
    return _zeta(xp, s, q)


def _zeta(xp, s, q):
    above = _zeta_above_zero(xp, s, xp.where(q > 0, q, q - xp.floor(q)))
    below = (q < 0) & (xp.floor(s) == s)  # the terms below 0 are those of two other zetas
    safe = xp.where(below, q, -0.5)
    rest = _zeta_above_zero(xp, s, 1 + xp.floor(safe) - safe) - _zeta_above_zero(xp, s, 1 - safe)
    out = xp.where(below, above + xp.where(s % 2 == 0, rest, -rest), above)
    whole = xp.floor(q) == q
    out = xp.where((q <= 0) & whole, xp.inf, out)
    out = xp.where((q <= 0) & ~whole & (xp.floor(s) != s), xp.nan, out)
    return xp.where(s == 1, xp.inf, xp.where(s < 1, xp.nan, out))


def _zeta_above_zero(xp, s, q):
    w, total = q, xp.zeros_like(q)
    enough = xp.clip(2 * s, _SHIFT, 200)  # where the terms of the series below shrink fast
    while True:
        low = w < enough
        if not low.any():
            break
        total = total + xp.where(low, w**-s, 0)
        w = xp.where(low, w + 1, w)
    power = w**-s
    out = total + power * w / (s - 1) + power / 2
    factor = s * power / w
    for k, b in enumerate(_BERNOULLI, 1):
        out = out + factor * (b / math.factorial(2 * k))
        factor = factor * ((s + 2 * k - 1) * (s + 2 * k)) / (w * w)
    return xp.where(xp.isinf(w), 0, out)


def polygamma(xp, n, x):
    """The n-th derivative of digamma: (−1)^(n+1)·n!·ζ(n + 1, x)."""
    if n == 0:
        return digamma(xp, x)
    return (-1) ** (n + 1) * math.factorial(n) * zeta(xp, xp.full_like(x, n + 1), x)


def _gamma_series(xp, a, x, steps):
    """P(a, x) by DLMF 8.11.4, good for x < a + 1."""
    term = total = 1 / a
    for k in range(1, steps):
        term = term * x / (a + k)
        total = total + term
        if not (term > total * 1e-17).any():
            break
    return total * xp.exp(a * xp.log(x) - x - _lgamma(xp, a))


def _gamma_fraction(xp, a, x, steps):
    """Q(a, x) by the continued fraction DLMF 8.9.2 (Lentz's method), good for x >= a + 1."""
    b = x + 1 - a
    c, d = xp.full_like(x, 1e300), 1 / b
    value = d
    for k in range(1, steps):
        t = -k * (k - a)
        b = b + 2
        d = 1 / (b + t * d)
        c = b + t / c
        value = value * (c * d)
        if not (xp.absolute(c * d - 1) > 1e-16).any():
            break
    return value * xp.exp(a * xp.log(x) - x - _lgamma(xp, a))


def _steps(a):
    """Steps within which both expansions converge: near x = a they need some multiple of √a."""
    return 200 + int(12 * math.sqrt(float(a.max()))) if a.size else 0


def _incomplete_gamma(xp, a, x, upper):
    inside = (a > 0) & (x > 0) & xp.isfinite(a) & xp.isfinite(x)
    series = inside & (x < a + 1)
    aa, small = xp.where(series, a, 1.0), xp.where(series, x, 0.5)
    steps = _steps(aa)
    p = _gamma_series(xp, aa, small, steps)
    other = inside & ~series
    aa, large = xp.where(other, a, 1.0), xp.where(other, x, 3.0)
    steps = _steps(aa)
    q = _gamma_fraction(xp, aa, large, steps)
    out = xp.where(series, 1 - p if upper else p, q if upper else 1 - q)
    none, full = (1.0, 0.0) if upper else (0.0, 1.0)
    out = xp.where((x == 0) & (a > 0) | xp.isinf(a) & xp.isfinite(x), none, out)
    out = xp.where(((a == 0) & (x > 0)) | (xp.isinf(x) & xp.isfinite(a)), full, out)
    bad = (a < 0) | (x < 0) | (a == 0) & (x == 0) | xp.isinf(a) & xp.isinf(x)
    return xp.where(bad | xp.isnan(a) | xp.isnan(x), xp.nan, out)


@in_blocks
def gammainc(xp, a, x):
    """The regularised lower incomplete gamma function P(a, x)."""
    return _incomplete_gamma(xp, a, x, False)


@in_blocks
def gammaincc(xp, a, x):
    """The regularised upper incomplete gamma function Q(a, x) = 1 − P(a, x)."""
    return _incomplete_gamma(xp, a, x, True)
