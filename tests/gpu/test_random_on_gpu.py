"""Random numbers made on the GPU: states, distributions, dropout, and the seam for CUDA graphs."""

from __future__ import annotations

import math

import numpy as np
import pytest

import disttorch as torch
import disttorch.nn.functional as F
from disttorch.ops.random import default_generator

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device, or no CuPy"),
]
TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
N = 20_001


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(1234)


def wide(t):
    return t.detach().cpu().double().numpy()


def distance(sample, cdf):
    """Kolmogorov and Smirnov's statistic times √n: above 1.95 in one of a thousand samples."""
    a = np.sort(sample.reshape(-1))
    f, n = cdf(a), a.size
    return max((np.arange(1, n + 1) / n - f).max(), (f - np.arange(n) / n).max()) * math.sqrt(n)


def normal_cdf(a):
    return np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in a])


@pytest.mark.parametrize("dtype", TYPES)
def test_distributions(dtype):
    u = torch.rand(N, device="cuda", dtype=dtype)
    assert u.is_cuda and u.dtype is dtype and wide(u).min() >= 0 and wide(u).max() < 1
    assert abs(wide(u).mean() - 0.5) < 0.01 and abs(wide(u).std() - 12**-0.5) < 0.01
    z = torch.randn(N, device="cuda", dtype=dtype)
    e = torch.empty(N, device="cuda", dtype=dtype).exponential_()
    assert wide(e).min() > 0
    if dtype in (torch.float32, torch.float64):
        assert distance(wide(u), lambda a: a) < 1.95
        assert distance(wide(z), normal_cdf) < 1.95
        assert distance(wide(e), lambda a: 1 - np.exp(-a)) < 1.95
    else:
        assert abs(wide(z).mean()) < 0.03 and abs(wide(z).std() - 1) < 0.03
        assert abs(wide(e).mean() - 1) < 0.03


def test_integers_masks_permutations_and_choices():
    counts = np.bincount(torch.randint(3, 11, (N,), device="cuda").cpu().numpy(), minlength=11)
    assert counts[:3].sum() == 0 and counts.sum() == N
    assert ((counts[3:] - N / 8) ** 2 / (N / 8)).sum() < 24.3  # chi-square, 7 degrees: 1 in 1000
    big = torch.randint(-(1 << 62), 1 << 62, (999,), device="cuda").cpu().numpy()
    assert (big < 0).mean() > 0.4 and len(set(big.tolist())) == 999
    assert sorted(torch.randperm(501, device="cuda").tolist()) == list(range(501))
    kept = torch.empty(N, device="cuda").bernoulli_(0.2).mean().item()
    assert abs(kept - 0.2) < 0.01
    picked = torch.multinomial(torch.tensor([1.0, 0.0, 3.0], device="cuda"), 2000, replacement=True)
    assert abs((picked == 2).double().mean().item() - 0.75) < 0.05
    assert abs(torch.poisson(torch.full((4000,), 3.0, device="cuda")).mean().item() - 3) < 0.15
    assert torch.rand(0, device="cuda").shape == (0,) and torch.randn((), device="cuda").shape == ()


def test_states():
    g = torch.Generator("cuda").manual_seed(7)
    assert g.initial_seed() == 7 and g.get_state().shape == (16,)
    first = torch.randn(5, generator=g, device="cuda")
    state = g.get_state()
    a = [torch.rand(33, generator=g, device="cuda"), torch.randn(2, 3, generator=g, device="cuda")]
    g.set_state(state)
    b = [torch.rand(33, generator=g, device="cuda"), torch.randn(2, 3, generator=g, device="cuda")]
    assert all(torch.equal(x, y) for x, y in zip(a, b))
    assert torch.equal(first, torch.randn(5, generator=g.manual_seed(7), device="cuda"))
    with pytest.raises(RuntimeError, match="uint8 tensor of 16 bytes"):
        g.set_state(torch.get_rng_state())
    torch.cuda.manual_seed_all(3)
    x = torch.rand(4, device="cuda")
    kept = torch.cuda.get_rng_state()
    y = torch.rand(4, device="cuda")
    torch.cuda.set_rng_state(kept)
    assert torch.equal(y, torch.rand(4, device="cuda"))
    torch.cuda.manual_seed(3)
    assert torch.equal(x, torch.rand(4, device="cuda")) and not torch.equal(x, y)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(4001,), (3, 8), (), (0,)])
def test_dropout(dtype, shape):
    x = (torch.rand(shape, dtype=torch.float64) + 0.5).to(dtype).cuda().requires_grad_()
    out = F.dropout(x, 0.3)
    assert out.dtype is dtype
    kept = wide(out) != 0
    computed = torch.float64 if dtype is torch.float64 else torch.float32
    scale = 1 / 0.7 if dtype is torch.float64 else float(np.float32(1 / 0.7))
    want = x.detach().cpu().to(computed) * scale
    np.testing.assert_array_equal(wide(out), np.where(kept, wide(want.to(dtype)), 0))
    if shape == (4001,):
        assert abs(kept.mean() - 0.7) < 0.03
    g = torch.ones(shape, dtype=dtype, device="cuda") * 3
    out.backward(g)
    want = torch.tensor(3.0 * scale, dtype=computed)
    np.testing.assert_allclose(wide(x.grad), np.where(kept, wide(want.to(dtype)), 0), rtol=1e-6)


def test_dropout_of_a_view_that_is_not_aligned():
    x = torch.ones(1003, device="cuda")
    torch.manual_seed(2)
    a = F.dropout(x[1:], 0.5)
    torch.manual_seed(2)
    b = F.dropout(x[:-1], 0.5)
    assert torch.equal(a, b)


def test_draws_of_a_graph_are_those_of_eager_calls():
    source = default_generator(torch.device("cuda")).source
    torch.manual_seed(11)
    torch.rand(5, device="cuda")
    eager = [torch.rand(9, device="cuda"), torch.randn(3, device="cuda"), torch.rand(9, device="cuda")]
    torch.manual_seed(11)
    torch.rand(5, device="cuda")
    capture = source.begin_capture()
    source.random((9,), np.dtype("float32"))
    inner = source.get_state()
    source.standard_normal((3,), np.dtype("float32"))
    source.set_state(inner)  # as activation checkpointing does
    source.standard_normal((3,), np.dtype("float32"))
    with pytest.raises(RuntimeError, match="seed"):
        source.manual_seed(1)
    source.end_capture()
    assert capture.used == 4
    source.before_replay(capture)
    state = [int(v) for v in source.namespace.to_host(capture.state)]
    assert state == [11, 2]
    assert torch.equal(torch.rand(9, device="cuda"), eager[2])
