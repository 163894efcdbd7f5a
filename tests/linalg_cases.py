"""Functions of linear algebra whose factors are unique only up to sign or phase, as functions of
their input that do not depend on that choice. ``t`` is disttorch or PyTorch."""

from __future__ import annotations


def _positive(t, x):
    return x @ x.mH + 2 * t.eye(x.shape[-1], dtype=x.dtype)


def _symmetric(t, x):
    return x + x.mH


def _power_of(q):
    return q * q.conj() if q.is_complex() else q * q


def _cholesky(t, x):
    return t.linalg.cholesky(_positive(t, x))


def _cholesky_upper(t, x):
    return t.linalg.cholesky(_positive(t, x), upper=True)


def _cholesky_solve(t, x):
    L = t.linalg.cholesky(_positive(t, x))
    return t.cholesky_solve(x, L) + t.cholesky_inverse(L)


def _eigvalsh(t, x):
    return t.linalg.eigvalsh(_symmetric(t, x))


def _eigh_function(t, x):
    values, v = t.linalg.eigh(_symmetric(t, x))
    return (v * t.sin(values).unsqueeze(-2)) @ v.mH


def _eigh_squares(t, x):
    return _power_of(t.linalg.eigh(_symmetric(t, x), UPLO="U")[1])


def _eigvals(t, x):
    return t.view_as_real(t.linalg.eigvals(x) ** 3).sum(-2)


def _eig_function(t, x):
    values, v = t.linalg.eig(x)
    return t.view_as_real(v @ ((values**2 + 1).unsqueeze(-1) * t.linalg.inv(v)))


def _svdvals(t, x):
    return t.linalg.svdvals(x)


def _svd_function(t, x):
    u, s, vh = t.linalg.svd(x, full_matrices=False)
    return (u * t.tanh(s).unsqueeze(-2)) @ vh


def _svd_squares(t, x):
    u, s, vh = t.linalg.svd(x, full_matrices=True)
    k = s.shape[-1]
    return _power_of(u[..., :k]).sum(-1) + _power_of(vh[..., :k, :]).sum() + s.sum()


def _svd_old(t, x):
    u, s, v = t.svd(x)
    return u @ t.diag_embed(s**2).to(u.dtype) @ v.mH


def _qr(t, x):
    q, r = t.linalg.qr(x)
    return q * t.cos(r.real).sum() + q @ r[..., :, :q.shape[-1]]


def _qr_complete(t, x):
    q, r = t.linalg.qr(x, mode="complete")
    return q @ (r * 2) + _power_of(q).sum()


def _lu(t, x):
    p, low, up = t.linalg.lu(x)
    return p @ low @ (up * up) + low


def _lu_solve(t, x):
    lu, pivots = t.linalg.lu_factor(_positive(t, x))
    solve = t.linalg.lu_solve
    return solve(lu, pivots, x) + solve(lu, pivots, x, left=False, adjoint=True)


def _lstsq(t, x):
    return t.linalg.lstsq(x, x[..., :1] * 2 + 1)[0]


def _nuclear(t, x):
    return t.linalg.matrix_norm(x, "nuc") + t.linalg.matrix_norm(x, 2) + t.linalg.cond(x)


def _norms(t, x):
    m = t.linalg.matrix_norm
    return m(x) + m(x, 1) + m(x, -1) + m(x, float("inf")) + m(x, -float("inf"), keepdim=True).sum()


def _values(t, x):
    sign, logabs = t.linalg.slogdet(x)
    return t.linalg.det(x) * logabs + t.linalg.matrix_power(x, 3).sum((-1, -2)) * sign


def _solve(t, x):
    a = _positive(t, x)
    return (t.linalg.solve(a, x) + t.linalg.solve(a, x, left=False)
            + t.linalg.solve(a, x[..., 0]).unsqueeze(-1)
            + t.linalg.matrix_power(a, -2))


def _triangular(t, x):
    a = _positive(t, x)
    s = t.linalg.solve_triangular
    return (s(a, x, upper=True) + s(a, x, upper=False, left=False)
            + s(a, x, upper=False, unitriangular=True))


def _pinv(t, x):
    return t.linalg.pinv(x) + t.linalg.pinv(x, rtol=1e-3) + t.pinverse(x)


def _pinv_hermitian(t, x):
    return t.linalg.pinv(_positive(t, x), hermitian=True)


def _exp(t, x):
    return t.linalg.matrix_exp(x) + t.matrix_exp(3 * x)


def _cross(t, x):
    return t.linalg.cross(x, x.flip(0) * x) + t.cross(x, x.roll(1, 0), dim=-1)


def _products(t, x):
    return (t.linalg.multi_dot([x, x.mT, x]) + t.chain_matmul(x, x.mT, x)
            + t.inner(x, x).sum() + t.linalg.vecdot(x, x * x).unsqueeze(-1))


def _tensorinv(t, x):
    return t.linalg.tensorinv(x.reshape(2, 2, 4)) + t.linalg.tensorsolve(
        x.reshape(2, 2, 2, 2), x[:2, :2]).unsqueeze(0)


def _householder(t, x):
    return t.linalg.householder_product(x, x[..., 0, :2] * 0.1)


SQUARE, TALL, WIDE = [(3, 3), (2, 3, 3)], [(4, 3)], [(2, 4)]
# function, shapes, whether it also is compared on complex input
CASES = [
    (_cholesky, SQUARE, True), (_cholesky_upper, SQUARE, True), (_cholesky_solve, SQUARE, True),
    (_eigvalsh, SQUARE, True), (_eigh_function, SQUARE, True), (_eigh_squares, SQUARE, True),
    (_eigvals, [(3, 3)], True), (_eig_function, [(3, 3)], True),
    (_svdvals, SQUARE + TALL + WIDE, True), (_svd_function, SQUARE + TALL + WIDE, True),
    (_svd_squares, SQUARE + TALL + WIDE, True), (_svd_old, TALL + WIDE, True),
    (_qr, SQUARE + TALL, True), (_qr_complete, SQUARE + WIDE, True),
    (_lu, SQUARE, True), (_lu_solve, SQUARE, True), (_lstsq, TALL + WIDE, False),
    (_nuclear, SQUARE, False), (_norms, SQUARE + TALL, True), (_values, SQUARE, False),
    (_solve, SQUARE, True), (_triangular, SQUARE, True), (_pinv, SQUARE + TALL + WIDE, True),
    (_pinv_hermitian, SQUARE, True), (_exp, SQUARE, True), (_cross, [(4, 3)], True),
    (_products, TALL, False), (_tensorinv, [(4, 4)], True), (_householder, [(4, 2)], False),
]
IDS = [f.__name__.strip("_") for f, _, _ in CASES]
