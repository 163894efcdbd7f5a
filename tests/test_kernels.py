"""The CPU's blocked kernels against the plain formulas, on sizes around the block length."""

from __future__ import annotations

import math

import numpy as np
import pytest

from disttorch.backend import CPU, plain_kernels
from disttorch.backend.kernels import _BLOCK

RNG = np.random.default_rng(0)


def draw(shape, dtype):
    return RNG.standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1, 7, _BLOCK, _BLOCK + 1])
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu(dtype, size, approximate):
    x, g = draw(size, dtype) * 3, draw(size, dtype)
    close = {"rtol": 1e-5, "atol": 2e-6} if dtype is np.float32 else {"rtol": 1e-12, "atol": 1e-12}
    ours, plain = CPU.gelu(x, approximate), plain_kernels.gelu(CPU, x, approximate)
    assert ours.dtype == dtype
    np.testing.assert_allclose(ours, plain, **close)
    np.testing.assert_allclose(
        CPU.gelu_backward(g, x, approximate), plain_kernels.gelu_backward(CPU, g, x, approximate),
        **close)


def test_erf_is_within_half_a_millionth_of_the_exact_function():
    x = np.linspace(-6, 6, 20001)
    exact = np.array([math.erf(v) for v in x])
    assert np.abs(CPU.erf(x.astype(np.float32)) - exact).max() < 5e-7
    assert np.abs(CPU.erf(x) - exact).max() == 0
    assert np.abs(CPU.erf(x.astype(np.float32))).max() <= 1


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize("shape,axis", [((3, 5), 1), ((3, 5), 0), ((2, 3, 4), 1), ((7,), 0),
                                        ((_BLOCK // 8 + 1, 9), 1),
                                        ((9, _BLOCK // 8 + 1), 0), ((0, 4), 1)])
def test_softmax(name, shape, axis):
    x, g = draw(shape, np.float64), draw(shape, np.float64)
    out = getattr(CPU, name)(x, axis)
    np.testing.assert_allclose(out, getattr(plain_kernels, name)(CPU, x, axis), atol=1e-13)
    back = getattr(CPU, name + "_backward")(g, out, axis)
    np.testing.assert_allclose(
        back, getattr(plain_kernels, name + "_backward")(CPU, g, out, axis), atol=1e-12)


@pytest.mark.parametrize("rows,width", [(1, 4), (5, 3), (_BLOCK // 8 + 3, 8), (0, 4), (70, 999)])
@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm(rows, width, affine):
    x, g = draw((rows, width), np.float64), draw((rows, width), np.float64)
    w, b = (draw(width, np.float64), draw(width, np.float64)) if affine else (None, None)
    out, mean, rstd = CPU.layer_norm(x, w, b, 1e-5)
    for ours, plain in zip((out, mean, rstd), plain_kernels.layer_norm(CPU, x, w, b, 1e-5)):
        np.testing.assert_allclose(ours, plain, atol=1e-10)
    for ours, plain in zip(CPU.layer_norm_backward(g, x, w, mean, rstd),
                           plain_kernels.layer_norm_backward(CPU, g, x, w, mean, rstd)):
        np.testing.assert_allclose(ours, plain, atol=1e-9)
    for kernels, first in ((CPU, ()), (plain_kernels, (CPU,))):
        gx, *rest = kernels.layer_norm_backward(*first, g, x, w, mean, rstd, affine=False)
        assert rest == [None, None]
        np.testing.assert_allclose(gx, CPU.layer_norm_backward(g, x, w, mean, rstd)[0], atol=1e-10)


def test_add_rows_sums_repeated_indices():
    index, rows = RNG.integers(0, 6, 50), draw((50, 3), np.float64)
    ours = CPU.add_rows(np.zeros((6, 3)), index, rows)
    np.testing.assert_allclose(ours, plain_kernels.add_rows(np, np.zeros((6, 3)), index, rows))
    assert ours.any()


@pytest.mark.parametrize("width", [3, 200])
def test_add_rows_of_any_width(width):
    index, rows = RNG.integers(0, 6, 50), draw((50, width), np.float64)
    ours = CPU.add_rows(np.ones((6, width)), index, rows)
    np.testing.assert_allclose(ours, plain_kernels.add_rows(np, np.ones((6, width)), index, rows))


@pytest.mark.parametrize("shape,axis", [((3, 5), 1), ((3, 5), 0), ((2, 3, 4), 1), ((7,), 0)])
def test_take_and_add_along_an_axis(shape, axis):
    a, size = draw(shape, np.float64), list(shape)
    size[axis] = 6
    for dtype in (np.int64, np.int32):
        index = RNG.integers(0, shape[axis], size).astype(dtype)
        taken = CPU.take_along_axis(a, index, axis)
        np.testing.assert_array_equal(taken, np.take_along_axis(a, index, axis))
        smaller = index[tuple(slice(0, max(1, n - 1)) for n in index.shape)]
        values = draw(smaller.shape, np.float64)
        plain = plain_kernels.add_along_axis(np, a.copy(), smaller, values, axis)
        np.testing.assert_allclose(CPU.add_along_axis(a.copy(), smaller, values, axis), plain)


@pytest.mark.parametrize("shape", [(300, 200), (7, 90, 80), (5, 4)])
def test_contiguous_copy_of_transposed_arrays(shape):
    a = draw(shape, np.float32)
    for view in (a, a.swapaxes(0, -1), a[..., ::-1], a.swapaxes(0, 1)[:, ::2]):
        copy = CPU.contiguous_copy(view)
        assert copy.flags.c_contiguous and not np.shares_memory(copy, a)
        np.testing.assert_array_equal(copy, view)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2), (2, 1, 0)])
def test_memory_of_arrays_whose_dims_lie_in_any_order(order):
    a = np.maximum(draw((3, 4, 5), np.float64).transpose(order), 0)  # laid out like its operand
    flat, offset, strides = CPU.storage_of(a)
    assert np.shares_memory(flat, a) and flat.size == a.size
    assert np.array_equal(CPU.strided_view(a, a.shape, a.strides), a)
    assert [flat[offset + s * (n - 1)] for s, n in zip(strides, a.shape)] == [
        a[n - 1, 0, 0] if d == 0 else a[0, n - 1, 0] if d == 1 else a[0, 0, n - 1]
        for d, n in enumerate(a.shape)]


def test_reversed_cumsum():
    a = draw((3, 4, 5), np.float64)
    for axis in range(3):
        np.testing.assert_allclose(CPU.reversed_cumsum(a, axis),
                                   plain_kernels.reversed_cumsum(np, a, axis))


@pytest.mark.parametrize("k", [1, 3, 30, 100])
@pytest.mark.parametrize("largest", [True, False])
def test_top_k(k, largest):
    a = draw((4, 100), np.float32)
    a[0, 5] = np.nan
    np.testing.assert_array_equal(CPU.top_k(a, k, largest), plain_kernels.top_k(np, a, k, largest))


@pytest.mark.parametrize("shape,target", [((3, 4), (4,)), ((3, 4), (3, 1)), ((2, 3, 4), (1, 4)),
                                          ((2, 3), ()), ((5, 1, 4), (4,))])
def test_sum_rows_to(shape, target):
    g = draw(shape, np.float64)
    np.testing.assert_allclose(CPU.sum_rows_to(g, target), plain_kernels.sum_rows_to(np, g, target))
