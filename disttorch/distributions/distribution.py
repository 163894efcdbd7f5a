"""The base of all distributions: shapes, validation, expansion."""

from __future__ import annotations

import warnings

from .. import ops
from ..autograd import no_grad
from ..tensor import Size, Tensor
from . import constraints
from .utils import lazy_property


class Distribution:
    """A distribution over values of shape ``event_shape``, a batch of them of ``batch_shape``.

    A sample has shape ``sample_shape + batch_shape + event_shape``; ``log_prob`` of it has
    ``sample_shape + batch_shape``. Subclasses give ``arg_constraints`` (parameter name to
    constraint), ``support``, and name in ``_expanded`` the attributes that carry the batch shape
    and in ``_kept`` those that ``expand`` takes over as they are.

    Args:
        batch_shape, event_shape: the shapes.
        validate_args: whether to check parameters and samples; default: on, unless Python runs
            with -O or ``set_default_validate_args(False)`` was called.

    Raises:
        ValueError: when a parameter breaks its constraint; it names the parameter.
    """

    has_rsample = False
    has_enumerate_support = False
    _validate_args = __debug__
    _expanded: tuple | None = None
    _kept: tuple = ()

    @staticmethod
    def set_default_validate_args(value: bool) -> None:
        """Whether distributions check their arguments when not told.

        Raises:
            ValueError: if it is neither True nor False.
        """
        if value not in (True, False):
            raise ValueError(f"validate_args must be True or False, got {value!r}")
        Distribution._validate_args = value

    def __init__(self, batch_shape=Size(()), event_shape=Size(()), validate_args=None):
        self._batch_shape, self._event_shape = Size(batch_shape), Size(event_shape)
        if validate_args is not None:
            self._validate_args = validate_args
        if self._validate_args:
            self._check_parameters()
        super().__init__()

    def _check_parameters(self) -> None:
        try:
            wanted = self.arg_constraints
        except NotImplementedError:
            warnings.warn(f"{type(self)} does not define `arg_constraints`. Please set "
                          "`arg_constraints = {}` or initialize the distribution with "
                          "`validate_args=False` to turn off validation.", stacklevel=3)
            return
        for name, constraint in wanted.items():
            derived = isinstance(getattr(type(self), name, None), lazy_property)
            if constraints.is_dependent(constraint) or derived and name not in self.__dict__:
                continue
            value = getattr(self, name)
            if not constraint.check(value).all():
                raise ValueError(
                    f"Expected parameter {name} ({type(value).__name__} of shape "
                    f"{tuple(value.shape)}) of distribution {self!r} to satisfy the constraint "
                    f"{constraint!r}, but found invalid values:\n{value}"
                )

    # ------------------------------------------------------------- shapes
    @property
    def batch_shape(self) -> Size:
        """The shape of the parameters."""
        return self._batch_shape

    @property
    def event_shape(self) -> Size:
        """The shape of one value."""
        return self._event_shape

    def expand(self, batch_shape, _instance=None):
        """The same distributions over a larger batch shape; the parameters are expanded views.

        Raises:
            NotImplementedError: if a subclass has its own ``__init__`` and no ``expand``.
        """
        owner = next((c for c in type(self).__mro__ if c.__dict__.get("_expanded") is not None),
                     None)
        if owner is None:
            raise NotImplementedError
        new = self._get_checked_instance(owner, _instance)
        shape = Size(batch_shape)
        for name in owner._expanded:
            if name in self.__dict__:
                new.__dict__[name] = self._expand_one(self.__dict__[name], shape)
        new.__dict__.update({name: self.__dict__[name] for name in owner._kept})
        Distribution.__init__(new, shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def _expand_one(self, value, shape):
        """A parameter or a part, its leading dims those of the batch."""
        if isinstance(value, Distribution):
            return value.expand(shape + value.batch_shape[len(self._batch_shape) :])
        return value.expand(shape + value.shape[len(self._batch_shape) :])

    def _get_checked_instance(self, cls, _instance=None):
        if _instance is None and type(self).__init__ != cls.__init__:
            raise NotImplementedError(
                f"Subclass {type(self).__name__} of {cls.__name__} that defines a custom __init__ "
                "method must also define a custom .expand() method."
            )
        return self.__new__(type(self)) if _instance is None else _instance

    def _extended_shape(self, sample_shape=Size(())) -> Size:
        return Size(sample_shape) + self._batch_shape + self._event_shape

    # ------------------------------------------------------------- what subclasses give
    @property
    def arg_constraints(self) -> dict:
        """The constraint of each parameter, by its name."""
        raise NotImplementedError

    @property
    def support(self):
        """The constraint that samples satisfy, or None."""
        raise NotImplementedError

    @property
    def mean(self) -> Tensor:
        raise NotImplementedError

    @property
    def mode(self) -> Tensor:
        raise NotImplementedError(f"{type(self)} does not implement mode")

    @property
    def variance(self) -> Tensor:
        raise NotImplementedError

    @property
    def stddev(self) -> Tensor:
        return self.variance.sqrt()

    def sample(self, sample_shape=Size(())) -> Tensor:
        """Draw values, without gradients."""
        with no_grad():
            return self.rsample(sample_shape)

    def rsample(self, sample_shape=Size(())) -> Tensor:
        """Draw values as differentiable functions of the parameters."""
        raise NotImplementedError

    def sample_n(self, n: int) -> Tensor:
        """Draw ``n`` values (deprecated: use ``sample((n,))``)."""
        warnings.warn("sample_n will be deprecated. Use .sample((n,)) instead", UserWarning,
                      stacklevel=2)
        return self.sample(Size((n,)))

    def log_prob(self, value) -> Tensor:
        """The log of the density (or probability) at ``value``."""
        raise NotImplementedError

    def cdf(self, value) -> Tensor:
        """P(X <= value)."""
        raise NotImplementedError

    def icdf(self, value) -> Tensor:
        """The quantile: the inverse of ``cdf``."""
        raise NotImplementedError

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All values of a discrete distribution along dim 0; ``expand`` over the batch or not."""
        raise NotImplementedError

    def entropy(self) -> Tensor:
        """The entropy in nats."""
        raise NotImplementedError

    def perplexity(self) -> Tensor:
        """exp(entropy)."""
        return ops.exp(self.entropy())

    # ------------------------------------------------------------- checks and text
    def _validate_sample(self, value) -> None:
        """ValueErrors for a value of the wrong type, of a shape that does not fit, or outside."""
        if not isinstance(value, Tensor):
            raise ValueError("The value argument to log_prob must be a Tensor")
        lead = value.dim() - len(self._event_shape)
        if value.shape[max(lead, 0) :] != self._event_shape:
            raise ValueError("The right-most size of value must match event_shape: "
                             f"{value.shape} vs {self._event_shape}.")
        wanted = self._batch_shape + self._event_shape
        for a, b in zip(reversed(value.shape), reversed(wanted), strict=False):
            if a != 1 and b != 1 and a != b:
                raise ValueError("Value is not broadcastable with batch_shape+event_shape: "
                                 f"{value.shape} vs {wanted}.")
        try:
            support = self.support
        except NotImplementedError:
            warnings.warn(f"{type(self)} does not define `support` to enable sample validation. "
                          "Please initialize the distribution with `validate_args=False` to turn "
                          "off validation.", stacklevel=3)
            return
        if support is not None and not support.check(value).all():
            raise ValueError(
                f"Expected value argument ({type(value).__name__} of shape {tuple(value.shape)}) "
                f"to be within the support ({support!r}) of the distribution {self!r}, but found "
                f"invalid values:\n{value}"
            )

    def _checked(self, value) -> None:
        if self._validate_args:
            self._validate_sample(value)

    def __repr__(self):
        own = {n: self.__dict__[n] for n in self.arg_constraints if n in self.__dict__}
        shown = (f"{n}: {_shown(v)}" for n, v in own.items())
        return f"{type(self).__name__}({', '.join(shown)})"


def _shown(value):
    """A single number in full, of others the size."""
    if value.dim() == 0:
        return value.item()
    return value if value.numel() == 1 else value.size()


__all__ = ["Distribution"]
