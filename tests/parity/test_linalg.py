"""Linear algebra against PyTorch: values, gradients, and errors of bad input."""

from __future__ import annotations

import numpy as np
import pytest
from linalg_cases import CASES, IDS

import disttorch as dt

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:torch.chain_matmul"),
    pytest.mark.filterwarnings("ignore:Casting complex values to real"),
]


def both(function, shape, complex_input):
    """Values and gradients, ours and PyTorch's."""
    rng = np.random.default_rng(5)
    a = rng.normal(size=shape)
    if complex_input:
        a = a + 1j * rng.normal(size=shape)
    found = []
    for t in (dt, torch):
        x = t.tensor(a).requires_grad_()
        out = function(t, x)
        seed = np.cos(np.arange(out.numel()) + 0.5).reshape(tuple(out.shape))
        out.backward(t.tensor(seed).to(out.dtype))
        found.append((out.detach().numpy(force=True), x.grad.numpy(force=True)))
    return found


@pytest.mark.parametrize("complex_input", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize(("function", "shapes", "complex_too"), CASES, ids=IDS)
def test_values_and_gradients(function, shapes, complex_too, complex_input):
    if complex_input and not complex_too:
        pytest.skip("real only")
    for shape in shapes:
        (ours, our_grad), (theirs, their_grad) = both(function, shape, complex_input)
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=1e-7, atol=1e-8)
        assert our_grad.dtype == their_grad.dtype
        np.testing.assert_allclose(our_grad, their_grad, rtol=1e-6, atol=1e-7)


BAD = [
    "linalg.inv(ones(2, 3))", "linalg.inv(ones(2, 2).int())", "linalg.inv(ones(2, 2).half())",
    "linalg.inv(zeros(2, 2))", "linalg.det(ones(3))", "linalg.cholesky(-eye(2))",
    "linalg.solve(zeros(2, 2), ones(2))", "linalg.solve(ones(2, 2), ones(3))",
    "linalg.solve_triangular(ones(2, 2), ones(3), upper=True)", "linalg.svd(ones(3))",
    "linalg.eigh(ones(2, 3))", "linalg.qr(ones(2, 2), mode='x')",
    "linalg.cross(ones(2), ones(2))", "linalg.matrix_power(ones(2, 3), 2)",
    "linalg.norm(ones(2, 2), 'abc')", "linalg.norm(ones(2, 2, 2), 'fro')",
    "linalg.matrix_norm(ones(2))", "linalg.vector_norm(ones(2, 2).int())",
    "linalg.multi_dot([ones(2, 2)])", "trace(ones(2, 3, 3))", "inner(ones(2), ones(3))",
    "vdot(ones(2), ones(3))", "cdist(ones(2), ones(2, 3))", "cdist(ones(2, 4), ones(2, 3))",
    "einsum('ij,jk', ones(2, 3), ones(4, 3))", "einsum('ij,jk->il', ones(2, 3), ones(3, 4))",
    "einsum('ij,jk', ones(2, 3))", "einsum('ijk', ones(2, 3))", "einsum('ii', ones(2, 3))",
    "einsum('i->ii', ones(2))", "einsum('i.j', ones(2, 3))",
    "tensordot(ones(2, 3), ones(4, 3), 1)", "fft.fft(ones(3), n=0)", "fft.fft(ones(3), dim=2)",
    "fft.fft(ones(3), norm='x')", "fft.fft(tensor(3.))", "fft.rfft(ones(3).to(complex64))",
    "fft.fft2(ones(3))", "fft.fftn(ones(3, 3), s=(2,), dim=(0, 1))",
    "fft.fftn(ones(3, 3), dim=(0, 0))", "fft.fft(ones(3).half())",
    "stft(ones(4), 100, center=False)",
]


@pytest.mark.parametrize("call", BAD)
def test_bad_input_raises_the_same_error(call):
    with pytest.raises((RuntimeError, IndexError, ValueError, TypeError)) as theirs:
        eval(call, vars(torch).copy())
    ours_in = {n: getattr(dt, n) for n in ("linalg", "fft")} | vars(dt)
    with pytest.raises(Exception) as ours:
        eval(call, dict(ours_in))
    assert ours.type.__name__ == theirs.type.__name__, (ours.value, theirs.value)
    assert str(ours.value)[:40] == str(theirs.value)[:40]


def test_ranks_and_least_squares():
    a = np.random.default_rng(2).normal(size=(4, 3))
    a[:, 2] = a[:, 0]
    b = np.ones((4, 2))
    # not gelsy: for deficient ranks PyTorch's answer changes from run to run
    for driver in ("gelsd", "gelss"):
        ours = dt.linalg.lstsq(dt.tensor(a), dt.tensor(b), driver=driver)
        theirs = torch.linalg.lstsq(torch.tensor(a), torch.tensor(b), driver=driver)
        for x, y in zip(ours, theirs):
            np.testing.assert_allclose(x.numpy(), y.numpy(), atol=1e-10)
    assert dt.linalg.matrix_rank(dt.tensor(a)).item() == 2
    assert torch.linalg.matrix_rank(torch.tensor(a)).item() == 2
    full = np.random.default_rng(3).normal(size=(4, 2))
    x, y = (t.linalg.lstsq(t.tensor(full), t.tensor(b)) for t in (dt, torch))
    np.testing.assert_allclose(x.residuals.numpy(), y.residuals.numpy(), atol=1e-10)


EINSUM = [
    ("ij,jk->ik", (2, 3), (3, 4)), ("ij,jk", (2, 3), (3, 4)),
    ("bij,bjk->bik", (2, 3, 4), (2, 4, 5)), ("ii->i", (3, 3)), ("ii", (3, 3)), ("ij->ji", (2, 3)),
    ("ij->", (2, 3)), ("i,j->ij", (2,), (3,)), ("...ij,...jk->...ik", (2, 1, 3, 4), (5, 4, 2)),
    ("i...->...", (2, 3, 4)), ("i,i->i", (3,), (3,)),
    ("bhqd,bhkd->bhqk", (2, 2, 3, 4), (2, 2, 5, 4)), ("ij,jk,kl->il", (2, 3), (3, 4), (4, 5)),
    ("ab,bc,cd,da->", (2, 3), (3, 4), (4, 5), (5, 2)), ("i,ij,j->", (2,), (2, 3), (3,)),
    ("ij,ij->i", (2, 1), (2, 3)), ("aij,jk->aik", (2, 3, 4), (4, 5)),
    ("bB,Bb->bB", (2, 3), (3, 2)), ("iji->j", (3, 2, 3)), ("ij,kl->", (2, 3), (3, 4)),
    ("...,...", (2, 3), (3,)), ("i->", (0,)), ("ij,jk->ik", (2, 0), (0, 3)),
    (" i j , j -> i ", (2, 3), (3,)), ("abc,cd->", (2, 3, 4), (4, 2)),
]


@pytest.mark.parametrize("case", EINSUM, ids=[c[0] for c in EINSUM])
def test_einsum(case):
    equation, *shapes = case
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=s) for s in shapes]
    results = []
    for t in (dt, torch):
        operands = [t.tensor(a).requires_grad_() for a in arrays]
        out = t.einsum(equation, *operands)
        (out * t.arange(1.0, out.numel() + 1, dtype=t.float64).reshape(out.shape)).sum().backward()
        results.append([out.detach().numpy()] + [x.grad.numpy() for x in operands])
    for a, b in zip(*results):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, atol=1e-12)


def test_einsum_with_lists_of_numbers():
    a, b = np.arange(6.0).reshape(2, 3), np.arange(12.0).reshape(3, 4)
    dots = Ellipsis
    for args in (([0, 1], [1, 2], [0, 2]), ([0, 1], [1, 2]), ([dots, 1], [1, 2], [dots, 2])):
        x, y = (t.einsum(t.tensor(a), args[0], t.tensor(b), *args[1:]) for t in (dt, torch))
        np.testing.assert_allclose(x.numpy(), y.numpy())


FFT = [
    "fft.fft(x)", "fft.fft(x, 7)", "fft.fft(x, 2, 0)", "fft.ifft(x, norm='ortho')", "fft.rfft(x)",
    "fft.rfft(x, 5, norm='forward')", "fft.irfft(fft.rfft(x), 5)", "fft.irfft(fft.fft(x))",
    "fft.hfft(fft.fft(x), 7)", "fft.ihfft(x, 6, norm='ortho')", "fft.fft2(x)",
    "fft.ifft2(x, norm='forward')", "fft.rfft2(x, (4, 4))", "fft.irfft2(fft.rfft2(x), x.shape)",
    "fft.fftn(x, dim=(0,))", "fft.ifftn(x)", "fft.rfftn(x)", "fft.irfftn(fft.rfftn(x), x.shape)",
    "fft.hfft2(fft.fft2(x))", "fft.ihfft2(x)", "fft.fftshift(x)", "fft.ifftshift(x, 1)",
    "fft.fftfreq(5, 0.5) * x", "fft.rfftfreq(8) * x", "fft.fft(x.t())",
    "stft(x.reshape(-1), 8, 2, window=hann_window(8, dtype=float64), return_complex=True)",
    "stft(x, 4, 1, win_length=3, window=hamming_window(3, dtype=float64), center=True,"
    " pad_mode='constant', normalized=True, onesided=False, return_complex=True)",
    "istft(stft(x.reshape(-1), 8, 2, window=hann_window(8, dtype=float64), return_complex=True),"
    " 8, 2, window=hann_window(8, dtype=float64), length=15)",
    "blackman_window(5) * x", "bartlett_window(5, periodic=False) * x",
    "kaiser_window(5, True, 3.0) * x",
]


@pytest.mark.parametrize("call", FFT)
def test_fft(call):
    a = np.random.default_rng(1).normal(size=(3, 5))
    results = []
    for t in (dt, torch):
        windows = [f"{n}_window" for n in ("hann", "hamming", "blackman", "bartlett", "kaiser")]
        names = {n: getattr(t, n) for n in ("fft", "float64", "stft", "istft", *windows)}
        x = t.tensor(a).requires_grad_()
        out = eval(call, names, {"x": x})
        weight = t.tensor(np.cos(np.arange(out.numel())).reshape(tuple(out.shape)))
        out.backward(weight.to(out.dtype))
        results.append((out.detach().numpy(force=True), x.grad.numpy(force=True)))
    (ours, our_grad), (theirs, their_grad) = results
    assert ours.dtype == theirs.dtype
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    np.testing.assert_allclose(our_grad, their_grad, atol=1e-6)
