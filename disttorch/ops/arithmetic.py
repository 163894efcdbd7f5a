"""Arithmetic: + − × ÷ powers, rounding, extremes, clamping."""

from __future__ import annotations

from ..backend import dtypes
from ..tensor import Tensor
from .core import REGISTRY, write_out
from .elementwise_core import binary, elementwise, unary
from .samples import binary_cases, case, unary_cases


@binary(ufunc="add", samples=binary_cases(), method=False, node_name="Add", name="plain_add")
def _add(xp, input, other):
    return xp.add(input, other)


@_add.grad("input", "other")
def _(F, g):
    return g


_NO_BOOL_SUB = (
    "Subtraction, the `-` operator, with two bool tensors is not supported. Use the `^` or "
    "`logical_xor()` operator instead."
)


@binary(ufunc="subtract", samples=binary_cases(), method=False, node_name="Sub",
        name="plain_sub", refuses_bool=_NO_BOOL_SUB)  # fmt: skip
def _sub(xp, input, other):
    return xp.subtract(input, other)


@_sub.grad("input")
def _(F, g):
    return g


@_sub.grad("other")
def _(F, g):
    return -g


@binary(ufunc="multiply", samples=binary_cases(), inplace=True)
def mul(xp, input, other):
    """input × other, elementwise with broadcasting."""
    return xp.multiply(input, other)


@mul.grad("input")
def _(F, g, other):
    return g * F.conj(other)


@mul.grad("other")
def _(F, g, input):
    return g * F.conj(input)


@binary(ufunc="true_divide", kind="float", node_name="Div", method=False,
        samples=binary_cases(low=0.5), name="true_divide")  # fmt: skip
def _true_divide(xp, input, other):
    return xp.true_divide(input, other)


@_true_divide.grad("input")
def _(F, g, other):
    return g / F.conj(other)


@_true_divide.grad("other")
def _(F, g, out, other):
    return -g * F.conj(out / other)


@binary(samples=binary_cases(low=0.5, numbers=(2, 0.7)), inplace=True)
def floor_divide(xp, input, other):
    """floor(input / other)."""
    return xp.floor_divide(input, other)


@binary(samples=binary_cases(low=0.6, high=3.1), inplace=True)
def remainder(xp, input, other):
    """input − other·floor(input / other): the sign of the divisor, like Python's %."""
    return xp.remainder(input, other)


@remainder.grad("input")
def _(F, g):
    return g


@remainder.grad("other")
def _(F, g, input, other):
    return -g * F.floor_divide(input, other)


@binary(samples=binary_cases(low=0.6, high=3.1), inplace=True)
def fmod(xp, input, other):
    """The remainder with the sign of the dividend, like C's fmod."""
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
        case(2.0, m(3, 4)),
    ]


@binary(samples=_pow_samples, inplace=True)
def pow(xp, input, other):
    """input ** other."""
    if getattr(other, "dtype", None) is None:
        if other == 2:
            return xp.multiply(input, input)
        if other == 0.5 and input.dtype.kind == "f":
            return xp.sqrt(input)
        if other < 0 and input.dtype.kind in "iu" if not isinstance(other, complex) else False:
            raise RuntimeError("Integers to negative integer powers are not allowed.")
    return xp.power(input, other)


@pow.grad("input")
def _(F, g, input, other):
    if isinstance(other, (int, float)):
        if other == 0:
            return F.zeros_like(g)
        return g * (other * F.pow(input, other - 1))
    # where the exponent is 0 the derivative is 0, also at the base 0
    grad = g * (other * F.pow(input, other - 1))
    return F.where(F.eq(other, 0), F.zeros_like(grad), grad)


@pow.grad("other")
def _(F, g, input, other, out):
    if isinstance(input, (int, float)):
        if input == 0:
            return F.where(F.ge(other, 0), F.zeros_like(g), g * out * float("-inf"))
        from math import log

        return g * out * log(input)
    safe = F.where(F.eq(input, 0), F.ones_like(input), input)
    return g * F.where(F.eq(input, 0), F.zeros_like(out), out * F.log(safe))


@unary(ufunc="negative", samples=unary_cases(), inplace=True)
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


@unary(ufunc="absolute", samples=unary_cases(avoid=(0.0,)), inplace=True)
def abs(xp, input):
    """|input|."""
    return xp.absolute(input)


@abs.grad("input")
def _(F, g, input):
    return g * F.sgn(input)


@unary(samples=unary_cases(avoid=(0.0,)), inplace=True)
def sgn(xp, input):
    """The sign; for complex numbers input / |input|."""
    return xp.sign(input)


@sgn.grad("input")
def _(F, g):
    return F.zeros_like(g)


@unary(samples=unary_cases(avoid=(0.0,)), inplace=True)
def sign(xp, input):
    """−1, 0 or 1."""
    return xp.sign(input) if input.dtype.kind != "b" else input.copy()


@sign.grad("input")
def _(F, g):
    return F.zeros_like(g)


def _rounding(name, function, doc):
    def forward(xp, input):
        return getattr(xp, function)(input) if input.dtype.kind == "f" else input.copy()

    forward.__name__, forward.__doc__ = name, doc
    made = unary(samples=unary_cases(avoid=(-1.5, -1, -0.5, 0, 0.5, 1, 1.5)), inplace=True)(forward)
    made.grad("input")(lambda F, g: F.zeros_like(g))
    return made


floor = _rounding("floor", "floor", "The largest integer not above input.")
ceil = _rounding("ceil", "ceil", "The smallest integer not below input.")
trunc = _rounding("trunc", "trunc", "The integer part.")


def _extreme(name, function, compare, doc):
    def forward(xp, input, other):
        return getattr(xp, function)(input, other)

    forward.__name__, forward.__doc__ = name, doc
    made = binary(ufunc=function, samples=binary_cases(numbers=()))(forward)

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
    return made


maximum = _extreme("maximum", "maximum", "gt", "The larger of two elements; NaN wins.")
minimum = _extreme("minimum", "minimum", "lt", "The smaller of two elements; NaN wins.")


@elementwise(
    ("input", "min", "max"), optional=("min", "max"), inplace=True,
    samples=lambda m: [
        case(m(3, 4, avoid=(-1, 1)), -1.0, 1.0), case(m(5, avoid=(0.5,)), max=0.5),
        case(m(5, avoid=(0.5,)), 0.5), case(m(3, 4), m(4, low=-1, high=-0.5), m(3, 1, low=0.5)),
    ],
)  # fmt: skip
def clamp(xp, input, min=None, max=None):
    """input limited to [min, max]; bounds are numbers, tensors or None."""
    if min is None and max is None:
        raise RuntimeError("torch.clamp: At least one of 'min' or 'max' must not be None")
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


# ---------------------------------------------------------------- PyTorch's signatures over these
def add(input, other, *, alpha=1, out=None):
    """input + alpha·other."""
    result = _add.call(input, other) if alpha == 1 else _add.call(input, _scaled(other, alpha))
    return result if out is None else write_out(result, out, "add")


def sub(input, other, *, alpha=1, out=None):
    """input − alpha·other."""
    result = _sub.call(input, other) if alpha == 1 else _sub.call(input, _scaled(other, alpha))
    return result if out is None else write_out(result, out, "sub")


def _scaled(other, alpha):
    if isinstance(other, Tensor) and isinstance(alpha, float):
        if other.dtype.category < dtypes.FLOAT:
            raise RuntimeError("For integral input tensors, argument alpha must not be a floating "
                               "point number.")  # fmt: skip
    return mul.call(other, alpha) if isinstance(other, Tensor) else other * alpha


def rsub(input, other, *, alpha=1):
    """other − alpha·input."""
    return sub(other, input, alpha=alpha)


def div(input, other, *, rounding_mode=None, out=None):
    """input / other; ``rounding_mode`` None, "trunc" or "floor"."""
    if rounding_mode is None:
        return _true_divide.call(input, other, out=out)
    if rounding_mode == "floor":
        return floor_divide.call(input, other, out=out)
    if rounding_mode == "trunc":
        result = trunc.call(_true_divide.call(input, other))
        like = dtypes.result_type(
            [t._data for t in (input, other) if isinstance(t, Tensor)],
            [t for t in (input, other) if not isinstance(t, Tensor)],
        )
        result = REGISTRY["to_dtype"].apply((result, like))
        return result if out is None else write_out(result, out, "div")
    raise RuntimeError(
        "div expected rounding_mode to be one of None, 'trunc', or 'floor' but found "
        f"'{rounding_mode}'"
    )


def clamp_min(input, min):
    """The elements not below ``min``."""
    return clamp.call(input, min=min)


def clamp_max(input, max):
    """The elements not above ``max``."""
    return clamp.call(input, max=max)


def square(input):
    """input².

    """
    return pow.call(input, 2)


def reciprocal(input):
    """1 / input."""
    return _true_divide.call(1.0, input)


COMPOSITES = {
    "add": add, "sub": sub, "subtract": sub, "rsub": rsub, "div": div, "divide": div,
    "clamp_min": clamp_min, "clamp_max": clamp_max, "square": square, "reciprocal": reciprocal,
    "multiply": mul.call, "clip": clamp.call, "negative": neg.call, "absolute": abs.call,
    "fix": trunc.call,
}  # fmt: skip
INPLACE = ("add", "sub", "subtract", "div", "divide", "clamp_min", "clamp_max", "square",
           "reciprocal", "multiply", "clip", "negative", "absolute")  # fmt: skip
