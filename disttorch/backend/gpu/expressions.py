"""What one launch computes: every elementwise kernel as C over its operands x, y, z, w.

The functions are those of ``csrc/elementwise.cuh``. Operands are described by a letter each: ``a`` an
array, ``n`` a number, ``e`` either, ``c`` an array of bools; ``l`` and ``h`` a number or None for no
lower, no upper bound. At most three are arrays and two are numbers. All arrays but those of bools have
one dtype, which the result has, too (unless ``result`` says otherwise); 16-bit floats are computed in
float32 and rounded once.
"""

from __future__ import annotations

from typing import NamedTuple


class Expression(NamedTuple):
    """One kernel.

    Attributes:
        operands: a letter for each, see the module's text.
        results: C expressions, one for each result.
        types: kinds of dtypes it is defined for: "b" bool, "i" integers, "f" floats.
        result: the dtype of the results, None for that of the operands.
    """

    operands: str
    results: tuple[str, ...]
    types: str = "f"
    result: str | None = None


TABLE: dict[str, Expression] = {}


def _add(operands: str, types: str = "f", result: str | None = None, **named: str) -> None:
    for name, text in named.items():
        TABLE[name] = Expression(operands, tuple(text.split(" ; ")), types, result)


# ---- arithmetic ----------------------------------------------------------------------------------
_add("ee", "bif", add="plus(x, y)", mul="times(x, y)", maximum="larger(x, y)",
     minimum="smaller(x, y)")
_add("ee", "if", sub="minus(x, y)", floor_divide="whole_quotient(x, y)",
     remainder="signed_rest(x, y)", fmod="truncated_rest(x, y)")
_add("ee", true_divide="x / y", atan2="atan2_(x, y)", hypot="hypot_(x, y)")
_add("ea", pow_of_number="pow_(x, y)")
_add("ae", pow="pow_(x, y)")
_add("a", "if", neg="negative(x)", abs="abs_(x)", sign="sign_of(x)", square="times(x, x)")
_add("a", floor="floor_(x)", ceil="ceil_(x)", trunc="trunc_(x)", rint="rint_(x)", frac="x - trunc_(x)")
_add("alh", "f", clamp="limited(x, y, z)")
_add("aae", lerp="abs_(z) < (VALUE)0.5 ? x + z * (y - x) : y - (y - x) * (1 - z)")
_add("aaan", addcmul="x + w * y * z", addcdiv="x + w * y / z")
_add("aan", add_scaled="x + z * y")

# ---- comparisons, logic, selection ---------------------------------------------------------------
_add("ee", "bif", "bool", eq="x == y", ne="x != y", lt="x < y", le="x <= y", gt="x > y", ge="x >= y",
     logical_and="x != 0 && y != 0", logical_or="x != 0 || y != 0", logical_xor="(x != 0) != (y != 0)")
_add("a", "bif", "bool", logical_not="x == 0")
_add("a", "f", "bool", isnan="is_nan(x)", isfinite="is_finite(x)", isinf="!is_nan(x) && !is_finite(x)")
_add("ee", "bi", bitwise_and="x & y", bitwise_or="x | y", bitwise_xor="x ^ y")
_add("cee", "bif", where="x ? y : z")
_add("ace", "bif", masked_fill="y ? z : x")

# ---- functions -----------------------------------------------------------------------------------
_add("a", **{n: f"{n}_(x)" for n in (
    "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sqrt", "sin", "cos", "tan", "asin",
    "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "erf", "sigmoid")})
_add("a", rsqrt="1 / sqrt_(x)", relu="x > 0 || is_nan(x) ? x : 0", silu="x * sigmoid_(x)",
     log_sigmoid="-softplus_(-x)", gelu="x * normal_cdf(x)",
     gelu_with_tanh="(VALUE)0.5 * x * (1 + gelu_tanh(x))", reciprocal="1 / x")
_add("an", leaky_relu="x > 0 ? x : x * y", elu="x > 0 ? x : expm1_(x) * y")
_add("ann", softplus="x * y > z ? x : softplus_(x * y) / y", threshold="x <= y ? z : x")

# ---- gradients: x is the gradient of the result --------------------------------------------------
_add("aa", exp2_backward="x * y * (VALUE)0.69314718055994530942", expm1_backward="x * (y + 1)",
     log_backward="x / y", log2_backward="x / (y * (VALUE)0.69314718055994530942)",
     log10_backward="x / (y * (VALUE)2.30258509299404568402)", log1p_backward="x / (y + 1)",
     sqrt_backward="x / (2 * y)", rsqrt_backward="x * y * y * y * (VALUE)-0.5",
     sin_backward="x * cos_(y)", cos_backward="-x * sin_(y)", tan_backward="x * (y * y + 1)",
     atan_backward="x / (y * y + 1)", sinh_backward="x * cosh_(y)", cosh_backward="x * sinh_(y)",
     tanh_backward="x * (1 - y * y)", sigmoid_backward="x * y * (1 - y)",
     erf_backward="x * exp_(-y * y) * (VALUE)1.12837916709551257390",
     relu_backward="y > 0 ? x : 0", log_sigmoid_backward="x * sigmoid_(-y)",
     silu_backward="x * sigmoid_(y) * (1 + y * (1 - sigmoid_(y)))",
     gelu_backward="x * (normal_cdf(y) + y * normal_density(y))",
     gelu_with_tanh_backward="x * gelu_tanh_slope(y)", abs_backward="x * sign_of(y)",
     square_backward="2 * x * y")
_add("aan", leaky_relu_backward="y > 0 ? x : x * z",
     elu_backward="y > 0 ? x : x * exp_(y) * z",
     pow_backward="x * z * pow_(y, z - 1)",
     threshold_backward="y <= z ? 0 : x")
_add("aann", softplus_backward="y * z > w ? x : x * sigmoid_(y * z)")
_add("aalh", clamp_backward="y >= z && y <= w ? x : 0")
_add("aaa", mul_backward="x * z ; x * y", div_backward="x / z ; -x * y / z",
     divisor_backward="-x * y / z",
     maximum_backward="y == z ? x / 2 : y > z ? x : 0 ; y == z ? x / 2 : z > y ? x : 0",
     minimum_backward="y == z ? x / 2 : y < z ? x : 0 ; y == z ? x / 2 : z < y ? x : 0")
_add("ac", where_backward="y ? x : 0 ; y ? 0 : x")
