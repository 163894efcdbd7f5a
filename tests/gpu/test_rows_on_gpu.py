"""Kernels over rows on the GPU against the CPU in float64: softmax, norms, losses, reductions."""

from __future__ import annotations

import functools

import ml_dtypes
import numpy as np
import pytest

import disttorch as torch
import disttorch.nn.functional as F
from disttorch.backend import CPU, namespace_of, row_kernels
from disttorch.ops.core import REGISTRY
from disttorch.tensor import wrap

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device, or no CuPy"),
]
DTYPES = {"float32": 2e-5, "float64": 1e-12, "float16": 2e-3, "bfloat16": 1.6e-2}
all_types = pytest.mark.parametrize("name", DTYPES)
rng = np.random.default_rng(0)


def drawn(*shape, name="float32", scale=1.0):
    """Values that the type holds exactly: (on the CPU in float64, on the GPU)."""
    a = (rng.standard_normal(shape) * scale).astype(getattr(ml_dtypes, name, name))
    wide = torch.tensor(a.astype(np.float64))
    return wide, wide.to(getattr(torch, name)).cuda()


def near(got, want, name, scale=1.0):
    """``scale``: of the sums that a result is made from, whose last bits it may lack."""
    assert got.is_cuda and got.dtype is getattr(torch, name), (got.dtype, name)
    g = got.detach().cpu().to(torch.float64).numpy()
    w = want.detach().numpy() if isinstance(want, torch.Tensor) else want
    assert g.shape == w.shape
    np.testing.assert_allclose(g, w, rtol=DTYPES[name], atol=DTYPES[name] * scale)


def both(function, inputs, name, scale=1.0, seed=None):
    """Values and gradients of ``function`` over pairs of ``drawn``."""
    here, there = zip(*((a.detach().requires_grad_(), b.detach().requires_grad_()) for a, b in inputs))
    want, got = function(*here), function(*there)
    near(got, want, name, scale)
    g, g_there = drawn(*want.shape, name=name) if seed is None else seed
    want.backward(g)
    got.backward(g_there)
    for a, b in zip(here, there):
        near(b.grad, a.grad, b.dtype.name, scale)


# ---------------------------------------------------------------- softmax
@all_types
@pytest.mark.parametrize("shape,dim", [
    ((3, 40), 1), ((5, 37), -1), ((2, 701), 1), ((1, 1), 0), ((3, 4, 5), 1), ((4, 33), 0), ((7,), 0),
    ((70, 7), 1), ((33, 64), 1)])
@pytest.mark.parametrize("function", [torch.softmax, torch.log_softmax])
def test_softmax(function, shape, dim, name):
    both(lambda x: function(x, dim), [drawn(*shape, name=name, scale=3)], name, 4)


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
@pytest.mark.parametrize("width", [1024, 4099, 17001, 33000])
def test_softmax_of_long_rows(width, name):
    both(lambda x: torch.log_softmax(x, 1), [drawn(2, width, name=name)], name, 12)
    both(lambda x: torch.softmax(x * 8, 1), [drawn(1, width, name=name)], name)


def test_softmax_of_special_values():
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([[-inf, 0.0, 1.0], [-inf, -inf, -inf], [nan, 0.0, 1.0], [inf, 0.0, 1.0],
                      [1e4, 0.0, -1e4]])
    for dim in (0, 1):
        for function in (torch.softmax, torch.log_softmax):
            with np.errstate(invalid="ignore"):
                want = function(x, dim).numpy()
            got = function(x.cuda(), dim).cpu().numpy()
            np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
            np.testing.assert_allclose(got, want, rtol=1e-5)


def test_softmax_of_views_and_empty():
    wide, there = drawn(6, 10, 9)
    for make in (lambda x: x.transpose(0, 2), lambda x: x[:, 1::2], lambda x: x[1:, :, 1:],
                 lambda x: x[:, :0]):
        near(torch.softmax(make(there), -1), torch.softmax(make(wide), -1), "float32")
    odd = drawn(50)
    near(torch.softmax(odd[1][1:], 0), torch.softmax(odd[0][1:], 0), "float32")  # not on 16 bytes


# ---------------------------------------------------------------- norms
@all_types
@pytest.mark.parametrize("shape", [(3, 32), (9, 200), (2, 5, 37), (3, 776), (2, 1030), (1, 1)])
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_norms(kind, shape, name):
    width = shape[-1:]
    x, w, b = drawn(*shape, name=name), drawn(*width, name=name), drawn(*width, name=name)
    if kind == "rms":
        both(lambda x, w: F.rms_norm(x, width, w, 1e-3), [x, w], name, 4)
    else:
        both(lambda x, w, b: F.layer_norm(x, width, w, b, 1e-3), [x, w, b], name, 4)
    both(lambda x: F.layer_norm(x, width, None, None, 1e-3), [x], name, 4)


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_norms_of_long_rows(name):
    x, w = drawn(2, 17000, name=name), drawn(17000, name=name)
    both(lambda x, w: F.layer_norm(x, (17000,), w, w, 1e-5), [x, w], name, 8)


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(70, 64), (3, 5000), (2, 5001), (2, 9000)])
def test_gradients_of_norms_by_every_kernel(shape, name):
    """Several rows a block, one row a block, rows that no block holds; the same bits each time."""
    width = shape[1:]
    x, w, b = drawn(*shape, name=name), drawn(*width, name=name), drawn(*width, name=name)
    both(lambda x, w, b: F.layer_norm(x, width, w, b), [x, w, b], name, 8)
    both(lambda x, w: F.rms_norm(x, width, w, 1e-3), [x, w], name, 8)
    x, w, b = (t[1].detach().requires_grad_() for t in (x, w, b))
    y, g = F.layer_norm(x, width, w, b), torch.ones(*shape, dtype=x.dtype, device="cuda") * x.detach()
    first = torch.autograd.grad(y, (x, w, b), g, retain_graph=True)
    for a, again in zip(first, torch.autograd.grad(y, (x, w, b), g)):
        assert torch.equal(a, again)


def test_norm_over_several_axes_and_views():
    for make in (lambda x: x, lambda x: x.transpose(0, 1), lambda x: x[:, 1:]):
        x, w, b = drawn(6, 5, 4, 8), drawn(4, 8), drawn(4, 8)
        both(lambda x, w, b, make=make: F.layer_norm(make(x), (4, 8), w, b), [x, w, b], "float32", 4)
        both(lambda x, w, make=make: F.rms_norm(make(x), (4, 8), w, 1e-3), [x, w], "float32", 4)
    x, w = drawn(6, 8), drawn(9)
    both(lambda x, w: F.layer_norm(x, (8,), w[1:], w[:8]), [x, w], "float32", 4)  # not on 16 bytes
    both(lambda x, w: F.layer_norm(x, (8,), None, w[1:]), [x, w], "float32", 4)


def test_norm_of_16_bits_with_float32_weights():
    x, w, b = drawn(6, 64, name="bfloat16"), drawn(64), drawn(64)
    both(lambda x, w, b: F.layer_norm(x, (64,), w, b), [x, w, b], "bfloat16", 4,
         drawn(6, 64, name="bfloat16"))
    both(lambda x, w: F.rms_norm(x, (64,), w, 1e-5), [x, w], "bfloat16", 4,
         drawn(6, 64, name="bfloat16"))


def test_norm_of_no_rows():
    x = torch.empty(0, 8, device="cuda", requires_grad=True)
    w = torch.ones(8, device="cuda", requires_grad=True)
    F.layer_norm(x, (8,), w, w).sum().backward()
    assert x.grad.shape == (0, 8) and float(w.grad.abs().sum()) == 0


# ---------------------------------------------------------------- cross entropy
@all_types
@pytest.mark.parametrize("classes", [3, 129, 1500])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy(reduction, classes, name):
    x = drawn(7, classes, name=name, scale=2)
    weight = np.abs(drawn(classes, name=name)[0].numpy()).astype(getattr(ml_dtypes, name, name))
    target = rng.integers(0, classes, 7)
    target[2] = 1
    seed = drawn(*((7,) if reduction == "none" else ()), name=name)

    def loss(x, weighted, smoothing):
        w = torch.tensor(weight.astype(np.float64)).to(x.device).to(x.dtype) if weighted else None
        return F.cross_entropy(x, torch.tensor(target).to(x.device), w, ignore_index=1,
                               reduction=reduction, label_smoothing=smoothing)

    for options in ((False, 0.0), (True, 0.0), (False, 0.1), (True, 0.1)):
        both(functools.partial(lambda o, x: loss(x, *o), options), [x], name, 4, seed)


def test_cross_entropy_of_images_and_one_row():
    target = rng.integers(0, 5, (2, 3, 4))
    both(lambda x: F.cross_entropy(x, torch.tensor(target).to(x.device)), [drawn(2, 5, 3, 4)], "float32")
    both(lambda x: F.cross_entropy(x, torch.tensor(3).to(x.device)), [drawn(5)], "float32")


def test_cross_entropy_under_autocast_is_float32():
    target = torch.tensor([1, 0, 3])
    x, there = drawn(3, 5, name="bfloat16")
    x.requires_grad_(), there.requires_grad_()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = F.cross_entropy(there, target.cuda(), label_smoothing=0.1)
        soft = F.cross_entropy(there, torch.softmax(there.detach(), 1))
    want = F.cross_entropy(x, target, label_smoothing=0.1)
    near(loss, want, "float32")
    assert soft.dtype is torch.float32
    want.backward()
    loss.backward()
    near(there.grad, x.grad, "bfloat16")


def test_cross_entropy_of_special_rows():
    inf = float("inf")
    x = torch.tensor([[0.0, -inf, 1.0], [-inf, -inf, -inf], [3e4, 0.0, -3e4]])
    target = torch.tensor([0, 1, 2])
    with np.errstate(invalid="ignore"):
        want = F.cross_entropy(x, target, reduction="none").numpy()
    got = F.cross_entropy(x.cuda(), target.cuda(), reduction="none").cpu().numpy()
    np.testing.assert_allclose(got, want, rtol=1e-5)
    outside = F.cross_entropy(x.cuda(), torch.tensor([0, 1, 3]).cuda(), reduction="none").cpu()
    assert torch.isnan(outside[2]) and not torch.isnan(outside[0])
    ignored = F.cross_entropy(x.cuda(), torch.tensor([-100] * 3).cuda(), reduction="sum")
    assert float(ignored) == 0


def test_cross_entropy_of_no_rows():
    x = torch.empty(0, 5, device="cuda", requires_grad=True)
    target = torch.empty(0, dtype=torch.int64, device="cuda")
    assert float(F.cross_entropy(x, target, reduction="sum")) == 0
    loss = F.cross_entropy(x, target)
    assert torch.isnan(loss)
    loss.backward()
    assert x.grad.shape == (0, 5) and F.cross_entropy(x, target, reduction="none").shape == (0,)


def test_cross_entropy_of_many_rows_repeats():
    x, target = torch.randn(40000, 4, device="cuda"), torch.randint(4, (40000,)).cuda()
    first = F.cross_entropy(x, target)
    assert torch.equal(first, F.cross_entropy(x, target))
    np.testing.assert_allclose(float(first), float(F.cross_entropy(x.cpu(), target.cpu())), rtol=1e-5)


def test_double_backward_of_cross_entropy_and_norms():
    target = torch.tensor([0, 2])
    grads = []
    for device in ("cpu", "cuda"):
        x = torch.tensor([[0.5, -1.0, 2.0], [1.0, 0.0, 0.3]], dtype=torch.float64, device=device)
        x.requires_grad_()
        w = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64, device=device, requires_grad=True)
        y = F.cross_entropy(F.rms_norm(x, (3,), w, 1e-5), target.to(device))
        (g,) = torch.autograd.grad(y, x, create_graph=True)
        (g * g).sum().backward()
        grads.append((x.grad.cpu().numpy(), w.grad.cpu().numpy()))
    for a, b in zip(*grads):
        np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-12)


# ---------------------------------------------------------------- reductions
SHAPES = [((5, 7), None), ((5, 7), 0), ((5, 8), 1), ((3, 4, 16), 1), ((2, 3, 4, 5), (0, 2)),
          ((2, 3, 4, 5), (1, 3)), ((1, 1), 0), ((6, 1, 3), 1), ((300, 24), 0), ((2, 1300), 1),
          ((), None)]


@all_types
@pytest.mark.parametrize("shape,dim", SHAPES)
def test_reductions(shape, dim, name):
    x = drawn(*shape, name=name)
    both(lambda x: x.sum(dim), [x], name, 8)
    both(lambda x: x.mean(dim, keepdim=True), [x], name)
    near(torch.linalg.vector_norm(x[1], 2, dim), torch.linalg.vector_norm(x[0], 2, dim), name)
    if shape:
        near(torch.norm(x[1], dim=dim), torch.norm(x[0], dim=dim), name)
        near(torch.var(x[1], dim, correction=0), torch.var(x[0], dim, correction=0), name)
        near(torch.std(x[1], dim, correction=0), torch.std(x[0], dim, correction=0), name)
    dims = () if dim is None else dim
    near(torch.amax(x[1], dims), torch.amax(x[0], dims), name)
    near(x[1].min(), x[0].min(), name)


@all_types
def test_reductions_of_views(name):
    wide, there = drawn(4, 6, 10, name=name)
    for make in (lambda x: x.permute(2, 0, 1), lambda x: x.transpose(0, 1), lambda x: x[:, ::2],
                 lambda x: x[1:, 1:, 1:], lambda x: x[0, 0].expand(3, 10)):
        for dim in (None, 0, -1):
            near(make(there).sum(dim), make(wide).sum(dim), name, 8)
            near(torch.var(make(there), dim), torch.var(make(wide), dim), name)


@pytest.mark.parametrize("name", ["float32", "float16"])
def test_long_sums_in_strips(name):
    for shape, dim in (((40000,), 0), ((2, 33001), 1), ((3000, 9), 0), ((1030, 16), 0)):
        wide, there = drawn(*shape, name=name)
        near((there * 0 + 1).sum(dim) if name == "float32" else there.mean(dim),
             (wide * 0 + 1).sum(dim) if name == "float32" else wide.mean(dim), name)
        assert torch.equal(there.sum(dim), there.sum(dim))


def test_half_sums_do_not_saturate():
    x = torch.full((5000,), 0.5, dtype=torch.float16, device="cuda")
    assert float(x.sum()) == 2500 and float(x.mean()) == 0.5
    big = torch.full((64,), 6e4, dtype=torch.float16, device="cuda")
    assert float(big.mean()) == float(big[0])


def test_extremes_find_nan():
    x = torch.tensor([[1.0, float("nan"), 3.0], [4.0, 5.0, 6.0]]).cuda()
    assert torch.isnan(x.max()) and torch.isnan(x.amin(1)[0]) and float(x.amin(1)[1]) == 4


def test_empty_reductions():
    x = torch.empty(0, 3, device="cuda", dtype=torch.bfloat16)
    assert x.sum(0).tolist() == [0, 0, 0] and torch.isnan(x.mean())
    assert float(torch.linalg.vector_norm(x)) == 0 and torch.isnan(torch.var(x))


@all_types
def test_gradients_of_biases(name):
    shapes = ((70, 24), (24,)), ((3, 5, 7), (7,)), ((3, 5, 7), (5, 1)), ((4, 3), ()), ((2, 3), (2, 1))
    for shape, to in shapes:
        wide, there = drawn(*shape, name=name)
        got = wrap(namespace_of(there._data).sum_rows_to(there._data, to))
        near(got, CPU.sum_rows_to(wide.numpy(), to), name, 8)


# ---------------------------------------------------------------- rotary embedding
@all_types
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("shape,dim", [((2, 3, 5, 16), 2), ((2, 5, 3, 6), 1), ((5, 2), 0)])
def test_rotary(shape, dim, interleaved, name):
    angles = rng.uniform(0, 6, (5, shape[-1] // 2))
    table = torch.tensor(np.cos(angles)), torch.tensor(np.sin(angles))

    def turned(x):
        near_type = torch.float64 if x.dtype is torch.float64 else torch.float32
        cos, sin = (t.to(x.device).to(near_type) if x.is_cuda else t for t in table)
        return REGISTRY["rotary"].call(x, cos, sin, dim, interleaved)

    x = drawn(*shape, name=name)
    both(turned, [x], name, 2)
    back = REGISTRY["rotary_back"].call(turned(x[0]), *table, dim, interleaved)
    np.testing.assert_allclose(back.numpy(), x[0].numpy(), atol=1e-12)


def test_plain_formulas_are_the_oracle():
    """The GPU's namespace computes with kernels what the formulas say."""
    xp = namespace_of(torch.empty(1, device="cuda")._data)
    for f in ("mean_over", "variance", "euclidean_norm", "rms_norm_over", "rms_norm_over_backward",
              "layer_norm_over", "layer_norm_over_backward", "cross_entropy", "cross_entropy_backward",
              "rotary"):
        assert getattr(xp, f).__func__ is not getattr(row_kernels, f)
