"""Special functions of the top namespace and of ``disttorch.special``, with their derivatives.

The numerics are in ``backend/special_kernels.py`` and ``backend/bessel_kernels.py``.
"""

from __future__ import annotations

import math

from ..tensor import Tensor
from .elementwise_core import ElementwiseOp, binary, elementwise, unary
from .pointwise_more import xlog1py
from .samples import case, unary_cases

_SQRT_PI = math.sqrt(math.pi)


def _function(name, doc, rule=None, low=-2.0, high=2.0, avoid=(), top=True, **options):
    """Register a one-operand kernel of the namespace; ``top``: also in torch's top namespace."""

    def forward(xp, input):
        return getattr(xp, name)(input)

    forward.__name__, forward.__doc__ = name, doc
    made = unary(kind="float", lacks="c", inplace=top, method=top,
                 samples=unary_cases(low, high, avoid), **options)(forward)
    if rule is not None:
        made.grad("input")(rule)
    return made


erfc = _function("erfc", "1 − erf(input), exact in the tail.",
                 lambda F, g, input: g * (F.exp(-(input * input)) * (-2 / _SQRT_PI)))
erfinv = _function("erfinv", "The inverse of erf.",
                   lambda F, g, out: g * (F.exp(out * out) * (_SQRT_PI / 2)),
                   -0.9, 0.9)
lgamma = _function("lgamma", "log |Γ(input)|.", lambda F, g, input: g * F.digamma(input),
                   avoid=(-2, -1, 0))
digamma = _function("digamma", "The derivative of lgamma.",
                    lambda F, g, input: g * F.polygamma_of(input, 1), 0.3, 4.0)
i0 = _function("i0", "The modified Bessel function of order 0.",
               lambda F, g, input: g * F.i1(input))
i1 = _function("i1", "The modified Bessel function of order 1.",
               lambda F, g, input, out: g * (F.i0(input) - _over(F, out, input)), top=False,
               avoid=(0.0,))
i0e = _function("i0e", "exp(−|input|)·i0(input).",
                lambda F, g, input, out: g * (F.i1e(input) - F.sgn(input) * out), top=False,
                avoid=(0.0,))
i1e = _function("i1e", "exp(−|input|)·i1(input).",
                lambda F, g, input, out: g * (
                    F.i0e(input) - out * F.sgn(input) - _over(F, out, input)),
                top=False, avoid=(0.0,))
erfcx = _function("erfcx", "exp(input²)·erfc(input).",
                  lambda F, g, input, out: g * (input * out * 2 - 2 / _SQRT_PI),
                  top=False)
ndtr = _function("ndtr", "The standard normal distribution function.",
                 lambda F, g, input: g * F.exp(input * input * -0.5) / math.sqrt(2 * math.pi),
                 top=False)
ndtri = _function("ndtri", "The quantile of the standard normal distribution.",
                  lambda F, g, out: g * F.exp(out * out * 0.5) * math.sqrt(2 * math.pi), 0.1, 0.9,
                  top=False)
log_ndtr = _function("log_ndtr", "log(ndtr(input)), exact in the lower tail.",
                     lambda F, g, input: g / F.erfcx(input * -math.sqrt(0.5)) * math.sqrt(
                         2 / math.pi), top=False)


def _over(F, out, input):
    """i1(x)/x, whose value at 0 is 1/2."""
    zero = F.eq(input, 0)
    safe = F.where(zero, F.ones_like(input), input)
    return F.where(zero, F.ones_like(input) * 0.5, out / safe)


# PyTorch has no derivatives of these
_PLAIN = tuple(
    _function(name, f"{name.replace('_', ' ')} of the input.", top=False, low=0.2, high=3.0)
    for name in ("bessel_j0", "bessel_j1", "bessel_y0", "bessel_y1", "modified_bessel_k0",
                 "modified_bessel_k1", "scaled_modified_bessel_k0", "scaled_modified_bessel_k1",
                 "spherical_bessel_j0")
)


@elementwise(kind="float", lacks="c", method=False, node_name="Polygamma", samples=lambda m: [
    case(m(3, 4, low=0.4, high=4), 1), case(m(3, low=0.4, high=3), 2),
    case(m(low=1), 0)])
def polygamma_of(xp, input, n):
    return xp.polygamma(n, input)


@polygamma_of.grad("input")
def _(F, g, input, n):
    return g * F.polygamma_of(input, n + 1)


def polygamma(n, input, *, out=None) -> Tensor:
    """The n-th derivative of digamma (Tensor method: ``input.polygamma(n)``).

    Raises:
        RuntimeError: for a negative ``n``.
    """
    if n < 0:
        raise RuntimeError("polygamma(n, x) does not support negative n.")
    return polygamma_of.call(input, n, out=out)


def mvlgamma(input, p, *, out=None) -> Tensor:
    """log of the multivariate gamma function of dimension p: Σ lgamma(input − j/2) + const."""
    if p < 1:
        raise RuntimeError(f"p has to be greater than or equal to 1, got {p}")
    total = math.log(math.pi) * p * (p - 1) / 4
    for j in range(p):
        total = total + lgamma.call(input - j / 2)
    return total if out is None else out.copy_(total)


@elementwise(kind="float", lacks="c", inplace=True, samples=lambda m: [
    case(m(3, 4, low=0.1, high=0.9)), case(m(5, low=-0.3, high=1.3, avoid=(0.1, 0.9)), 0.1),
    case(m(low=0.2, high=0.8))])
def logit(xp, input, eps=None):
    """log(input / (1 − input)), of the input limited to [eps, 1 − eps]."""
    if eps is not None:
        input = xp.clip(input, input.dtype.type(eps), input.dtype.type(1 - eps))
    return xp.log(input / (1 - input))


@logit.grad("input")
def _(F, g, input, eps):
    slope = g / (input * (1 - input))
    if eps is None:
        return slope
    inside = F.logical_and(F.ge(input, eps), F.le(input, 1 - eps))
    return F.where(inside, slope, F.zeros_like(g))


@unary(kind="float", inplace=True, samples=unary_cases(avoid=(0.0,)))
def sinc(xp, input):
    """sin(πx)/(πx), 1 at 0."""
    scaled = input * input.dtype.type(math.pi)
    safe = xp.where(scaled == 0, scaled.dtype.type(1), scaled)
    return xp.where(scaled == 0, scaled.dtype.type(1), xp.sin(safe) / safe)


@sinc.grad("input")
def _(F, g, input):
    scaled = input * math.pi
    zero = F.eq(scaled, 0)
    safe = F.where(zero, F.ones_like(scaled), scaled)
    slope = (F.cos(safe) * safe - F.sin(safe)) / (safe * safe) * math.pi
    return g * F.conj(F.where(zero, F.zeros_like(slope), slope))


@unary(kind="float", lacks="c", method=False, samples=unary_cases(0.2, 3.0))
def entr(xp, input):
    """−x·log(x); 0 at 0, −inf below."""
    safe = xp.where(input > 0, input, 1)
    return xp.where(input > 0, -input * xp.log(safe), xp.where(input < 0, -math.inf, -input))


@entr.grad("input")
def _(F, g, input):
    return g * (-F.log(input) - 1)


def _incomplete(name, kernel, sign, doc):
    def forward(xp, input, other):
        return getattr(xp, kernel)(input, other)

    forward.__name__, forward.__doc__ = name, doc
    made = binary(lacks="bic", inplace=True, tensor_only=("input", "other"), samples=lambda m: [
        case(m.constant(3, 4, low=0.3, high=3), m(3, 4, low=0.3, high=4)),
        case(m.constant(4, low=0.3, high=3), m(2, 1, low=0.3, high=4))])(forward)

    @made.grad("other")
    def _(F, g, input, other):
        density = F.exp((input - 1) * F.log(other) - other - F.lgamma(input))
        return g * density * sign

    return made


igamma = _incomplete("igamma", "gammainc", 1, "The regularised lower incomplete gamma function.")
igammac = _incomplete("igammac", "gammaincc", -1,
                      "The regularised upper incomplete gamma function.")


@binary(kind="float", lacks="c", method=False, samples=lambda m: [
    case(m.constant(3, 4, low=1.5, high=5), m(3, 4, low=0.5, high=4)),
    case(m.constant(3, low=1.5, high=5), 2.0)])
def zeta(xp, input, other):
    """Hurwitz's zeta function Σ (other + k)^(−input)."""
    return xp.zeta(*(xp.asarray(a, xp.result_type(input, other)) for a in (input, other)))


@zeta.grad("other")
def _(F, g, input, other):
    return g * -input * F.zeta(input + 1, other)


def _recurrence(name, start, step, doc, shifted=False):
    """An orthogonal polynomial family by its three-term recurrence, elementwise in x and n."""

    def forward(xp, input, n):
        x = 2 * input - 1 if shifted else input
        x, degree = xp.broadcast_arrays(x, n)
        before, here = xp.ones_like(x), start(x)
        out = xp.where(degree < 0, xp.zeros_like(x), before)
        for k in range(1, (int(degree.max()) if degree.size else 0) + 1):
            out = xp.where(xp.trunc(degree) == k, here, out)
            before, here = here, step(k, x, here, before)
        return out

    forward.__name__, forward.__doc__ = name, doc
    return ElementwiseOp(forward, tensors=("input", "n"), kind="float", lacks="c", method=False,
                         samples=lambda m: [case(m.constant(3, 4, low=-1, high=1), m.int(4)),
                                            case(m.constant(3, low=0, high=1), 7)])


def _chebyshev_step(k, x, here, before):
    return 2 * x * here - before


_CHEBYSHEV = {"t": lambda x: x, "u": lambda x: 2 * x, "v": lambda x: 2 * x - 1,
              "w": lambda x: 2 * x + 1}
_POLYNOMIALS = tuple(
    _recurrence(f"{prefix}chebyshev_polynomial_{kind}", start, _chebyshev_step,
                f"Chebyshev's polynomial of kind {kind.upper()} and degree n.", bool(prefix))
    for prefix in ("", "shifted_") for kind, start in _CHEBYSHEV.items()
) + (
    _recurrence("hermite_polynomial_h", lambda x: 2 * x,
                lambda k, x, here, before: 2 * x * here - 2 * k * before,
                "The physicists' Hermite polynomial of degree n."),
    _recurrence("hermite_polynomial_he", lambda x: x,
                lambda k, x, here, before: x * here - k * before,
                "The probabilists' Hermite polynomial of degree n."),
    _recurrence("laguerre_polynomial_l", lambda x: 1 - x,
                lambda k, x, here, before: ((2 * k + 1 - x) * here - k * before) / (k + 1),
                "Laguerre's polynomial of degree n."),
    _recurrence("legendre_polynomial_p", lambda x: x,
                lambda k, x, here, before: ((2 * k + 1) * x * here - k * before) / (k + 1),
                "Legendre's polynomial of degree n."),
)


FUNCTIONS = {"polygamma": polygamma}
METHODS = {
    "polygamma": lambda self, n: polygamma(n, self),
    "polygamma_": lambda self, n: self.copy_(polygamma(n, self)),
}
COMPOSITES = {"mvlgamma": mvlgamma}
INPLACE = ("mvlgamma",)
_ONLY_SPECIAL = (i1, i0e, i1e, erfcx, ndtr, ndtri, log_ndtr, entr, zeta, xlog1py, *_PLAIN,
                 *_POLYNOMIALS)
SPECIAL = {made.name: made.call for made in _ONLY_SPECIAL}
__all__ = ["COMPOSITES", "FUNCTIONS", "METHODS", "SPECIAL"]
