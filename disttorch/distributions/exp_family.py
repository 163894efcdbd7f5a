"""Exponential families: entropy and KL divergence from the log-normaliser alone."""

from __future__ import annotations

from ..autograd import enable_grad, grad
from .distribution import Distribution


def bregman_terms(family, natural):
    """The log-normaliser at ``natural`` and its gradients there, still in the graph."""
    with enable_grad():
        points = [p if p.requires_grad else p.detach().requires_grad_() for p in natural]
        normaliser = family._log_normalizer(*points)
        return normaliser, points, grad(normaliser.sum(), points, create_graph=True)


def beyond_batch(term, normaliser):
    """The sum over the dims that a natural parameter has beyond the batch's."""
    extra = term.dim() - normaliser.dim()
    return term.sum(tuple(range(-extra, 0))) if extra > 0 else term


class ExponentialFamily(Distribution):
    """Densities h(x)·exp(⟨t(x), θ⟩ − A(θ)).

    Subclasses give the natural parameters θ, the log-normaliser A and the mean of log h(x).
    """

    @property
    def _natural_params(self) -> tuple:
        raise NotImplementedError

    def _log_normalizer(self, *natural):
        raise NotImplementedError

    @property
    def _mean_carrier_measure(self):
        raise NotImplementedError

    def entropy(self):
        """A(θ) − ⟨θ, ∇A(θ)⟩ − E[log h] (Nielsen & Nock, 2010)."""
        carrier = self._mean_carrier_measure
        normaliser, natural, slopes = bregman_terms(self, self._natural_params)
        result = normaliser - carrier
        for point, slope in zip(natural, slopes, strict=True):
            result = result - beyond_batch(point * slope, normaliser)
        return result


__all__ = ["ExponentialFamily"]
