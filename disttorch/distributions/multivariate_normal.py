"""The multivariate normal distribution."""

from __future__ import annotations

import math

from .. import linalg, ops
from ..tensor import Size
from . import constraints
from .distribution import Distribution
from .utils import lazy_property


def solve_lower(tril, vectors):
    """tril⁻¹·v for vectors [..., n], whose batch dims broadcast with those of tril [..., n, n]."""
    if tril.dim() == 2:  # one system for all: columns of one right-hand side
        flat = linalg.solve_triangular(tril, vectors.reshape(-1, vectors.shape[-1]).mT, upper=False)
        return flat.mT.reshape(vectors.shape)
    batch = ops.broadcast_shapes(tril.shape[:-2], vectors.shape[:-1])
    right = vectors.expand(batch + vectors.shape[-1:]).unsqueeze(-1)
    return linalg.solve_triangular(tril.expand(batch + tril.shape[-2:]), right,
                                   upper=False).squeeze(-1)


def precision_to_scale_tril(precision):
    """The Cholesky factor of the inverse of [..., n, n], without inverting.

    With every index reversed, the factor of P becomes an upper one: P = UᵀU, so P⁻¹ = U⁻¹U⁻ᵀ.
    """
    upper = linalg.cholesky(precision.flip((-2, -1))).flip((-2, -1)).mT
    n = precision.shape[-1]
    identity = ops.eye(n, dtype=precision.dtype, device=precision.device)
    return linalg.solve_triangular(upper, identity.expand(upper.shape), upper=False)


def take_one_matrix(covariance_matrix, scale_tril, precision_matrix):
    """(name, matrix) of the one that is given.

    Raises:
        ValueError: unless exactly one is, with at least two dims.
    """
    given = {"covariance_matrix": covariance_matrix, "scale_tril": scale_tril,
             "precision_matrix": precision_matrix}
    given = {name: matrix for name, matrix in given.items() if matrix is not None}
    if len(given) != 1:
        raise ValueError("Exactly one of covariance_matrix or precision_matrix or scale_tril may "
                         "be specified.")
    ((name, matrix),) = given.items()
    if matrix.dim() < 2:
        matrix_name = "scale_tril matrix" if name == "scale_tril" else name
        raise ValueError(f"{matrix_name} must be at least two-dimensional, with optional leading "
                         "batch dimensions")
    return name, matrix


def factor_of(name, matrix):
    """The lower Cholesky factor of the covariance, from whichever matrix is given."""
    if name == "scale_tril":
        return matrix
    return linalg.cholesky(matrix) if name == "covariance_matrix" else precision_to_scale_tril(matrix)


class MultivariateNormal(Distribution):
    """The multivariate normal distribution.

    Args:
        loc: the mean [..., n].
        covariance_matrix, precision_matrix: positive definite [..., n, n].
        scale_tril: the lower Cholesky factor of the covariance. Give one of the three.
    """

    arg_constraints = {"loc": constraints.real_vector,
                       "covariance_matrix": constraints.positive_definite,
                       "precision_matrix": constraints.positive_definite,
                       "scale_tril": constraints.lower_cholesky}
    support = constraints.real_vector
    has_rsample = True
    _expanded = ("loc", "covariance_matrix", "scale_tril", "precision_matrix")
    _kept = ("_unbroadcasted_scale_tril",)

    def __init__(self, loc, covariance_matrix=None, precision_matrix=None, scale_tril=None,
                 validate_args=None):
        if loc.dim() < 1:
            raise ValueError("loc must be at least one-dimensional.")
        name, matrix = take_one_matrix(covariance_matrix, scale_tril, precision_matrix)
        batch = ops.broadcast_shapes(matrix.shape[:-2], loc.shape[:-1])
        setattr(self, name, matrix.expand(tuple(batch) + (-1, -1)))
        self.loc = loc.expand(tuple(batch) + (-1,))
        super().__init__(batch, self.loc.shape[-1:], validate_args=validate_args)
        self._unbroadcasted_scale_tril = factor_of(name, matrix)

    def _matrix(self, value):
        return value.expand(self._batch_shape + self._event_shape + self._event_shape)

    @lazy_property
    def scale_tril(self):
        return self._matrix(self._unbroadcasted_scale_tril)

    @lazy_property
    def covariance_matrix(self):
        factor = self._unbroadcasted_scale_tril
        return self._matrix(factor @ factor.mT)

    @lazy_property
    def precision_matrix(self):
        return self._matrix(ops.cholesky_inverse(self._unbroadcasted_scale_tril))

    @property
    def mean(self):
        return self.loc

    @property
    def mode(self):
        return self.loc

    @property
    def variance(self):
        rows = self._unbroadcasted_scale_tril.pow(2).sum(-1)
        return rows.expand(self._batch_shape + self._event_shape)

    def rsample(self, sample_shape=Size(())):
        shape = self._extended_shape(sample_shape)
        noise = ops.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + (self._unbroadcasted_scale_tril @ noise.unsqueeze(-1)).squeeze(-1)

    def _mahalanobis(self, away):
        """away·Σ⁻¹·away of vectors [..., n]."""
        return solve_lower(self._unbroadcasted_scale_tril, away).pow(2).sum(-1)

    def _half_log_det(self):
        return self._unbroadcasted_scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def _columns(self):
        """A with A·Aᵀ = Σ, its columns along dim 0: [n, ..., n]."""
        return self._unbroadcasted_scale_tril.movedim(-1, 0)

    def log_prob(self, value):
        self._checked(value)
        norm = self._event_shape[0] * math.log(2 * math.pi)
        return -0.5 * (norm + self._mahalanobis(value - self.loc)) - self._half_log_det()

    def entropy(self):
        half = 0.5 * self._event_shape[0] * (1.0 + math.log(2 * math.pi))
        return (half + self._half_log_det()).expand(self._batch_shape)


__all__ = ["MultivariateNormal"]
