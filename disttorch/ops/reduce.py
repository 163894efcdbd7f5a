"""Reductions: sums, means, extremes, norms."""

from __future__ import annotations

import math

from ..backend import dtypes
from ..tensor import Tensor
from .core import F32, REGISTRY, Op, op, wrap_dim, wrap_dims
from .samples import case

_DIM_CASES = lambda m: [  # noqa: E731
    case(m(3, 4)), case(m(3, 4), 1), case(m(2, 3, 4), (0, -1)), case(m(2, 3), 0, True), case(m()),
    case(m(0, 3), 0),
]  # fmt: skip


def _widened_sum(xp, input, dim, keepdim):
    axes = wrap_dims(dim, input.ndim)
    if input.ndim == 0:
        return input.copy()
    if input.dtype.kind == "b" or (input.dtype.kind in "iu" and input.dtype.itemsize < 8):
        return xp.sum(input, axis=axes, keepdims=keepdim, dtype=dtypes.int64.np)
    return xp.sum(input, axis=axes, keepdims=keepdim)


@op(samples=_DIM_CASES, method=False, name="sum", node_name="Sum")
def _sum(xp, input, dim=None, keepdim=False):
    return _widened_sum(xp, input, dim, keepdim)


@_sum.grad("input")
def _(F, g, input, dim, keepdim):
    return spread(F, g, input.shape, dim, keepdim)


def spread(F, g, shape, dim, keepdim):
    """The gradient of a reduction, repeated over the reduced dims."""
    shape = tuple(shape)
    if not keepdim and len(shape):
        axes = wrap_dims(dim, len(shape))
        g = F.reshape(g, tuple(1 if i in axes else s for i, s in enumerate(shape)))
    return F.expand(g, shape)


@op(samples=_DIM_CASES, method=False, name="mean", node_name="Mean")
def _mean(xp, input, dim=None, keepdim=False):
    axes = wrap_dims(dim, input.ndim)
    if input.ndim == 0:
        return input.copy()
    if input.size == 0:
        return xp.full_like(xp.sum(input, axis=axes, keepdims=keepdim), math.nan)
    total = xp.sum(input, axis=axes, keepdims=keepdim)
    return total / total.dtype.type(math.prod(input.shape[a] for a in axes))


@_mean.grad("input")
def _(F, g, input, dim, keepdim):
    count = math.prod(input.shape[a] for a in wrap_dims(dim, input.ndim)) or 1
    return spread(F, g / count, input.shape, dim, keepdim)


def sum(input: Tensor, dim=None, keepdim=False, *, dtype=None, out=None) -> Tensor:
    """Sum over ``dim`` (one, several, or None for all); integers add up in int64."""
    if dtype is not None:
        input = REGISTRY["to_dtype"].apply((input, dtype)) if dtype.np != input._data.dtype else input
    return _sum.call(input, dim, keepdim, out=out)


def mean(input: Tensor, dim=None, keepdim=False, *, dtype=None, out=None) -> Tensor:
    """Mean over ``dim`` (one, several, or None for all).

    Raises:
        RuntimeError: for integers without a floating ``dtype``.
    """
    have = dtype or input.dtype
    if have.category < dtypes.FLOAT:
        name = "Long" if have is dtypes.int64 else have.name.capitalize()
        raise RuntimeError(
            "mean(): could not infer output dtype. Input dtype must be either a floating point or "
            f"complex dtype. Got: {name}"
        )
    if dtype is not None:
        input = REGISTRY["to_dtype"].apply((input, dtype))
    return _mean.call(input, dim, keepdim, out=out)


@op(nout=2, method=False, moves=True, samples=lambda m: [
    case(m(3, 4), 1), case(m(2, 3, 4), 0, True), case(m(), 0)], aux=False)  # fmt: skip
def max_dim(xp, input, dim, keepdim=False):
    return _extreme(xp, xp.argmax, "max", input, dim, keepdim)


@op(nout=2, method=False, moves=True, samples=lambda m: [
    case(m(3, 4), 1), case(m(2, 3, 4), 0, True), case(m(), 0)])  # fmt: skip
def min_dim(xp, input, dim, keepdim=False):
    return _extreme(xp, xp.argmin, "min", input, dim, keepdim)


def _extreme(xp, arg, name, input, dim, keepdim):
    dim = wrap_dim(dim, input.ndim)
    if input.ndim == 0:
        return input.copy(), xp.zeros((), dtypes.int64.np)
    if input.shape[dim] == 0:
        raise IndexError(f"{name}(): Expected reduction dim {dim} to have non-zero size.")
    index = arg(input, axis=dim, keepdims=True).astype(dtypes.int64.np, copy=False)
    values = xp.take_along_axis(input, index, dim)
    if keepdim:
        return values, index
    return values.squeeze(dim), index.squeeze(dim)


def _pick_gradient(F, g, input, out1, dim, keepdim):
    g = g[0]
    if input.ndim == 0:
        return g
    if not keepdim:
        g, out1 = F.unsqueeze(g, dim), F.unsqueeze(out1, dim)
    return F.scatter_add(F.zeros_like(input), dim, out1, g)


max_dim.grad("input")(_pick_gradient)
min_dim.grad("input")(_pick_gradient)


def _full_extreme(name):
    def forward(xp, input):
        if input.size == 0:
            raise RuntimeError(
                f"{name}(): Expected reduction dim to be specified for input.numel() == 0. "
                "Specify the reduction dim with the 'dim' argument."
            )
        return getattr(xp, name)(input)

    made = Op(forward, name=f"{name}_all", method=False, node_name=name.capitalize(), moves=True,
              samples=lambda m: [case(m(3, 4)), case(m())])  # fmt: skip

    @made.grad("input")
    def _(F, g, input, out):
        hits = F.eq(input, out)  # ties share the gradient evenly
        return hits * (g / F.sum(hits))

    return made


_max_all, _min_all = _full_extreme("max"), _full_extreme("min")


class _Named(tuple):
    """A pair of results with names: ``values`` and ``indices``."""

    __slots__ = ()
    values = property(lambda self: self[0])
    indices = property(lambda self: self[1])


def named(kind: str, pair):
    """``torch.return_types``-like pair that prints with its names."""
    cls = _KINDS.get(kind)
    if cls is None:
        def show(self):
            return f"torch.return_types.{kind}(\nvalues={self[0]!r},\nindices={self[1]!r})"

        cls = _KINDS[kind] = type(kind, (_Named,), {"__slots__": (), "__repr__": show})
    return cls(pair)


_KINDS: dict = {}


def max(input: Tensor, *args, **kwargs):
    """``max(input)``: the largest element; ``max(input, dim, keepdim)``: values and indices;
    ``max(input, other)``: elementwise."""
    return _max_or_min("max", input, args, kwargs)


def min(input: Tensor, *args, **kwargs):
    """``min(input)``: the smallest element; ``min(input, dim, keepdim)``: values and indices;
    ``min(input, other)``: elementwise."""
    return _max_or_min("min", input, args, kwargs)


def _max_or_min(name, input, args, kwargs):
    if not args and not kwargs:
        return (_max_all if name == "max" else _min_all).call(input)
    if args and isinstance(args[0], Tensor) or "other" in kwargs:
        elementwise = REGISTRY["maximum" if name == "max" else "minimum"]
        return elementwise.call(input, *args, **kwargs)
    return named(name, (max_dim if name == "max" else min_dim).call(input, *args, **kwargs))


def _arg(name):
    def forward(xp, input, dim=None, keepdim=False):
        if input.size == 0 and dim is None:
            raise IndexError(f"{name}(): Expected reduction dim to be specified for "
                             "input.numel() == 0. Specify the reduction dim with the 'dim' "
                             "argument.")  # fmt: skip
        if dim is not None:
            dim = wrap_dim(dim, input.ndim)
        if input.ndim == 0:
            return xp.zeros((), dtypes.int64.np)
        out = getattr(xp, name)(input, axis=dim, keepdims=keepdim)
        return xp.asarray(out).astype(dtypes.int64.np, copy=False)

    forward.__doc__ = f"Index of the {name[3:]}imum over ``dim``, or of the flattened input."
    return Op(forward, name=name, moves=True, samples=lambda m: [
        case(m(3, 4)), case(m(3, 4), 1), case(m(3, 4), 0, True)])  # fmt: skip


argmax, argmin = _arg("argmax"), _arg("argmin")


def _logic(name):
    def forward(xp, input, dim=None, keepdim=False):
        axes = wrap_dims(dim, input.ndim)
        out = getattr(xp, name)(input, axis=axes if input.ndim else None, keepdims=keepdim)
        return xp.asarray(out)

    forward.__doc__ = f"Whether {name} elements over ``dim`` are nonzero."
    return Op(forward, name=name, moves=True, samples=lambda m: [
        case(m.bool(3, 4)), case(m.bool(3, 4), 1), case(m(3, 4), 0, True)])  # fmt: skip


all, any = _logic("all"), _logic("any")


@op(samples=lambda m: [case(m(3, 4), 1), case(m(3, 4), 0, True), case(m(2, 3, 4), (0, 2))])
def logsumexp(xp, input, dim, keepdim=False):
    """log Σ exp(input) over ``dim``, shifted by the maximum against overflow."""
    axes = wrap_dims(dim, input.ndim)
    top = xp.max(input, axis=axes, keepdims=True)
    top = xp.where(xp.isfinite(top), top, input.dtype.type(0))
    out = xp.log(xp.sum(xp.exp(input - top), axis=axes, keepdims=True)) + top
    return out if keepdim else xp.squeeze(out, axis=axes)


@logsumexp.grad("input")
def _(F, g, input, out, dim, keepdim):
    axes = wrap_dims(dim, input.ndim)
    shape = tuple(1 if i in axes else s for i, s in enumerate(input.shape))
    g, out = F.reshape(g, shape), F.reshape(out, shape)
    return g * F.exp(input - out)


def var(input: Tensor, dim=None, unbiased=None, keepdim=False, *, correction=None) -> Tensor:
    """Variance over ``dim``; divides by n − correction (1 unless given; ``unbiased=False``: 0)."""
    if isinstance(dim, bool):  # var(input, unbiased)
        dim, unbiased = None, dim
    if correction is None:
        correction = 1 if unbiased is None or unbiased else 0
    axes = wrap_dims(dim, input.ndim)
    count = math.prod(input.shape[a] for a in axes)
    centred = input - mean(input, axes or None, True)
    total = sum(centred * centred, axes or None, keepdim)
    left = count - correction
    return total / left if left > 0 else total * (math.nan if count else 1)


def std(input: Tensor, dim=None, unbiased=None, keepdim=False, *, correction=None) -> Tensor:
    """Standard deviation over ``dim``: the square root of ``var``."""
    v = var(input, dim, unbiased, keepdim, correction=correction)
    return REGISTRY["sqrt"].call(v)


def norm(input: Tensor, p="fro", dim=None, keepdim=False, *, dtype=None) -> Tensor:
    """The p-norm of the elements over ``dim``."""
    if dtype is not None:
        input = REGISTRY["to_dtype"].call(input, dtype)
    p = 2.0 if p in ("fro", None) else float(p)
    if p == 2.0:
        return norm2.call(input, dim, keepdim)
    size = REGISTRY["abs"].call(input)
    if p == math.inf or p == -math.inf:
        return _amax(size, dim, keepdim, p > 0)
    if p == 0:
        return sum(REGISTRY["to_dtype"].call(size != 0, input.dtype), dim, keepdim)
    if p == 1:
        return sum(size, dim, keepdim)
    return sum(size**p, dim, keepdim) ** (1.0 / p)


def _amax(input, dim, keepdim, largest):
    return REGISTRY["amax" if largest else "amin"].call(input, dim if dim is not None else (), keepdim)


@op(method=False, samples=lambda m: [
    case(m(3, 4)), case(m(3, 4), 1), case(m(2, 3, 4), (0, 2), True)])  # fmt: skip
def norm2(xp, input, dim=None, keepdim=False):
    """The Euclidean norm over ``dim``."""
    axes = wrap_dims(dim, input.ndim)
    if len(axes) == input.ndim and not keepdim:
        flat = input.reshape(-1)
        return xp.sqrt(xp.vdot(flat, flat).real)
    return xp.sqrt(xp.sum((input * input.conj()).real, axis=axes, keepdims=keepdim))


@norm2.grad("input")
def _(F, g, input, out, dim, keepdim):
    scale = F.where(F.eq(out, 0), F.zeros_like(out), g / out)  # subgradient 0 at the origin
    return input * spread(F, scale, input.shape, dim, keepdim)


def _reduced_extreme(name, function):
    def forward(xp, input, dim=(), keepdim=False):
        axes = wrap_dims(dim, input.ndim)
        return getattr(xp, function)(input, axis=axes if input.ndim else None, keepdims=keepdim)

    forward.__doc__ = f"The {function}imum over ``dim``; ties share the gradient evenly."
    made = Op(forward, name=name, moves=True, samples=lambda m: [
        case(m(3, 4), 1), case(m(2, 3, 4), (0, 2), True), case(m(3, 4))])  # fmt: skip

    @made.grad("input")
    def _(F, g, input, out, dim, keepdim):
        axes = wrap_dims(dim, input.ndim)
        hits = F.eq(input, spread(F, out, input.shape, axes or None, keepdim))
        count = F.sum(hits, axes or None, True)
        return spread(F, g, input.shape, axes or None, keepdim) * hits / count

    return made


amax, amin = _reduced_extreme("amax", "max"), _reduced_extreme("amin", "min")

COMPOSITES = {"sum": sum, "mean": mean, "max": max, "min": min, "var": var, "std": std,
              "norm": norm}  # fmt: skip
__all__ = ["COMPOSITES", "F32", "mean", "named", "spread", "sum"]
