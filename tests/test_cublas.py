"""How cuBLAS is called: the binding against a libcublas for the CPU (``cublas_stub.cpp``)."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import types
from pathlib import Path

import numpy as np
import pytest
from cublas_twin import NumpyCublas

from disttorch.backend.gpu import cublas, cublaslt

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
SOURCE = Path(__file__).with_name("cublas_stub.cpp")
KINDS = {cublas.R_32F: (np.float32, cublas.COMPUTE_32F), cublas.R_64F: (np.float64, cublas.COMPUTE_64F)}


@pytest.fixture(scope="module")
def stub(tmp_path_factory):
    target = tmp_path_factory.mktemp("cublas") / "libcublas.so"
    subprocess.run(["g++", "-O1", "-shared", "-fPIC", "-std=c++17", "-Wall", str(SOURCE),
                    "-o", str(target)], check=True)
    return cublas._declare(ctypes.CDLL(str(target)))


class Cupy:
    """As much of CuPy as the binding asks: the current stream, and memory for workspaces."""

    def __init__(self):
        self.stream, self.asked, self.capability = 0x1000, [], "90"
        self.cuda = types.SimpleNamespace(
            get_current_stream=lambda: types.SimpleNamespace(ptr=self.stream),
            runtime=types.SimpleNamespace(runtimeGetVersion=lambda: 13000),
            Device=lambda index: types.SimpleNamespace(compute_capability=self.capability))

    def empty(self, size, dtype):
        self.asked.append(size)
        held = np.empty(size + 256, dtype)
        address = -(-held.ctypes.data // 256) * 256
        return types.SimpleNamespace(data=types.SimpleNamespace(ptr=address), size=size, held=held)


@pytest.fixture
def cupy():
    return Cupy()


@pytest.fixture
def library(stub, cupy, monkeypatch):
    monkeypatch.setattr(cublas, "_open", lambda major: stub)
    monkeypatch.setattr(cublas, "_workspaces", {})
    return cublas.Cublas(cupy, 0)


def matrix(rows, columns, dtype, seed, ld=None):
    """Numbers that lie column by column; garbage between the columns."""
    held = np.full((columns, ld or rows), np.nan, dtype)
    held[:, :rows] = np.random.default_rng(seed).standard_normal((columns, rows))
    return held


def value(stub, name, kind=ctypes.c_int):
    return kind.in_dll(stub, name).value


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("op_a", [0, 1])
@pytest.mark.parametrize("op_b", [0, 1])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("beta", [0, -0.5])
def test_products(library, dtype, op_a, op_b, count, beta):
    """The same arguments to the binding and to NumPy's twin."""
    kind, compute = KINDS[dtype]
    m, n, k, lda, ldb, ldc = 5, 3, 4, 7, 6, 8
    a = matrix(*((m, k) if op_a == 0 else (k, m)), kind, 1, lda)
    b = np.stack([matrix(*((k, n) if op_b == 0 else (n, k)), kind, 2 + i, ldb) for i in range(count)])
    results = []
    for one in (library, NumpyCublas(None, 0)):
        c = np.stack([matrix(m, n, kind, 9 + i, ldc) for i in range(count)])
        front = (dtype, compute, 0, op_a, op_b, m, n, k, 2.5, a.ctypes.data, lda)
        if count == 1:
            one.gemm(*front, b.ctypes.data, ldb, beta, c.ctypes.data, ldc)
        else:
            one.gemm_batched(*front, 0, b.ctypes.data, ldb, b[0].size, beta, c.ctypes.data, ldc,
                             c[0].size, count)
        results.append(c)
    np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-5)
    assert np.isnan(results[0][:, :, m:]).all() and not np.isnan(results[0][:, :, :m]).any()


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("epilogue", [cublaslt.DEFAULT, cublaslt.BIAS, cublaslt.GELU_AUX_BIAS])
def test_products_with_an_epilogue(library, dtype, epilogue):
    kind, compute = KINDS[dtype]
    m, n, k = 8, 3, 4
    a, b, bias = matrix(k, m, kind, 1), matrix(k, n, kind, 2), matrix(m, 1, kind, 3)
    c = matrix(m, n, kind, 4, 10)
    beta = 0 if epilogue != cublaslt.DEFAULT else 2
    results = []
    for one in (library, NumpyCublas(None, 0)):
        d, aux = matrix(m, n, kind, 5), matrix(m, n, kind, 6, 16)
        more = () if epilogue == cublaslt.DEFAULT else (bias.ctypes.data,)
        more += (aux.ctypes.data, 16) if epilogue == cublaslt.GELU_AUX_BIAS else ()
        found = one.lt_matmul(dtype, compute, 0, cublas.OP_T, cublas.OP_N, m, n, k, 0.5, a.ctypes.data,
                              k, b.ctypes.data, k, beta, c.ctypes.data, 10, d.ctypes.data, m, epilogue,
                              *more)
        assert found is (dtype == cublas.R_32F or epilogue == cublaslt.DEFAULT)
        results.append((d, aux))
    for got, want in zip(*results):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_a_plan_is_made_once_and_follows_the_addresses(library, stub):
    m, n, k = 8, 3, 4
    a, b = matrix(m, k, np.float32, 1), matrix(k, n, np.float32, 2)
    before = value(stub, "heuristics")
    for seed in (3, 4):
        bias, d = matrix(m, 1, np.float32, seed), matrix(m, n, np.float32, 5)
        assert library.lt_matmul(cublas.R_32F, cublas.COMPUTE_32F, 0, 0, 0, m, n, k, 1, a.ctypes.data, m,
                                 b.ctypes.data, k, 0, d.ctypes.data, m, d.ctypes.data, m, cublaslt.BIAS,
                                 bias.ctypes.data)
        np.testing.assert_allclose(d, b @ a + bias, rtol=1e-5, atol=1e-6)
    assert value(stub, "heuristics") - before <= 2  # one for each way that the arrays are aligned
    alive = value(stub, "living")
    library._plans._forget()
    assert value(stub, "living") < alive


def test_an_algorithm_that_does_not_run_is_given_up(library, stub):
    a = matrix(8, 8, np.float32, 1)
    d = np.empty_like(a)

    def ask():
        return library.lt_matmul(cublas.R_32F, cublas.COMPUTE_32F, 0, 0, 0, 8, 8, 8, 1, a.ctypes.data, 8,
                                 a.ctypes.data, 8, 0, d.ctypes.data, 8, d.ctypes.data, 8)

    refuse = ctypes.c_int.in_dll(stub, "refuse")
    assert ask()
    alive, refuse.value = value(stub, "living"), 1
    try:
        with pytest.warns(UserWarning, match="refused the algorithm .*NOT_SUPPORTED; m, n, k = 8, 8, 8"):
            assert not ask()
    finally:
        refuse.value = 0
    assert not ask() and value(stub, "living") < alive


def test_what_the_heuristic_is_told(library, stub):
    memory = np.zeros(4096, np.float32)
    base = -(-memory.ctypes.data // 256) * 256
    places = (base + 8, base + 1024 + 64, base + 2048, base + 4096)

    def ask(math):
        a, b, c, d = places
        library.lt_matmul(cublas.R_32F, cublas.COMPUTE_32F_FAST_TF32, math, 0, 0, 8, 8, 8, 1, a, 8, b, 8,
                          1, c, 8, d, 8)
        return value(stub, "last_reductions", ctypes.c_uint32)

    assert ask(cublas.DEFAULT_MATH) == 7 and ask(cublas.NO_REDUCED_SUMS) == 2
    assert list((ctypes.c_uint32 * 4).in_dll(stub, "last_alignment")) == [8, 64, 256, 256]
    assert value(stub, "last_compute") == cublas.COMPUTE_32F_FAST_TF32


def test_streams_have_workspaces_of_their_own(library, cupy, stub):
    a = matrix(4, 4, np.float64, 1)
    c = np.empty_like(a)

    def product(math=0):
        library.gemm(cublas.R_64F, cublas.COMPUTE_64F, math, 0, 0, 4, 4, 4, 1, a.ctypes.data, 4,
                     a.ctypes.data, 4, 0, c.ctypes.data, 4)
        np.testing.assert_allclose(c, a @ a)
        return value(stub, "last_math")

    for stream in (0x1000, 0x2000, 0x1000):
        cupy.stream = stream
        product()
        product()
    assert cupy.asked == [32 << 20] * 2
    assert [product(m) for m in (16, 16, 0)] == [16, 16, 0]
    cupy.stream, cupy.capability = 0x3000, "80"
    product()
    assert cupy.asked[-1] == 8 << 20


def test_a_refusal_is_told_with_the_arguments(library):
    a = matrix(4, 4, np.float64, 1)
    place = a.ctypes.data
    with pytest.raises(cublas.CublasError, match=r"INVALID_VALUE when calling cublasGemmEx\(N, T, 4, 4"):
        library.gemm(cublas.R_64F, cublas.COMPUTE_64F, 0, 0, 1, 4, 4, 4, 1, place, 3, place, 4, 0,
                     place, 4)


def test_a_library_that_is_nowhere(monkeypatch):
    monkeypatch.setattr(cublas, "_loaded", lambda major: None)
    monkeypatch.setattr(cublas.ctypes, "CDLL", lambda name: (_ for _ in ()).throw(OSError(name)))
    cublas._open.cache_clear()
    with pytest.raises(RuntimeError, match="cuBLAS of CUDA 13 is not found: pip install"):
        cublas._open(13)
    cublas._open.cache_clear()
