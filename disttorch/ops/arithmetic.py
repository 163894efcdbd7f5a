"""Arithmetic: + − × ÷ powers, rounding, extremes, clamping."""

from __future__ import annotations

import builtins
import cmath
import math

from ..backend import dtypes
from ..tensor import Tensor
from .core import write_out
from .elementwise_core import ElementwiseOp, binary, elementwise, unary
from .inplace import apply_inplace
from .samples import binary_cases, case, unary_cases


def is_complex(value) -> bool:
    """Whether an array, a tensor or a number is complex; for rules, which see all three."""
    array = getattr(value, "_data", value)
    return array.dtype.kind == "c" if hasattr(array, "dtype") else isinstance(array, complex)


@binary(ufunc="add", kernel="add", samples=binary_cases(), method=False, node_name="Add",
        name="plain_add")
def _add(xp, input, other):
    return xp.add(input, other)


@_add.grad("input", "other")
def _(F, g):
    return g


_NO_BOOL_SUB = (
    "Subtraction, the `-` operator, with two bool tensors is not supported. Use the `^` or "
    "`logical_xor()` operator instead."
)


@binary(ufunc="subtract", kernel="sub", samples=binary_cases(), method=False, node_name="Sub",
        name="plain_sub", refuses_bool=_NO_BOOL_SUB)
def _sub(xp, input, other):
    return xp.subtract(input, other)


@_sub.grad("input")
def _(F, g):
    return g


@_sub.grad("other")
def _(F, g):
    return -g


_sub.fused_grad("other", "neg")


@binary(ufunc="multiply", kernel="mul", samples=binary_cases(), inplace=True)
def mul(xp, input, other):
    """input × other, elementwise with broadcasting."""
    return xp.multiply(input, other)


@mul.grad("input")
def _(F, g, other):
    return g * F.conj(other)


@mul.grad("other")
def _(F, g, input):
    return g * F.conj(input)


mul.fused_grad("input", "mul")
mul.fused_grad("other", "mul")
mul.fused_grads(("input", "other"), "mul_backward", ("input", "other"))


@binary(ufunc="true_divide", kernel="true_divide", kind="float", node_name="Div", method=False,
        samples=binary_cases(low=0.5), name="true_divide")
def _true_divide(xp, input, other):
    return xp.true_divide(input, other)


@_true_divide.grad("input")
def _(F, g, other):
    return g / F.conj(other)


@_true_divide.grad("other")
def _(F, g, out, other):
    return -g * F.conj(out / other)


_true_divide.fused_grad("input", "true_divide")
_true_divide.fused_grad("other", "divisor_backward")
_true_divide.fused_grads(("input", "other"), "div_backward", ("out", "other"))


def _refuse_zero(xp, divisor):
    """An integer division by zero is an error, not a number."""
    if getattr(divisor, "dtype", dtypes.float32.np).kind in "iu" and not xp.all(divisor):
        raise RuntimeError("ZeroDivisionError")


@binary(kernel="floor_divide", samples=binary_cases(low=0.5, numbers=(2, 0.7)), inplace=True, lacks="bc")
def floor_divide(xp, input, other):
    """floor(input / other).

    Raises:
        RuntimeError: for an integer division by zero.
    """
    _refuse_zero(xp, other)
    return xp.floor_divide(input, other)


@binary(kernel="remainder", samples=binary_cases(low=0.6, high=3.1), inplace=True, lacks="bc")
def remainder(xp, input, other):
    """input − other·floor(input / other): the sign of the divisor, like Python's %."""
    _refuse_zero(xp, other)
    return xp.remainder(input, other)


@remainder.grad("input")
def _(F, g):
    return g


@remainder.grad("other")
def _(F, g, input, other):
    return -g * F.floor_divide(input, other)


@binary(kernel="fmod", samples=binary_cases(low=0.6, high=3.1), inplace=True, lacks="bc",
        tensor_only=("input",))
def fmod(xp, input, other):
    """The remainder with the sign of the dividend, like C's fmod."""
    _refuse_zero(xp, other)
    return xp.fmod(input, other)


@fmod.grad("input")
def _(F, g):
    return g


@fmod.grad("other")
def _(F, g, input, other):
    return -g * F.trunc(F.true_divide(input, other))


def _pow_samples(m):
    return [
        *binary_cases(low=0.5, numbers=())(m),
        *(case(m(3, 4, avoid=(0.0,)), n) for n in (0, 1, 2, 3)),
        *(case(m(3, low=0.3), n) for n in (0.5, -1.5)),
        case(2.0, m(3, 4)), case(m.complex(3), 3), case(m.complex(2), m.complex(2)),
    ]


class _PowOp(ElementwiseOp):
    def apply(self, args):
        base, exponent = args
        if exponent.__class__ is int and exponent < 0 and isinstance(base, Tensor) \
                and base.dtype.category == dtypes.INT:
            raise RuntimeError("Integers to negative integer powers are not allowed.")
        return super().apply(args)


def _pow(xp, input, exponent):
    """input ** exponent, elementwise; an operand may be a number."""
    if getattr(exponent, "dtype", None) is None:
        if exponent == 2:
            return xp.multiply(input, input)
        if exponent == 0.5 and input.dtype.kind == "f":
            return xp.sqrt(input)
    elif exponent.dtype.kind == "i":  # 1/n rounds to 0, except for n = ±1
        size = xp.power(input, xp.maximum(exponent, exponent.dtype.type(0)))
        unit = (input == 1) | (input == -1)
        inverse = xp.where(unit, xp.where(exponent % 2 == 0, 1, input), 0).astype(size.dtype)
        return xp.where(exponent < 0, inverse, size)
    return xp.power(input, exponent)


pow = _PowOp(_pow, name="pow", tensors=("input", "exponent"), samples=_pow_samples, inplace=True,
             lacks="b", kernel="pow")


@pow.grad("input")
def _(F, g, input, exponent):
    if isinstance(exponent, (int, float, complex)):
        if exponent == 0:
            return F.zeros_like(g)
        return g * F.conj(exponent * F.pow(input, exponent - 1))
    # where the exponent is 0 the derivative is 0, also at the base 0
    grad = g * F.conj(exponent * F.pow(input, exponent - 1))
    return F.where(F.eq(exponent, 0), F.zeros_like(grad), grad)


@pow.grad("exponent")
def _(F, g, input, exponent, out):
    if isinstance(input, (int, float)) and input >= 0:
        if input == 0:
            return F.where(F.ge(exponent, 0), F.zeros_like(g), g * out * float("-inf"))
        return g * F.conj(out * math.log(input))
    if isinstance(input, (int, float, complex)):
        return g * F.conj(out * cmath.log(input)) if input.__class__ is complex else g * math.nan
    safe = F.where(F.eq(input, 0), F.ones_like(input), input)
    return g * F.where(F.eq(input, 0), F.zeros_like(out), F.conj(out * F.log(safe)))


def _power_backward(fused, g, input, exponent):
    if exponent.__class__ is not float and exponent.__class__ is not int or exponent == 0:
        return NotImplemented
    if exponent == 2:
        return fused.square_backward(g, input)
    return fused.pow_backward(g, input, exponent)


pow.fused_grad("input", _power_backward)


@unary(ufunc="negative", kernel="neg", samples=unary_cases(), inplace=True)
def neg(xp, input):
    """−input."""
    if input.dtype.kind == "b":
        raise RuntimeError(
            "Negation, the `-` operator, on a bool tensor is not supported. If you are trying to "
            "invert a mask, use the `~` or `logical_not()` operator instead."
        )
    return xp.negative(input)


@neg.grad("input")
def _(F, g):
    return -g


neg.fused_grad("input", "neg")


@unary(ufunc="absolute", kernel="abs", samples=unary_cases(avoid=(0.0,)), lacks="b")
def abs(xp, input):
    """|input|."""
    return xp.absolute(input)


@abs.grad("input")
def _(F, g, input):
    return g * F.sgn(input)


abs.fused_grad("input", "abs_backward")


@unary(samples=unary_cases(avoid=(0.0,)), inplace=True)
def sgn(xp, input):
    """The sign; for complex numbers input / |input|."""
    return xp.sign(input) if input.dtype.kind == "c" else sign.forward(xp, input)


@sgn.grad("input")
def _(F, g, input, out):
    if not is_complex(input):
        return F.zeros_like(g)
    size = F.abs(input)  # z/|z| turns with z and keeps its length: only the tangential part counts
    safe = F.where(F.eq(size, 0), F.ones_like(size), size)
    tangential = (g - out * F.real(F.conj(out) * g)) / safe
    return F.where(F.eq(size, 0), F.zeros_like(g), tangential)


@unary(samples=unary_cases(avoid=(0.0,)), inplace=True)
def sign(xp, input):
    """−1, 0 or 1; NaN gives 0."""
    if input.dtype.kind == "c":
        raise RuntimeError(
            "Unlike NumPy, torch.sign is not intended to support complex numbers. Please use "
            "torch.sgn instead."
        )
    if input.dtype.kind == "b":
        return input.copy()
    if input.dtype.kind == "f":
        return xp.subtract(input > 0, input < 0, dtype=input.dtype)
    return xp.sign(input)


@sign.grad("input")
def _(F, g):
    return F.zeros_like(g)


def _rounding(name, function, doc):
    def forward(xp, input):
        return getattr(xp, function)(input) if input.dtype.kind == "f" else input.copy()

    forward.__name__, forward.__doc__ = name, doc
    made = unary(samples=unary_cases(avoid=(-1.5, -1, -0.5, 0, 0.5, 1, 1.5)), inplace=True,
                 kernel=name, lacks="bc")(forward)
    made.grad("input")(lambda F, g: F.zeros_like(g))
    return made


floor = _rounding("floor", "floor", "The largest integer not above input.")
ceil = _rounding("ceil", "ceil", "The smallest integer not below input.")
trunc = _rounding("trunc", "trunc", "The integer part.")


def _extreme(name, function, compare, doc):
    def forward(xp, input, other):
        if input.dtype.kind == "c":
            raise RuntimeError(f"{name} not implemented for complex tensors.")
        return getattr(xp, function)(input, other)

    forward.__name__, forward.__doc__ = name, doc
    made = binary(ufunc=function, kernel=name, samples=binary_cases(numbers=()),
                  tensor_only=("input", "other"))(forward)

    def rule_for(mine, theirs):
        def rule(F, g, input, other):
            a, b = (input, other) if mine == "input" else (other, input)
            wins = getattr(F, compare)(a, b)
            ties = F.eq(a, b)  # a tie shares the gradient
            zero = F.zeros_like(g)
            return F.where(ties, g * 0.5, F.where(wins, g, zero))

        return rule

    made.grad("input")(rule_for("input", "other"))
    made.grad("other")(rule_for("other", "input"))
    made.fused_grads(("input", "other"), name + "_backward", ("input", "other"))
    return made


maximum = _extreme("maximum", "maximum", "gt", "The larger of two elements; NaN wins.")
minimum = _extreme("minimum", "minimum", "lt", "The smaller of two elements; NaN wins.")


@elementwise(
    ("input", "min", "max"), optional=("min", "max"), inplace=True, lacks="bc", kernel="clamp",
    tensor_only=("input",),
    samples=lambda m: [
        case(m(3, 4, avoid=(-1, 1)), -1.0, 1.0), case(m(5, avoid=(0.5,)), max=0.5),
        case(m(5, avoid=(0.5,)), 0.5), case(m(3, 4), m(4, low=-1, high=-0.5), m(3, 1, low=0.5)),
    ],
)
def clamp(xp, input, min=None, max=None):
    """input limited to [min, max]; bounds are numbers, tensors or None."""
    if min is None and max is None:
        raise RuntimeError("torch.clamp: At least one of 'min' or 'max' must not be None")
    if input.dtype.kind == "f" and not hasattr(min, "dtype") and not hasattr(max, "dtype"):
        # with numbers, NumPy's clip is three times faster than its maximum and minimum
        return input.clip(-math.inf if min is None else min, math.inf if max is None else max)
    out = input
    if min is not None:
        out = xp.maximum(out, min)
    if max is not None:
        out = xp.minimum(out, max)
    return out


@clamp.grad("input")
def _(F, g, input, min, max):
    inside = _inside(F, input, min, max)
    return F.where(inside, g, F.zeros_like(g))


clamp.fused_grad("input", "clamp_backward")


@clamp.grad("min")
def _(F, g, input, min, max):
    low = F.lt(input, min)
    if max is not None:
        low = F.logical_and(low, F.lt(min, max))
    return F.where(low, g, F.zeros_like(g))


@clamp.grad("max")
def _(F, g, input, min, max):
    high = F.gt(input, max)
    if min is not None:
        high = F.logical_or(high, F.gt(min, max))
    return F.where(high, g, F.zeros_like(g))


def _inside(F, input, min, max):
    inside = None
    if min is not None:
        inside = F.ge(input, min)
    if max is not None:
        below = F.le(input, max)
        inside = below if inside is None else F.logical_and(inside, below)
    return inside


_QUOTIENTS = {"samples": binary_cases(low=0.5, numbers=(2, 0.7)), "method": False,
              "node_name": "Div", "lacks": "bc"}


@binary(**_QUOTIENTS)
def div_floor(xp, input, other):
    """The quotient rounded down; unlike ``floor_divide`` with a gradient: 0."""
    return floor_divide.forward(xp, input, other)


@div_floor.grad("input", "other")
def _(F, g):
    return F.zeros_like(g)


@binary(**_QUOTIENTS)
def div_trunc(xp, input, other):
    """The quotient rounded towards 0."""
    _refuse_zero(xp, other)
    dtype = getattr(input, "dtype", None) or other.dtype
    if dtype.kind == "f":
        return xp.trunc(xp.true_divide(input, other))
    down = xp.floor_divide(input, other)
    inexact = down * other != input
    return down + ((down < 0) & inexact)


@div_trunc.grad("input", "other")
def _(F, g):
    return F.zeros_like(g)


# ---------------------------------------------------------------- PyTorch's signatures over these
def add(input, other, *, alpha=1, out=None) -> Tensor:
    """input + alpha·other."""
    if alpha != 1:
        other = _scaled(input, other, alpha)
    result = _add.call(input, other)
    return result if out is None else write_out(result, out, "add")


def sub(input, other, *, alpha=1, out=None) -> Tensor:
    """input − alpha·other."""
    if alpha != 1:
        other = _scaled(input, other, alpha)
    result = _sub.call(input, other)
    return result if out is None else write_out(result, out, "sub")


def _scaled(input, other, alpha):
    kinds = [t.dtype.category for t in (input, other) if isinstance(t, Tensor)]
    if isinstance(alpha, float) and builtins.max(kinds) < dtypes.FLOAT:
        raise RuntimeError("For integral input tensors, argument alpha must not be a floating "
                           "point number.")
    if isinstance(alpha, bool) and builtins.max(kinds) > dtypes.BOOL:
        raise RuntimeError("Boolean alpha only supported for Boolean results.")
    return mul.call(other, alpha) if isinstance(other, Tensor) else other * alpha


def rsub(input, other, alpha=1) -> Tensor:
    """other − alpha·input."""
    return sub(other, input, alpha=alpha)


def div(input, other, *, rounding_mode=None, out=None) -> Tensor:
    """input / other; ``rounding_mode`` None, "trunc" or "floor"."""
    if rounding_mode is None:
        return _true_divide.call(input, other, out=out)
    if rounding_mode == "floor":
        return div_floor.call(input, other, out=out)
    if rounding_mode == "trunc":
        return div_trunc.call(input, other, out=out)
    raise RuntimeError(
        "div expected rounding_mode to be one of None, 'trunc', or 'floor' but found "
        f"'{rounding_mode}'"
    )


def clamp_min(input, min, *, out=None) -> Tensor:
    """The elements not below ``min``."""
    return clamp.call(input, min=min, out=out)


def clamp_max(input, max, *, out=None) -> Tensor:
    """The elements not above ``max``."""
    return clamp.call(input, max=max, out=out)


def square(input, *, out=None) -> Tensor:
    """input²."""
    return pow.call(input, 2, out=out)


def reciprocal(input, *, out=None) -> Tensor:
    """1 / input."""
    return _true_divide.call(1.0, input, out=out)


COMPOSITES = {
    "add": add, "sub": sub, "subtract": sub, "div": div, "divide": div,
    "true_divide": _true_divide.call,
    "clamp_min": clamp_min, "clamp_max": clamp_max, "square": square, "reciprocal": reciprocal,
    "multiply": mul.call, "clip": clamp.call, "negative": neg.call, "absolute": abs.call,
    "fix": trunc.call,
}
def abs_(input) -> Tensor:
    """In-place form of ``abs``, for real tensors only: the result of others is real."""
    if is_complex(input):
        raise RuntimeError("In-place abs is not supported for complex tensors.")
    return apply_inplace(abs, (input,))


FUNCTIONS = {"rsub": rsub, "abs_": abs_}
METHODS = {"abs_": abs_, "absolute_": abs_}
INPLACE = ("add", "sub", "subtract", "div", "divide", "true_divide", "clamp_min", "clamp_max",
           "square", "reciprocal", "multiply", "clip", "negative", "fix")
