"""The GPU's elementwise kernels: values and gradients against float64 formulas of the CPU."""

from __future__ import annotations

import numpy as np
import pytest

import disttorch as torch
from disttorch.backend.cupy_backend import gpu
from disttorch.nn import functional as F

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device, or no CuPy"),
]

FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
# one rounding of the result; functions are a few units of float32 off
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-13, torch.float16: 1e-3, torch.bfloat16: 8e-3}

UNARY = {
    "exp": torch.exp, "log": torch.log, "sqrt": torch.sqrt, "rsqrt": torch.rsqrt, "sin": torch.sin,
    "tanh": torch.tanh, "sigmoid": torch.sigmoid, "relu": torch.relu, "silu": F.silu, "neg": torch.neg,
    "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "abs": torch.abs,
    "leaky_relu": F.leaky_relu, "softplus": F.softplus, "elu": F.elu, "log_sigmoid": F.logsigmoid,
    "clamp": lambda x: x.clamp(0.5, 1.5), "clamp_min": lambda x: x.clamp(min=1.0),
    "square": lambda x: x**2, "cube": lambda x: x**3, "plus": lambda x: x + 1.5,
    "from": lambda x: 2 - x, "over": lambda x: 1 / x, "erf": torch.erf,
}
BINARY = {
    "add": lambda x, y: x + y, "sub": lambda x, y: x - y, "mul": lambda x, y: x * y,
    "div": lambda x, y: x / y, "maximum": torch.maximum, "minimum": torch.minimum,
    "where": lambda x, y: torch.where(x > y, x, y), "lerp": lambda x, y: torch.lerp(x, y, 0.3),
}


def values(*shape, dtype=torch.float32, seed=0):
    """Numbers in [0.3, 2.3] that the dtype holds exactly, as a CPU tensor."""
    return (torch.from_numpy(np.random.default_rng(seed).random(shape)) * 2 + 0.3).to(dtype)


def both(function, inputs, dtype):
    """(results and gradients of the GPU in ``dtype``, of the CPU in float64) for the same values."""
    found = []
    for device, kind in (("cuda", dtype), ("cpu", torch.float64)):
        leaves = [t.to(device).to(kind).requires_grad_() for t in inputs]
        out = function(*leaves)
        seed = torch.cos(torch.arange(out.numel(), dtype=torch.float64)).reshape(out.shape)
        out.backward(seed.to(dtype).to(kind).to(device))
        found.append([out, *[t.grad for t in leaves]])
    return zip(*found)


def close(got, want, dtype):
    assert got.is_cuda and got.dtype is dtype and got.shape == want.shape
    t = TOLERANCE[dtype]
    np.testing.assert_allclose(got.detach().double().cpu().numpy(), want.detach().numpy(), 4 * t, 4 * t)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", UNARY)
def test_of_one_operand(name, dtype):
    for got, want in both(UNARY[name], [values(5, 7, dtype=dtype)], dtype):
        close(got, want, dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", BINARY)
def test_of_two_operands(name, dtype):
    x, y = values(6, 5, dtype=dtype), values(6, 5, dtype=dtype, seed=1)
    for got, want in both(BINARY[name], [x, y], dtype):
        close(got, want, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shapes", [((4, 8), (8,)), ((4, 1), (1, 6)), ((2, 3, 4), (3, 1)), ((5,), ()),
                                    ((0, 3), (3,)), ((2, 1, 3, 1, 4), (1, 5, 1, 2, 1))], ids=str)
def test_broadcasting(shapes, dtype):
    x, y = values(*shapes[0], dtype=dtype), values(*shapes[1], dtype=dtype, seed=1)
    got, want = (x.cuda() * y.cuda()), x.double() * y.double()
    close(got, want, dtype)


@pytest.mark.parametrize("view", [
    lambda x: x.t(), lambda x: x[1:, ::2], lambda x: x[:, 3:], lambda x: x.flip(0),
    lambda x: x[:1].expand(9, 16), lambda x: x.reshape(2, 8, 3, 3).permute(0, 2, 3, 1)])
def test_layouts(view):
    x = values(9, 16)
    close(view(x.cuda()).exp(), view(x.double()).exp(), torch.float32)
    close(view(x.cuda()) + view(x.cuda()), 2 * view(x.double()), torch.float32)
    assert np.array_equal(view(x.cuda()).contiguous().cpu().numpy(), view(x).contiguous().numpy())


def test_results_keep_the_order_of_axes():
    x = values(2, 3, 4, 5).cuda().permute(0, 3, 1, 2)
    assert (x + x).stride() == x.stride() and x.exp().stride() == x.stride()


@pytest.mark.parametrize("to", [*FLOATS, torch.bool, torch.uint8, torch.int8, torch.int32, torch.int64],
                         ids=str)
@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16, torch.int64, torch.bool], ids=str)
def test_casts(source, to):
    x = (values(7, 5) * 50 - 40).to(source) if to is not torch.uint8 else (values(7, 5) * 50).to(source)
    for cut in (lambda a: a, lambda a: a.t(), lambda a: a[1:, ::2]):
        got, want = cut(x.cuda()).to(to), cut(x).to(to)
        assert got.dtype is to
        assert np.array_equal(got.double().cpu().numpy(), want.double().numpy())


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint8, torch.int8], ids=str)
def test_integers_wrap_and_divide_like_the_cpu(dtype):
    rng = np.random.default_rng(0)
    low = 0 if dtype is torch.uint8 else -100
    x = torch.from_numpy(rng.integers(low, 100, (5, 9))).to(dtype)
    y = torch.from_numpy(rng.integers(1, 9, (5, 9))).to(dtype)
    calls = [lambda a, b: a + b, lambda a, b: a * b * 90, lambda a, b: a // b, lambda a, b: a % b,
             torch.maximum, lambda a, b: a == b, lambda a, b: a > 3, lambda a, b: a & b, lambda a, b: -a]
    for call in calls:
        got, want = call(x.cuda(), y.cuda()), call(x, y)
        assert got.dtype is want.dtype and np.array_equal(got.cpu().numpy(), want.numpy())


def test_nan_and_infinity():
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1.5])
    y = torch.tensor([1.0, float("nan"), 0.0, float("inf"), 2.0, -2.0])
    calls = [torch.maximum, torch.minimum, lambda a, b: a.clamp(-1, 1), lambda a, b: a.relu(),
             lambda a, b: a < b, lambda a, b: a.sigmoid(), lambda a, b: a.isnan(), lambda a, b: a % b,
             lambda a, b: a.isinf(), lambda a, b: a // b, lambda a, b: a.isfinite(),
             lambda a, b: a.abs()]
    for call in calls:
        np.testing.assert_allclose(call(x.cuda(), y.cuda()).cpu().numpy(), call(x, y).numpy(), 1e-6)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_in_place(dtype):
    x, y = values(4, 6, dtype=dtype), values(4, 6, dtype=dtype, seed=1)
    for change in (lambda a, b: a.add_(b), lambda a, b: a.mul_(0.5), lambda a, b: a.sub_(b[0]),
                   lambda a, b: a[:, 1:].div_(b[:, 1:]), lambda a, b: a.zero_(),
                   lambda a, b: a.fill_(2.5),
                   lambda a, b: a[1:].copy_(b[:3]), lambda a, b: a[1:].add_(a[:-1].clone()),
                   lambda a, b: a[1:].copy_(a[:-1]), lambda a, b: a.t().copy_(b.t().double())):
        got, want = x.cuda(), x.clone()
        version = got._version
        change(got, y.cuda()), change(want, y)
        assert got._version > version
        close(got, want.double(), dtype)


def test_gradients_are_added_and_owned():
    x = values(3, 4).cuda().requires_grad_()
    for _ in range(2):
        (x * x + x).sum().backward()
    close(x.grad, 2 * (2 * values(3, 4).double() + 1), torch.float32)
    z = values(3).cuda().requires_grad_()
    seed = torch.ones(3).cuda()
    (z + 0).backward(seed)
    z.grad.zero_()
    assert seed.sum().item() == 3


def test_double_backward_goes_by_the_rules():
    x = values(3, 4, dtype=torch.float64).cuda().requires_grad_()
    (g,) = torch.autograd.grad((torch.tanh(x) * x).sum(), x, create_graph=True)
    g.sum().backward()
    y = values(3, 4, dtype=torch.float64).requires_grad_()
    (h,) = torch.autograd.grad((torch.tanh(y) * y).sum(), y, create_graph=True)
    h.sum().backward()
    close(x.grad, y.grad, torch.float64)


def test_one_launch_for_sixteen_bits():
    """What the table has is computed by the kernel itself, and nothing falls back."""
    fused, a = gpu().fused, values(33, dtype=torch.bfloat16).cuda()._data
    for name in ("exp", "tanh", "relu", "silu", "gelu", "sigmoid", "rsqrt"):
        assert getattr(fused, name)(a).dtype == a.dtype
    assert fused.add(a, a.astype("f4")) is NotImplemented


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_of_every_16_bit_number(dtype, approximate):
    """The shorter ways that 16-bit results take, over all of the type's numbers, and both gradients."""
    bits = torch.arange(-(1 << 15), 1 << 15).to(torch.int16)
    x = bits.view(dtype)
    x = x[x.float().abs() < 1e18]  # beyond, x² overflows in PyTorch's formula, too
    on = x.cuda().requires_grad_()
    out = F.gelu(on, approximate=approximate)
    out.backward(torch.ones_like(out))
    wide = x.double().requires_grad_()
    want = F.gelu(wide, approximate=approximate)
    want.sum().backward()
    ulp = 2.0**-8 if dtype is torch.bfloat16 else 2.0**-11
    for got, exact in ((out, want.detach()), (on.grad, wide.grad)):
        got, exact = got.detach().cpu().double(), exact.double()
        near = (got - exact).abs() <= ulp * exact.abs() + 4e-6
        assert near.all(), (x[~near][:5], got[~near][:5], exact[~near][:5])
    special = torch.tensor([float("nan"), float("inf"), -float("inf")], dtype=dtype)
    got, want = F.gelu(special.cuda(), approximate=approximate), F.gelu(special, approximate=approximate)
    assert torch.equal(torch.isnan(got.cpu()), torch.isnan(want)) and got[1].item() == float("inf")


# ---------------------------------------------------------------- order of axes
def inside(xp, a, *axes):
    """The values in the order of memory that ``axes`` say."""
    return xp.ascontiguousarray(a.transpose(axes))


LAID = {
    "channels last": lambda xp, a: inside(xp, a, 0, 2, 3, 1).transpose(0, 3, 1, 2),
    "columns first": lambda xp, a: inside(xp, a, 3, 2, 1, 0).transpose(3, 2, 1, 0),
    "one channel": lambda xp, a: inside(xp, a[:, :1], 0, 2, 3, 1).transpose(0, 3, 1, 2),
    "gaps": lambda xp, a: inside(xp, a, 0, 2, 3, 1)[..., ::2].transpose(0, 3, 1, 2),
}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("laid", LAID)
def test_the_second_call_on_any_order_of_axes_is_as_right_as_the_first(laid, dtype):
    xp = gpu()
    host = np.random.default_rng(2).random((2, 6, 3, 5)).astype(dtype)
    x = LAID[laid](xp, xp.asarray(host))
    y = LAID[laid](xp, xp.asarray(host + 1))
    a, b = x.get().astype(np.float64), y.get().astype(np.float64)
    for _ in range(3):
        for got, want in ((xp.fused.tanh(x), np.tanh(a)), (xp.fused.add(x, y), a + b),
                          (xp.fused.mul(x, 2.5), a * 2.5), (xp.fused.lt(x, y), a < b),
                          (xp.fused.relu_backward(y, x), b)):
            np.testing.assert_allclose(got.get(), want, 2e-3, 2e-3)
            if laid != "gaps" and got.dtype == x.dtype:
                assert [s for n, s in zip(got.shape, got.strides) if n > 1] == [
                    s for n, s in zip(x.shape, x.strides) if n > 1]
        out = LAID[laid](xp, xp.zeros((2, 6, 3, 5), dtype))
        assert xp.fused.add(x, y, out=out) is out
        np.testing.assert_allclose(out.get(), a + b, 2e-3, 2e-3)


def test_gaps_are_seen_behind_strides_that_a_wider_type_fills():
    xp = gpu()
    wide = xp.ascontiguousarray(xp.asarray(np.ones((4, 3), "f4")).T).T  # 3 columns of 4, one by one
    for _ in range(2):
        xp.fused.add(wide, wide)
    halves = xp.asarray(np.arange(24, dtype="f2")).reshape(12, 2)[:, 0].reshape(3, 4).T
    assert halves.strides == wide.strides and halves.shape == wide.shape
    first = xp.fused.add(halves.copy(), halves.copy())  # the launch for float16 is there now
    np.testing.assert_array_equal(xp.fused.add(halves, halves).get(), first.get())


def test_channels_last_makes_no_plan_the_second_time(monkeypatch):
    xp = gpu()
    if not hasattr(xp.ndarray, "_c_contiguous"):
        pytest.skip("this CuPy does not tell quickly whether arrays are contiguous")
    x = torch.ones(2, 4, 3, 5, device="cuda").to(memory_format=torch.channels_last)
    before = (torch.relu(x) + x) * 2.0
    monkeypatch.setattr("disttorch.backend.gpu.elementwise.plan_for", None)
    after = (torch.relu(x) + x) * 2.0
    assert after.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(before.cpu(), after.cpu())
