"""Kernels over rows, compiled for the CPU: widths around every border, rows that start anywhere, and the
parts that the GPU's small tests do not reach."""

from __future__ import annotations

import cuda_host
import ml_dtypes
import numpy as np
import pytest

from disttorch.backend import CPU, row_kernels
from disttorch.backend.gpu.rows import packs

pytestmark = pytest.mark.skipif(not cuda_host.available(), reason="needs g++ and an x86-64 processor")
NEAR = {"float32": 2e-5, "bfloat16": 1.6e-2}
rng = np.random.default_rng(1)


def drawn(*shape, name="float32"):
    return rng.standard_normal(shape).astype(getattr(ml_dtypes, name, name))


def near(got, want, name):
    np.testing.assert_allclose(got.astype(np.float64), want, rtol=NEAR[name], atol=4 * NEAR[name])


@pytest.mark.parametrize("itemsize", [2, 4, 8])
def test_packs_of_a_row_anywhere(itemsize):
    each = 16 // itemsize
    for width in range(1, 70):
        touched = [(r * width % each + width - 1) // each + 1 for r in range(each)]
        assert packs(width, itemsize) >= max(touched) >= packs(width, itemsize) - 1


TEAMS = {"lanes2": (1, 128), "lanes8": (1, 128), "warp1": (2, 128), "warp4": (2, 128),
         "block": (5, 64), "long": (5, 64)}
MOST = {"lanes2": 2, "lanes8": 8, "warp1": 32, "warp4": 128, "block": 256}  # packs of 16 bytes


@pytest.mark.parametrize("name", NEAR)
@pytest.mark.parametrize("width", [1, 7, 8, 9, 31, 61, 257, 258, 2049])
@pytest.mark.parametrize("kind", TEAMS)
def test_softmax(kind, width, name):
    """Rows that begin and end between 16 bytes, at the end of the array, too."""
    if packs(width, 2 if name == "bfloat16" else 4) > MOST.get(kind, 1 << 20):
        pytest.skip("wider than this kernel takes")
    x, out, grad = drawn(5, width, name=name), drawn(5, width, name=name), drawn(5, width, name=name)
    (grid, block), run = TEAMS[kind], lambda name_: cuda_host.kernel(
        "softmax", f"{name_}_{kind}", ELEMENT=name)
    run("softmax")((grid,), (block,), (x, out, 5, width, 0))
    want = CPU.softmax(x.astype(np.float64), 1)
    near(out, want, name)
    g = drawn(5, width, name=name)
    run("softmax_backward")((grid,), (block,), (g, out, grad, 5, width, 0))
    near(grad, CPU.softmax_backward(g.astype(np.float64), out.astype(np.float64), 1), name)
    run("softmax")((grid,), (block,), (x, out, 5, width, 1))
    near(out, np.log(want), name)


@pytest.mark.parametrize("kind", TEAMS)
def test_softmax_of_large_and_infinite_elements(kind):
    """The power's folded factor is the same for a whole row, however large its elements."""
    width = min(40, 8 * MOST.get(kind, 5))
    x = drawn(5, width, name="bfloat16")
    x[0] = (x[0].astype(np.float32) + 3e4).astype(x.dtype)
    x[1, 3:], x[2], x[3, 7], x[4, -1] = -np.inf, -np.inf, np.nan, np.inf
    out, (grid, block) = np.empty_like(x), TEAMS[kind]
    for logs in (0, 1):
        cuda_host.kernel("softmax", f"softmax_{kind}", ELEMENT="bfloat16")(
            (grid,), (block,), (x, out, 5, width, logs))
        wide = x.astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            want = CPU.softmax(wide, 1)
            want = np.log(want) if logs else want
        assert np.isnan(out[2:].astype(np.float32)).all()
        near(out[:2], want[:2], "bfloat16")


@pytest.mark.parametrize("name", NEAR)
@pytest.mark.parametrize("classes", [3, 300, 4099])
def test_cross_entropy_by_blocks_and_warps_agree(classes, name):
    x, target = drawn(6, classes, name=name), rng.integers(0, classes, 6)
    target[3], found = -100, []
    for kind, grid, block in (("warps", 2, 128), ("rows", 6, 96)):
        stats = np.empty(19, np.float32)
        cuda_host.kernel("losses", f"cross_entropy_{kind}", ELEMENT=name)(
            (grid,), (block,), (x, target, None, None, stats, 6, classes, -100, 0.1))
        grad, g = np.empty_like(x), np.ones((), np.float32)
        cuda_host.kernel("losses", f"cross_entropy_backward_{kind}", ELEMENT=name)(
            (grid,), (block,),
            (x, target, None, None, stats, None, g, grad, 6, classes, -100, 0.1, 0, 0))
        found.append((stats[:6], grad))
    wide = x.astype(np.float64)
    want, aux = row_kernels.cross_entropy(CPU, wide, target, None, -100, "none", 0.1)
    slope = row_kernels.cross_entropy_backward(
        CPU, np.ones(6), wide, target, None, aux, -100, "none", 0.1)
    for losses, grad in found:
        near(losses, want, "float32")
        near(grad, slope, name)


@pytest.mark.parametrize("name", NEAR)
@pytest.mark.parametrize("kind", TEAMS)
@pytest.mark.parametrize("width", [5, 8, 61, 64])
def test_norm(kind, width, name):
    """Scales and shifts beside rows anywhere, and the statistics that backward reads."""
    if packs(width, 2 if name == "bfloat16" else 4) > MOST.get(kind, 1 << 20):
        pytest.skip("wider than this kernel takes")
    x, w, b = drawn(5, width, name=name), drawn(width), drawn(width)
    (grid, block), wide = TEAMS[kind], x.astype(np.float64)
    run = cuda_host.kernel("norms", f"norm_{kind}", ELEMENT=name, WEIGHT="float32")
    for weight, bias in ((w, b), (None, None), (w, None)):
        out, stats = np.empty_like(x), np.empty(10, np.float32)
        run((grid,), (block,), (x, weight, bias, out, stats, 5, width, 1e-5, 1))
        want, mean, rstd = CPU.layer_norm(wide, weight, bias, 1e-5)
        near(out, want, name)
        near(stats, np.concatenate([mean, rstd]), "float32")
        run((grid,), (block,), (x, weight, None, out, stats, 5, width, 1e-5, 0))
        want, rstd = row_kernels.rms_norm(CPU, wide, weight, 1e-5)
        near(out, want, name)
        near(stats[:5], rstd, "float32")


@pytest.mark.parametrize("name", NEAR)
@pytest.mark.parametrize("kind,grid,block,team", [
    ("block", 2, 256, 32), ("block", 5, 96, 32), ("block", 3, 64, 64), ("wide", 3, 32, 32),
    ("long", 21, 32, 0)])
def test_norm_backward_by_every_kernel(kind, grid, block, team, name):
    """Several rows a block, several blocks, and rows of any width give the same gradients."""
    rows, width = 21, 96
    g, x, w = drawn(rows, width, name=name), drawn(rows, width, name=name), drawn(width)
    wide = [a.astype(np.float64) for a in (g, x, w)]
    _, mean, rstd = CPU.layer_norm(wide[1], None, None, 1e-5)
    want = CPU.layer_norm_backward(*wide, mean, rstd)
    stats = np.concatenate([mean, rstd]).astype(np.float32)
    names = {"ELEMENT": name, "WEIGHT": "float32"}
    grad, run = np.empty_like(x), cuda_host.kernel("norms", f"norm_backward_{kind}", **names)
    if kind == "long":
        parts = np.empty((2, 3, width), np.float32)
        run((grid,), (block,), (g, x, w, stats, grad, rows, width, 1))
        cuda_host.kernel("norms", "norm_columns", **names)(
            (1, 3), (128,), (g, x, stats, parts, rows, width, 7, 1))
    else:
        parts, shared = np.empty((2, grid, width), np.float32), 64 * block * (4 if kind == "wide" else 2)
        run((grid,), (block,), (g, x, w, stats, grad, parts, rows, width, team, 1), shared=shared)
    near(grad, want[0], name)
    near(parts[0].sum(0), want[1], "float32")
    near(parts[1].sum(0), want[2], "float32")
    gw, gb = np.empty(width, np.float32), np.empty(width, np.float32)
    cuda_host.kernel("norms", "norm_finish", **names)(
        (6,), (512,), (parts, gw, gb, parts.shape[1], width))
    near(gw, want[1], "float32")
    near(gb, want[2], "float32")


@pytest.mark.parametrize("name", NEAR)
@pytest.mark.parametrize("what,function", [("sum", np.sum), ("largest", np.max), ("smallest", np.min)])
def test_reductions_in_strips(what, function, name):
    x = drawn(2, 50, 24, name=name)
    wide = x.astype(np.float64)
    for kind, wide_block in (("packs", 4), ("columns", 8)):
        out = np.empty((2, 3, 24), np.float32)
        each = 16 // x.itemsize if kind == "packs" else 1
        cuda_host.kernel("reductions", f"{kind}_{what}", ELEMENT=name, RESULT="float32")(
            (-(-24 // (wide_block * each)), 3, 2), (wide_block, 256 // wide_block),
            (x, None, out, 2, 50, 24, 17, 1.0, 0))
        want = np.stack([function(wide[:, i : i + 17], axis=1) for i in (0, 17, 34)], axis=1)
        near(out, want, "float32")
    out = np.empty((2, 3), np.float32)
    cuda_host.kernel("reductions", f"rows_{what}", ELEMENT=name, RESULT="float32")(
        (6,), (64,), (x, None, out, 2, 1200, 3, 401, 1.0, 0))
    flat = wide.reshape(2, 1200)
    want = np.stack([function(flat[:, i : i + 401], axis=1) for i in (0, 401, 802)], axis=1)
    near(out, want, "float32")
