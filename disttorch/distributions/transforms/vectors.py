"""Transforms of vectors and matrices: simplices, Cholesky factors, positive definite matrices."""

from __future__ import annotations

import math

from ... import linalg, ops
from ...backend.dtypes import finfo
from ...tensor import Size
from .. import constraints
from ..utils import softplus, tril_matrix_to_vec, vec_to_tril_matrix
from .base import Transform
from .elementwise import _SameKind, clipped_sigmoid


def _after_one(x):
    """1, then all but the last of the last dim: [1, x0, x1, …]."""
    return ops.cat([ops.ones_like(x[..., :1]), x[..., :-1]], -1)


class SoftmaxTransform(_SameKind):
    """y = softmax(x) over the last dim; not bijective (the inverse is log y)."""

    domain = constraints.real_vector
    codomain = constraints.simplex

    def _call(self, x):
        return x.softmax(-1)

    def _inverse(self, y):
        return y.log()

    def forward_shape(self, shape):
        return _at_least(shape, 1)

    def inverse_shape(self, shape):
        return _at_least(shape, 1)


def _at_least(shape, dims):
    if len(shape) < dims:
        raise ValueError("Too few dimensions on input")
    return shape


class StickBreakingTransform(_SameKind):
    """From K reals to a point of the simplex of K + 1, breaking a stick piece by piece.

    x = 0 is the centre: the k-th break is at sigmoid(x_k − log(K − k)).
    """

    domain = constraints.real_vector
    codomain = constraints.simplex
    bijective = True

    @staticmethod
    def _log_remaining(x, size):
        """log(size), log(size − 1), …: how many pieces are still to come."""
        return (size - ops.arange(x.shape[-1], dtype=x.dtype, device=x.device)).log()

    def _call(self, x):
        part = clipped_sigmoid(x - self._log_remaining(x, x.shape[-1]))
        left = (1 - part).cumprod(-1)
        one = ops.ones_like(x[..., :1])
        return ops.cat([part, one], -1) * ops.cat([one, left], -1)

    def _inverse(self, y):
        head = y[..., :-1]
        # what is left of the stick after each piece; rounding must not make it 0
        left = (1 - head.cumsum(-1)).clamp(min=finfo(y.dtype).tiny)
        return head.log() - left.log() + self._log_remaining(head, head.shape[-1])

    def log_abs_det_jacobian(self, x, y):
        x = x - self._log_remaining(x, x.shape[-1])
        return (-x + ops.log_sigmoid(x) + y[..., :-1].log()).sum(-1)

    def forward_shape(self, shape):
        return Size(_at_least(shape, 1)[:-1] + (shape[-1] + 1,))

    def inverse_shape(self, shape):
        return Size(_at_least(shape, 1)[:-1] + (shape[-1] - 1,))


class LowerCholeskyTransform(_SameKind):
    """From square matrices to Cholesky factors: exp on the diagonal, zero above it."""

    domain = constraints.independent(constraints.real, 2)
    codomain = constraints.lower_cholesky

    def _call(self, x):
        return x.tril(-1) + x.diagonal(dim1=-2, dim2=-1).exp().diag_embed()

    def _inverse(self, y):
        return y.tril(-1) + y.diagonal(dim1=-2, dim2=-1).log().diag_embed()


class PositiveDefiniteTransform(_SameKind):
    """From square matrices to positive definite ones, through a Cholesky factor."""

    domain = constraints.independent(constraints.real, 2)
    codomain = constraints.positive_definite

    def _call(self, x):
        factor = LowerCholeskyTransform()(x)
        return factor @ factor.mT

    def _inverse(self, y):
        return LowerCholeskyTransform().inv(linalg.cholesky(y))


class CorrCholeskyTransform(Transform):
    """From D(D−1)/2 reals to the Cholesky factor of a D×D correlation matrix.

    tanh gives the canonical partial correlations r_ij, row by row; then
    y_ij = r_ij·sqrt(Π_{k<j} (1 − r_ik²)) (Lewandowski, Kurowicka & Joe, "Generating random
    correlation matrices based on vines and extended onion method", 2009).
    """

    domain = constraints.real_vector
    codomain = constraints.corr_cholesky
    bijective = True

    def _call(self, x):
        eps = finfo(x.dtype).eps
        r = vec_to_tril_matrix(x.tanh().clamp(min=-1 + eps, max=1 - eps), diag=-1)
        left = (1 - r * r).sqrt().cumprod(-1)
        identity = ops.eye(r.shape[-1], dtype=r.dtype, device=r.device)
        return (r + identity) * _after_one(left)

    def _inverse(self, y):
        left = _after_one(1 - (y * y).cumsum(-1))
        r = tril_matrix_to_vec(y, diag=-1) / tril_matrix_to_vec(left, diag=-1).sqrt()
        return (r.log1p() - (-r).log1p()) / 2

    def log_abs_det_jacobian(self, x, y):
        left = 1 - (y * y).cumsum(-1)
        # ∂y_ij/∂r_ij is the square root of what is left before column j; column 0 gives log 1
        stretch = 0.5 * tril_matrix_to_vec(left, diag=-2).log().sum(-1) if y.shape[-1] > 2 else 0.0
        return stretch - 2 * (x + softplus(-2 * x) - math.log(2.0)).sum(-1)

    def forward_shape(self, shape):
        n = _at_least(shape, 1)[-1]
        size = round((0.25 + 2 * n) ** 0.5 + 0.5)
        if size * (size - 1) // 2 != n:
            raise ValueError("Input is not a flattened lower-diagonal number")
        return Size(shape[:-1] + (size, size))

    def inverse_shape(self, shape):
        if _at_least(shape, 2)[-2] != shape[-1]:
            raise ValueError("Input is not square")
        size = shape[-1]
        return Size(shape[:-2] + (size * (size - 1) // 2,))
