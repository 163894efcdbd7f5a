"""More pointwise functions: of two or three operands, near floating point's edges, and rounding."""

from __future__ import annotations

import math

from ..backend import dtypes
from ..tensor import Tensor
from .arithmetic import mul
from .arithmetic import pow as _pow
from .core import REGISTRY, op, type_name
from .elementwise_core import ElementwiseOp, binary, elementwise, no_kernel, unary
from .inplace import inplace_of
from .reduce import named
from .samples import binary_cases, case, unary_cases

_BOTH = ("input", "other")


# ---------------------------------------------------------------- three operands
class _OneDtypeOp(ElementwiseOp):
    """An elementwise op whose tensors must have one dtype."""

    def apply(self, args):
        first = args[0]
        if isinstance(first, Tensor):
            for i in self.slots[1:]:
                t = args[i]
                if isinstance(t, Tensor) and t._data.dtype != first._data.dtype:
                    raise RuntimeError(
                        f"expected dtype {first.dtype.name} for `{self.params[i]}` but got dtype "
                        f"{t.dtype.name}"
                    )
        return super().apply(args)


def _lerp(xp, input, end, weight):
    """input + weight·(end − input), exact at both ends."""
    change = end - input
    if isinstance(weight, (int, float)):
        if -0.5 < weight < 0.5:
            return input + weight * change
        return end - change * (1 - weight)
    near = xp.absolute(weight) < 0.5
    return xp.where(near, input + weight * change, end - change * (1 - weight))


lerp = _OneDtypeOp(
    _lerp, name="lerp", kernel="lerp", tensors=("input", "end", "weight"), inplace=True, lacks="bi",
    tensor_only=("input", "end"), samples=lambda m: [
        case(m(3, 4), m(3, 4), 0.3), case(m(3, 4), m(4), m(3, 1)), case(m(), m(2), 0.7),
        case(m(0, 2), m(2), 0.5)],
)


@lerp.grad("input")
def _(F, g, weight):
    return g * F.conj(1 - weight)


@lerp.grad("end")
def _(F, g, weight):
    return g * F.conj(weight)


@lerp.grad("weight")
def _(F, g, input, end):
    return g * F.conj(end - input)


def _check_value(name, input, value):
    if input.dtype.kind in "iu" and isinstance(value, float) and not value.is_integer():
        raise RuntimeError(f"value cannot be converted to an integer type: {name} got {value}")
    return input.dtype.type(value)


_TRIPLES = lambda m: [  # noqa: E731
    case(m(3, 4, low=0.5), m(3, 4, low=0.5), m(3, 4, low=0.5)),
    case(m(3, 4), m(4), m(3, 1, low=0.5), value=0.5), case(m(2), m(2), m(2, low=0.4), value=-2),
    case(m(0, 2), m(2), m(1, low=0.3)), case(m(), m(), m(low=0.5)),
]


@elementwise(("input", "tensor1", "tensor2"), inplace=True, lacks="b", samples=_TRIPLES,
             tensor_only=("input", "tensor1", "tensor2"), kernel="addcmul")
def addcmul(xp, input, tensor1, tensor2, value=1):
    """input + value·tensor1·tensor2."""
    return input + _check_value("addcmul", input, value) * tensor1 * tensor2


@addcmul.grad("input")
def _(F, g):
    return g


@addcmul.grad("tensor1")
def _(F, g, tensor2, value):
    return g * F.conj(tensor2 * value)


@addcmul.grad("tensor2")
def _(F, g, tensor1, value):
    return g * F.conj(tensor1 * value)


@elementwise(("input", "tensor1", "tensor2"), inplace=True, samples=_TRIPLES,
             tensor_only=("input", "tensor1", "tensor2"), kernel="addcdiv")
def addcdiv(xp, input, tensor1, tensor2, value=1):
    """input + value·tensor1 / tensor2."""
    if input.dtype.kind in "biu":
        raise RuntimeError(
            "Integer division with addcdiv is no longer supported, and in a future release addcdiv "
            "will perform a true division of tensor1 and tensor2."
        )
    return input + input.dtype.type(value) * tensor1 / tensor2


@addcdiv.grad("input")
def _(F, g):
    return g


@addcdiv.grad("tensor1")
def _(F, g, tensor2, value):
    return g * F.conj(value / tensor2)


@addcdiv.grad("tensor2")
def _(F, g, tensor1, tensor2, value):
    return -g * F.conj(tensor1 * value / (tensor2 * tensor2))


# ---------------------------------------------------------------- two operands
@binary(kind="float", lacks="c", inplace=True, tensor_only=_BOTH, kernel="atan2",
        samples=binary_cases(low=0.3, numbers=()))
def atan2(xp, input, other):
    """The angle of the point (other, input), in (−π, π]."""
    return xp.arctan2(input, other)


@atan2.grad("input")
def _(F, g, input, other):
    return g * other / (input * input + other * other)


@atan2.grad("other")
def _(F, g, input, other):
    return -g * input / (input * input + other * other)


@binary(lacks="bic", inplace=True, tensor_only=_BOTH, kernel="hypot",
        samples=binary_cases(low=0.3, numbers=()))
def hypot(xp, input, other):
    """√(input² + other²) without overflow."""
    return xp.hypot(input, other)


@hypot.grad("input")
def _(F, g, input, out):
    return g * input / out


@hypot.grad("other")
def _(F, g, other, out):
    return g * other / out


@binary(lacks="bic", tensor_only=_BOTH, samples=binary_cases(numbers=()))
def logaddexp(xp, input, other):
    """log(exp(input) + exp(other)) without overflow."""
    return xp.logaddexp(input, other)


@binary(lacks="bic", tensor_only=_BOTH, samples=binary_cases(numbers=()))
def logaddexp2(xp, input, other):
    """log2(2^input + 2^other) without overflow."""
    return xp.logaddexp2(input, other)


@logaddexp.grad("input")
def _(F, g, input, other):
    return g * F.sigmoid(input - other)


@logaddexp.grad("other")
def _(F, g, input, other):
    return g * F.sigmoid(other - input)


@logaddexp2.grad("input")
def _(F, g, input, other):
    return g * F.sigmoid((input - other) * math.log(2))


@logaddexp2.grad("other")
def _(F, g, input, other):
    return g * F.sigmoid((other - input) * math.log(2))


def _x_times(name, log, doc):
    """x·log(y), 0 where x is 0 (unless y is NaN)."""

    def forward(xp, input, other):
        value = input * getattr(xp, log)(other)
        other_nan = xp.isnan(other)
        value = xp.where((input == 0) & ~other_nan, 0, value)
        return value.astype(getattr(other, "dtype", None) or input.dtype)

    forward.__name__, forward.__doc__ = name, doc
    low = 0.3 if log == "log" else -0.6
    return binary(kind="float", lacks="c", inplace=name == "xlogy", method=name == "xlogy",
                  samples=binary_cases(low=low, numbers=(0.7,)))(forward)


xlogy = _x_times("xlogy", "log", "input·log(other); 0 where input is 0.")
xlog1py = _x_times("xlog1py", "log1p", "input·log1p(other); 0 where input is 0.")


@xlogy.grad("input")
def _(F, g, input, other):
    if not hasattr(other, "dtype"):
        return g * math.log(other) if other > 0 else g * (-math.inf if other == 0 else math.nan)
    masked = F.where(F.logical_and(F.eq(input, 0), F.le(other, 0)), F.zeros_like(g), g)
    return masked * F.log(other)


@xlogy.grad("other")
def _(F, g, input, other):
    return g * input / other


@xlog1py.grad("input")
def _(F, g, input, other):
    if not hasattr(other, "dtype"):
        return g * math.log1p(other)
    masked = F.where(F.logical_and(F.eq(input, 0), F.le(other, -1)), F.zeros_like(g), g)
    return masked * F.log1p(other)


@xlog1py.grad("other")
def _(F, g, input, other):
    return g * input / (other + 1)


@binary(kind="float", lacks="c", inplace=True, tensor_only=("input",),
        samples=binary_cases(avoid=(0.0,), numbers=(-1.5,)))
def copysign(xp, input, other):
    """|input| with the sign of ``other``."""
    return xp.copysign(input, other)


@copysign.grad("input")
def _(F, g, input, out):
    same = F.where(F.eq(input, 0), F.zeros_like(g), F.sign(input) * F.sign(out))
    return g * same


@copysign.grad("other")
def _(F, g):
    return F.zeros_like(g)


def _skips_nan(name, function, compare, doc):
    def forward(xp, input, other):
        return getattr(xp, function)(input, other)

    forward.__name__, forward.__doc__ = name, doc
    made = binary(lacks="c", tensor_only=_BOTH, samples=binary_cases(numbers=()))(forward)

    @made.grad("input")
    def _(F, g, input, other):
        return F.where(_first_wins(F, input, other), g, F.zeros_like(g))

    @made.grad("other")
    def _(F, g, input, other):
        return F.where(_first_wins(F, input, other), F.zeros_like(g), g)

    def _first_wins(F, input, other):
        return F.logical_or(getattr(F, compare)(input, other), F.isnan(other))

    return made


fmax = _skips_nan("fmax", "fmax", "ge", "The larger element; a number beats NaN.")
fmin = _skips_nan("fmin", "fmin", "le", "The smaller element; a number beats NaN.")


# 16-bit neighbours are those of the 16-bit format: no widening
@binary(lacks="bic", moves=True, inplace=True, tensor_only=_BOTH, samples=lambda m: [
    case(m.constant(3, 4), m.constant(4)), case(m.constant(3), m.constant(3))])
def nextafter(xp, input, other):
    """The next floating point number after ``input`` towards ``other``."""
    return xp.nextafter(input, other)


class _HeavisideOp(ElementwiseOp):
    def apply(self, args):
        a, b = args
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            if a.dtype.is_complex or b.dtype.is_complex:
                raise RuntimeError("heaviside is not yet implemented for complex tensors.")
            if a._data.dtype != b._data.dtype:
                raise RuntimeError(
                    "heaviside is not yet implemented for tensors with different dtypes."
                )
        return super().apply(args)


def _heaviside(xp, input, values):
    """0 below 0, 1 above, ``values`` at 0."""
    return xp.where(input == 0, values, xp.asarray(input > 0).astype(input.dtype))


heaviside = _HeavisideOp(
    _heaviside, name="heaviside", tensors=("input", "values"), inplace=True,
    tensor_only=("input", "values"), samples=lambda m: [
        case(m.constant(3, 4), m.constant(4)), case(m.int(5, high=3), m.int(5))],
)


# ---------------------------------------------------------------- one operand
@elementwise(samples=lambda m: [
    case(m(3, 4, avoid=(-1.5, -1, -0.5, 0, 0.5, 1, 1.5))), case(m.constant(5), decimals=2),
    case(m.constant(3, low=-500, high=500), decimals=-2), case(m.constant())], inplace=True,
    lacks="bc")
def round(xp, input, decimals=0):
    """The nearest integer, ties to even; ``decimals`` places after (or before) the point."""
    if input.dtype.kind != "f":
        if decimals:
            raise no_kernel("round", dtypes.FROM_NP[input.dtype])
        return input.copy()
    if decimals == 0:
        return xp.rint(input)
    scale = input.dtype.type(10.0 ** abs(decimals))
    return xp.rint(input * scale) / scale if decimals > 0 else xp.rint(input / scale) * scale


@round.grad("input")
def _(F, g):
    return F.zeros_like(g)


@unary(lacks="bic", inplace=True, kernel="frac", samples=unary_cases(avoid=(-1, 0, 1)))
def frac(xp, input):
    """The part after the point, with the sign of the input."""
    return input - xp.trunc(input)


@frac.grad("input")
def _(F, g):
    return g


@elementwise(inplace=True, samples=lambda m: [
    case(m(3, 4)), case(m(5), 1.0, 2.0, -3.0), case(m()), case(m(0, 3))])
def nan_to_num(xp, input, nan=None, posinf=None, neginf=None):
    """NaN replaced by ``nan`` (0), infinities by the largest numbers or those given."""
    if input.dtype.kind not in "fc":
        return input.copy()
    return xp.nan_to_num(input, nan=0.0 if nan is None else nan, posinf=posinf, neginf=neginf)


@nan_to_num.grad("input")
def _(F, g, input):
    return F.where(F.isfinite(input), g, F.zeros_like(g))


def _angle_unit(name, factor, doc):
    def forward(xp, input):
        if input.dtype.kind == "c":
            raise RuntimeError(f"{name} is not supported for complex tensors.")
        return input * input.dtype.type(factor)

    forward.__name__, forward.__doc__ = name, doc
    made = unary(kind="float", inplace=True, samples=unary_cases())(forward)
    made.grad("input")(lambda F, g: g * factor)
    return made


deg2rad = _angle_unit("deg2rad", math.pi / 180, "Degrees to radians.")
rad2deg = _angle_unit("rad2deg", 180 / math.pi, "Radians to degrees.")


@elementwise(method=False, lacks="bc", kernel="threshold", samples=lambda m: [
    case(m(3, 4, avoid=(0.2,)), 0.2, -1.0), case(m(5, avoid=(0.0,)), 0.0, 3.5)])
def threshold(xp, input, threshold, value):
    """input where it exceeds the threshold (or is NaN), else ``value``."""
    return xp.where(input <= threshold, input.dtype.type(value), input)


@threshold.grad("input")
def _(F, g, input, threshold):
    return F.where(F.le(input, threshold), F.zeros_like(g), g)


threshold.fused_grad("input", "threshold_backward")


@op(nout=2, aux=True, method=False, samples=lambda m: [
    case(m(3, 4)), case(m()), case(m(0, 2))])
def frexp_parts(xp, input):
    if input.dtype.kind != "f":
        raise RuntimeError("torch.frexp() only supports floating-point dtypes")
    mantissa, exponent = xp.frexp(input)
    scale = xp.asarray(xp.ldexp(input.dtype.type(1), -exponent))
    return (mantissa, exponent.astype(dtypes.int32.np)), (scale,)


@frexp_parts.grad("input")
def _(F, g, aux):
    return g[0] * aux[0]


def frexp(input, *, out=None):
    """(mantissa, exponent) with input = mantissa·2^exponent and |mantissa| in [0.5, 1)."""
    if input.dtype is dtypes.bfloat16:
        mantissa, exponent = frexp_parts.call(input.float())
        parts = mantissa.bfloat16(), exponent
    else:
        parts = frexp_parts.call(input)
    return named("frexp", parts, out)


# ---------------------------------------------------------------- predicates
def _predicate(name, doc, forward):
    forward.__name__, forward.__doc__ = name, doc
    return unary(kind="compare", samples=lambda m: [case(m(3, 4)), case(m())])(forward)


def _no_complex(name, input):
    if input.dtype.kind == "c":
        raise RuntimeError(f"{name} is not implemented for complex tensors.")


def _signbit(xp, input):
    _no_complex("signbit", input)
    if input.dtype.kind == "f":
        return xp.signbit(input)
    return input < 0 if input.dtype.kind == "i" else xp.zeros(input.shape, bool)


def _infinite(sign):
    def forward(xp, input):
        _no_complex("isposinf" if sign > 0 else "isneginf", input)
        return input == sign * math.inf if input.dtype.kind == "f" else xp.zeros(input.shape, bool)

    return forward


signbit = _predicate("signbit", "Whether the sign bit is set: negative, or −0.0.", _signbit)
isposinf = _predicate("isposinf", "The element is +inf.", _infinite(1))
isneginf = _predicate("isneginf", "The element is −inf.", _infinite(-1))
isreal = _predicate("isreal", "The element has no imaginary part.", lambda xp, input: (
    input.imag == 0 if input.dtype.kind == "c" else xp.ones(input.shape, bool)))


# ---------------------------------------------------------------- written with other ops
def positive(input) -> Tensor:
    """The input itself.

    Raises:
        RuntimeError: for bool tensors.
    """
    if input.dtype is dtypes.bool:
        raise RuntimeError("The `+` operator, on a bool tensor is not supported.")
    return input


def float_power(input, exponent, *, out=None) -> Tensor:
    """input ** exponent computed in float64 (or complex128)."""
    operands = [t for t in (input, exponent) if isinstance(t, Tensor)]
    numbers = [t for t in (input, exponent) if not isinstance(t, Tensor)]
    kind = dtypes.result_type([t._data for t in operands], numbers).category
    wide = dtypes.complex128 if kind == dtypes.COMPLEX else dtypes.float64
    cast = REGISTRY["to_dtype"].call
    a, b = (cast(t, wide) if isinstance(t, Tensor) else t for t in (input, exponent))
    return _pow.call(a, b, out=out)


def float_power_(input, exponent) -> Tensor:
    """In-place form of ``float_power``; the tensor must already be float64 (or complex128)."""
    if input.dtype not in (dtypes.float64, dtypes.complex128):
        raise RuntimeError(
            f"the base given to float_power_ has dtype {type_name(input.dtype)} but the "
            "operation's result requires dtype Double"
        )
    return input.pow_(exponent)


def ldexp(input, other, *, out=None) -> Tensor:
    """input · 2^other."""
    return mul.call(input, _pow.call(2.0, other), out=out)


COMPOSITES = {
    "arctan2": atan2.call, "positive": positive, "float_power": float_power, "ldexp": ldexp,
    "frexp": frexp,
}
INPLACE = ("arctan2", "ldexp")
METHODS = {"float_power_": float_power_, "__pos__": positive}
FUNCTIONS = {"threshold": threshold.call, "threshold_": inplace_of(threshold)}
