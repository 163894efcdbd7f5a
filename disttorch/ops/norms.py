"""Vector and matrix norms, distances between rows."""

from __future__ import annotations

import math

from ..backend import dtypes, namespace_of
from ..tensor import Tensor, wrap
from .core import F32, HALF, REGISTRY, op, type_name, wrap_dim, wrap_dims, write_out
from .factorizations import linalg_svd
from .linalg import check_matrix, linalg_inv
from .reduce import spread
from .samples import case


@op(tensors=("x",), method=False, out=False, fused=True, samples=lambda m: [
    case(m(3, 4, avoid=(0.0,)), order, dim, keep)
    for order, dim, keep in ((2, None, False), (1, 1, False), (3.0, (0, 1), True), (0.5, 0, False),
                             (1.5, -1, True), (0, 1, False), (math.inf, 1, False),
                             (-math.inf, 0, True), (-1.0, 1, False), (4, None, True))
] + [case(m()), case(m(2, 0), 2.0, 1), case(m(2, 3, 4), 2, (0, 2))])
def vector_norm(xp, x, ord=2, dim=None, keepdim=False):
    """(Σ |x|^ord)^(1/ord) over ``dim`` (all dims if None); 0 counts, ±inf picks."""
    axes = wrap_dims(dim, x.ndim)
    p = float(ord)
    if x.ndim == 0:
        size = xp.absolute(x)
        return (size != 0).astype(size.dtype) if p == 0 else size
    if p == 2:
        return xp.euclidean_norm(x, axes, keepdim)
    if x.dtype in HALF:  # the others have no kernel of their own, and 16 bits are too few for sums
        return vector_norm.forward(xp, x.astype(F32), ord, dim, keepdim).astype(x.dtype)
    size = xp.absolute(x)
    if abs(p) == math.inf:
        if any(x.shape[a] == 0 for a in axes):
            raise RuntimeError(
                "linalg.vector_norm cannot compute the inf norm on an empty tensor because the "
                "operation does not have an identity"
            )
        return (xp.max if p > 0 else xp.min)(size, axis=axes, keepdims=keepdim)
    if p == 0:
        return xp.sum(size != 0, axis=axes, keepdims=keepdim).astype(size.dtype)
    if p == 1:
        return xp.sum(size, axis=axes, keepdims=keepdim)
    return xp.sum(size**p, axis=axes, keepdims=keepdim) ** (1 / p)


@vector_norm.grad("x")
def _(F, g, x, out, ord, dim, keepdim):
    """Where the norm is not differentiable (at 0) the gradient is 0, the smallest subgradient."""
    p = float(ord)
    if p == 0:
        return None
    shape = tuple(x.shape)
    axes = wrap_dims(dim, len(shape)) or None
    if p == 2:
        return x * spread(F, _over(F, g, out), shape, axes, keepdim)
    if p == 1:
        return F.sgn(x) * spread(F, g, shape, axes, keepdim)
    size = F.abs(x)
    if abs(p) == math.inf:
        ones, none = F.ones_like(size), F.zeros_like(size)
        hits = F.where(F.eq(size, spread(F, out, shape, axes, keepdim)), ones, none)
        count = F.sum(hits, axes, True)
        return F.sgn(x) * (hits / count) * spread(F, g, shape, axes, keepdim)
    zero = F.eq(size, 0)
    safe = F.where(zero, F.ones_like(size), size)
    powers = F.where(zero, F.zeros_like(size), F.pow(safe, p - 2))
    none_out = F.where(F.eq(out, 0), F.ones_like(out), out)
    scale = F.where(F.eq(out, 0), F.zeros_like(g), g * F.pow(none_out, 1 - p))
    return x * powers * spread(F, scale, shape, axes, keepdim)


def _over(F, g, out):
    zero = F.eq(out, 0)
    return F.where(zero, F.zeros_like(g), g / F.where(zero, F.ones_like(out), out))


def _in_dtype(name, x, dtype):
    have = dtype or x.dtype
    if have.category < dtypes.FLOAT:
        if dtype is not None:
            raise RuntimeError(
                f"{name}: dtype should be floating point or complex, but got {type_name(dtype)}"
            )
        raise RuntimeError(
            f"{name}: Expected a floating point or complex tensor as input. Got "
            f"{type_name(x.dtype)}"
        )
    return x if dtype is None or dtype is x.dtype else REGISTRY["to_dtype"].apply((x, dtype))


def linalg_vector_norm(
    x: Tensor, ord=2, dim=None, keepdim=False, *, dtype=None, out=None
) -> Tensor:
    """The ``ord``-norm of the elements over ``dim`` (all of them if None).

    Args:
        ord: any number, inf or -inf; 0 counts the nonzero elements.
        dim: one dim, several, or None.
        dtype: to compute and answer in.
    """
    x = _in_dtype("linalg.vector_norm", x, dtype)
    if isinstance(ord, Tensor):
        ord = ord.item()
    if not isinstance(ord, (int, float)):
        raise TypeError(
            f"linalg_vector_norm(): argument 'ord' must be Number, not {type(ord).__name__}"
        )
    result = vector_norm.call(x, ord, dim if not isinstance(dim, list) else tuple(dim), keepdim)
    return result if out is None else write_out(result, out, "linalg_vector_norm")


def linalg_matrix_norm(
    A: Tensor, ord="fro", dim=(-2, -1), keepdim=False, *, dtype=None, out=None
) -> Tensor:
    """A norm of matrices: "fro", "nuc", ±1 (column sums), ±inf (row sums), ±2 (singular values)."""
    A = _in_dtype("linalg.matrix_norm", A, dtype)
    check_matrix("linalg.matrix_norm", A._data)
    if isinstance(dim, int) or len(dim) != 2:
        raise RuntimeError(f"linalg.matrix_norm: dim must be a 2-tuple. Got {dim}")
    row, column = (wrap_dim(d, A.ndim) for d in dim)
    if row == column:
        raise RuntimeError(f"linalg.matrix_norm: dims must be different. Got ({dim[0]}, {dim[1]})")
    result = _matrix_norm(A, ord, row, column, keepdim)
    return result if out is None else write_out(result, out, "linalg_matrix_norm")


def _matrix_norm(A, ord, row, column, keepdim):
    if ord == "fro":
        return vector_norm.call(A, 2, (row, column), keepdim)
    if isinstance(ord, str) and ord != "nuc":
        raise RuntimeError(f"linalg.matrix_norm: Order {ord} not supported.")
    if ord == "nuc" or abs(ord) == 2:
        moved = REGISTRY["permute"].call(
            A, (*(d for d in range(A.ndim) if d not in (row, column)), row, column)
        )
        values = linalg_svd.call(moved, False)[1]
        if ord == "nuc":
            result = REGISTRY["sum"].call(values, -1)
        else:
            result = REGISTRY["amax" if ord > 0 else "amin"].call(values, -1)
        if keepdim:
            for d in sorted((row, column)):
                result = REGISTRY["unsqueeze"].call(result, d)
        return result
    if abs(ord) not in (1, math.inf):
        raise RuntimeError(f"linalg.matrix_norm: Order {ord} not supported.")
    along, over = (row, column) if abs(ord) == 1 else (column, row)
    sums = vector_norm.call(A, 1, along, True)
    result = REGISTRY["amax" if ord > 0 else "amin"].call(sums, over, True)
    if keepdim:
        return result
    return REGISTRY["squeeze"].call(result, (row, column))


def linalg_norm(A: Tensor, ord=None, dim=None, keepdim=False, *, out=None, dtype=None) -> Tensor:
    """A vector norm (one dim, or no ``ord``) or a matrix norm (two dims)."""
    dims = (dim,) if isinstance(dim, int) else None if dim is None else tuple(dim)
    if ord is not None:
        if dims is None and A.ndim not in (1, 2):
            raise RuntimeError(
                "linalg.norm: If dim is not specified but ord is, the input must be 1D or 2D. Got "
                f"{A.ndim}D"
            )
        if dims is not None and len(dims) not in (1, 2):
            raise RuntimeError(
                f"linalg.norm: If dim is specified, it must be of length 1 or 2. Got {list(dims)}"
            )
        if len(dims if dims is not None else A._data.shape) == 2:
            return linalg_matrix_norm(A, ord, dims or (-2, -1), keepdim, dtype=dtype, out=out)
        if isinstance(ord, str):
            raise RuntimeError(
                "linalg.norm: The input tensor must have at least 2 dimensions for "
                f"ord='{ord}' on a vector."
            )
    return linalg_vector_norm(A, 2 if ord is None else ord, dims, keepdim, dtype=dtype, out=out)


def norm(input: Tensor, p="fro", dim=None, keepdim=False, out=None, dtype=None) -> Tensor:
    """The p-norm of the elements over ``dim``; "fro" is 2, "nuc" the sum of singular values."""
    dims = (dim,) if isinstance(dim, int) else None if dim is None else tuple(dim)
    if p == "nuc":
        return linalg_matrix_norm(input, "nuc", dims or (-2, -1), keepdim, dtype=dtype, out=out)
    if isinstance(p, str) and p != "fro":
        raise RuntimeError(
            f"only valid string values are 'fro' and 'nuc', found {p}"
        )
    order = 2 if p is None or p == "fro" else p
    return linalg_vector_norm(input, order, dims, keepdim, dtype=dtype, out=out)


def linalg_cond(A: Tensor, p=None, *, out=None) -> Tensor:
    """‖A‖·‖A⁻¹‖ in a matrix norm (None: 2, by singular values)."""
    check_matrix("linalg.cond", A._data)
    if p is None or p in (2, -2):
        values = linalg_svd.call(A, False)[1]
        high, low = values[..., 0], values[..., -1]
        result = low / high if p == -2 else high / low
    else:
        A = _in_dtype("linalg.cond", A, None)
        result = linalg_matrix_norm(A, p) * linalg_matrix_norm(linalg_inv.call(A), p)
    return result if out is None else write_out(result, out, "linalg_cond")


# ---------------------------------------------------------------- distances
def dist(input: Tensor, other: Tensor, p=2) -> Tensor:
    """The p-norm of input − other."""
    return linalg_vector_norm(input - other, p)


def cdist(
    x1: Tensor, x2: Tensor, p=2.0, compute_mode="use_mm_for_euclid_dist_if_necessary"
) -> Tensor:
    """p-norm distances between all rows of ``x1`` (*×P×M) and of ``x2`` (*×R×M): *×P×R."""
    for label, t in (("X1", x1), ("X2", x2)):
        if t.ndim < 2:
            raise RuntimeError(
                f"cdist only supports at least 2D tensors, {label} got: {t.ndim}D"
            )
    if x1._data.shape[-1] != x2._data.shape[-1]:
        raise RuntimeError(
            f"X1 and X2 must have the same number of columns. X1: {x1._data.shape[-1]} X2: "
            f"{x2._data.shape[-1]}"
        )
    if p < 0:
        raise RuntimeError("cdist only supports non-negative p values")
    modes = ("use_mm_for_euclid_dist_if_necessary", "use_mm_for_euclid_dist",
             "donot_use_mm_for_euclid_dist")
    if compute_mode not in modes:
        raise ValueError(f"{compute_mode} is not a valid value for compute_mode")
    unsqueeze = REGISTRY["unsqueeze"].call
    return vector_norm.call(unsqueeze(x1, -2) - unsqueeze(x2, -3), p, -1)


def pdist(input: Tensor, p=2.0) -> Tensor:
    """p-norm distances between every two rows of N×M: a vector of N(N−1)/2."""
    if input.ndim != 2:
        raise RuntimeError(f"pdist only supports 2D tensors, got: {input.ndim}D")
    if p < 0:
        raise RuntimeError("pdist only supports non-negative p values")
    i, j = namespace_of(input._data).triu_indices(input._data.shape[0], 1)
    select = REGISTRY["index_select"].call
    return vector_norm.call(select(input, 0, wrap(i)) - select(input, 0, wrap(j)), p, -1)


COMPOSITES = {"norm": norm, "dist": dist}
FUNCTIONS = {"cdist": cdist, "pdist": pdist}
