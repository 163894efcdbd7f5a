"""Solvers, determinants, inverses and exponentials of matrices (the last two dims), batched.

NumPy's LAPACK computes; the gradients are those of Giles, "Collected matrix derivative results for
forward and reverse mode algorithmic differentiation" (2008), in their complex form. Aᴴ is written
``_H(F, A)``. Shape legend: * batch dims, M×N a matrix, K = min(M, N).
"""

from __future__ import annotations

from ..backend import dtypes
from ..tensor import Tensor
from .core import op, type_name
from .samples import case


class LinAlgError(RuntimeError):
    """A factorisation that does not exist: the matrix is singular, or not positive-definite."""


LinAlgError.__name__ = LinAlgError.__qualname__ = "_LinAlgError"


def _H(F, a):
    """The conjugate transpose."""
    return F.conj(F.transpose(a, -1, -2))


def _T(a):
    return a.swapaxes(-1, -2)


# ---------------------------------------------------------------- checks
def check_float(name, *arrays):
    """RuntimeErrors for element types that LAPACK lacks, and for several of them."""
    for a in arrays:
        kind = dtypes.FROM_NP[a.dtype]
        if kind.category < dtypes.FLOAT:
            raise RuntimeError(
                f"{name}: Expected a floating point or complex tensor as input. Got "
                f"{type_name(kind)}"
            )
        if a.dtype.itemsize == 2:
            raise RuntimeError(
                f"{name}: Low precision dtypes not supported. Got {type_name(kind)}"
            )
        if a.dtype != arrays[0].dtype:
            raise RuntimeError(
                f"{name}: Expected all tensors to have the same dtype but got "
                f"{type_name(dtypes.FROM_NP[arrays[0].dtype])} and {type_name(kind)}"
            )


def check_matrix(name, a, label="A"):
    if a.ndim < 2:
        raise RuntimeError(f"{name}: The input tensor {label} must have at least 2 dimensions.")


def check_square(name, a):
    check_matrix(name, a)
    if a.shape[-1] != a.shape[-2]:
        raise RuntimeError(
            f"{name}: A must be batches of square matrices, "
            f"but they are {a.shape[-2]} by {a.shape[-1]} matrices"
        )


def _first_bad(xp, works, array):
    """Where in a batch the factorisation fails: " (Batch element i):" for messages."""
    if array.ndim == 2:
        return "", array
    for i, at in enumerate(xp.ndindex(array.shape[:-2])):
        if not works(array[at]):
            return f"(Batch element {i}): ", array[at]
    raise AssertionError("the whole batch fails, but none of its members")


def _tries(function):
    def works(a):
        try:
            function(a)
        except _numpy_error():
            return False
        return True

    return works


def _numpy_error():
    from ..backend import CPU

    return CPU.linalg.LinAlgError


# ---------------------------------------------------------------- inverse and solve
def _well(m, *shape):
    """Sample matrices far from singular."""
    t = m.constant(*shape)
    n = shape[-1]
    t._data[...] += 4 * _eye_of(t, n)
    return t.requires_grad_(m.requires_grad)


def _eye_of(t, n):
    from ..backend import namespace_of

    return namespace_of(t._data).eye(n).astype(t._data.dtype)


@op(tensors=("A",), method=False, moves=True, out=False, samples=lambda m: [
    case(_well(m, 3, 3)), case(_well(m, 2, 2, 2)), case(m(0, 0)), case(m(2, 0, 0))])
def linalg_inv(xp, A):
    check_square("linalg.inv", A)
    check_float("linalg.inv", A)
    try:
        return xp.linalg.inv(A)
    except _numpy_error():
        where, bad = _first_bad(xp, _tries(xp.linalg.inv), A)
        raise LinAlgError(
            f"linalg.inv: {where}The diagonal element {_zero_pivot(xp, bad)} is zero, the "
            "inversion could not be completed because the input matrix is singular."
        ) from None


def _zero_pivot(xp, a):
    """The number (from 1) of the first zero on U's diagonal."""
    from .lu import lu_factor_array

    lu, _ = lu_factor_array(xp, a)
    zeros = xp.flatnonzero(xp.diagonal(lu) == 0)
    return int(zeros[0]) + 1 if len(zeros) else a.shape[-1]


@linalg_inv.grad("A")
def _(F, g, out):
    h = _H(F, out)
    return -F.matmul(F.matmul(h, g), h)


@op(tensors=("A", "B"), method=False, moves=True, out=False, samples=lambda m: [
    case(_well(m, 3, 3), m(3, 2)), case(_well(m, 2, 3, 3), m(3, 2)),
    case(_well(m, 3, 3), m(2, 3, 1)),
    case(_well(m, 2, 1, 2, 2), m(3, 2, 2)), case(m(0, 0), m(0, 2)),
])
def linalg_solve(xp, A, B):
    """X of AX = B. A: *×N×N, B: *×N×M."""
    check_square("linalg.solve", A)
    check_float("linalg.solve", A, B)
    if A.shape[-1] != B.shape[-2]:
        raise RuntimeError(
            "linalg.solve: Incompatible shapes of A and B for the equation AX = B "
            f"({A.shape[-2]}x{A.shape[-1]} and {B.shape[-2]}x{B.shape[-1]})"
        )
    try:
        return xp.linalg.solve(A, B)
    except _numpy_error():
        where, _ = _first_bad(xp, _tries(xp.linalg.inv), A)
        raise LinAlgError(
            f"torch.linalg.solve: {where}The solver failed because the input matrix is singular."
        ) from None


@linalg_solve.joint_grad("A", "B")
def _(F, g, needs, A, out):
    # The gradient of a broadcast B comes back in the full shape; the engine sums it
    gB = F.linalg_solve(_H(F, A), g)
    return (-F.matmul(gB, _H(F, out)) if needs[0] else None), gB


@op(tensors=("A", "B"), method=False, moves=True, out=False, samples=lambda m: [
    case(_well(m, 3, 3), m(3, 2), True), case(_well(m, 2, 3, 3), m(3, 2), False),
    case(_well(m, 3, 3), m(2, 3, 2), True, True),
])
def triangular_left(xp, A, B, upper, unitriangular=False):
    """X of AX = B, where A is read as a triangle. A: *×N×N, B: *×N×M."""
    check_square("linalg.solve_triangular", A)
    check_matrix("linalg.solve_triangular", B, "B")
    check_float("linalg.solve_triangular", A, B)
    if A.shape[-1] != B.shape[-2]:
        raise RuntimeError(
            "linalg.solve_triangular: Incompatible shapes of A and B for the equation AX = B "
            f"({A.shape[-2]}x{A.shape[-1]} and {B.shape[-2]}x{B.shape[-1]})"
        )
    batch = xp.broadcast_shapes(A.shape[:-2], B.shape[:-2])
    X = xp.array(xp.broadcast_to(B, batch + B.shape[-2:]), copy=True, order="C")
    _substitute(xp, A, X, upper, unitriangular)
    return X


def _substitute(xp, A, X, upper, unit):
    """Solve in place by halves: two triangles and one product, down to single rows."""
    n = A.shape[-1]
    if n <= 1:
        if n and not unit:
            X /= A[..., :1, :1]
        return
    h = n // 2
    first, second = slice(0, h), slice(h, n)
    if upper:
        first, second = second, first
    _substitute(xp, A[..., first, first], X[..., first, :], upper, unit)
    X[..., second, :] -= xp.matmul(A[..., second, first], X[..., first, :])
    _substitute(xp, A[..., second, second], X[..., second, :], upper, unit)


@triangular_left.joint_grad("A", "B")
def _(F, g, needs, A, out, upper, unitriangular):
    gB = F.triangular_left(_H(F, A), g, not upper, unitriangular)
    gA = None
    if needs[0]:
        full = -F.matmul(gB, _H(F, out))
        edge = 1 if unitriangular else 0
        gA = F.triu(full, edge) if upper else F.tril(full, -edge)
    return gA, gB


# ---------------------------------------------------------------- determinants
@op(tensors=("A",), method=False, moves=True, out=False, samples=lambda m: [
    case(_well(m, 3, 3)), case(m(2, 3, 3)), case(m(2, 1, 1)), case(m(0, 0))])
def linalg_det(xp, A):
    check_square("linalg.det", A)
    check_float("linalg.det", A)
    return xp.asarray(xp.linalg.det(A))


@linalg_det.grad("A")
def _(F, g, A):
    return F.unsqueeze(F.unsqueeze(g, -1), -1) * F.conj(F.linalg_cofactor(A))


@op(tensors=("A",), method=False, moves=True, out=False, samples=lambda m: [
    case(_well(m, 3, 3)), case(_well(m, 2, 2, 2)),
])
def linalg_cofactor(xp, A):
    """The derivative of det A by A's elements; finite for singular matrices too."""
    if A.shape[-1] == 0:
        return A.copy()
    u, s, vh = xp.linalg.svd(A)
    n = A.shape[-1]
    others = xp.where(xp.eye(n, dtype=bool), 1, s[..., None, :]).prod(-1)
    # det A = det(U) Π s det(Vᴴ); the cofactors are conj of det(U)·det(Vᴴ)·U·diag(Π others)·Vᴴ
    sign = xp.linalg.det(u) * xp.linalg.det(vh)
    full = xp.matmul(u.conj() * others[..., None, :].astype(A.dtype), vh.conj())
    return sign[..., None, None] * full


@linalg_cofactor.grad("A")
def _(F, g, A):
    """With W = A⁻ᵀ and d = det A the cofactors are dW, whose derivative is written out here."""
    w = F.conj(F.transpose(F.linalg_inv(A), -1, -2))
    d = F.conj(F.linalg_det(A))[..., None, None]
    along = F.sum(g * w, (-2, -1), True)
    return d * (along * w - F.matmul(F.matmul(w, F.transpose(g, -1, -2)), w))


@op(tensors=("A",), method=False, moves=True, nout=2, samples=lambda m: [
    case(_well(m, 3, 3)), case(_well(m, 2, 2, 2))])
def linalg_slogdet(xp, A):
    check_square("linalg.slogdet", A)
    check_float("linalg.slogdet", A)
    sign, logabs = xp.linalg.slogdet(A)
    return xp.asarray(sign), xp.asarray(logabs)


@linalg_slogdet.grad("A")
def _(F, g, A, out0):
    g_sign, g_log = g
    total = 0 if g_log is None else g_log
    if g_sign is not None and _is_complex(out0):  # real signs are constant
        z = F.conj(g_sign) * out0
        total = total - (z - F.conj(z)) * 0.5
    if not hasattr(total, "shape"):
        return F.zeros_like(A)
    return total[..., None, None] * _H(F, F.linalg_inv(A))


def _is_complex(a):
    return a.is_complex() if isinstance(a, Tensor) else a.dtype.kind == "c"


# ---------------------------------------------------------------- pseudo-inverse, exponential
@op(tensors=("A",), method=False, moves=True, out=False, samples=lambda m: [
    case(m(4, 2)), case(m(2, 4)), case(m(2, 3, 3)), case(m(3, 0))])
def linalg_pinv(xp, A, atol=None, rtol=None, hermitian=False):
    """The Moore-Penrose inverse; singular values up to max(atol, rtol·largest) count as zero."""
    check_matrix("linalg.pinv", A)
    check_float("linalg.pinv", A)
    if A.size == 0:
        return xp.zeros((*A.shape[:-2], A.shape[-1], A.shape[-2]), A.dtype)
    if hermitian:
        check_square("linalg.pinv", A)
        values, u = xp.linalg.eigh(A)
        size, vh = xp.absolute(values), _T(u).conj()
    else:
        u, values, vh = xp.linalg.svd(A, False)
        size = values
    keep = size > cutoff(xp, A, size, atol, rtol)[..., None]
    inverse = xp.where(keep, 1 / xp.where(keep, values, 1), 0).astype(values.dtype)
    return xp.matmul(_T(vh).conj() * inverse[..., None, :], _T(u).conj())


def cutoff(xp, A, size, atol, rtol):
    """Below what a singular value counts as zero: max(atol, rtol·largest)."""
    if rtol is None:
        eps = float(xp.finfo(A.dtype).eps) * max(A.shape[-2:])
        rtol = eps if atol is None else xp.where(xp.asarray(_array(atol)) > 0, 0.0, eps)
    atol = 0.0 if atol is None else _array(atol)
    largest = size.max(-1) if size.shape[-1] else xp.zeros(size.shape[:-1], size.dtype)
    return xp.maximum(xp.asarray(atol), xp.asarray(_array(rtol)) * largest)


def _array(value):
    return value._data if isinstance(value, Tensor) else value


@linalg_pinv.grad("A")
def _(F, g, A, out):
    P, Ph, gh = out, _H(F, out), _H(F, g)
    K = F.matmul(gh, P)
    KPh = F.matmul(K, Ph)
    return (-_H(F, F.matmul(P, K)) + KPh - F.matmul(F.matmul(A, P), KPh)
            + F.matmul(F.matmul(Ph, P), gh - F.matmul(K, A)))


@op(tensors=("A",), method=False, moves=True, out=False, samples=lambda m: [
    case(m(3, 3)), case(m(2, 2, 2)), case(m(2, 1, 1)), case(m(0, 0))])
def linalg_matrix_exp(xp, A):
    """Σ Aᵏ/k! by scaling, a Padé approximant of degree 13 and squaring (Higham, 2005)."""
    check_square("linalg.matrix_exp", A)
    check_float("linalg.matrix_exp", A)
    if A.size == 0:
        return A.copy()
    norm = xp.absolute(A).sum(-2).max(-1)
    double = A.real.dtype.itemsize == 8
    theta = 5.371920351148152 if double else 3.925724783138660
    halvings = xp.maximum(0, xp.ceil(xp.log2(xp.maximum(norm, 1e-30) / theta))).astype(int)
    scaled = A / (2.0 ** halvings[..., None, None]).astype(A.real.dtype)
    out = _pade13(xp, scaled)
    for k in range(int(halvings.max())):
        squared = xp.matmul(out, out)
        out = xp.where((halvings > k)[..., None, None], squared, out)
    return out


_PADE13 = (64764752532480000, 32382376266240000, 7771770303897600, 1187353796428800,
           129060195264000, 10559470521600, 670442572800, 33522128640, 1323241920, 40840800,
           960960, 16380, 182, 1)


def _pade13(xp, A):
    b = [c / _PADE13[0] for c in _PADE13]
    eye = xp.eye(A.shape[-1], dtype=A.dtype)
    a2 = xp.matmul(A, A)
    a4, even, odd = xp.matmul(a2, a2), None, None
    a6 = xp.matmul(a2, a4)
    odd = xp.matmul(a6, b[13] * a6 + b[11] * a4 + b[9] * a2)
    odd = xp.matmul(A, odd + b[7] * a6 + b[5] * a4 + b[3] * a2 + b[1] * eye)
    even = xp.matmul(a6, b[12] * a6 + b[10] * a4 + b[8] * a2)
    even = even + b[6] * a6 + b[4] * a4 + b[2] * a2 + b[0] * eye
    return xp.linalg.solve(even - odd, even + odd)


@linalg_matrix_exp.grad("A")
def _(F, g, A):
    # exp of [[Aᴴ, g], [0, Aᴴ]] holds the derivative in its upper right block
    n, h = A.shape[-1], _H(F, A)
    block = F.cat([F.cat([h, g], -1), F.cat([F.zeros_like(h), h], -1)], -2)
    return F.linalg_matrix_exp(block)[..., :n, n:]
