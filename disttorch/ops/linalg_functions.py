"""The functions of ``torch.linalg``, and the older ones at the top that mean the same."""

from __future__ import annotations

from .. import return_types
from ..backend import dtypes, namespace_of
from ..tensor import Tensor, wrap
from . import lu as _lu
from .core import REGISTRY, wrap_dim, write_out
from .factorizations import (
    _bad_minor,
    linalg_cholesky,
    linalg_eig,
    linalg_eigh,
    linalg_qr,
    linalg_svd,
)
from .linalg import (
    LinAlgError,
    _tries,
    check_float,
    check_matrix,
    check_square,
    cutoff,
    linalg_det,
    linalg_inv,
    linalg_matrix_exp,
    linalg_pinv,
    linalg_slogdet,
    linalg_solve,
    triangular_left,
)
from .lu import lu_factor, lu_factor_ex, lu_solve
from .matmul import matmul
from .norms import linalg_cond, linalg_matrix_norm, linalg_norm, linalg_vector_norm
from .shapes import _common_shape, _linalg_diagonal, linalg_vander


def _t(a):
    return REGISTRY["transpose"].call(a, -2, -1)


def _mH(a):
    a = _t(a)
    return REGISTRY["conjugate"].call(a) if a.dtype.category == dtypes.COMPLEX else a


def _written(result, out, name):
    """The ``out=`` form of one result or of several."""
    if out is None:
        return result
    if isinstance(result, Tensor):
        return write_out(result, out, name)
    return type(result)(tuple(write_out(r, o, name) for r, o in zip(result, out)))


def _info(A, bad):
    """Zeros for a batch of matrices, ``bad(matrix)`` where it is not zero."""
    xp = namespace_of(A._data)
    info = xp.zeros(A._data.shape[:-2], "int32")
    for at in xp.ndindex(info.shape):
        info[at] = bad(A._data[at])
    return wrap(info)


# ---------------------------------------------------------------- solving
def inv(A: Tensor, *, out=None) -> Tensor:
    """The inverse of square matrices.

    Raises:
        LinAlgError: if one is singular.
    """
    return _written(linalg_inv.call(A), out, "linalg_inv")


def inv_ex(A: Tensor, *, check_errors=False, out=None):
    """The inverse and an ``info`` that is 0 where it exists; singular matrices give inf and NaN."""
    if check_errors:
        return return_types.linalg_inv_ex((inv(A), _info(A, lambda a: 0)))
    check_square("linalg.inv", A._data)
    info = lu_factor_ex(A.detach())[2]
    if not info._data.any():
        result = return_types.linalg_inv_ex((linalg_inv.call(A), info))
        return _written(result, out, "linalg_inv_ex")
    xp = namespace_of(A._data)
    bad = info._data[..., None, None] > 0
    eye = xp.eye(A._data.shape[-1], dtype=A._data.dtype)
    safe = REGISTRY["where"].call(wrap(bad), wrap(eye), A)
    nan = wrap(xp.asarray(xp.nan, A._data.dtype))
    result = REGISTRY["where"].call(wrap(bad), nan, linalg_inv.call(safe))
    return _written(return_types.linalg_inv_ex((result, info)), out, "linalg_inv_ex")


def solve(A: Tensor, B: Tensor, *, left=True, out=None) -> Tensor:
    """X of AX = B (or XA = B with ``left=False``).

    Args:
        A: *×N×N.
        B: *×N×K matrices, or *×N vectors if its shape is A's without the last dim (or just N).

    Raises:
        LinAlgError: if A is singular.
    """
    check_square("linalg.solve", A._data)
    vector = B.ndim == 1 or B._data.shape == A._data.shape[:-1]
    if vector:
        if B._data.shape[-1] != A._data.shape[-1]:
            n = A._data.shape[-1]
            raise RuntimeError(
                "linalg.solve: Incompatible shapes of A and B for the equation AX = B "
                f"({n}x{n} and {B._data.shape[-1]}x1)"
            )
        if not left:
            raise RuntimeError(
                "linalg.solve: Vector broadcasting of the left hand side is not supported for "
                "left=False. In this case linalg.solve is equivalent to B / A.squeeze(-1)"
            )
        X = linalg_solve.call(A, REGISTRY["unsqueeze"].call(B, -1))
        return _written(REGISTRY["squeeze"].call(X, -1), out, "linalg_solve")
    X = linalg_solve.call(A, B) if left else _t(linalg_solve.call(_t(A), _t(B)))
    return _written(X, out, "linalg_solve")


def solve_ex(A: Tensor, B: Tensor, *, left=True, check_errors=False, out=None):
    """X of AX = B and an ``info`` that is 0 where A is not singular."""
    info = lu_factor_ex(A.detach())[2]
    if info._data.any() and not check_errors:
        X = wrap(namespace_of(B._data).full_like(B._data, float("nan")))
    else:
        X = solve(A, B, left=left)
    return _written(return_types.linalg_solve_ex((X, info)), out, "linalg_solve_ex")


def solve_triangular(
    A: Tensor, B: Tensor, *, upper, left=True, unitriangular=False, out=None
) -> Tensor:
    """X of AX = B (XA = B with ``left=False``), reading only A's upper (or lower) triangle."""
    if left:
        X = triangular_left.call(A, B, upper, unitriangular)
    else:
        check_matrix("linalg.solve_triangular", B._data, "B")
        X = _t(triangular_left.call(_t(A), _t(B), not upper, unitriangular))
    return _written(X, out, "linalg_solve_triangular")


def lstsq(A: Tensor, B: Tensor, rcond=None, *, driver=None):
    """The X of least ‖AX − B‖ (the shortest of several), residuals, rank and singular values.

    Args:
        A: *×M×N. B: *×M×K, or *×M.
        rcond: singular values below ``rcond`` times the largest count as zero.
        driver: "gels", "gelsy" (default), "gelsd" or "gelss"; the last two give singular values.
    """
    check_matrix("torch.linalg.lstsq", A._data, "input")
    driver = driver or "gelsy"
    if driver not in ("gels", "gelsy", "gelsd", "gelss"):
        raise RuntimeError(
            "torch.linalg.lstsq: parameter `driver` should be one of (gels, gelsy, gelsd, gelss)"
        )
    vector = A.ndim - 1 == B.ndim and A._data.shape[:-1] == B._data.shape
    rhs = REGISTRY["unsqueeze"].call(B, -1) if vector else B
    if rhs.ndim < 2 or rhs._data.shape[-2] != A._data.shape[-2]:
        raise RuntimeError(
            "torch.linalg.lstsq: input.size(-2) should match other.size(-2), but got "
            f"{list(A._data.shape)} and {list(B._data.shape)}"
        )
    rtol = None if rcond is None or rcond < 0 else rcond
    X = matmul.call(linalg_pinv.call(A, None, rtol), rhs)
    values = wrap(namespace_of(A._data).linalg.svd(A._data, compute_uv=False))
    rank = _rank_of(A, values, None, rtol)
    m, n = A._data.shape[-2:]
    empty = wrap(namespace_of(A._data).empty(0, values._data.dtype))
    residuals = empty
    if m > n and bool((rank._data == n).all()) and driver != "gelsy":
        error = matmul.call(A, X) - rhs
        residuals = REGISTRY["sum"].call(REGISTRY["abs"].call(error) ** 2, -2)
    X = REGISTRY["squeeze"].call(X, -1) if vector else X
    if driver == "gels":
        rank = wrap(namespace_of(A._data).empty(0, dtypes.int64.np))
    given = values if driver in ("gelsd", "gelss") else empty
    return return_types.linalg_lstsq((X, residuals, rank, given))


# ---------------------------------------------------------------- factorisations
def cholesky(A: Tensor, *, upper=False, out=None) -> Tensor:
    """L of A = LLᴴ, lower triangular (``upper``: the U of A = UᴴU).

    Raises:
        LinAlgError: if a matrix is not positive-definite.
    """
    return _written(linalg_cholesky.call(A, upper), out, "linalg_cholesky")


def cholesky_ex(A: Tensor, *, upper=False, check_errors=False, out=None):
    """L and an ``info``: 0, or the order of the first minor that is not positive-definite."""
    check_square("linalg.cholesky_ex", A._data)
    xp = namespace_of(A._data)
    works = _tries(xp.linalg.cholesky)
    if works(A._data) or check_errors:
        result = (cholesky(A, upper=upper), _info(A, lambda a: 0))
    else:
        info = _info(A, lambda a: 0 if works(a) else _bad_minor(xp, a))
        failed = info._data[..., None, None] > 0
        eye = wrap(xp.eye(A._data.shape[-1], dtype=A._data.dtype))
        L = cholesky(REGISTRY["where"].call(wrap(failed), eye, A), upper=upper)
        nan = wrap(xp.asarray(xp.nan, A._data.dtype))
        result = (REGISTRY["where"].call(wrap(failed), nan, L), info)
    return _written(return_types.linalg_cholesky_ex(result), out, "linalg_cholesky_ex")


def qr(A: Tensor, mode="reduced", *, out=None):
    """Q and R of A = QR; ``mode`` "reduced", "complete" or "r" (Q empty)."""
    return _written(return_types.linalg_qr(linalg_qr.call(A, mode)), out, "linalg_qr")


def svd(A: Tensor, full_matrices=True, *, driver=None, out=None):
    """U, S and Vh of A = U·diag(S)·Vh; the gradient needs distinct singular values."""
    return _written(return_types.linalg_svd(linalg_svd.call(A, full_matrices)), out, "linalg_svd")


def svdvals(A: Tensor, *, driver=None, out=None) -> Tensor:
    """The singular values, largest first."""
    check_matrix("linalg.svdvals", A._data)
    return _written(linalg_svd.call(A, False)[1], out, "linalg_svdvals")


def eigh(A: Tensor, UPLO="L", *, out=None):
    """Eigenvalues (ascending) and eigenvectors of Hermitian matrices."""
    return _written(return_types.linalg_eigh(linalg_eigh.call(A, UPLO)), out, "linalg_eigh")


def eigvalsh(A: Tensor, UPLO="L", *, out=None) -> Tensor:
    """The eigenvalues of Hermitian matrices, ascending."""
    return _written(linalg_eigh.call(A, UPLO)[0], out, "linalg_eigvalsh")


def eig(A: Tensor, *, out=None):
    """Eigenvalues and eigenvectors of square matrices, complex."""
    return _written(return_types.linalg_eig(linalg_eig.call(A)), out, "linalg_eig")


def eigvals(A: Tensor, *, out=None) -> Tensor:
    """The eigenvalues of square matrices, complex."""
    return _written(linalg_eig.call(A)[0], out, "linalg_eigvals")


def lu_of(A: Tensor, *, pivot=True, out=None):
    """P, L and U of A = PLU."""
    return _written(_lu.lu(A, pivot=pivot), out, "linalg_lu")


# ---------------------------------------------------------------- values and powers
def det(A: Tensor, *, out=None) -> Tensor:
    """The determinant of square matrices."""
    return _written(linalg_det.call(A), out, "linalg_det")


def slogdet(A: Tensor, *, out=None):
    """Sign and log of the absolute value of the determinant."""
    return _written(return_types.linalg_slogdet(linalg_slogdet.call(A)), out, "linalg_slogdet")


def pinv(A: Tensor, *, atol=None, rtol=None, hermitian=False, out=None) -> Tensor:
    """The Moore-Penrose inverse."""
    return _written(linalg_pinv.call(A, atol, rtol, hermitian), out, "linalg_pinv")


def matrix_rank(A: Tensor, tol=None, hermitian=False, *, atol=None, rtol=None, out=None) -> Tensor:
    """How many singular values exceed max(atol, rtol·largest)."""
    check_matrix("linalg.matrix_rank", A._data)
    check_float("linalg.matrix_rank", A._data)
    xp = namespace_of(A._data)
    if hermitian:
        size = xp.absolute(xp.linalg.eigvalsh(A._data))
    else:
        size = xp.linalg.svd(A._data, compute_uv=False)
    if tol is not None:
        atol, rtol = tol, 0.0
    return _written(_rank_of(A, wrap(size), atol, rtol), out, "linalg_matrix_rank")


def _rank_of(A, values, atol, rtol):
    xp, size = namespace_of(A._data), values._data
    least = cutoff(xp, A._data, size, atol, rtol)
    return wrap(xp.asarray((size > xp.asarray(least)[..., None]).sum(-1).astype(dtypes.int64.np)))


def matrix_power(A: Tensor, n: int, *, out=None) -> Tensor:
    """Aⁿ by repeated squaring; A⁻¹ to −n for negative n."""
    check_square("linalg.matrix_power", A._data)
    if n < 0:
        return matrix_power(inv(A), -n, out=out)
    if n == 0:
        eye = namespace_of(A._data).eye(A._data.shape[-1], dtype=A._data.dtype)
        result = REGISTRY["zeros_like"].call(A) + wrap(eye)
        return _written(result.detach(), out, "linalg_matrix_power")
    result = None
    while True:
        if n & 1:
            result = A if result is None else matmul.call(result, A)
        n >>= 1
        if not n:
            return _written(result, out, "linalg_matrix_power")
        A = matmul.call(A, A)


def matrix_exp(A: Tensor) -> Tensor:
    """The matrix exponential Σ Aᵏ/k!."""
    return linalg_matrix_exp.call(A)


def cross(input: Tensor, other: Tensor, *, dim=-1, out=None) -> Tensor:
    """The cross product of vectors of length 3 along ``dim``; other dims broadcast."""
    if input.ndim != other.ndim:
        raise RuntimeError(
            "linalg.cross: inputs must have the same number of dimensions."
        )
    a, b = (t._data.shape[wrap_dim(dim, t.ndim)] for t in (input, other))
    if a != 3 or b != 3:
        raise RuntimeError(
            f"linalg.cross: inputs dimension {dim} must have length 3. Got {a} and {b}"
        )
    shape = _common_shape([input, other])
    input, other = (REGISTRY["expand"].call(t, shape) for t in (input, other))
    from .shapes import _roll

    d = wrap_dim(dim, len(shape))
    # (a₁b₂ − a₂b₁, …) with the indices turned: a↻1·b↻2 − a↻2·b↻1
    left = _roll.call(input, (-1,), (d,)) * _roll.call(other, (-2,), (d,))
    right = _roll.call(input, (-2,), (d,)) * _roll.call(other, (-1,), (d,))
    return _written(left - right, out, "linalg_cross")


def cross_old(input: Tensor, other: Tensor, dim=None, *, out=None) -> Tensor:
    """The cross product along ``dim``; without one, along the first dim of size 3."""
    if dim is None:
        dim = next((d for d, n in enumerate(input._data.shape) if n == 3), None)
        if dim is None:
            raise RuntimeError("no dimension of size 3 in input")
    return cross(input, other, dim=dim, out=out)


def vecdot(x: Tensor, y: Tensor, *, dim=-1, out=None) -> Tensor:
    """Σ conj(x)·y along ``dim``; other dims broadcast."""
    x = REGISTRY["conjugate"].call(x) if x.dtype.category == dtypes.COMPLEX else x
    return _written(REGISTRY["sum"].call(x * y, dim), out, "linalg_vecdot")


def multi_dot(tensors, *, out=None) -> Tensor:
    """The product of two or more matrices in the cheapest order; first and last may be vectors."""
    tensors = list(tensors)
    if len(tensors) < 2:
        raise RuntimeError(f"multi_dot(): expected at least 2 tensors but got {len(tensors)}")
    for i, t in enumerate(tensors):
        edge = i in (0, len(tensors) - 1)
        if t.ndim != 2 and not (edge and t.ndim == 1):
            raise RuntimeError(
                f"multi_dot(): tensor {i} must be {'1D or ' if edge else ''}2D but got {t.ndim}D"
            )
    first, last = tensors[0].ndim == 1, tensors[-1].ndim == 1
    if first:
        tensors[0] = REGISTRY["unsqueeze"].call(tensors[0], 0)
    if last:
        tensors[-1] = REGISTRY["unsqueeze"].call(tensors[-1], -1)
    result = _chain(tensors, _best_order([t._data.shape for t in tensors]), 0, len(tensors) - 1)
    if last:
        result = REGISTRY["squeeze"].call(result, -1)
    if first:
        result = REGISTRY["squeeze"].call(result, 0)
    return _written(result, out, "linalg_multi_dot")


def _best_order(shapes):
    """Where to cut each span of a matrix chain (the classic dynamic program)."""
    n = len(shapes)
    sizes = [s[0] for s in shapes] + [shapes[-1][1]]
    cost, cut = [[0] * n for _ in range(n)], [[0] * n for _ in range(n)]
    for span in range(1, n):
        for i in range(n - span):
            j = i + span
            cost[i][j], cut[i][j] = min(
                (cost[i][k] + cost[k + 1][j] + sizes[i] * sizes[k + 1] * sizes[j + 1], k)
                for k in range(i, j)
            )
    return cut


def _chain(tensors, cut, i, j):
    if i == j:
        return tensors[i]
    k = cut[i][j]
    return matmul.call(_chain(tensors, cut, i, k), _chain(tensors, cut, k + 1, j))


def chain_matmul(*matrices, out=None) -> Tensor:
    """The product of matrices in the cheapest order (``linalg.multi_dot`` takes a list)."""
    if len(matrices) == 1 and isinstance(matrices[0], (list, tuple)):
        matrices = tuple(matrices[0])
    if len(matrices) == 1:
        return matrices[0]
    return multi_dot(matrices, out=out)


def tensorinv(A: Tensor, ind=2, *, out=None) -> Tensor:
    """The inverse of ``A`` as a map from its last dims to its first ``ind`` ones."""
    if ind <= 0:
        raise RuntimeError(f"Expected a strictly positive integer for 'ind', but got {ind}")
    shape = A._data.shape
    head, tail = shape[:ind], shape[ind:]
    rows, columns = _prod(head), _prod(tail)
    if rows != columns:
        raise RuntimeError(
            "Expected self to satisfy the requirement prod(self.shape[ind:]) == "
            f"prod(self.shape[:ind]), but got {columns} != {rows}"
        )
    result = inv(REGISTRY["reshape"].call(A, (rows, columns)))
    return _written(REGISTRY["reshape"].call(result, tail + head), out, "linalg_tensorinv")


def _prod(shape):
    n = 1
    for s in shape:
        n *= s
    return n


def tensorsolve(A: Tensor, B: Tensor, dims=None, *, out=None) -> Tensor:
    """X of tensordot(A, X, X.ndim) = B."""
    if dims is not None:
        axes = [wrap_dim(d, A.ndim) for d in dims]
        order = [d for d in range(A.ndim) if d not in axes] + axes
        A = REGISTRY["permute"].call(A, tuple(order))
    tail = A._data.shape[B.ndim:]
    n = _prod(tail)
    if n != B.numel() or _prod(A._data.shape[:B.ndim]) != n:
        raise RuntimeError(
            "Expected self to satisfy the requirement prod(self.shape[other.ndim:]) == "
            f"prod(self.shape[:other.ndim]), but got {n} != {_prod(A._data.shape[:B.ndim])}"
        )
    flat = REGISTRY["reshape"].call
    X = solve(flat(A, (n, n)), flat(B, (n,)))
    return _written(flat(X, tail), out, "linalg_tensorsolve")


def householder_product(A: Tensor, tau: Tensor, *, out=None) -> Tensor:
    """The first N columns of the product of reflections I − τᵢ·vᵢvᵢᴴ stored below A's diagonal."""
    check_matrix("torch.linalg.householder_product", A._data, "input")
    m, n = A._data.shape[-2:]
    if m < n:
        raise RuntimeError(
            "torch.linalg.householder_product: input.shape[-2] must be greater than or equal to "
            f"input.shape[-1], got {m} and {n}"
        )
    xp = namespace_of(A._data)
    tril = REGISTRY["tril"].call
    v = tril(A, -1) + wrap(xp.eye(m, n, dtype=A._data.dtype))
    Q = wrap(xp.eye(m, n, dtype=A._data.dtype))
    for i in reversed(range(tau._data.shape[-1])):
        w = v[..., :, i:i + 1]
        Q = Q - tau[..., i, None, None] * matmul.call(w, matmul.call(_mH(w), Q))
    return _written(Q, out, "linalg_householder_product")


# ---------------------------------------------------------------- the older names
def logdet(input: Tensor) -> Tensor:
    """The log of the determinant: −inf where it is 0, NaN where it is negative."""
    sign, logabs = linalg_slogdet.call(input)
    nan = wrap(namespace_of(input._data).asarray(float("nan"), logabs._data.dtype))
    if input.dtype.category == dtypes.COMPLEX:
        return logabs + REGISTRY["log"].call(sign)
    return REGISTRY["where"].call(sign == -1, nan, logabs)


def slogdet_old(input: Tensor, *, out=None):
    """Sign and log of the absolute value of the determinant."""
    return _written(return_types.slogdet(linalg_slogdet.call(input)), out, "slogdet")


def pinverse(input: Tensor, rcond=1e-15) -> Tensor:
    """The Moore-Penrose inverse; singular values below ``rcond``·largest count as zero."""
    return pinv(input, atol=0.0, rtol=rcond)


def svd_old(input: Tensor, some=True, compute_uv=True, *, out=None):
    """U, S and V (not its conjugate transpose) of input = U·diag(S)·Vᴴ."""
    if not compute_uv:
        m, n = input._data.shape[-2:]
        zeros = namespace_of(input._data).zeros
        batch, S = input._data.shape[:-2], svdvals(input)
        U, V = (wrap(zeros((*batch, k, k), input._data.dtype)) for k in (m, n))
        return return_types.svd((U, S, V))
    U, S, Vh = linalg_svd.call(input, not some)
    return _written(return_types.svd((U, S, _mH(Vh))), out, "svd")


def qr_old(input: Tensor, some=True, *, out=None):
    """Q and R of input = QR."""
    result = linalg_qr.call(input, "reduced" if some else "complete")
    return _written(return_types.qr(result), out, "qr")


def cholesky_old(input: Tensor, upper=False, *, out=None) -> Tensor:
    """L of input = LLᴴ (or U of UᴴU)."""
    return cholesky(input, upper=upper, out=out)


def cholesky_solve(B: Tensor, L: Tensor, upper=False, *, out=None) -> Tensor:
    """X of AX = B for A given by its Cholesky factor."""
    if B.ndim < 2:
        raise RuntimeError(
            f"b should have at least 2 dimensions, but has {B.ndim} dimensions instead"
        )
    if L.ndim < 2:
        raise RuntimeError(
            f"u should have at least 2 dimensions, but has {L.ndim} dimensions instead"
        )
    low = _mH(L) if upper else L
    X = triangular_left.call(_mH(low), triangular_left.call(low, B, False), True)
    return _written(X, out, "cholesky_solve")


def cholesky_inverse(L: Tensor, upper=False, *, out=None) -> Tensor:
    """A⁻¹ for A given by its Cholesky factor."""
    check_square("cholesky_inverse", L._data)
    eye = wrap(namespace_of(L._data).eye(L._data.shape[-1], dtype=L._data.dtype))
    return cholesky_solve(eye, L, upper, out=out)


def triangular_solve(b: Tensor, A: Tensor, upper=True, transpose=False, unitriangular=False):
    """X of AX = b for triangular A, and a copy of A."""
    matrix = _t(A) if transpose else A
    X = triangular_left.call(matrix, b, upper != transpose, unitriangular)
    return return_types.triangular_solve((X, REGISTRY["clone"].call(A)))


def inner(input: Tensor, other: Tensor, *, out=None) -> Tensor:
    """Sums of products over the last dims."""
    if not input.ndim or not other.ndim:
        result = input * other
    elif input._data.shape[-1] != other._data.shape[-1]:
        raise RuntimeError(
            "inner() the last dimension must match on both input tensors but got shapes "
            f"{list(input._data.shape)} and {list(other._data.shape)}"
        )
    else:
        from .einsum import tensordot

        result = tensordot(input, other, ([-1], [-1]))
    return _written(result, out, "inner")


def vdot(input: Tensor, other: Tensor, *, out=None) -> Tensor:
    """The inner product of two vectors, the first conjugated."""
    for t in (input, other):
        if t.ndim != 1:
            raise RuntimeError(
                f"1D tensors expected, but got {input.ndim}D and {other.ndim}D tensors"
            )
    input = REGISTRY["conjugate"].call(input) if input.dtype.is_complex else input
    return matmul.call(input, other, out=out)


def adjoint(input: Tensor) -> Tensor:
    """The last two dims exchanged and conjugated."""
    if input.ndim < 2:
        raise RuntimeError(
            f"tensor.adjoint() is only supported on matrices or batches of matrices. Got "
            f"{input.ndim}-D tensor."
        )
    return _mH(input)


LINALG = {
    "LinAlgError": LinAlgError, "cholesky": cholesky, "cholesky_ex": cholesky_ex,
    "cond": linalg_cond, "cross": cross, "det": det, "diagonal": _linalg_diagonal, "eig": eig,
    "eigh": eigh, "eigvals": eigvals, "eigvalsh": eigvalsh,
    "householder_product": householder_product, "inv": inv, "inv_ex": inv_ex, "lstsq": lstsq,
    "lu": lu_of, "lu_factor": lu_factor, "lu_factor_ex": lu_factor_ex, "lu_solve": lu_solve,
    "matmul": matmul.call, "matrix_exp": matrix_exp, "matrix_norm": linalg_matrix_norm,
    "matrix_power": matrix_power, "matrix_rank": matrix_rank, "multi_dot": multi_dot,
    "norm": linalg_norm, "pinv": pinv, "qr": qr, "slogdet": slogdet, "solve": solve,
    "solve_ex": solve_ex, "solve_triangular": solve_triangular, "svd": svd, "svdvals": svdvals,
    "tensorinv": tensorinv, "tensorsolve": tensorsolve, "vander": linalg_vander, "vecdot": vecdot,
    "vector_norm": linalg_vector_norm,
}
COMPOSITES = {
    "inverse": inv, "det": det, "slogdet": slogdet_old, "logdet": logdet, "pinverse": pinverse,
    "svd": svd_old, "qr": qr_old, "cholesky": cholesky_old, "cholesky_solve": cholesky_solve,
    "cholesky_inverse": cholesky_inverse, "triangular_solve": triangular_solve,
    "matrix_power": matrix_power, "matrix_exp": matrix_exp, "cross": cross_old, "inner": inner,
    "vdot": vdot, "adjoint": adjoint, "orgqr": householder_product,
}
FUNCTIONS = {"chain_matmul": chain_matmul}
