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


@pytest.mark.parametrize("name", NEAR)
@pytest.mark.parametrize("width", [1, 7, 8, 9, 31, 257, 258])
@pytest.mark.parametrize("kernel", ["warp1", "warp4", "block", "long"])
def test_softmax(kernel, width, name):
    most = {"warp1": 32, "warp4": 128}.get(kernel, 1 << 20)
    if packs(width, 2 if name == "bfloat16" else 4) > most:
        pytest.skip("wider than this kernel takes")
    x, out, grad = drawn(5, width, name=name), drawn(5, width, name=name), drawn(5, width, name=name)
    grid, block = ((2,), (128,)) if kernel.startswith("warp") else ((5,), (64,))
    run = lambda name_: cuda_host.kernel("softmax", f"{name_}_{kernel}", ELEMENT=name)  # noqa: E731
    run("softmax")(grid, block, (x, out, 5, width, 0))
    want = CPU.softmax(x.astype(np.float64), 1)
    near(out, want, name)
    g = drawn(5, width, name=name)
    run("softmax_backward")(grid, block, (g, out, grad, 5, width, 0))
    near(grad, CPU.softmax_backward(g.astype(np.float64), out.astype(np.float64), 1), name)
    run("softmax")(grid, block, (x, out, 5, width, 1))
    near(out, np.log(want), name)


@pytest.mark.parametrize("name", NEAR)
@pytest.mark.parametrize("offset", [0, 1, 3])
def test_inputs_that_start_beside_16_bytes(offset, name):
    """Other phases of input and output: slower, and right."""
    x, out = drawn(3 * 70 + offset, name=name)[offset:], drawn(3, 70, name=name)
    cuda_host.kernel("softmax", "softmax_block", ELEMENT=name)((3,), (32,), (x, out, 3, 70, 0))
    near(out, CPU.softmax(x.reshape(3, 70).astype(np.float64), 1), name)


@pytest.mark.parametrize("classes", [3, 300])
def test_cross_entropy_by_blocks_and_warps_agree(classes):
    x, target = drawn(6, classes), rng.integers(0, classes, 6)
    found = []
    for kind, grid, block in (("warps", 2, 128), ("rows", 6, 96)):
        losses, sums, shares = (np.empty(6, np.float32) for _ in range(3))
        cuda_host.kernel("losses", f"cross_entropy_{kind}", ELEMENT="float32")(
            (grid,), (block,), (x, target, None, None, losses, sums, shares, 6, classes, -100, 0.1))
        grad, g = np.empty_like(x), np.ones((), np.float32)
        cuda_host.kernel("losses", f"cross_entropy_backward_{kind}", ELEMENT="float32")(
            (grid,), (block,), (x, target, None, None, sums, shares, None, g, None, grad, 6, classes,
                                -100, 0.1, 0))
        found.append((losses, grad))
    wide = x.astype(np.float64)
    want, aux = row_kernels.cross_entropy(CPU, wide, target, None, -100, "none", 0.1)
    slope = row_kernels.cross_entropy_backward(
        CPU, np.ones(6), wide, target, None, aux, -100, "none", 0.1)
    for losses, grad in found:
        near(losses, want, "float32")
        near(grad, slope, "float32")


@pytest.mark.parametrize("name", NEAR)
def test_norm_backward_by_every_kernel(name):
    """One block for several rows, several blocks, and rows of any width give the same gradients."""
    rows, width = 21, 96
    g, x, w = drawn(rows, width, name=name), drawn(rows, width, name=name), drawn(width)
    wide = [a.astype(np.float64) for a in (g, x, w)]
    _, mean, rstd = CPU.layer_norm(wide[1], None, None, 1e-5)
    want = CPU.layer_norm_backward(*wide, mean, rstd)
    stats = mean.astype(np.float32), rstd.astype(np.float32)
    kinds = ("warp1", 2, 256), ("warp3", 3, 256), ("block", 5, 32), ("long", rows, 32)
    for kind, grid, block in kinds:
        grad, run = np.empty_like(x), cuda_host.kernel(
            "norms", f"norm_backward_{kind}", ELEMENT=name, WEIGHT="float32")
        if kind == "long":
            parts = np.empty((2, 3, width), np.float32)
            run((grid,), (block,), (g, x, w, *stats, grad, rows, width))
            cuda_host.kernel("norms", "norm_columns", ELEMENT=name, WEIGHT="float32")(
                (1, 3), (128,), (g, x, *stats, parts, rows, width, 7))
        else:
            parts = np.empty((2, grid, width), np.float32)
            shared = 2 * width * 4 if kind.startswith("warp") else 0
            if packs(width, x.itemsize) > (32 if kind == "warp1" else 96):
                continue
            run((grid,), (block,), (g, x, w, *stats, grad, parts, rows, width), shared=shared)
        near(grad, want[0], name)
        near(parts[0].sum(0), want[1], "float32")
        near(parts[1].sum(0), want[2], "float32")


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
