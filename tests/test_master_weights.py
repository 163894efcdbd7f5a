"""Float32 master weights of 16-bit models: small updates add up, and state survives."""

from __future__ import annotations

import io

import pytest

import disttorch as torch
from disttorch import nn

HALF = [torch.bfloat16, torch.float16]
MAKERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
}


def model(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).to(dtype)


def set_gradients(params, seed):
    torch.manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape).to(torch.bfloat16).to(p.dtype)  # a number that both dtypes have


def test_an_update_below_the_precision_is_not_lost():
    p = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    plain = torch.optim.SGD([p], lr=1e-3)
    p.grad = torch.ones_like(p)
    plain.step()
    assert p.item() == 1.0  # 1 - 0.001 rounds to 1
    kept = torch.optim.MasterWeights(torch.optim.SGD([p], lr=1e-3))
    for _ in range(100):
        p.grad = torch.ones_like(p)
        kept.step()
    assert p.item() == pytest.approx(0.9, abs=0.004)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_masters_go_the_way_of_a_float32_model(dtype, name):
    half = model(dtype)
    wide = model()
    with torch.no_grad():
        for w, h in zip(wide.parameters(), half.parameters()):
            w.copy_(h)
    reference, tested = MAKERS[name](wide.parameters()), torch.optim.MasterWeights(
        MAKERS[name](half.parameters()))
    for seed in range(4):
        set_gradients(wide.parameters(), seed), set_gradients(half.parameters(), seed)
        reference.step(), tested.step()
    masters = tested.inner.param_groups[0]["params"]
    for w, m, h in zip(wide.parameters(), masters, half.parameters(), strict=True):
        assert m.dtype is torch.float32 and m.grad is None and h.grad is not None
        assert torch.equal(w, m) and torch.equal(h, m.to(dtype))


def test_parameters_of_other_dtypes_are_updated_as_they_are():
    half, wide = nn.Parameter(torch.ones(2, dtype=torch.float16)), nn.Parameter(torch.ones(3))
    optimizer = torch.optim.MasterWeights(torch.optim.SGD([half, wide], lr=0.5))
    half.grad, wide.grad = torch.ones_like(half), torch.ones_like(wide)
    optimizer.step()
    assert half.tolist() == [0.5] * 2 and wide.tolist() == [0.5] * 3
    assert optimizer.inner.param_groups[0]["params"][1] is wide
    optimizer.zero_grad()
    assert half.grad is None and wide.grad is None
    optimizer.step()  # nothing has a gradient
    assert half.tolist() == [0.5] * 2


def test_schedulers_groups_and_closures():
    m = model(torch.bfloat16)
    optimizer = torch.optim.MasterWeights(torch.optim.SGD(m[0].parameters(), lr=1.0))
    optimizer.add_param_group({"params": list(m[2].parameters()), "lr": 0.0})
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    before = [p.detach().clone() for p in m.parameters()]
    x = torch.ones(4, 3, dtype=torch.bfloat16)

    def closure():
        optimizer.zero_grad()
        loss = m(x).float().pow(2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() > 0
    schedule.step()
    changed = [not torch.equal(a, b) for a, b in zip(before, m.parameters())]
    assert changed == [True, True, False, False]
    optimizer.step(closure)
    assert [g["lr"] for g in optimizer.inner.param_groups] == [0.5, 0.0]
    assert [len(g["params"]) for g in optimizer.inner.param_groups] == [2, 2]


def test_saved_and_loaded_it_goes_on_with_the_same_bits():
    def begin():
        m = model(torch.bfloat16)
        return m, torch.optim.MasterWeights(MAKERS["adamw"](m.parameters()))

    def go(m, optimizer, seeds):
        for seed in seeds:
            set_gradients(m.parameters(), seed)
            optimizer.step()

    m, optimizer = begin()
    go(m, optimizer, range(3))
    file = io.BytesIO()
    torch.save({"model": m.state_dict(), "optimizer": optimizer.state_dict()}, file)
    go(m, optimizer, range(3, 6))
    other, again = begin()
    file.seek(0)
    saved = torch.load(file)
    other.load_state_dict(saved["model"])
    again.load_state_dict(saved["optimizer"])
    go(other, again, range(3, 6))
    for a, b in zip(optimizer.inner.param_groups[0]["params"], again.inner.param_groups[0]["params"]):
        assert torch.equal(a, b)
    assert all(torch.equal(a, b) for a, b in zip(m.parameters(), other.parameters()))


def test_state_that_was_there_is_taken_along():
    p = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    inner = torch.optim.SGD([p], lr=0.5, momentum=0.5)
    p.grad = torch.ones_like(p)
    inner.step()
    optimizer = torch.optim.MasterWeights(inner)
    optimizer.step()
    assert p.tolist() == [1 - 0.5 - 0.75] * 2


def test_what_cannot_be():
    with pytest.raises(TypeError, match="takes an optimizer, not list"):
        torch.optim.MasterWeights([])
    m = model(torch.bfloat16)
    optimizer = torch.optim.MasterWeights(MAKERS["sgd"](m.parameters()))
    with pytest.raises(ValueError, match="no 'master_weights'"):
        optimizer.load_state_dict(MAKERS["sgd"](m.parameters()).state_dict())
    saved = optimizer.state_dict()
    saved["master_weights"][1] = torch.ones(7)
    with pytest.raises(ValueError, match=r"of shape \(7,\) for parameter 1, which needs .* \(5,\)"):
        optimizer.load_state_dict(saved)
