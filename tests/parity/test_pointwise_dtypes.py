"""Elementwise functions and reductions on integers, bool and complex numbers against PyTorch.

For every function and dtype: the same values, dtype and shape, or the same kind of exception.
"""

from __future__ import annotations

import numpy as np
import pytest

import disttorch as dt
from disttorch.tensor import Tensor

torch = pytest.importorskip("torch")
# NumPy warns of division by zero and the like; the package silences that, pytest resets filters
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore::RuntimeWarning")]

DTYPES = ["bool", "uint8", "int8", "int16", "int32", "int64", "complex64", "complex128"]

def words(text):
    return text.split()


UNARY = words("""
    abs absolute acos acosh angle asin asinh atan atanh bitwise_not ceil conj_physical cos
    cosh deg2rad digamma erf erfc erfinv exp exp2 expm1 fix floor frac i0 isfinite isinf
    isnan isneginf isposinf isreal lgamma log log10 log1p log2 logical_not logit nan_to_num
    neg negative positive rad2deg reciprocal relu round rsqrt sgn sigmoid sign signbit sin
    sinc sinh sqrt square tan tanh trunc frexp is_complex is_floating_point special.entr
    special.erfcx special.i0e special.i1 special.i1e special.ndtr special.ndtri
    special.log_ndtr special.expit special.gammaln special.psi special.spherical_bessel_j0
""")

BINARY = words("""
    add sub mul div true_divide floor_divide remainder fmod pow eq ne lt le gt ge maximum
    minimum fmax fmin atan2 hypot copysign nextafter logaddexp logaddexp2 xlogy gcd lcm
    bitwise_and bitwise_or bitwise_xor bitwise_left_shift bitwise_right_shift logical_and
    logical_or logical_xor heaviside float_power ldexp rsub igamma special.xlog1py
    special.zeta dist isclose
""")

SCALAR = words("""
    add sub mul div floor_divide remainder fmod pow eq ne lt le gt ge copysign xlogy
    bitwise_and bitwise_or bitwise_xor bitwise_left_shift bitwise_right_shift float_power
    clamp clamp_min clamp_max rsub maximum logical_and
""")

REDUCTIONS = [
    ("sum", {}), ("sum", {"dim": 1}), ("mean", {}), ("prod", {}), ("prod", {"dim": 0}),
    ("nansum", {}), ("nanmean", {}), ("all", {}), ("any", {"dim": 1}), ("amax", {"dim": 1}),
    ("amin", {"dim": 0}), ("aminmax", {}), ("max", {}), ("min", {"dim": 1}), ("argmax", {}),
    ("argmin", {"dim": 0}), ("median", {}), ("nanmedian", {}), ("mode", {"dim": 1}),
    ("kthvalue", {"k": 2}), ("var", {}), ("std", {"dim": 1}), ("std_mean", {"dim": 0}),
    ("var_mean", {}), ("count_nonzero", {}), ("count_nonzero", {"dim": 1}), ("cumsum", {"dim": 1}),
    ("cumprod", {"dim": 1}), ("cummax", {"dim": 1}), ("cummin", {"dim": 0}),
    ("logcumsumexp", {"dim": 1}), ("logsumexp", {"dim": 1}), ("norm", {}), ("quantile", {"q": 0.5}),
    ("diff", {}), ("trapezoid", {}), ("bincount", {}), ("histc", {}), ("renorm", {
        "p": 2, "dim": 0, "maxnorm": 1.0}), ("square", {}), ("cross", {"dim": 1}),
]

# Where PyTorch has no kernel for no reason of arithmetic, or for lack of demand, and we differ
OURS = {
    ("logaddexp", "complex64"), ("logaddexp", "complex128"), ("logcumsumexp", "complex64"),
    ("logcumsumexp", "complex128"),
}


def function(module, name):
    for part in name.split("."):
        module = getattr(module, part)
    return module


def values(name, seed=0, shape=(3, 4)):
    """Both libraries' tensors of a dtype, with zeros and (where there are) negative numbers."""
    rng = np.random.default_rng(seed)
    dtype = np.dtype(name)
    if dtype.kind == "c":
        a = (rng.integers(-3, 4, shape) + 1j * rng.integers(-3, 4, shape)).astype(dtype)
    elif dtype.kind == "b":
        a = rng.integers(0, 2, shape).astype(bool)
    else:
        a = rng.integers(0 if dtype.kind == "u" else -4, 6, shape).astype(dtype)
    return dt.from_numpy(a), torch.from_numpy(a.copy())


KINDS = (TypeError, IndexError, ValueError, RuntimeError, AttributeError)


def outcome(call):
    try:
        return call()
    except KINDS as error:
        return next(k for k in KINDS if isinstance(error, k)), error


def plain(result):
    if isinstance(result, (tuple, list)):
        return [plain(r) for r in result]
    if isinstance(result, (Tensor, torch.Tensor)):
        return str(result.dtype), result.numpy(force=True)
    return "python", result


def check_call(name, args, targs, options=None):
    """Call both libraries' function of that name."""
    options = options or {}
    check(lambda: function(dt, name)(*args, **options),
          lambda: function(torch, name)(*targs, **options))


def check_method(name, a, ta, args=(), targs=()):
    check(lambda: getattr(a, name)(*args), lambda: getattr(ta, name)(*targs))


def check_expression(text, a, ta):
    check(lambda: eval(text, {"x": a}), lambda: eval(text, {"x": ta}))


def check(ours, theirs):
    want, got = outcome(theirs), outcome(ours)
    failed = isinstance(want, tuple) and len(want) == 2 and isinstance(want[0], type)
    if failed or (isinstance(got, tuple) and len(got) == 2 and isinstance(got[0], type)):
        assert failed, f"ours raised {got[1]!r}, PyTorch gave {want}"
        assert isinstance(got, tuple), f"PyTorch raised {want[1]!r}, we gave {got}"
        assert got[0] is want[0], f"PyTorch raised {want[1]!r}, we {got[1]!r}"
        return
    compare(plain(got), plain(want))


def compare(got, want):
    if isinstance(want, list):
        assert len(got) == len(want)
        for g, w in zip(got, want, strict=True):
            compare(g, w)
        return
    assert got[0] == want[0]
    np.testing.assert_allclose(got[1], want[1], rtol=2e-5, atol=2e-6)
    assert np.shape(got[1]) == np.shape(want[1])


@pytest.mark.parametrize("name", UNARY)
def test_unary(name):
    for dtype in DTYPES:
        ours, theirs = values(dtype)
        check_call(name, (ours,), (theirs,))


@pytest.mark.parametrize("name", BINARY)
def test_binary(name):
    for dtype in DTYPES:
        if (name, dtype) in OURS:
            continue
        (a, ta), (b, tb) = values(dtype), values(dtype, 1)
        if name in ("floor_divide", "remainder", "fmod") and not dtype.startswith(("c", "b")):
            check_call(name, (a, b * 0), (ta, tb * 0))
            b, tb = b.abs() + 1, tb.abs() + 1
        check_call(name, (a, b), (ta, tb))


@pytest.mark.parametrize("number", [True, 2, 1.5, 3j], ids=str)
@pytest.mark.parametrize("name", SCALAR)
def test_python_number(name, number):
    for dtype in DTYPES:
        if name == "pow" and dtype == "bool" and number is True:
            continue  # PyTorch returns a copy before it looks for a kernel
        a, ta = values(dtype)
        check_call(name, (a, number), (ta, number))


@pytest.mark.parametrize(("name", "options"), REDUCTIONS, ids=str)
def test_reductions(name, options):
    for dtype in DTYPES:
        if (name, dtype) in OURS:
            continue
        shape = (5,) if name == "bincount" else (3, 5) if name != "cross" else (2, 3)
        a, ta = values(dtype, 3, shape)
        args = (a,) if name not in ("cross",) else (a, a)
        targs = (ta,) * len(args)
        distinct = name in ("median", "nanmedian", "kthvalue", "mode", "min", "argmax", "argmin")
        if distinct and dtype not in ("bool", "complex64", "complex128"):
            rows = np.random.default_rng(0).permuted(np.tile(np.arange(5), (3, 1)), axis=1)
            rows = (rows + np.arange(3)[:, None] * 5).astype(dtype)
            args, targs = (dt.from_numpy(rows),), (torch.from_numpy(rows.copy()),)
        check_call(name, args, targs, options)


@pytest.mark.parametrize("name", ["add_", "sub_", "mul_", "div_", "pow_", "floor_divide_", "sqrt_",
                                  "neg_", "abs_", "clamp_", "square_", "reciprocal_", "round_",
                                  "eq_", "logical_and_", "bitwise_or_", "bitwise_left_shift_",
                                  "cumsum_", "sigmoid_", "lerp_"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_in_place(name, dtype):
    """Results that the tensor's dtype cannot hold are refused; others overwrite it."""
    args = {"cumsum_": (0,), "clamp_": (0, 1), "lerp_": None}.get(name, ())
    (a, ta), (b, tb) = values(dtype), values(dtype, 1)
    if args is None:
        check_method(name, a, ta, (b, 0.5), (tb, 0.5))
        return
    two = name in ("add_", "sub_", "mul_", "div_", "pow_", "floor_divide_", "eq_", "logical_and_",
                   "bitwise_or_", "bitwise_left_shift_")
    if name == "floor_divide_" and not dtype.startswith("c"):
        b, tb = b | 1, tb | 1
    check_method(name, a, ta, (b,) if two else args, (tb,) if two else args)
    if not two:
        check(lambda: a, lambda: ta)


@pytest.mark.parametrize("symbol", ["<<", ">>", "//", "%", "**", "&", "^", "-", "/"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_operators_with_numbers(symbol, dtype):
    a, ta = values(dtype)
    for expression in (f"x {symbol} 2", f"2 {symbol} (x * x + 1)"):
        check_expression(expression, a, ta)


def test_overflow_wraps():
    for dtype in ("uint8", "int8", "int16", "int32", "int64"):
        info = np.iinfo(dtype)
        a = np.array([info.max, info.min, 0], dtype)
        for f in ("x + 1", "x - 1", "x * 3", "-x", "x << 1"):
            with np.errstate(over="ignore"):
                check_expression(f, dt.from_numpy(a), torch.from_numpy(a.copy()))


NAN, INF = float("nan"), float("inf")
EDGES = [NAN, INF, -INF, 0.0, -0.0, 1.0, -1.0, 2.5, 1e30]


@pytest.mark.parametrize("name", ["max", "min", "maximum", "minimum", "fmax", "fmin", "pow", "fmod",
                                  "remainder", "floor_divide", "div", "atan2", "hypot", "copysign",
                                  "logaddexp", "xlogy", "heaviside", "special.xlog1py", "nextafter",
                                  "eq", "ne", "lt", "ge", "isclose"])
def test_edges_of_two(name):
    a = np.repeat(np.array(EDGES), len(EDGES))
    b = np.tile(np.array(EDGES), len(EDGES))
    check_call(name, [dt.from_numpy(v) for v in (a, b)],
               [torch.from_numpy(v.copy()) for v in (a, b)])


@pytest.mark.parametrize("name", [n for n in UNARY if n not in (
    "i0", "special.i1", "bitwise_not", "special.i1e", "special.spherical_bessel_j0")]
    + words("""max min sum mean nansum nanmean median nanmedian cumsum cummax cummin amax prod
    cumprod logcumsumexp logsumexp argmax argmin clamp std all count_nonzero aminmax nanquantile
    quantile"""))
def test_edges_of_one(name):
    a = np.array(EDGES)
    extra = {"cumsum": (0,), "cummax": (0,), "cummin": (0,), "cumprod": (0,), "logcumsumexp": (0,),
             "logsumexp": (0,), "clamp": (-2, 2), "quantile": (0.5,), "nanquantile": (0.4,)}
    args = extra.get(name, ())
    check_call(name, (dt.from_numpy(a), *args), (torch.from_numpy(a.copy()), *args))
