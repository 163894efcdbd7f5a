"""Optimizers and schedules against PyTorch: the same weights after 20 steps, the same rates."""

from __future__ import annotations

import inspect
import itertools
import math

import numpy as np
import pytest

import disttorch as dt
from disttorch import nn, optim
from disttorch.optim import lr_scheduler as sched

torch = pytest.importorskip("torch")
tnn, toptim = torch.nn, torch.optim
tsched = toptim.lr_scheduler
pytestmark = pytest.mark.parity

OPTIMIZERS = {
    "SGD": [
        {}, {"momentum": 0.9}, {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
        {"momentum": 0.8, "nesterov": True, "maximize": True}, {"weight_decay": 0.2},
    ],
    "Adam": [
        {}, {"weight_decay": 0.1}, {"amsgrad": True}, {"maximize": True, "eps": 1e-3},
        {"betas": (0.5, 0.6), "weight_decay": 0.2, "amsgrad": True},
        {"decoupled_weight_decay": True, "weight_decay": 0.1}, {"foreach": True},
    ],
    "AdamW": [{}, {"amsgrad": True, "weight_decay": 0.3}, {"maximize": True}],
    "RMSprop": [
        {}, {"centered": True}, {"momentum": 0.9}, {"weight_decay": 0.1, "alpha": 0.5},
        {"centered": True, "momentum": 0.5, "maximize": True},
    ],
    "Adagrad": [
        {}, {"lr_decay": 0.1, "weight_decay": 0.1}, {"initial_accumulator_value": 0.3},
        {"maximize": True, "eps": 1e-3},
    ],
    "Adamax": [{}, {"weight_decay": 0.1, "betas": (0.5, 0.7)}, {"maximize": True, "eps": 1e-3}],
    "NAdam": [
        {}, {"weight_decay": 0.1, "momentum_decay": 0.1}, {"maximize": True, "eps": 1e-3},
        {"decoupled_weight_decay": True, "weight_decay": 0.2},
    ],
    "RAdam": [
        {}, {"weight_decay": 0.1, "betas": (0.8, 0.9)}, {"maximize": True},
        {"decoupled_weight_decay": True, "weight_decay": 0.2, "betas": (0.5, 0.8)},
    ],
    "Adadelta": [{}, {"rho": 0.5, "weight_decay": 0.1}, {"maximize": True, "eps": 1e-3}],
    "Rprop": [{}, {"etas": (0.3, 1.5), "step_sizes": (1e-4, 0.05)}, {"maximize": True}],
    "ASGD": [
        {}, {"lambd": 0.1, "alpha": 0.5, "t0": 3, "weight_decay": 0.1},
        {"maximize": True, "t0": 0},
    ],
    "Adafactor": [
        {}, {"weight_decay": 0.1, "d": 2.0, "beta2_decay": -0.5}, {"maximize": True},
        {"eps": (1e-3, 1e-2)},
    ],
}
CASES = [
    pytest.param(name, options, id=f"{name}-{i}")
    for name, all_options in OPTIMIZERS.items() for i, options in enumerate(all_options)
]
TOLERANCE = {"float64": 1e-9, "float32": 2e-5}


def build(package, module, dtype, weights):
    m = module.Sequential(module.Linear(5, 8), module.Tanh(), module.Linear(8, 3))
    m.to(getattr(package, dtype))
    m.load_state_dict({k: package.tensor(v.astype(dtype)) for k, v in weights.items()})
    return m


def problem(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"0.weight": (8, 5), "0.bias": (8,), "2.weight": (3, 8), "2.bias": (3,)}
    weights = {k: rng.uniform(-0.5, 0.5, s) for k, s in shapes.items()}
    return weights, rng.uniform(-1, 1, (20, 6, 5)), rng.uniform(-1, 1, (20, 6, 3))


def train(package, module, optimizers, name, options, dtype, steps=20, start=0, state=None,
          weights=None):
    first, xs, ys = problem()
    m = build(package, module, dtype, weights or first)
    groups = [
        {"params": m[0].parameters(), "lr": 0.03}, {"params": list(m[2].parameters())}
    ]
    optimizer = getattr(optimizers, name)(groups, lr=0.01, **options)
    if state is not None:
        optimizer.load_state_dict(state)
    losses = []
    for i in range(start, steps):
        optimizer.zero_grad()
        out = m(package.tensor(xs[i].astype(dtype)))
        loss = module.functional.mse_loss(out, package.tensor(ys[i].astype(dtype)))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, m, optimizer


def values(state):
    return {k: v.detach().numpy() for k, v in state.items()}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name, options", CASES)
def test_twenty_steps(name, options, dtype):
    losses, m, optimizer = train(dt, nn, optim, name, options, dtype)
    expected, tm, toptimizer = train(torch, tnn, toptim, name, options, dtype)
    rtol = TOLERANCE[dtype]
    np.testing.assert_allclose(losses, expected, rtol)
    for k, v in values(tm.state_dict()).items():
        np.testing.assert_allclose(values(m.state_dict())[k], v, rtol, rtol)
    assert repr(optimizer) == repr(toptimizer)
    ours, theirs = optimizer.state_dict(), toptimizer.state_dict()
    assert list(ours) == list(theirs) and ours["param_groups"] == theirs["param_groups"]
    assert list(ours["state"]) == list(theirs["state"])
    for index, state in theirs["state"].items():
        assert list(ours["state"][index]) == list(state)
        for k, v in state.items():
            mine = ours["state"][index][k]
            assert str(mine.dtype) == str(v.dtype) and tuple(mine.shape) == tuple(v.shape)
            np.testing.assert_allclose(mine.numpy(), v.numpy(), rtol * 10, rtol)


def _to_ours(value):
    if isinstance(value, torch.Tensor):
        return dt.tensor(value.numpy())
    if isinstance(value, dict):
        return {k: _to_ours(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_to_ours(v) for v in value]
    return value


@pytest.mark.parametrize("name, options", CASES)
def test_pytorchs_state_continues_here(name, options):
    """Ten steps there, their state dicts loaded here, ten more: as twenty there."""
    expected, _, _ = train(torch, tnn, toptim, name, options, "float64")
    _, tm, toptimizer = train(torch, tnn, toptim, name, options, "float64", steps=10)
    losses, _, _ = train(
        dt, nn, optim, name, options, "float64", start=10,
        state=_to_ours(toptimizer.state_dict()), weights=values(tm.state_dict()),
    )
    np.testing.assert_allclose(losses, expected[10:], 1e-9)


@pytest.mark.parametrize("name, options", CASES[:2] + CASES[5:8])
def test_complex_parameters(name, options):
    rng = np.random.default_rng(1)
    start = rng.normal(size=(3, 4)) + 1j * rng.normal(size=(3, 4))
    grads = [rng.normal(size=(3, 4)) + 1j * rng.normal(size=(3, 4)) for _ in range(5)]
    results = []
    for package, module, optimizers in ((dt, nn, optim), (torch, tnn, toptim)):
        p = module.Parameter(package.tensor(start.copy()))
        optimizer = getattr(optimizers, name)([p], lr=0.1, **options)
        for g in grads:
            p.grad = package.tensor(g.copy())
            optimizer.step()
        results.append(p.detach().numpy())
    np.testing.assert_allclose(*results, 1e-9)


def matrices(package, module, optimizers, options, steps, dtype="float32", state=None):
    rng = np.random.default_rng(2)
    start = [rng.uniform(-1, 1, s).astype(dtype) for s in ((6, 4), (3, 5))]
    params = [module.Parameter(package.tensor(a)) for a in start]
    optimizer = optimizers.Muon(params, lr=0.05, **options)
    if state is not None:
        for p, values in zip(params, state[1]):
            p.data.copy_(package.tensor(values))
        optimizer.load_state_dict(state[0])
    for i in range(steps):
        for p, a in zip(params, start):
            p.grad = package.tensor(np.cos(a * (i + 1)).astype(dtype))
        optimizer.step()
    return [p.detach().numpy().copy() for p in params], optimizer


MUON = [
    {}, {"nesterov": False, "momentum": 0.5}, {"adjust_lr_fn": "match_rms_adamw", "ns_steps": 3},
    {"weight_decay": 0.0, "ns_coefficients": (3.0, -3.0, 1.0)},
]


@pytest.mark.parametrize("options", MUON, ids=str)
def test_muon(options):
    """Both iterate in bfloat16, 8 bits: an update is right to about 1 %."""
    ours, mine = matrices(dt, nn, optim, options, 20)
    theirs, other = matrices(torch, tnn, toptim, options, 20)
    for a, b in zip(ours, theirs):
        np.testing.assert_allclose(a, b, 0.02, 0.02)
    assert repr(mine) == repr(other)
    a, b = mine.state_dict()["state"][0], other.state_dict()["state"][0]
    assert list(a) == list(b)
    np.testing.assert_allclose(a["momentum_buffer"].numpy(), b["momentum_buffer"].numpy(), 1e-5,
                               1e-6)
    again, _ = matrices(dt, nn, optim, options, 1, state=(_to_ours(other.state_dict()), theirs))
    expected, _ = matrices(torch, tnn, toptim, options, 1, state=(other.state_dict(), theirs))
    np.testing.assert_allclose(again[0], expected[0], 0.02, 0.02)


def rosenbrock(package, module, optimizers, options, steps, dtype, state=None, start=None):
    x = module.Parameter(package.tensor([-1.2, 1.0], dtype=getattr(package, dtype)))
    y = module.Parameter(package.tensor(0.5, dtype=getattr(package, dtype)))
    if start is not None:
        x.data, y.data = (package.tensor(a) for a in start)
    optimizer = optimizers.LBFGS([x, y], **options)
    if state is not None:
        optimizer.load_state_dict(state)
    losses = []

    def closure():
        optimizer.zero_grad()
        loss = (1 - x[0]) ** 2 + 10 * (x[1] - x[0] ** 2) ** 2 + (y - x[0]) ** 4
        loss.backward()
        losses.append(loss.item())
        return loss

    for _ in range(steps):
        optimizer.step(closure)
    return losses, optimizer, [x.detach().numpy(), y.detach().numpy()]


LBFGS = [
    {"lr": 0.02}, {"lr": 0.1, "max_iter": 4, "history_size": 2},
    {"line_search_fn": "strong_wolfe"}, {"line_search_fn": "strong_wolfe", "max_iter": 3},
    {"line_search_fn": "strong_wolfe", "lr": 0.1, "max_eval": 5},
]


@pytest.mark.parametrize("dtype, rtol", [("float64", 1e-6), ("float32", 2e-2)])
@pytest.mark.parametrize("options", LBFGS, ids=str)
def test_lbfgs(options, dtype, rtol):
    steps = 4 if dtype == "float64" else 1
    ours, mine, _ = rosenbrock(dt, nn, optim, options, steps, dtype)
    theirs, other, at = rosenbrock(torch, tnn, toptim, options, steps, dtype)
    assert len(ours) == len(theirs) and ours[-1] < ours[0]
    np.testing.assert_allclose(ours, theirs, rtol, rtol * 1e-3)
    a, b = mine.state_dict()["state"][0], other.state_dict()["state"][0]
    assert set(a) == set(b) and a["n_iter"] == b["n_iter"] and a["func_evals"] == b["func_evals"]
    assert len(a["old_dirs"]) == len(b["old_dirs"])
    if dtype == "float64":
        state = _to_ours(other.state_dict())
        ours, _, _ = rosenbrock(dt, nn, optim, options, 1, dtype, state, at)
        theirs, _, _ = rosenbrock(torch, tnn, toptim, options, 1, dtype, other.state_dict(), at)
        np.testing.assert_allclose(ours, theirs, rtol, 1e-12)


@pytest.mark.parametrize("options", [{}, {"maximize": True, "betas": (0.5, 0.6), "eps": 1e-3}])
def test_sparse_adam(options):
    """Embedding rows: ours with dense gradients, PyTorch's with sparse ones."""
    rows = [[0, 2], [2, 5, 2], [1], [0, 5]]
    results = []
    for package, module, optimizers in ((dt, nn, optim), (torch, tnn, toptim)):
        weight = package.tensor(np.random.default_rng(0).normal(size=(6, 3)))
        table = module.Embedding.from_pretrained(weight, freeze=False, sparse=package is torch)
        optimizer = optimizers.SparseAdam(list(table.parameters()), lr=0.1, **options)
        for picked in rows:
            optimizer.zero_grad()
            (table(package.tensor(picked)) ** 2).sum().backward()
            optimizer.step()
        state = optimizer.state_dict()["state"][0]
        results.append((table.weight.detach().numpy(), state["exp_avg_sq"].numpy(), state["step"]))
    np.testing.assert_allclose(results[0][0], results[1][0], 1e-9)
    np.testing.assert_allclose(results[0][1], results[1][1], 1e-9)
    assert results[0][2] == results[1][2]


AVERAGES = {
    "swa": lambda u: {}, "ema": lambda u: {"avg_fn": u.get_ema_avg_fn(0.9)},
    "multi_ema": lambda u: {"multi_avg_fn": u.get_ema_multi_avg_fn(0.9)},
    "multi_swa": lambda u: {"multi_avg_fn": u.get_swa_multi_avg_fn(), "use_buffers": True},
}


@pytest.mark.parametrize("kind", AVERAGES)
def test_averaged_model(kind):
    results = []
    for package, module, optimizers in ((dt, nn, optim), (torch, tnn, toptim)):
        weights, _, _ = problem()
        m = build(package, module, "float64", weights)
        m.register_buffer("seen", package.tensor([1.0, 2.0], dtype=package.float64))
        average = optimizers.swa_utils.AveragedModel(m, **AVERAGES[kind](optimizers.swa_utils))
        for i in range(5):
            for p in m.parameters():
                p.data.mul_(1.1)
            m.seen.add_(i)
            average.update_parameters(m)
        results.append({k: v.numpy() for k, v in average.state_dict().items()})
        x = package.ones(2, 5, dtype=package.float64)
        results[-1]["out"] = average(x).detach().numpy()
    assert list(results[0]) == list(results[1])
    for k, v in results[1].items():
        np.testing.assert_allclose(results[0][k], v, 1e-9, err_msg=k)


@pytest.mark.parametrize("strategy", ["cos", "linear"])
@pytest.mark.parametrize("epochs", [0, 6])
def test_swa_rates(strategy, epochs):
    def make(u):
        return lambda o, s: u.SWALR(o, [0.05, 0.01], epochs, strategy)

    ours, mine, _ = rates(dt, nn, optim, sched, make(optim.swa_utils), "SGD", 12)
    theirs, other, _ = rates(torch, tnn, toptim, tsched, make(toptim.swa_utils), "SGD", 12)
    np.testing.assert_allclose(ours, theirs, 1e-11, 1e-16)
    assert set(mine.state_dict()) == set(other.state_dict())


@pytest.mark.skipif(not hasattr(nn, "BatchNorm1d"), reason="needs batch normalisation")
def test_update_bn():
    data = np.random.default_rng(1).normal(2, 3, (4, 8, 3)).astype("float32")
    results = []
    for package, module, optimizers in ((dt, nn, optim), (torch, tnn, toptim)):
        m = module.Sequential(module.BatchNorm1d(3))
        m.eval()
        batches = [(package.tensor(x), 0) for x in data]
        optimizers.swa_utils.update_bn(batches, m)
        assert not m.training and m[0].momentum == 0.1
        results.append([m[0].running_mean.numpy(), m[0].running_var.numpy()])
    np.testing.assert_allclose(*results, 1e-5)


ERRORS = {
    "muon_1d": lambda o, p, q: o.Muon([p]),
    "muon_lr": lambda o, p, q: o.Muon([p], lr=-1.0),
    "muon_adjust": lambda o, p, q: o.Muon([p], adjust_lr_fn="x"),
    "adafactor_d": lambda o, p, q: o.Adafactor([p], d=0.5),
    "adafactor_decay": lambda o, p, q: o.Adafactor([p], beta2_decay=0.5),
    "adadelta_rho": lambda o, p, q: o.Adadelta([p], rho=2.0),
    "rprop_etas": lambda o, p, q: o.Rprop([p], etas=(2.0, 3.0)),
    "nadam_decay": lambda o, p, q: o.NAdam([p], momentum_decay=-1),
    "sparse_lr": lambda o, p, q: o.SparseAdam([p], lr=0.0),
    "lbfgs_groups": lambda o, p, q: o.LBFGS([{"params": [p]}, {"params": [q]}]),
    "ema_decay": lambda o, p, q: o.swa_utils.get_ema_avg_fn(2.0),
    "swa_strategy": lambda o, p, q: o.swa_utils.SWALR(o.SGD([p]), 0.1, anneal_strategy="x"),
    "tensor": lambda o, p, q: o.SGD(p),
    "empty": lambda o, p, q: o.SGD([]),
    "lr": lambda o, p, q: o.SGD([p], lr=-1),
    "int": lambda o, p, q: o.SGD([3]),
    "non_leaf": lambda o, p, q: o.SGD([p * 2]),
    "twice": lambda o, p, q: o.SGD([{"params": [p]}, {"params": [p]}]),
    "momentum": lambda o, p, q: o.SGD([p], momentum=-1),
    "nesterov": lambda o, p, q: o.SGD([p], nesterov=True),
    "beta": lambda o, p, q: o.Adam([p], betas=(1, 2)),
    "eps": lambda o, p, q: o.Adam([p], eps=-1),
    "fused": lambda o, p, q: o.Adam([p], fused=True, foreach=True),
    "alpha": lambda o, p, q: o.RMSprop([p], alpha=-1),
    "lr_decay": lambda o, p, q: o.Adagrad([p], lr_decay=-1),
    "load_size": lambda o, p, q: o.SGD([p]).load_state_dict(o.SGD([p, q]).state_dict()),
    "load_groups": lambda o, p, q: o.SGD([p]).load_state_dict(
        o.SGD([{"params": [p]}, {"params": [q]}]).state_dict()
    ),
    "group_type": lambda o, p, q: o.SGD([p]).add_param_group(3),
    "group_set": lambda o, p, q: o.SGD([p]).add_param_group({"params": {p}}),
    "names": lambda o, p, q: o.SGD([("a", p), q]),
    "no_optimizer": lambda o, p, q: o.lr_scheduler.StepLR(3, 2),
    "lambdas": lambda o, p, q: o.lr_scheduler.LambdaLR(o.SGD([p]), [abs, abs]),
    "one_cycle": lambda o, p, q: o.lr_scheduler.OneCycleLR(o.SGD([p], momentum=0.9), 0.1),
    "cyclic": lambda o, p, q: o.lr_scheduler.CyclicLR(o.Adagrad([p]), 0.1, 0.2),
    "T_0": lambda o, p, q: o.lr_scheduler.CosineAnnealingWarmRestarts(o.SGD([p]), 0),
    "factor": lambda o, p, q: o.lr_scheduler.ConstantLR(o.SGD([p]), 2.0),
    "plateau": lambda o, p, q: o.lr_scheduler.ReduceLROnPlateau(o.SGD([p]), factor=1.0),
    "milestones": lambda o, p, q: o.lr_scheduler.SequentialLR(
        s := o.SGD([p]), [o.lr_scheduler.ConstantLR(s)], [1]
    ),
    "chained": lambda o, p, q: o.lr_scheduler.ChainedScheduler([]),
}


@pytest.mark.parametrize("name", ERRORS)
def test_error_type_and_text(name):
    texts = []
    for package, module, optimizers in ((dt, nn, optim), (torch, tnn, toptim)):
        p, q = (module.Parameter(package.ones(2)) for _ in range(2))
        with pytest.raises(Exception) as caught:
            ERRORS[name](optimizers, p, q)
        texts.append((caught.type.__name__, str(caught.value)))
    assert texts[0] == texts[1]


SCHEDULES = {
    "lambda": lambda o, s: s.LambdaLR(o, lambda e: 0.9**e),
    "lambdas": lambda o, s: s.LambdaLR(o, [lambda e: 1 / (e + 1), lambda e: e + 1.0]),
    "multiplicative": lambda o, s: s.MultiplicativeLR(o, lambda e: 0.95),
    "step": lambda o, s: s.StepLR(o, 4, 0.5),
    "multistep": lambda o, s: s.MultiStepLR(o, [3, 7, 7, 12], 0.3),
    "constant": lambda o, s: s.ConstantLR(o, 0.25, 6),
    "linear": lambda o, s: s.LinearLR(o, 0.1, 0.8, 9),
    "exponential": lambda o, s: s.ExponentialLR(o, 0.9),
    "polynomial": lambda o, s: s.PolynomialLR(o, 15, 2.0),
    "cosine": lambda o, s: s.CosineAnnealingLR(o, 7, 0.001),
    "restarts": lambda o, s: s.CosineAnnealingWarmRestarts(o, 5),
    "restarts_mult": lambda o, s: s.CosineAnnealingWarmRestarts(o, 3, 2, 0.002),
    "one_cycle": lambda o, s: s.OneCycleLR(o, 0.5, total_steps=40),
    "one_cycle_linear": lambda o, s: s.OneCycleLR(
        o, [0.5, 0.2], epochs=4, steps_per_epoch=10, anneal_strategy="linear", three_phase=True
    ),
    "cyclic": lambda o, s: s.CyclicLR(o, 0.01, 0.1, 5),
    "cyclic2": lambda o, s: s.CyclicLR(o, 0.01, 0.1, 4, 7, mode="triangular2"),
    "cyclic_exp": lambda o, s: s.CyclicLR(o, 0.01, 0.1, 4, mode="exp_range", gamma=0.95),
    "cyclic_fn": lambda o, s: s.CyclicLR(o, 0.01, 0.1, 4, scale_fn=lambda x: 1 / (5**x * 0.1)),
    "sequential": lambda o, s: s.SequentialLR(
        o, [s.ConstantLR(o, 0.1, 3), s.ExponentialLR(o, 0.9), s.StepLR(o, 2)], [4, 11]
    ),
    "warmup_cosine": lambda o, s: s.SequentialLR(
        o, [s.LinearLR(o, 0.01, 1.0, 5), s.CosineAnnealingLR(o, 20)], [5]
    ),
    "chained": lambda o, s: s.ChainedScheduler([s.ConstantLR(o, 0.1, 3), s.ExponentialLR(o, 0.9)]),
}
PLATEAUS = {
    "min": {"patience": 2, "factor": 0.5}, "cooldown": {"patience": 1, "cooldown": 3},
    "max": {"mode": "max", "patience": 3, "threshold": 0.1},
    "abs": {"threshold_mode": "abs", "threshold": 0.05, "patience": 2, "min_lr": 1e-3},
    "max_abs": {"mode": "max", "threshold_mode": "abs", "patience": 1, "min_lr": [1e-2, 1e-4]},
}


def two_groups(package, module, optimizers, name):
    p, q = (module.Parameter(package.ones(2)) for _ in range(2))
    p.grad, q.grad = package.ones(2), package.ones(2)
    options = {"momentum": 0.9} if name == "SGD" else {}
    return getattr(optimizers, name)([{"params": [p]}, {"params": [q], "lr": 0.3}], lr=0.1,
                                     **options)


def rates(package, module, optimizers, schedules, make, name, steps=30, state=None):
    optimizer = two_groups(package, module, optimizers, name)
    scheduler = make(optimizer, schedules)
    seen = []
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        seen.append([g["lr"] for g in optimizer.param_groups] + list(scheduler.get_last_lr()))
        seen[-1] += [g.get("momentum", g.get("betas", [0])) for g in optimizer.param_groups]
    return [list(map(float, itertools.chain(*([x] if np.isscalar(x) else x for x in row))))
            for row in seen], scheduler, optimizer


@pytest.mark.filterwarnings("ignore:The epoch parameter")
@pytest.mark.parametrize("name", ["SGD", "Adam"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_learning_rates(schedule, name):
    make = SCHEDULES[schedule]
    ours, mine, _ = rates(dt, nn, optim, sched, make, name)
    theirs, other, _ = rates(torch, tnn, toptim, tsched, make, name)
    np.testing.assert_allclose(ours, theirs, 1e-11, 1e-16)
    a, b = mine.state_dict(), other.state_dict()
    assert set(a) == set(b)
    for key, value in b.items():
        if isinstance(value, (int, bool, str)):
            assert a[key] == value, key


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedule_resumes_from_state_dict(schedule):
    make = SCHEDULES[schedule]
    whole, _, _ = rates(dt, nn, optim, sched, make, "SGD", 25)
    _, first, optimizer = rates(dt, nn, optim, sched, make, "SGD", 10)
    again = two_groups(dt, nn, optim, "SGD")
    scheduler = make(again, sched)
    scheduler.load_state_dict(first.state_dict())
    again.load_state_dict(optimizer.state_dict())
    for row in whole[10:]:
        again.step()
        scheduler.step()
        np.testing.assert_allclose([g["lr"] for g in again.param_groups], row[:2], 1e-12)


@pytest.mark.parametrize("options", PLATEAUS.values(), ids=PLATEAUS)
def test_plateau(options):
    metrics = [1.0, 0.9, 0.95, 0.9, 0.9, 0.89, 0.89, 0.89, 0.5, 0.6, 0.6, 0.61, 0.7, 0.7, 0.7, 0.9]
    results = []
    for args in ((dt, nn, optim, sched), (torch, tnn, toptim, tsched)):
        optimizer = two_groups(*args[:3], "SGD")
        scheduler = args[3].ReduceLROnPlateau(optimizer, **options)
        seen = []
        for m in metrics * 2:
            scheduler.step(m)
            seen.append([g["lr"] for g in optimizer.param_groups])
        results.append((seen, scheduler.state_dict()))
    np.testing.assert_allclose(results[0][0], results[1][0], 1e-12)
    assert results[0][1] == results[1][1]
    assert not math.isclose(results[0][0][0][0], results[0][0][-1][0])


def test_signatures():
    own = ("Optimizer", "MasterWeights")  # the base takes anything; the other is not PyTorch's
    for name in (n for n in optim.__all__ if n[0].isupper() and n not in own):
        ours, theirs = (inspect.signature(getattr(o, name)) for o in (optim, toptim))
        assert [(p.name, p.default, p.kind) for p in ours.parameters.values()] == [
            (p.name, p.default, p.kind) for p in theirs.parameters.values()
        ], name
    for name in sched.__all__:
        ours, theirs = (inspect.signature(getattr(o, name)) for o in (sched, tsched))
        assert [(p.name, p.default) for p in ours.parameters.values()] == [
            (p.name, p.default) for p in theirs.parameters.values()
        ], name
