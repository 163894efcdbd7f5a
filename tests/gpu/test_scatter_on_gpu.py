"""Sums at repeated places of GPU arrays: values, determinism, indices out of range."""

from __future__ import annotations

import numpy as np
import pytest

import disttorch as torch
import disttorch.nn.functional as F
from disttorch.backend import namespace_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device, or no CuPy"),
]
NEAR = {torch.float32: 1e-5, torch.float64: 1e-13, torch.float16: 4e-3, torch.bfloat16: 3e-2}
rng = np.random.default_rng(0)


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def wide(t):
    return t.detach().cpu().double().numpy()


def drawn(*shape, dtype=torch.float32):
    return torch.tensor(rng.standard_normal(shape)).to(dtype).cuda()


@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("rows, width, count, index", [
    (13, 16, 700, "int64"), (300, 5, 650, "int32"), (1, 8, 70, "int64"), (70_000, 1, 90, "int64"),
    (4, 3, 0, "int64"), (5, 24, 1, "int32")])
def test_index_add(rows, width, count, index, dtype):
    at = rng.integers(0, rows, count).astype(index)
    at[: count // 2] = 3 % rows
    out, source = drawn(rows, width, dtype=dtype), drawn(count, width, dtype=dtype)
    want, scale = wide(out), np.abs(wide(out))
    np.add.at(want, at, wide(source))
    np.add.at(scale, at, np.abs(wide(source)))
    got = out.index_add(0, torch.tensor(at).cuda(), source)
    assert got.dtype is dtype
    assert (np.abs(wide(got) - want) <= NEAR[dtype] * scale + 1e-30).all()
    again = out.index_add(0, torch.tensor(at).cuda(), source)
    np.testing.assert_array_equal(wide(got), wide(again))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_embedding_gradient(dtype):
    weight = drawn(50, 12, dtype=dtype).requires_grad_()
    at = rng.integers(0, 50, (7, 33))
    out = F.embedding(torch.tensor(at).cuda(), weight, padding_idx=4)
    g = drawn(*out.shape, dtype=dtype)
    out.backward(g)
    want = np.zeros((50, 12))
    np.add.at(want, at.reshape(-1), wide(g).reshape(-1, 12))
    want[4] = 0
    np.testing.assert_allclose(wide(weight.grad), want, atol=NEAR[dtype] * 20)


def test_other_dims_complex_and_integers():
    at = torch.tensor([0, 2, 2, 1], device="cuda")
    for source in (drawn(3, 4), torch.tensor(rng.integers(0, 9, (3, 4))).cuda(),
                   torch.complex(drawn(3, 4), drawn(3, 4))):
        got = torch.zeros(3, 5, dtype=source.dtype, device="cuda").index_add(1, at, source).cpu()
        want = torch.zeros(3, 5, dtype=source.dtype).index_add(1, at.cpu(), source.cpu())
        np.testing.assert_allclose(got.numpy(), want.numpy(), rtol=1e-6)


def single_elements():
    at = torch.tensor(rng.integers(0, 4, (6, 5))).cuda()
    source, out = drawn(6, 5), drawn(4, 5)
    got = out.scatter_add(0, at, source)
    want = out.cpu().scatter_add(0, at.cpu(), source.cpu())
    np.testing.assert_allclose(wide(got), wide(want), rtol=1e-5, atol=1e-6)
    i, j = torch.tensor([0, -1, 0, 3]).cuda(), torch.tensor([1, 1, 1, -2]).cuda()
    values = drawn(4)
    got = out.index_put((i, j), values, accumulate=True)
    want = out.cpu().index_put((i.cpu(), j.cpu()), values.cpu(), accumulate=True)
    np.testing.assert_allclose(wide(got), wide(want), rtol=1e-5, atol=1e-6)
    x = drawn(4, 5).requires_grad_()
    x.gather(0, at).backward(source)
    want = torch.zeros(4, 5).scatter_add(0, at.cpu(), source.cpu())
    np.testing.assert_allclose(wide(x.grad), wide(want), rtol=1e-5, atol=1e-6)


def test_single_elements():
    single_elements()


def test_single_elements_in_order(deterministic):
    single_elements()
    at = torch.tensor(rng.integers(0, 3, (400, 2))).cuda()
    source = drawn(400, 2)
    a, b = (torch.zeros(3, 2, device="cuda").scatter_add(0, at, source) for _ in range(2))
    assert torch.equal(a, b)


def test_an_index_out_of_range_is_told_later():
    weight = drawn(5, 3)
    # what CuPy's functions read there is not looked at: the stand-in refuses such an index at once
    namespace_of(weight._data).index_outside(torch.tensor([1, 5]).cuda()._data, 0, 5)
    with pytest.raises(IndexError, match="index 5 is out of range.* less than 5"):
        torch.cuda.synchronize()
    torch.cuda.synchronize()
    x = drawn(5, 3)
    x[torch.tensor([0, -5]).cuda()].sum().item()
    assert F.embedding(torch.tensor([1, 4]).cuda(), weight).cpu().shape == (2, 3)
