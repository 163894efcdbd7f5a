"""Random numbers: their distributions, states and errors."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import disttorch as torch

N = 40_000


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(1234)


def moments(t, mean, std, tolerance=4.0):
    """Mean and deviation within ``tolerance`` standard errors (fixed seed: no chance failures)."""
    a = t.double().numpy().reshape(-1)
    error = std / np.sqrt(a.size)
    assert abs(a.mean() - mean) < tolerance * error, (a.mean(), mean)
    assert abs(a.std() - std) < 0.03 * std, (a.std(), std)


@pytest.mark.parametrize(("draw", "mean", "std"), [
    (lambda: torch.rand(N), 0.5, 12**-0.5),
    (lambda: torch.randn(N), 0, 1),
    (lambda: torch.randn(N, dtype=torch.float64), 0, 1),
    (lambda: torch.randn(N, dtype=torch.bfloat16), 0, 1),
    (lambda: torch.rand(N, dtype=torch.float16), 0.5, 12**-0.5),
    (lambda: torch.randint(3, 9, (N,)), 5.5, (35 / 12) ** 0.5),
    (lambda: torch.empty(N).uniform_(-2, 4), 1, 6 * 12**-0.5),
    (lambda: torch.empty(N).normal_(3, 0.5), 3, 0.5),
    (lambda: torch.normal(2.0, 3.0, (N,)), 2, 3),
    (lambda: torch.normal(torch.full((N,), 2.0), 3.0), 2, 3),
    (lambda: torch.normal(1.0, torch.full((N,), 2.0)), 1, 2),
    (lambda: torch.empty(N).exponential_(2.0), 0.5, 0.5),
    (lambda: torch.empty(N).geometric_(0.25), 4, 12**0.5),
    (lambda: torch.empty(N).log_normal_(0.0, 0.25), np.exp(1 / 32),
     np.sqrt(np.exp(1 / 16) * (np.exp(1 / 16) - 1))),
    (lambda: torch.poisson(torch.full((N,), 3.0)), 3, 3**0.5),
    (lambda: torch.binomial(torch.full((N,), 10.0), torch.full((N,), 0.3)), 3, 2.1**0.5),
    (lambda: torch.bernoulli(torch.full((N,), 0.2)), 0.2, 0.4),
    (lambda: torch.empty(N).bernoulli_(0.2), 0.2, 0.4),
    (lambda: torch.empty(N, dtype=torch.int64).random_(0, 4), 1.5, 1.25**0.5),
    (lambda: torch.rand_like(torch.empty(N)), 0.5, 12**-0.5),
    (lambda: torch.randn_like(torch.empty(N)), 0, 1),
    (lambda: torch.randint_like(torch.empty(N), 0, 4), 1.5, 1.25**0.5),
    (lambda: torch.multinomial(torch.tensor([1.0, 2.0, 1.0]), N, replacement=True), 1, 0.5**0.5),
    (lambda: torch.randn(N, dtype=torch.complex128).real, 0, 0.5**0.5),
])
def test_moments(draw, mean, std):
    moments(draw(), mean, std)


def test_cauchy_by_quartiles():
    a = torch.empty(N).cauchy_(1.0, 2.0).numpy()
    np.testing.assert_allclose(np.quantile(a, [0.25, 0.5, 0.75]), [-1, 1, 3], atol=0.1)


def test_ranges_are_half_open():
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        a = torch.rand(20000, dtype=dtype).float().numpy()
        assert a.min() >= 0 and a.max() < 1
    assert set(torch.randint(2, (200,)).tolist()) == {0, 1}
    assert torch.empty(500).random_(3).max().item() == 2
    assert torch.empty(500, dtype=torch.bool).random_().any()
    assert torch.empty(500, dtype=torch.uint8).random_().max().item() > 200
    assert torch.empty(2000).geometric_(0.9).min().item() == 1


def test_permutation_and_sampling_without_replacement():
    p = torch.randperm(100)
    assert p.dtype is torch.int64 and sorted(p.tolist()) == list(range(100))
    assert torch.randperm(5, dtype=torch.float32).dtype is torch.float32
    rows = torch.multinomial(torch.rand(50, 6) + 0.1, 6)
    assert all(sorted(r) == list(range(6)) for r in rows.tolist())
    never = torch.multinomial(torch.tensor([0.0, 1.0, 1.0]), 2000, replacement=True)
    assert 0 not in never.tolist()
    first = torch.multinomial(torch.tensor([1.0, 3.0]).expand(8000, 2), 1)
    assert abs(first.double().mean().item() - 0.75) < 0.02


def test_streams_repeat():
    def draws():
        return [torch.rand(3), torch.randn(2), torch.randint(9, (4,)), torch.randperm(5),
                torch.empty(3).exponential_(),
                torch.nn.functional.dropout(torch.ones(9))]

    torch.manual_seed(7)
    first, state = draws(), torch.get_rng_state()
    second = draws()
    torch.manual_seed(7)
    assert all((a == b).all() for a, b in zip(first, draws()))
    torch.set_rng_state(state)
    assert all((a == b).all() for a, b in zip(second, draws()))
    assert not (first[0] == second[0]).all()
    assert torch.initial_seed() == 7


def test_fork_rng():
    state = torch.get_rng_state()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.rand(5)
    assert (torch.get_rng_state() == state).all()
    with torch.random.fork_rng(enabled=False):
        torch.rand(5)
    assert not (torch.get_rng_state() == state).all()


def test_generators_are_streams_of_their_own():
    a, b = torch.Generator(), torch.Generator().manual_seed(3)
    a.manual_seed(3)
    before = torch.get_rng_state()
    assert (torch.rand(4, generator=a) == torch.rand(4, generator=b)).all()
    assert (torch.get_rng_state() == before).all()
    c = a.clone_state()
    again = pickle.loads(pickle.dumps(a))
    twin = copy.deepcopy(a)
    want = torch.randn(3, generator=a)
    for g in (c, again, twin):
        assert (torch.randn(3, generator=g) == want).all()
    assert a.initial_seed() == 3 and a.device == torch.device("cpu")
    assert torch.default_generator is torch.default_generator
    assert torch.default_generator.initial_seed() == 1234
    assert a.seed() != 3


def test_out_and_options():
    out = torch.empty(2, 3)
    assert torch.rand(2, 3, out=out) is out and 0 < out.sum().item() < 6
    assert torch.normal(0.0, 1.0, (2, 3), out=out) is out
    assert torch.randperm(4, out=torch.empty(4, dtype=torch.int64)).sum().item() == 6
    assert torch.rand(size=(2,), requires_grad=True).requires_grad
    assert torch.randn((2, 3), dtype=torch.float64).dtype is torch.float64
    assert torch.randint(low=0, high=5, size=(2, 3)).shape == (2, 3)
    assert torch.rand_like(torch.ones(2, dtype=torch.float64)).dtype is torch.float64
    assert torch.rand(0).shape == (0,) and torch.rand(()).shape == ()


def test_view_and_leaf_rules():
    base = torch.zeros(4, 2)
    base[1:3].uniform_(1, 2)
    assert (base[0] == 0).all() and (base[1:3] >= 1).all()
    leaf = torch.zeros(2, requires_grad=True)
    with pytest.raises(RuntimeError, match="leaf"):
        leaf.normal_()
    with torch.no_grad():
        leaf.normal_()
    w = torch.ones(2, requires_grad=True)
    x = w * 1
    x[:1].uniform_()
    (x * 2).sum().backward()
    assert w.grad.tolist() == [0, 2]


@pytest.mark.parametrize(("call", "words"), [
    (lambda: torch.randint(5, 5, (2,)), "to be less than 'to'"),
    (lambda: torch.randint(0, 300, (2,), dtype=torch.uint8), "to - 1 is out of bounds"),
    (lambda: torch.rand(2, dtype=torch.int64), "not implemented"),
    (lambda: torch.randperm(-1), "non-negative"),
    (lambda: torch.normal(0.0, -1.0, (2,)), "std >= 0"),
    (lambda: torch.normal(torch.zeros(2), -torch.ones(2)), "std >= 0"),
    (lambda: torch.empty(2).uniform_(2, 1), "from=2 > to=1"),
    (lambda: torch.empty(2).exponential_(0), "lambda"),
    (lambda: torch.empty(2).geometric_(1.5), "p to be in"),
    (lambda: torch.empty(2).cauchy_(0, -1), "sigma"),
    (lambda: torch.empty(2).log_normal_(0, -1), "std"),
    (lambda: torch.bernoulli(torch.tensor([1.5])), "p_in"),
    (lambda: torch.poisson(torch.tensor([-1.0])), "rate"),
    (lambda: torch.multinomial(torch.tensor([1.0, -1.0]), 1), "element < 0"),
    (lambda: torch.multinomial(torch.tensor([1.0, 1.0]), 3), "without replacement"),
    (lambda: torch.multinomial(torch.tensor([0.0, 0.0]), 1), "sum of probabilities"),
    (lambda: torch.manual_seed(1 << 65), "64 bits"),
    (lambda: torch.set_rng_state(torch.zeros(3, dtype=torch.uint8)), "RNG state"),
])
def test_bad_input(call, words):
    with pytest.raises(RuntimeError, match=words):
        call()
