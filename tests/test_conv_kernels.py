"""The GPU's kernels of convolution, batch normalisation, pooling and resizing on the CPU.

The functions of ``disttorch/backend/gpu`` run over NumPy arrays here, their kernels compiled by g++;
the oracle is the CPU's namespace in float64.
"""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace

import cuda_host
import numpy as np
import pytest

from disttorch.backend import CPU, dtypes, layouts, pool_kernels, resample_kernels
from disttorch.backend.gpu import batchnorm, convolution, convolution_own, cudnn, pooling, resample

pytestmark = pytest.mark.skipif(not cuda_host.available(), reason="no g++, or not x86-64")

HALF, BRAIN = dtypes.float16.np, dtypes.bfloat16.np
F32, F64 = np.dtype(np.float32), np.dtype(np.float64)
TOLERANCE = {F64: 1e-12, F32: 2e-5, HALF: 4e-3, BRAIN: 3e-2}
MODULES = (convolution, batchnorm, pooling, resample)


class Host:
    """NumPy's functions, with the GPU's kernels bound to them."""

    def __init__(self):
        self.cupy, self.index = SimpleNamespace(), 0
        for module in MODULES:
            for name, value in vars(module).items():
                if getattr(value, "__module__", None) == module.__name__ and not name.startswith("_"):
                    if callable(value) and name != "describe":
                        setattr(self, name, value.__get__(self))

    def __getattr__(self, name):
        return getattr(CPU, name)

    @staticmethod
    def matmul(a, b):
        return np.matmul(a.astype(F64), b.astype(F64)).astype(a.dtype)


class _on_host:
    """A kernel as ``disttorch.backend.gpu.kernel`` gives it."""

    def __init__(self, cupy, family, name, **values):
        self.run = cuda_host.kernel(family, name, **values)

    def __call__(self, grid, block, args):
        self.run(grid, block, args)

    def prepared(self, block, types):
        return lambda blocks, *args: self.run((blocks,), (block,), args)


@pytest.fixture
def xp(monkeypatch):
    for module in (convolution_own, batchnorm, pooling, resample):
        monkeypatch.setattr(module, "kernel", _on_host)
    for kept in (convolution._decided, batchnorm._decided):
        kept.clear()
    monkeypatch.setattr(cudnn, "enabled", lambda: False)
    return Host()


def draw(seed, shape, dtype, last=False):
    """Values that the dtype holds exactly, in a layout."""
    values = np.random.default_rng(seed).standard_normal(shape).astype(dtype)
    return layouts.copied(CPU, values, True) if last else values


def wide(array):
    return None if array is None else np.ascontiguousarray(array).astype(F64)


def close(got, want, dtype, scale=1.0):
    assert got.dtype == dtype and got.shape == want.shape
    room = TOLERANCE[dtype] * scale * max(1.0, float(np.abs(want).max(initial=0)))
    np.testing.assert_allclose(wide(got), want, rtol=0, atol=room)


# ---------------------------------------------------------------- convolution
# input, weight, stride, padding, dilation, groups
GEOMETRIES = [
    ((2, 3, 7), (4, 3, 3), (2,), (1,), (1,), 1),
    ((2, 8, 5, 6), (8, 8, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    ((2, 8, 5, 6), (4, 8, 3, 2), (2, 1), (1, 2), (1, 2), 1),
    ((2, 16, 5, 5), (8, 8, 3, 3), (2, 2), (1, 1), (1, 1), 2),
    ((2, 6, 4, 4), (3, 2, 2, 2), (1, 1), (1, 1), (1, 1), 3),
    ((3, 8, 3, 4), (5, 8, 1, 1), (1, 1), (0, 0), (1, 1), 1),
    ((2, 8, 5, 4), (4, 8, 1, 1), (2, 2), (0, 0), (1, 1), 1),
    ((2, 3, 5, 4), (6, 1, 3, 2), (2, 1), (2, 1), (1, 2), 3),
    ((1, 2, 3, 4), (2, 2, 2, 2), (1, 1), (3, 2), (1, 1), 1),
    ((1, 2, 3, 4, 3), (2, 2, 2, 3, 2), (1, 2, 1), (1, 1, 0), (1, 1, 2), 1),
]


@pytest.mark.parametrize("dtype", [F32, F64, HALF, BRAIN], ids=str)
@pytest.mark.parametrize("geometry", range(len(GEOMETRIES)))
def test_convolution_and_its_gradients(xp, geometry, dtype):
    shape, kernel, *options = GEOMETRIES[geometry]
    for last in (False, True)[: 1 if len(shape) == 3 else 2]:
        x, w = draw(1, shape, dtype, last), draw(2, kernel, dtype, last)
        bias = draw(3, kernel[:1], dtype)
        out = xp.conv(x, w, bias, *options)
        close(out, CPU.conv(wide(x), wide(w), wide(bias), *options), dtype, 2)
        assert layouts.is_dense(out, last)
        g = draw(4, out.shape, dtype, geometry % 2 == 1)
        found = xp.conv_grads(g, x, w, (True, True, True), *options)
        wanted = CPU.conv_grads(wide(g), wide(x), wide(w), (True, True, True), *options)
        for a, b in zip(found, wanted):
            close(a, b, dtype, 2)
        assert layouts.is_dense(found[0], last) and layouts.is_dense(found[1], last)


def test_convolution_in_parts_of_the_batch(xp, monkeypatch):
    monkeypatch.setattr(convolution_own, "_CHUNK", 400)
    x, w, g = draw(1, (5, 4, 4, 4), HALF), draw(2, (3, 4, 3, 3), HALF), draw(3, (5, 3, 2, 2), HALF)
    options = (2, 2), (1, 1), (1, 1), 1
    close(xp.conv(x, w, None, *options), CPU.conv(wide(x), wide(w), None, *options), HALF)
    found = xp.conv_grads(g, x, w, (True, True, False), *options)
    wanted = CPU.conv_grads(wide(g), wide(x), wide(w), (True, True, False), *options)
    for a, b in zip(found[:2], wanted):
        close(a, b, HALF)


def test_convolution_of_nothing(xp):
    x, options = draw(1, (0, 2, 4, 4), F32), ((1, 1), (1, 1), (1, 1), 1)
    out = xp.conv(x, draw(2, (3, 2, 3, 3), F32), None, *options)
    assert out.shape == (0, 3, 4, 4)
    gw = xp.conv_weight_grad(x, out, (3, 3), *options)
    assert gw.shape == (3, 2, 3, 3) and not gw.any()


def test_plain_formula_for_integers(xp):
    x, w = np.arange(24).reshape(1, 2, 3, 4), np.arange(16).reshape(2, 2, 2, 2)
    got = xp.conv(x, w, None, (1, 1), (0, 0), (1, 1), 1)
    np.testing.assert_array_equal(got, CPU.conv(x, w, None, (1, 1), (0, 0), (1, 1), 1))


# ---------------------------------------------------------------- batch normalisation
@pytest.mark.parametrize("dtype", [F32, F64, HALF, BRAIN], ids=str)
@pytest.mark.parametrize("shape, last", [
    ((37, 5), False), ((3, 4, 9), False), ((3, 4, 1), False), ((3, 5, 3, 7), False),
    ((3, 8, 4, 8), False), ((3, 8, 4, 5), True), ((70, 16, 3, 3), True), ((2, 3, 3, 3), True),
    ((2, 40, 2, 3, 2), True)])
def test_batch_norm(xp, shape, last, dtype):
    x, g = draw(1, shape, dtype, last), draw(2, shape, dtype, last)
    x += dtype.type(3)
    c = shape[1]
    parameter = dtype if dtype in (F32, F64) or c % 2 else F32
    weight, bias = draw(3, (c,), parameter), draw(4, (c,), parameter)
    running = draw(5, (c,), parameter), np.abs(draw(6, (c,), parameter)) + parameter.type(1)
    wanted_running = [wide(r) for r in running]
    mean, var = xp.batch_stats(x, *running, 0.25)
    wanted = CPU.batch_stats(wide(x), *wanted_running, 0.25)
    for got, want in zip((mean, var), wanted):
        close(got, want, F64 if dtype is F64 else F32, 3)
    for got, want in zip(running, wanted_running):
        close(got, want, parameter, 2)
    for training, stats in ((True, (mean, var)), (False, running)):
        out = xp.normalize_channels(x, weight, bias, *stats, 1e-3)
        close(out, CPU.normalize_channels(wide(x), wide(weight), wide(bias), *map(wide, stats), 1e-3),
              dtype, 3)
        assert layouts.is_dense(out, last) if len(shape) > 2 else out.flags.c_contiguous
        found = xp.normalize_channels_backward(g, x, weight, *stats, 1e-3, training, (True,) * 3)
        wanted = CPU.normalize_channels_backward(
            wide(g), wide(x), wide(weight), *map(wide, stats), 1e-3, training, (True,) * 3)
        for a, b, kind in zip(found, wanted, (dtype, parameter, parameter)):
            close(a, b, kind, 5)


@pytest.mark.parametrize("shape, last", [((10, 3, 32, 32), True), ((4, 16, 40, 32), True),
                                         ((10, 3, 32, 32), False)])
@pytest.mark.parametrize("dtype", [F32, F64, BRAIN], ids=str)
def test_batch_norm_of_many_parts(xp, monkeypatch, shape, last, dtype):
    """Reductions in dozens of parts, more than the warps of the second stage, and uneven ones."""
    monkeypatch.setattr(batchnorm, "_DEEP", 1)
    x, g = draw(1, shape, dtype, last), draw(2, shape, dtype, last)
    x[:3] += dtype.type(9)  # parts of different means
    kind, weight = F64 if dtype is F64 else F32, draw(3, shape[1:2], F64 if dtype is F64 else F32)
    mean, var = xp.batch_stats(x)
    for got, want in zip((mean, var), CPU.batch_stats(wide(x))):
        close(got, want, kind, 5)
    found = xp.normalize_channels_backward(g, x, weight, mean, var, 1e-3, True, (True,) * 3)
    wanted = CPU.normalize_channels_backward(
        wide(g), wide(x), wide(weight), wide(mean), wide(var), 1e-3, True, (True,) * 3)
    for a, b, of in zip(found, wanted, (dtype, kind, kind)):
        close(a, b, of, 5)


def test_batches_are_counted(xp):
    x, seen = draw(1, (3, 40, 2, 2), F32), np.array(4)
    running = np.zeros(40, F32), np.ones(40, F32)
    for count in (5, 6):
        xp.batch_stats(x, *running, 0.1, seen)
        assert seen == count
    xp.batch_stats(x, *map(wide, running), 0.1, seen)  # by the plain formula
    assert seen == 7


def test_gradients_by_need(xp):
    x, g = draw(1, (4, 8, 3, 3), F32, True), draw(2, (4, 8, 3, 3), F32, True)
    weight, mean, var = draw(3, (8,), F32), draw(4, (8,), F32), np.ones(8, F32)
    for training in (True, False):
        every = xp.normalize_channels_backward(g, x, weight, mean, var, 1e-3, training, (True,) * 3)
        for needs in ((True, False, False), (False, True, False), (False, False, True)):
            some = xp.normalize_channels_backward(g, x, weight, mean, var, 1e-3, training, needs)
            for a, b, needed in zip(some, every, needs):
                assert (a is not None) == needed
                if needed:
                    np.testing.assert_array_equal(a, b)


def test_batch_norm_of_a_large_mean(xp):
    x = (1e4 + np.random.default_rng(0).standard_normal((8, 3, 40))).astype(F32)
    mean, var = xp.batch_stats(x)
    np.testing.assert_allclose(mean, x.astype(F64).mean((0, 2)), rtol=1e-6)
    np.testing.assert_allclose(var, x.astype(F64).var((0, 2)), rtol=1e-4)


@pytest.mark.parametrize("dtype", [F32, BRAIN], ids=str)
@pytest.mark.parametrize("last", [False, True])
def test_channel_sum(xp, dtype, last):
    g = draw(1, (3, 16, 5, 4), dtype, last)
    close(xp.channel_sum(g), wide(g).sum((0, 2, 3)), dtype)


@pytest.mark.parametrize("dtype", [F32, BRAIN, np.dtype(int)], ids=str)
def test_what_is_decided_holds_no_arrays(xp, dtype):
    x, w, g = draw(1, (2, 4, 5, 4), dtype), draw(2, (4, 4, 3, 3), dtype), draw(3, (2, 4, 3, 2), dtype)
    bias, scale, mean, var = draw(4, (4,), dtype), *(np.ones(4, F32) for _ in range(3))
    options = (1, 1), (0, 0), (1, 1), 1
    for given, weight in ((x, w), (x.transpose(0, 1, 3, 2).copy().transpose(0, 1, 3, 2), w[:, :, ::-1])):
        xp.conv(given, weight, bias, *options)
        xp.conv_grads(g, given, weight, (True, True, True), *options)
        xp.conv_input_grad(g, weight, (5, 4), *options)
        xp.conv_weight_grad(given, g, (3, 3), *options)
        xp.channel_sum(given)
        if dtype.kind != "i":
            xp.batch_stats(given, mean, var, 0.1)
            xp.normalize_channels(given, scale, scale, mean, var, 1e-3)
            xp.normalize_channels_backward(given, given, scale, mean, var, 1e-3, True, (True,) * 3)
    kept = [weakref.ref(a) for a in (x, w, g, bias, scale, mean, var, given, weight)]
    del x, w, g, bias, scale, mean, var, given, weight
    gc.collect()
    assert not any(ref() is not None for ref in kept)


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("shape, groups", [
    ((3, 6, 5), 3), ((2, 8, 16), 2), ((4, 6, 1), 2), ((2, 4, 3), 1)])
@pytest.mark.parametrize("affine", [True, False])
def test_group_norm(xp, shape, groups, affine, dtype):
    x, g = draw(1, shape, dtype), draw(2, shape, dtype)
    weight, bias = (draw(i, shape[1:2], dtype) if affine else None for i in (3, 4))
    found = xp.group_norm(x, weight, bias, groups, 1e-3)
    wanted = CPU.group_norm(wide(x), wide(weight), wide(bias), groups, 1e-3)
    for a, b in zip(found, wanted):
        close(a, b, dtype, 3)
    found = xp.group_norm_backward(g, x, weight, *found[1:])
    wanted = CPU.group_norm_backward(wide(g), wide(x), wide(weight), *wanted[1:])
    for a, b in zip(found, wanted):
        close(a, b, dtype, 5)


# ---------------------------------------------------------------- pooling
REGULAR, ADAPTIVE = pool_kernels.regular_windows, pool_kernels.adaptive_windows
WINDOWS = [
    ((2, 3, 9), (REGULAR(9, 4, 3, 2, 0, 1),)),
    ((2, 3, 6, 7), (REGULAR(6, 3, 3, 2, 1, 1), REGULAR(7, 4, 2, 2, 1, 1))),
    ((3, 7, 8), (REGULAR(7, 3, 3, 2, 0, 1), REGULAR(8, 2, 3, 2, 1, 2))),
    ((2, 4, 7, 5), (ADAPTIVE(7, 3), ADAPTIVE(5, 2))),
    ((2, 16, 7, 6), (REGULAR(7, 4, 3, 2, 1, 1), REGULAR(6, 3, 3, 2, 1, 1))),
    ((1, 8, 5, 4, 3), (REGULAR(5, 2, 2, 2, 0, 1), REGULAR(4, 3, 2, 1, 0, 1), ADAPTIVE(3, 2))),
    ((1, 2, 4, 5, 3), (REGULAR(4, 2, 2, 2, 0, 1), REGULAR(5, 3, 3, 2, 1, 1), ADAPTIVE(3, 2))),
]


@pytest.mark.parametrize("dtype", [F32, F64, HALF, BRAIN], ids=str)
@pytest.mark.parametrize("number", range(len(WINDOWS)))
def test_max_pool_and_its_gradient(xp, number, dtype):
    shape, windows = WINDOWS[number]
    for last in (False, True)[: 2 if len(shape) == len(windows) + 2 > 3 else 1]:
        x = draw(1, shape, dtype, last)
        out, places = xp.max_pool(x, windows)
        want, want_places = CPU.max_pool(wide(x), windows)
        close(out, want, dtype, 0)
        np.testing.assert_array_equal(places, want_places)
        assert layouts.is_dense(out, last) and layouts.is_dense(places, last)
        g = draw(2, out.shape, dtype, number == 1)
        gx = xp.max_pool_backward(g, places, windows, shape)
        close(gx, CPU.max_pool_backward(wide(g), want_places, windows, shape), dtype, 2)
        assert layouts.is_dense(gx, last)


def test_max_pool_of_nan(xp):
    last = layouts.copied(CPU, np.array([1, np.nan, 3, 4, -np.inf, -np.inf], F32).reshape(1, 1, 1, 6)
                          .repeat(4, 1), True)
    out, places = xp.max_pool(last, (REGULAR(1, 1, 1, 1, 0, 1), REGULAR(6, 3, 2, 2, 0, 1)))
    np.testing.assert_array_equal(out[0, 3, 0], [np.nan, 4, -np.inf])
    np.testing.assert_array_equal(places[0, 3, 0], [1, 3, 4])
    x = np.array([[1, np.nan, 3, 4, -np.inf, -np.inf]], F32)
    windows = (REGULAR(6, 3, 2, 2, 0, 1),)
    out, places = xp.max_pool(x, windows)
    np.testing.assert_array_equal(out, [[np.nan, 4, -np.inf]])
    np.testing.assert_array_equal(places, [[1, 3, 4]])


@pytest.mark.parametrize("dtype", [F32, F64, HALF, BRAIN], ids=str)
@pytest.mark.parametrize("shape, options, size", [
    ((2, 3, 7), ((2,), (2,), (0,)), (4,)), ((2, 4, 5, 6), ((3, 2), (2, 1), (1, 1)), (3, 7)),
    ((3, 5, 6), ((2, 2), (3, 3), (0, 1)), (2, 3)),
    ((1, 2, 4, 4, 3), ((2, 2, 3), (2, 1, 3), (0, 0, 1)), (2, 3, 2))])
def test_sums_of_windows_and_their_adjoint(xp, shape, options, size, dtype):
    for last in (False, True)[: 2 if len(shape) == len(size) + 2 > 3 else 1]:
        x = draw(1, shape, dtype, last)
        out = xp.pooled_sum(x, *options, size)
        close(out, CPU.pooled_sum(wide(x), *options, size), dtype, 2)
        inputs = shape[-len(size):]
        back = xp.spread_sum(out, *options, inputs)
        close(back, CPU.spread_sum(wide(out), *options, inputs), dtype, 2)
        assert layouts.is_dense(out, last) and layouts.is_dense(back, last)


# ---------------------------------------------------------------- resizing
@pytest.mark.parametrize("dtype", [F32, F64, HALF, BRAIN], ids=str)
@pytest.mark.parametrize("taps", [
    resample_kernels.linear_taps(5, 8, None, False), resample_kernels.cubic_taps(5, 3, None, True),
    resample_kernels.nearest_taps(5, 9, None, False, False), resample_kernels.average_taps(5, 3),
    resample_kernels.padding_taps(5, 2, 1, "reflect")])
def test_taps(xp, taps, dtype):
    for shape, axis, last in (((2, 3, 5), 2, False), ((5, 4), 0, False), ((2, 3, 5, 4), 2, True),
                              ((2, 3, 4, 5), 3, True), ((2, 3, 4, 5), 3, False)):
        x = draw(1, shape, dtype, last)
        out = xp.apply_taps(x, axis, taps)
        close(out, CPU.apply_taps(wide(x), axis, taps), dtype)
        back = xp.apply_taps(out, axis, taps.transposed)
        close(back, CPU.apply_taps(wide(out), axis, taps.transposed), dtype, 2)
        assert layouts.is_dense(out, last) and layouts.is_dense(back, last)
