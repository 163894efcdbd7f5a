"""The formulas of ``kl_divergence``."""

from __future__ import annotations

import math

from .. import ops
from .bernoulli import Bernoulli
from .beta import Beta
from .binomial import Binomial
from .categorical import Categorical
from .cauchy import Cauchy
from .continuous_bernoulli import ContinuousBernoulli
from .dirichlet import Dirichlet
from .exp_family import ExponentialFamily, beyond_batch, bregman_terms
from .exponential import Exponential
from .gamma import Gamma
from .geometric import Geometric
from .gumbel import Gumbel
from .half_normal import HalfNormal
from .independent import Independent
from .kl import kl_divergence, register_kl
from .laplace import Laplace
from .lowrank_multivariate_normal import LowRankMultivariateNormal
from .multivariate_normal import MultivariateNormal
from .normal import Normal
from .one_hot_categorical import OneHotCategorical
from .pareto import Pareto
from .poisson import Poisson
from .transformed_distribution import TransformedDistribution
from .uniform import Uniform
from .utils import euler_constant, softplus, sum_rightmost


# ---------------------------------------------------------------- moments of p
def _mean_log(p):
    """E[log x]."""
    if isinstance(p, Beta):
        return ops.digamma(p.concentration1) - ops.digamma(p.concentration1 + p.concentration0)
    if isinstance(p, Gamma):
        return ops.digamma(p.concentration) - p.rate.log()
    if isinstance(p, Exponential):
        return -euler_constant - p.rate.log()
    if isinstance(p, Pareto):
        return p.scale.log() + p.alpha.reciprocal()
    return _mean_log_uniform(p.low, p.high)


def _mean_log_uniform(low, high):
    return (ops.xlogy(high, high) - ops.xlogy(low, low)) / (high - low) - 1


def _mean_exp(p, t):
    """E[exp(−t·x)]."""
    if isinstance(p, Normal):
        return (-t * p.loc + 0.5 * (t * p.scale).pow(2)).exp()
    if isinstance(p, Gumbel):
        return (ops.lgamma(1 + t * p.scale) - t * p.loc).exp()
    if isinstance(p, Gamma):
        return (-p.concentration * ops.log1p(t / p.rate)).exp()
    if isinstance(p, Exponential):
        return p.rate / (p.rate + t)
    return ((-t * p.low).exp() - (-t * p.high).exp()) / (t * (p.high - p.low))


# ---------------------------------------------------------------- −E_p[log q] by q
def _to_normal(p, q):
    square = p.variance + (p.mean - q.loc).pow(2)
    return (2 * math.pi * q.variance).log() / 2 + square / (2 * q.variance)


def _to_exponential(p, q):
    return q.rate * p.mean - q.rate.log()


def _to_gamma(p, q):
    norm = ops.lgamma(q.concentration) - q.concentration * q.rate.log()
    return norm - (q.concentration - 1) * _mean_log(p) + q.rate * p.mean


def _to_gumbel(p, q):
    t = q.scale.reciprocal()
    return q.scale.log() + (p.mean - q.loc) * t + _mean_exp(p, t) * (q.loc * t).exp()


def _to_continuous_bernoulli(p, q):
    return -p.mean * q.logits + softplus(q.logits) - q._log_norm()


def _to_uniform(p, q):
    return (q.high - q.low).log()


def _to_pareto(p, q):
    return (q.alpha + 1) * _mean_log(p) - q.alpha.log() - q.alpha * q.scale.log()


def _to_beta(p, q):
    a, b = q.concentration1, q.concentration0
    mirrored = _mean_log_uniform(1 - p.high, 1 - p.low)  # E[log(1 − x)]
    norm = ops.lgamma(a) + ops.lgamma(b) - ops.lgamma(a + b)
    return norm - (a - 1) * _mean_log(p) - (b - 1) * mirrored


def _by_moments(cross, *types_p, type_q, outside=None):
    """Register −H(p) + cross(p, q); infinite where ``outside(p, q)``: p leaves q's support."""

    def divergence(p, q):
        result = cross(p, q) - p.entropy()
        return result if outside is None else ops.where(outside(p, q), math.inf, result)

    for type_p in types_p:
        register_kl(type_p, type_q)(divergence)


_by_moments(_to_normal, Beta, ContinuousBernoulli, Exponential, Gamma, Gumbel, Laplace, Normal,
            Pareto, Uniform, type_q=Normal)
_by_moments(_to_exponential, Beta, ContinuousBernoulli, Exponential, Gamma, Pareto,
            type_q=Exponential)
_by_moments(_to_exponential, Uniform, type_q=Exponential, outside=lambda p, q: p.low < 0)
_by_moments(_to_gamma, Beta, Exponential, Gamma, Pareto, type_q=Gamma)
_by_moments(_to_gamma, Uniform, type_q=Gamma, outside=lambda p, q: p.low < 0)
_by_moments(_to_gumbel, Exponential, Gamma, Gumbel, Normal, Uniform, type_q=Gumbel)
_by_moments(_to_continuous_bernoulli, Beta, ContinuousBernoulli, type_q=ContinuousBernoulli)
_by_moments(_to_continuous_bernoulli, Uniform, type_q=ContinuousBernoulli,
            outside=lambda p, q: (p.low < 0) | (p.high > 1))
_by_moments(_to_uniform, Beta, ContinuousBernoulli, type_q=Uniform,
            outside=lambda p, q: (q.low > 0) | (q.high < 1))
_by_moments(_to_uniform, Uniform, type_q=Uniform,
            outside=lambda p, q: (q.low > p.low) | (q.high < p.high))
_by_moments(_to_pareto, Uniform, type_q=Pareto, outside=lambda p, q: p.low < q.scale)
_by_moments(_to_pareto, Pareto, type_q=Pareto, outside=lambda p, q: p.scale < q.scale)
_by_moments(_to_beta, Uniform, type_q=Beta, outside=lambda p, q: (p.low < 0) | (p.high > 1))


def _infinite(p, q):
    """p has mass where q has none, whatever the parameters."""
    like = p.mean
    shape = ops.broadcast_shapes(p.batch_shape, q.batch_shape)
    return ops.full(shape, math.inf, dtype=like.dtype, device=like.device)


_BOUNDED = (Beta, ContinuousBernoulli, Pareto, Uniform)
_POSITIVE = (Exponential, Gamma)
for _p, _qs in {
    Beta: (Pareto,), ContinuousBernoulli: (Pareto,), Exponential: _BOUNDED, Gamma: _BOUNDED,
    Gumbel: _BOUNDED + _POSITIVE, Laplace: _BOUNDED + _POSITIVE, Normal: _BOUNDED + _POSITIVE,
    Pareto: (Beta, ContinuousBernoulli, Uniform), Poisson: (Bernoulli, Binomial),
}.items():
    for _q in _qs:
        register_kl(_p, _q)(_infinite)


# ---------------------------------------------------------------- discrete distributions
def _weighted(prob, other, gain):
    """prob·gain: 0 where prob is 0, else infinite where the other's probability is 0."""
    result = ops.where(other == 0, math.inf, prob * gain)
    return ops.where(prob == 0, 0.0, result)


@register_kl(Bernoulli, Bernoulli)
def _(p, q):
    one = _weighted(p.probs, q.probs, softplus(-q.logits) - softplus(-p.logits))
    zero = _weighted(1 - p.probs, 1 - q.probs, softplus(q.logits) - softplus(p.logits))
    return one + zero


@register_kl(Bernoulli, Poisson)
def _(p, q):
    return -p.entropy() - (p.probs * q.rate.log() - q.rate)


@register_kl(Binomial, Binomial)
def _(p, q):
    if (p.total_count < q.total_count).any():
        raise NotImplementedError("KL between Binomials where q.total_count > p.total_count is "
                                  "not implemented")
    each = p.probs * (p.logits - q.logits) + (-p.probs).log1p() - (-q.probs).log1p()
    return ops.where(p.total_count > q.total_count, math.inf, p.total_count * each)


@register_kl(Categorical, Categorical)
def _(p, q):
    return _weighted(p.probs, q.probs, p.logits - q.logits).sum(-1)


@register_kl(OneHotCategorical, OneHotCategorical)
def _(p, q):
    return kl_divergence(p._categorical, q._categorical)


@register_kl(Geometric, Geometric)
def _(p, q):
    return -p.entropy() - (-q.probs).log1p() / p.probs - q.logits


@register_kl(Poisson, Poisson)
def _(p, q):
    return p.rate * (p.rate.log() - q.rate.log()) - (p.rate - q.rate)


# ---------------------------------------------------------------- the others
@register_kl(Beta, Beta)
def _(p, q):
    return kl_divergence(p._dirichlet, q._dirichlet)


@register_kl(Dirichlet, Dirichlet)
def _(p, q):
    a, b = p.concentration, q.concentration
    total = a.sum(-1)
    norm = ops.lgamma(total) - ops.lgamma(b.sum(-1)) - (ops.lgamma(a) - ops.lgamma(b)).sum(-1)
    return norm + ((a - b) * (ops.digamma(a) - ops.digamma(total).unsqueeze(-1))).sum(-1)


@register_kl(Cauchy, Cauchy)
def _(p, q):  # Chyzak & Nielsen, arXiv:1905.10965
    apart = (p.scale + q.scale).pow(2) + (p.loc - q.loc).pow(2)
    return apart.log() - (4 * p.scale * q.scale).log()


@register_kl(HalfNormal, HalfNormal)
def _(p, q):
    return kl_divergence(p.base_dist, q.base_dist)


@register_kl(Laplace, Laplace)
def _(p, q):
    away = (p.loc - q.loc).abs()
    ratio = p.scale / q.scale
    return -ratio.log() + away / q.scale + ratio * (-away / p.scale).exp() - 1


@register_kl(Normal, Laplace)
def _(p, q):
    z = (p.loc - q.loc) / p.scale
    folded = (math.sqrt(2 / math.pi) * (-0.5 * z * z).exp()
              + z * ops.erf(z * math.sqrt(0.5)))  # E|x − loc| / p.scale
    return (2 * q.scale).log() + p.scale / q.scale * folded - p.entropy()


def _gaussian(p, q):
    apart = q._mahalanobis(q.loc - p.loc)
    spread = q._mahalanobis(p._columns()).sum(0)  # tr(Σq⁻¹·Σp), column by column of a root of Σp
    return q._half_log_det() - p._half_log_det() + 0.5 * (spread + apart - p.event_shape[0])


_GAUSSIANS: tuple = (MultivariateNormal, LowRankMultivariateNormal)
for _p in _GAUSSIANS:
    for _q in _GAUSSIANS:

        @register_kl(_p, _q)
        def _(p, q):
            if p.event_shape != q.event_shape:
                raise ValueError(f"KL-divergence between two {type(p).__name__}s with different "
                                 f"event shapes: {p.event_shape} and {q.event_shape}")
            return _gaussian(p, q)


@register_kl(ExponentialFamily, ExponentialFamily)
def _(p, q):
    if type(p) is not type(q):
        raise NotImplementedError("The cross KL-divergence between different exponential families "
                                  "cannot be computed using Bregman divergences")
    normaliser, natural, slopes = bregman_terms(p, p._natural_params)
    result = q._log_normalizer(*q._natural_params) - normaliser
    for mine, other, slope in zip(natural, q._natural_params, slopes, strict=True):
        result = result - beyond_batch((other - mine) * slope, result)
    return result


@register_kl(Independent, Independent)
def _(p, q):
    if p.reinterpreted_batch_ndims != q.reinterpreted_batch_ndims:
        raise NotImplementedError
    return sum_rightmost(kl_divergence(p.base_dist, q.base_dist), p.reinterpreted_batch_ndims)


@register_kl(TransformedDistribution, TransformedDistribution)
def _(p, q):
    if p.transforms != q.transforms or p.event_shape != q.event_shape:
        raise NotImplementedError
    return kl_divergence(p.base_dist, q.base_dist)
