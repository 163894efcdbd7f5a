"""Distributions without PyTorch: samples against moments, densities that integrate to one,
gradients of samples, shapes, validation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from distribution_cases import CASES, TRANSFORMS

import disttorch as torch
from disttorch.autograd.gradcheck import gradcheck
from disttorch.ops.random_gamma import standard_log_gamma

D = torch.distributions


def parameter(value):
    return torch.tensor(value, dtype=torch.float64)


def made(name):
    return CASES[name](D, parameter)


# ---------------------------------------------------------------- samples
DRAWS = 20000
# without a finite fourth moment the spread of the sample variance is unknown
HEAVY = {"cauchy", "half_cauchy", "fishersnedecor", "inverse_gamma", "pareto", "student_t",
         "generalized_pareto", "log_normal"}
NO_MOMENTS = {"categorical", "categorical_logits", "lkj", "lkj_2", "logistic_normal",
              "relaxed_bernoulli", "relaxed_one_hot", "transformed", "transformed_simplex",
              "normal_empty", "von_mises"}


@pytest.mark.parametrize("name", sorted(set(CASES) - NO_MOMENTS))
def test_sample_moments(name):
    """Mean within 5 standard errors, and the variance within 5 of its own, estimated, error."""
    torch.manual_seed(20)
    dist = made(name)
    drawn = dist.sample((DRAWS,)).numpy()
    assert drawn.shape == (DRAWS, *dist.batch_shape, *dist.event_shape)
    mean, variance = dist.mean.numpy(), dist.variance.numpy()
    known = np.isfinite(mean) & np.isfinite(variance)
    error = np.sqrt(np.where(known, variance, 0) / DRAWS)
    away = np.abs(drawn.mean(0) - mean)
    assert (away <= 5 * error + 1e-12)[known].all(), (drawn.mean(0), mean)
    if name not in HEAVY:
        squares = (drawn - mean) ** 2
        error = squares.std(0) / math.sqrt(DRAWS)
        assert (np.abs(squares.mean(0) - variance) <= 5 * error + 1e-12).all()


@pytest.mark.parametrize("name", sorted(CASES))
def test_samples_lie_in_the_support_and_differ(name):
    torch.manual_seed(3)
    dist = made(name)
    drawn = dist.sample((50,))
    assert not drawn.requires_grad
    assert dist.support.check(drawn).all()
    assert torch.isfinite(dist.log_prob(drawn)).all()
    if drawn.numel():
        assert (drawn != dist.sample((50,))).any()


@pytest.mark.parametrize("name", ["gamma", "normal", "beta", "laplace", "cauchy", "gumbel",
                                  "weibull", "kumaraswamy", "pareto", "half_cauchy", "uniform",
                                  "generalized_pareto", "continuous_bernoulli"])
def test_samples_follow_the_distribution_function(name):
    """Kolmogorov-Smirnov: sqrt(n)·max|F_n − F| is below 1.95 with probability 0.999."""
    torch.manual_seed(5)
    dist = made(name)
    drawn = dist.sample((4000,))
    drawn, _ = drawn.sort(0)
    if name == "beta":  # no closed distribution function: integrate the density
        level = beta_cdf(dist, drawn)
    else:
        level = dist.cdf(drawn).numpy()
    steps = np.arange(1, 4001).reshape((-1,) + (1,) * (level.ndim - 1)) / 4000
    assert np.abs(level - steps).max() * math.sqrt(4000) < 1.95 + 0.02


def beta_cdf(dist, points):
    # x = sin²: the density's poles at 0 and 1 vanish
    angle = (np.arange(20000) + 0.5) / 20000 * math.pi / 2
    x = np.sin(angle) ** 2
    grid = torch.tensor(x.reshape(-1, *[1] * len(dist.batch_shape)))
    density = dist.log_prob(grid).exp().numpy() * (2 * np.sin(angle) * np.cos(angle))[:, None]
    total = np.cumsum(density, 0) * (math.pi / 2 / 20000)
    return np.stack([np.interp(points.numpy()[:, k], x, total[:, k])
                     for k in range(total.shape[1])], 1)


def test_von_mises_samples_have_the_right_resultant():
    torch.manual_seed(1)
    dist = made("von_mises")
    away = dist.sample((DRAWS,)) - dist.loc
    resultant = 1 - dist.variance  # I1/I0
    cos, sin = torch.cos(away).mean(0), torch.sin(away).mean(0)
    assert ((cos - resultant).abs() < 5 / math.sqrt(2 * DRAWS)).all() and (sin.abs() < 0.03).all()


def test_lkj_correlations_have_their_marginal_variance():
    """An entry of the matrix is a Beta(η + (d−2)/2) variable on (−1, 1): variance 1/(2η + d − 1)."""
    torch.manual_seed(2)
    eta = torch.tensor([0.7, 2.0], dtype=torch.float64)
    factor = D.LKJCholesky(3, eta).sample((DRAWS,))
    matrix = factor @ factor.mT
    for i, j in ((1, 0), (2, 0), (2, 1)):
        r = matrix[..., i, j]
        assert (r.mean(0).abs() < 0.03).all()
        assert ((r * r).mean(0) - 1 / (2 * eta + 2)).abs().max() < 0.015


# ---------------------------------------------------------------- densities
LINE = ["normal", "cauchy", "laplace", "student_t", "gumbel", "mixture"]
HALF = ["gamma", "exponential", "chi2", "fishersnedecor", "inverse_gamma", "log_normal", "weibull",
        "half_normal", "half_cauchy"]
UNIT = ["beta", "kumaraswamy", "continuous_bernoulli", "relaxed_bernoulli", "transformed"]


@pytest.mark.parametrize("name", LINE + HALF + UNIT)
def test_densities_integrate_to_one(name):
    """The tanh-sinh rule (Takahasi & Mori, 1974) on the line, half line or unit interval."""
    dist, t = made(name), np.arange(-800, 801) / 200
    if name in LINE:
        x = np.sinh(math.pi / 2 * np.sinh(t))
        dx = math.pi / 2 * np.cosh(t) * np.cosh(math.pi / 2 * np.sinh(t))
    elif name in HALF:
        x = np.exp(math.pi / 2 * np.sinh(t))
        dx = math.pi / 2 * np.cosh(t) * x
    else:
        u = math.pi * np.sinh(t)
        x = 1 / (1 + np.exp(-u))
        dx = math.pi * np.cosh(t) * x / (1 + np.exp(u))
        x, dx = x[x < 1], dx[x < 1]
    shape = (-1,) + (1,) * len(dist.batch_shape)
    density = dist.log_prob(torch.tensor(x.reshape(shape))).exp().numpy()
    total = (density * dx.reshape(shape)).sum(0) / 200
    # the rule is exact to many digits for smooth densities: Laplace's has a kink, Gamma(0.3)'s pole
    # is cut at exp(−43), where 3e-6 of the mass remains
    tolerance = 3e-4 if name == "laplace" else 2e-5 if name in (*UNIT, "gamma") else 1e-6
    np.testing.assert_allclose(total, 1, atol=tolerance)


@pytest.mark.parametrize("name", ["bernoulli", "binomial", "categorical", "one_hot"])
def test_probabilities_of_the_support_sum_to_one(name):
    dist = made(name)
    total = dist.log_prob(dist.enumerate_support()).exp().sum(0)
    np.testing.assert_allclose(total.numpy(), 1, rtol=1e-12)


@pytest.mark.parametrize("name", ["poisson", "geometric", "negative_binomial"])
def test_probabilities_of_counts_sum_to_one(name):
    counts = torch.arange(400, dtype=torch.float64).unsqueeze(-1)
    total = made(name).log_prob(counts).exp().sum(0)
    np.testing.assert_allclose(total.numpy(), 1, rtol=1e-12)


INVERTIBLE = ["cauchy", "continuous_bernoulli", "exponential", "generalized_pareto", "gumbel",
              "half_cauchy", "half_normal", "kumaraswamy", "laplace", "log_normal", "normal",
              "pareto", "transformed", "uniform", "weibull"]


@pytest.mark.parametrize("name", INVERTIBLE)
def test_quantiles_invert_the_distribution_function(name):
    dist = made(name)
    level = torch.linspace(0.02, 0.98, 13, dtype=torch.float64)
    level = level.reshape((-1,) + (1,) * len(dist.batch_shape))
    back = dist.cdf(dist.icdf(level))
    np.testing.assert_allclose(back.numpy(), np.broadcast_to(level.numpy(), back.shape), atol=1e-9)


def test_wishart_divergence_against_samples():
    torch.manual_seed(8)
    cov = parameter([[2.0, 0.6], [0.6, 1.5]])
    p = D.Wishart(parameter([4.0, 6.0]), cov)
    q = D.Wishart(parameter([5.0, 5.0]), torch.eye(2, dtype=torch.float64))
    drawn = p.sample((DRAWS,))
    gap = (p.log_prob(drawn) - q.log_prob(drawn)).numpy()
    error = gap.std(0) / math.sqrt(DRAWS)
    assert (np.abs(gap.mean(0) - D.kl_divergence(p, q).detach().numpy()) < 5 * error).all()


# ---------------------------------------------------------------- gradients of samples
DETERMINISTIC = {  # family: parameters; its sample is a smooth function of them at fixed noise
    "Normal": (0.3, 1.2), "Laplace": (0.3, 1.2), "Cauchy": (0.3, 1.2), "Gumbel": (0.3, 1.2),
    "Uniform": (0.3, 1.2), "LogNormal": (0.3, 1.2), "Weibull": (1.3, 1.2), "Pareto": (1.3, 1.2),
    "Kumaraswamy": (1.3, 1.2), "Exponential": (1.2,), "HalfNormal": (1.2,), "HalfCauchy": (1.2,),
    "ContinuousBernoulli": (0.3,), "GeneralizedPareto": (0.3, 1.2, 0.2),
}


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_sample_gradients_at_fixed_noise(name):
    parameters = [parameter([v, v + 0.1]).requires_grad_() for v in DETERMINISTIC[name]]

    def draw(*values):
        torch.manual_seed(4)
        return getattr(D, name)(*values).rsample((3,))

    assert gradcheck(draw, parameters)


@pytest.mark.parametrize("make", [
    lambda loc, tril: D.MultivariateNormal(loc, scale_tril=tril),
    lambda loc, factor: D.LowRankMultivariateNormal(loc, factor, loc.exp()),
    lambda loc, factor: D.RelaxedOneHotCategorical(0.7, logits=factor + loc),
    lambda loc, factor: D.RelaxedBernoulli(0.7, logits=factor + loc),
    lambda loc, factor: D.LogisticNormal(loc + factor, loc.exp()),
])
def test_vector_sample_gradients_at_fixed_noise(make):
    values = [parameter([0.3, -0.2]).requires_grad_(),
              parameter([[1.2, 0.0], [-0.5, 0.7]]).requires_grad_()]

    def draw(a, b):
        torch.manual_seed(4)
        return make(a, b.tril()).rsample((3,))

    assert gradcheck(draw, values)


@pytest.mark.parametrize("concentration", [0.05, 0.4, 1.0, 3.0, 12.0, 80.0])
def test_gamma_samples_stay_at_their_quantile(concentration):
    """The implicit gradient against moving the concentration and solving for the same level."""
    torch.manual_seed(6)
    a = parameter([concentration] * 6).requires_grad_()
    log_x = standard_log_gamma(a)
    (slope,) = torch.autograd.grad(log_x.sum(), [a])
    step = 1e-4 * concentration
    level = torch.special.gammainc(a.detach(), log_x.detach().exp())
    moved = [solve_quantile(concentration + s * step, level, log_x.detach()) for s in (-1, 1)]
    expected = (moved[1] - moved[0]) / (2 * step)
    np.testing.assert_allclose(slope.numpy(), expected.numpy(), rtol=2e-5)


def solve_quantile(a, level, z):
    """log x with P(a, x) = level, by bisection around z."""
    low, high = z - 2.0 / min(a, 1.0), z + 2.0 / min(a, 1.0)
    for _ in range(70):
        middle = (low + high) / 2
        below = torch.special.gammainc(torch.full_like(z, a), middle.exp()) < level
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


@pytest.mark.parametrize(("name", "values", "statistic", "exact"), [
    ("Gamma", (0.4, 2.0), lambda x: x, lambda a, b: a / b),
    ("Beta", (0.6, 2.0), lambda x: x, lambda a, b: a / (a + b)),
    ("Beta", (3.0, 2.0), lambda x: x * x, lambda a, b: a * (a + 1) / ((a + b) * (a + b + 1))),
    ("StudentT", (9.0, 0.5), lambda x: x * x, lambda a, b: a / (a - 2) + b * b),
])
def test_gradients_of_expectations(name, values, statistic, exact):
    """The mean of the pathwise gradients is the gradient of the mean, within 5 errors."""
    torch.manual_seed(7)
    leaves = [torch.full((DRAWS,), v, dtype=torch.float64).requires_grad_() for v in values]
    statistic(getattr(D, name)(*leaves).rsample()).sum().backward()
    points = [parameter(v).requires_grad_() for v in values]
    exact(*points).backward()
    for leaf, point in zip(leaves, points, strict=True):
        grads = leaf.grad.numpy()
        assert abs(grads.mean() - point.grad.item()) < 5 * grads.std() / math.sqrt(DRAWS)


def test_small_concentrations_do_not_underflow():
    torch.manual_seed(9)
    drawn = D.Dirichlet(torch.full((4,), 1e-3)).sample((200,))
    assert torch.isfinite(drawn).all()
    np.testing.assert_allclose(drawn.sum(-1).numpy(), 1, rtol=1e-5)


def test_the_second_derivative_of_a_gamma_sample_is_refused():
    a = parameter([2.0]).requires_grad_()
    (slope,) = torch.autograd.grad(standard_log_gamma(a).sum(), [a], create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        slope.sum().backward()


def test_straight_through_gradient_is_that_of_the_probabilities():
    logits = parameter([0.3, -0.2, 1.0]).requires_grad_()
    weights = parameter([1.0, 2.0, 5.0])
    dist = D.OneHotCategoricalStraightThrough(logits=logits)
    drawn = dist.rsample()
    assert D.constraints.one_hot.check(drawn.detach().round()).all()
    (got,) = torch.autograd.grad((drawn * weights).sum(), [logits])
    (wanted,) = torch.autograd.grad((logits.softmax(-1) * weights).sum(), [logits])
    np.testing.assert_allclose(got.numpy(), wanted.numpy(), rtol=1e-12)


# ---------------------------------------------------------------- transforms, constraints, shapes
@pytest.mark.parametrize("name", [n for n in TRANSFORMS if n not in ("cat", "stack", "cat_last")])
def test_log_determinants_against_the_jacobian(name):
    make, point = TRANSFORMS[name]
    f = make(D.transforms, parameter)
    if not f.bijective or f.codomain.event_dim != f.domain.event_dim or f.domain.event_dim > 1:
        pytest.skip("the Jacobian is not square")
    x = parameter(point)
    x = x.reshape(-1, *x.shape[x.dim() - f.domain.event_dim :])[:1] if f.domain.event_dim else x
    y = f(x)
    jacobian = torch.autograd.functional.jacobian(lambda v: f(v).reshape(-1), x)
    square = jacobian.reshape(y.numel(), -1)[:, : x.numel()]
    if y.numel() != x.numel():
        keep = y.numel() - 1  # a simplex: its last coordinate follows from the others
        square = square[:keep, :]
    expected = torch.linalg.slogdet(square)[1]
    got = f.log_abs_det_jacobian(x, y).sum()
    np.testing.assert_allclose(got.numpy(), expected.numpy(), rtol=1e-9, atol=1e-9)


REGIONS = ["real", "positive", "nonnegative", "unit_interval", "simplex", "corr_cholesky",
           "real_vector", "interval(-2.0, 3.0)", "greater_than(1.5)", "less_than(-1.0)",
           "half_open_interval(0.0, 2.0)", "independent(positive, 1)"]


@pytest.mark.parametrize("table", ["biject_to", "transform_to"])
@pytest.mark.parametrize("region", REGIONS + ["lower_cholesky", "positive_definite"])
def test_transforms_of_constraints_reach_them(table, region):
    torch.manual_seed(0)
    constraint = eval(region, dict(vars(D.constraints)))
    if region in ("lower_cholesky", "positive_definite") and table == "biject_to":
        with pytest.raises(NotImplementedError, match="Cannot transform"):
            D.biject_to(constraint)
        return
    f = getattr(D, table)(constraint)
    x = torch.randn(5, 3, 3, dtype=torch.float64)
    y = f(x)
    assert constraint.check(y).all()
    if f.bijective:
        np.testing.assert_allclose(f.inv(y.clone()).numpy(), x.numpy(), rtol=1e-7, atol=1e-9)


def test_a_cache_returns_the_very_input():
    f = D.TanhTransform(cache_size=1)
    x = parameter([30.0])  # tanh rounds it to 1
    assert f.inv(f(x)) is x
    assert not torch.isfinite(D.TanhTransform().inv(f(x).clone())).all()


@pytest.mark.parametrize("name", sorted(CASES))
def test_expand_keeps_values_and_shares_memory(name):
    torch.manual_seed(3)
    dist = made(name)
    shape = torch.Size((3, 2)) + dist.batch_shape
    wide = dist.expand(shape)
    assert type(wide) is type(dist) and wide.batch_shape == shape
    assert wide.event_shape == dist.event_shape
    drawn = wide.sample((2,))
    assert drawn.shape == (2, *shape, *dist.event_shape)
    np.testing.assert_allclose(wide.log_prob(drawn).numpy(), dist.log_prob(drawn).numpy(),
                               rtol=1e-12)


def test_validation_can_be_switched_off():
    assert D.Normal(0.0, -1.0, validate_args=False).scale.item() == -1
    D.Distribution.set_default_validate_args(False)
    try:
        D.Normal(0.0, -1.0)
    finally:
        D.Distribution.set_default_validate_args(True)
    with pytest.raises(ValueError, match="Expected parameter scale"):
        D.Normal(0.0, -1.0)


def test_a_subclass_without_expand_says_so():
    class Shifted(D.Normal):
        def __init__(self, loc):
            super().__init__(loc, 1.0)

    with pytest.raises(NotImplementedError, match="custom .expand"):
        Shifted(0.0).expand((2,))


def test_own_divergences_and_ambiguity():
    class A(D.Normal):
        pass

    class B(D.Normal):
        pass

    @D.register_kl(A, D.Normal)
    def left(p, q):
        return 1

    assert D.kl_divergence(A(0.0, 1.0), B(0.0, 1.0)) == 1

    @D.register_kl(D.Normal, B)
    def right(p, q):
        return 2

    with pytest.warns(RuntimeWarning, match="Ambiguous"):
        assert D.kl_divergence(A(0.0, 1.0), B(0.0, 1.0)) == 1


def test_float32_parameters_give_float32():
    for dist in (D.Gamma(torch.ones(2), 2.0), D.Beta(0.5, torch.ones(2)), D.VonMises(0.0, 1.0)):
        drawn = dist.sample((3,))
        assert drawn.dtype == torch.float32 == dist.log_prob(drawn).dtype
