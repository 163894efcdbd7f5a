"""Reductions: sums, means, extremes, norms."""

from __future__ import annotations

import math

from .. import return_types
from ..backend import dtypes
from ..tensor import Tensor
from .core import F32, REGISTRY, Op, op, type_name, wrap_dim, wrap_dims, write_out
from .elementwise_core import no_kernel
from .samples import case

_DIM_CASES = lambda m: [  # noqa: E731
    case(m(3, 4)), case(m(3, 4), 1), case(m(2, 3, 4), (0, -1)), case(m(2, 3), 0, True), case(m()),
    case(m(0, 3), 0),
]


def _widened_sum(xp, input, dim, keepdim):
    axes = wrap_dims(dim, input.ndim)
    if input.ndim == 0:
        return input.copy()
    if input.dtype.kind == "b" or (input.dtype.kind in "iu" and input.dtype.itemsize < 8):
        return input.sum(axis=axes, keepdims=keepdim, dtype=dtypes.int64.np)
    return xp.sum(input, axis=axes, keepdims=keepdim)


@op(samples=_DIM_CASES, method=False, fused=True, name="sum", node_name="Sum")
def _sum(xp, input, dim=None, keepdim=False):
    return _widened_sum(xp, input, dim, keepdim)


@_sum.grad("input")
def _(F, g, input_shape, dim, keepdim):
    return spread(F, g, input_shape, dim, keepdim)


def spread(F, g, shape, dim, keepdim):
    """The gradient of a reduction, repeated over the reduced dims."""
    shape = tuple(shape)
    if not keepdim and len(shape):
        axes = wrap_dims(dim, len(shape))
        g = F.reshape(g, tuple(1 if i in axes else s for i, s in enumerate(shape)))
    return F.expand(g, shape)


@op(samples=_DIM_CASES, method=False, fused=True, name="mean", node_name="Mean")
def _mean(xp, input, dim=None, keepdim=False):
    axes = wrap_dims(dim, input.ndim)
    if input.ndim == 0:
        return input.copy()
    if input.size == 0:
        return xp.full_like(xp.sum(input, axis=axes, keepdims=keepdim), math.nan)
    return xp.mean_over(input, axes, keepdim)


@_mean.grad("input")
def _(F, g, input_shape, dim, keepdim):
    count = math.prod(input_shape[a] for a in wrap_dims(dim, len(input_shape))) or 1
    return spread(F, g / count, input_shape, dim, keepdim)


def sum(input: Tensor, dim=None, keepdim=False, *, dtype=None, out=None) -> Tensor:
    """Sum over ``dim`` (one, several, or None for all); integers add up in int64."""
    if dtype is not None and dtype.np != input._data.dtype:
        input = REGISTRY["to_dtype"].apply((input, dtype))
    return _sum.call(input, dim, keepdim, out=out)


def mean(input: Tensor, dim=None, keepdim=False, *, dtype=None, out=None) -> Tensor:
    """Mean over ``dim`` (one, several, or None for all).

    Raises:
        RuntimeError: for integers without a floating ``dtype``.
    """
    have = dtype or input.dtype
    if have.category < dtypes.FLOAT:
        raise RuntimeError(
            "mean(): could not infer output dtype. Input dtype must be either a floating point or "
            f"complex dtype. Got: {type_name(have)}"
        )
    if dtype is not None:
        input = REGISTRY["to_dtype"].apply((input, dtype))
    return _mean.call(input, dim, keepdim, out=out)


@op(nout=2, method=False, moves=True, samples=lambda m: [
    case(m(3, 4), 1), case(m(2, 3, 4), 0, True), case(m(), 0)], aux=False)
def max_dim(xp, input, dim, keepdim=False):
    return _extreme(xp, xp.argmax, "max", input, dim, keepdim)


@op(nout=2, method=False, moves=True, samples=lambda m: [
    case(m(3, 4), 1), case(m(2, 3, 4), 0, True), case(m(), 0)])
def min_dim(xp, input, dim, keepdim=False):
    return _extreme(xp, xp.argmin, "min", input, dim, keepdim)


def _no_complex(name, input, kinds="c"):
    if input.dtype.kind in kinds:
        kind = "bool" if input.dtype.kind == "b" else "complex"
        raise RuntimeError(f"{name}(): does not support {kind} input")


def _extreme(xp, arg, name, input, dim, keepdim):
    _no_complex(name, input)
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


def _pick_gradient(F, g, input_shape, out1, dim, keepdim):
    g = g[0]
    if not input_shape:
        return g
    if not keepdim:
        g, out1 = F.unsqueeze(g, dim), F.unsqueeze(out1, dim)
    return F.gather_backward(g, input_shape, dim, out1)


max_dim.grad("input")(_pick_gradient)
min_dim.grad("input")(_pick_gradient)


def _full_extreme(name):
    def forward(xp, input):
        if input.size == 0:
            raise RuntimeError(
                f"{name}(): Expected reduction dim to be specified for input.numel() == 0. "
                "Specify the reduction dim with the 'dim' argument."
            )
        if input.dtype.kind == "c":
            raise no_kernel(f"{name}_all", dtypes.FROM_NP[input.dtype])
        return getattr(xp, name)(input)

    made = Op(forward, name=f"{name}_all", method=False, node_name=name.capitalize(), moves=True,
              samples=lambda m: [case(m(3, 4)), case(m())])

    @made.grad("input")
    def _(F, g, input, out):
        hits = F.eq(input, out)  # ties share the gradient evenly
        return hits * (g / F.sum(hits))

    return made


_max_all, _min_all = _full_extreme("max"), _full_extreme("min")


def named(kind: str, values, out=None):
    """Results as ``torch.return_types.<kind>``; written to the tensors of ``out`` if given."""
    if out is not None:
        values = [write_out(v, o, kind) for v, o in zip(values, out, strict=True)]
    return getattr(return_types, kind)(values)


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
    out = kwargs.pop("out", None)
    pair = (max_dim if name == "max" else min_dim).call(input, *args, **kwargs)
    return named(name, pair, out=out)


def _arg(name):
    def forward(xp, input, dim=None, keepdim=False):
        _no_complex(name, input, "bc")
        if input.size == 0 and dim is None:
            raise IndexError(f"{name}(): Expected reduction dim to be specified for "
                             "input.numel() == 0. Specify the reduction dim with the 'dim' "
                             "argument.")
        if dim is not None:
            dim = wrap_dim(dim, input.ndim)
            _check_not_empty(name, input, (dim,), False)
        if input.ndim == 0:
            return xp.zeros((), dtypes.int64.np)
        out = getattr(xp, name)(input, axis=dim, keepdims=keepdim)
        return xp.asarray(out).astype(dtypes.int64.np, copy=False)

    forward.__doc__ = f"Index of the {name[3:]}imum over ``dim``, or of the flattened input."
    return Op(forward, name=name, moves=True, samples=lambda m: [
        case(m(3, 4)), case(m(3, 4), 1), case(m(3, 4), 0, True)])


argmax, argmin = _arg("argmax"), _arg("argmin")


def _logic(name):
    def forward(xp, input, dim=None, keepdim=False):
        axes = wrap_dims(dim, input.ndim)
        out = getattr(xp, name)(input, axis=axes if input.ndim else None, keepdims=keepdim)
        # for uint8, PyTorch's first bool, the answer is uint8 too
        return xp.asarray(out).astype(input.dtype if input.dtype.kind == "u" else bool, copy=False)

    forward.__doc__ = f"Whether {name} elements over ``dim`` are nonzero."
    return Op(forward, name=name, moves=True, samples=lambda m: [
        case(m.bool(3, 4)), case(m.bool(3, 4), 1), case(m(3, 4), 0, True)])


all, any = _logic("all"), _logic("any")


@op(samples=lambda m: [case(m(3, 4), 1), case(m(3, 4), 0, True), case(m(2, 3, 4), (0, 2)),
                        case(m.complex(3, 4), 1)])
def logsumexp(xp, input, dim, keepdim=False):
    """log Σ exp(input) over ``dim``, shifted by the maximum against overflow."""
    axes = wrap_dims(dim, input.ndim)
    if input.dtype.kind in "biu":
        input = input.astype(dtypes.get_default_dtype().np)
    top = xp.max(input.real, axis=axes, keepdims=True)
    top = xp.where(xp.isfinite(top), top, top.dtype.type(0))
    out = xp.log(xp.sum(xp.exp(input - top), axis=axes, keepdims=True)) + top
    return out if keepdim else xp.squeeze(out, axis=axes)


@logsumexp.grad("input")
def _(F, g, input, out, dim, keepdim):
    axes = wrap_dims(dim, input.ndim)
    shape = tuple(1 if i in axes else s for i, s in enumerate(input.shape))
    g, out = F.reshape(g, shape), F.reshape(out, shape)
    return g * F.conj(F.exp(input - out))


_VAR_CASES = lambda m: [  # noqa: E731
    case(m(3, 4)), case(m(3, 4), 1), case(m(2, 3, 4), (0, -1), 0, True), case(m(5), 0, 2),
    case(m.complex(3, 4), 1),
]


def _centred(F, input, dim):
    axes = wrap_dims(dim, input.ndim) or None
    return input - F.mean(input, axes, True)


def _left(input, dim, correction):
    return math.prod(input.shape[a] for a in wrap_dims(dim, input.ndim)) - correction


@op(method=False, fused=True, name="variance", node_name="Var", samples=_VAR_CASES)
def _var(xp, input, dim=None, correction=1, keepdim=False):
    return xp.variance(input, wrap_dims(dim, input.ndim) or None, correction, keepdim)


@_var.grad("input")
def _(F, g, input, dim, correction, keepdim):
    left = _left(input, dim, correction)
    scale = 2 / left if left > 0 else math.nan
    return spread(F, g * scale, input.shape, dim, keepdim) * _centred(F, input, dim)


@op(method=False, fused=True, name="deviation", node_name="Std", samples=_VAR_CASES)
def _std(xp, input, dim=None, correction=1, keepdim=False):
    return xp.variance(input, wrap_dims(dim, input.ndim) or None, correction, keepdim, root=True)


@_std.grad("input")
def _(F, g, input, out, dim, correction, keepdim):
    left = _left(input, dim, correction)
    zero = F.eq(out, 0)  # a constant row: PyTorch's choice of gradient there is 0
    slope = g / (F.where(zero, F.ones_like(out), out) * (left if left > 0 else math.nan))
    slope = F.where(zero, F.zeros_like(slope), slope)
    return spread(F, slope, input.shape, dim, keepdim) * _centred(F, input, dim)


def _variance_arguments(name, input, dim, unbiased, correction):
    """(dim, correction) from PyTorch's forms: ``var(x, unbiased)``, ``var(x, dim, unbiased)``."""
    if not isinstance(input, Tensor):
        raise TypeError(f"{name}(): argument 'input' (position 1) must be Tensor, not "
                        f"{type(input).__name__}")
    if input.dtype.category < dtypes.FLOAT:
        raise RuntimeError("std and var only support floating point and complex dtypes")
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    if correction is None:
        correction = 1 if unbiased is None or unbiased else 0
    elif unbiased is not None:
        raise TypeError(f"{name}() takes unbiased or correction, not both")
    return dim, correction


def var(
    input: Tensor, dim=None, unbiased=None, keepdim=False, *, correction=None, out=None
) -> Tensor:
    """Variance over ``dim``; divides by n − correction (1 unless given; ``unbiased=False``: 0)."""
    dim, correction = _variance_arguments("var", input, dim, unbiased, correction)
    return _var.call(input, dim, correction, keepdim, out=out)


def std(
    input: Tensor, dim=None, unbiased=None, keepdim=False, *, correction=None, out=None
) -> Tensor:
    """Standard deviation over ``dim``: the square root of ``var``."""
    dim, correction = _variance_arguments("std", input, dim, unbiased, correction)
    return _std.call(input, dim, correction, keepdim, out=out)


def var_mean(
    input, dim=None, unbiased=None, keepdim=False, *, correction=None
) -> tuple[Tensor, Tensor]:
    """(variance, mean) over ``dim``."""
    spread_of = var(input, dim, unbiased, keepdim, correction=correction)
    return spread_of, mean(input, None if isinstance(dim, bool) else dim, keepdim)


def std_mean(
    input, dim=None, unbiased=None, keepdim=False, *, correction=None
) -> tuple[Tensor, Tensor]:
    """(standard deviation, mean) over ``dim``."""
    spread_of = std(input, dim, unbiased, keepdim, correction=correction)
    return spread_of, mean(input, None if isinstance(dim, bool) else dim, keepdim)


def norm(input: Tensor, p="fro", dim=None, keepdim=False, *, dtype=None) -> Tensor:
    """The p-norm of the elements over ``dim``."""
    if dtype is not None:
        input = REGISTRY["to_dtype"].call(input, dtype)
    if input.dtype.category < dtypes.FLOAT:
        raise RuntimeError(
            "linalg.vector_norm: Expected a floating point or complex tensor as input. Got "
            f"{type_name(input.dtype)}"
        )
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
    dims = () if dim is None else dim
    return REGISTRY["amax" if largest else "amin"].call(input, dims, keepdim)


@op(method=False, fused=True, samples=lambda m: [
    case(m(3, 4)), case(m(3, 4), 1), case(m(2, 3, 4), (0, 2), True)])
def norm2(xp, input, dim=None, keepdim=False):
    """The Euclidean norm over ``dim``."""
    return xp.euclidean_norm(input, wrap_dims(dim, input.ndim), keepdim)


@norm2.grad("input")
def _(F, g, input, out, dim, keepdim):
    scale = F.where(F.eq(out, 0), F.zeros_like(out), g / out)  # subgradient 0 at the origin
    return input * spread(F, scale, input.shape, dim, keepdim)


def _check_not_empty(name, input, axes, whole):
    if input.size or input.ndim == 0:
        return
    if whole:
        raise RuntimeError(
            f"{name}(): Expected reduction dim to be specified for input.numel() == 0. Specify the "
            "reduction dim with the 'dim' argument."
        )
    for d in axes:
        if not input.shape[d]:
            raise IndexError(f"{name}(): Expected reduction dim {d} to have non-zero size.")


def _reduced_extreme(name, function):
    def forward(xp, input, dim=(), keepdim=False):
        _no_complex(name, input)
        axes = wrap_dims(dim, input.ndim)
        _check_not_empty(name, input, axes, dim in ((), None))
        return getattr(xp, function)(input, axis=axes if input.ndim else None, keepdims=keepdim)

    forward.__doc__ = f"The {function}imum over ``dim``; ties share the gradient evenly."
    made = Op(forward, name=name, moves=True, samples=lambda m: [
        case(m(3, 4), 1), case(m(2, 3, 4), (0, 2), True), case(m(3, 4))])

    @made.grad("input")
    def _(F, g, input, out, dim, keepdim):
        axes = wrap_dims(dim, input.ndim)
        hits = F.eq(input, spread(F, out, input.shape, axes or None, keepdim))
        count = F.sum(hits, axes or None, True)
        return spread(F, g, input.shape, axes or None, keepdim) * hits / count

    return made


amax, amin = _reduced_extreme("amax", "max"), _reduced_extreme("amin", "min")

COMPOSITES = {"sum": sum, "mean": mean, "max": max, "min": min, "var": var, "std": std,
              "norm": norm}
FUNCTIONS = {"var_mean": var_mean, "std_mean": std_mean}
__all__ = ["COMPOSITES", "F32", "mean", "named", "spread", "sum"]
