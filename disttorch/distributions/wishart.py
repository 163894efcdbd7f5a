"""The Wishart distribution."""

from __future__ import annotations

import math

from .. import ops
from ..tensor import Size, Tensor
from . import constraints
from .chi2 import Chi2
from .exp_family import ExponentialFamily
from .multivariate_normal import factor_of, take_one_matrix
from .utils import lazy_property


class Wishart(ExponentialFamily):
    """The distribution of Σ xᵢ·xᵢᵀ of ``df`` normal vectors of the given covariance.

    Args:
        df: degrees of freedom, above p − 1 (not necessarily whole).
        covariance_matrix, precision_matrix: positive definite [..., p, p].
        scale_tril: the lower Cholesky factor of the covariance. Give one of the three.
    """

    support = constraints.positive_definite
    has_rsample = True
    _mean_carrier_measure = 0
    _expanded = ("df", "covariance_matrix", "scale_tril", "precision_matrix")
    _kept = ("_unbroadcasted_scale_tril",)

    def __init__(self, df, covariance_matrix=None, precision_matrix=None, scale_tril=None,
                 validate_args=None):
        name, matrix = take_one_matrix(covariance_matrix, scale_tril, precision_matrix)
        if not isinstance(df, Tensor):
            df = ops.tensor(float(df), dtype=matrix.dtype, device=matrix.device)
        batch = ops.broadcast_shapes(matrix.shape[:-2], df.shape)
        event = matrix.shape[-2:]
        if bool((df <= event[-1] - 1).any()):
            raise ValueError(f"Value of df={df} expected to be greater than ndim - 1 = "
                             f"{event[-1] - 1}.")
        self.df = df.expand(batch)
        setattr(self, name, matrix.expand(tuple(batch) + (-1, -1)))
        super().__init__(batch, event, validate_args=validate_args)
        self._unbroadcasted_scale_tril = factor_of(name, matrix)

    @property
    def arg_constraints(self):
        dims = self._event_shape[-1] if hasattr(self, "_event_shape") else 1
        return {"covariance_matrix": constraints.positive_definite,
                "precision_matrix": constraints.positive_definite,
                "scale_tril": constraints.lower_cholesky,
                "df": constraints.greater_than(dims - 1)}

    def _matrix(self, value):
        return value.expand(self._batch_shape + self._event_shape)

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
        return self.df[..., None, None] * self.covariance_matrix

    @property
    def mode(self):
        factor = self.df - self.covariance_matrix.shape[-1] - 1
        factor = ops.where(factor <= 0, math.nan, factor)
        return factor[..., None, None] * self.covariance_matrix

    @property
    def variance(self):
        v = self.covariance_matrix
        diagonal = v.diagonal(dim1=-2, dim2=-1)
        return self.df[..., None, None] * (v.pow(2) + diagonal[..., :, None] * diagonal[..., None, :])

    def rsample(self, sample_shape=Size(()), max_try_correction=None):
        """By Bartlett's decomposition: a triangle of normals with χ variables on its diagonal.

        ``max_try_correction`` is accepted and unused: the product of factors is never redrawn.
        """
        p = self._event_shape[-1]
        shape = self._extended_shape(sample_shape)
        like = {"dtype": self.df.dtype, "device": self.df.device}
        chi2 = Chi2(self.df.unsqueeze(-1) - ops.arange(p, **like), validate_args=False)
        noise = ops.randn(shape, **like).tril(-1) + chi2.rsample(sample_shape).sqrt().diag_embed()
        factor = self._unbroadcasted_scale_tril @ noise
        return factor @ factor.mT

    def _half_log_det(self):
        return self._unbroadcasted_scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def log_prob(self, value):
        self._checked(value)
        nu, p = self.df, self._event_shape[-1]
        factor = self._unbroadcasted_scale_tril
        batch = ops.broadcast_shapes(factor.shape[:-2], value.shape[:-2])
        solved = ops.cholesky_solve(value.expand(batch + value.shape[-2:]),
                                    factor.expand(batch + factor.shape[-2:]))
        log_det = ops.slogdet(value)[1]
        return (-nu * (p * math.log(2) / 2 + self._half_log_det()) - ops.mvlgamma(nu / 2, p)
                + (nu - p - 1) / 2 * log_det
                - solved.diagonal(dim1=-2, dim2=-1).sum(-1) / 2)

    def entropy(self):
        nu, p = self.df, self._event_shape[-1]
        digammas = sum(ops.digamma(nu / 2 - j / 2) for j in range(p))
        return ((p + 1) * (p * math.log(2) / 2 + self._half_log_det()) + ops.mvlgamma(nu / 2, p)
                - (nu - p - 1) / 2 * digammas + nu * p / 2)

    @property
    def _natural_params(self):
        return -self.precision_matrix / 2, (self.df - self._event_shape[-1] - 1) / 2

    def _log_normalizer(self, x, y):
        p = self._event_shape[-1]
        up = y + (p + 1) / 2
        return up * (-ops.slogdet(-2 * x)[1] + p * math.log(2)) + ops.mvlgamma(up, p)


__all__ = ["Wishart"]
