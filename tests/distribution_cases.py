"""Distributions with parameters, for the tests with and without PyTorch.

Each case is ``make(D, T)``: D is a ``distributions`` module, T makes a float64 parameter.
"""

from __future__ import annotations

EYE = [[1.0, 0.0], [0.0, 1.0]]
COV = [[2.0, 0.6], [0.6, 1.5]]
COVS = [COV, [[1.0, -0.3], [-0.3, 0.8]]]
TRIL = [[1.2, 0.0], [-0.5, 0.7]]

CASES = {
    "bernoulli": lambda D, T: D.Bernoulli(T([0.2, 0.5, 0.9])),
    "bernoulli_logits": lambda D, T: D.Bernoulli(logits=T([[-1.0], [30.0]])),
    "beta": lambda D, T: D.Beta(T([0.6, 2.0, 5.0]), T(3.0)),
    "beta_2d": lambda D, T: D.Beta(T([[0.6], [2.0]]), T([0.4, 3.0])),
    "binomial": lambda D, T: D.Binomial(10, T([0.2, 0.5])),
    "binomial_logits": lambda D, T: D.Binomial(4, logits=T([[0.3], [-2.0]])),
    "binomial_counts": lambda D, T: D.Binomial(T([3.0, 7.0]).detach(), T(0.3)),
    "categorical": lambda D, T: D.Categorical(T([[1.0, 2.0, 3.0], [0.5, 0.2, 0.1]])),
    "categorical_logits": lambda D, T: D.Categorical(logits=T([0.1, -1.0, 2.0])),
    "cauchy": lambda D, T: D.Cauchy(T([0.0, 1.0]), T([1.0, 0.3])),
    "chi2": lambda D, T: D.Chi2(T([0.7, 2.0, 9.0])),
    "continuous_bernoulli": lambda D, T: D.ContinuousBernoulli(T([0.1, 0.4999, 0.5, 0.9])),
    "continuous_bernoulli_logits": lambda D, T: D.ContinuousBernoulli(logits=T([-2.0, 0.5])),
    "dirichlet": lambda D, T: D.Dirichlet(T([[0.5, 2.0, 3.0], [0.4, 0.6, 0.3]])),
    "dirichlet_1d": lambda D, T: D.Dirichlet(T([2.0, 3.0])),
    "exponential": lambda D, T: D.Exponential(T([0.3, 2.0])),
    "fishersnedecor": lambda D, T: D.FisherSnedecor(T([1.0, 3.0, 6.0]), T([1.5, 3.0, 9.0])),
    "gamma": lambda D, T: D.Gamma(T([0.3, 1.0, 8.0]), T([2.0, 0.5, 1.0])),
    "gamma_scalar": lambda D, T: D.Gamma(T(2.5), T(1.5)),
    "generalized_pareto": lambda D, T: D.GeneralizedPareto(
        T([0.0, 1.0, 0.5]), T([1.0, 2.0, 0.5]), T([0.2, -0.3, 0.0])),
    "geometric": lambda D, T: D.Geometric(T([0.1, 0.7])),
    "geometric_logits": lambda D, T: D.Geometric(logits=T([-1.0, 0.5])),
    "gumbel": lambda D, T: D.Gumbel(T([0.0, -1.0]), T([1.0, 3.0])),
    "half_cauchy": lambda D, T: D.HalfCauchy(T([0.5, 2.0])),
    "half_normal": lambda D, T: D.HalfNormal(T([0.5, 2.0])),
    "independent": lambda D, T: D.Independent(D.Normal(T([[0.0, 1.0], [2.0, 3.0]]), T(1.5)), 1),
    "independent_2": lambda D, T: D.Independent(D.Gamma(T([[0.5, 1.0], [2.0, 3.0]]), T(1.5)), 2),
    "independent_0": lambda D, T: D.Independent(D.Bernoulli(T([0.3, 0.6])), 0),
    "inverse_gamma": lambda D, T: D.InverseGamma(T([0.8, 1.5, 4.0]), T([1.0, 2.0, 0.5])),
    "kumaraswamy": lambda D, T: D.Kumaraswamy(T([0.5, 2.0, 3.0]), T([1.5, 4.0, 0.7])),
    "laplace": lambda D, T: D.Laplace(T([0.0, 1.0]), T([1.0, 0.3])),
    "lkj": lambda D, T: D.LKJCholesky(3, T([0.7, 2.0])),
    "lkj_2": lambda D, T: D.LKJCholesky(2, T(1.0)),
    "log_normal": lambda D, T: D.LogNormal(T([0.0, 1.0]), T([1.0, 0.3])),
    "logistic_normal": lambda D, T: D.LogisticNormal(T([0.0, 1.0]), T([1.0, 0.3])),
    "low_rank": lambda D, T: D.LowRankMultivariateNormal(
        T([[0.0, 1.0], [2.0, -1.0]]), T([[1.0], [0.5]]), T([0.5, 2.0])),
    "mixture": lambda D, T: D.MixtureSameFamily(
        D.Categorical(T([0.3, 0.7])), D.Normal(T([-1.0, 2.0]), T([0.5, 1.0]))),
    "mixture_events": lambda D, T: D.MixtureSameFamily(
        D.Categorical(T([[0.3, 0.7], [0.5, 0.5]])),
        D.Independent(D.Normal(T([[[0.0], [1.0]], [[2.0], [-1.0]]]), T([0.5, 1.0, 2.0])), 1)),
    "multinomial": lambda D, T: D.Multinomial(5, T([[1.0, 2.0, 3.0], [0.5, 0.2, 0.1]])),
    "multinomial_logits": lambda D, T: D.Multinomial(3, logits=T([0.1, -1.0, 2.0])),
    "mvn": lambda D, T: D.MultivariateNormal(T([0.5, -1.0]), T(COV)),
    "mvn_batch": lambda D, T: D.MultivariateNormal(T([[0.5, -1.0]] * 3), scale_tril=T(TRIL)),
    "mvn_precision": lambda D, T: D.MultivariateNormal(T([0.5, -1.0]), precision_matrix=T(COVS)),
    "negative_binomial": lambda D, T: D.NegativeBinomial(T([3.0, 0.5]), T([0.2, 0.7])),
    "negative_binomial_logits": lambda D, T: D.NegativeBinomial(4, logits=T([-1.0, 0.3])),
    "normal": lambda D, T: D.Normal(T([[0.0], [1.0]]), T([1.0, 0.3, 2.0])),
    "normal_scalar": lambda D, T: D.Normal(T(0.5), T(2.0)),
    "normal_empty": lambda D, T: D.Normal(T([[]]), T(2.0)),
    "one_hot": lambda D, T: D.OneHotCategorical(T([[1.0, 2.0, 3.0], [0.5, 0.2, 0.1]])),
    "one_hot_st": lambda D, T: D.OneHotCategoricalStraightThrough(logits=T([0.1, -1.0, 2.0])),
    "pareto": lambda D, T: D.Pareto(T([1.0, 0.5, 2.0]), T([0.7, 1.5, 4.0])),
    "poisson": lambda D, T: D.Poisson(T([0.3, 4.0, 50.0])),
    "relaxed_bernoulli": lambda D, T: D.RelaxedBernoulli(T(0.7), T([0.2, 0.6])),
    "relaxed_one_hot": lambda D, T: D.RelaxedOneHotCategorical(
        T(0.7), logits=T([[0.1, -1.0, 0.5], [0.0, 0.3, 1.0]])),
    "student_t": lambda D, T: D.StudentT(T([0.8, 1.5, 5.0]), T([0.0, 1.0, 2.0]), T(1.5)),
    "transformed": lambda D, T: D.TransformedDistribution(
        D.Normal(T([0.0, 1.0]), T(1.0)),
        [D.AffineTransform(T(1.0), T([-2.0, 0.5])), D.SigmoidTransform()]),
    "transformed_simplex": lambda D, T: D.TransformedDistribution(
        D.Normal(T([[0.0, 1.0], [0.3, 0.1]]), T(1.0)), D.StickBreakingTransform()),
    "uniform": lambda D, T: D.Uniform(T([0.0, -1.0]), T([1.0, 3.0])),
    "von_mises": lambda D, T: D.VonMises(T([0.0, 1.0, -3.0]), T([0.5, 4.0, 60.0])),
    "weibull": lambda D, T: D.Weibull(T([1.0, 2.0]), T([1.5, 3.0])),
    "wishart": lambda D, T: D.Wishart(T([3.5, 5.0]), T(COV)),
    "wishart_tril": lambda D, T: D.Wishart(T(4.0), scale_tril=T(TRIL)),
    "wishart_precision": lambda D, T: D.Wishart(T(2.5), precision_matrix=T(COV)),
}

# (constructor of a transform, input in its domain)
TRANSFORMS = {
    "abs": (lambda t, T: t.AbsTransform(), [0.5, 2.0]),
    "affine": (lambda t, T: t.AffineTransform(1.0, -2.0), [[0.5, -2.0]]),
    "affine_tensor": (lambda t, T: t.AffineTransform(T([1.0, 2.0]), T([[0.5], [-3.0]])),
                      [[0.5, 1.0], [2.0, 0.0]]),
    "affine_event": (lambda t, T: t.AffineTransform(T([1.0, 2.0]), T([0.5, 2.0]), event_dim=1),
                     [[0.5, 1.0], [2.0, 3.0], [0.0, 1.0]]),
    "cat": (lambda t, T: t.CatTransform([t.ExpTransform(), t.AffineTransform(0.0, 2.0)], 0, [1, 2]),
            [0.5, 1.0, -2.0]),
    "cat_last": (lambda t, T: t.CatTransform([t.ExpTransform(), t.TanhTransform()], -1, [2, 1]),
                 [[0.5, 1.0, -0.2], [0.1, 0.2, 0.3]]),
    "compose": (lambda t, T: t.ComposeTransform([t.ExpTransform(), t.AffineTransform(1.0, 3.0),
                                                 t.PowerTransform(T(0.5))]), [0.5, -1.0]),
    "compose_events": (lambda t, T: t.ComposeTransform(
        [t.AffineTransform(0.0, 2.0), t.StickBreakingTransform()]), [[0.5, -1.0], [0.0, 1.0]]),
    "corr_cholesky": (lambda t, T: t.CorrCholeskyTransform(),
                      [[0.5, -1.0, 0.3, 0.1, 2.0, -0.7], [0.0] * 6]),
    "corr_cholesky_2": (lambda t, T: t.CorrCholeskyTransform(), [[0.5]]),
    "exp": (lambda t, T: t.ExpTransform(), [0.5, -2.0]),
    "independent": (lambda t, T: t.IndependentTransform(t.ExpTransform(), 1), [[0.5, -2.0]]),
    "identity": (lambda t, T: t.identity_transform, [[0.5, -2.0]]),
    "inverse": (lambda t, T: t.SoftplusTransform().inv, [0.5, 3.0]),
    "compose_inverse": (lambda t, T: t.ComposeTransform(
        [t.AffineTransform(0.0, 2.0), t.TanhTransform()]).inv, [0.5, -0.9]),
    "lower_cholesky": (lambda t, T: t.LowerCholeskyTransform(), [[0.5, 0.0], [1.0, -1.0]]),
    "positive_definite": (lambda t, T: t.PositiveDefiniteTransform(), [[0.5, 0.0], [1.0, -1.0]]),
    "power": (lambda t, T: t.PowerTransform(T([2.0, -0.5])), [0.5, 2.0]),
    "reshape": (lambda t, T: t.ReshapeTransform((2, 2), (4,)), [[[1.0, 2.0], [3.0, 4.0]]]),
    "sigmoid": (lambda t, T: t.SigmoidTransform(), [0.5, -3.0]),
    "softmax": (lambda t, T: t.SoftmaxTransform(), [[0.5, -3.0, 1.0]]),
    "softplus": (lambda t, T: t.SoftplusTransform(), [0.5, -3.0]),
    "stack": (lambda t, T: t.StackTransform([t.ExpTransform(), t.TanhTransform()], 1),
              [[0.5, -0.3], [1.0, 0.2]]),
    "stick_breaking": (lambda t, T: t.StickBreakingTransform(), [[0.5, -3.0, 1.0], [0.0] * 3]),
    "tanh": (lambda t, T: t.TanhTransform(), [0.5, -2.0]),
}
