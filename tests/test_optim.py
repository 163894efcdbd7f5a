"""Optimizers: update rules against their formulas, groups, state, hooks; schedules."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest

import disttorch as torch
from disttorch import nn, optim
from disttorch.backend import CPU
from disttorch.backend import optim_kernels as kernels
from disttorch.optim import lr_scheduler as sched

ALL = [
    (optim.SGD, {"lr": 0.1}), (optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    (optim.Adam, {"lr": 0.1, "amsgrad": True}), (optim.AdamW, {"lr": 0.1}),
    (optim.RMSprop, {"lr": 0.05, "centered": True, "momentum": 0.1}),
    (optim.Adagrad, {"lr": 0.5}), (optim.Adamax, {"lr": 0.1}), (optim.NAdam, {"lr": 0.1}),
    (optim.RAdam, {"lr": 0.1}), (optim.Adadelta, {"lr": 10.0}), (optim.Rprop, {"lr": 0.1}),
    (optim.ASGD, {"lr": 0.1, "t0": 5}), (optim.Adafactor, {"lr": 0.1}),
]


def quadratic(params):
    return sum(((p - 3) ** 2).sum() for p in params)


@pytest.mark.parametrize("kind, options", ALL)
def test_finds_the_minimum(kind, options):
    params = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.ones(2, 2))]
    optimizer = kind(params, **options)
    for group in optimizer.param_groups:
        group["weight_decay"] = 0
    for _ in range(200):
        optimizer.zero_grad()
        quadratic(params).backward()
        optimizer.step()
    assert all(torch.allclose(p, torch.full_like(p, 3.0), atol=0.05) for p in params)


# ---------------------------------------------------------------- the blocked kernels
def plain_adam(p, g, m, v, step, lr, beta1, beta2, eps, wd, decoupled):
    """Adam as it is written in the paper, whole arrays at once."""
    if decoupled:
        p = p * (1 - lr * wd)
    else:
        g = g + wd * p
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    hat_m, hat_v = m / (1 - beta1**step), v / (1 - beta2**step)
    return p - lr * hat_m / (np.sqrt(hat_v) + eps), m, v


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("size", [1, 1000, (1 << 15) + 1, 3 * (1 << 15) + 7])
def test_blocks_cover_every_element(size, decoupled):
    rng = np.random.default_rng(size)
    p, g = rng.normal(size=(2, size))
    m, v = rng.normal(size=size) * 0.1, rng.random(size)
    options = {"step": 3, "lr": 0.01, "beta1": 0.9, "beta2": 0.99, "eps": 1e-6, "wd": 0.1,
               "decoupled": decoupled}
    expected = plain_adam(p, g, m, v, **options)
    kept = g.copy()
    kernels.adam_step(CPU, p, g, m, v, **options)
    for a, b in zip((p, m, v), expected):
        np.testing.assert_allclose(a, b, 1e-12, 1e-14)
    np.testing.assert_array_equal(g, kept)


def strided(a):
    wide = np.empty((a.shape[0], 2 * a.shape[1]), a.dtype)[:, ::2]
    wide[...] = a
    return wide


@pytest.mark.parametrize("layout", [strided, np.asfortranarray])
@pytest.mark.parametrize("dtype", ["float32", "float16", "complex64"])
def test_layouts_and_types_give_the_same(dtype, layout):
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(70, 600)).astype(dtype) for _ in range(4)]
    if dtype == "complex64":
        arrays = [a + 1j * rng.random((70, 600)).astype("float32") for a in arrays]
    arrays[3] = np.abs(arrays[3]).astype(dtype)
    whole, cut = [a.copy() for a in arrays], [layout(a) for a in arrays]
    options = {"step": 2, "lr": 0.01, "beta1": 0.9, "beta2": 0.99, "eps": 1e-3}
    kernels.adam_step(CPU, *whole, **options)
    kernels.adam_step(CPU, *cut, **options)
    assert not np.array_equal(whole[0], arrays[0])
    for a, b in zip(whole, cut):
        np.testing.assert_array_equal(a, b)


def test_half_precision_is_computed_in_float32():
    p = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = optim.AdamW([p], lr=1e-2)
    for _ in range(300):  # a bfloat16 step count would stop at 256
        p.grad = torch.ones(4, dtype=torch.bfloat16)
        optimizer.step()
    assert optimizer.state[p]["step"].item() == 300
    assert optimizer.state[p]["exp_avg"].dtype is torch.bfloat16
    assert p.dtype is torch.bfloat16 and (p < 0).all().item()


@pytest.mark.parametrize("p", [2.0, 1.0, 3.0, float("inf"), float("-inf"), 0.0])
def test_vector_norm(p):
    a = np.array([[3.0, -4.0], [0.0, 1.0]])
    expected = np.linalg.norm(a.ravel(), p)
    assert float(kernels.vector_norm(CPU, a, p)) == pytest.approx(expected)
    half = kernels.vector_norm(CPU, np.ones(5000, np.float16), 1.0)
    assert half.dtype == np.float16 and float(half) == 5000


# ---------------------------------------------------------------- the ones that are different
@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_lbfgs_finds_the_minimum_in_few_calls(search):
    a = torch.tensor([[4.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
    x = nn.Parameter(torch.tensor([5.0, -7.0], dtype=torch.float64))
    optimizer = optim.LBFGS([x], line_search_fn=search, max_iter=30)

    def closure():
        optimizer.zero_grad()
        loss = 0.5 * x @ a @ x - x.sum()
        loss.backward()
        return loss

    first = optimizer.step(closure)
    assert first.item() > 10
    solution = torch.linalg.solve(a, torch.ones(2, dtype=torch.float64))
    assert torch.allclose(x, solution, atol=1e-6)
    assert optimizer.state[x]["func_evals"] < 25
    with pytest.raises(RuntimeError, match="strong_wolfe"):
        x.data.add_(1)
        optim.LBFGS([x], line_search_fn="armijo").step(closure)


def test_muon_steps_are_orthogonal():
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(6, 4))
    before = p.detach().clone()
    p.grad = torch.randn(6, 4) * 100
    optim.Muon([p], lr=1.0, weight_decay=0.0, momentum=0.0, ns_steps=8).step()
    values = torch.linalg.svdvals(before - p.detach()) / (6 / 4) ** 0.5
    assert ((values > 0.5) & (values < 1.5)).all().item()


def test_sparse_adam_leaves_other_rows_alone():
    p = nn.Parameter(torch.ones(4, 2))
    optimizer = optim.SparseAdam([p], lr=0.1)
    for _ in range(2):
        p.grad = torch.zeros(4, 2)
        p.grad[1] = 1
        optimizer.step()
    assert p[0].tolist() == [1, 1] and p[1, 0].item() == pytest.approx(0.8, rel=1e-3)
    assert optimizer.state[p]["exp_avg"][0].tolist() == [0, 0]
    p.grad = torch.tensor([[1.0, 1], [0, 0], [0, 0], [0, 0]])
    optimizer.step()
    assert p[1, 0].item() == pytest.approx(0.8, rel=1e-3) and p[0, 0].item() < 1


def test_swapped_in_parameters():
    p, q = nn.Parameter(torch.ones(2)), nn.Parameter(torch.zeros(2))
    optimizer = optim.Adam([p], lr=0.1)
    p.grad = q.grad = torch.ones(2)
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    state["param_groups"][0]["lr"] = 1.0
    with optim.swap_in_optimizer_params_and_state(optimizer, {"q": q}, state):
        optimizer.step()
    assert q.tolist() == pytest.approx([-1, -1], rel=1e-3)
    assert p.tolist() == pytest.approx([0.9, 0.9]) and optimizer.param_groups[0]["lr"] == 0.1
    assert state["state"][0]["step"].item() == 2 and optimizer.state[p]["step"].item() == 1
    with (pytest.raises(RuntimeError, match="has 0 tensors"),
          optim.swap_in_optimizer_params_and_state(optimizer, {}, state)):
        pass


def test_averages_begin_with_a_copy():
    m = nn.Linear(1, 1, bias=False)
    average = optim.swa_utils.AveragedModel(m)
    for value in (1.0, 2.0, 6.0):
        m.weight.data.fill_(value)
        average.update_parameters(m)
    assert average.module.weight.item() == 3 and average.n_averaged.item() == 3
    with pytest.raises(AssertionError, match="Only one"):
        optim.swa_utils.AveragedModel(m, avg_fn=max, multi_avg_fn=max)


# ---------------------------------------------------------------- the base class
def test_groups_defaults_and_closure():
    p, q = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = optim.SGD([{"params": [p]}, {"params": q, "lr": 0.5}], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = (p + q).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2
    assert p.item() == pytest.approx(0.9) and q.item() == pytest.approx(0.5)
    r = nn.Parameter(torch.ones(1))
    optimizer.add_param_group({"params": [("r", r)][0][1], "lr": 1.0})
    assert [g["lr"] for g in optimizer.param_groups] == [0.1, 0.5, 1.0]
    optimizer.step()  # r has no gradient: left alone
    assert r.item() == 1


def test_step_invalidates_saved_tensors():
    p = nn.Parameter(torch.ones(2))
    loss = (p * p).sum()
    optimizer = optim.SGD([p], lr=0.1)
    p.grad = torch.ones(2)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_hooks_around_step():
    p = nn.Parameter(torch.ones(1))
    p.grad = torch.ones(1)
    optimizer = optim.Adam([p])
    calls = []
    first = optimizer.register_step_pre_hook(lambda o, a, k: calls.append("pre"))
    optimizer.register_step_post_hook(lambda o, a, k: calls.append("post"))
    from disttorch.optim.optimizer import register_optimizer_step_post_hook

    with register_optimizer_step_post_hook(lambda o, a, k: calls.append("all")):
        optimizer.step()
    first.remove()
    optimizer.step()
    assert calls == ["pre", "post", "all", "post"]
    optimizer.register_state_dict_post_hook(lambda o, s: {**s, "more": 1})
    optimizer.register_load_state_dict_pre_hook(lambda o, s: calls.append(s["more"]))
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls[-1] == 1


@pytest.mark.parametrize("kind, options", ALL)
def test_state_dict_continues_bit_by_bit(kind, options):
    def run(steps, optimizer, params):
        for _ in range(steps):
            optimizer.zero_grad()
            quadratic(params).backward()
            optimizer.step()

    def new():
        params = [nn.Parameter(torch.linspace(0, 1, 5)), nn.Parameter(torch.ones(2, 2))]
        return params, kind(params, **options)

    params, optimizer = new()
    run(7, optimizer, params)
    saved = pickle.loads(pickle.dumps((optimizer.state_dict(), [p.tolist() for p in params])))
    run(5, optimizer, params)
    others, other = new()
    other.load_state_dict(saved[0])
    for p, values in zip(others, saved[1]):
        p.data.copy_(torch.tensor(values))
    run(5, other, others)
    for p, q in zip(params, others):
        assert p.tolist() == q.tolist()


def test_loaded_state_takes_the_parameters_type():
    p = nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    optimizer = optim.Adam([p])
    optimizer.step()
    q = nn.Parameter(torch.ones(2, dtype=torch.float64))
    other = optim.Adam([q])
    other.load_state_dict(optimizer.state_dict())
    assert other.state[q]["exp_avg"].dtype is torch.float64
    assert other.state[q]["step"].dtype is torch.float32


def test_copy_named_parameters_and_refusals():
    m = nn.Linear(2, 2)
    optimizer = optim.AdamW(m.named_parameters(), lr=torch.tensor(0.1))
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]
    twin = copy.deepcopy(optimizer)
    assert twin.param_groups[0]["params"][0] is not m.weight
    with pytest.raises(NotImplementedError, match="differentiable=True"):
        optim.SGD(m.parameters(), differentiable=True)
    p = nn.Parameter(torch.ones(1))
    with pytest.warns(UserWarning, match="duplicate"):
        optim.SGD([p, p])


# ---------------------------------------------------------------- schedules
def stepped(make, steps, lr=1.0):
    p = nn.Parameter(torch.ones(1))
    optimizer = optim.SGD([p], lr=lr, momentum=0.9)
    scheduler = make(optimizer)
    seen = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        seen.append(optimizer.param_groups[0]["lr"])
    return seen, scheduler, optimizer


def test_closed_forms():
    """Each chained recursion against the formula of its documentation."""
    forms = {
        lambda o: sched.StepLR(o, 3, 0.5): lambda t: 0.5 ** (t // 3),
        lambda o: sched.ExponentialLR(o, 0.9): lambda t: 0.9**t,
        lambda o: sched.CosineAnnealingLR(o, 6, 0.1): lambda t: 0.1
        + 0.9 * (1 + math.cos(math.pi * t / 6)) / 2,
        lambda o: sched.PolynomialLR(o, 10, 2.0): lambda t: (1 - min(t, 10) / 10) ** 2,
        lambda o: sched.LinearLR(o, 0.2, 1.0, 8): lambda t: 0.2 + 0.8 * min(t, 8) / 8,
        lambda o: sched.ConstantLR(o, 0.5, 4): lambda t: 0.5 if t < 4 else 1.0,
        lambda o: sched.MultiStepLR(o, [2, 5]): lambda t: 0.1 ** ((t >= 2) + (t >= 5)),
        lambda o: sched.LambdaLR(o, lambda e: 1 / (1 + e)): lambda t: 1 / (1 + t),
        lambda o: sched.CosineAnnealingWarmRestarts(o, 4): lambda t: (
            1 + math.cos(math.pi * (t % 4) / 4)
        ) / 2,
    }
    for make, formula in forms.items():
        seen, _, _ = stepped(make, 12)
        np.testing.assert_allclose(seen, [formula(t) for t in range(13)], 1e-9, 1e-12)


def test_warm_up_then_cosine():
    seen, scheduler, _ = stepped(
        lambda o: sched.SequentialLR(
            o, [sched.LinearLR(o, 0.1, 1.0, 5), sched.CosineAnnealingLR(o, 10)], [5]
        ), 15,
    )
    assert seen[0] == pytest.approx(0.1) and seen[5] == pytest.approx(1.0)
    assert seen == pytest.approx([0.1 + 0.18 * t for t in range(5)] + [
        (1 + math.cos(math.pi * t / 10)) / 2 for t in range(11)])
    assert scheduler.get_last_lr() == [seen[-1]]


def test_one_cycle_moves_the_momentum_the_other_way():
    seen, _, optimizer = stepped(lambda o: sched.OneCycleLR(o, 2.0, total_steps=11), 10)
    assert max(seen) == pytest.approx(2.0, rel=0.1) and seen[0] == pytest.approx(0.08)
    assert seen[-1] == pytest.approx(0.08 / 1e4)
    assert optimizer.param_groups[0]["momentum"] == pytest.approx(0.95)


def test_plateau_and_order_warning():
    p = nn.Parameter(torch.ones(1))
    optimizer = optim.SGD([p], lr=1.0)
    scheduler = sched.ReduceLROnPlateau(optimizer, factor=0.5, patience=1)
    for value, lr in [(1.0, 1.0), (torch.tensor(0.5), 1.0), (0.5, 1.0), (0.6, 0.5), (0.1, 0.5)]:
        scheduler.step(value)
        assert scheduler.get_last_lr() == [lr]
    fresh = sched.StepLR(optim.SGD([p]), 1)
    with pytest.warns(UserWarning, match="before `optimizer.step"):
        fresh.step()
    with pytest.warns(UserWarning, match="get_last_lr"):
        fresh.get_lr()


def test_tensor_learning_rate_is_changed_in_place():
    lr = torch.tensor(1.0)
    p = nn.Parameter(torch.ones(1))
    p.grad = torch.ones(1)
    optimizer = optim.SGD([p], lr=lr)
    scheduler = sched.ExponentialLR(optimizer, 0.5)
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] is lr and lr.item() == 0.5
    optimizer.step()
    assert p.item() == pytest.approx(1 - 1 - 0.5)
