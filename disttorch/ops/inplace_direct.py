"""In-place operations without a detour: a kernel, or a ufunc, writes straight into the memory.

Elsewhere a result is computed beside the target and copied (``inplace.py``): an activation would be read
and written once more than it must be.
"""

from __future__ import annotations

from ..autograd.autocast import switch as autocast
from ..autograd.graph import share_version
from ..autograd.modes import state
from ..backend import CPU, namespace_of, ndarray
from ..backend.storage import is_writeable
from ..tensor import Tensor, wrap
from .elementwise_core import FAST, FUSED

_OF_INTEGERS, _LONG = ("add", "sub", "mul"), 1 << 63


def may_overlap(a, b) -> bool:
    """Whether writing to ``a`` may change ``b`` where it is still to be read."""
    if a is b:
        return False
    roots = [x if x.base is None else x.base for x in (a, b)]
    return roots[0] is roots[1] and (a.shape != b.shape or a.strides != b.strides
                                     or a.data.ptr != b.data.ptr)


def computed_there(op, target, args) -> bool:
    """Whether a kernel of the namespace has put the result straight into the target's memory."""
    a = target._data
    if a.__class__ is ndarray or op.kernel in (None, "pow") or op.aux or a.dtype not in FUSED:
        return False
    fused = namespace_of(a).fused
    if fused is None or state.inference:
        return False
    if autocast.on and any(x is not y for x, y in zip(autocast.cast(op, args), args)):
        return False
    raw: list = [a]
    for x in args[1:]:
        if isinstance(x, Tensor):
            b = x._data
            if b.__class__ is not a.__class__ or b.dtype != a.dtype or may_overlap(a, b):
                return False
            raw.append(b)
        elif x is None or x.__class__ is float or x.__class__ is int:
            raw.append(x)
        else:
            return False
    try:
        return getattr(fused, op.kernel)(*raw, out=a) is not NotImplemented
    except ValueError:
        return False  # shapes: the ordinary way says what is wrong


def recorded(op, args, array) -> Tensor:
    """The result of an operation that has been computed, with its node."""
    result = wrap(array)
    mask = sum(1 << i for i in op.slots if isinstance(args[i], Tensor) and args[i].requires_grad)
    op.record(mask, args, result, array, None)
    return result


def quick_inplace(made, slow, apply_inplace):
    """``name_`` of a binary op with a ufunc: straight into the memory where no graph is concerned.

    Optimizers live on this call: it takes two float tensors of one dtype, or one and a number.
    """
    function = getattr(CPU, made.ufunc)

    def elsewhere(self, other):
        """Arrays of a namespace with kernels: the same, in one launch."""
        a = self._data
        fused = namespace_of(a).fused
        if fused is None or self._inference:
            return slow(self, other)
        if a.dtype not in FUSED and not (  # such as a layer's count of batches
                a.dtype.kind == "i" and other.__class__ is int and made.kernel in _OF_INTEGERS
                and -_LONG <= other < _LONG):
            return slow(self, other)
        if state.enabled and (self.requires_grad or isinstance(other, Tensor) and other.requires_grad):
            return apply_inplace(made, (self, other))
        if isinstance(other, Tensor):
            b = other._data
            if (b.dtype != a.dtype or b.__class__ is not a.__class__ or may_overlap(a, b)
                    or not is_writeable(a)):
                return slow(self, other)
        elif (other.__class__ is float or other.__class__ is int) and is_writeable(a):
            b = other
        else:
            return slow(self, other)
        try:
            done = getattr(fused, made.kernel)(a, b, out=a)
        except ValueError:
            return slow(self, other)  # which says what is wrong
        if done is NotImplemented:
            return slow(self, other)
        share_version(self)[0] += 1
        return self

    def method(self, other, **kwargs):
        a = self._data
        if a.__class__ is not ndarray:
            return slow(self, other, **kwargs) if kwargs else elsewhere(self, other)
        if kwargs or a.dtype not in FAST or self._inference:
            return slow(self, other, **kwargs)
        if other.__class__ is float or other.__class__ is int:
            b = other
        elif isinstance(other, Tensor) and other._data.dtype is a.dtype:
            b = other._data
            if b.__class__ is not ndarray:
                return slow(self, other)  # which says so
            if state.enabled and other.requires_grad:
                return slow(self, other)
        else:
            return slow(self, other)
        if state.enabled and self.requires_grad:
            return slow(self, other)
        try:
            function(a, b, a)
        except ValueError:
            return slow(self, other)  # which says what is wrong
        if self._ver is None:
            self._ver = [1]
        else:
            self._ver[0] += 1
        return self

    method.__name__ = method.__qualname__ = slow.__name__
    method.__doc__ = slow.__doc__
    return method
