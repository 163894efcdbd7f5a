"""Optimizers, norms, clipping and loss scaling over many tensors on a GPU, against the CPU."""

from __future__ import annotations

import math

import numpy as np
import pytest
from gpu.optimized import SHAPES, give_gradients, host, pairs

import disttorch as torch
from disttorch.backend import namespace_for
from disttorch.nn.utils import clip_grad_norm_, clip_grad_value_, get_total_norm

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device, or no CuPy"),
]
TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
NEAR = list(zip(TYPES, (5e-6, 1e-13, 2e-3, 1.6e-2)))
RULES = {
    "Adam": [{}, {"amsgrad": True, "weight_decay": 0.1}, {"maximize": True}],
    "AdamW": [{}, {"amsgrad": True}],
    "SGD": [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
            {"momentum": 0.5, "dampening": 0.3, "maximize": True}],
    "RMSprop": [{}, {"centered": True, "momentum": 0.9, "weight_decay": 0.1}],
    "Adagrad": [{"lr_decay": 0.1, "weight_decay": 0.1}],
    "Adadelta": [{"weight_decay": 0.1}],
    "Adamax": [{"weight_decay": 0.1}],
    "NAdam": [{}, {"weight_decay": 0.1, "decoupled_weight_decay": True}],
    "RAdam": [{"betas": (0.5, 0.6)}, {"weight_decay": 0.1, "decoupled_weight_decay": True}],
}  # fmt: skip
CASES = [(name, options) for name, several in RULES.items() for options in several]


@pytest.fixture(autouse=True)
def emptied():
    """Many small arrays of many sizes, none of which the next test wants."""
    yield
    torch.cuda.empty_cache()


def same(mine, theirs):
    for p, q in zip(mine, theirs):
        np.testing.assert_array_equal(host(q), host(p))


def same_state(a, b):
    for mine, theirs in zip(a.state.values(), b.state.values()):
        for key, value in mine.items():
            if key != "step":
                np.testing.assert_array_equal(host(theirs[key]), host(value), err_msg=key)


@pytest.mark.parametrize("name, options", CASES)
def test_steps_have_the_bits_of_the_cpu(name, options):
    for dtype in TYPES if name in ("AdamW", "SGD") else TYPES[:1]:
        mine, theirs = pairs(dtype)
        a, b = (getattr(torch.optim, name)(p, lr=0.01, **options) for p in (mine, theirs))
        for step in range(3):
            give_gradients(mine, theirs, step, leave_out=(4,) if step == 1 else ())
            a.step()
            b.step()
        same(mine, theirs)
        same_state(a, b)


@pytest.mark.parametrize("name", ["Adam", "RMSprop", "Adagrad"])
def test_other_types_of_rules_in_16_bits(name):
    mine, theirs = pairs(torch.bfloat16)
    a, b = (getattr(torch.optim, name)(p, lr=0.01) for p in (mine, theirs))
    for step in range(2):
        give_gradients(mine, theirs, step)
        a.step()
        b.step()
    same(mine, theirs)


def test_layouts_and_complex_numbers():
    rng = np.random.default_rng(1)
    c = torch.tensor(rng.standard_normal((4, 3)) + 1j * rng.standard_normal((4, 3)))
    nhwc = torch.tensor(rng.standard_normal((2, 3, 4, 5))).permute(0, 3, 1, 2)
    strided = torch.tensor(rng.standard_normal((6, 8)))[:, ::2]
    mine = [t.detach().requires_grad_() for t in (c, nhwc, strided)]
    theirs = []
    for t in mine:
        on_gpu = t.detach().cuda()
        if t is mine[1]:
            on_gpu = t.detach().permute(0, 2, 3, 1).contiguous().cuda().permute(0, 3, 1, 2)
        elif t is mine[2]:
            on_gpu = torch.zeros(6, 8, dtype=t.dtype, device="cuda")[:, ::2]
            on_gpu.copy_(t.detach())
        theirs.append(on_gpu.requires_grad_())
    a, b = torch.optim.AdamW(mine, lr=0.1), torch.optim.AdamW(theirs, lr=0.1)
    for _ in range(2):
        for p, q in zip(mine, theirs):
            g = rng.standard_normal(tuple(p.shape))
            p.grad = torch.tensor(g).to(p.dtype)
            q.grad = p.grad.cuda()
        a.step()
        b.step()
    for p, q in zip(mine, theirs):
        np.testing.assert_allclose(host(q), host(p), rtol=1e-13)


@pytest.mark.parametrize("how", ["capturable", "fused"])
def test_steps_counted_on_the_device(how):
    mine, theirs = pairs()
    a = torch.optim.AdamW(mine, lr=0.01)
    b = torch.optim.AdamW(theirs, lr=torch.tensor(0.01, device="cuda"), **{how: True})
    for step in range(3):
        give_gradients(mine, theirs, step)
        a.step()
        b.step()
    for p, q in zip(mine, theirs):
        np.testing.assert_allclose(host(q), host(p), rtol=2e-6, atol=1e-7)
    step = b.state[theirs[0]]["step"]
    assert step.is_cuda and step.item() == 3
    # a state goes from one kind of optimizer into the other
    c = torch.optim.AdamW(theirs, lr=0.01)
    c.load_state_dict(b.state_dict())
    c.param_groups[0].update({how: False, "lr": 0.01})
    give_gradients(mine, theirs, 9)
    a.step()
    c.step()
    assert not c.state[theirs[0]]["step"].is_cuda and c.state[theirs[0]]["step"].item() == 4
    for p, q in zip(mine, theirs):
        np.testing.assert_allclose(host(q), host(p), rtol=2e-6, atol=1e-7)


def test_more_tensors_than_a_table_holds():
    mine, theirs = pairs(shapes=[(n % 5 + 1,) for n in range(200)])
    a, b = torch.optim.AdamW(mine, lr=0.01), torch.optim.AdamW(theirs, lr=0.01)
    give_gradients(mine, theirs, 0)
    total = [clip_grad_norm_(p, 1.0) for p in (mine, theirs)]
    np.testing.assert_allclose(host(total[1]), host(total[0]), rtol=1e-6)
    give_gradients(mine, theirs, 1)
    a.step()
    b.step()
    same(mine, theirs)


# ---------------------------------------------------------------- norms
@pytest.mark.parametrize("dtype, near", NEAR)
@pytest.mark.parametrize("p", [2.0, 1.0, math.inf, -math.inf, 0.0, 3.0])
def test_total_norm(p, dtype, near):
    shapes = [s for s in SHAPES if s != (0,)] if p == -math.inf else SHAPES
    mine, theirs = pairs(dtype, shapes)
    with torch.no_grad():
        if dtype is torch.float16 and p in (1.0, 0.0):  # within its range
            mine, theirs = mine[:5], theirs[:5]
        wide = np.concatenate([p_.detach().double().numpy().reshape(-1) for p_ in mine])
        got = get_total_norm([t.detach() for t in theirs], p)
        again = get_total_norm([t.detach() for t in theirs], p)
    assert got.is_cuda and got.dtype is dtype
    # of order 0, as in PyTorch, it counts the tensors whose own norm is not 0
    want = sum(t.numel() > 0 for t in theirs) if p == 0 else np.linalg.norm(wide, p)
    np.testing.assert_allclose(got.double().item(), want, rtol=near)
    assert got.item() == again.item()


def test_the_norm_of_norms_has_the_same_bits():
    _, theirs = pairs()
    tensors = [t.detach() for t in theirs]
    each = torch.stack([get_total_norm([t]) for t in tensors])
    assert get_total_norm(tensors).item() == get_total_norm([each]).item()


def test_nan_and_infinity_in_norms():
    for bad in (math.nan, math.inf):
        t = torch.zeros(100, device="cuda")
        t[77] = bad
        for p in (2.0, math.inf):
            found = get_total_norm([t, torch.ones(3, device="cuda")], p).item()
            assert math.isnan(found) if math.isnan(bad) else found == math.inf
    with pytest.raises(RuntimeError, match="non-finite"):
        get_total_norm([t, t], error_if_nonfinite=True)


@pytest.mark.parametrize("dtype, near", NEAR)
def test_clipping(dtype, near):
    mine, theirs = pairs(dtype)
    give_gradients(mine, theirs, 0)
    before = [p.grad._version for p in theirs]
    clip_grad_value_(mine, 0.5)
    clip_grad_value_(theirs, 0.5)
    for p, q in zip(mine, theirs):
        np.testing.assert_array_equal(host(q.grad), host(p.grad))
    assert all(q.grad._version > v for q, v in zip(theirs, before))
    for limit in (0.1, 1e6):
        total = [clip_grad_norm_(ps, limit) for ps in (mine, theirs)]
        np.testing.assert_allclose(host(total[1].double()), host(total[0].double()), rtol=near)
        for p, q in zip(mine, theirs):
            np.testing.assert_allclose(host(q.grad.double()), host(p.grad.double()), rtol=2 * near)


# ---------------------------------------------------------------- loss scaling
@pytest.mark.parametrize("options", [{}, {"fused": True}, {"capturable": True}])
@pytest.mark.parametrize("name", ["Adam", "SGD"])
def test_scaler_skips_overflow_and_scales_back(name, options):
    if name == "SGD":
        options = {"momentum": 0.9, **{k: v for k, v in options.items() if k == "fused"}}
    p = torch.ones(300, device="cuda", requires_grad=True)
    q = torch.ones(300, requires_grad=True)
    on_gpu = getattr(torch.optim, name)([p], lr=0.1, **options)
    on_cpu = getattr(torch.optim, name)([q], lr=0.1, **options)
    scaler = torch.amp.GradScaler("cuda", init_scale=1024.0, growth_interval=2)
    for step in range(5):
        overflow = step in (0, 3)
        p.grad = torch.full((300,), 512.0, device="cuda")
        if overflow:
            p.grad[299] = math.inf if step else math.nan
        scaler.scale(torch.zeros((), device="cuda"))
        scale = scaler.get_scale()
        scaler.step(on_gpu)
        scaler.update()
        if not overflow:
            q.grad = torch.full((300,), 512.0 / scale)
            on_cpu.step()
        assert scaler.get_scale() == (scale / 2 if overflow else 1024.0 if step == 2 else scale), step
    np.testing.assert_allclose(host(p), host(q), rtol=1e-6)


def test_unscaling_before_clipping():
    p = torch.ones(5, device="cuda", requires_grad=True)
    optimizer = torch.optim.SGD([p], lr=1.0)
    scaler = torch.amp.GradScaler("cuda", init_scale=8.0)
    scaler.scale((p * torch.arange(5.0, device="cuda")).sum()).backward()
    scaler.unscale_(optimizer)
    np.testing.assert_array_equal(host(p.grad), np.arange(5.0))
    clip_grad_norm_([p], 1.0)
    scaler.step(optimizer)
    scaler.update()
    np.testing.assert_allclose(host(p), 1 - np.arange(5) / 30**0.5, rtol=1e-6)


# ---------------------------------------------------------------- master weights
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
def test_conversions_of_many_at_once(half):
    xp = namespace_for(torch.device("cuda"))
    shapes = [(3,), (1,), (0,), (7, 5), (), (4100,), (66_000,)]
    wide = [torch.randn(s, device="cuda") * 100 for s in shapes]
    wide.append(torch.randn(6, 4, device="cuda").t())  # not contiguous
    wide.append(torch.randn(9, device="cuda")[1:])  # not aligned
    there = [torch.full(w.shape, -1.0, dtype=half, device="cuda") for w in wide]
    xp.convert_all([w._data for w in wide], [t._data for t in there])
    back = [torch.full(w.shape, -1.0, device="cuda") for w in wide]
    xp.convert_all([t._data for t in there], [b._data for b in back])
    for w, t, b in zip(wide, there, back):
        assert torch.equal(t, w.to(half)) and torch.equal(b, t.float())


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
def test_master_weights_by_the_scaler_and_in_a_graph(half):
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(5, 3, device="cuda").to(half))
    start = p.detach().float()
    optimizer = torch.optim.MasterWeights(torch.optim.AdamW([p], lr=0.01, capturable=True))
    scaler = torch.amp.GradScaler("cuda", init_scale=256.0)
    w = torch.nn.Parameter(start.clone())
    reference = torch.optim.AdamW([w], lr=0.01)
    given = torch.randn(5, 3, device="cuda").to(half)
    for factor in (1.0, float("inf"), 2.0):  # the second step is skipped
        p.grad = scaler.scale(given.float() * factor).to(half)
        scaler.step(optimizer)
        scaler.update()
        if factor < 3:
            w.grad = given.float() * factor
            reference.step()
    master = optimizer.inner.param_groups[0]["params"][0]
    torch.testing.assert_close(master, w, rtol=1e-4, atol=1e-5)
    assert torch.equal(p, master.to(half)) and scaler.get_scale() == 128.0
    p.grad = given.clone()
    optimizer.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    before = master.detach().clone()
    graph.replay()
    assert not torch.equal(before, master) and torch.equal(p, master.to(half))
