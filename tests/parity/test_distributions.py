"""Distributions, transforms and constraints against PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
from distribution_cases import CASES, TRANSFORMS

import disttorch as dt

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:Singular sample"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch"),
]
# PyTorch's log I0 is a polynomial good to 1e-7
LOOSE = {"von_mises": 1e-5, "generalized_pareto": 2e-6}
LOOSE |= {"multinomial": 1e-7, "multinomial_logits": 1e-7}  # its entropy has a float32 term
FLOAT32 = {"generalized_pareto"}  # PyTorch's refuses float64 parameters


def made(t, make, grad=True, dtype="float64"):
    """(what ``make`` makes of module t, its parameters in order)."""
    leaves = []

    def parameter(value):
        leaf = t.tensor(value, dtype=getattr(t, dtype), requires_grad=grad)
        leaves.append(leaf)
        return leaf

    return make(t.distributions, parameter), leaves


def plain(value):
    """A tensor as an array, everything else as it is written."""
    if isinstance(value, (dt.Tensor, torch.Tensor)):
        return value.detach().numpy(force=True)
    return repr(value) if not isinstance(value, (tuple, list)) else tuple(value)


def same(ours, theirs, tolerance=1e-9):
    if isinstance(theirs, np.ndarray):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)
    else:
        assert ours == theirs


def outcome(function):
    """The value, or the name of the exception that PyTorch's users would catch."""
    try:
        return plain(function())
    except (NotImplementedError, ValueError, AttributeError, RuntimeError) as error:
        return type(error).__name__


def refused(theirs):
    """Whether PyTorch fails inside, rather than refusing what it does not implement."""
    return isinstance(theirs, str) and theirs in ("RuntimeError", "AttributeError")


def pair(name, grad=True):
    dtype = "float32" if name in FLOAT32 else "float64"
    return made(dt, CASES[name], grad, dtype), made(torch, CASES[name], grad, dtype)


def values_of(theirs, count=4):
    torch.manual_seed(11)
    drawn = theirs.sample((count,)).numpy(force=True)
    return dt.tensor(drawn), torch.tensor(drawn)


PROPERTIES = ("batch_shape", "event_shape", "mean", "mode", "variance", "stddev", "support",
              "has_rsample", "has_enumerate_support", "arg_constraints")


@pytest.mark.parametrize("name", CASES)
def test_properties(name):
    (ours, _), (theirs, _) = pair(name, grad=False)
    assert repr(ours) == repr(theirs)
    for attribute in PROPERTIES:
        a, b = (outcome(lambda d=d, n=attribute: getattr(d, n)) for d in (ours, theirs))
        if isinstance(b, str):
            a, b = a.replace("torch.", ""), b.replace("torch.", "")
        if (name, attribute) != ("kumaraswamy", "mode"):  # PyTorch's is nan wherever it exists
            same(a, b, LOOSE.get(name, 1e-9))
    for method in ("entropy", "perplexity", "enumerate_support"):
        a, b = (outcome(getattr(d, method)) for d in (ours, theirs))
        if not refused(b):  # Multinomial's entropy mixes float32 into float64
            same(a, b, LOOSE.get(name, 1e-9))


@pytest.mark.parametrize("name", CASES)
def test_log_prob_and_its_gradients(name):
    (ours, our_leaves), (theirs, their_leaves) = pair(name)
    our_value, their_value = values_of(theirs)
    a, b = ours.log_prob(our_value), theirs.log_prob(their_value)
    same(plain(a), plain(b), LOOSE.get(name, 1e-9))
    assert tuple(ours.sample((4,)).shape) == tuple(their_value.shape)
    assert plain(ours.sample()).dtype == plain(theirs.sample()).dtype
    if not b.numel():
        return
    weights = np.cos(np.arange(b.numel()) + 0.5).reshape(tuple(b.shape))
    for out, t in ((a, dt), (b, torch)):
        (out * t.tensor(weights)).sum().backward()
    for one, other in zip(our_leaves, their_leaves, strict=True):
        if other.grad is not None:
            a, b = plain(one.grad), plain(other.grad)
            if name == "wishart_tril" and a.ndim == 2:  # PyTorch's has noise where nothing is read
                a, b = np.tril(a), np.tril(b)
            same(a, b, max(LOOSE.get(name, 0), 1e-8))
        else:
            assert one.grad is None


@pytest.mark.parametrize("name", CASES)
def test_entropy_gradients(name):
    (ours, our_leaves), (theirs, their_leaves) = pair(name)
    try:
        expected = theirs.entropy().sum()
    except NotImplementedError:
        with pytest.raises(NotImplementedError):
            ours.entropy()
        return
    if not expected.requires_grad:
        pytest.skip("constant")
    expected.backward()
    ours.entropy().sum().backward()
    for one, other in zip(our_leaves, their_leaves, strict=True):
        if other.grad is not None:
            same(plain(one.grad), plain(other.grad), 1e-8)


@pytest.mark.parametrize("name", CASES)
def test_cdf_and_icdf(name):
    (ours, _), (theirs, _) = pair(name, grad=False)
    our_value, their_value = values_of(theirs)
    same(outcome(lambda: ours.cdf(our_value)), outcome(lambda: theirs.cdf(their_value)),
         LOOSE.get(name, 1e-9))
    shape = (5,) + tuple(theirs.batch_shape) + tuple(theirs.event_shape)
    level = np.linspace(0.05, 0.95, int(np.prod(shape))).reshape(shape)
    level = level.astype("float32" if name in FLOAT32 else "float64")
    same(outcome(lambda: ours.icdf(dt.tensor(level))),
         outcome(lambda: theirs.icdf(torch.tensor(level))), LOOSE.get(name, 1e-9))


@pytest.mark.parametrize("name", CASES)
def test_expand(name):
    (ours, _), (theirs, _) = pair(name, grad=False)
    shape = (2,) + tuple(theirs.batch_shape)
    ours, theirs = ours.expand(shape), theirs.expand(shape)
    assert repr(ours) == repr(theirs) and type(ours).__name__ == type(theirs).__name__
    our_value, their_value = values_of(theirs)
    same(plain(ours.log_prob(our_value)), plain(theirs.log_prob(their_value)), LOOSE.get(name, 1e-9))
    for attribute in ("batch_shape", "event_shape", "mean", "variance", "mode"):
        a, b = (outcome(lambda d=d, n=attribute: getattr(d, n)) for d in (ours, theirs))
        if (name, attribute) != ("kumaraswamy", "mode"):
            same(a, b, LOOSE.get(name, 1e-9))
    entropies = outcome(ours.entropy), outcome(theirs.entropy)
    if not refused(entropies[1]):
        same(*entropies, LOOSE.get(name, 1e-9))
    assert tuple(ours.sample((3,)).shape) == (3, *shape, *theirs.event_shape)


# ---------------------------------------------------------------- divergences
KL_CASES = {
    "Bernoulli": [
        lambda D, T: D.Bernoulli(T([0.2, 0.5, 1.0])),
        lambda D, T: D.Bernoulli(T([0.3, 0.5, 0.1])),
    ],
    "Beta": [
        lambda D, T: D.Beta(T([0.6, 2.0, 5.0]), T(3.0)),
        lambda D, T: D.Beta(T([1.6, 0.3, 2.0]), T(0.8)),
    ],
    "Binomial": [
        lambda D, T: D.Binomial(5, T([0.2, 0.5, 0.8])),
        lambda D, T: D.Binomial(T([5.0, 4.0, 2.0]), T(0.4)),
    ],
    "Categorical": [
        lambda D, T: D.Categorical(T([[1.0, 2.0, 0.0]] * 3)),
        lambda D, T: D.Categorical(T([[1.0, 1.0, 3.0], [0.0, 1.0, 2.0], [1.0, 4.0, 0.0]])),
    ],
    "Cauchy": [
        lambda D, T: D.Cauchy(T([0.0, 1.0, 2.0]), T(0.5)),
        lambda D, T: D.Cauchy(T(0.5), T([1.0, 2.0, 0.3])),
    ],
    "ContinuousBernoulli": [
        lambda D, T: D.ContinuousBernoulli(T([0.2, 0.5, 0.8])),
        lambda D, T: D.ContinuousBernoulli(T([0.3, 0.6, 0.1])),
    ],
    "Dirichlet": [
        lambda D, T: D.Dirichlet(T([[0.5, 2.0, 3.0]])),
        lambda D, T: D.Dirichlet(T([1.0, 0.7, 2.0])),
    ],
    "Exponential": [lambda D, T: D.Exponential(T([0.3, 1.0, 2.0])), lambda D, T: D.Exponential(T(0.8))],
    "Gamma": [
        lambda D, T: D.Gamma(T([0.3, 1.0, 4.0]), T(1.5)),
        lambda D, T: D.Gamma(T([2.0, 0.5, 3.0]), T(0.7)),
    ],
    "Geometric": [lambda D, T: D.Geometric(T([0.3, 0.5, 0.9])), lambda D, T: D.Geometric(T(0.2))],
    "Gumbel": [
        lambda D, T: D.Gumbel(T([0.3, -1.0, 2.0]), T(0.8)),
        lambda D, T: D.Gumbel(T([1.0, 0.0, 2.5]), T(1.7)),
    ],
    "HalfNormal": [lambda D, T: D.HalfNormal(T([0.3, 1.0, 2.0])), lambda D, T: D.HalfNormal(T(0.8))],
    "Independent": [
        lambda D, T: D.Independent(D.Normal(T([0.3, -1.0, 2.0]), T(0.8)), 1),
        lambda D, T: D.Independent(D.Normal(T([1.0, 0.0, 2.5]), T(1.7)), 1),
    ],
    "Laplace": [
        lambda D, T: D.Laplace(T([0.3, -1.0, 2.0]), T(0.8)),
        lambda D, T: D.Laplace(T([1.0, 0.0, 2.5]), T(1.7)),
    ],
    "LowRankMultivariateNormal": [
        lambda D, T: D.LowRankMultivariateNormal(T([0.3, -1.0]), T([[1.0], [0.4]]), T([0.8, 0.5])),
        lambda D, T: D.LowRankMultivariateNormal(
            T([[0.3, -1.0]] * 3), T([[0.2, 0.1], [-0.4, 1.0]]), T([1.8, 0.7])
        ),
    ],
    "MultivariateNormal": [
        lambda D, T: D.MultivariateNormal(T([0.3, -1.0]), T([[1.0, 0.4], [0.4, 2.0]])),
        lambda D, T: D.MultivariateNormal(T([[0.1, 1.0]] * 3), scale_tril=T([[0.7, 0.0], [0.3, 1.1]])),
    ],
    "NegativeBinomial": [lambda D, T: D.NegativeBinomial(3, T([0.2, 0.3, 0.4]))] * 2,
    "Normal": [
        lambda D, T: D.Normal(T([0.3, -1.0, 2.0]), T(0.8)),
        lambda D, T: D.Normal(T([1.0, 0.0, 2.5]), T(1.7)),
    ],
    "OneHotCategorical": [
        lambda D, T: D.OneHotCategorical(T([[1.0, 2.0, 0.5]] * 3)),
        lambda D, T: D.OneHotCategorical(T([1.0, 1.0, 3.0])),
    ],
    "Pareto": [
        lambda D, T: D.Pareto(T([1.0, 0.5, 2.0]), T([0.7, 1.5, 4.0])),
        lambda D, T: D.Pareto(T([0.2, 0.7, 1.0]), T(2.0)),
    ],
    "Poisson": [lambda D, T: D.Poisson(T([1.0, 0.5, 2.0])), lambda D, T: D.Poisson(T(1.5))],
    "TransformedDistribution": [
        lambda D, T: D.LogNormal(T([0.3, -1.0, 2.0]), T(0.8)),
        lambda D, T: D.LogNormal(T([1.0, 0.0, 2.5]), T(1.7)),
    ],
    "Uniform": [
        lambda D, T: D.Uniform(T([0.1, -0.5, 0.2]), T([0.9, 1.5, 0.7])),
        lambda D, T: D.Uniform(T([-0.1, -0.2, 0.1]), T([2.0, 1.7, 0.8])),
    ],
    "Wishart": [
        lambda D, T: D.Wishart(T(5.5), T([[1.0, 0.4], [0.4, 2.0]])),
        lambda D, T: D.Wishart(T(3.5), scale_tril=T([[0.7, 0.0], [0.3, 1.1]])),
    ],
}


@pytest.mark.parametrize("p_name", KL_CASES)
def test_divergences(p_name):
    for q_name in KL_CASES:
        (ours_p, _), (theirs_p, _) = (made(t, KL_CASES[p_name][0], False) for t in (dt, torch))
        (ours_q, _), (theirs_q, _) = (made(t, KL_CASES[q_name][1], False) for t in (dt, torch))
        a = outcome(lambda p=ours_p, q=ours_q: dt.distributions.kl_divergence(p, q))
        b = outcome(lambda p=theirs_p, q=theirs_q: torch.distributions.kl_divergence(p, q))
        try:
            same(a, b)
        except AssertionError as error:
            raise AssertionError(f"KL({p_name}, {q_name})") from error


def test_the_same_pairs_are_registered():
    tables = [{(a.__name__, b.__name__) for a, b in t.distributions.kl._KL_REGISTRY}
              for t in (dt, torch)]
    assert tables[0] == tables[1]


# ---------------------------------------------------------------- transforms and constraints
@pytest.mark.parametrize("cache", [0, 1])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms(name, cache):
    make, point = TRANSFORMS[name]
    found = []
    for t in (dt, torch):
        f, _ = made(t, lambda D, T: make(D.transforms, T), False)
        f = f.with_cache(1) if cache else f
        x = t.tensor(point, dtype=t.float64, requires_grad=True)
        y = f(x)
        back = f.inv(y.clone())
        results = [plain(y), plain(back), repr(f), repr(f.inv), f.bijective, repr(f.domain),
                   repr(f.codomain), outcome(lambda f=f: f.sign), f(x) is y, f.inv(y) is x,
                   f.inv.inv is f, f == f, outcome(lambda f=f, s=x.shape: f.forward_shape(s)),
                   outcome(lambda f=f, s=y.shape: f.inverse_shape(s))]
        slope = outcome(lambda f=f, x=x, y=y: f.log_abs_det_jacobian(x, y))
        results.append(slope)
        if not isinstance(slope, str) and y.requires_grad:
            total = y.sin().sum() + f.log_abs_det_jacobian(x, y).sum()
            total.backward()
            results.append(plain(x.grad))
        found.append(results)
    assert len(found[0]) == len(found[1])
    for a, b in zip(*found, strict=True):
        if isinstance(b, str):
            assert a.replace("torch.", "") == b.replace("torch.", "")
        else:
            same(a, b)


VALUES = [
    [[0.2, 0.8], [0.5, 0.5]], [[1.0, 0.0], [0.0, 1.0]], [[-1.0, 2.0], [3.0, 4.0]],
    [[1.0, 0.0], [0.6, 0.8]], [[2.0, 1.0], [1.0, 2.0]], [[float("nan"), float("inf")], [0.0, 1.5]],
]
CONSTRAINTS = [
    "boolean", "corr_cholesky", "lower_cholesky", "lower_triangular", "nonnegative",
    "nonnegative_integer", "one_hot", "positive", "positive_definite", "positive_integer",
    "positive_semidefinite", "real", "real_vector", "simplex", "square", "symmetric",
    "unit_interval", "greater_than(0.5)", "greater_than_eq(0.5)", "less_than(0.5)",
    "integer_interval(0, 2)", "interval(0.2, 0.8)", "half_open_interval(0.2, 0.8)",
    "multinomial(3)", "independent(positive, 1)", "independent(positive, 2)",
    "cat([positive, real], -1, [1, 1])", "stack([positive, boolean], 0)",
    "MixtureSameFamilyConstraint(positive)",
]


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_constraints(name):
    one, other = (eval(name, dict(vars(t.distributions.constraints))) for t in (dt, torch))
    if not name.startswith(("cat", "stack")):
        assert repr(one) == repr(other)
    assert (one.event_dim, one.is_discrete) == (other.event_dim, other.is_discrete)
    for value in VALUES:
        if "positive_" in name and not np.isfinite(value).all():
            continue
        same(plain(one.check(dt.tensor(value, dtype=dt.float64))),
             plain(other.check(torch.tensor(value, dtype=torch.float64))))
    for table in ("biject_to", "transform_to"):
        same(*(outcome(lambda t=t, c=c, table=table: getattr(t.distributions, table)(c))
               for t, c in ((dt, one), (torch, other))))


BAD = [
    "Normal(tensor([0., 1.]), tensor([1., -1.]))", "Normal('a', 1)", "Normal(0., 1.).log_prob(3)",
    "Bernoulli()", "Bernoulli(.1, .2)", "Bernoulli(1.5)", "Bernoulli(0.5).log_prob(tensor(0.25))",
    "Categorical(tensor(1.))", "Categorical(ones(3)).log_prob(tensor(5))",
    "Categorical(tensor([-1., 2.]))", "Normal(zeros(3), 1.).log_prob(zeros(2))",
    "Dirichlet(tensor(1.))", "Dirichlet(tensor([1., 0.]))", "Beta(0., 1.)",
    "Binomial(-1, tensor(0.5))", "Binomial(tensor([3., 4.]), .5).enumerate_support()",
    "MultivariateNormal(zeros(2), -eye(2))", "MultivariateNormal(zeros(2))",
    "MultivariateNormal(tensor(1.), eye(2))", "MultivariateNormal(zeros(2), zeros(2))",
    "MultivariateNormal(zeros(2), scale_tril=ones(2, 2))",
    "MultivariateNormal(zeros(2), eye(2)).log_prob(zeros(3))", "Poisson(-1.)", "Geometric(0.)",
    "Independent(Normal(zeros(3), 1.), 2)", "Uniform(1., 0.)", "LKJCholesky(1)",
    "Multinomial(tensor([1, 2]), ones(2))", "Multinomial(2, ones(2)).log_prob(tensor([2., 1.]))",
    "TransformedDistribution(Normal(0., 1.), 3)", "MixtureSameFamily(3, Normal(0., 1.))",
    "TransformedDistribution(Normal(0., 1.), [StickBreakingTransform()])",
    "MixtureSameFamily(Categorical(ones(3)), Normal(zeros(2), 1.))",
    "Normal(0., 1.).enumerate_support()",
    "Poisson(1.).rsample()", "ExpTransform(cache_size=2)", "ReshapeTransform((2,), (3,))",
    "kl_divergence(Normal(0., 1.), Poisson(1.))",
    "kl_divergence(Normal(0., 1.), Cauchy(0., 1.))", "biject_to(constraints.boolean)",
    "Wishart(tensor(0.5), eye(2))", "StudentT(-1.)",
    "ContinuousBernoulli(2., validate_args=True)", "RelaxedBernoulli(.5)", "NegativeBinomial(3, 1.)",
    "Exponential(1.).log_prob(tensor(-1.))", "Pareto(1., 2.).log_prob(tensor(0.5))",
    "LowRankMultivariateNormal(zeros(2), ones(3, 1), ones(2))",
    "LowRankMultivariateNormal(zeros(2), ones(2, 1), ones(3))",
    "CorrCholeskyTransform().forward_shape((4,))", "constraints.dependent.check(ones(1))",
]


@pytest.mark.parametrize("call", BAD)
def test_bad_calls_raise_the_same_error(call):
    names = ("tensor", "ones", "zeros", "eye")
    caught = []
    for t in (torch, dt):
        scope = vars(t.distributions) | {n: getattr(t, n) for n in names}
        with pytest.raises(Exception) as error:
            eval(call, dict(scope))
        caught.append(error)
    theirs, ours = caught
    assert ours.type.__name__ == theirs.type.__name__, (ours.value, theirs.value)
    if theirs.type is ValueError:
        assert str(ours.value)[:60] == str(theirs.value)[:60]
