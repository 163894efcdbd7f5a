"""LU factorisation with partial pivoting, and what is solved with it.

NumPy has no LU, so the elimination is written here: one column at a time, over the whole batch.
"""

from __future__ import annotations

from .. import return_types
from ..backend import dtypes, namespace_of
from ..tensor import Tensor, wrap
from .core import REGISTRY, op
from .linalg import _H, LinAlgError, check_float, check_matrix, check_square


def lu_factor_array(xp, a, pivot=True):
    """(LU in one matrix *×M×N, pivots *×K counted from 1) of an array."""
    lu = xp.array(a, copy=True, order="C").reshape(-1, *a.shape[-2:])
    batch, m, n = lu.shape
    k = min(m, n)
    pivots = xp.broadcast_to(xp.arange(1, k + 1, dtype="int32"), (batch, k)).copy()
    every = xp.arange(batch)
    for j in range(k):
        if pivot:
            best = _size(xp, lu[:, j:, j]).argmax(1) + j
            pivots[:, j] = best + 1
            rows = lu[every, best].copy()
            lu[every, best] = lu[:, j]
            lu[:, j] = rows
        head = lu[:, j, j][:, None]
        scale = xp.where(head == 0, 0, lu[:, j + 1:, j] / xp.where(head == 0, 1, head))
        lu[:, j + 1:, j] = scale
        lu[:, j + 1:, j + 1:] -= scale[:, :, None] * lu[:, None, j, j + 1:]
    return lu.reshape(a.shape), pivots.reshape(*a.shape[:-2], k)


def _size(xp, column):
    """What LAPACK compares pivots by: |re| + |im|."""
    if column.dtype.kind == "c":
        return xp.absolute(column.real) + xp.absolute(column.imag)
    return xp.absolute(column)


def permutation(xp, pivots, m):
    """The row order *×M that a sequence of exchanges leads to."""
    flat = pivots.reshape(-1, pivots.shape[-1])
    order = xp.broadcast_to(xp.arange(m), (flat.shape[0], m)).copy()
    every = xp.arange(flat.shape[0])
    for j in range(flat.shape[1]):
        other = flat[:, j] - 1
        kept = order[every, other].copy()
        order[every, other] = order[:, j]
        order[:, j] = kept
    return order.reshape(*pivots.shape[:-1], m)


@op(tensors=("A",), method=False, moves=True, nout=2, samples=None)
def lu_decompose(xp, A, pivot=True):
    """LU (L's unit diagonal left out) and int32 pivots of A = PLU."""
    check_matrix("linalg.lu_factor", A)
    check_float("linalg.lu_factor", A)
    return lu_factor_array(xp, A, pivot)


@lu_decompose.grad("A")
def _(F, g, out0, out1):
    """For square A: P·L⁻ᴴ·(tril(Lᴴ gL, −1) + triu(gU Uᴴ))·U⁻ᴴ."""
    if out0.shape[-1] != out0.shape[-2]:
        raise NotImplementedError("the gradient of lu is built for square matrices only")
    lower = F.tril(out0, -1) + F.diag_embed(F.ones_like(F.diagonal(out0, 0, -2, -1)))
    upper = F.triu(out0)
    inner = F.tril(F.matmul(_H(F, lower), F.tril(g[0], -1)), -1)
    inner = inner + F.triu(F.matmul(F.triu(g[0]), _H(F, upper)))
    right = _H(F, F.triangular_left(upper, _H(F, inner), True))
    left = F.triangular_left(_H(F, lower), right, True, True)
    return F.matmul(F.pivot_matrix(out1, F.diagonal(left, 0, -2, -1)), left)


@op(tensors=("pivots", "like"), method=False, moves=True, out=False)
def pivot_matrix(xp, pivots, like):
    """P (*×M×M, of ``like``'s dtype and size M) of a sequence of row exchanges."""
    m = like.shape[-1]
    order = permutation(xp, pivots, m)
    return (xp.arange(m)[:, None] == order[..., None, :]).astype(like.dtype)


def lu_factor_ex(A: Tensor, *, pivot=True, check_errors=False):
    """Like ``lu_factor``, with ``info``: the number of the first zero pivot, or 0."""
    LU, pivots = lu_decompose.call(A, pivot)
    xp = namespace_of(A._data)
    zero = xp.diagonal(LU._data, 0, -2, -1) == 0
    info = xp.where(zero.any(-1), zero.argmax(-1) + 1, 0).astype("int32") if zero.shape[-1] else (
        xp.zeros(zero.shape[:-1], "int32"))
    if check_errors and info.any():
        raise LinAlgError(
            f"torch.linalg.lu_factor_ex: U[{int(info.max())},{int(info.max())}] is zero and using "
            "it on lu_solve would result in a division by zero."
        )
    return return_types.linalg_lu_factor_ex((LU, pivots, wrap(xp.asarray(info))))


def lu_factor(A: Tensor, *, pivot=True):
    """LU (in one matrix) and int32 pivots, counted from 1, of A = PLU."""
    return return_types.linalg_lu_factor(lu_decompose.call(A, pivot))


def lu(A: Tensor, *, pivot=True):
    """P, L (unit lower) and U (upper) of A = PLU, with partial pivoting."""
    LU, pivots = lu_decompose.call(A, pivot)
    return return_types.linalg_lu(lu_unpack(LU, pivots))


def lu_unpack(LU_data: Tensor, LU_pivots: Tensor, unpack_data=True, unpack_pivots=True):
    """P, L and U from what ``lu_factor`` gives."""
    xp, shape = namespace_of(LU_data._data), LU_data._data.shape
    m, n = shape[-2:]
    k = min(m, n)
    tril, triu = REGISTRY["tril"].call, REGISTRY["triu"].call
    P = wrap((xp.arange(m)[:, None] == permutation(xp, LU_pivots._data, m)[..., None, :])
             .astype(LU_data._data.dtype))
    L = tril(LU_data[..., :, :k], -1) + wrap(xp.eye(m, k, dtype=LU_data._data.dtype))
    return return_types.lu_unpack((P, L, triu(LU_data[..., :k, :])))


def lu_solve(LU: Tensor, pivots: Tensor, B: Tensor, *, left=True, adjoint=False) -> Tensor:
    """X of AX = B (or XA = B) for A given by its LU factors; with ``adjoint`` for Aᴴ."""
    check_square("linalg.lu_solve", LU._data)
    P, L, U = lu_unpack(LU, pivots)
    transpose, conj = REGISTRY["transpose"].call, _conj
    solve = REGISTRY["triangular_left"].call
    if not left:  # XA = B  <=>  AᴴXᴴ = Bᴴ
        Bh = conj(transpose(B, -1, -2))
        return conj(transpose(lu_solve(LU, pivots, Bh, adjoint=not adjoint), -1, -2))
    if adjoint:  # AᴴX = UᴴLᴴPᵀX
        Y = solve(conj(transpose(U, -1, -2)), B, False)
        return P @ solve(conj(transpose(L, -1, -2)), Y, True, True)
    Y = solve(L, transpose(P, -1, -2) @ B, False, True)
    return solve(U, Y, True)


def _conj(t):
    return REGISTRY["conjugate"].call(t) if t.dtype.category == dtypes.COMPLEX else t


def lu_solve_old(b: Tensor, LU_data: Tensor, LU_pivots: Tensor) -> Tensor:
    """X of AX = b for A given by its LU factors."""
    return lu_solve(LU_data, LU_pivots, b)


def torch_lu(A: Tensor, pivot=True, get_infos=False):
    """LU and pivots, with ``get_infos`` also the numbers of zero pivots."""
    LU, pivots, info = lu_factor_ex(A, pivot=pivot)
    return (LU, pivots, info) if get_infos else (LU, pivots)


COMPOSITES = {"lu_solve": lu_solve_old, "lu": torch_lu}
FUNCTIONS = {"lu_unpack": lu_unpack}
