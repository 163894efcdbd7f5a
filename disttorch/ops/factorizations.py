"""Factorisations of matrices: Cholesky, eigenvalues, singular values, QR. Batched, with gradients.

The gradients hold where the factorisation is unique but for signs and phases: distinct eigenvalues
or singular values, full rank. Shape legend: * batch dims, M×N a matrix, K = min(M, N).
"""

from __future__ import annotations

from ..backend import dtypes
from .core import op
from .linalg import (
    _H,
    _T,
    LinAlgError,
    _first_bad,
    _is_complex,
    _numpy_error,
    _tries,
    check_float,
    check_matrix,
    check_square,
)


# ---------------------------------------------------------------- Cholesky
@op(tensors=("A",), method=False, moves=True, out=False)
def linalg_cholesky(xp, A, upper=False):
    """L of A = LLᴴ (lower; or U of A = UᴴU). Reads one triangle of A only."""
    check_square("linalg.cholesky", A)
    check_float("linalg.cholesky", A)
    source = _T(A).conj() if upper else A
    try:
        L = xp.linalg.cholesky(source)
    except _numpy_error():
        where, bad = _first_bad(xp, _tries(xp.linalg.cholesky), source)
        raise LinAlgError(
            f"linalg.cholesky: {where}The factorization could not be completed because the input "
            f"is not positive-definite (the leading minor of order {_bad_minor(xp, bad)} is not "
            "positive-definite)."
        ) from None
    return _T(L).conj() if upper else L


def _bad_minor(xp, a):
    works = _tries(xp.linalg.cholesky)
    return next((k for k in range(1, a.shape[-1] + 1) if not works(a[:k, :k])), a.shape[-1])


@linalg_cholesky.grad("A")
def _(F, g, out, upper):
    L = _H(F, out) if upper else out
    if upper:
        g = _H(F, g)
    phi = F.tril(F.matmul(_H(F, L), g))
    phi = phi + _H(F, F.tril(phi, -1))  # twice the lower half with a halved diagonal, symmetric
    left = F.triangular_left(_H(F, L), phi, True)
    return _H(F, F.triangular_left(_H(F, L), _H(F, left), True)) * 0.5


# ---------------------------------------------------------------- eigenvalues
@op(tensors=("A",), method=False, moves=True, nout=2)
def linalg_eigh(xp, A, UPLO="L"):
    """Eigenvalues (ascending) and vectors of Hermitian matrices, read from one triangle."""
    check_square("linalg.eigh", A)
    check_float("linalg.eigh", A)
    if UPLO.upper() not in ("L", "U"):
        raise RuntimeError(
            f"Expected UPLO argument to be 'L' or 'U', but got {UPLO}"
        )
    values, vectors = xp.linalg.eigh(A, UPLO.upper())
    return values, vectors


@linalg_eigh.grad("A")
def _(F, g, out0, out1):
    gL, gV = g
    V = out1
    Vh = _H(F, V)
    if gV is None:
        return F.matmul(V * F.unsqueeze(gL, -2), Vh)
    inner = F.matmul(Vh, gV) / _gaps(F, out0)
    inner = inner - F.diag_embed(F.diagonal(inner, 0, -2, -1))
    if gL is not None:
        inner = inner + F.diag_embed(gL)
    return F.matmul(F.matmul(V, inner), Vh)


def _gaps(F, values):
    """values[j] − values[i] as a matrix, with ones on the diagonal."""
    return (F.unsqueeze(values, -2) - F.unsqueeze(values, -1)) + F.diag_embed(F.ones_like(values))


@op(tensors=("A",), method=False, moves=True, nout=2)
def linalg_eig(xp, A):
    """Eigenvalues and vectors (of length 1) of square matrices; complex in any case."""
    check_square("linalg.eig", A)
    check_float("linalg.eig", A)
    values, vectors = xp.linalg.eig(A)
    kind = dtypes.FROM_NP[A.dtype].to_complex().np
    return values.astype(kind, copy=False), vectors.astype(kind, copy=False)


@linalg_eig.grad("A")
def _(F, g, out0, out1):
    gL, gV = g
    V = out1
    Vh = _H(F, V)
    if gV is None:
        return F.linalg_solve(Vh, F.unsqueeze(gL, -1) * Vh)
    inner = F.matmul(Vh, gV)
    along = F.diagonal(inner, 0, -2, -1)
    along = (along + F.conj(along)) * 0.5  # vectors keep length 1
    inner = (inner - F.matmul(Vh, V) * F.unsqueeze(along, -2)) / F.conj(_gaps(F, out0))
    inner = inner - F.diag_embed(F.diagonal(inner, 0, -2, -1))
    if gL is not None:
        inner = inner + F.diag_embed(gL)
    return F.linalg_solve(Vh, F.matmul(inner, Vh))


# ---------------------------------------------------------------- singular values
@op(tensors=("A",), method=False, moves=True, nout=3)
def linalg_svd(xp, A, full_matrices=True):
    """U (M×M or M×K), S (K, descending) and Vᴴ (N×N or K×N) of A = U·diag(S)·Vᴴ."""
    check_matrix("linalg.svd", A)
    check_float("linalg.svd", A)
    return tuple(xp.linalg.svd(A, full_matrices))


@linalg_svd.grad("A")
def _(F, g, A, out0, out1, out2):
    gU, gS, gVh = g
    U, S, Vh = out0, out1, out2
    k, m, n = S.shape[-1], A.shape[-2], A.shape[-1]
    U, Vh = U[..., :, :k], Vh[..., :k, :]
    gU = None if gU is None else gU[..., :, :k]
    gVh = None if gVh is None else gVh[..., :k, :]
    if gU is None and gVh is None:
        return F.matmul(U * F.unsqueeze(gS, -2), Vh)
    row, column = F.unsqueeze(S, -2), F.unsqueeze(S, -1)
    inner = 0
    if gU is not None:
        skew = F.matmul(_H(F, U), gU)
        skew_u = skew - _H(F, skew)
        inner = skew_u * row
    if gVh is not None:
        skew = F.matmul(Vh, _H(F, gVh))
        inner = inner + column * (skew - _H(F, skew))
    inner = inner / _gaps(F, S * S)
    if _is_complex(U) and gU is not None:
        # phases of U and V turn together: what the skew parts leave on the diagonal
        phase = F.diagonal(skew_u, 0, -2, -1) / (2 * S)
        inner = inner - F.diag_embed(F.diagonal(inner, 0, -2, -1)) + F.diag_embed(phase)
    if gS is not None:
        inner = inner + F.diag_embed(gS)
    if m > k and gU is not None:
        left = gU / row
        return F.matmul(F.matmul(U, inner) + left - F.matmul(U, F.matmul(_H(F, U), left)), Vh)
    if n > k and gVh is not None:
        right = gVh / column
        rest = right - F.matmul(F.matmul(right, _H(F, Vh)), Vh)
        return F.matmul(U, F.matmul(inner, Vh) + rest)
    return F.matmul(F.matmul(U, inner), Vh)


# ---------------------------------------------------------------- QR
@op(tensors=("A",), method=False, moves=True, nout=2)
def linalg_qr(xp, A, mode="reduced"):
    """Q (orthonormal columns) and R (upper triangular) of A = QR."""
    check_matrix("linalg.qr", A)
    check_float("linalg.qr", A)
    if mode not in ("reduced", "complete", "r"):
        raise RuntimeError(
            f"qr received unrecognized mode '{mode}' but expected one of 'reduced' (default), 'r', "
            "or 'complete'"
        )
    if mode == "r":
        return xp.empty(0, A.dtype), xp.linalg.qr(A, "r")
    q, r = xp.linalg.qr(A, mode)
    return q, r


@linalg_qr.grad("A")
def _(F, g, A, out0, out1, mode):
    if mode == "r":
        raise RuntimeError(
            "The derivative of linalg.qr depends on Q, which is not computed when mode='r'. Please "
            "use linalg.qr(A, mode='reduced') if you are going to require gradients."
        )
    m, n = A.shape[-2], A.shape[-1]
    if mode == "complete" and m > n:
        raise RuntimeError(
            "The QR decomposition is not differentiable when mode='complete' and nrows > ncols."
        )
    gQ, gR = g
    Q, R = out0, out1
    gQ = F.zeros_like(Q) if gQ is None else gQ
    gR = F.zeros_like(R) if gR is None else gR
    if m >= n:
        return _qr_tall(F, gQ, gR, Q, R)
    # A = [X Y], X square = QR₁, Y = QR₂ with R₂ = QᴴY
    g2 = gR[..., :, m:]
    gQ = gQ + F.matmul(A[..., :, m:], _H(F, g2))
    return F.cat([_qr_tall(F, gQ, gR[..., :, :m], Q, R[..., :, :m]), F.matmul(Q, g2)], -1)


def _qr_tall(F, gQ, gR, Q, R):
    inner = F.triu(F.matmul(gR, _H(F, R)) - F.matmul(_H(F, Q), gQ))
    sym = F.triu(inner, 1)
    diagonal = F.diagonal(inner, 0, -2, -1)
    diagonal = (diagonal + F.conj(diagonal)) * 0.5
    sym = sym + _H(F, sym) + F.diag_embed(diagonal)
    total = F.matmul(Q, sym) + gQ
    # total · R⁻ᴴ
    return _H(F, F.triangular_left(R, _H(F, total), True))
