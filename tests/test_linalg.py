"""Linear algebra: derivatives by finite differences, factors multiplied back, and errors."""

from __future__ import annotations

import numpy as np
import pytest
from linalg_cases import CASES, IDS

import disttorch as torch
from disttorch.autograd.gradcheck import gradcheck, gradgradcheck


def draw(shape, seed=0):
    return torch.tensor(np.random.default_rng(seed).normal(size=shape)).requires_grad_()


@pytest.mark.parametrize(("function", "shapes", "_"), CASES, ids=IDS)
def test_derivatives(function, shapes, _):
    for shape in shapes:
        gradcheck(lambda x: function(torch, x), draw(shape))
    gradgradcheck(lambda x: function(torch, x), draw(shapes[0], 1))


@pytest.mark.parametrize("shape", [(3, 3), (4, 2), (2, 4), (2, 3, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
def test_factors_multiply_back(shape, dtype):
    rng = np.random.default_rng(3)
    a = torch.tensor(rng.normal(size=shape) + 1j * rng.normal(size=shape))
    a = a.to(dtype) if dtype.is_complex else a.real.to(dtype)
    linalg, near = torch.linalg, 1e-4

    def same(x, y=a):
        assert x.dtype is y.dtype
        assert float((x - y).abs().max()) < near

    u, s, vh = linalg.svd(a, full_matrices=False)
    same((u * s.unsqueeze(-2)) @ vh)
    q, r = linalg.qr(a)
    same(q @ r)
    p, low, up = linalg.lu(a)
    same(p @ low @ up)
    full = linalg.svd(a)
    assert full.U.shape[-1] == shape[-2] and full.Vh.shape[-1] == shape[-1]
    if shape[-1] != shape[-2]:
        return
    h = a @ a.mH
    values, v = linalg.eigh(h)
    same((v * values.unsqueeze(-2)) @ v.mH, h)
    L = linalg.cholesky(h)
    same(L @ L.mH, h)
    values, v = linalg.eig(a)
    same((v * values.unsqueeze(-2)) @ linalg.inv(v), a.to(v.dtype))
    lu, pivots = linalg.lu_factor(a)
    same(a @ linalg.lu_solve(lu, pivots, a))
    assert pivots.dtype is torch.int32


def test_singular_and_indefinite_matrices_raise():
    singular = torch.tensor([[1.0, 2.0], [2.0, 4.0]])
    error = torch.linalg.LinAlgError
    assert issubclass(error, RuntimeError)
    with pytest.raises(error, match="diagonal element 2 is zero"):
        torch.linalg.inv(singular)
    with pytest.raises(error, match="singular"):
        torch.linalg.solve(singular, torch.ones(2))
    with pytest.raises(error, match="leading minor of order 2"):
        torch.linalg.cholesky(torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
    with pytest.raises(error, match="Batch element 1"):
        torch.linalg.cholesky(torch.stack([torch.eye(2), -torch.eye(2)]))
    assert torch.linalg.cholesky_ex(-torch.eye(2)).info.item() == 1
    assert torch.linalg.inv_ex(singular).info.item() == 2


def test_determinant_of_a_singular_matrix_has_a_gradient():
    a = torch.tensor([[1.0, 2.0], [2.0, 4.0]], dtype=torch.float64, requires_grad=True)
    torch.linalg.det(a).backward()
    np.testing.assert_allclose(a.grad.numpy(), [[4, -2], [-2, 1]], atol=1e-12)


def test_results_have_names():
    result = torch.linalg.svd(torch.eye(2))
    assert result.S is result[1] and "linalg_svd" in repr(result)
    assert torch.linalg.slogdet(torch.eye(2)).logabsdet.item() == 0
    u, s, v = torch.svd(torch.eye(2))
    assert torch.sort(torch.tensor([2, 1])).values.tolist() == [1, 2]


def test_out_forms_write_into_their_target():
    a, out = torch.eye(2) * 2, torch.empty(2, 2)
    assert torch.linalg.inv(a, out=out) is out and out[0, 0].item() == 0.5
    q, r = torch.empty(0), torch.empty(0)
    torch.linalg.qr(a, out=(q, r))
    assert (q @ r - a).abs().max().item() < 1e-6
