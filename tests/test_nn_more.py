"""Recurrent layers, attention, parametrizations and pruning: what holds without PyTorch."""

from __future__ import annotations

import copy
import pickle
import tracemalloc

import numpy as np
import pytest

import disttorch as torch
from disttorch import nn
from disttorch.nn.utils import parametrizations, parametrize, prune
from disttorch.nn.utils import rnn as rnn_utils
from disttorch.ops import attention

F = nn.functional


def normal(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(3)


# ---------------------------------------------------------------- recurrent
@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_packed_sequences_are_each_run_alone(kind):
    """A packed batch gives each sequence what it gets by itself, in both directions."""
    layer = getattr(nn, kind)(3, 4, 2, bidirectional=True).double()
    given = [normal(n, 3) for n in (2, 5, 1)]
    out, state = layer(rnn_utils.pack_sequence(given, enforce_sorted=False))
    state = state[0] if isinstance(state, tuple) else state
    for i, (alone, part) in enumerate(zip(given, rnn_utils.unpack_sequence(out))):
        want, last = layer(alone)
        last = last[0] if isinstance(last, tuple) else last
        torch.testing.assert_close(part, want)
        torch.testing.assert_close(state[:, i], last)


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_cells_step_by_step_are_the_layer(kind):
    layer, cell = getattr(nn, kind)(3, 4).double(), getattr(nn, kind + "Cell")(3, 4).double()
    cell.load_state_dict({k[:-3]: v for k, v in layer.state_dict().items()})
    x, state = normal(6, 2, 3), None
    outs, _ = layer(x)
    for step, want in zip(x, outs):
        state = cell(step, state)
        torch.testing.assert_close(state[0] if kind == "LSTM" else state, want)


def test_dropout_between_layers_acts_in_training_only():
    layer = nn.GRU(3, 4, 2, dropout=0.5)
    x = normal(5, 2, 3, dtype=torch.float32)
    assert not torch.equal(layer(x)[0], layer(x)[0])
    layer.eval()
    assert torch.equal(layer(x)[0], layer(x)[0])
    with pytest.warns(UserWarning, match="num_layers greater than 1"):
        nn.GRU(3, 4, dropout=0.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_sixteen_bit_layers(kind, dtype):
    """Near the float32 result, and every gradient is there in the parameter's type."""
    exact = getattr(nn, kind)(3, 4)
    half = copy.deepcopy(exact).to(dtype)
    x = normal(5, 2, 3, dtype=torch.float32)
    out, _ = half(x.to(dtype))
    torch.testing.assert_close(out.float(), exact(x)[0], rtol=0.05, atol=0.03)
    out.sum().backward()
    assert all(p.grad.dtype is dtype and bool((p.grad != 0).any()) for p in half.parameters())


def test_recurrent_layers_survive_copies_and_conversion():
    layer = nn.LSTM(3, 4, proj_size=2, bidirectional=True)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        x = normal(5, 2, 3, dtype=torch.float32)
        torch.testing.assert_close(twin(x)[0], layer(x)[0])
    double = copy.deepcopy(layer).double()
    assert all(w.dtype is torch.float64 for part in double.all_weights for w in part)
    layer.flatten_parameters()
    replaced = {k: torch.zeros_like(v) for k, v in layer.state_dict().items()}
    out, _ = torch.func.functional_call(layer, replaced, (normal(5, 2, 3, dtype=torch.float32),))
    assert not out.any()


# ---------------------------------------------------------------- attention
def test_long_sequences_do_not_keep_the_weights(monkeypatch):
    """Forward and backward of 2048 positions: less memory than one matrix of weights."""
    length = 2048
    q, k, v = (normal(1, 1, length, 8, dtype=torch.float32).requires_grad_() for _ in range(3))
    monkeypatch.setattr(attention, "_BLOCK_SCORES", 1 << 16)
    tracemalloc.start()
    try:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out.sum().backward()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < length * length * 4 / 4
    first = out.detach()[0, 0, 0]
    torch.testing.assert_close(first, v.detach()[0, 0, 0])


@pytest.mark.parametrize("options", [{}, {"is_causal": True}])
def test_dropout_of_long_sequences_is_the_same_in_backward(monkeypatch, options):
    """The output is linear in the values: their gradient tells the weights after dropout."""
    monkeypatch.setattr(attention, "KEPT_SCORES", 0)
    monkeypatch.setattr(attention, "_BLOCK_SCORES", 64)
    q, k = normal(2, 40, 4), normal(2, 40, 4)
    v = normal(2, 40, 3).requires_grad_()
    out = F.scaled_dot_product_attention(q, k, v, dropout_p=0.4, **options)
    g = normal(2, 40, 3)
    out.backward(g)
    torch.testing.assert_close((v.grad * v.detach()).sum(), (g * out.detach()).sum())
    plain = F.scaled_dot_product_attention(q, k, v.detach(), **options)
    assert not torch.allclose(out.detach(), plain)
    ones = torch.ones(64, 400, 1, dtype=torch.float64)
    kept = F.scaled_dot_product_attention(ones, ones, ones, dropout_p=0.4)
    assert abs(kept.mean().item() - 1) < 0.01 and kept.std().item() > 0.01


def test_attention_dropout_is_random_and_seeded():
    layer = nn.MultiheadAttention(8, 2, dropout=0.5)
    x = normal(4, 2, 8, dtype=torch.float32)
    outs = []
    for s in (1, 1, 2):
        torch.manual_seed(s)
        outs.append(layer(x, x, x, need_weights=False)[0])
    assert torch.equal(outs[0], outs[1]) and not torch.equal(outs[0], outs[2])


def test_causal_mask_hides_the_future():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), 2)
    mask = nn.Transformer.generate_square_subsequent_mask(6)
    x = normal(2, 6, 8, dtype=torch.float32)
    changed = x.clone()
    changed[:, 4:] += 1
    a, b = model(x, mask=mask), model(changed, mask=mask)
    torch.testing.assert_close(a[:, :4], b[:, :4])
    assert not torch.allclose(a[:, 4:], b[:, 4:])


# ---------------------------------------------------------------- tables
def test_embedding_gradients():
    for freq, want in ((False, [0.0, 2.0, 0.0, 1.0]), (True, [0.0, 1.0, 0.0, 1.0])):
        layer = nn.Embedding(4, 2, scale_grad_by_freq=freq)
        layer(torch.tensor([1, 1, 3])).sum().backward()
        assert layer.weight.grad[:, 0].tolist() == want
    layer = nn.Embedding(4, 2, sparse=True)
    with pytest.warns(UserWarning, match="stored densely"):
        layer(torch.tensor([1, 1, 3])).sum().backward()
    assert layer.weight.grad[:, 0].tolist() == [0.0, 2.0, 0.0, 1.0]


def test_bags_scale_gradients_by_frequency():
    bag = nn.EmbeddingBag(4, 2, mode="sum", scale_grad_by_freq=True)
    bag(torch.tensor([1, 1, 3, 0]), torch.tensor([0, 2])).sum().backward()
    assert bag.weight.grad[:, 0].tolist() == [1.0, 1.0, 0.0, 1.0]


def test_empty_bags_are_zero():
    for mode in ("sum", "mean", "max"):
        bag = nn.EmbeddingBag(4, 2, mode=mode)
        out = bag(torch.tensor([1]), torch.tensor([0, 1, 1]))
        assert not out[1:].any()
        torch.testing.assert_close(out[0], bag.weight[1])


# ---------------------------------------------------------------- losses
def test_ctc_against_all_alignments():
    """The probability of a label sequence is the sum over all paths that collapse to it."""
    steps, classes, target = 4, 3, [1, 2]
    logs = normal(steps, 1, classes).log_softmax(-1)
    total = 0.0
    for path in np.ndindex(*(classes,) * steps):
        merged = [p for i, p in enumerate(path) if i == 0 or p != path[i - 1]]
        if [p for p in merged if p != 0] == target:
            total += float(np.exp(sum(logs[t, 0, p].item() for t, p in enumerate(path))))
    loss = F.ctc_loss(logs, torch.tensor([target]), (steps,), (2,), reduction="sum")
    assert loss.item() == pytest.approx(-np.log(total), rel=1e-9)


# ---------------------------------------------------------------- parametrizations
class Symmetric(nn.Module):
    def forward(self, x):
        return x.triu() + x.triu(1).T

    def right_inverse(self, a):
        return a.triu()


def test_parametrized_weight_is_trained_through_its_function():
    layer = parametrize.register_parametrization(nn.Linear(3, 3), "weight", Symmetric())
    assert [n for n, _ in layer.named_parameters()] == ["bias", "parametrizations.weight.original"]
    torch.testing.assert_close(layer.weight, layer.weight.T)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    before = layer.weight.detach()
    layer(normal(2, 3, dtype=torch.float32)).sum().backward()
    optimizer.step()
    assert not torch.equal(before, layer.weight)
    torch.testing.assert_close(layer.weight, layer.weight.T)
    layer.weight = torch.eye(3)
    torch.testing.assert_close(layer.weight, torch.eye(3))
    twin = copy.deepcopy(layer)
    original = layer.parametrizations.weight.original
    parametrize.remove_parametrizations(layer, "weight")
    assert type(layer) is nn.Linear and layer.weight is original
    torch.testing.assert_close(layer.weight, torch.eye(3))
    assert parametrize.is_parametrized(twin, "weight")
    assert parametrize.type_before_parametrizations(twin) is nn.Linear


def test_cached_parametrizations_are_computed_once():
    calls = []

    class Counted(nn.Module):
        def forward(self, x):
            calls.append(1)
            return x * 2

    layer = parametrize.register_parametrization(nn.Linear(2, 2), "weight", Counted())
    calls.clear()
    with parametrize.cached():
        a, b = layer.weight, layer.weight
    assert a is b and len(calls) == 1
    assert layer.weight is not a and len(calls) == 2


@pytest.mark.parametrize("shape", [(4, 4), (6, 3), (3, 6)])
@pytest.mark.parametrize("how", ["matrix_exp", "cayley", "householder"])
@pytest.mark.parametrize("trivial", [True, False])
def test_orthogonal_weights_stay_orthogonal(shape, how, trivial):
    layer = nn.Linear(shape[1], shape[0]).double()
    parametrizations.orthogonal(layer, orthogonal_map=how, use_trivialization=trivial)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.3)
    for _ in range(3):
        w = layer.weight if shape[0] >= shape[1] else layer.weight.T
        torch.testing.assert_close(w.T @ w, torch.eye(w.shape[1], dtype=torch.float64))
        optimizer.zero_grad()
        layer(normal(2, shape[1])).square().sum().backward()
        optimizer.step()


def test_householder_keeps_an_orthogonal_weight_that_it_is_given():
    q = torch.linalg.qr(normal(5, 3))[0]
    layer = nn.Linear(3, 5).double()
    layer.weight.data = q.clone()
    parametrizations.orthogonal(layer, orthogonal_map="householder", use_trivialization=False)
    torch.testing.assert_close(layer.weight, q)


@pytest.mark.parametrize("apply", [parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_spectral_norm_becomes_one(apply):
    layer = apply(nn.Linear(6, 4).double(), n_power_iterations=50)
    layer(normal(2, 6))
    largest = torch.linalg.svdvals(layer.weight.detach())[0].item()
    assert largest == pytest.approx(1.0, rel=1e-6)


def test_old_norms_can_be_taken_off():
    x = normal(2, 6, dtype=torch.float32)
    layer = nn.Linear(6, 4)
    want = layer(x)
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(layer)
    torch.testing.assert_close(layer(x), want)
    nn.utils.remove_weight_norm(layer)
    torch.testing.assert_close(layer(x), want)
    assert sorted(layer.state_dict()) == ["bias", "weight"]
    nn.utils.spectral_norm(layer)
    layer.eval()
    want = layer(x)
    nn.utils.remove_spectral_norm(layer)
    torch.testing.assert_close(layer(x), want)
    assert sorted(layer.state_dict()) == ["bias", "weight"]


# ---------------------------------------------------------------- pruning, devices
@pytest.mark.parametrize("method, args, zeros", [
    (prune.random_unstructured, (0.5,), 12), (prune.l1_unstructured, (7,), 7),
    (prune.random_structured, (0.25, 0), 6), (prune.ln_structured, (2, 1, 1), 8),
])
def test_pruned_elements_stay_zero_in_training(method, args, zeros):
    layer = nn.Linear(6, 4)
    method(layer, "weight", *args)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    layer(normal(3, 6, dtype=torch.float32)).square().sum().backward()
    optimizer.step()
    layer(normal(3, 6, dtype=torch.float32))
    assert int((layer.weight == 0).sum()) == zeros
    prune.remove(layer, "weight")
    assert int((layer.weight == 0).sum()) == zeros
    assert [n for n, _ in layer.named_parameters()] == ["bias", "weight"]


class TwoResults(nn.Module):
    """Counts its calls, sees how many rows each gets, and returns containers."""

    def __init__(self):
        super().__init__()
        self.layer, self.rows = nn.Linear(3, 2), []
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x, scale=1.0, extra=None):
        self.rows.append(len(x))
        self.calls += 1
        y = self.layer(x) * scale
        return {"y": y, "pair": (y.square(), None)}


@pytest.mark.parametrize("rows", [7, 2, 1])
def test_data_parallel_cuts_the_batch_and_adds_the_gradients(rows):
    model = TwoResults()
    twin = copy.deepcopy(model)
    x = normal(rows, 3, dtype=torch.float32)
    wrapped = nn.DataParallel(model, device_ids=["cpu", "cpu", "cpu"])
    assert list(wrapped.state_dict()) == ["module." + k for k in twin.state_dict()]
    got, want = wrapped(x, scale=2.0, extra="as it is"), twin(x, scale=2.0)
    assert model.rows == [len(part) for part in x.chunk(3)] and sum(model.rows) == rows
    assert torch.allclose(got["y"], want["y"]) and got["pair"][1] is None
    got["pair"][0].sum().backward()
    want["pair"][0].sum().backward()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad)
    assert model.calls.item() == len(model.rows)


def test_data_parallel_gathers_scalars_as_a_vector():
    class Mean(nn.Module):
        def forward(self, x):
            return x.mean()

    x = torch.arange(4.0)
    with pytest.warns(UserWarning, match="scalars"):
        got = nn.DataParallel(Mean(), device_ids=["cpu", "cpu"])(x)
    assert got.tolist() == [0.5, 2.5]


def test_data_parallel_without_that_gpu_is_an_error():
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError):
            nn.DataParallel(nn.Linear(2, 2), device_ids=[0, 1])


def test_skip_init_keeps_shapes():
    layer = nn.utils.skip_init(nn.Linear, 3, 4, dtype=torch.float64)
    assert layer.weight.shape == (4, 3) and layer.weight.dtype is torch.float64
