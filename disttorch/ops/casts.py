"""Casts, copies and constants of a tensor's kind."""

from __future__ import annotations

from ..autograd.graph import share_version
from ..backend import device_of, devices, dtypes, layouts, namespace_for, namespace_of
from ..tensor import Tensor, wrap
from . import memory_formats
from .core import Op, argument_must_be_tensor, op
from .samples import case


@op(method=False, moves=True, node_name="ToCopy", samples=lambda m: [
    case(m(3, 4), dtypes.float64), case(m(), dtypes.float64), case(m(2, 0), dtypes.float64)])
def to_dtype(xp, input, dtype):
    """A copy in another dtype."""
    if input.dtype.kind == "c" and dtype.category < dtypes.COMPLEX:
        input = input.real
    return xp.cast(input, dtype.np)


def _record_float_casts(*call):
    """No gradient flows to integers and bools: such a cast is not recorded."""
    if call[1][1].category >= dtypes.FLOAT:
        Op.record(to_dtype, *call)


to_dtype.record = _record_float_casts


@to_dtype.grad("input")
def _(F, g):
    return g  # the engine brings every gradient to the dtype of its input


@op(moves=True, samples=lambda m: [case(m(3, 4)), case(m())])
def clone(xp, input, memory_format=None):
    """A copy with memory of its own, in the graph; its layout is the input's or ``memory_format``."""
    last = memory_formats.wants_last(memory_format, input.ndim)
    return xp.duplicate(input) if last is None else layouts.copied(xp, input, last)


@clone.grad("input")
def _(F, g):
    return g


@op(moves=True, method=False, samples=lambda m: [case(m(3, 4).t())], node_name="Clone")
def clone_contiguous(xp, input):
    """A row-major copy."""
    return xp.contiguous_copy(input)


@clone_contiguous.grad("input")
def _(F, g):
    return g


@op(moves=True, method=False, samples=lambda m: [case(m(3, 4))])
def zeros_like(xp, input):
    return xp.zeros(input.shape, input.dtype)


@zeros_like.grad("input")
def _(F, g):
    return None


@op(moves=True, method=False, samples=lambda m: [case(m(3, 4), (2, 5))])
def zeros_shaped(xp, input, shape):
    """Zeros of another shape, in the input's dtype and on its device."""
    return xp.zeros(shape, input.dtype)


@zeros_shaped.grad("input")
def _(F, g):
    return None


@op(moves=True, method=False, samples=lambda m: [case(m(3, 4))])
def ones_like(xp, input):
    return xp.ones(input.shape, input.dtype)


@ones_like.grad("input")
def _(F, g):
    return None


@op(method=False, fused=True, samples=lambda m: [
    case(m(3, 4), (3, 4)), case(m(2, 3, 4), (3, 1)), case(m(2, 3), ())])
def sum_to(xp, input, shape):
    """Sum over what broadcasting from ``shape`` repeated."""
    return input if input.shape == tuple(shape) else xp.sum_rows_to(input, tuple(shape))


@sum_to.grad("input")
def _(F, g, input_shape):
    return F.expand(g, input_shape)


def type_as(input: Tensor, other: Tensor) -> Tensor:
    """``input`` in the dtype and on the device of ``other``."""
    if not isinstance(other, Tensor):
        raise argument_must_be_tensor("type_as", "other", 1, other)
    return to(input, other.device, other.dtype)


def detach(input: Tensor) -> Tensor:
    """The same memory outside the graph; in-place changes are still seen by version checks."""
    t = wrap(input._data)
    t._ver = share_version(input)
    return t


def detach_(input: Tensor) -> Tensor:
    """Take this tensor out of the graph; it becomes a leaf.

    Raises:
        RuntimeError: for a view, whose base would still be in the graph.
    """
    if input._base is not None:
        raise RuntimeError("Can't detach views in-place. Use detach() instead.")
    input._node, input._rg = None, False
    return input


def to(input, *args, **kwargs) -> Tensor:
    """The tensor in another dtype or on another device; itself if nothing changes.

    Call as ``to(dtype)``, ``to(device)``, ``to(device, dtype)`` or ``to(other)``, with
    ``non_blocking``, ``copy`` and ``memory_format`` as keywords.
    """
    format = kwargs.pop("memory_format", None)
    device, dtype, copy, non_blocking = parse_to(args, kwargs)
    result = input
    if device is not None and not _on(input._data, device):
        result = to_device.call(result, device, non_blocking)
    if dtype is not None and dtype.np != result._data.dtype:
        result = to_dtype.call(result, dtype)
    if format is not None:
        result = memory_formats.laid_out(result, format)
    if copy and result is input:
        result = clone.call(input)
    return result


def parse_to(args, kwargs):
    """(device, dtype, copy, non_blocking) from the arguments of ``Tensor.to`` and ``Module.to``."""
    kwargs = dict(kwargs)
    device, dtype = kwargs.pop("device", None), kwargs.pop("dtype", None)
    copy, non_blocking = kwargs.pop("copy", False), kwargs.pop("non_blocking", False)
    kwargs.pop("memory_format", None)
    if "other" in kwargs:
        args = (kwargs.pop("other"), *args)
    if kwargs:
        raise TypeError(f"to() got an unexpected keyword argument '{next(iter(kwargs))}'")
    flags = []
    for a in args:
        if isinstance(a, Tensor):
            device, dtype = a.device, a.dtype
        elif isinstance(a, dtypes.dtype):
            dtype = a
        elif isinstance(a, bool):
            flags.append(a)
        elif isinstance(a, (str, int, devices.device)):
            device = a
        elif a is not None:
            raise TypeError(f"to() received an invalid argument of type {type(a).__name__}: {a!r}")
    if flags:  # positional non_blocking, copy
        non_blocking, copy = flags[0], flags[1] if len(flags) > 1 else copy
    if device is not None:
        device = devices.device(device)
    if dtype is not None and not isinstance(dtype, dtypes.dtype):
        raise TypeError(f"to(): argument 'dtype' must be torch.dtype, not {type(dtype).__name__}")
    return device, dtype, copy, bool(non_blocking)


def _on(array, device) -> bool:
    have = device_of(array)
    return have.type == device.type and (device.index is None or have.index in (None, device.index))


@op(method=False, moves=True, node_name="ToCopy")
def to_device(xp, input, device, non_blocking=False):
    """A copy on another device; with ``non_blocking`` and pinned memory nobody waits for it."""
    there = namespace_for(device)
    if layouts.is_channels_last(input) and layouts.is_dense(input, True):
        moved = there.from_host(xp.to_host(layouts.moved(input), non_blocking), non_blocking)
        return layouts.moved_back(moved)
    return there.from_host(xp.to_host(input, non_blocking), non_blocking)


def _finish_elsewhere(xp, args, mask, out, aux):
    """The result belongs to the other device's namespace: this one's would copy it back."""
    return Op.finish(to_device, namespace_of(out), args, mask, out, aux)


to_device.finish = _finish_elsewhere


@to_device.grad("input")
def _(F, g, input):
    if isinstance(g, Tensor):
        return to(g, input.device)
    return namespace_of(input).from_host(namespace_of(g).to_host(g))


def _caster(name, dtype):
    def cast(input, memory_format=None) -> Tensor:
        return to(input, dtype)

    cast.__name__, cast.__doc__ = name, f"The tensor as {dtype!r}; itself if it is that already."
    return cast


METHODS = {
    name: _caster(name, getattr(dtypes, name))
    for name in ("half", "float", "double", "bfloat16", "short", "int", "long", "bool", "cfloat",
                 "cdouble")
}
METHODS |= {
    "byte": _caster("byte", dtypes.uint8), "char": _caster("char", dtypes.int8),
    "to": to, "detach": detach, "detach_": detach_,
    "type_as": type_as,
    "cpu": lambda input, memory_format=None: to(input, "cpu"),
    "cuda": lambda input, device=None, non_blocking=False, memory_format=None: to(
        input, "cuda" if device is None else device, non_blocking=non_blocking
    ),
}
COMPOSITES = {"detach": detach}
