"""The categorical distribution."""

from __future__ import annotations

import math

from .. import ops
from ..autograd import no_grad
from ..backend.dtypes import finfo
from ..tensor import Size
from . import constraints
from .bernoulli import enumerated
from .distribution import Distribution
from .utils import ProbsOrLogits


class Categorical(ProbsOrLogits, Distribution):
    """An index 0..K−1.

    Args:
        probs: nonnegative weights [..., K]; normalised here.
        logits: log-weights [..., K]; normalised here. Give one of the two.
    """

    arg_constraints = {"probs": constraints.simplex, "logits": constraints.real_vector}
    has_enumerate_support = True
    _is_binary = False
    _expanded = ("probs", "logits")
    _kept = ("_num_events",)

    def __init__(self, probs=None, logits=None, validate_args=None):
        if self._take(probs, logits):
            if probs.dim() < 1:
                raise ValueError("`probs` parameter must be at least one-dimensional.")
            self.probs = probs / probs.sum(-1, keepdim=True)
        else:
            if logits.dim() < 1:
                raise ValueError("`logits` parameter must be at least one-dimensional.")
            self.logits = logits - logits.logsumexp(dim=-1, keepdim=True)
        self._num_events = self._param.shape[-1]
        super().__init__(self._param.shape[:-1], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self):
        return constraints.integer_interval(0, self._num_events - 1)

    @property
    def mean(self):
        return ops.full(self._extended_shape(), math.nan, dtype=self._param.dtype,
                        device=self._param.device)

    @property
    def mode(self):
        return self.probs.argmax(dim=-1)

    @property
    def variance(self):
        return self.mean

    def sample(self, sample_shape=Size(())):
        count = Size(sample_shape).numel()
        with no_grad():
            rows = self.probs.reshape(-1, self._num_events)
            if count == 0 or rows.shape[0] == 0:
                return ops.zeros(self._extended_shape(sample_shape), dtype=rows.argmax(-1).dtype,
                                 device=rows.device)
            drawn = ops.multinomial(rows, count, True)
            return drawn.mT.reshape(self._extended_shape(sample_shape))

    def log_prob(self, value):
        self._checked(value)
        index, logits = ops.broadcast_tensors(value.long().unsqueeze(-1), self.logits)
        return logits.gather(-1, index[..., :1]).squeeze(-1)

    def entropy(self):
        finite = self.logits.clamp(min=finfo(self.logits.dtype).min)  # 0·(−inf) would be nan
        return -(finite * self.probs).sum(-1)

    def enumerate_support(self, expand=True):
        values = ops.arange(self._num_events, device=self._param.device)
        return enumerated(values, self._batch_shape, expand)


__all__ = ["Categorical"]
