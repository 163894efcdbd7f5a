"""A distribution pushed through transforms."""

from __future__ import annotations

from .. import ops
from ..autograd import no_grad
from ..tensor import Size
from . import constraints
from .distribution import Distribution
from .independent import Independent
from .transforms import ComposeTransform, Transform
from .utils import sum_rightmost


class TransformedDistribution(Distribution):
    """The distribution of f(X), by the change of variables.

    Args:
        base_distribution: the distribution of X; expanded where f broadcasts it.
        transforms: a ``Transform`` or a list of them, the first one first.

    Raises:
        ValueError: for anything else, or if the base has too few dims for the transforms.
    """

    arg_constraints: dict = {}
    _expanded: tuple[str, ...] = ("base_dist",)
    _kept = ("transforms",)

    def __init__(self, base_distribution, transforms, validate_args=None):
        self.transforms = [transforms] if isinstance(transforms, Transform) else transforms
        if not isinstance(self.transforms, list) or not all(
            isinstance(t, Transform) for t in self.transforms
        ):
            raise ValueError("transforms must be a Transform or list, but was " + str(transforms))
        base, chain = base_distribution, ComposeTransform(self.transforms)
        base_shape = base.batch_shape + base.event_shape
        if len(base_shape) < chain.domain.event_dim:
            raise ValueError(f"base_distribution needs to have shape with size at least "
                             f"{chain.domain.event_dim}, but got {base_shape}.")
        shape = chain.forward_shape(base_shape)
        wanted = Size(chain.inverse_shape(shape))
        events = len(base.event_shape)
        if wanted != base_shape:
            base = base.expand(wanted[: len(wanted) - events])
        joined = chain.domain.event_dim - events
        self.base_dist = Independent(base, joined) if joined > 0 else base
        change = chain.codomain.event_dim - chain.domain.event_dim
        dims = max(chain.codomain.event_dim, events + change)
        cut = len(shape) - dims
        super().__init__(shape[:cut], shape[cut:], validate_args=validate_args)

    def _expand_one(self, value, shape):
        if value is not self.base_dist:
            return super()._expand_one(value, shape)
        full = shape + self.event_shape
        for t in reversed(self.transforms):
            full = t.inverse_shape(full)
        return value.expand(Size(full[: len(full) - len(value.event_shape)]))

    @constraints.dependent_property(is_discrete=False)
    def support(self):
        if not self.transforms:
            return self.base_dist.support
        support = self.transforms[-1].codomain
        extra = len(self.event_shape) - support.event_dim
        return constraints.independent(support, extra) if extra > 0 else support

    @property
    def has_rsample(self):
        return self.base_dist.has_rsample

    def _push(self, x):
        for t in self.transforms:
            x = t(x)
        return x

    def sample(self, sample_shape=Size(())):
        with no_grad():
            return self._push(self.base_dist.sample(sample_shape))

    def rsample(self, sample_shape=Size(())):
        return self._push(self.base_dist.rsample(sample_shape))

    def log_prob(self, value):
        self._checked(value)
        dims, y, total = len(self.event_shape), value, 0.0
        for t in reversed(self.transforms):
            x = t.inv(y)
            dims += t.domain.event_dim - t.codomain.event_dim
            total = total - sum_rightmost(t.log_abs_det_jacobian(x, y), dims - t.domain.event_dim)
            y = x
        base = self.base_dist.log_prob(y)
        return total + sum_rightmost(base, dims - len(self.base_dist.event_shape))

    def _monotonize_cdf(self, value):
        """p, or 1 − p where the transforms fall."""
        sign = 1
        for t in self.transforms:
            sign = sign * t.sign
        return value if isinstance(sign, int) and sign == 1 else sign * (value - 0.5) + 0.5

    def cdf(self, value):
        self._checked(value)
        for t in reversed(self.transforms):
            value = t.inv(value)
        return self._monotonize_cdf(self.base_dist.cdf(value))

    def icdf(self, value):
        return self._push(self.base_dist.icdf(self._monotonize_cdf(ops.as_tensor(value))))


__all__ = ["TransformedDistribution"]
