"""cuBLAS on the CPU: what ``disttorch.backend.gpu.cublas.Cublas`` does, by NumPy on raw addresses.

``NumpyCublas`` takes the place of ``cublas.FACTORY``. It checks what the library demands and does not
say (leading dimensions, alignment, results that overlap) and raises ``Refused`` with a sentence. Where
memory may be touched, and in which order, is the business of ``submit``, which a stand-in for CuPy
overrides.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable

import ml_dtypes
import numpy as np

from disttorch.backend.gpu import cublas, cublaslt

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = {
    cublas.R_32F: np.dtype(np.float32), cublas.R_64F: np.dtype(np.float64),
    cublas.R_16F: np.dtype(np.float16), cublas.R_16BF: BFLOAT16,
    cublas.C_32F: np.dtype(np.complex64), cublas.C_64F: np.dtype(np.complex128),
}
FULL = (cublas.R_64F, cublas.C_64F)
SINGLE = (cublas.R_32F, cublas.C_32F)
Span = tuple[int, int]  # address, bytes


class Refused(RuntimeError):
    """Arguments for which cuBLAS would fail or, worse, would not."""


def need(condition: bool, sentence: str) -> None:
    if not condition:
        raise Refused(sentence)


def view(address: int, rows: int, columns: int, ld: int, dtype: np.dtype) -> np.ndarray:
    """Memory as a matrix that lies column by column."""
    stored = np.dtype(np.uint16) if dtype == BFLOAT16 else dtype
    size = stored.itemsize
    buffer = (ctypes.c_char * extent(rows, columns, ld, size)).from_address(address)
    return np.ndarray((rows, columns), stored, buffer, 0, (size, ld * size)).view(dtype)


def extent(rows: int, columns: int, ld: int, size: int) -> int:
    """Bytes from a matrix's first element to behind its last one."""
    return ((columns - 1) * ld + rows) * size


def rounded(a: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return a.astype(np.float32).astype(dtype) if dtype.itemsize == 2 else a.astype(dtype)


def wide(a: np.ndarray) -> np.ndarray:
    return a.astype(np.complex128 if a.dtype.kind == "c" else np.float64)


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gelu_slope(x: np.ndarray) -> np.ndarray:
    t = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    slope = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x)
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * slope


class NumpyCublas:
    """The three methods of ``Cublas``; ``calls`` notes (method, shape m×n×k, count) of each call."""

    def __init__(self, cupy, device: int):
        self.cupy, self.device = cupy, device
        self.calls: list[tuple] = []

    def submit(self, name: str, reads: list[Span], writes: list[Span], work: Callable[[], None]) -> None:
        """Do the work; what it reads and writes lies inside these spans."""
        work()

    def gemm(self, dtype, compute, math, op_a, op_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
        self._batch("gemm", dtype, compute, math, op_a, op_b, m, n, k, alpha, a, lda, 0, b, ldb, 0, beta,
                    c, ldc, 0, 1)

    def gemm_batched(self, dtype, compute, math, op_a, op_b, m, n, k, alpha, a, lda, stride_a, b, ldb,
                     stride_b, beta, c, ldc, stride_c, count):
        self._batch("gemm_batched", dtype, compute, math, op_a, op_b, m, n, k, alpha, a, lda, stride_a,
                    b, ldb, stride_b, beta, c, ldc, stride_c, count)

    def _batch(self, name, dtype, compute, math, op_a, op_b, m, n, k, alpha, a, lda, stride_a, b, ldb,
               stride_b, beta, c, ldc, stride_c, count):
        kind, ra, ca, rb, cb = check(dtype, compute, math, op_a, op_b, m, n, k, a, lda, b, ldb, c, ldc)
        size = kind.itemsize
        need(count >= 1, f"{count} products")
        need(count == 1 or abs(stride_c) >= (n - 1) * ldc + m, f"results {stride_c} apart overlap")
        places = [(a + i * stride_a * size, b + i * stride_b * size, c + i * stride_c * size)
                  for i in range(count)]
        reads = [(pa, extent(ra, ca, lda, size)) for pa, _, _ in places]
        reads += [(pb, extent(rb, cb, ldb, size)) for _, pb, _ in places]
        writes = [(pc, extent(m, n, ldc, size)) for *_, pc in places]
        self.calls.append((name, (m, n, k), count))

        def work():
            for pa, pb, pc in places:
                x, y = view(pa, ra, ca, lda, kind), view(pb, rb, cb, ldb, kind)
                out = view(pc, m, n, ldc, kind)
                need(not np.shares_memory(raw(x), raw(out)) and not np.shares_memory(raw(y), raw(out)),
                     "the result lies in an operand")
                out[...] = rounded(total(op_a, x, op_b, y, alpha, beta, out), kind)

        self.submit(name, reads, writes, work)

    def lt_matmul(self, dtype, compute, math, op_a, op_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc,
                  d, ldd, epilogue=cublaslt.DEFAULT, bias=0, aux=0, ld_aux=0) -> bool:
        kind, ra, ca, rb, cb = check(dtype, compute, math, op_a, op_b, m, n, k, a, lda, b, ldb, d, ldd)
        size = kind.itemsize
        need(ldc >= m, f"C has {m} rows and leading dimension {ldc}")
        need(c != d or ldc == ldd, "C is D, but their leading dimensions differ")
        if epilogue != cublaslt.DEFAULT:
            need(bias and bias % size == 0, f"the bias lies at {bias:#x}")
            if dtype not in (cublas.R_32F, cublas.R_16F, cublas.R_16BF):
                return False
        reads = [(a, extent(ra, ca, lda, size)), (b, extent(rb, cb, ldb, size))]
        writes = [(d, extent(m, n, ldd, size))]
        if beta != 0:
            reads.append((c, extent(m, n, ldc, size)))
        if epilogue != cublaslt.DEFAULT:
            (writes if epilogue == cublaslt.DGELU_BGRAD else reads).append((bias, m * size))
        if epilogue in (cublaslt.GELU_AUX_BIAS, cublaslt.DGELU_BGRAD):
            need(ld_aux % 8 == 0 and ld_aux >= m, f"aux has {m} rows and leading dimension {ld_aux}")
            inward = epilogue == cublaslt.DGELU_BGRAD
            (reads if inward else writes).append((aux, extent(m, n, ld_aux, size)))
        self.calls.append(("lt_matmul", (m, n, k), epilogue))

        def work():
            x, y = view(a, ra, ca, lda, kind), view(b, rb, cb, ldb, kind)
            made = total(op_a, x, op_b, y, alpha, beta, view(c, m, n, ldc, kind))
            out = view(d, m, n, ldd, kind)
            if epilogue == cublaslt.DEFAULT:
                out[...] = rounded(made, kind)
                return
            vector = view(bias, m, 1, m, kind)
            if epilogue == cublaslt.DGELU_BGRAD:
                made *= gelu_slope(wide(view(aux, m, n, ld_aux, kind)))
                vector[...] = rounded(made.sum(axis=1, keepdims=True), kind)
            else:
                made += wide(vector)
            if epilogue == cublaslt.GELU_AUX_BIAS:
                view(aux, m, n, ld_aux, kind)[...] = rounded(made, kind)
                made = gelu(made)
            out[...] = rounded(made, kind)

        self.submit("lt_matmul", reads, writes, work)
        return True


def check(dtype, compute, math, op_a, op_b, m, n, k, a, lda, b, ldb, c, ldc):
    """(NumPy's type, rows and columns of A and B as they lie) of arguments that cuBLAS would take."""
    need(dtype in DTYPES, f"type {dtype}")
    allowed = (cublas.COMPUTE_64F,) if dtype in FULL else (cublas.COMPUTE_32F,)
    allowed += (cublas.COMPUTE_32F_FAST_TF32,) if dtype in SINGLE else ()
    need(compute in allowed, f"compute type {compute} for type {dtype}")
    need(math in (cublas.DEFAULT_MATH, cublas.NO_REDUCED_SUMS), f"math mode {math}")
    need(op_a in (0, 1, 2) and op_b in (0, 1, 2), f"operations {op_a}, {op_b}")
    need(min(m, n, k) >= 1, f"a product of {m}×{k} and {k}×{n}")
    kind = DTYPES[dtype]
    ra, ca = (m, k) if op_a == cublas.OP_N else (k, m)
    rb, cb = (k, n) if op_b == cublas.OP_N else (n, k)
    for name, address, rows, ld in (("A", a, ra, lda), ("B", b, rb, ldb), ("C", c, m, ldc)):
        need(ld >= rows, f"{name} has {rows} rows and leading dimension {ld}")
        need(address and address % kind.itemsize == 0, f"{name} lies at {address:#x}")
        need(all(type(x) is int for x in (address, rows, ld)), f"{name}'s place is no plain integer")
    return kind, ra, ca, rb, cb


def raw(a: np.ndarray) -> np.ndarray:
    return a.view(np.uint16) if a.dtype == BFLOAT16 else a


def total(op_a, x, op_b, y, alpha, beta, out) -> np.ndarray:
    """alpha·op(A)·op(B) + beta·C before it is rounded."""
    x, y = ({0: z, 1: z.T, 2: z.T.conj()}[op] for op, z in ((op_a, wide(x)), (op_b, wide(y))))
    made = alpha * (x @ y)
    return made if beta == 0 else made + beta * wide(out)
