"""Gamma variates with gradients: what Gamma, Beta, Dirichlet, Student's t and others draw from.

The sampler works by rejection, so its code has no useful derivative. The gradient is implicit: the
sample stays at its quantile while the concentration changes (the kernel names the paper). Samples
are logarithms, since for small concentrations the variates themselves underflow.
"""

from __future__ import annotations

from ..backend import dtypes, namespace_of
from ..tensor import Tensor, wrap
from .core import REGISTRY, op
from .elementwise_core import binary
from .random import _source


@binary(lacks="bic", method=False, tensor_only=("input", "other"))
def log_gamma_variate_slope(xp, input, other):
    """d(other)/d(input) for ``other`` the log of a sample of Gamma(input, 1)."""
    return xp.log_gamma_variate_slope(input, other)


@log_gamma_variate_slope.grad("input", "other")
def _(F, g):
    raise NotImplementedError(
        "the second derivative of a gamma sample by its concentration is not implemented"
    )


@op(tensors=("concentration", "drawn"), method=False, out=False)
def log_gamma_variate(xp, concentration, drawn):
    """``drawn``, as a differentiable function of the concentration it was drawn with."""
    return drawn.copy()


@log_gamma_variate.grad("concentration")
def _(F, g, concentration, out):
    return g * F.log_gamma_variate_slope(concentration, out)


def standard_log_gamma(concentration: Tensor, generator=None) -> Tensor:
    """Logarithms of samples of Gamma(concentration, 1), with gradients.

    Args:
        concentration: positive floats of any shape.
        generator: the stream to draw from; default that of the device.

    Raises:
        NotImplementedError: for dtypes that are not real floats.
    """
    if concentration.dtype.category != dtypes.FLOAT:
        raise NotImplementedError(f'"_standard_gamma" not implemented for {concentration.dtype!r}')
    a = concentration._data
    drawn = _source(generator, concentration.device).standard_log_gamma(a)
    drawn = namespace_of(a).asarray(drawn, dtype=a.dtype)
    return REGISTRY["log_gamma_variate"].call(concentration, wrap(drawn))


def _standard_gamma(input: Tensor, generator=None) -> Tensor:
    """Samples of Gamma(input, 1), with gradients."""
    return standard_log_gamma(input, generator).exp()


def _sample_dirichlet(input: Tensor, generator=None) -> Tensor:
    """Samples of Dirichlet distributions along the last dim, with gradients."""
    return standard_log_gamma(input, generator).softmax(-1)


FUNCTIONS = {f.__name__: f for f in (_standard_gamma, _sample_dirichlet)}
