"""Calls of elementwise ops: broadcasting, type promotion, Python numbers, and a short fast path.

Two tensors of the same float type, or one and a Python number, are by far the most frequent call,
and the arithmetic of a small tensor costs less than looking at its arguments. ``BinaryOp`` therefore
checks for exactly that case first and leaves everything else to the general path. On a device whose
namespace computes such ops in one launch (``xp.fused``) it goes there by a short path of its own.
"""

from __future__ import annotations

from ..autograd.autocast import switch as autocast
from ..autograd.modes import state
from ..backend import CPU, dtypes, namespace_of, ndarray
from ..tensor import Tensor
from .core import (
    F32,
    F64,
    REGISTRY,
    Op,
    Plan,
    _asarray,
    _new,
    argument_error,
    device_error,
    make_node,
    type_name,
    write_out,
)

FAST = (dtypes.float32.np, dtypes.float64.np)
# Floats that ``xp.fused`` has kernels for
FUSED = frozenset({dtypes.float16.np, dtypes.bfloat16.np, *FAST})


class ElementwiseOp(Op):
    """An op on broadcast elements.

    Args:
        kind: "same" computes in the promoted type; "float" takes integers to the default float
            type first; "compare" gives bool from the promoted type.
        free: operands that broadcast but take no part in promotion (a condition).
        lacks: kinds of (promoted) dtypes that it refuses: "b" bool, "i" integers, "f", "c".
        tensor_only: operands that may not be Python numbers.
    """

    def __init__(self, forward, *, kind="same", refuses_bool=None, free=(), lacks="",
                 tensor_only=(), **options):
        self.kind, self.refuses_bool = kind, refuses_bool
        self.lacks = frozenset("bifc".index(k) for k in lacks)
        self._tensor_only = tensor_only
        super().__init__(forward, **options)
        self.free = frozenset(self.params.index(n) for n in free)
        self.tensor_only = frozenset(self.params.index(n) for n in tensor_only)

    def apply(self, args):
        if autocast.on and self.casts:
            args = autocast.cast(self, args)
        raw, tensors, numbers = list(args), [], []
        for i in self.slots:
            t = raw[i]
            if isinstance(t, Tensor):
                tensors.append(i)
                raw[i] = t._data
            elif t is None and i in self.optional:
                continue
            elif i in self.tensor_only:
                raise argument_error(self, i, t)
            elif isinstance(t, (int, float, complex)):
                numbers.append(i)
            elif isinstance(t, CPU.generic):  # a NumPy scalar counts as a Python number
                raw[i] = t.item()
                numbers.append(i)
            else:
                raise argument_error(self, i, t)
        if not tensors:
            raise argument_error(self, self.slots[0], args[self.slots[0]])
        first = raw[tensors[0]]
        for i in tensors:
            if raw[i].__class__ is not first.__class__:
                args = self._same_device(args, raw, tensors)
                first = raw[tensors[0]]
                break
        xp = CPU if first.__class__ is ndarray else namespace_of(first)
        promoted = [i for i in tensors if i not in self.free]
        dtype = dtypes.result_type([raw[i] for i in promoted], [raw[i] for i in numbers])
        if self.lacks and dtype.category in self.lacks:
            raise no_kernel(self.name, dtype)
        if self.kind == "float" and dtype.category < dtypes.FLOAT:
            dtype = dtypes.get_default_dtype()
        if self.refuses_bool:
            self._check_bool(raw, tensors, numbers, dtype)
        args = self._cast(xp, args, raw, promoted, numbers, dtype)
        mask = 0
        for i in tensors:
            t = args[i]
            if t._rg or (t._base is not None and t._base._rg):
                mask |= 1 << i
        try:
            out = self._forward(xp, raw)
        except ValueError as error:
            raise broadcast_error([raw[i] for i in tensors], error) from None
        aux = None
        if self.aux:
            out, aux = out
        return self.finish(xp, args, mask, out, aux)

    def _check_bool(self, raw, tensors, numbers, dtype):
        if dtype is dtypes.bool:
            raise RuntimeError(self.refuses_bool)
        if any(raw[i].dtype.kind == "b" for i in tensors) or any(
            isinstance(raw[i], bool) for i in numbers
        ):
            raise RuntimeError(
                "Subtraction, the `-` operator, with a bool tensor is not supported. If you are "
                "trying to invert a mask, use the `~` or `logical_not()` operator instead."
            )

    def _same_device(self, args, raw, tensors):
        """0-dim CPU tensors may meet GPU tensors, and go there; any other mix is an error.

        Returns:
            the arguments, with copies that gradients flow through in place of such tensors.
        """
        args, here = list(args), raw[tensors[0]]
        there = next(raw[i] for i in tensors if raw[i].__class__ is not here.__class__)
        on_gpu = there if here.__class__ is ndarray else here
        place = namespace_of(on_gpu).device_of(on_gpu)
        for i in tensors:
            if raw[i].__class__ is not on_gpu.__class__:
                if raw[i].__class__ is not ndarray or raw[i].ndim:
                    raise device_error(self.name.removeprefix("plain_"), here, there)
                args[i] = REGISTRY["to_device"].call(args[i], place)
                raw[i] = args[i]._data
        return tuple(args)

    def _cast(self, xp, args, raw, tensors, numbers, dtype):
        """Bring all operands to the computing type, recorded where gradients flow through."""
        args = list(args)
        for i in tensors:
            if raw[i].dtype != dtype.np:
                if (args[i]._rg or args[i]._base is not None) and state.enabled:
                    args[i] = REGISTRY["to_dtype"].apply((args[i], dtype))
                    raw[i] = args[i]._data
                else:
                    raw[i] = xp.cast(raw[i], dtype.np)
        for i in numbers:
            if dtype.category <= dtypes.INT:
                # wraps around like PyTorch instead of NumPy's OverflowError
                made = CPU.asarray(raw[i]).astype(dtype.np)
                raw[i] = xp.asarray(made) if xp.fused is None else made[()]
        return tuple(args)


class BinaryOp(ElementwiseOp):
    """An elementwise op of two operands, with a short path for the frequent case."""

    def __init__(self, forward, *, ufunc=None, **options):
        self.ufunc = ufunc
        super().__init__(forward, tensors=("input", "other"), **options)

    def _make_call(self):
        apply, function = self.apply, getattr(CPU, self.ufunc) if self.ufunc else None
        plans, owner = self.plans, self
        takes_numbers = "other" not in self._tensor_only

        def general(input, other, out):
            result = apply((input, other))
            return result if out is None else write_out(result, out, owner.name)

        def fused(input, other):
            """A tensor of another array class, and anything: one launch if there is a kernel for it."""
            a = input._data
            kernels = None if state.inference or autocast.on and owner.casts else namespace_of(a).fused
            if kernels is None or owner.kernel is None or a.dtype not in FUSED:
                return apply((input, other))
            mask = 0
            if other.__class__ is Tensor or isinstance(other, Tensor):
                b = other._data
                if b.__class__ is not a.__class__ or b.dtype is not a.dtype:
                    return apply((input, other))
                mask = 2 if other._rg or other._base is not None and other._base._rg else 0
            elif (other.__class__ is float or other.__class__ is int) and takes_numbers:
                b = other
            else:
                return apply((input, other))
            try:
                r = getattr(kernels, owner.kernel)(a, b)
            except ValueError as error:
                raise broadcast_error([a, b], error) from None
            if r is NotImplemented:
                return apply((input, other))
            return recorded(input, other, mask, r)

        def recorded(input, other, mask, r):
            result = _new(Tensor)
            result._data = r
            if input._rg or input._base is not None and input._base._rg:
                mask |= 1
            if mask and state.enabled and owner.rule_slots:
                plan = plans.get(mask)
                if plan is None:
                    plan = plans[mask] = Plan(owner, mask)
                result._node = make_node(plan, (input, other), result, r, None)
                result._rg = True
            return result

        def call(input, other, *, out=None):
            if input.__class__ is not Tensor and not isinstance(input, Tensor):
                return general(input, other, out)
            a = input._data
            if a.__class__ is not ndarray:
                return fused(input, other) if out is None else general(input, other, out)
            dtype = a.dtype
            if other.__class__ is Tensor or isinstance(other, Tensor):
                b = other._data
                if (
                    b.dtype is not dtype or dtype not in FAST or out is not None
                    or b.__class__ is not ndarray
                ):
                    return general(input, other, out)
                mask = 2 if other._rg or other._base is not None and other._base._rg else 0
            elif (
                (other.__class__ is float or other.__class__ is int)
                and (dtype is F32 or dtype is F64) and out is None and takes_numbers
            ):
                b, mask = other, 0
            else:
                return general(input, other, out)
            if function is None or state.inference or autocast.on and owner.casts:
                return apply((input, other))
            try:
                r = function(a, b)
            except ValueError as error:
                raise broadcast_error([a, b], error) from None
            if r.__class__ is not ndarray:
                r = _asarray(r)
            if mask or input._rg or input._base is not None:
                return recorded(input, other, mask, r)
            result = _new(Tensor)
            result._data = r
            return result

        return call


def no_kernel(name, dtype):
    """The error for a dtype that an operation is not defined for."""
    return NotImplementedError(f'"{name}_cpu" not implemented for \'{type_name(dtype)}\'')


def broadcast_error(arrays, error):
    """PyTorch's words for shapes that do not broadcast; other errors pass through."""
    shapes = [a.shape for a in arrays if hasattr(a, "shape")]
    width = max((len(s) for s in shapes), default=0)
    for k in range(1, width + 1):
        sizes = [s[-k] for s in shapes if len(s) >= k and s[-k] != 1]
        if len(set(sizes)) > 1:
            a, b = [s[-k] if len(s) >= k else 1 for s in shapes[:2]] if len(shapes) == 2 else sizes[:2]
            return RuntimeError(
                f"The size of tensor a ({a}) must match the size of tensor b ({b}) at "
                f"non-singleton dimension {width - k}"
            )
    return error


def expand_error(have, want):
    """PyTorch's words for a shape that does not broadcast to the shape ``want``."""
    lead = len(want) - len(have)
    for i in range(len(have) - 1, -1, -1):
        if i + lead < 0 or have[i] not in (1, want[i + lead]):
            size = want[i + lead] if i + lead >= 0 else 1
            return RuntimeError(
                f"The expanded size of the tensor ({size}) must match the existing size ({have[i]}) "
                f"at non-singleton dimension {max(i + lead, 0)}.  Target sizes: {list(want)}.  "
                f"Tensor sizes: {list(have)}"
            )
    return RuntimeError(f"a tensor of shape {list(have)} does not expand to {list(want)}")


class UnaryOp(ElementwiseOp):
    """An elementwise op of one operand without parameters."""

    def __init__(self, forward, *, ufunc=None, **options):
        self.ufunc = ufunc
        super().__init__(forward, tensors=("input",), **options)

    def _make_call(self):
        apply, name = self.apply, self.name
        function = getattr(CPU, self.ufunc) if self.ufunc else None
        owner, plans = self, self.plans

        def recorded(input, r):
            result = _new(Tensor)
            result._data = r
            if (input._rg or input._base is not None and input._base._rg) and state.enabled:
                if owner.rule_slots:
                    plan = plans.get(1)
                    if plan is None:
                        plan = plans[1] = Plan(owner, 1)
                    result._node = make_node(plan, (input,), result, r, None)
                    result._rg = True
            return result

        def fused(input):
            a = input._data
            kernels = None if state.inference or autocast.on and owner.casts else namespace_of(a).fused
            if kernels is None or a.dtype not in FUSED:
                return apply((input,))
            r = getattr(kernels, owner.kernel)(a)
            return apply((input,)) if r is NotImplemented else recorded(input, r)

        def composed(input, *, out=None):
            """Without a ufunc: a device's kernel, or the general path."""
            if out is not None:
                return write_out(apply((input,)), out, name)
            if input.__class__ is not Tensor or input._data.__class__ is ndarray:
                return apply((input,))
            return fused(input)

        def call(input, *, out=None):
            if out is not None:
                return write_out(apply((input,)), out, name)
            if not isinstance(input, Tensor) or state.inference or autocast.on and owner.casts:
                return apply((input,))
            a = input._data
            if a.__class__ is not ndarray:
                return apply((input,)) if owner.kernel is None else fused(input)
            if a.dtype not in FAST:
                return apply((input,))
            r = function(a)
            if r.__class__ is not ndarray:
                r = _asarray(r)
            if input._rg or input._base is not None:
                return recorded(input, r)
            result = _new(Tensor)
            result._data = r
            return result

        if function is not None:
            return call
        if self.kernel is not None:
            return composed
        return super()._make_call()


def elementwise(tensors=("input",), **options):
    """Decorator that registers an elementwise op with parameters or several operands."""

    def register(forward):
        return ElementwiseOp(forward, tensors=tensors, **options)

    return register


def unary(**options):
    """Decorator that registers an elementwise op of one operand."""
    return lambda forward: UnaryOp(forward, **options)


def binary(**options):
    """Decorator that registers an elementwise op of ``input`` and ``other``."""
    return lambda forward: BinaryOp(forward, **options)


__all__ = ["BinaryOp", "ElementwiseOp", "UnaryOp", "binary", "broadcast_error", "elementwise",
           "expand_error", "no_kernel",
           "unary"]
