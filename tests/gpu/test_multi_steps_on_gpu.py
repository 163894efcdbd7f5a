"""Steps of optimizers on a GPU: counted on the device, in graphs, repeated while nothing changes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from gpu import optimized
from gpu.optimized import give_gradients, host, pairs

import disttorch as torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device, or no CuPy"),
]
SHAPES = (*optimized.SHAPES[:-1], (4100,))
CAPTURABLE = [
    ("Adam", {"weight_decay": 0.1, "amsgrad": True}), ("AdamW", {}), ("Adamax", {"weight_decay": 0.1}),
    ("NAdam", {}), ("NAdam", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("RAdam", {"betas": (0.5, 0.6)}), ("RAdam", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("Adadelta", {"weight_decay": 0.1}), ("RMSprop", {"centered": True, "momentum": 0.9}),
    ("Rprop", {}), ("ASGD", {"t0": 2, "lambd": 0.1}),
]  # fmt: skip
NAMES = [f"{name}-{i}" for i, (name, _) in enumerate(CAPTURABLE)]


def close(mine, theirs, rtol=2e-6, atol=1e-7):
    for p, q in zip(mine, theirs):
        np.testing.assert_allclose(host(q), host(p), rtol=rtol, atol=atol)


@pytest.mark.parametrize("name, options", CAPTURABLE, ids=NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_replays_of_a_captured_step_are_eager_steps(name, options, dtype):
    mine, theirs = pairs(dtype, SHAPES[:5])
    a = getattr(torch.optim, name)(mine, lr=0.01, **options)
    lr = torch.tensor(0.01, dtype=torch.float64, device="cuda") if name == "AdamW" else 0.01
    b = getattr(torch.optim, name)(theirs, lr=lr, capturable=True, **options)
    give_gradients(mine, theirs, 0)
    for _ in range(2):
        a.step()
        b.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        b.step()
    for _ in range(3):
        graph.replay()
        a.step()
    state = b.state[theirs[0]]
    assert state["step"].is_cuda and state["step"].item() == 5
    near = {"rtol": 1e-5, "atol": 1e-6}  # counts and rates are float32 on the device
    close(mine, theirs, **near)
    for p, q in zip(mine, theirs):
        for key, value in a.state[p].items():
            np.testing.assert_allclose(host(b.state[q][key]), host(value), err_msg=key, **near)


@pytest.mark.parametrize("name, options", CAPTURABLE, ids=NAMES)
def test_counts_go_from_the_device_to_the_host_and_back(name, options):
    mine, theirs = pairs(shapes=SHAPES)
    a = getattr(torch.optim, name)(mine, lr=0.01, **options)
    b = getattr(torch.optim, name)(theirs, lr=0.01, capturable=True, **options)
    for step, captures in enumerate((True, True, False, True)):
        give_gradients(mine, theirs, step)
        b.param_groups[0]["capturable"] = captures
        a.step()
        b.step()
        assert b.state[theirs[0]]["step"].is_cuda == captures
    assert b.state[theirs[0]]["step"].item() == 4
    close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["Rprop", "ASGD"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_rprop_and_averages(name, dtype):
    mine, theirs = pairs(dtype, SHAPES)
    options = {"t0": 1, "weight_decay": 0.1} if name == "ASGD" else {}
    a, b = (getattr(torch.optim, name)(p, lr=0.01, maximize=True, **options) for p in (mine, theirs))
    for step in range(4):
        give_gradients(mine, theirs, step)
        if step == 2:
            mine[0].grad[0, 0] = theirs[0].grad[0, 0] = 0.0
        a.step()
        b.step()
    for p, q in zip(mine, theirs):
        np.testing.assert_array_equal(host(q), host(p))


# ---------------------------------------------------------------- what is put together once
def plans(optimizer) -> int:
    return len(optimizer._repeated)


@pytest.mark.parametrize("options", [{}, {"fused": True}], ids=["host", "device"])
def test_a_repeated_step_sees_what_has_changed(options):
    mine, theirs = pairs(shapes=SHAPES)
    a, b = torch.optim.AdamW(mine, lr=0.01), torch.optim.AdamW(theirs, lr=0.01, **options)

    def both(seed, leave_out=()):
        give_gradients(mine, theirs, seed, leave_out)
        version = theirs[0]._version
        a.step()
        b.step()
        close(mine, theirs)
        assert (theirs[0]._version > version) == (0 not in leave_out)

    both(0)
    assert plans(b) == 1
    first = b._repeated[0]
    both(1)
    assert b._repeated[0] is first
    for o in (a, b):  # options
        o.param_groups[0].update({"lr": 0.02, "weight_decay": 0.3, "betas": (0.8, 0.9)})
    both(2)
    assert b._repeated[0] is first
    both(3, leave_out=(0, 4))  # fewer gradients: counts differ from here on
    assert b._repeated[0] is not first
    both(4)
    theirs[4].data = theirs[4].data.clone()  # another array
    both(5)
    b.state[theirs[0]]["exp_avg"] = b.state[theirs[0]]["exp_avg"].clone()
    both(6)
    for o, p in ((a, mine[1]), (b, theirs[1])):
        del o.state[p]
    both(7)
    b.load_state_dict(copy.deepcopy(b.state_dict()))
    assert plans(b) == 0
    both(8)
    for o, some in ((a, mine), (b, theirs)):
        o.param_groups[0]["params"] = some[:3]
    both(9)
    for o in (a, b):
        o.param_groups[0]["amsgrad"] = True
        o.state.clear()
    both(10)
    b = copy.deepcopy(b)
    assert plans(b) == 0


@pytest.mark.parametrize("options", [{}, {"fused": True}], ids=["host", "device"])
def test_what_is_put_together_keeps_no_gradient(options):
    p = torch.ones(1 << 16, device="cuda", requires_grad=True)
    b = torch.optim.AdamW([p], lr=0.01, **options)
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        p.grad = torch.ones_like(p)
        b.step()
        b.zero_grad()
        more = torch.cuda.memory_allocated() - before
        assert 8 * p.numel() <= more < 9 * p.numel()  # the two states
    assert plans(b) == 1


def test_repeated_steps_of_strided_gradients_and_parameters():
    mine, theirs = pairs(shapes=((4, 6), (5,)))
    a, b = torch.optim.AdamW(mine, lr=0.01), torch.optim.AdamW(theirs, lr=0.01, fused=True)
    for step in range(5):
        give_gradients(mine, theirs, step)
        if step in (1, 3):  # the elements of the gradient lie in another order
            theirs[0].grad = theirs[0].grad.t().contiguous().t()
        a.step()
        b.step()
        close(mine, theirs)
    wide = torch.zeros(6, 8, device="cuda")
    p, q = torch.ones(6, 4, requires_grad=True), wide[:, ::2].detach().fill_(1).requires_grad_()
    a, b = torch.optim.NAdam([p], lr=0.1), torch.optim.NAdam([q], lr=0.1, capturable=True)
    for step in range(3):
        give_gradients([p], [q], step)
        a.step()
        b.step()
        close([p], [q])
    assert not wide[:, 1::2].any()


def test_momentum_that_starts_with_dampening_and_steps_without_state():
    for options in ({"momentum": 0.9, "dampening": 0.5}, {}):
        mine, theirs = pairs(shapes=SHAPES)
        a, b = (torch.optim.SGD(p, lr=0.1, **options) for p in (mine, theirs))
        for step in range(3):
            give_gradients(mine, theirs, step)
            a.step()
            b.step()
        for p, q in zip(mine, theirs):
            np.testing.assert_array_equal(host(q), host(p))
        assert plans(b) == 1


def test_types_without_a_kernel_are_refused_where_they_cannot_count():
    p = torch.ones(3, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    b = torch.optim.NAdam([p], lr=0.1, capturable=True)
    p.grad = torch.ones_like(p)
    b.step()
    state = b.state[p]
    state["exp_avg"], state["exp_avg_sq"] = state["exp_avg"].float(), state["exp_avg_sq"].float()
    with pytest.raises(TypeError, match="cannot count steps on the GPU.*bfloat16, bfloat16, float32"):
        b.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_tensors_that_are_not_aligned(dtype):
    mine, whole = [], []
    for n in (5, 1030, 3 * 1024 + 7):
        drawn = torch.tensor(np.random.default_rng(n).standard_normal(n + 1)).to(dtype)
        mine.append(drawn[1:].clone().requires_grad_())
        whole.append(drawn.cuda())
    theirs = [w[1:].detach().requires_grad_() for w in whole]
    give_gradients(mine, theirs, 0)
    a, b = (torch.optim.AdamW(p, lr=0.01, weight_decay=0.1) for p in (mine, theirs))
    for _ in range(2):
        a.step()
        b.step()
    for p, q in zip(mine, theirs):
        np.testing.assert_array_equal(host(q), host(p))
    for order in (2.0, float("inf"), 3.0):  # an address changes no bit of a norm
        norms = [torch.nn.utils.get_total_norm(ts, order).item()
                 for ts in ([t.detach() for t in theirs], [t.detach().clone() for t in theirs])]
        assert norms[0] == norms[1]
    torch.nn.utils.clip_grad_value_(theirs, 0.1)
    for p, q in zip(mine, theirs):
        np.testing.assert_array_equal(host(q.grad), host(p.grad.clamp(-0.1, 0.1)))
