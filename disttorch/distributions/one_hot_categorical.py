"""The categorical distribution over one-hot vectors."""

from __future__ import annotations

from .. import ops
from ..tensor import Size
from . import constraints
from .categorical import Categorical
from .distribution import Distribution
from .utils import one_hot


class OneHotCategorical(Distribution):
    """A one-hot vector of K entries.

    Args:
        probs: nonnegative weights [..., K].
        logits: log-weights [..., K]. Give one of the two.
    """

    arg_constraints = {"probs": constraints.simplex, "logits": constraints.real_vector}
    support = constraints.one_hot
    has_enumerate_support = True
    _expanded = ("_categorical",)

    def __init__(self, probs=None, logits=None, validate_args=None):
        self._categorical = Categorical(probs, logits)
        super().__init__(self._categorical.batch_shape, self._categorical.param_shape[-1:],
                         validate_args=validate_args)

    @property
    def _param(self):
        return self._categorical._param

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
        return self.probs

    @property
    def mode(self):
        return self._vectors(self._categorical.mode)

    @property
    def variance(self):
        return self.probs * (1 - self.probs)

    def _vectors(self, index):
        return one_hot(index, self.event_shape[0], self._param.detach())

    def sample(self, sample_shape=Size(())):
        return self._vectors(self._categorical.sample(sample_shape))

    def log_prob(self, value):
        self._checked(value)
        return self._categorical.log_prob(value.argmax(-1))

    def entropy(self):
        return self._categorical.entropy()

    def enumerate_support(self, expand=True):
        n = self.event_shape[0]
        values = ops.eye(n, dtype=self._param.dtype, device=self._param.device)
        values = values.reshape((n,) + (1,) * len(self.batch_shape) + (n,))
        return values.expand((n,) + tuple(self.batch_shape) + (n,)) if expand else values


class OneHotCategoricalStraightThrough(OneHotCategorical):
    """``OneHotCategorical`` whose ``rsample`` passes gradients to ``probs`` as they are.

    Bengio, Léonard & Courville, "Estimating or propagating gradients through stochastic neurons"
    (arXiv:1308.3432).
    """

    has_rsample = True

    def rsample(self, sample_shape=Size(())):
        probs = self._categorical.probs
        return self.sample(sample_shape) + (probs - probs.detach())


__all__ = ["OneHotCategorical", "OneHotCategoricalStraightThrough"]
