"""More reductions: products, NaN-skipping sums, order statistics, counts and distances."""

from __future__ import annotations

import math

from ..backend import dtypes, namespace_of
from ..tensor import Tensor, wrap
from .casts import to
from .core import REGISTRY, Op, op, type_name, wrap_dim, wrap_dims, write_out
from .elementwise_core import no_kernel
from .reduce import named, norm, spread
from .reduce import sum as _sum
from .samples import case
from .views import sizes


def _cast_first(input, dtype):
    return input if dtype is None else to(input, dtype)


def _wide(dtype):
    """bool and small integers multiply and add up in int64."""
    return dtypes.int64.np if dtype.kind in "biu" else dtype


# ---------------------------------------------------------------- products
@op(method=False, name="product", node_name="Prod", samples=lambda m: [
    case(m(3, 4)), case(m(3, 4), 1), case(m(2, 3), 0, True), case(m()), case(m(0, 3), 0),
    case(m.zeroed(3, 4), 1), case(m.zeroed(2, 2)), case(m.complex(2, 3), 1),
])
def _product(xp, input, dim=None, keepdim=False):
    if dim is not None:
        dim = wrap_dim(dim, input.ndim)
    if input.ndim == 0:
        return input.astype(_wide(input.dtype))
    return xp.prod(input, axis=dim, keepdims=keepdim, dtype=_wide(input.dtype))


@_product.grad("input")
def _(F, g, input, dim, keepdim):
    if input.ndim == 0:
        return g
    if dim is None:
        flat = F.reshape(input, (-1,))
        return F.reshape(g * F.conj(_product_of_others(F, flat, 0)), tuple(input.shape))
    others = _product_of_others(F, input, wrap_dim(dim, input.ndim))
    return spread(F, g, input.shape, dim, keepdim) * F.conj(others)


def _product_of_others(F, input, dim):
    """The product of all elements along ``dim`` but each one; unlike a quotient right for 0."""
    n = input.shape[dim]
    if n < 2:
        return F.ones_like(input)
    one = F.ones_like(_part(F, input, dim, 0, 1))
    before = F.cumulative_product(F.cat([one, _part(F, input, dim, 0, n - 1)], dim), dim)
    turned = F.flip(_part(F, input, dim, 1, n), (dim,))
    after = F.flip(F.cumulative_product(F.cat([one, turned], dim), dim), (dim,))
    return before * after


def _part(F, input, dim, start, stop):
    return F.slice(input, (slice(None),) * dim + (slice(start, stop),))


def prod(input: Tensor, dim=None, keepdim=False, *, dtype=None, out=None) -> Tensor:
    """Product over one ``dim`` or all; integers multiply in int64."""
    return _product.call(_cast_first(input, dtype), dim, keepdim, out=out)


# ---------------------------------------------------------------- sums and counts
def nansum(input: Tensor, dim=None, keepdim=False, *, dtype=None, out=None) -> Tensor:
    """Sum over ``dim`` where NaN counts as 0."""
    if input.dtype.is_complex:
        raise RuntimeError("nansum does not support complex inputs")
    input = _cast_first(input, dtype)
    if input.dtype.is_floating_point:
        input = input.masked_fill(input.isnan(), 0.0)
    return _sum(input, dim, keepdim, out=out)


def nanmean(input: Tensor, dim=None, keepdim=False, *, dtype=None, out=None) -> Tensor:
    """Mean over ``dim`` of what is not NaN."""
    if not input.dtype.is_floating_point:
        raise RuntimeError(
            "nanmean(): expected input to have floating point dtype but got "
            f"{type_name(input.dtype)}"
        )
    count = _sum(~input.isnan(), dim, keepdim)
    result = nansum(input, dim, keepdim, dtype=dtype) / count
    return result if out is None else write_out(result, out, "nanmean")


@op(moves=True, out=False, samples=lambda m: [
    case(m.int(3, 4, high=2)), case(m.int(3, 4, high=2), 1),
    case(m.int(2, 3, 4, high=2), (0, 2))])
def count_nonzero(xp, input, dim=None):
    """The number of nonzero elements over ``dim``."""
    axes = wrap_dims(dim, input.ndim)
    found = xp.asarray(input != 0)
    return xp.asarray(xp.sum(found, axis=axes, dtype=dtypes.int64.np)) if input.ndim else \
        found.astype(dtypes.int64.np)


def aminmax(input: Tensor, *, dim=None, keepdim=False, out=None):
    """(smallest, largest) over ``dim`` or all, as ``.min`` and ``.max``."""
    dims = () if dim is None else dim
    if input.numel() == 0 and dim is None:
        raise RuntimeError(
            "aminmax(): cannot compute aminmax over an empty dimension as the operation has no "
            "identity."
        )
    pair = [REGISTRY[n].call(input, dims, keepdim) for n in ("amin", "amax")]
    return named("aminmax", pair, out)


# ---------------------------------------------------------------- order statistics
def _needs_elements(name, input, dim):
    if input.ndim and input.shape[dim] == 0:
        raise IndexError(f"{name}(): Expected reduction dim {dim} to have non-zero size.")


def _orderable(name, input):
    if input.dtype.kind == "c" or (input.dtype.kind == "b" and name != "mode"):
        raise no_kernel(name, dtypes.FROM_NP[input.dtype])


def _pick(xp, input, index, dim, keepdim):
    """(values, indices) at one index along ``dim``; index has that dim with size 1."""
    values = xp.take_along_axis(input, index, dim)
    if keepdim:
        return values, index
    return xp.squeeze(values, dim), xp.squeeze(index, dim)


def _picked_gradient(F, g, input, out1, dim, keepdim):
    g = g[0]
    if input.ndim == 0:
        return g
    if not keepdim:
        g, out1 = F.unsqueeze(g, dim), F.unsqueeze(out1, dim)
    return F.scatter_add(F.zeros_like(input), dim, out1, g)


def _selecting(name, choose, doc, samples):
    """Register an op that picks one element along ``dim``: (values, indices)."""

    def forward(xp, input, dim=-1, keepdim=False):
        return _select(xp, name, input, dim, keepdim, lambda a, d: choose(xp, a, d))

    forward.__doc__ = doc
    made = Op(forward, name=f"{name}_dim", node_name=name.capitalize(), nout=2, method=False,
              moves=True, samples=samples)
    made.grad("input")(_picked_gradient)
    return made


def _select(xp, name, input, dim, keepdim, choose):
    dim = wrap_dim(dim, input.ndim)
    _orderable(name, input)
    if input.ndim == 0:
        return input.copy(), xp.zeros((), dtypes.int64.np)
    _needs_elements(name, input, dim)
    index = choose(input, dim).astype(dtypes.int64.np, copy=False)
    return _pick(xp, input, index, dim, keepdim)


def _at(xp, order, position, dim):
    return xp.take_along_axis(order, position, dim)


def _middle(xp, a, dim):
    """The index of the lower median; the first NaN if there is one (NaN sorts last)."""
    middle = (a.shape[dim] - 1) // 2
    nans = xp.sum(xp.isnan(a), axis=dim, keepdims=True)
    if not nans.any():
        return _nth(xp, a, middle, dim)
    order = xp.argsort(a, axis=dim, kind="stable")
    return _at(xp, order, xp.where(nans > 0, a.shape[dim] - nans, middle), dim)


def _nth(xp, a, n, dim):
    """The index of the n-th smallest element, without sorting the others."""
    return xp.take(xp.argpartition(a, n, axis=dim), xp.asarray([n]), axis=dim)


def _middle_number(xp, a, dim):
    """The index of the lower median of what is not NaN."""
    order = xp.argsort(a, axis=dim, kind="stable")
    numbers = xp.sum(~xp.isnan(a), axis=dim, keepdims=True)
    return _at(xp, order, xp.maximum((numbers - 1) // 2, 0), dim)


def _most_frequent(xp, a, dim):
    """The index (last one) of the most frequent value; the smallest of several such values."""
    order = xp.argsort(a, axis=dim, kind="stable")
    ordered = xp.moveaxis(xp.take_along_axis(a, order, dim), dim, -1)
    n = ordered.shape[-1]
    new = xp.concatenate([xp.ones((*ordered.shape[:-1], 1), bool),
                          ordered[..., 1:] != ordered[..., :-1]], axis=-1)
    steps = xp.arange(n)
    start = xp.running("maximum", xp.where(new, steps, 0), -1)
    last = xp.argmax(steps - start, axis=-1)[..., None]  # the first longest run's last place
    return _at(xp, order, xp.moveaxis(last, -1, dim), dim)


_DISTINCT = lambda m: [  # noqa: E731
    case(m(3, 5), 1), case(m(4, 3), 0, True), case(m(), 0), case(m(2, 3, 4), -2)]
median_dim = _selecting("median", _middle, "The lower median along ``dim``.", _DISTINCT)
nanmedian_dim = _selecting("nanmedian", _middle_number, "The lower median of what is not NaN.",
                           _DISTINCT)
mode_dim = _selecting("mode", _most_frequent, "The most frequent value along ``dim``.", lambda m: [
    case(m(3, 5), 1), case(m(4, 3), 0, True), case(m(), 0)])


@op(nout=2, method=False, moves=True, node_name="Kthvalue", samples=lambda m: [
    case(m(3, 5), 2), case(m(4, 3), 3, 0, True), case(m(), 1)])
def kthvalue_dim(xp, input, k, dim=-1, keepdim=False):
    dim = wrap_dim(dim, input.ndim)
    _needs_elements("kthvalue", input, dim)
    if not 1 <= k <= (input.shape[dim] if input.ndim else 1):
        raise RuntimeError(f"kthvalue(): selected number k out of range for dimension {dim}")

    return _select(xp, "kthvalue", input, dim, keepdim, lambda a, d: _nth(xp, a, k - 1, d))


kthvalue_dim.grad("input")(_picked_gradient)


def _whole_median(name, picker):
    """``median(input)``: one element; equal elements share its gradient."""

    def forward(xp, input):
        _orderable(name, input)
        flat = input.reshape(-1)
        if not flat.size:
            if input.dtype.kind in "iu":
                return xp.asarray(dtypes.iinfo(dtypes.FROM_NP[input.dtype]).min, input.dtype)
            return xp.asarray(math.nan, input.dtype)
        return flat[picker(xp, flat, 0)[0]]

    made = Op(forward, name=f"{name}_all", node_name=name.capitalize(), method=False, moves=True,
              samples=lambda m: [case(m(3, 5)), case(m()), case(m(6))])

    @made.grad("input")
    def _(F, g, input, out):
        hits = F.logical_or(F.eq(input, out), F.logical_and(F.isnan(input), F.isnan(out)))
        return hits * (g / F.sum(hits))

    return made


_median_all = _whole_median("median", _middle)
_nanmedian_all = _whole_median("nanmedian", _middle_number)


def median(input: Tensor, dim=None, keepdim=False, *, out=None):
    """The lower median of all elements; with ``dim``, (values, indices) along it."""
    if dim is None:
        return _median_all.call(input, out=out)
    return named("median", median_dim.call(input, dim, keepdim), out=out)


def nanmedian(input: Tensor, dim=None, keepdim=False, *, out=None):
    """Like ``median``, of what is not NaN."""
    if dim is None:
        return _nanmedian_all.call(input, out=out)
    return named("nanmedian", nanmedian_dim.call(input, dim, keepdim), out=out)


def mode(input: Tensor, dim=-1, keepdim=False, *, out=None):
    """(values, indices) of the most frequent value along ``dim``; the smallest of several."""
    return named("mode", mode_dim.call(input, dim, keepdim), out=out)


def kthvalue(input: Tensor, k: int, dim=-1, keepdim=False, *, out=None):
    """(values, indices) of the k-th smallest element along ``dim``, k from 1."""
    return named("kthvalue", kthvalue_dim.call(input, k, dim, keepdim), out=out)


# ---------------------------------------------------------------- quantiles
_INTERPOLATIONS = ("linear", "lower", "higher", "midpoint", "nearest")


def _check_quantile(name, input, q, interpolation):
    if input.dtype not in (dtypes.float32, dtypes.float64):
        raise RuntimeError(f"{name}() input tensor must be either float or double dtype")
    if input.numel() == 0:
        raise RuntimeError(f"{name}() input tensor must be non-empty")
    if not isinstance(q, Tensor):
        if not 0 <= q <= 1:
            raise RuntimeError(f"{name}() q must be in the range [0, 1] but got {q}")
        q = to(wrap(namespace_of(input._data).asarray(float(q))), input.dtype)
    if q.ndim > 1:
        raise RuntimeError(f"{name}() q must be a scalar or 1D tensor")
    if q.dtype is not input.dtype:
        raise RuntimeError(f"{name}() q tensor must be same dtype as the input tensor")
    if q.numel() and not bool(((q >= 0) & (q <= 1)).all()):
        raise RuntimeError(f"{name}() q values must be in the range [0, 1]")
    if interpolation not in _INTERPOLATIONS:
        raise RuntimeError(
            f"{name}() interpolation must be one of linear, lower, higher, midpoint or nearest, "
            f"but got {interpolation}"
        )
    return q


def _quantile(name, input, q, dim, keepdim, interpolation, skip_nan, out):
    q = _check_quantile(name, input, q, interpolation)
    dims = input.ndim
    flat = input.reshape(-1) if dim is None else input.unsqueeze(0) if not dims else input
    axis = 0 if dim is None else wrap_dim(dim, dims)
    rows = flat.transpose(axis, -1)
    xp = namespace_of(rows._data)
    ordered = rows.gather(-1, wrap(xp.argsort(rows._data, axis=-1, kind="stable")))
    nans = ordered.isnan()
    numbers = (~nans).sum(-1, True) if skip_nan else ordered.shape[-1]
    place = q.reshape(-1) * (numbers - 1)  # … × Q
    place = place.clamp(min=0) if skip_nan else place.expand((*ordered.shape[:-1], place.shape[-1]))
    if not skip_nan:  # a NaN anywhere is the answer: it sorts last
        place = place.masked_fill(nans.any(-1, True), float(ordered.shape[-1] - 1))
    result = _between(ordered, place, interpolation).transpose(axis, -1)
    # Q comes first if q is a vector, and is dropped if it is a number
    result = result.movedim(axis, 0)
    if keepdim:
        result = result.reshape((-1, *([1] * dims))) if dim is None else result.unsqueeze(axis + 1)
    if dim is not None and not dims:
        result = result.reshape(-1)
    if not q.ndim:
        result = result.squeeze(0)
    return result if out is None else write_out(result, out, name)


def _between(ordered, place, interpolation):
    """Values at fractional places along the last dim."""
    low, high = place.floor(), place.ceil()
    if interpolation in ("lower", "higher", "nearest"):
        index = {"lower": low, "higher": high}.get(interpolation)
        return ordered.gather(-1, (place.round() if index is None else index).long())
    share = 0.5 if interpolation == "midpoint" else place - low
    a, b = ordered.gather(-1, low.long()), ordered.gather(-1, high.long())
    return REGISTRY["lerp"].call(a, b, share)


def quantile(input, q, dim=None, keepdim=False, *, interpolation="linear", out=None) -> Tensor:
    """The q-th quantiles (q in [0, 1], a number or vector) along ``dim`` or of all elements."""
    return _quantile("quantile", input, q, dim, keepdim, interpolation, False, out)


def nanquantile(input, q, dim=None, keepdim=False, *, interpolation="linear", out=None) -> Tensor:
    """Like ``quantile``, of what is not NaN."""
    return _quantile("nanquantile", input, q, dim, keepdim, interpolation, True, out)


def sum_to_size(input: Tensor, *size) -> Tensor:
    """Sum over the dims that broadcasting from ``size`` would have repeated."""
    shape, have = sizes(size), tuple(input.shape)
    tail = have[len(have) - len(shape):]
    if len(shape) > len(have) or any(s not in (1, h) for s, h in zip(shape, tail, strict=True)):
        raise RuntimeError(f"size {list(shape)} is not expandable to size {list(have)}.")
    return REGISTRY["sum_to"].call(input, shape)


# ---------------------------------------------------------------- distances
def dist(input: Tensor, other: Tensor, p=2) -> Tensor:
    """The p-norm of input − other."""
    return norm(input - other, p)


def renorm(input: Tensor, p, dim: int, maxnorm, *, out=None) -> Tensor:
    """The slices along ``dim`` scaled down to p-norm ``maxnorm`` where they exceed it."""
    if input.ndim < 2:
        raise RuntimeError(
            f"renorm: input needs at least 2 dimensions, got {input.ndim} dimensions"
        )
    if p <= 0:
        raise RuntimeError("renorm: non-positive-norm not supported")
    if maxnorm < 0:
        raise RuntimeError(f"renorm: expected maxnorm to be >= 0 but got {maxnorm}")
    dim = wrap_dim(dim, input.ndim)
    size = norm(input, p, [d for d in range(input.ndim) if d != dim], True)
    factor = REGISTRY["where"].call(size > maxnorm, maxnorm / (size + 1e-7), 1.0)
    result = input * factor
    return result if out is None else write_out(result, out, "renorm")


COMPOSITES = {
    f.__name__: f
    for f in (prod, nansum, nanmean, aminmax, median, nanmedian, mode, kthvalue, quantile,
              nanquantile, dist, renorm)
}
INPLACE = ("renorm",)
METHODS = {"sum_to_size": sum_to_size}
