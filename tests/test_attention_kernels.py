"""The kernels of attention on the CPU, with tensor core instructions as the PTX ISA describes them."""

from __future__ import annotations

import math
from types import SimpleNamespace

import cuda_host
import ml_dtypes
import numpy as np
import pytest

from disttorch.backend import attention_kernels
from disttorch.backend.gpu import attention, source

pytestmark = pytest.mark.skipif(not cuda_host.available(), reason="no g++, or not x86-64")

# ---------------------------------------------------------------- the emulated instructions
PROBE = """
#include "mma.cuh"
extern "C" __global__ void probe(const u32* a, const u32* b, float* c, const u16* rows, u32* plain,
                                 u32* turned) {
    int lane = threadIdx.x;
    u32 left[4], out[4];
    float sum[4];
    for (int i = 0; i < 4; i++) left[i] = a[lane * 4 + i], sum[i] = c[lane * 4 + i];
    Tensor<ELEMENT>::multiply(sum, left, b[lane * 2], b[lane * 2 + 1]);
    for (int i = 0; i < 4; i++) c[lane * 4 + i] = sum[i];
    DYNAMIC_SHARED(u16, shared);
    for (int i = lane; i < 256; i += WARP) shared[i] = rows[i];
    __syncthreads();
    load_matrices<false>(out, shared + lane * 8);
    for (int i = 0; i < 4; i++) plain[lane * 4 + i] = out[i];
    load_matrices<true>(out, shared + lane * 8);
    for (int i = 0; i < 4; i++) turned[lane * 4 + i] = out[i];
}
"""


def matrices_to_lanes(matrix, place):
    """Values of a matrix as the lanes hold them: 32 × how many; ``place(lane, i)``: (row, column)."""
    count = matrix.size // 32
    return np.array([[matrix[place(lane, i)] for i in range(count)] for lane in range(32)])


# From the PTX ISA, "Matrix fragments for mma.m16n8k16 with floating point type"
def place_a(lane, i):
    group, thread = lane >> 2, lane % 4
    row = group if i < 2 or 4 <= i < 6 else group + 8
    return row, thread * 2 + (i & 1) + (0 if i < 4 else 8)


def place_b(lane, i):
    group, thread = lane >> 2, lane % 4
    return thread * 2 + (i & 1) + (0 if i < 2 else 8), group


def place_c(lane, i):
    group, thread = lane >> 2, lane % 4
    return group + (0 if i < 2 else 8), thread * 2 + (i & 1)


@pytest.mark.parametrize("element", ["float16", "bfloat16"])
def test_instructions_of_the_tensor_cores(element):
    dtype = np.dtype(ml_dtypes.bfloat16 if element == "bfloat16" else np.float16)
    r = np.random.default_rng(1)
    a, b = r.standard_normal((16, 16)).astype(dtype), r.standard_normal((16, 8)).astype(dtype)
    c = r.standard_normal((16, 8)).astype(np.float32)
    rows = np.arange(256, dtype=np.uint16)
    sums = matrices_to_lanes(c, place_c)
    plain, turned = np.zeros((32, 4), np.uint32), np.zeros((32, 4), np.uint32)
    text = PROBE.replace('#include "mma.cuh"', (source.FOLDER / "mma.cuh").read_text())
    text = text.replace('#include "common.cuh"', (source.FOLDER / "common.cuh").read_text())
    library = cuda_host.compile_text(text, source.options((("ELEMENT", element),)), "probe.cu")
    cuda_host.Kernel(library, "probe")((1,), (32,), (
        matrices_to_lanes(a, place_a).view(np.uint32).copy(),
        matrices_to_lanes(b, place_b).view(np.uint32).copy(), sums, rows, plain, turned), 512)
    want = c + a.astype(np.float64) @ b.astype(np.float64)
    np.testing.assert_allclose(sums, matrices_to_lanes(want, place_c), rtol=1e-5, atol=1e-5)
    # ldmatrix: lane i's address is that of row i % 8 of matrix i / 8; "ldmatrix", PTX ISA
    tiles = rows.reshape(4, 8, 8)
    for lane in range(32):
        for m in range(4):
            pair = tiles[m, lane // 4, lane % 4 * 2 : lane % 4 * 2 + 2]
            assert plain[lane, m] == int(pair[0]) | int(pair[1]) << 16
            pair = tiles[m].T[lane // 4, lane % 4 * 2 : lane % 4 * 2 + 2]
            assert turned[lane, m] == int(pair[0]) | int(pair[1]) << 16


# ---------------------------------------------------------------- the kernels
class OnHost(np.ndarray):
    """An array whose memory has an address as CuPy's has."""

    @property
    def data(self):
        return SimpleNamespace(ptr=self.ctypes.data)


class Namespace:
    """What the launches need, over NumPy; new memory holds NaN until it is written."""

    cupy, index = None, 0
    ascontiguousarray = staticmethod(np.ascontiguousarray)

    @staticmethod
    def empty(shape, dtype):
        return np.full(shape, np.nan, dtype).view(OnHost)

    @staticmethod
    def zeros(shape, dtype):
        return np.zeros(shape, dtype).view(OnHost)


class HostKernel:
    """A kernel on the shim that must have asked for its shared memory."""

    def __init__(self, family, name, **values):
        self.kernel, self.allowed = cuda_host.kernel(family, name, **values), 48 << 10

    def allow_shared(self, size):
        assert size <= 99 << 10  # what GPUs of compute capability 8.6, 8.9 and 12.0 have
        self.allowed = size

    def __call__(self, grid, block, args, shared=0):
        assert shared <= self.allowed
        args = tuple(np.asarray(a) if isinstance(a, OnHost) else a for a in args)
        self.kernel(grid, block, args, shared)


@pytest.fixture(autouse=True)
def on_host(monkeypatch):
    monkeypatch.setattr(attention, "kernel", lambda _, family, name, **v: HostKernel(family, name, **v))
    monkeypatch.setattr(attention, "_ready", {})


DTYPES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
ERROR = {"float16": 2e-3, "bfloat16": 1.6e-2}  # relative to the largest value of a result


def made(shape, dtype, seed, spread=1.0):
    values = np.random.default_rng(seed).standard_normal(shape) * spread
    return values.astype(DTYPES[dtype]).view(OnHost)


def close(got, want, dtype, name):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    assert np.isfinite(got).all(), name
    limit = ERROR[dtype] * max(np.abs(want).max(initial=0), 1e-3)
    assert np.abs(got - want).max(initial=0) <= limit, (name, np.abs(got - want).max(), limit)


def check(q, k, v, dtype, mask=None, causal=False, scale=None, dropout_p=0.0, random=None):
    """Forward and backward on the shim against the formula in float64."""
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    wide = [np.asarray(a, np.float64) for a in (q, k, v)]
    wide_mask = mask if mask is None or mask.dtype.kind == "b" else np.asarray(mask, np.float64)
    rest = (causal, scale, dropout_p, random)
    want, logs = attention_kernels.attention_forward(np, *wide, wide_mask, *rest)
    assert attention.attention_fits(Namespace, q, k, v, mask, dropout_p, scale)
    out, got_logs = attention.attention_forward(Namespace, q, k, v, mask, *rest)
    close(out, want, dtype, "out")
    np.testing.assert_allclose(np.asarray(got_logs), logs, rtol=1e-4, atol=1e-3)
    g = made(out.shape, dtype, 77)
    grads = attention.attention_backward(Namespace, g, q, k, v, mask, out, got_logs, *rest)
    wanted = attention_kernels.attention_backward(
        np, np.asarray(g, np.float64), *wide, wide_mask, want, logs, *rest)
    for name, a, b in zip(("dq", "dk", "dv"), grads, wanted):
        close(a, b, dtype, name)
    return out, grads


@pytest.mark.parametrize(("width", "dtype"), [(32, "float16"), (64, "bfloat16"), (96, "float16"),
                                              (128, "bfloat16"), (40, "bfloat16"), (3, "float16")])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("L", "S"), [(1, 1), (17, 65), (130, 16), (65, 130)])
def test_kernels_of_all_widths(width, dtype, causal, L, S):
    q, k, v = (made((1, 2, n, width), dtype, i) for i, n in enumerate((L, S, S)))
    check(q, k, v, dtype, causal=causal)
