"""Transforms of shape, of pieces and stacks, and by a distribution's distribution function."""

from __future__ import annotations

from math import prod

from ... import ops
from ...tensor import Size
from .. import constraints
from ..utils import sum_rightmost
from .base import Transform


class ReshapeTransform(Transform):
    """The last dims ``in_shape`` as ``out_shape``.

    Raises:
        ValueError: if the shapes have different numbers of elements.
    """

    bijective = True

    def __init__(self, in_shape, out_shape, cache_size: int = 0):
        self.in_shape, self.out_shape = Size(in_shape), Size(out_shape)
        if prod(self.in_shape) != prod(self.out_shape):
            raise ValueError("in_shape, out_shape have different numbers of elements")
        super().__init__(cache_size=cache_size)

    @constraints.dependent_property(is_discrete=False)
    def domain(self):
        return constraints.independent(constraints.real, len(self.in_shape))

    @constraints.dependent_property(is_discrete=False)
    def codomain(self):
        return constraints.independent(constraints.real, len(self.out_shape))

    def _call(self, x):
        return x.reshape(x.shape[: x.dim() - len(self.in_shape)] + self.out_shape)

    def _inverse(self, y):
        return y.reshape(y.shape[: y.dim() - len(self.out_shape)] + self.in_shape)

    def log_abs_det_jacobian(self, x, y):
        return x.new_zeros(x.shape[: x.dim() - len(self.in_shape)])

    def forward_shape(self, shape):
        return _replace_tail(shape, self.in_shape, self.out_shape)

    def inverse_shape(self, shape):
        return _replace_tail(shape, self.out_shape, self.in_shape)


def _replace_tail(shape, old, new):
    cut = len(shape) - len(old)
    if cut < 0:
        raise ValueError("Too few dimensions on input")
    if tuple(shape[cut:]) != tuple(old):
        raise ValueError(f"Shape mismatch: expected {tuple(shape[cut:])} but got {tuple(old)}")
    return Size(tuple(shape[:cut]) + tuple(new))


class _Parts(Transform):
    """Several transforms side by side along a dim."""

    def __init__(self, tseq, dim, cache_size):
        self.transforms = list(tseq)
        if not all(isinstance(t, Transform) for t in self.transforms):
            raise AssertionError("All elements of tseq must be Transform instances")
        super().__init__(cache_size=cache_size)
        if cache_size:
            self.transforms = [t.with_cache(cache_size) for t in self.transforms]
        self.dim = dim

    @property
    def bijective(self):
        return all(t.bijective for t in self.transforms)


class CatTransform(_Parts):
    """Each transform on its piece of a dim.

    Args:
        tseq: the transforms.
        dim: the dim that is cut.
        lengths: the sizes of the pieces; default 1 each.
    """

    def __init__(self, tseq, dim: int = 0, lengths=None, cache_size: int = 0):
        super().__init__(tseq, dim, cache_size)
        self.lengths = [1] * len(self.transforms) if lengths is None else list(lengths)
        if len(self.lengths) != len(self.transforms):
            raise AssertionError(f"lengths must have the length of tseq, got {len(self.lengths)} "
                                 f"and {len(self.transforms)}")

    @property
    def event_dim(self):
        return max(t.event_dim for t in self.transforms)

    @property
    def length(self) -> int:
        """The size of the dim."""
        return sum(self.lengths)

    def with_cache(self, cache_size=1):
        if self._cache_size == cache_size:
            return self
        return CatTransform(self.transforms, self.dim, self.lengths, cache_size)

    @constraints.dependent_property
    def domain(self):
        return constraints.cat([t.domain for t in self.transforms], self.dim, self.lengths)

    @constraints.dependent_property
    def codomain(self):
        return constraints.cat([t.codomain for t in self.transforms], self.dim, self.lengths)

    def _pieces(self, x):
        if not -x.dim() <= self.dim < x.dim() or x.size(self.dim) != self.length:
            raise ValueError(f"CatTransform needs size {self.length} at dim {self.dim}, "
                             f"got a tensor of shape {tuple(x.shape)}")
        return x.split(self.lengths, self.dim)

    def _call(self, x):
        return ops.cat([t(p) for t, p in zip(self.transforms, self._pieces(x), strict=True)],
                       self.dim)

    def _inverse(self, y):
        return ops.cat([t.inv(p) for t, p in zip(self.transforms, self._pieces(y), strict=True)],
                       self.dim)

    def log_abs_det_jacobian(self, x, y):
        found = []
        for t, a, b in zip(self.transforms, self._pieces(x), self._pieces(y), strict=True):
            term = t.log_abs_det_jacobian(a, b)
            found.append(sum_rightmost(term, max(self.event_dim - t.event_dim, 0)))
        dim = self.dim - x.dim() if self.dim >= 0 else self.dim
        dim += self.event_dim
        return ops.cat(found, dim) if dim < 0 else sum(found)


class StackTransform(_Parts):
    """Each transform on its entry of a dim.

    Args:
        tseq: the transforms, as many as the dim has entries.
        dim: the dim.
    """

    def __init__(self, tseq, dim: int = 0, cache_size: int = 0):
        super().__init__(tseq, dim, cache_size)

    def with_cache(self, cache_size=1):
        if self._cache_size == cache_size:
            return self
        return StackTransform(self.transforms, self.dim, cache_size)

    @constraints.dependent_property
    def domain(self):
        return constraints.stack([t.domain for t in self.transforms], self.dim)

    @constraints.dependent_property
    def codomain(self):
        return constraints.stack([t.codomain for t in self.transforms], self.dim)

    def _entries(self, x):
        if not -x.dim() <= self.dim < x.dim() or x.size(self.dim) != len(self.transforms):
            raise ValueError(f"StackTransform needs size {len(self.transforms)} at dim {self.dim}, "
                             f"got a tensor of shape {tuple(x.shape)}")
        return x.unbind(self.dim)

    def _call(self, x):
        return ops.stack([t(v) for t, v in zip(self.transforms, self._entries(x), strict=True)],
                         self.dim)

    def _inverse(self, y):
        return ops.stack([t.inv(v) for t, v in zip(self.transforms, self._entries(y), strict=True)],
                         self.dim)

    def log_abs_det_jacobian(self, x, y):
        triples = zip(self.transforms, self._entries(x), self._entries(y), strict=True)
        return ops.stack([t.log_abs_det_jacobian(a, b) for t, a, b in triples], self.dim)


class CumulativeDistributionTransform(Transform):
    """y = cdf(x) of a distribution: from its support to the unit interval.

    Args:
        distribution: one with ``cdf`` and ``icdf``.
    """

    bijective = True
    codomain = constraints.unit_interval
    sign = +1

    def __init__(self, distribution, cache_size: int = 0):
        super().__init__(cache_size=cache_size)
        self.distribution = distribution

    @property
    def domain(self):
        return self.distribution.support

    def _call(self, x):
        return self.distribution.cdf(x)

    def _inverse(self, y):
        return self.distribution.icdf(y)

    def log_abs_det_jacobian(self, x, y):
        return self.distribution.log_prob(x)
