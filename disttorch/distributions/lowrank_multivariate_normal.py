"""The multivariate normal distribution whose covariance is low-rank plus diagonal."""

from __future__ import annotations

import math

from .. import linalg, ops
from ..tensor import Size
from . import constraints
from .distribution import Distribution
from .multivariate_normal import solve_lower
from .utils import lazy_property


class LowRankMultivariateNormal(Distribution):
    """Normal with covariance W·Wᵀ + diag(D), in O(n·m²) by the Woodbury identity.

    Args:
        loc: the mean [..., n].
        cov_factor: W, [..., n, m].
        cov_diag: D, positive, [..., n].
    """

    arg_constraints = {"loc": constraints.real_vector,
                       "cov_factor": constraints.independent(constraints.real, 2),
                       "cov_diag": constraints.independent(constraints.positive, 1)}
    support = constraints.real_vector
    has_rsample = True
    _expanded = ("loc", "cov_factor", "cov_diag", "covariance_matrix", "scale_tril",
                 "precision_matrix")
    _kept = ("_factor", "_diagonal", "_capacitance_tril")

    def __init__(self, loc, cov_factor, cov_diag, validate_args=None):
        if loc.dim() < 1:
            raise ValueError("loc must be at least one-dimensional.")
        if cov_factor.dim() < 2:
            raise ValueError("cov_factor must be at least two-dimensional, with optional leading "
                             "batch dimensions")
        n = loc.shape[-1]
        if cov_factor.shape[-2] != n:
            raise ValueError("cov_factor must be a batch of matrices with shape "
                             f"{n} x m")
        if cov_diag.shape[-1:] != (n,):
            raise ValueError(f"cov_diag must be a batch of vectors with shape {loc.shape[-1:]}")
        batch = ops.broadcast_shapes(loc.shape[:-1], cov_factor.shape[:-2], cov_diag.shape[:-1])
        self.loc = loc.expand(tuple(batch) + (n,))
        self.cov_factor = cov_factor.expand(tuple(batch) + cov_factor.shape[-2:])
        self.cov_diag = cov_diag.expand(tuple(batch) + (n,))
        super().__init__(batch, (n,), validate_args=validate_args)
        self._factor, self._diagonal = cov_factor, cov_diag  # as given: nothing computed twice
        inner = self._weighted() @ cov_factor
        identity = ops.eye(inner.shape[-1], dtype=inner.dtype, device=inner.device)
        self._capacitance_tril = linalg.cholesky(inner + identity)  # of I + Wᵀ·D⁻¹·W

    def _weighted(self):
        """Wᵀ·D⁻¹."""
        return self._factor.mT / self._diagonal.unsqueeze(-2)

    def _matrix(self, value):
        return value.expand(self._batch_shape + self._event_shape + self._event_shape)

    @property
    def mean(self):
        return self.loc

    @property
    def mode(self):
        return self.loc

    @lazy_property
    def variance(self):
        total = self._factor.pow(2).sum(-1) + self._diagonal
        return total.expand(self._batch_shape + self._event_shape)

    @lazy_property
    def scale_tril(self):
        root = self._diagonal.sqrt().unsqueeze(-1)
        scaled = self._factor / root
        inner = scaled @ scaled.mT
        identity = ops.eye(inner.shape[-1], dtype=inner.dtype, device=inner.device)
        return self._matrix(root * linalg.cholesky(inner + identity))

    @lazy_property
    def covariance_matrix(self):
        return self._matrix(self._factor @ self._factor.mT + self._diagonal.diag_embed())

    @lazy_property
    def precision_matrix(self):
        a = linalg.solve_triangular(self._capacitance_tril, self._weighted(), upper=False)
        return self._matrix(self._diagonal.reciprocal().diag_embed() - a.mT @ a)

    def rsample(self, sample_shape=Size(())):
        shape = self._extended_shape(sample_shape)
        like = {"dtype": self.loc.dtype, "device": self.loc.device}
        low = ops.randn(tuple(shape[:-1]) + self.cov_factor.shape[-1:], **like)
        noise = ops.randn(shape, **like)
        shift = (self._factor @ low.unsqueeze(-1)).squeeze(-1)
        return self.loc + shift + self._diagonal.sqrt() * noise

    def _mahalanobis(self, away):
        """away·Σ⁻¹·away of vectors [..., n]."""
        projected = (self._weighted() @ away.unsqueeze(-1)).squeeze(-1)
        saved = solve_lower(self._capacitance_tril, projected).pow(2).sum(-1)
        return (away.pow(2) / self._diagonal).sum(-1) - saved

    def _half_log_det(self):
        capacitance = self._capacitance_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return capacitance + 0.5 * self._diagonal.log().sum(-1)

    def _columns(self):
        """A with A·Aᵀ = Σ, its columns along dim 0: [m + n, ..., n]."""
        batch = self._batch_shape
        factor = self._factor.expand(batch + self._factor.shape[-2:]).movedim(-1, 0)
        diagonal = self.cov_diag.sqrt().diag_embed().movedim(-1, 0)
        return ops.cat([factor, diagonal], 0)

    def log_prob(self, value):
        self._checked(value)
        norm = self._event_shape[0] * math.log(2 * math.pi)
        return -0.5 * (norm + self._mahalanobis(value - self.loc)) - self._half_log_det()

    def entropy(self):
        half = 0.5 * self._event_shape[0] * (1.0 + math.log(2 * math.pi))
        return (half + self._half_log_det()).expand(self._batch_shape)


__all__ = ["LowRankMultivariateNormal"]
