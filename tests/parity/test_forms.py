"""Function, method, in-place and ``out=`` forms, keywords and named results against PyTorch."""

from __future__ import annotations

import numpy as np
import pytest

import disttorch as dt
from disttorch.tensor import Tensor

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore::RuntimeWarning")]


def words(text):
    return text.split()


ONE = words("""
    abs absolute acos arccos angle asin arcsin asinh arcsinh atan arctan atanh arctanh ceil
    cos cosh deg2rad digamma erf erfc erfinv exp exp2 expm1 fix floor frac i0 lgamma log
    log10 log1p log2 logit nan_to_num neg negative rad2deg reciprocal round rsqrt sigmoid
    sign sgn sin sinc sinh sqrt square tan tanh trunc isnan isfinite logical_not signbit
    isposinf
""")
TWO = words("""
    add sub subtract mul multiply div divide true_divide floor_divide remainder fmod pow
    atan2 arctan2 hypot copysign nextafter logaddexp logaddexp2 xlogy maximum minimum fmax
    fmin eq ne lt le gt ge less less_equal greater greater_equal not_equal logical_and
    logical_or logical_xor heaviside float_power ldexp igamma igammac
""")
CALLS = [
    ("add", (2.0,), {"alpha": 3}), ("sub", (2.0,), {"alpha": 0.5}), ("rsub", (2.0,), {}),
    ("div", (0.3,), {"rounding_mode": "floor"}), ("div", (0.3,), {"rounding_mode": "trunc"}),
    ("clamp", (), {"min": 0.2, "max": 0.6}), ("clip", (0.1,), {}), ("clamp_min", (0.4,), {}),
    ("clamp_max", (), {"max": 0.4}), ("round", (), {"decimals": 2}), ("pow", (), {"exponent": 2}),
    ("sum", (), {"dim": 1}), ("sum", (), {"axis": 0, "keepdims": True}), ("sum", ([0, 1],), {}),
    ("mean", (1, True), {}), ("mean", (), {"dtype": "float64"}), ("prod", (1,), {}),
    ("std", (), {"dim": 1, "unbiased": False}), ("std", (False,), {}), ("var", (1, True, True), {}),
    ("var", (), {"correction": 0}), ("var", (), {"dim": (0, 1), "correction": 2}),
    ("std_mean", (1,), {}), ("var_mean", (), {"dim": 0, "keepdim": True}), ("norm", (), {}),
    ("norm", (1,), {"dim": 1}), ("norm", (), {"p": float("inf")}), ("amax", (1,), {}),
    ("amin", (), {"dim": (0, 1)}), ("aminmax", (), {"dim": 1}), ("max", (1,), {}), ("min", (), {}),
    ("max", (), {"dim": 0, "keepdim": True}), ("median", (), {}), ("median", (1,), {}),
    ("nanmedian", (), {"dim": 0}), ("mode", (), {}), ("kthvalue", (2,), {"dim": 1}),
    ("quantile", (0.3,), {}), ("quantile", (0.3,), {"dim": 1, "keepdim": True}),
    ("quantile", (0.3,), {"interpolation": "nearest"}), ("nanquantile", (0.5,), {"dim": 0}),
    ("quantile", (0.7,), {"interpolation": "lower", "dim": 1}),
    ("quantile", (0.7,), {"interpolation": "higher"}),
    ("quantile", (0.7,), {"interpolation": "midpoint"}), ("logsumexp", (1,), {}),
    ("cumsum", (1,), {}), ("cumsum", (), {"dim": 0, "dtype": "float64"}), ("cumprod", (1,), {}),
    ("cummax", (1,), {}), ("cummin", (), {"dim": 0}), ("logcumsumexp", (0,), {}), ("diff", (), {}),
    ("diff", (), {"n": 2, "dim": 1}), ("histc", (), {"bins": 4, "min": 0, "max": 1}),
    ("histc", (5,), {}), ("histogram", (5,), {}), ("renorm", (2, 0, 0.5), {}),
    ("histogram", (4,), {"range": (0.0, 1.0), "density": True}), ("nan_to_num", (1.0,), {}),
    ("argmax", (), {"dim": 1, "keepdim": True}), ("all", (1,), {}), ("any", (), {"dim": (0, 1)}),
    ("count_nonzero", (), {"dim": 1}), ("nansum", (1,), {}), ("nanmean", (), {"dim": 0}),
    ("frexp", (), {}), ("mvlgamma", (1,), {}), ("logit", (0.1,), {}), ("mvlgamma", (), {"p": 1}),
    ("polygamma", None, {}),
]


def pair(seed=0, shape=(4, 5)):
    a = np.random.default_rng(seed).uniform(0.1, 0.9, shape).astype(np.float32)
    return dt.from_numpy(a), torch.from_numpy(a.copy())


def same(got, want):
    if isinstance(want, (tuple, list)):
        assert len(got) == len(want)
        for g, w in zip(got, want, strict=True):
            same(g, w)
        if hasattr(want, "_fields") or type(want).__module__ == "torch.return_types":
            for field in [f for f in dir(want) if not f.startswith(("_", "n_", "count", "index"))
                          or f == "indices"]:
                same(getattr(got, field), getattr(want, field))
        return
    assert isinstance(got, Tensor)
    assert str(got.dtype) == str(want.dtype)
    np.testing.assert_allclose(got.numpy(), want.numpy(), rtol=1e-5, atol=1e-6)


def translated(module, options):
    return {k: getattr(module, v) if k == "dtype" else v for k, v in options.items()}


@pytest.mark.parametrize("name", ONE)
def test_one_operand(name):
    _forms(name, 1)


@pytest.mark.parametrize("name", TWO)
def test_two_operands(name):
    _forms(name, 2)


def _forms(name, operands):
    ours, theirs = zip(*(pair(k) for k in range(operands)), strict=True)
    want = getattr(torch, name)(*theirs)
    same(getattr(dt, name)(*ours), want)
    same(getattr(ours[0], name)(*ours[1:]), want)
    out = dt.empty(0, dtype=getattr(dt, str(want.dtype)[6:]))
    try:
        torch.empty(0), getattr(torch, name)(*theirs, out=torch.empty(0, dtype=want.dtype))
    except TypeError:
        pass  # PyTorch's has no out=
    else:
        assert getattr(dt, name)(*ours, out=out) is out
        same(out, want)
    if hasattr(torch.Tensor, name + "_") and name != "float_power":
        a, ta = ours[0].clone(), theirs[0].clone()
        assert getattr(a, name + "_")(*ours[1:]) is a
        getattr(ta, name + "_")(*theirs[1:])
        same(a, ta)
    if hasattr(torch, name + "_"):
        a = ours[0].clone()
        assert getattr(dt, name + "_")(a, *ours[1:]) is a


@pytest.mark.parametrize(("name", "args", "options"), CALLS, ids=str)
def test_calls(name, args, options):
    a, ta = pair()
    if args is None:
        same(dt.polygamma(1, a), torch.polygamma(1, ta))
        same(a.polygamma(1), ta.polygamma(1))
        return
    want = getattr(torch, name)(ta, *args, **translated(torch, options))
    same(getattr(dt, name)(a, *args, **translated(dt, options)), want)
    if hasattr(ta, name):
        same(getattr(a, name)(*args, **translated(dt, options)), want)


@pytest.mark.parametrize("name", ["max", "min", "median", "mode", "cummax", "cummin"])
def test_out_of_two(name):
    a, ta = pair()
    want = getattr(torch, name)(ta, 1)
    out = dt.empty(0), dt.empty(0, dtype=dt.int64)
    got = getattr(dt, name)(a, 1, out=out)
    assert got[0] is out[0] and got[1] is out[1]
    same(out, tuple(want))
    assert repr(got).startswith(f"torch.return_types.{name}(\nvalues=tensor(")


def test_three_operands():
    (a, ta), (b, tb), (c, tc) = pair(0), pair(1), pair(2)
    for name, options in (("addcmul", {"value": 2}), ("addcdiv", {"value": -0.5}), ("lerp", {}),
                          ("addcmul", {}), ("addcdiv", {})):
        want = getattr(torch, name)(ta, tb, tc, **options)
        same(getattr(dt, name)(a, b, c, **options), want)
        same(getattr(a, name)(b, c, **options), want)
        x = a.clone()
        assert getattr(x, name + "_")(b, c, **options) is x
        same(x, want)
    with pytest.raises(RuntimeError):
        dt.lerp(a, b.double(), 0.5)


def test_quantiles_of_a_vector_and_nan():
    a, ta = pair()
    q = [0.0, 0.25, 1.0]
    for dim in (None, 0, 1):
        for keep in (False, True):
            same(dt.quantile(a, dt.tensor(q), dim, keep),
                 torch.quantile(ta, torch.tensor(q), dim, keep))
    a[1, 2], ta[1, 2] = float("nan"), float("nan")
    for f in ("quantile", "nanquantile", "median", "nanmedian"):
        args = (0.4, 1) if "quantile" in f else (1,)
        same(getattr(dt, f)(a, *args), getattr(torch, f)(ta, *args))
    for bad in (1.5, -0.1):
        with pytest.raises(RuntimeError, match="range"):
            dt.quantile(a, bad)


def test_integrals_and_derivatives():
    y, ty = pair()
    x, tx = (m.tensor([0.0, 0.5, 1.5, 1.7, 3.0]) for m in (dt, torch))
    for f in ("trapezoid", "trapz", "cumulative_trapezoid"):
        same(getattr(dt, f)(y), getattr(torch, f)(ty))
        same(getattr(dt, f)(y, x), getattr(torch, f)(ty, tx))
        same(getattr(dt, f)(y, dx=0.3, dim=0), getattr(torch, f)(ty, dx=0.3, dim=0))
    for options in ({}, {"dim": 1}, {"spacing": 2.0}, {"dim": (0, 1), "edge_order": 2},
                    {"spacing": (0.5, 2.0)}):
        same(list(dt.gradient(y, **options)), list(torch.gradient(ty, **options)))
    same(list(dt.gradient(y, spacing=(x,), dim=1, edge_order=2)),
         list(torch.gradient(ty, spacing=(tx,), dim=1, edge_order=2)))
    same(dt.diff(y, prepend=y[:, :2], append=y[:, :1]),
         torch.diff(ty, prepend=ty[:, :2], append=ty[:, :1]))


def test_counts():
    v, tv = (m.tensor([1, 4, 1, 0, 2]) for m in (dt, torch))
    w, tw = (m.tensor([0.5, 1.0, 2.0, 3.0, 0.25]) for m in (dt, torch))
    same(dt.bincount(v), torch.bincount(tv))
    same(v.bincount(w, 8), tv.bincount(tw, 8))
    same(dt.bincount(v[:0], minlength=3), torch.bincount(tv[:0], minlength=3))
    same(tuple(dt.histogram(w, dt.tensor([0.0, 1.0, 4.0]), weight=w)),
         tuple(torch.histogram(tw, torch.tensor([0.0, 1.0, 4.0]), weight=tw)))
    for bad in (dt.tensor([-1, 2]), dt.tensor([[1, 2]]), dt.tensor([0.5])):
        with pytest.raises(RuntimeError):
            dt.bincount(bad)


def test_cross_dist_cov():
    (a, ta), (b, tb) = pair(0, (4, 3)), pair(1, (4, 3))
    same(dt.cross(a, b, dim=1), torch.cross(ta, tb, dim=1))
    same(a.dist(b), ta.dist(tb))
    same(dt.dist(a, b, 1), torch.dist(ta, tb, 1))
    same(a.cov(), ta.cov())
    same(dt.cov(a, correction=0), torch.cov(ta, correction=0))
    same(a.corrcoef(), ta.corrcoef())
    weights = [2, 1, 1]
    same(dt.cov(a, fweights=dt.tensor(weights)), torch.cov(ta, fweights=torch.tensor(weights)))
    same(dt.cov(a, aweights=dt.tensor([0.2, 0.5, 1.0])),
         torch.cov(ta, aweights=torch.tensor([0.2, 0.5, 1.0])))


def test_sum_to_size():
    a, ta = pair(0, (4, 3))
    for size in ((4, 1), (3,), (1, 1), (4, 3), ()):
        same(a.sum_to_size(size), ta.sum_to_size(size))
    for size in ((4, 2), (4,), (1, 4, 3)):
        for t in (a, ta):
            with pytest.raises(RuntimeError, match="not expandable"):
                t.sum_to_size(size)


def test_complex_views():
    z = dt.tensor([1 + 2j, 3 - 1j])
    z.real.mul_(2)
    z.imag = dt.tensor([5.0, 6.0])
    assert z.tolist() == [2 + 5j, 6 + 6j]
    pairs = dt.view_as_real(z)
    pairs[0, 0] = -1
    assert z[0].item() == -1 + 5j and pairs.data_ptr() == z.data_ptr()
    assert dt.view_as_complex(pairs).data_ptr() == z.data_ptr()
    with pytest.raises(RuntimeError):
        dt.ones(2).imag  # noqa: B018
    x = dt.tensor([1.0, 2.0], requires_grad=True)
    tx = torch.tensor([1.0, 2.0], requires_grad=True)
    for m, v in ((dt, x), (torch, tx)):
        z = m.complex(v, v * v)
        z.real.mul_(3)  # through the view, in the graph
        (m.angle(z) + z.abs() + m.polar(v, v).real).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), tx.grad.numpy(), rtol=1e-5)
