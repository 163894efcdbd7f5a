"""Pointwise functions: exponentials, trigonometry, and the activations they build."""

from __future__ import annotations

import math

from ..tensor import Tensor
from .elementwise_core import elementwise, unary
from .samples import case, unary_cases


def _function(name, ufunc, rule, doc, low=-2.0, high=2.0, avoid=(), **options):
    """Register a NumPy ufunc with its gradient rule."""

    def forward(xp, input):
        return getattr(xp, ufunc)(input)

    forward.__name__, forward.__doc__ = name, doc
    made = unary(ufunc=ufunc, kind="float", inplace=True, kernel=name,
                 samples=unary_cases(low, high, avoid), **options)(forward)
    made.grad("input")(rule)
    return made


exp = _function("exp", "exp", lambda F, g, out: g * F.conj(out), "e to the power input.")
exp2 = _function("exp2", "exp2", lambda F, g, out: g * F.conj(out) * 0.6931471805599453,
                 "2 to the power input.")
expm1 = _function("expm1", "expm1", lambda F, g, out: g * F.conj(out + 1),
                  "exp(input) − 1, exact near 0.")
log = _function("log", "log", lambda F, g, input: g / F.conj(input), "Natural logarithm.", 0.2)
log2 = _function("log2", "log2", lambda F, g, input: g / F.conj(input * 0.6931471805599453),
                 "Logarithm to base 2.", 0.2)
log10 = _function("log10", "log10", lambda F, g, input: g / F.conj(input * 2.302585092994046),
                  "Logarithm to base 10.", 0.2)
log1p = _function("log1p", "log1p", lambda F, g, input: g / F.conj(input + 1),
                  "log(1 + input), exact near 0.", -0.5)
sqrt = _function("sqrt", "sqrt", lambda F, g, out: g / F.conj(out * 2), "Square root.", 0.2)
sin = _function("sin", "sin", lambda F, g, input: g * F.conj(F.cos(input)), "Sine.")
cos = _function("cos", "cos", lambda F, g, input: -g * F.conj(F.sin(input)), "Cosine.")
tan = _function("tan", "tan", lambda F, g, out: g * F.conj(out * out + 1), "Tangent.", -1.0, 1.0)
asin = _function("asin", "arcsin", lambda F, g, input: g * F.conj(F.rsqrt(1 - input * input)),
                 "Inverse sine.", -0.9, 0.9)
acos = _function("acos", "arccos", lambda F, g, input: -g * F.conj(F.rsqrt(1 - input * input)),
                 "Inverse cosine.", -0.9, 0.9)
atan = _function("atan", "arctan", lambda F, g, input: g / F.conj(input * input + 1),
                 "Inverse tangent.")
sinh = _function("sinh", "sinh", lambda F, g, input: g * F.conj(F.cosh(input)), "Hyperbolic sine.")
cosh = _function("cosh", "cosh", lambda F, g, input: g * F.conj(F.sinh(input)),
                 "Hyperbolic cosine.")
tanh = _function("tanh", "tanh", lambda F, g, out: g * F.conj(1 - out * out), "Hyperbolic tangent.")
asinh = _function("asinh", "arcsinh", lambda F, g, input: g * F.conj(F.rsqrt(input * input + 1)),
                  "Inverse hyperbolic sine.")
acosh = _function("acosh", "arccosh", lambda F, g, input: g * F.conj(F.rsqrt(input * input - 1)),
                  "Inverse hyperbolic cosine.", 1.3, 3.0)
atanh = _function("atanh", "arctanh", lambda F, g, input: g / F.conj(1 - input * input),
                  "Inverse hyperbolic tangent.", -0.9, 0.9)

exp.fused_grad("input", "mul")
for _made in (exp2, expm1, log, log2, log10, log1p, sqrt, sin, cos, tan, atan, sinh, cosh, tanh):
    _made.fused_grad("input", _made.name + "_backward")


@unary(kind="float", inplace=True, kernel="rsqrt", samples=unary_cases(0.2, 3.0))
def rsqrt(xp, input):
    """1 / sqrt(input)."""
    return 1 / xp.sqrt(input)


@rsqrt.grad("input")
def _(F, g, out):
    return g * F.conj(out * out * out * -0.5)


rsqrt.fused_grad("input", "rsqrt_backward")


@unary(kind="float", lacks="c", inplace=True, kernel="erf", samples=unary_cases())
def erf(xp, input):
    """The error function."""
    return xp.erf(input)


@erf.grad("input")
def _(F, g, input):
    return g * (F.exp(-(input * input)) * 1.1283791670955126)


erf.fused_grad("input", "erf_backward")


@unary(kind="float", inplace=True, kernel="sigmoid", samples=unary_cases(-4, 4))
def sigmoid(xp, input):
    """1 / (1 + exp(−input)), without overflow."""
    if input.dtype.kind == "c":
        return 1 / (1 + xp.exp(-input))
    out = xp.tanh(input * input.dtype.type(0.5))
    return out * input.dtype.type(0.5) + input.dtype.type(0.5)


@sigmoid.grad("input")
def _(F, g, out):
    return g * F.conj(out * (1 - out))


sigmoid.fused_grad("input", "sigmoid_backward")


@unary(kind="float", lacks="bic", kernel="log_sigmoid", samples=unary_cases(-4, 4))
def log_sigmoid(xp, input):
    """log(sigmoid(input)) = min(input, 0) − log1p(exp(−|input|))."""
    return xp.minimum(input, 0) - xp.log1p(xp.exp(-xp.absolute(input)))


@log_sigmoid.grad("input")
def _(F, g, input):
    return g * F.sigmoid(-input)


log_sigmoid.fused_grad("input", "log_sigmoid_backward")


@unary(inplace=True, lacks="c", kernel="relu", samples=unary_cases(avoid=(0.0,)))
def relu(xp, input):
    """max(input, 0)."""
    if input.dtype.kind == "b":
        raise RuntimeError("Boolean inputs not supported for relu")
    if input.dtype.kind == "f":  # with numbers, NumPy's clip is faster than its maximum
        return input.clip(0, math.inf)
    return xp.maximum(input, input.dtype.type(0))


@relu.grad("input")
def _(F, g, out):
    return g * F.gt(out, 0)


relu.fused_grad("input", "relu_backward")


@unary(kind="float", lacks="bi", inplace=True, kernel="silu", samples=unary_cases(-4, 4))
def silu(xp, input):
    """input·sigmoid(input) (swish)."""
    half = input.dtype.type(0.5)
    out = xp.tanh(input * half)
    out = out * half + half
    return out * input


@silu.grad("input")
def _(F, g, input):
    s = F.sigmoid(input)
    return g * (s * (1 + input * (1 - s)))


silu.fused_grad("input", "silu_backward")


@elementwise(kind="float", lacks="bic", fused=True, samples=lambda m: [
    case(m(3, 4)), case(m(5), approximate="tanh"), case(m()), case(m(0, 3)), case(m(70, 3)),
])
def gelu(xp, input, approximate="none"):
    """input·Φ(input), Φ the normal distribution function; "tanh" approximates it.

    Hendrycks & Gimpel, "Gaussian error linear units", arXiv:1606.08415.
    """
    if approximate not in ("none", "tanh"):
        raise RuntimeError(f"approximate argument must be either none or tanh, got {approximate!r}")
    return xp.gelu(input, approximate)


@gelu.fast_grad("input")
def _(F, g, needs, input, approximate):
    return (F.xp.gelu_backward(g, input, approximate),)


@gelu.compose
def _(input, approximate="none"):
    if approximate == "none":
        return input * 0.5 * (1 + erf.call(input * 0.7071067811865476))
    inner = 0.7978845608028654 * (input + 0.044715 * input * input * input)
    return input * 0.5 * (1 + tanh.call(inner))


@elementwise(inplace=True, lacks="bic", kernel="leaky_relu", samples=lambda m: [
    case(m(3, 4, avoid=(0,))), case(m(5, avoid=(0,)), 0.2)])
def leaky_relu(xp, input, negative_slope=0.01):
    """input where positive, else negative_slope·input."""
    return xp.where(input > 0, input, input * input.dtype.type(negative_slope))


@leaky_relu.grad("input")
def _(F, g, input, negative_slope):
    return F.where(F.gt(input, 0), g, g * negative_slope)


leaky_relu.fused_grad("input", "leaky_relu_backward")


@elementwise(inplace=True, kind="float", lacks="bic", kernel="elu", samples=lambda m: [
    case(m(3, 4, avoid=(0,))), case(m(5, avoid=(0,)), 0.7)])
def elu(xp, input, alpha=1.0):
    """input where positive, else alpha·(exp(input) − 1)."""
    return xp.where(input > 0, input, xp.expm1(xp.minimum(input, 0)) * input.dtype.type(alpha))


@elu.grad("input")
def _(F, g, input, alpha):
    negative = F.exp(F.clamp(input, None, 0)) * alpha
    return F.where(F.gt(input, 0), g, g * negative)


elu.fused_grad("input", "elu_backward")


@elementwise(kind="float", lacks="bic", kernel="softplus", samples=lambda m: [
    case(m(3, 4)), case(m(5), 2.0, 1.0), case(m(5, low=-30, high=30))])
def softplus(xp, input, beta=1.0, threshold=20.0):
    """log(1 + exp(beta·input)) / beta; linear where beta·input exceeds the threshold."""
    z = input * input.dtype.type(beta)
    soft = (xp.maximum(z, 0) + xp.log1p(xp.exp(-xp.absolute(z)))) / input.dtype.type(beta)
    return xp.where(z > threshold, input, soft)


@softplus.grad("input")
def _(F, g, input, beta, threshold):
    z = input * beta
    return F.where(F.gt(z, threshold), g, g * F.sigmoid(z))


softplus.fused_grad("input", "softplus_backward")


@unary(method=False, samples=unary_cases())
def conjugate(xp, input):
    return xp.conjugate(input) if input.dtype.kind == "c" else input.copy()


@conjugate.grad("input")
def _(F, g):
    return F.conj(g)


def conj(input) -> Tensor:
    """The complex conjugate; a real tensor is returned as it is."""
    return conjugate.call(input) if input.dtype.is_complex else input


COMPOSITES = {
    "conj": conj, "arcsin": asin.call, "arccos": acos.call, "arctan": atan.call,
    "arcsinh": asinh.call, "arccosh": acosh.call, "arctanh": atanh.call,
}
INPLACE = tuple(n for n in COMPOSITES if n != "conj")
