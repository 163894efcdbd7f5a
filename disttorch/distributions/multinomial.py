"""The multinomial distribution."""

from __future__ import annotations

import math

from .. import ops
from ..autograd import no_grad
from ..tensor import Size
from . import constraints
from .binomial import Binomial
from .categorical import Categorical
from .distribution import Distribution
from .utils import broadcast_all


class Multinomial(Distribution):
    """Counts of ``total_count`` independent draws from K categories.

    Args:
        total_count: an int.
        probs: nonnegative weights [..., K].
        logits: log-weights [..., K]. Give one of the two.
    """

    arg_constraints = {"probs": constraints.simplex, "logits": constraints.real_vector}
    _expanded = ("_categorical",)
    _kept = ("total_count",)

    def __init__(self, total_count=1, probs=None, logits=None, validate_args=None):
        if not isinstance(total_count, int):
            raise NotImplementedError("inhomogeneous total_count is not supported")
        self.total_count = total_count
        self._categorical = Categorical(probs, logits)
        super().__init__(self._categorical.batch_shape, self._categorical.param_shape[-1:],
                         validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self):
        return constraints.multinomial(self.total_count)

    @property
    def probs(self):
        return self._categorical.probs

    @property
    def logits(self):
        return self._categorical.logits

    @property
    def param_shape(self):
        return self._categorical.param_shape

    @property
    def mean(self):
        return self.probs * self.total_count

    @property
    def variance(self):
        return self.total_count * self.probs * (1 - self.probs)

    def sample(self, sample_shape=Size(())):
        with no_grad():
            draws = self._categorical.sample(Size((self.total_count,)) + Size(sample_shape))
            index = draws.movedim(0, -1)
            shape, like = self._extended_shape(sample_shape), self._categorical._param
            counts = ops.zeros(shape, dtype=like.dtype, device=like.device)
            ones = ops.ones(index.shape, dtype=like.dtype, device=like.device)
            return counts.scatter_add(-1, index, ones)

    def log_prob(self, value):
        self._checked(value)
        logits, value = broadcast_all(self.logits, value)
        # 0·(−inf): a category without weight and without counts costs nothing
        logits = ops.where((value == 0) & (logits == -math.inf), 0.0, logits)
        orders = ops.lgamma(value.sum(-1) + 1) - ops.lgamma(value + 1).sum(-1)
        return orders + (logits * value).sum(-1)

    def entropy(self):
        n = ops.tensor(float(self.total_count), dtype=self.probs.dtype, device=self.probs.device)
        one = Binomial(self.total_count, probs=self.probs)
        counts = one.enumerate_support(expand=False)[1:]
        expected = (one.log_prob(counts).exp() * ops.lgamma(counts + 1)).sum((0, -1))
        return n * self._categorical.entropy() - ops.lgamma(n + 1) + expected


__all__ = ["Multinomial"]
