"""Large 16-bit products of odd extents: padded copies, the same values, nothing outside the arrays."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest

import disttorch as torch
import disttorch.nn.functional as F
from disttorch.backend import namespace_for
from disttorch.backend.gpu import gemm, padding
from disttorch.backend.precision import PRECISION

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device, or no CuPy"),
]
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@pytest.fixture(autouse=True)
def any_size(monkeypatch):
    """Products of any size are padded, whatever it costs; ``copies`` counts what was padded."""
    made = []

    def counted(xp, a, shape, given=padding.padded):
        made.append(shape)
        return given(xp, a, shape)

    for name, value in (("SMALLEST", 1), ("NARROW", 1), ("CALL", 0.0), ("BANDWIDTH", float("inf")),
                        ("padded", counted)):
        monkeypatch.setattr(padding, name, value)
    return made


def draw(*shape, dtype=torch.bfloat16, seed=0, grad=False):
    values = np.random.default_rng(seed).standard_normal(shape)
    return torch.tensor(values).to(dtype).cuda().requires_grad_(grad)


def wide(t):
    return t.detach().cpu().to(torch.float64).numpy()


def close(got, want):
    tolerance, scale = TOLERANCE[got.dtype], np.max(np.abs(want), initial=1.0)
    assert tuple(got.shape) == want.shape and got.is_contiguous()
    np.testing.assert_allclose(wide(got), want, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("n", "k", "m"), [
    (9, 17, 5), (16, 24, 13), (13, 16, 8), (16, 19, 8), (3, 5, 16), (2, 2, 2), (33, 1, 7), (1, 9, 1),
])
def test_every_layout(dtype, n, k, m):
    def columns(t):
        return t.mT.contiguous().mT

    a, b = draw(n, k, dtype=dtype), draw(k, m, dtype=dtype, seed=1)
    for one, other in itertools.product((lambda t: t, columns), repeat=2):
        close(one(a) @ other(b), wide(a) @ wide(b))


def test_rows_that_begin_anywhere():
    whole = draw(20, 43)
    a, b = whole[1:18, 3:27], whole.mT[5:29, 2:17]
    close(a @ b, wide(a) @ wide(b))


@pytest.mark.parametrize(("lead", "n", "k", "m"), [
    ((3,), 9, 17, 5), ((2, 3), 13, 16, 8), ((2,), 16, 8, 13), ((2, 1, 2), 7, 24, 16), ((1,), 8, 19, 8),
])
def test_batches_in_every_layout(any_size, lead, n, k, m):
    def columns(t):
        return t.mT.contiguous().mT

    a, b = draw(*lead, n, k), draw(*lead, k, m, seed=1)
    for one, other in itertools.product((lambda t: t, columns), repeat=2):
        close(one(a) @ other(b), wide(a) @ wide(b))
    assert len(any_size) >= 2  # where an odd extent is contiguous


def test_batches_with_gradients():
    a, b = draw(3, 9, 19, grad=True), draw(3, 19, 11, seed=1, grad=True)
    g = draw(3, 9, 11, seed=2)
    torch.bmm(a, b).backward(g)
    close(a.grad, wide(g) @ wide(b).swapaxes(1, 2))
    close(b.grad, wide(a).swapaxes(1, 2) @ wide(g))


def test_batches_that_lie_well_or_apart_are_left_alone(any_size):
    apart = draw(3, 2, 9, 17).transpose(0, 1)
    for a, b in ((draw(2, 9, 16), draw(2, 16, 8)), (apart, draw(2, 3, 17, 5)),
                 (draw(2, 9, 17), draw(1, 17, 5))):
        close(a @ b, wide(a) @ wide(b))
    assert any_size == []
    every = draw(3, 9, 40)[::2, :, 3:20], draw(4, 17, 5)[1:3]
    close(every[0] @ every[1], wide(every[0]) @ wide(every[1]))
    assert any_size == [(9, 24), (24, 8)]


def test_nothing_is_copied_that_lies_well(any_size):
    a, b = draw(16, 24), draw(24, 8, seed=1)
    for x, y in ((a, b), (b.mT, a.mT), (a, draw(8, 24, seed=2).mT)):
        x @ y
    assert any_size == []
    x = draw(16, 25) @ draw(25, 8)
    assert any_size == [(16, 32), (32, 8)] and x.shape == (16, 8)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_linear_with_gradients(dtype, any_size):
    x, w = draw(2, 8, 24, dtype=dtype, grad=True), draw(13, 24, dtype=dtype, seed=1, grad=True)
    bias, g = draw(13, dtype=dtype, seed=2, grad=True), draw(2, 8, 13, dtype=dtype, seed=3)
    out = F.linear(x, w, bias)
    assert any_size == [(24, 16), (16, 24), (1, 16)]  # the weight, by its rows
    close(out, wide(x) @ wide(w).T + wide(bias))
    out.backward(g)
    assert any_size[3:] == [(16, 16), (16, 24)]  # the gradient once for both products, and the weight
    rows, seeds = wide(x).reshape(16, 24), wide(g).reshape(16, 13)
    close(x.grad, (seeds @ wide(w)).reshape(x.shape))
    close(w.grad, seeds.T @ rows)
    close(bias.grad, seeds.sum(0))


def test_it_may_be_switched_off(monkeypatch, any_size):
    monkeypatch.setattr(PRECISION, "padded", False)
    x, w = draw(16, 19, grad=True), draw(13, 19, seed=1, grad=True)
    out = F.linear(x, w)
    out.backward(draw(16, 13, seed=2))
    close(out, wide(x) @ wide(w).T)
    assert any_size == []


def test_a_gradient_has_a_storage_of_its_own_size(any_size):
    x, w = draw(16, 24), draw(13, 24, seed=1, grad=True)
    F.linear(x, w).backward(draw(16, 13, seed=2))
    assert any_size and w.grad.untyped_storage().nbytes() == w.grad.nbytes
    buffer = io.BytesIO()
    torch.save(w.grad, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer), w.grad)
    rows = draw(24, 13).T @ x.mT.contiguous().mT[:1].expand(24, 24).contiguous()
    assert rows.untyped_storage().nbytes() == rows.nbytes == 13 * 24 * 2


def test_what_pads_a_sum_is_zero():
    a, b = draw(16, 19), draw(19, 8, seed=1)
    a[0, 18], b[18, 0] = float("inf"), 0.5  # beside the padding: infinities stay in their row
    out = a @ b
    assert not torch.isfinite(out[0]).any() and torch.isfinite(out[1:]).all()


def test_small_products_are_left_alone(monkeypatch, any_size):
    monkeypatch.undo()
    xp = namespace_for(torch.device("cuda"))
    assert padding.operands(xp, draw(200, 201)._data, draw(201, 200)._data) is None


def test_the_head_of_a_gpt2_is_worth_it(monkeypatch):
    """By the cost alone: no memory of this size is taken."""
    monkeypatch.undo()
    xp, seen = namespace_for(torch.device("cuda")), []
    small = draw(1, 768)._data
    rows = xp.cupy.broadcast_to(small, (16384, 768))
    monkeypatch.setattr(padding, "_lies_well", lambda a: True)
    monkeypatch.setattr(padding, "padded", lambda xp, a, shape: seen.append(shape))
    assert padding.operands(xp, rows, xp.cupy.broadcast_to(small, (50257, 768)).T) is not None
    assert seen == [(768, 50264)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("width", [1, 3, 7, 8, 9, 31, 40, 1030, 4133])
def test_copied_rows(dtype, width):
    """Every alignment of source and target; zeros beside and below, and nothing beyond."""
    xp = namespace_for(torch.device("cuda"))
    for skip, shift, more in itertools.product((0, 1, 2, 5), (0, 1, 3), (0, 1, 6)):
        source = draw(3, width + skip + 2, dtype=dtype)[:, skip:skip + width]
        base = torch.full((5, width + more + shift + 4), -7.0, dtype=dtype, device="cuda")
        target = base[:4, shift:shift + width + more]
        padding.copy_rows(xp, source._data, target._data)
        want = np.full(base.shape, -7.0)
        want[:4, shift:shift + width + more] = 0
        want[:3, shift:shift + width] = wide(source)
        np.testing.assert_array_equal(wide(base), want)


def test_in_a_graph(any_size):
    a, b = draw(16, 19), draw(19, 13, seed=1)
    (a @ b), torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = a @ b
    a.copy_(draw(16, 19, seed=5))
    graph.replay()
    close(out, wide(a) @ wide(b))


def test_gemm_uses_it(any_size):
    xp = namespace_for(torch.device("cuda"))
    a, b = draw(8, 11)._data, draw(11, 8)._data
    gemm.product(xp, a, b)
    assert any_size == [(8, 16), (16, 8)]
