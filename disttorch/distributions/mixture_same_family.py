"""Mixtures of distributions of one family."""

from __future__ import annotations

from ..autograd import no_grad
from ..tensor import Size
from . import constraints
from .categorical import Categorical
from .distribution import Distribution


class MixtureSameFamily(Distribution):
    """A mixture: the components lie along the last batch dim of one distribution.

    Args:
        mixture_distribution: ``Categorical`` over K components, batch shape [...].
        component_distribution: batch shape [..., K].

    Raises:
        ValueError: if these are not what they must be or do not fit together.
    """

    arg_constraints: dict = {}
    has_rsample = False
    _expanded = ("_mixture_distribution", "_component_distribution")
    _kept = ("_num_component",)

    def __init__(self, mixture_distribution, component_distribution, validate_args=None):
        if not isinstance(mixture_distribution, Categorical):
            raise ValueError(" The Mixture distribution needs to be an  instance of "
                             "torch.distributions.Categorical")
        if not isinstance(component_distribution, Distribution):
            raise ValueError("The Component distribution need to be an instance of "
                             "torch.distributions.Distribution")
        mixture, batch = mixture_distribution.batch_shape, component_distribution.batch_shape[:-1]
        for a, b in zip(reversed(mixture), reversed(batch), strict=False):
            if a != 1 and b != 1 and a != b:
                raise ValueError(f"`mixture_distribution.batch_shape` ({mixture}) is not "
                                 "compatible with `component_distribution.batch_shape`"
                                 f"({batch})")
        weights = mixture_distribution.logits.shape[-1]
        components = component_distribution.batch_shape[-1]
        if weights != components:
            raise ValueError(f"`mixture_distribution component` ({weights}) does not equal "
                             f"`component_distribution.batch_shape[-1]` ({components})")
        self._num_component = weights
        self._mixture_distribution = mixture_distribution
        self._component_distribution = component_distribution
        super().__init__(batch, component_distribution.event_shape, validate_args=validate_args)

    def _expand_one(self, value, shape):
        if value is self._component_distribution:
            return value.expand(shape + (self._num_component,))
        return value.expand(shape)

    @constraints.dependent_property
    def support(self):
        return constraints.MixtureSameFamilyConstraint(self._component_distribution.support)

    @property
    def mixture_distribution(self):
        return self._mixture_distribution

    @property
    def component_distribution(self):
        return self._component_distribution

    def _weights(self):
        """The probabilities, [..., K] and a 1 for each event dim."""
        probs = self._mixture_distribution.probs
        return probs.reshape(probs.shape + (1,) * len(self._event_shape))

    def _over(self, values):
        """The mean over the components of values [..., K, event]."""
        return (self._weights() * values).sum(-1 - len(self._event_shape))

    def _with_components(self, value):
        return value.unsqueeze(-1 - len(self._event_shape))

    @property
    def mean(self):
        return self._over(self._component_distribution.mean)

    @property
    def variance(self):
        """The mean of the variances plus the variance of the means."""
        means = self._component_distribution.mean
        spread = (means - self._with_components(self.mean)).pow(2)
        return self._over(self._component_distribution.variance) + self._over(spread)

    def cdf(self, value):
        part = self._component_distribution.cdf(self._with_components(value))
        return (part * self._mixture_distribution.probs).sum(-1)

    def log_prob(self, value):
        self._checked(value)
        part = self._component_distribution.log_prob(self._with_components(value))
        return (part + self._mixture_distribution.logits.log_softmax(-1)).logsumexp(-1)

    def sample(self, sample_shape=Size(())):
        with no_grad():
            events, dim = len(self._event_shape), len(sample_shape) + len(self._batch_shape)
            picked = self._mixture_distribution.expand(self._batch_shape).sample(sample_shape)
            drawn = self._component_distribution.sample(sample_shape)
            index = picked.reshape(picked.shape + (1,) * (events + 1))
            index = index.expand(picked.shape + (1,) + self._event_shape)
            return drawn.gather(dim, index).squeeze(dim)

    def __repr__(self):
        return (f"{type(self).__name__}(\n  {self._mixture_distribution},\n"
                f"  {self._component_distribution})")


__all__ = ["MixtureSameFamily"]
