"""The GPU's matrix products over NumPy arrays: layouts, flags and strides as cuBLAS would get them."""

from __future__ import annotations

import itertools
import types

import ml_dtypes
import numpy as np
import pytest
from cublas_twin import NumpyCublas, Refused

from disttorch.backend import dtypes, plain_kernels
from disttorch.backend.gpu import cublas, cublaslt, gemm, linear
from disttorch.backend.precision import PRECISION

BF16 = np.dtype(ml_dtypes.bfloat16)
ALL = [np.dtype(d) for d in ("float32", "float64", "float16", "complex64", "complex128")] + [BF16]
TOLERANCE = {"float16": 2e-3, "bfloat16": 2e-2, "float32": 1e-5, "complex64": 1e-5}


class Array(np.ndarray):
    """A NumPy array with the address where CuPy has it."""

    data = property(lambda self: types.SimpleNamespace(ptr=self.ctypes.data))

    def astype(self, dtype, copy=True):
        return place(np.asarray(self).astype(dtype)) if copy or self.dtype != dtype else self


class Blocks(NumpyCublas):
    """The twin, in the memory of ``place`` and ``empty`` only."""

    blocks: list = []

    def submit(self, name, reads, writes, work):
        for address, size in [*reads, *writes]:
            inside = any(start <= address and address + size <= start + held.nbytes
                         for start, held in self.blocks)
            assert inside, f"{name} touches {size} bytes at {address:#x}, outside of every array"
        work()


def empty(shape, dtype):
    """Memory that is not zero: what is never written shows."""
    held = np.full(int(np.prod(shape)) * np.dtype(dtype).itemsize, 0xFF, np.uint8)
    Blocks.blocks.append((held.ctypes.data, held))
    return held.view(dtype).reshape(shape).view(Array)


def place(array):
    """The array in memory that the twin knows, contiguous."""
    out = empty(array.shape, array.dtype)
    out[...] = array
    return out


copies: list = []


def ascontiguousarray(a):
    if not a.flags.c_contiguous:
        copies.append(a.shape)
        return place(a)
    return a


CUPY = types.SimpleNamespace(
    empty=empty, ascontiguousarray=ascontiguousarray, matmul=np.matmul,
    cuda=types.SimpleNamespace(
        runtime=types.SimpleNamespace(getDevice=lambda: 0, runtimeGetVersion=lambda: 13000)))


class Namespace:
    """As much of the GPU's namespace as products use."""

    cupy = CUPY
    tanh, erf = staticmethod(np.tanh), None

    def __init__(self):
        for module in (plain_kernels, gemm, linear):
            for name, value in vars(module).items():
                if isinstance(value, types.FunctionType) and not name.startswith("_"):
                    setattr(self, name, value.__get__(self))


@pytest.fixture
def xp(monkeypatch):
    monkeypatch.setattr(cublas, "FACTORY", Blocks)
    monkeypatch.setattr(cublas, "_local", types.SimpleNamespace())
    monkeypatch.setattr(cublas, "_idle", {})
    monkeypatch.setattr(Blocks, "blocks", [])
    copies.clear()
    return Namespace()


def calls():
    return cublas.library(CUPY).calls


def numbers(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal(shape)
    if dtype.kind == "c":
        a = a + 1j * rng.standard_normal(shape)
    return place(a.astype(dtype))


def wide(a):
    return np.asarray(a).astype(np.complex128 if a.dtype.kind == "c" else np.float64)


def close(got, want, dtype):
    tolerance = TOLERANCE.get(dtype.name, 1e-12)
    assert got.dtype == dtype and got.shape == want.shape
    np.testing.assert_allclose(wide(got), want, rtol=tolerance, atol=4 * tolerance)


# ---------------------------------------------------------------- every layout of the last two dims
LAYOUTS = {
    "rows": lambda a: a,
    "columns": lambda a: place(a.swapaxes(-1, -2)).swapaxes(-1, -2),
    "sliced rows": lambda a: slice_of(a, (0, 3)),
    "offset": lambda a: slice_of(a, (1, 1)),
    "sliced columns": lambda a: slice_of(a.swapaxes(-1, -2), (2, 5)).swapaxes(-1, -2),
    "every second": lambda a: every_second(a),
    "backwards": lambda a: place(a[..., ::-1, ::-1])[..., ::-1, ::-1],
}


def slice_of(a, more):
    """The array inside one with more rows and columns around it."""
    rows, columns = a.shape[-2:]
    big = empty((*a.shape[:-2], rows + 2 * more[0], columns + 2 * more[1]), a.dtype)
    view = big[..., more[0]: more[0] + rows, more[1]: more[1] + columns]
    view[...] = a
    return view


def every_second(a):
    big = empty((*a.shape[:-1], 2 * a.shape[-1]), a.dtype)
    big[..., ::2] = a
    return big[..., ::2]


@pytest.mark.parametrize("dtype", ALL, ids=str)
@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 4, 5), (3, 1, 5), (3, 4, 1), (1, 1, 1), (1, 7, 1)])
def test_two_matrices_in_every_layout(xp, shape, dtype):
    n, k, m = shape
    a, b = numbers((n, k), dtype), numbers((k, m), dtype, 1)
    want = wide(a) @ wide(b)
    for one, other in itertools.product(LAYOUTS.values(), repeat=2):
        close(xp.matmul(one(a), other(b)), want, dtype)


@pytest.mark.parametrize("layout", ["rows", "columns", "sliced rows", "offset", "sliced columns"])
def test_legal_layouts_are_not_copied(xp, layout):
    a, b = numbers((3, 4), BF16), numbers((4, 5), BF16, 1)
    xp.matmul(LAYOUTS[layout](a), LAYOUTS[layout](b))
    assert not copies and calls() == [("gemm", (5, 3, 4), 1)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_result_goes_where_out_says(xp, layout):
    dtype = np.dtype(np.float32)
    a, b = numbers((3, 4), dtype), numbers((4, 5), dtype, 1)
    out = LAYOUTS[layout](numbers((3, 5), dtype, 2))
    assert xp.matmul(a, b, out=out) is out
    close(out, wide(a) @ wide(b), dtype)
    before = wide(out)
    xp.product(a, b, out, 0.5, -2)
    close(out, 0.5 * (wide(a) @ wide(b)) - 2 * before, dtype)


def test_out_must_fit(xp):
    a, b = numbers((3, 4), BF16), numbers((4, 5), BF16)
    with pytest.raises(ValueError, match="out is"):
        xp.matmul(a, b, out=empty((3, 4), BF16))
    with pytest.raises(ValueError, match="out is"):
        xp.matmul(a, b, out=empty((3, 5), np.float32))
    with pytest.raises(ValueError, match="do not fit"):
        xp.matmul(a, a)


# ---------------------------------------------------------------- vectors, leading dims, empty
@pytest.mark.parametrize(("one", "other"), [
    ((4,), (4,)), ((3, 4), (4,)), ((4,), (4, 5)), ((2, 3, 4), (4,)), ((4,), (2, 4, 5)),
    ((2, 3, 4), (4, 5)), ((3, 4), (2, 4, 5)), ((2, 3, 4), (2, 4, 5)), ((2, 1, 3, 4), (6, 4, 2)),
    ((2, 6, 3, 4), (2, 6, 4, 5)), ((2, 3, 4), (1, 4, 5)), ((5, 1, 4), (4, 3)), ((5, 1, 4), (5, 4, 3)),
    ((2, 1, 3, 4), (1, 3, 4, 2)), ((1, 3, 4), (1, 4, 2)),
])
@pytest.mark.parametrize("dtype", [BF16, np.dtype(np.complex64)], ids=str)
def test_broadcasting_as_numpy(xp, one, other, dtype):
    a, b = numbers(one, dtype), numbers(other, dtype, 1)
    want = np.matmul(wide(a), wide(b))
    close(xp.matmul(a, b), want, dtype)
    out = empty(want.shape, dtype)
    assert xp.matmul(a, b, out=out) is out
    close(out, want, dtype)
    if a.ndim == 1:  # a vector with a stride is a matrix of one row
        close(xp.matmul(every_second(a), b), want, dtype)


@pytest.mark.parametrize(("one", "other"), [
    ((0, 4), (4, 5)), ((3, 0), (0, 5)), ((3, 4), (4, 0)), ((0,), (0,)), ((0, 3, 4), (0, 4, 5)),
    ((2, 3, 0), (2, 0, 5)), ((2, 0, 4), (4, 5)), ((0, 0), (0, 0)),
])
def test_empty_products(xp, one, other):
    a, b = numbers(one, BF16), numbers(other, BF16)
    got = xp.matmul(a, b)
    np.testing.assert_array_equal(got, np.zeros(np.matmul(wide(a), wide(b)).shape))
    assert not calls()


@pytest.mark.parametrize("most", [0, 1, 8])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_leading_dims_that_do_not_collapse(xp, layout, most, monkeypatch):
    """(B, T, H, D) seen as (B, H, T, D): two strides."""
    monkeypatch.setattr(gemm, "MOST_CALLS", most)
    dtype = np.dtype(np.float32)
    arrange = LAYOUTS[layout]
    q, k, v = (numbers((2, 5, 3, 4), dtype, i).transpose(0, 2, 1, 3) for i in range(3))
    q, k = arrange(q), arrange(k)
    scores = xp.matmul(q, k.swapaxes(-1, -2))
    want = np.matmul(wide(q), wide(k).swapaxes(-1, -2))
    close(scores, want, dtype)
    close(xp.matmul(scores, v), np.matmul(want, wide(v)), dtype)
    close(xp.matmul(scores.swapaxes(-1, -2), v), np.matmul(want.swapaxes(-1, -2), wide(v)), dtype)


@pytest.mark.parametrize("shapes", [((3, 1, 2, 4), (3, 5, 4, 2)), ((3, 5, 2, 4), (1, 5, 4, 2)),
                                    ((2, 1, 3, 2, 4), (2, 3, 1, 4, 2)), ((1, 2, 4), (20, 4, 2))])
def test_grouped_heads_are_not_spread_out(xp, shapes, monkeypatch):
    monkeypatch.setattr(gemm, "MOST_CALLS", 1)
    a, b = (numbers(s, BF16, i) for i, s in enumerate(shapes))
    spread = np.broadcast_to(b, (*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), *b.shape[-2:]))
    for x, y in ((a, b), (a, spread.view(Array))):
        close(xp.matmul(x, y), np.matmul(wide(a), wide(b)), BF16)
    assert all(np.prod(shape) <= b.size for shape in copies)


def test_how_many_calls(xp):
    """One call wherever it can be one."""
    f32 = np.dtype(np.float32)
    a, b = numbers((2, 6, 3, 4), f32), numbers((4, 5), f32)
    xp.matmul(a, b)
    assert calls().pop() == ("gemm", (5, 36, 4), 1)  # all rows of all matrices at once
    xp.matmul(a, numbers((2, 6, 4, 5), f32))
    assert calls().pop() == ("gemm_batched", (5, 3, 4), 12)
    xp.matmul(numbers((7, 3), f32), a)
    assert calls().pop() == ("gemm_batched", (4, 7, 3), 12)
    xp.matmul(numbers((9, 1, 4), f32), b)
    assert calls().pop() == ("gemm", (5, 9, 4), 1)
    seen = numbers((2, 5, 6, 4), f32).transpose(0, 2, 1, 3)
    xp.matmul(seen, seen.swapaxes(-1, -2))
    assert calls() == [("gemm_batched", (5, 5, 4), 6)] * 2 and not copies
    calls().clear()
    seen = numbers((9, 5, 10, 4), f32).transpose(0, 2, 1, 3)
    xp.matmul(seen, seen.swapaxes(-1, -2))
    assert calls() == [("gemm_batched", (5, 5, 4), 90)] and len(copies) == 2


# ---------------------------------------------------------------- sums, types, settings
def test_sums_of_16_bit_products_are_float32(xp):
    for dtype in (BF16, np.dtype(np.float16)):
        ones = place(np.ones((1, 4096), dtype))
        assert float(xp.matmul(ones, ones.T)[0, 0]) == 4096


def test_two_types_meet_in_their_common_one(xp):
    a, b = numbers((3, 4), BF16), numbers((4, 5), np.dtype(np.float32))
    close(xp.matmul(a, b), wide(a) @ wide(b), np.dtype(np.float32))


def test_other_types_are_left_to_cupy(xp):
    a, b = place(np.arange(6).reshape(2, 3)), place(np.arange(6).reshape(3, 2))
    np.testing.assert_array_equal(xp.matmul(a, b), np.asarray(a) @ np.asarray(b))
    np.testing.assert_array_equal(xp.add_matmul(a[:, :2], a, b, 2, 3),
                                  2 * (np.asarray(a) @ np.asarray(b)) + 3 * np.asarray(a[:, :2]))
    assert not calls()


def test_settings_reach_the_call(monkeypatch):
    f32, f16 = np.dtype(np.float32), np.dtype(np.float16)
    assert gemm.numbers(f32) == (cublas.R_32F, cublas.COMPUTE_32F, 0)
    monkeypatch.setattr(PRECISION, "tf32", True)
    assert gemm.numbers(f32) == (cublas.R_32F, cublas.COMPUTE_32F_FAST_TF32, 0)
    assert gemm.numbers(dtypes.complex64.np)[1] == cublas.COMPUTE_32F_FAST_TF32
    assert gemm.numbers(dtypes.float64.np)[1] == cublas.COMPUTE_64F
    monkeypatch.setattr(PRECISION, "float16_sums", False)
    assert gemm.numbers(f16) == (cublas.R_16F, cublas.COMPUTE_32F, cublas.NO_REDUCED_SUMS)
    assert gemm.numbers(BF16) == (cublas.R_16BF, cublas.COMPUTE_32F, cublas.DEFAULT_MATH)


# ---------------------------------------------------------------- with something added
@pytest.mark.parametrize("dtype", ALL, ids=str)
@pytest.mark.parametrize("spread", [(3, 5), (5,), (1, 5), (3, 1), ()])
@pytest.mark.parametrize(("alpha", "beta"), [(1, 1), (0.5, -2), (2, 0), (1, 1.5)])
def test_add_matmul(xp, dtype, spread, alpha, beta):
    a, b, c = numbers((3, 4), dtype), numbers((4, 5), dtype, 1), numbers(spread, dtype, 2)
    if beta == 0:
        c[...] = np.nan
    want = alpha * (wide(a) @ wide(b)) + (beta * wide(c) if beta else 0)
    kept = c.tobytes()
    close(xp.add_matmul(c, a, b, alpha, beta), want, dtype)
    assert c.tobytes() == kept
    if len(spread) == 2:
        for layout in LAYOUTS.values():
            close(xp.add_matmul(layout(c), layout(a), layout(b), alpha, beta), want, dtype)


@pytest.mark.parametrize("spread", [(2, 3, 5), (3, 5), (5,), (2, 1, 5)])
def test_add_matmul_with_leading_dims(xp, spread):
    a, b, c = numbers((2, 3, 4), BF16), numbers((2, 4, 5), BF16, 1), numbers(spread, BF16, 2)
    close(xp.add_matmul(c, a, b, 0.5, 2), 0.5 * np.matmul(wide(a), wide(b)) + 2 * wide(c), BF16)


@pytest.mark.parametrize(("n", "k", "m"), [(0, 4, 5), (3, 0, 5), (3, 4, 0)])
def test_add_matmul_of_nothing(xp, n, k, m):
    a, b, c = numbers((n, k), BF16), numbers((k, m), BF16), numbers((m,), BF16)
    got = xp.add_matmul(c, a, b, 3, 2)
    close(got, np.broadcast_to(2 * wide(c), (n, m)), BF16)


@pytest.mark.parametrize("dtype", ALL, ids=str)
def test_linear(xp, dtype):
    rows, weight, bias = numbers((3, 4), dtype), numbers((5, 4), dtype, 1), numbers((5,), dtype, 2)
    want = wide(rows) @ wide(weight).T
    close(xp.linear(rows, weight, None), want, dtype)
    close(xp.linear(rows, weight, bias), want + wide(bias), dtype)
    close(xp.linear(rows, weight, every_second(bias)), want + wide(bias), dtype)
    with pytest.raises(ValueError):
        xp.linear(rows, weight, bias[:4])


def test_a_bias_is_rounded_once(xp):
    """256 + 1 + 1 is 258 in bfloat16 only if 256 + 1 is not rounded on the way."""
    rows, weight = place(np.array([[256, 1]], BF16)), place(np.ones((8, 2), BF16))
    bias = place(np.ones(8, BF16))
    for given in (bias, every_second(bias)):
        assert np.all(wide(xp.linear(rows, weight, given)) == 258)
    assert [c[0] for c in calls()] == ["lt_matmul", "gemm"]


@pytest.mark.parametrize("dtype", [BF16, np.dtype(np.float32), np.dtype(np.float64)], ids=str)
@pytest.mark.parametrize("m", [8, 5])
def test_gelu_in_the_call(xp, dtype, m):
    """8 columns go into one call, 5 (or float64) step by step: the same numbers."""
    rows, weight, bias = numbers((3, 4), dtype), numbers((m, 4), dtype, 1), numbers((m,), dtype, 2)
    out, before = xp.linear_gelu(rows, weight, bias)
    z = wide(rows) @ wide(weight).T + wide(bias)
    close(before, z, dtype)
    close(out, plain_kernels.gelu(np, z, "tanh"), dtype)
    g, after = numbers((3, 6), dtype, 3), numbers((6, m), dtype, 4)
    d, sums = xp.matmul_dgelu(g, after, before)
    want = plain_kernels.gelu_backward(np, wide(g) @ wide(after), wide(before), "tanh")
    close(d, want, dtype)
    close(sums, want.sum(axis=0), dtype)
    whole = [c for c in calls() if c[0] == "lt_matmul" and c[2] != cublaslt.BIAS]
    assert len(whole) == (2 if m == 8 and dtype.itemsize < 8 else 0)


# ---------------------------------------------------------------- the twin itself
def test_the_twin_refuses_what_cublas_would(xp):
    f32 = np.dtype(np.float32)
    a, b, c = numbers((4, 4), f32), numbers((4, 4), f32), numbers((4, 4), f32)
    library = cublas.library(CUPY)
    good = {"dtype": cublas.R_32F, "compute": cublas.COMPUTE_32F, "math": 0, "op_a": 0, "op_b": 0,
            "m": 4, "n": 4, "k": 4, "alpha": 1, "a": a.data.ptr, "lda": 4, "b": b.data.ptr, "ldb": 4,
            "beta": 0, "c": c.data.ptr, "ldc": 4}
    library.gemm(**good)
    for bad in ({"lda": 3}, {"ldb": 3}, {"ldc": 3}, {"k": 0}, {"compute": cublas.COMPUTE_64F},
                {"a": a.data.ptr + 2}, {"c": a.data.ptr}, {"op_a": 5}, {"dtype": 3}):
        with pytest.raises(Refused):
            library.gemm(**good | bad)
    with pytest.raises(AssertionError, match="outside"):
        library.gemm(**good | {"ldb": 5})
    with pytest.raises(Refused, match="overlap"):
        library.gemm_batched(**good, stride_a=0, stride_b=0, stride_c=15, count=2)


# ---------------------------------------------------------------- what needs no library
def test_numbers_are_made_once():
    one = cublas.number(cublas.R_16BF, 1)
    assert one is cublas.number(cublas.R_16BF, 1.0) and one._obj.value == 1
    assert cublas.number(cublas.R_64F, 0.1)._obj.value == 0.1
    assert list(cublas.number(cublas.C_64F, 1 + 2j)._obj) == [1, 2]


def test_a_failed_call_says_which():
    with pytest.raises(cublas.CublasError, match=r"_NOT_SUPPORTED when calling cublasGemmEx\(3, 4\)"):
        cublas.check(15, "cublasGemmEx", 3, 4)
    with pytest.raises(cublas.CublasError, match="STATUS_99"):
        cublas.check(99, "cublasCreate")
    cublas.check(0, "cublasCreate")


def test_alignment_of_addresses():
    assert [cublaslt.alignment(a) for a in (0, 512, 768, 520, 6, 7)] == [256, 256, 256, 8, 2, 1]


def test_a_library_object_returns_when_its_thread_ends(xp):
    import threading

    made = []
    for _ in range(2):
        thread = threading.Thread(target=lambda: made.append(id(cublas.library(CUPY))))
        monkey = cublas._local
        cublas._local = threading.local()
        thread.start()
        thread.join()
        cublas._local = monkey
    assert made[0] == made[1] and len(cublas._idle[0]) == 1
