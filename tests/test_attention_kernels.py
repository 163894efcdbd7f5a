"""The kernels of attention on the CPU, with tensor core instructions as the PTX ISA describes them."""

from __future__ import annotations

import math
import re
import subprocess
from types import SimpleNamespace

import cuda_host
import ml_dtypes
import numpy as np
import pytest

from disttorch.backend import attention_kernels
from disttorch.backend.gpu import attention, attention_own, source

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
    monkeypatch.setattr(attention_own, "kernel",
                        lambda _, family, name, **v: HostKernel(family, name, **v))
    monkeypatch.setattr(attention_own, "_ready", {})
    for name, empty in (("_forwards", {}), ("_backwards", {}), ("_alone", {}), ("_asked", set())):
        monkeypatch.setattr(attention, name, empty)
    monkeypatch.setattr(attention.cudnn, "enabled", lambda: False)


DTYPES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
ERROR = {"float16": 2e-3, "bfloat16": 1.6e-2}  # relative to the largest value of a result


def made(shape, dtype, seed, spread=1.0):
    values = np.random.default_rng(seed).standard_normal(shape) * spread
    return values.astype(DTYPES[dtype]).view(OnHost)


def close(got, want, dtype, name):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    assert np.isfinite(got).all(), name
    limit = ERROR[dtype] * max(np.abs(want).max(initial=0), 0.02)
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


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("axes", [(0, 2, 1, 3), (1, 2, 0, 3)])
def test_views_of_a_projection_are_not_copied(monkeypatch, causal, axes):
    """B×L×3×H×E or L×B×3×H×E, of which q, k and v are views; out lies in memory as they do."""
    packed = made((2, 70, 3, 2, 64) if axes[0] == 0 else (70, 2, 3, 2, 64), "bfloat16", 5)
    q, k, v = (packed[:, :, i].transpose(axes) for i in range(3))
    monkeypatch.setattr(Namespace, "zeros", None)  # what a copy would be made with
    out, grads = check(q, k, v, "bfloat16", causal=causal)
    back = np.argsort(axes)
    assert all(a.transpose(back).flags.c_contiguous for a in (out, *grads))


@pytest.mark.parametrize("group", [2, 3])
def test_heads_that_share_keys(group):
    q = made((2, 2 * group, 40, 64), "float16", 1)
    k, v = made((2, 2, 70, 64), "float16", 2), made((2, 2, 70, 32), "float16", 3)
    check(q, k, v, "float16", causal=True)


@pytest.mark.parametrize("shape", [(20, 32), (3, 20, 32), (2, 2, 3, 20, 32)])
def test_leading_dims(shape):
    check(*(made(shape, "float16", i) for i in range(3)), "float16")


def masks():
    r = np.random.default_rng(9)
    yield r.standard_normal((33, 70)) > 0
    yield r.standard_normal((2, 1, 33, 70)) > 0
    yield r.standard_normal((3, 33, 1)) > 0
    blind = np.ones((33, 70), bool)
    blind[5], blind[7, 3:] = False, False
    yield blind
    yield np.broadcast_to(r.standard_normal((1, 70)).astype(DTYPES["bfloat16"]), (2, 3, 33, 70))
    late = np.triu(np.full((33, 70), -np.inf, np.float32), 1).astype(DTYPES["bfloat16"])
    late[0] = -np.inf
    yield late
    yield np.arange(70) < np.array([70, 23]).reshape(2, 1, 1, 1)  # of keys alone, as padding is


@pytest.mark.parametrize(("index", "width"), [*((i, 64) for i in range(7)), (3, 128), (4, 128)])
def test_masks(index, width):
    q, k, v = (made((2, 3, n, width), "bfloat16", i) for i, n in enumerate((33, 70, 70)))
    mask = list(masks())[index]
    out, _ = check(q, k, v, "bfloat16", mask=mask.view(OnHost))
    blind = np.zeros((2, 3, 33), bool)
    if index == 3:
        blind[..., 5] = True
    if index == 5:
        blind[..., 0] = True
    if 2 < index < 6:
        assert (np.asarray(out, np.float32)[blind] == 0).all()


@pytest.mark.parametrize(("width", "state"), [(64, None), (128, (11, 4))])
def test_dropout(width, state):
    """What is dropped is what the formula drops, in both directions."""
    q = made((2, 4, 70, width), "bfloat16", 1)
    k, v = (made((2, 2, 81, width), "bfloat16", i) for i in (2, 3))
    state = None if state is None else np.array(state, np.uint64)
    random = (np.uint64(1 << 40 | 7), np.uint64(3), state)
    check(q, k, v, "bfloat16", dropout_p=0.3, random=random)
    check(q, k, v, "bfloat16", dropout_p=0.3, random=random, causal=True)
    mask = np.random.default_rng(4).standard_normal((2, 4, 70, 81)) > -1
    check(q, k, v, "bfloat16", mask=mask.view(OnHost), dropout_p=0.3, random=random)
    check(q, k, v, "bfloat16", mask=mask[:, :1, :1].view(OnHost), dropout_p=0.3, random=random)
    factors = attention_kernels.attention_factors(np, (8, 300, 500), np.dtype(np.float64), 0.3, random)
    assert abs(factors.mean() - 1) < 5e-3 and set(np.unique(factors)) == {0, 1 / 0.7}


def test_long_rows_and_large_scores():
    """Scores of ±10⁴: only differences to the largest of a row are raised to a power."""
    q, k, v = (made((1, 1, n, 32), "float16", i, 30) for i, n in enumerate((5, 700, 700)))
    v = (v / np.float16(30)).view(OnHost)
    check(q, k, v, "float16")
    q, k = made((1, 1, 3, 64), "bfloat16", 1, 1e15), made((1, 1, 200, 64), "bfloat16", 2, 1e15)
    v = made((1, 1, 200, 64), "bfloat16", 3)
    out, logs = attention.attention_forward(Namespace, q, k, v, None, True, 0.125, 0.0, None)
    assert np.isfinite(np.asarray(out, np.float32)).all() and np.isfinite(np.asarray(logs)).all()


@pytest.mark.parametrize("step", [0.02, 0.2, 3.0, -0.2])
def test_scores_that_rise_from_key_to_key(step):
    """Slowly, within what a row's base may lag behind, and by more than that from tile to tile."""
    q = np.zeros((1, 1, 40, 64), np.float16).view(OnHost)
    k, v = np.zeros((1, 1, 300, 64), np.float16).view(OnHost), made((1, 1, 300, 64), "float16", 1)
    q[..., 0], k[..., 0] = 1, np.arange(300) * step
    for causal in (False, True):
        out, logs = attention.attention_forward(Namespace, q, k, v, None, causal, 1.0, 0.0, None)
        want, want_logs = attention_kernels.attention_forward(
            np, *(np.asarray(a, np.float64) for a in (q, k, v)), None, causal, 1.0, 0.0, None)
        close(out, want, "float16", "out")
        np.testing.assert_allclose(np.asarray(logs), want_logs, rtol=1e-5, atol=1e-5)


def test_nan_stays_in_its_row():
    q, k, v = (made((1, 1, 20, 32), "float16", i) for i in range(3))
    q[0, 0, 3, 5] = np.nan
    out, _ = attention.attention_forward(Namespace, q, k, v, None, False, 0.2, 0.0, None)
    bad = np.isnan(np.asarray(out)[0, 0]).all(1)
    assert bad[3] and bad.sum() == 1


def test_tails_of_uneven_strides():
    """Rows that start anywhere, and a last dim that is not contiguous, are copied."""
    whole = [made((1, 2, 20, 41), "float16", i) for i in range(3)]
    check(*(a[..., 1:] for a in whole), "float16")
    check(*(a.swapaxes(-1, -2)[..., :20] for a in whole), "float16")


def test_what_fits():
    q = made((1, 2, 5, 8), "float16", 0)
    fits = attention.attention_fits
    assert fits(Namespace, q, q, q, None, 0.0, 0.1)
    assert not fits(Namespace, q, q, q, None, 0.0, -0.1)
    assert not fits(Namespace, *[np.zeros((1, 2, 5, 8), np.float32)] * 3, None, 0.0, 0.1)
    assert not fits(Namespace, *[made((1, 1, 2, 136), "float16", 0)] * 3, None, 0.0, 0.1)
    assert not fits(Namespace, q, *[made((1, 2, 0, 8), "float16", 0)] * 2, None, 0.0, 0.1)


def test_tiles_are_those_of_the_sources():
    """``_TILES`` repeats numbers of the sources."""
    files = "attention.cu", "attention_backward.cu"
    text = "".join((source.FOLDER / name).read_text() for name in files)
    for width, tiles in attention_own._TILES.items():
        run = subprocess.run(
            ["g++", "-E", "-P", "-x", "c++", f"-DWIDTH={width}", "-DEXTRAS=0", "-"], text=True,
            input=re.sub(r"^#include.*$", "", text, flags=re.MULTILINE)
            + "\nfound 4 * 16 * M, KEYS, 4 * 16 * KEY_M, SEEN, 4 * 16 * QUERY_M, STEP, LANES;\n",
            capture_output=True, check=True)
        found = re.search(r"found (.*);", run.stdout)[1]
        made_of = [math.prod(map(int, part.split("*"))) for part in found.split(",")]
        assert tiles == attention_own._Tiles(width, *made_of)


# ---------------------------------------------------------------- who serves a call
@pytest.fixture
def fake_cudnn(monkeypatch):
    """cuDNN that fills what it makes with 7; ``has_plan`` may be changed. Calls are noted."""
    fake = SimpleNamespace(calls=[], has_plan=True, deterministic=False)

    def forward(xp, q, k, v, causal, scale):
        fake.calls.append(("plan", q.shape, causal, scale))

        def launch(q, k, v, extras):
            fake.calls.append("forward")
            out, logs = np.full((*q.shape[:3], v.shape[3]), 7, q.dtype), np.ones(q.shape[:3], np.float32)
            return out.view(OnHost), logs.view(OnHost)

        return launch if fake.has_plan else None

    def backward(xp, g, q, k, v, out, causal, scale):
        def launch(g, q, k, v, out, logs, extras):
            fake.calls.append("backward")
            return tuple(np.full(a.shape, 7, a.dtype).view(OnHost) for a in (q, k, v))

        return launch if fake.has_plan else None

    monkeypatch.setattr(attention.cudnn, "enabled", lambda: True)
    monkeypatch.setattr(attention.cudnn, "deterministic", lambda: fake.deterministic)
    monkeypatch.setattr(attention.cudnn_attention, "forward", forward)
    monkeypatch.setattr(attention.cudnn_attention, "backward", backward)
    return fake


def long_arrays(rows=130):
    return made((1, 1, rows, 32), "float16", 0)


def forward_of(q, mask=None):
    return attention.attention_forward(Namespace, q, q, q, mask, True, 0.5, 0.0, None)


def is_cudnns(array):
    return (np.asarray(array) == 7).all()


@pytest.mark.parametrize("has_plan", [True, False])
def test_cudnn_comes_first_where_it_may(monkeypatch, fake_cudnn, has_plan):
    """Without mask and dropout; where it has no plan, or is switched off, the kernels here run."""
    fake_cudnn.has_plan, q = has_plan, long_arrays()
    for _ in range(2):  # the second time as it was decided the first time
        assert is_cudnns(forward_of(q)[0]) == has_plan
    assert fake_cudnn.calls == [("plan", q.shape, True, 0.5), *["forward"] * 2 * has_plan]
    assert not is_cudnns(forward_of(q, np.ones((130, 130), bool).view(OnHost))[0])
    monkeypatch.setitem(attention_kernels.ALLOWED, "cudnn", False)
    assert not is_cudnns(forward_of(q)[0])
    assert attention.attention_fits(Namespace, q, q, q, None, 0.0, 0.5)
    monkeypatch.setitem(attention_kernels.ALLOWED, "flash", False)
    assert attention.attention_fits(Namespace, q, q, q, None, 0.0, 0.5)
    monkeypatch.setitem(attention_kernels.ALLOWED, "mem_efficient", False)
    assert not attention.attention_fits(Namespace, q, q, q, None, 0.0, 0.5)
    monkeypatch.setitem(attention_kernels.ALLOWED, "cudnn", True)
    for name in ("flash", "own first"):
        monkeypatch.setitem(attention_kernels.ALLOWED, name, True)
    assert not is_cudnns(forward_of(q)[0])
    assert fake_cudnn.calls.count(("plan", q.shape, True, 0.5)) == 1


def test_backward_is_ours_where_the_same_bits_are_wanted(fake_cudnn):
    q = long_arrays()
    out, logs = forward_of(q)
    rest = (q, q, q, None, out, logs, True, 0.5, 0.0, None)
    for fake_cudnn.deterministic in (False, True, False):
        grads = attention.attention_backward(Namespace, out, *rest)
        assert all(map(is_cudnns, grads)) != fake_cudnn.deterministic
    assert fake_cudnn.calls[2:] == ["backward"] * 2


def test_cudnn_is_not_asked_for_what_is_not_worth_a_plan(monkeypatch, fake_cudnn):
    """Few queries or keys; lengths that change from call to call; unless nothing else may serve."""
    assert not is_cudnns(forward_of(long_arrays(16))[0])
    monkeypatch.setattr(attention, "_MOST_PLANS", 2)
    for rows, served in ((130, True), (140, True), (150, False), (130, True)):
        assert is_cudnns(forward_of(long_arrays(rows))[0]) == served
    for name in ("flash", "mem_efficient"):
        monkeypatch.setitem(attention_kernels.ALLOWED, name, False)
    assert is_cudnns(forward_of(long_arrays(16))[0])
    fake_cudnn.has_plan, q = False, long_arrays(17)
    assert not attention.attention_fits(Namespace, q, q, q, None, 0.0, 0.5)  # nor are ours taken instead


def test_what_was_decided_does_not_serve_other_arrays(fake_cudnn):
    """Addresses that are no multiples of 16 are not part of a layout: such arrays are copied."""
    memory = np.zeros(130 * 32 + 8, np.float16).view(OnHost)
    start = -memory.ctypes.data % 16 // 2
    arrays = [memory[s : s + 130 * 32].reshape(1, 1, 130, 32) for s in (start, start + 1)]
    assert forward_of(arrays[0])[0].shape == forward_of(arrays[1])[0].shape
    seen = []

    def launch(q, k, v, extras):
        seen.extend(a.data.ptr % 16 for a in (q, k, v))
        return q, np.zeros(q.shape[:3], np.float32)

    attention._forwards = dict.fromkeys(attention._forwards, launch)
    for a in arrays:
        forward_of(a)
    assert seen == [0] * 6
