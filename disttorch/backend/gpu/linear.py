"""Linear maps on the GPU: their products with bias and GELU in the call, forward and backward.

Contiguous arrays of one type, the usual case, go to cuBLAS by their addresses: each view of an array
costs CuPy a microsecond or two. Shape legend: N rows, K summed, M columns.
"""

from __future__ import annotations

import math

import numpy as np

from .. import dtypes
from . import cublas, cublaslt, gemm, padding
from .cublas import OP_N, OP_T

_EPILOGUE_TYPES = frozenset(t for t, kind in gemm.TYPES.items() if kind in gemm.WITH_EPILOGUE)


def linear(xp, input, weight, bias):
    """input @ weightᵀ + bias. input: …×K, weight: M×K, bias: M (or what broadcasts to N×M) -> …×M.

    Raises:
        ValueError: if the bias does not broadcast to N×M.
    """
    lead, k, m = input.shape[:-1], input.shape[-1], weight.shape[0]
    n = math.prod(lead)
    if _go_in_as_they_are(n, k, m, input, weight):
        dtype = input.dtype
        numbers, px, pw = gemm.numbers(dtype), input.data.ptr, weight.data.ptr
        operands = (*numbers, OP_T, OP_N, m, n, k, 1, pw, k, px, k, 0)
        if bias is None:
            out = xp.cupy.empty((*lead, m), dtype)
            cublas.library(xp.cupy).gemm(*operands, out.data.ptr, m)
            return out
        if m > 1 and k > 1 and dtype in _EPILOGUE_TYPES and gemm.is_vector(bias, m, dtype):
            out = xp.cupy.empty((*lead, m), dtype)
            place, put = (out.data.ptr, m), cublas.library(xp.cupy).lt_matmul
            if put(*operands, *place, *place, cublaslt.BIAS, bias.data.ptr):
                return out
    rows = input if input.ndim == 2 else input.reshape(n, k)
    out = gemm.matmul(xp, rows, weight.T) if bias is None else gemm.add_matmul(xp, bias, rows, weight.T)
    return out if input.ndim == 2 else out.reshape(*lead, m)


def linear_backward(xp, g, input, weight):
    """The gradients of ``linear``'s input and weight; NotImplemented for what has no short way.

    Args:
        g: …×M; input: …×K; weight: M×K, contiguous real floats of one type.
    """
    k, m = input.shape[-1], weight.shape[0]
    n = g.size // m if m else 0
    if input.dtype != g.dtype or g.dtype.kind == "c" or not _is_whole(input):
        return NotImplemented
    if not _go_in_as_they_are(n, k, m, g, weight):
        return _padded_backward(xp, g, input, weight, n, k, m)
    d_input, d_weight = xp.cupy.empty(input.shape, g.dtype), xp.cupy.empty(weight.shape, g.dtype)
    put, numbers = cublas.library(xp.cupy).gemm, gemm.numbers(g.dtype)
    pg, px = g.data.ptr, input.data.ptr
    put(*numbers, OP_N, OP_N, k, n, m, 1, weight.data.ptr, k, pg, m, 0, d_input.data.ptr, k)
    put(*numbers, OP_N, OP_T, k, m, n, 1, px, k, pg, m, 0, d_weight.data.ptr, k)
    return d_input, d_weight


def _padded_backward(xp, g, input, weight, n, k, m):
    """``linear_backward`` where M is better padded (a language model's head): g is, once for both."""
    if n * k * m < padding.SMALLEST or k % padding.ALIGN or not _is_whole(g) or weight.dtype != g.dtype:
        return NotImplemented
    wide = gemm.padded_operands(xp, g.reshape(n, m), weight)
    if wide is None or wide[0].shape != (n, padding.up(m)):
        return NotImplemented
    d_input = gemm.product_as_is(xp, *wide, None, 1, 0)
    d_weight = gemm.product_as_is(xp, wide[0].T, input.reshape(n, k), None, 1, 0)
    return d_input.reshape(input.shape), padding.cropped(xp, d_weight, m, k)


def _is_whole(a) -> bool:
    return a.flags.c_contiguous


def _go_in_as_they_are(n: int, k: int, m: int, rows, weight) -> bool:
    """Whether two arrays of a linear map are contiguous, of one type that cuBLAS has, not empty, and
    not better padded: the usual case, which needs no view of them."""
    return (
        rows.dtype == weight.dtype and rows.dtype in gemm.TYPES and n * k * m > 0
        and _is_whole(rows) and _is_whole(weight)
        and (rows.itemsize > 2 or not (k | m) % padding.ALIGN or n * k * m < padding.SMALLEST)
    )


def linear_gelu(xp, rows, weight, bias):
    """(gelu(z) in its tanh form, z) of z = rows @ weightᵀ + bias. Shapes as in ``linear``, bias: M.

    One call of cuBLASLt (GELU_AUX_BIAS) for float32 and 16-bit floats where M is a multiple of 8;
    otherwise ``linear`` and ``gelu``.
    """
    cupy, m = xp.cupy, weight.shape[0]
    if m % 8 == 0 and rows.size and m and gemm.TYPES.get(rows.dtype) in gemm.WITH_EPILOGUE:
        if rows.dtype == weight.dtype and gemm.is_vector(bias, m, rows.dtype):
            out, aux = (cupy.empty((rows.shape[0], m), rows.dtype) for _ in range(2))
            if gemm.lt(cupy, rows, weight.T, 1, 0, out.data.ptr, m, out, cublaslt.GELU_AUX_BIAS,
                   bias.data.ptr, aux.data.ptr, m):
                return out, aux
    z = linear(xp, rows, weight, bias)
    return xp.gelu(_wide(z), "tanh").astype(z.dtype, copy=False), z


def matmul_dgelu(xp, g, weight, z):
    """(d, its sum over rows) of d = (g @ weight)·gelu'(z): the way back through the linear map that
    follows a gelu (tanh form), and through that gelu. g: N×P, weight: P×M, z: N×M -> N×M, M.

    One call of cuBLASLt (DGELU_BGRAD) for float32 and 16-bit floats where M is a multiple of 8;
    otherwise one step after another.
    """
    cupy, m = xp.cupy, z.shape[1]
    if m % 8 == 0 and g.size and z.size and gemm.TYPES.get(g.dtype) in gemm.WITH_EPILOGUE:
        if g.dtype == weight.dtype == z.dtype and z.flags.c_contiguous:
            out, sums = cupy.empty(z.shape, z.dtype), cupy.empty((m,), z.dtype)
            if gemm.lt(cupy, g, weight, 1, 0, out.data.ptr, m, out, cublaslt.DGELU_BGRAD, sums.data.ptr,
                   z.data.ptr, m):
                return out, sums
    out = xp.gelu_backward(_wide(gemm.matmul(xp, g, weight)), _wide(z), "tanh")
    return out.astype(z.dtype, copy=False), xp.sum_rows_to(out, (m,)).astype(z.dtype, copy=False)


def _wide(a):
    return a.astype(np.float32) if a.dtype in dtypes.HALF_NP else a
