"""Matrix products: each one call of cuBLAS, whatever the layout, and capturable in a CUDA graph.

cuBLAS's matrices lie column by column, arrays here row by row: the memory of a row-major N×M array is
that of its transpose. So C = A·B is asked for as Cᵀ = Bᵀ·Aᵀ: b first, then a, and an operand that *is*
row-major goes in untransposed. An operand is used where it lies if one of its two last dims has stride 1
and the other a stride that is no smaller than the row (a *legal* layout: transposed, sliced and offset
views are); anything else is copied.

Leading dims become the one stride of a strided batch where they collapse into one for all three arrays
(0: the same matrix for each). Those that do not (a (B, T, H, D) array seen as (B, H, T, D) has two) are
looped over if that makes few calls, otherwise the operand is copied. cuBLAS's arrays of pointers would
need neither, but a table in device memory, a kernel that fills it, and 16-byte alignment of every
matrix, for which it would have to copy again.

16-bit products are summed in float32 and rounded once; large ones whose rows are no multiples of 16
bytes are computed of padded copies (padding.py). Shape legend: N rows, K summed, M columns, L
leading dims; strides in elements.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from .. import dtypes
from ..precision import PRECISION
from . import cublas, cublaslt, padding
from .cublas import C_32F, C_64F, OP_N, OP_T, R_16BF, R_16F, R_32F, R_64F

MOST_CALLS = 8  # of one product: further leading dims are copied rather than looped over

TYPES = {
    dtypes.float32.np: R_32F, dtypes.float64.np: R_64F, dtypes.float16.np: R_16F,
    dtypes.bfloat16.np: R_16BF, dtypes.complex64.np: C_32F, dtypes.complex128.np: C_64F,
}
WITH_EPILOGUE = (R_32F, R_16F, R_16BF)


def numbers(dtype) -> tuple[int, int, int]:
    """(cuBLAS's name of the type, what to compute in, how to add up partial sums), by the settings."""
    kind = TYPES[dtype]
    if kind in (R_32F, C_32F):
        return kind, cublas.COMPUTE_32F_FAST_TF32 if PRECISION.tf32 else cublas.COMPUTE_32F, 0
    if kind == R_16BF:
        return kind, cublas.COMPUTE_32F, 0 if PRECISION.bfloat16_sums else cublas.NO_REDUCED_SUMS
    if kind == R_16F:
        return kind, cublas.COMPUTE_32F, 0 if PRECISION.float16_sums else cublas.NO_REDUCED_SUMS
    return kind, cublas.COMPUTE_64F, 0


# ---------------------------------------------------------------- layouts
def _layout(rows: int, columns: int, down: int, along: int) -> tuple[int, int] | None:
    """(flag, leading dimension) of a matrix with these strides, None if it is not legal.

    The stride of a dim of size 1 is never walked, whatever it says.
    """
    if along == 1 or columns == 1:
        ld = columns if rows == 1 else down
        if ld >= columns:
            return OP_N, ld
    if down == 1 or rows == 1:
        ld = rows if columns == 1 else along
        if ld >= rows:
            return OP_T, ld
    return None


def _matrix_layout(a) -> tuple[int, int] | None:
    (rows, columns), (down, along), size = a.shape[-2:], a.strides[-2:], a.itemsize
    return _layout(rows, columns, down // size, along // size)


def _copied(cupy, a):
    """A contiguous copy; leading dims that repeat one matrix are not spread out."""
    once = tuple(slice(0, 1) if s == 0 else slice(None) for s in a.strides[:-2])
    return cupy.ascontiguousarray(a[once])


def _lead_strides(a, lead: tuple) -> list[int]:
    """The strides of a's leading dims, broadcast to ``lead``: 0 where it has one matrix for all."""
    size, missing = a.itemsize, len(lead) + 2 - a.ndim
    own = [0 if n == 1 else s // size for n, s in zip(a.shape[:-2], a.strides)]
    return [0] * missing + own


def _collapsed(lead: tuple, *strides: list[int]) -> list[tuple[int, ...]]:
    """Leading dims as few as possible: [(size, stride of the first array, of the second, ...)].

    Neighbours merge where in every array a step of the outer one is all steps of the inner one.
    """
    dims: list[tuple[int, ...]] = []
    for size, *steps in zip(lead, *strides):
        if size == 1:
            continue
        if dims and all(outer == size * inner for outer, inner in zip(dims[-1][1:], steps)):
            dims[-1] = (dims[-1][0] * size, *steps)
        else:
            dims.append((size, *steps))
    return dims


# ---------------------------------------------------------------- products
def matmul(xp, a, b, out=None):
    """The matrix product, as ``numpy.matmul``: 1-D, 2-D and N-D operands, leading dims broadcast.

    float16, bfloat16, float32, float64, complex64 and complex128 go to cuBLAS; operands of two types are
    brought to their common one first. Other types are CuPy's business.

    Args:
        out: where the product goes: of its shape and type, in no memory of an operand. None: an array
            is made.

    Raises:
        ValueError: if shapes do not fit.
    """
    if a.dtype != b.dtype:
        common = np.result_type(a.dtype, b.dtype)
        a, b = a.astype(common, copy=False), b.astype(common, copy=False)
    if a.dtype not in TYPES:
        return xp.cupy.matmul(a, b) if out is None else xp.cupy.matmul(a, b, out=out)
    if a.ndim == 2 and b.ndim == 2:
        return product(xp, a, b, out)
    if a.ndim == 0 or b.ndim == 0:
        raise ValueError("matmul: an operand has no dimensions; use a product with a number instead")
    left, right = a[None] if a.ndim == 1 else a, b[:, None] if b.ndim == 1 else b
    if out is not None:
        place = out[..., None] if b.ndim == 1 else out
        product(xp, left, right, place[..., None, :] if a.ndim == 1 else place)
        return out
    result = product(xp, left, right)
    shape = result.shape[:-2] + result.shape[-2:][a.ndim == 1: 2 - (b.ndim == 1)]
    return result.reshape(shape)


def product(xp, a, b, out=None, alpha=1, beta=0):
    """alpha·a@b + beta·out, in ``out`` or (beta 0) a new array.

    Args:
        a, b: …×N×K and …×K×M of one type that cuBLAS has.
        out: L×N×M of that type, in any layout; not read where beta is 0.

    Raises:
        ValueError: if shapes do not fit.
    """
    (n, k), m = a.shape[-2:], b.shape[-1]
    if b.shape[-2] != k:
        raise ValueError(f"matmul: {k} columns of {a.shape} do not fit {b.shape[-2]} rows of {b.shape}")
    if out is None and a.itemsize == 2 and a.size * m >= padding.SMALLEST:
        wide = padded_operands(xp, a, b)
        if wide is not None:
            made = padding.cropped(xp, product_as_is(xp, *wide, None, alpha, 0), n, m)
            return made if a.ndim <= 3 else made.reshape(*a.shape[:-1], m)
    if out is None and a.ndim == 2 and b.ndim == 2 and n * k * m > 0:  # the usual case
        out = xp.cupy.empty((n, m), a.dtype)
        _one(xp.cupy, a, b, out, n, m, k, m, alpha, 0)
        return out
    return product_as_is(xp, a, b, out, alpha, beta)


def padded_operands(xp, a, b):
    """Operands that cuBLAS multiplies faster than a and b, leading dims as one; None: there are none."""
    if not PRECISION.padded or a.shape[:-2] != b.shape[:-2]:
        return None
    if _matrix_layout(a) is None or _matrix_layout(b) is None:
        return None
    if a.ndim > 3:
        a, b = padding.as_batch(a), padding.as_batch(b)
        if a is None or b is None:
            return None
    return padding.operands(xp, a, b)


def product_as_is(xp, a, b, out, alpha, beta):
    """What ``product`` says, of operands as they are."""
    cupy, (n, k), m = xp.cupy, a.shape[-2:], b.shape[-1]
    flat = a.ndim == 2 and b.ndim == 2
    lead = a.shape[:-2]
    if not flat and lead != b.shape[:-2]:
        lead = np.broadcast_shapes(lead, b.shape[:-2])
    shape = (*lead, n, m)
    if out is None:
        out = cupy.empty(shape, a.dtype)
    elif out.shape != shape or out.dtype != a.dtype:
        raise ValueError(
            f"matmul: out is {out.dtype} of {out.shape}, the product {a.dtype} of {shape}"
        )
    if out.size == 0:
        return out
    if k == 0:
        _scale(out, beta)
        return out
    place = _matrix_layout(out)
    if place is None:  # neither rows nor columns lie in one piece
        start = None if beta == 0 else cupy.ascontiguousarray(out)
        out[...] = product_as_is(xp, a, b, start, alpha, beta)
        return out
    if place[0] == OP_T:  # columns do: outᵀ = bᵀ·aᵀ
        product_as_is(xp, b.swapaxes(-1, -2), a.swapaxes(-1, -2), out.swapaxes(-1, -2), alpha, beta)
        return out
    if flat:
        _one(cupy, a, b, out, n, m, k, place[1], alpha, beta)
    else:
        _many(cupy, a, b, out, lead, alpha, beta)
    return out


def _scale(out, beta) -> None:
    if beta == 0:
        out.fill(0)
    elif beta != 1:
        out *= out.dtype.type(beta)


def _one(cupy, a, b, out, n, m, k, ldc, alpha, beta) -> None:
    """Two matrices."""
    at, bt = _matrix_layout(a), _matrix_layout(b)
    if at is None:
        a, at = cupy.ascontiguousarray(a), (OP_N, k)
    if bt is None:
        b, bt = cupy.ascontiguousarray(b), (OP_N, m)
    cublas.library(cupy).gemm(
        *numbers(a.dtype), bt[0], at[0], m, n, k, alpha, b.data.ptr, bt[1], a.data.ptr, at[1],
        beta, out.data.ptr, ldc,
    )


def _many(cupy, a, b, out, lead, alpha, beta) -> None:
    """Matrices with leading dims: the fewest calls that reach them where they lie."""
    if _matrix_layout(a) is None:
        a = _copied(cupy, a)
    if _matrix_layout(b) is None:
        b = _copied(cupy, b)
    dims = _dims(lead, a, b, out)
    if _calls(dims) > MOST_CALLS:
        a, b = (_copied(cupy, x) if _is_scattered(x) else x for x in (a, b))
        dims = _dims(lead, a, b, out)
    (n, k), m = a.shape[-2:], b.shape[-1]
    at, bt, ct = _matrix_layout(a), _matrix_layout(b), _matrix_layout(out)
    assert at is not None and bt is not None and ct is not None
    lda, ldc = at[1], ct[1]
    if len(dims) == 1 and at[0] == OP_N and ct[0] == OP_N:  # B×N×K @ K×M is (B·N)×K @ K×M
        size, step_a, step_b, step_c = dims[0]
        rows_a, rows_c = (step_a, step_c) if n == 1 else (lda, ldc)
        if step_b == 0 and step_a == n * rows_a >= n * k and step_c == n * rows_c >= n * m:
            n, lda, ldc, dims = size * n, rows_a, rows_c, []
    library, itemsize = cublas.library(cupy), a.itemsize
    front = (*numbers(a.dtype), bt[0], at[0], m, n, k, alpha)
    pa, pb, pc = a.data.ptr, b.data.ptr, out.data.ptr
    if not dims:
        library.gemm(*front, pb, bt[1], pa, lda, beta, pc, ldc)
        return
    inner = max(range(len(dims)), key=lambda i: dims[i][0])  # the longest: the fewest calls
    count, step_a, step_b, step_c = dims.pop(inner)
    for place in itertools.product(*(range(d[0]) for d in dims)):
        at_a = at_b = at_c = 0
        for i, (_, outer_a, outer_b, outer_c) in zip(place, dims):
            at_a += i * outer_a * itemsize
            at_b += i * outer_b * itemsize
            at_c += i * outer_c * itemsize
        library.gemm_batched(
            *front, pb + at_b, bt[1], step_b, pa + at_a, lda, step_a, beta, pc + at_c, ldc, step_c,
            count,
        )


def _dims(lead, a, b, out):
    """[(size, strides of a, b and out)] of the fewest leading dims that are all of them."""
    if len(lead) == 1 and a.ndim == b.ndim == 3 and a.shape[0] == b.shape[0] > 1:  # the usual case
        size = a.itemsize
        steps = a.strides[0] // size, b.strides[0] // size, out.strides[0] // size
        return [(lead[0], *steps)]
    return _collapsed(lead, _lead_strides(a, lead), _lead_strides(b, lead), _lead_strides(out, lead))


def _calls(dims) -> int:
    """How many strided batches these leading dims are: the longest one is in each."""
    sizes = [d[0] for d in dims]
    return math.prod(sizes) // max(sizes, default=1)


def _is_scattered(a) -> bool:
    """Whether a's own leading dims are several, so that a copy makes them fewer."""
    lead = a.shape[:-2]
    return sum(step != 0 for _, step in _collapsed(lead, _lead_strides(a, lead))) > 1


# ---------------------------------------------------------------- with something added
def lt(
    cupy, a, b, alpha, beta, c, ldc, out, epilogue=cublaslt.DEFAULT, bias=0, aux=0, ld_aux=0
) -> bool:
    """alpha·a@b + beta·c (c an address) into a contiguous N×M ``out``, with an epilogue over its M
    columns; False if cuBLASLt has no algorithm."""
    n, m = out.shape
    if m == 1 or a.shape[1] == 1:  # vectors: cuBLASLt's heuristic errs, and there is little to gain
        return False
    at, bt = _matrix_layout(a), _matrix_layout(b)
    if at is None:
        a, at = cupy.ascontiguousarray(a), (OP_N, a.shape[1])
    if bt is None:
        b, bt = cupy.ascontiguousarray(b), (OP_N, m)
    return cublas.library(cupy).lt_matmul(
        *numbers(a.dtype), bt[0], at[0], m, n, a.shape[1], alpha, b.data.ptr, bt[1],
        a.data.ptr, at[1], beta, c, ldc, out.data.ptr, m, epilogue, bias, aux, ld_aux,
    )


def is_vector(bias, m: int, dtype) -> bool:
    """Whether an epilogue can read it: M elements of the product's type, one after another."""
    return (bias.ndim == 1 and bias.shape[0] == m and bias.dtype == dtype
            and (m == 1 or bias.strides[0] == bias.itemsize))


def add_matmul(xp, c, a, b, alpha=1, beta=1):
    """alpha·a@b + beta·c, a new array; with beta 0, c is not read.

    Two matrices and a third: one call of cuBLASLt. A vector as c (beta 1) is added by its epilogue.
    Otherwise, the result begins as a copy of c, spread out, and the product is added to that: also
    rounded once. Integers are multiplied and added one after the other.

    Args:
        a, b: …×N×K and …×K×M of one type.
        c: an array that broadcasts to the product's shape.

    Raises:
        ValueError: if shapes do not fit.
    """
    cupy = xp.cupy
    if a.dtype not in TYPES:
        made = cupy.matmul(a, b) if alpha == 1 else cupy.matmul(a, b) * alpha
        return made if beta == 0 else made + (c if beta == 1 else c * beta)
    if beta == 0:
        return product(xp, a, b, None, alpha)
    flat = a.ndim == 2 and b.ndim == 2 and a.shape[1] == b.shape[0] > 0
    if flat and a.shape[0] and b.shape[1]:
        n, m = a.shape[0], b.shape[1]
        kind, out = TYPES[a.dtype], cupy.empty((n, m), a.dtype)
        if c.shape == (n, m) and c.dtype == a.dtype:
            at = _matrix_layout(c)
            if at is not None and at[0] == OP_N:
                if lt(cupy, a, b, alpha, beta, c.data.ptr, at[1], out):
                    return out
        elif beta == 1 and kind in WITH_EPILOGUE and is_vector(c, m, a.dtype):
            if a.itemsize == 2 and n * m * a.shape[1] >= padding.SMALLEST:
                wide = padded_operands(xp, a, b)
                if wide is not None:
                    row = padding.padded(xp, c[None], (1, wide[1].shape[1]))[0]
                    return padding.cropped(xp, add_matmul(xp, row, *wide, alpha), n, m)
            if lt(cupy, a, b, alpha, 0, out.data.ptr, m, out, cublaslt.BIAS, c.data.ptr):
                return out
    else:
        lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        out = cupy.empty((*lead, a.shape[-2], b.shape[-1]), a.dtype)
    out[...] = c
    return product(xp, a, b, out, alpha, beta)
