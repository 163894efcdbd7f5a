"""The LKJ distribution over Cholesky factors of correlation matrices."""

from __future__ import annotations

import math

from .. import ops
from ..autograd import no_grad
from ..backend.dtypes import finfo
from ..tensor import Size
from . import constraints
from .beta import Beta
from .distribution import Distribution
from .utils import broadcast_all


class LKJCholesky(Distribution):
    """Cholesky factors L of correlation matrices with density ∝ det(L·Lᵀ)^(concentration − 1).

    Samples come from the onion method (Lewandowski, Kurowicka & Joe, "Generating random correlation
    matrices based on vines and extended onion method", 2009, section 3.2).

    Args:
        dim: the size of the matrices, at least 2.
        concentration: η, positive; 1 is uniform over correlation matrices.
    """

    arg_constraints = {"concentration": constraints.positive}
    support = constraints.corr_cholesky
    _expanded = ("concentration", "_beta")
    _kept = ("dim",)

    def __init__(self, dim, concentration=1.0, validate_args=None):
        if dim < 2:
            raise ValueError("Expected dim to be an integer greater than or equal to 2. "
                             f"Found dim={dim}.")
        self.dim = dim
        (self.concentration,) = broadcast_all(concentration)
        like = {"dtype": self.concentration.dtype, "device": self.concentration.device}
        # row i holds i correlations; the squared length of that part is beta distributed
        above = ops.cat([ops.zeros(1, **like), ops.arange(dim - 1, **like)])
        marginal = self.concentration.unsqueeze(-1) + 0.5 * (dim - 2)
        self._beta = Beta(0.5 * above + 0.5, marginal - 0.5 * above, validate_args=validate_args)
        super().__init__(self.concentration.shape, (dim, dim), validate_args)

    def sample(self, sample_shape=Size(())):
        with no_grad():
            length = self._beta.sample(sample_shape).unsqueeze(-1)
            shape = self._extended_shape(sample_shape)
            u = ops.randn(shape, dtype=length.dtype, device=length.device).tril(-1)
            norm = u.pow(2).sum(-1, keepdim=True).sqrt()
            direction = u / ops.where(norm == 0, 1.0, norm)  # the first row has none
            w = length.sqrt() * direction
            rest = (1 - w.pow(2).sum(-1)).clamp(min=finfo(w.dtype).tiny).sqrt()
            return w + rest.diag_embed()

    def log_prob(self, value):
        self._checked(value)
        eta, rows = self.concentration, self.dim - 1
        diagonal = value.diagonal(dim1=-1, dim2=-2)[..., 1:]
        order = ops.arange(2, self.dim + 1, dtype=eta.dtype, device=eta.device)
        order = 2 * (eta - 1).unsqueeze(-1) + self.dim - order
        alpha = eta + 0.5 * rows
        norm = (0.5 * rows * math.log(math.pi) + ops.mvlgamma(alpha - 0.5, rows)
                - ops.lgamma(alpha) * rows)
        return (order * diagonal.log()).sum(-1) - norm


__all__ = ["LKJCholesky"]
