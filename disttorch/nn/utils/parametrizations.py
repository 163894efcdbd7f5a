"""Ready parametrizations: orthogonal matrices, length and direction apart, unit spectral norm."""

from __future__ import annotations

from ... import ops
from ...autograd import no_grad
from ...backend import dtypes, namespace_of
from ...tensor import Tensor, wrap
from .. import functional as F
from ..modules.module import Module
from . import parametrize


def norm_except_dim(v: Tensor, pow: int = 2, dim: int = 0) -> Tensor:
    """The norm over all dims but ``dim`` (kept as sizes of 1); over all of them for −1."""
    if dim == -1:
        return v.norm(pow)
    others = [d for d in range(v.ndim) if d != dim % v.ndim]
    return v.norm(pow, others, True)


def weight_from_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """g·v/‖v‖ (Salimans & Kingma, arXiv:1602.07868)."""
    return v * (g / norm_except_dim(v, 2, dim))


class _WeightNorm(Module):
    def __init__(self, dim: int | None = 0):
        super().__init__()
        self.dim = -1 if dim is None else dim

    def forward(self, weight_g, weight_v):
        return weight_from_norm(weight_v, weight_g, self.dim)

    def right_inverse(self, weight):
        return norm_except_dim(weight, 2, self.dim), weight


def weight_norm(module: Module, name: str = "weight", dim: int | None = 0) -> Module:
    """Train a weight's length and direction apart (Salimans & Kingma, arXiv:1602.07868).

    The lengths become ``parametrizations.<name>.original0``, the directions ``original1``.

    Args:
        name: the parameter.
        dim: the dim that keeps a length for each index; None for one length in all.
    """
    parametrize.register_parametrization(module, name, _WeightNorm(dim), unsafe=True)

    def older_keys(state_dict, prefix, *rest):
        keys = [f"{prefix}{name}_g", f"{prefix}{name}_v"]
        if all(k in state_dict for k in keys):
            for i, key in enumerate(keys):
                state_dict[f"{prefix}parametrizations.{name}.original{i}"] = state_dict.pop(key)

    module._register_load_state_dict_pre_hook(older_keys)
    return module


# ---------------------------------------------------------------- spectral norm
def as_matrix(weight: Tensor, dim: int) -> Tensor:
    """``weight`` as a matrix whose rows are the indices of ``dim``."""
    if dim != 0:
        weight = weight.permute(dim, *(d for d in range(weight.ndim) if d != dim))
    return weight.reshape(weight.shape[0], -1)


class _SpectralNorm(Module):
    def __init__(
        self, weight: Tensor, n_power_iterations: int = 1, dim: int = 0, eps: float = 1e-12
    ):
        super().__init__()
        ndim = weight.ndim
        if not -ndim <= dim < ndim:
            raise IndexError(
                "Dimension out of range (expected to be in range of "
                f"[-{ndim}, {ndim - 1}] but got {dim})"
            )
        if n_power_iterations <= 0:
            raise ValueError(
                "Expected n_power_iterations to be positive, but got "
                f"n_power_iterations={n_power_iterations}"
            )
        self.dim, self.eps = dim % ndim, eps
        if ndim > 1:  # of a vector the norm is exact
            self.n_power_iterations = n_power_iterations
            matrix = as_matrix(weight.detach(), self.dim)
            for key, size in zip(("_u", "_v"), matrix.shape):
                start = matrix.new_empty([size]).normal_(0, 1)
                self.register_buffer(key, F.normalize(start, dim=0, eps=eps))
            self._power_method(matrix, 15)

    @no_grad()
    def _power_method(self, matrix, iterations: int) -> None:
        for _ in range(iterations):
            self._u.copy_(F.normalize(ops.mv(matrix, self._v), dim=0, eps=self.eps))
            self._v.copy_(F.normalize(ops.mv(matrix.t(), self._u), dim=0, eps=self.eps))

    def forward(self, weight):
        if weight.ndim == 1:
            return F.normalize(weight, dim=0, eps=self.eps)
        matrix = as_matrix(weight, self.dim)
        if self.training:
            self._power_method(matrix.detach(), self.n_power_iterations)
        # copies: backward may come after the next forward has moved the vectors
        u, v = self._u.clone(), self._v.clone()
        return weight / ops.dot(u, ops.mv(matrix, v))

    def right_inverse(self, value):
        return value


def spectral_norm(
    module: Module, name: str = "weight", n_power_iterations: int = 1, eps: float = 1e-12,
    dim: int | None = None,
) -> Module:
    """Divide a weight by its largest singular value (Miyato et al., arXiv:1802.05957).

    Args:
        name: the parameter.
        n_power_iterations: of the power method at each forward in training.
        dim: the dim of the outputs; 0, but 1 for transposed convolutions.

    Raises:
        ValueError: if there is no such parameter.
    """
    weight = _parameter(module, name)
    if dim is None:
        dim = 1 if type(module).__name__.startswith("ConvTranspose") else 0
    spectral = _SpectralNorm(weight, n_power_iterations, dim, eps)
    return parametrize.register_parametrization(module, name, spectral)


def _parameter(module, name) -> Tensor:
    weight = getattr(module, name, None)
    if not isinstance(weight, Tensor):
        raise ValueError(
            f"Module '{module}' has no parameter or buffer with name '{name}'"
        )
    return weight


# ---------------------------------------------------------------- orthogonal
def _is_orthogonal(q: Tensor) -> bool:
    n, k = q.shape[-2:]
    eps = 10.0 * n * dtypes.finfo(q.dtype).eps
    unit = ops.eye(k, dtype=q.dtype, device=q.device)
    return bool(((ops.matmul(q.mH, q) - unit).abs() <= eps).all())


def _make_orthogonal(a: Tensor) -> Tensor:
    """The orthogonal factor of a, its columns signed so that R has a positive diagonal."""
    from ...linalg import qr

    q, r = qr(a)
    return q * ops.sgn(r.diagonal(0, -2, -1)).unsqueeze(-2)


class _Orthogonal(Module):
    def __init__(self, weight, orthogonal_map: str, *, use_trivialization=True):
        super().__init__()
        if weight.is_complex() and orthogonal_map == "householder":
            raise ValueError(
                "The householder parametrization does not support complex tensors."
            )
        self.shape, self.orthogonal_map = weight.shape, orthogonal_map
        if use_trivialization:
            self.register_buffer("base", None)

    def forward(self, x):
        transposed = x.shape[-2] < x.shape[-1]
        if transposed:
            x = x.mT
        q = self._householder(x) if self.orthogonal_map == "householder" else self._square(x)
        if hasattr(self, "base"):
            q = ops.matmul(self.base, q)
        return q.mT if transposed else q

    def _square(self, x):
        """exp or Cayley transform of the skew-symmetric matrix made of x."""
        n, k = x.shape[-2:]
        x = x.tril()
        if n != k:
            x = ops.cat([x, x.new_zeros([*x.shape[:-1], n - k])], -1)
        skew = x - x.mH
        if self.orthogonal_map == "matrix_exp":
            q = ops.matrix_exp(skew)
        else:
            from ...linalg import solve

            unit = ops.eye(n, dtype=skew.dtype, device=skew.device)
            q = solve(unit - skew * 0.5, unit + skew * 0.5)
        return q[..., :k] if n != k else q

    def _householder(self, x):
        from ...linalg import householder_product

        a = x.tril(-1)
        tau = 2.0 / (1.0 + (a * a).sum(-2))
        signs = x.detach().diagonal(0, -2, -1).sign().unsqueeze(-2)  # the diagonal holds ±1
        return householder_product(a, tau) * signs

    @no_grad()
    def right_inverse(self, q):
        if tuple(q.shape) != tuple(self.shape):
            raise ValueError(
                f"Expected a matrix or batch of matrices of shape {self.shape}. Got a tensor of "
                f"shape {q.shape}."
            )
        if not hasattr(self, "base"):
            return self._householder_inverse(q)
        start = ops.zeros_like(q)
        diagonal = start.diagonal(0, -2, -1)
        diagonal.fill_(-1.0)
        if q.shape[-2] < q.shape[-1]:
            q = q.mT
        n, k = q.shape[-2:]
        if n != k:  # completed to a square matrix
            rest = ops.randn([*q.shape[:-2], n, n - k], dtype=q.dtype, device=q.device)
            q = _make_orthogonal(ops.cat([q, rest], -1))
        else:
            q = q.clone() if _is_orthogonal(q) else _make_orthogonal(q)
        self.base = q
        return start

    def _householder_inverse(self, q):
        if self.orthogonal_map != "householder":
            raise NotImplementedError(
                "It is not possible to assign to the matrix exponential or the Cayley "
                "parametrizations when use_trivialization=False."
            )
        transposed = q.shape[-2] < q.shape[-1]
        tall = (q.mT if transposed else q)._data
        a, tau = (wrap(part) for part in namespace_of(tall).linalg.qr(tall, mode="raw"))
        a = a.mT.contiguous()  # LAPACK's reflectors and their factors, columns first
        diagonal = a.diagonal(0, -2, -1)
        diagonal.copy_(ops.where(tau == 0.0, -diagonal.sign(), diagonal.sign()))
        return a.mT if transposed else a


def orthogonal(
    module: Module, name: str = "weight", orthogonal_map: str | None = None, *,
    use_trivialization: bool = True,
) -> Module:
    """Keep a matrix orthogonal: its columns, or rows if there are fewer, orthonormal.

    Args:
        name: the parameter, with two dims or more.
        orthogonal_map: "matrix_exp", "cayley" or "householder"; by default the first for square
            and complex matrices, the last otherwise.
        use_trivialization: count from a base point (Lezcano-Casado, arXiv:1909.09501).

    Raises:
        ValueError: if there is no such parameter or map, or it has too few dims.
    """
    weight = _parameter(module, name)
    if weight.ndim < 2:
        raise ValueError(
            "Expected a matrix or batch of matrices. Got a tensor of "
            f"{weight.ndim} dimensions."
        )
    if orthogonal_map is None:
        square = weight.shape[-2] == weight.shape[-1]
        orthogonal_map = "matrix_exp" if square or weight.is_complex() else "householder"
    if orthogonal_map not in ("matrix_exp", "cayley", "householder"):
        raise ValueError(
            'orthogonal_map has to be one of "matrix_exp", "cayley", "householder". Got: '
            f"{orthogonal_map}"
        )
    made = _Orthogonal(weight, orthogonal_map, use_trivialization=use_trivialization)
    return parametrize.register_parametrization(module, name, made, unsafe=True)


__all__ = ["orthogonal", "spectral_norm", "weight_norm"]
