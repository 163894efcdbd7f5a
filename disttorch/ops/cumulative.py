"""Running sums and their kin, differences, and what is counted or integrated along a dim."""

from __future__ import annotations

import math

from ..backend import dtypes, namespace_of
from ..tensor import Tensor, wrap
from .casts import to
from .core import REGISTRY, Op, op, wrap_dim, write_out
from .elementwise_core import no_kernel
from .reduce import named
from .samples import case

_RUNNING = lambda m: [  # noqa: E731
    case(m(3, 4), 1), case(m(2, 3, 2), 0), case(m(), 0), case(m(0, 3), 0), case(m(5), -1)]


def _running(xp, ufunc, input, dim):
    dim = wrap_dim(dim, input.ndim)
    if input.ndim == 0:
        return input.copy()
    return getattr(xp, ufunc)(input, axis=dim)


def _integers_in_int64(xp, input):
    return input.astype(dtypes.int64.np) if input.dtype.kind in "biu" else input


@op(method=False, node_name="Cumsum", samples=_RUNNING)
def cumulative_sum(xp, input, dim):
    return _running(xp, "cumsum", _integers_in_int64(xp, input), dim)


@cumulative_sum.grad("input")
def _(F, g, dim):
    return _reversed_sum(F, g, dim)


def _reversed_sum(F, g, dim):
    """Sums from each element to the end."""
    return g if g.ndim == 0 else F.reversed_sum(g, dim)


@op(method=False, samples=lambda m: [case(m(3, 4), 1), case(m(2, 0, 3), 0), case(m(4), -1)])
def reversed_sum(xp, input, dim):
    """Sums from each element to the end of ``dim``: the adjoint of ``cumsum``."""
    return xp.reversed_cumsum(input, wrap_dim(dim, input.ndim))


@reversed_sum.grad("input")
def _(F, g, dim):
    return F.cumulative_sum(g, dim)


@op(method=False, node_name="Cumprod", samples=lambda m: [
    *_RUNNING(m), case(m.complex(3, 2), 0), case(m.zeroed(3, 4), 1)])
def cumulative_product(xp, input, dim):
    return _running(xp, "cumprod", _integers_in_int64(xp, input), dim)


@cumulative_product.grad("input")
def _(F, g, input, out, dim):
    if input.ndim == 0:
        return g
    dim = wrap_dim(dim, input.ndim)
    if not bool(F.any(F.eq(input, 0))):
        return _reversed_sum(F, g * F.conj(out), dim) / F.conj(input)
    # an element times zero cannot be had back by division: leave out one element at a time
    parts = []
    for k in range(input.shape[dim]):
        one = _along(F, input, dim, k, k + 1)
        others = F.cat([_along(F, input, dim, 0, k), F.ones_like(one),
                        _along(F, input, dim, k + 1, None)], dim)
        tail = _along(F, g * F.conj(F.cumulative_product(others, dim)), dim, k, None)
        parts.append(F.sum(tail, dim, True))
    return F.cat(parts, dim)


def _along(F, input, dim, start, stop):
    return F.slice(input, (slice(None),) * dim + (slice(start, stop),))


@op(method=True, samples=_RUNNING)
def logcumsumexp(xp, input, dim):
    """log Σ exp of the elements up to each one, without overflow."""
    if input.dtype.kind in "biu":
        raise no_kernel("logcumsumexp_out", dtypes.FROM_NP[input.dtype])
    dim = wrap_dim(dim, input.ndim)
    return xp.running("logaddexp", input, dim) if input.ndim else input.copy()


@logcumsumexp.grad("input")
def _(F, g, input, out, dim):
    if input.ndim == 0 or 0 in input.shape:
        return g
    # d out[i] / d x[k] = exp(x[k] − out[i]) <= 1 for k <= i; others are masked before exp
    dim = wrap_dim(dim, input.ndim)
    x, y = F.unsqueeze(input, dim), F.unsqueeze(out, dim + 1)  # i is dim, k is dim + 1
    n = input.shape[dim]
    x, y = F.transpose(x, dim, dim + 1), F.transpose(y, dim, dim + 1)  # k is dim, i is dim + 1
    later = _later_mask(F, input, dim, n)
    share = F.exp(F.where(later, x - y, F.zeros_like(x - y)))
    share = F.where(later, share, F.zeros_like(share))
    return F.sum(F.unsqueeze(g, dim) * share, dim + 1)


def _later_mask(F, like, dim, n):
    """n×n (dims k, i at ``dim``), true where i >= k."""
    ones = F.ones_like(F.reshape(_along(F, F.reshape(like, (-1,)), 0, 0, 1), ()))
    shape = (n, n) + (1,) * (like.ndim - dim - 1)
    steps = F.cumulative_sum(F.expand(ones, (n,)), 0)
    return F.reshape(F.ge(F.unsqueeze(steps, 0), F.unsqueeze(steps, 1)), shape)


def cumsum(input: Tensor, dim: int, *, dtype=None, out=None) -> Tensor:
    """Running sums along ``dim``; integers add up in int64."""
    return cumulative_sum.call(input if dtype is None else to(input, dtype), dim, out=out)


def cumprod(input: Tensor, dim: int, *, dtype=None, out=None) -> Tensor:
    """Running products along ``dim``; integers multiply in int64."""
    return cumulative_product.call(input if dtype is None else to(input, dtype), dim, out=out)


# ---------------------------------------------------------------- running extremes
def _running_extreme(name, ufunc, doc):
    def forward(xp, input, dim):
        if input.dtype.kind == "c":
            raise no_kernel(name, dtypes.FROM_NP[input.dtype])
        dim = wrap_dim(dim, input.ndim)
        if input.ndim == 0:
            return input.copy(), xp.zeros((), dtypes.int64.np)
        values = xp.running(ufunc, input, dim)
        # the newest of equal elements holds the record; after a NaN only another NaN does
        hit = (input == values) | (input != input)
        place = xp.arange(input.shape[dim]).reshape([-1 if i == dim else 1
                                                     for i in range(input.ndim)])
        index = xp.running("maximum", xp.where(hit, place, 0), dim)
        return values, index.astype(dtypes.int64.np, copy=False)

    made = Op(forward, name=f"{name}_pair", node_name=name.capitalize(), method=False, nout=2,
              moves=True, samples=_RUNNING)

    @made.grad("input")
    def _(F, g, input, out1, dim):
        if input.ndim == 0:
            return g[0]
        return F.scatter_add(F.zeros_like(input), dim, out1, g[0])

    def function(input, dim, *, out=None):
        return named(name, made.call(input, dim), out=out)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = doc
    return function


cummax = _running_extreme("cummax", "maximum", "(values, indices) of the largest element so far.")
cummin = _running_extreme("cummin", "minimum", "(values, indices) of the smallest element so far.")


# ---------------------------------------------------------------- differences and integrals
def diff(input: Tensor, n=1, dim=-1, prepend=None, append=None, *, out=None) -> Tensor:
    """Differences of neighbours along ``dim``, n times, of the input with ends attached."""
    if not input.ndim:
        raise RuntimeError("diff expects input to be at least one-dimensional")
    if n < 0:
        raise RuntimeError(f"order must be non-negative but got {n}")
    dim = wrap_dim(dim, input.ndim)
    ends = [t for t in (prepend, input, append) if t is not None]
    result = REGISTRY["cat"].call(ends, dim) if len(ends) > 1 else input
    step = REGISTRY["logical_xor" if result.dtype is dtypes.bool else "plain_sub"].call
    for _ in range(min(n, result.shape[dim])):
        size = result.shape[dim]
        result = step(result.narrow(dim, 1, size - 1), result.narrow(dim, 0, size - 1))
    return result if out is None else write_out(result, out, "diff")


def _trapezoids(name, y, x, dx, dim):
    """The areas of the trapezoids between neighbours along ``dim``."""
    dim = wrap_dim(dim, y.ndim)
    size = y.shape[dim]
    if size < 2:
        return y.narrow(dim, 0, 0)
    pairs = y.narrow(dim, 1, size - 1) + y.narrow(dim, 0, size - 1)
    if x is None:
        return pairs * (dx / 2)
    if x.ndim == 1:
        if x.shape[0] != size:
            raise RuntimeError(
                f"{name}: There must be one `x` value for each sample point, got {x.shape[0]} for "
                f"{size}"
            )
        width = diff(x).reshape([-1 if i == dim else 1 for i in range(y.ndim)])
    else:
        width = diff(x, dim=dim - y.ndim if x.ndim < y.ndim else dim)
    return pairs * width / 2.0


def trapezoid(y: Tensor, x=None, *, dx=1, dim=-1) -> Tensor:
    """The integral of samples ``y`` along ``dim`` by the trapezoid rule, spaced by x or dx."""
    if y.dtype is dtypes.bool:
        raise RuntimeError("trapezoid: received a bool input for `y`, but bool is not supported")
    return _trapezoids("trapezoid", y, x, dx, dim).sum(dim)


def cumulative_trapezoid(y: Tensor, x=None, *, dx=1, dim=-1) -> Tensor:
    """The running integral of samples ``y`` along ``dim`` by the trapezoid rule."""
    if y.dtype is dtypes.bool:
        raise RuntimeError(
            "cumulative_trapezoid: received a bool input for `y`, but bool is not supported"
        )
    return cumsum(_trapezoids("cumulative_trapezoid", y, x, dx, dim), dim)


def gradient(input: Tensor, *, spacing=1, dim=None, edge_order=1) -> list:
    """The derivative of samples along each of ``dim``: central differences, one-sided at ends.

    Args:
        spacing: one number, one per dim, or one vector of coordinates per dim.
        edge_order: 1 or 2, the order of the ends' one-sided formula.
    """
    dims = range(input.ndim) if dim is None else [dim] if isinstance(dim, int) else dim
    dims = [wrap_dim(d, input.ndim) for d in dims]
    steps = list(spacing) if isinstance(spacing, (tuple, list)) else [spacing] * len(dims)
    if len(steps) != len(dims):
        raise RuntimeError(
            f"torch.gradient expected spacing to be unspecified, a scalar or a list of length "
            f"{len(dims)}, got {len(steps)}"
        )
    if edge_order not in (1, 2):
        raise RuntimeError("torch.gradient only supports edge_order=1 and edge_order=2.")
    for d in dims:
        if input.shape[d] <= edge_order:
            raise RuntimeError(
                f"torch.gradient expected each dimension size to be at least edge_order+1, got "
                f"{input.shape[d]}"
            )
    return [_derivative(input, d, s, edge_order) for d, s in zip(dims, steps, strict=True)]


def _derivative(f, dim, spacing, edge_order):
    n = f.shape[dim]
    if isinstance(spacing, Tensor) and spacing.ndim:
        h = diff(spacing).reshape([-1 if i == dim else 1 for i in range(f.ndim)])
    else:
        one = wrap(namespace_of(f._data).ones([n - 1 if i == dim else 1 for i in range(f.ndim)]))
        h = to(one, f.dtype if f.dtype.category >= dtypes.FLOAT else dtypes.get_default_dtype())
        h = h * spacing

    def at(t, start, count):
        return t.narrow(dim, start, count)

    a, b = at(h, 0, n - 2), at(h, 1, n - 2)  # the steps before and after the inner points
    inner = (at(f, 2, n - 2) * a * a - at(f, 0, n - 2) * b * b
             + at(f, 1, n - 2) * (b * b - a * a)) / (a * b * (a + b))
    slopes = diff(f, dim=dim) / h
    first, last = at(slopes, 0, 1), at(slopes, n - 2, 1)
    if edge_order == 2:
        h0, h1 = at(h, 0, 1), at(h, 1, 1)
        first = first - (at(slopes, 1, 1) - first) * h0 / (h0 + h1)
        h0, h1 = at(h, n - 2, 1), at(h, n - 3, 1)
        last = last - (at(slopes, n - 3, 1) - last) * h0 / (h0 + h1)
    return REGISTRY["cat"].call([first, inner, last], dim)


def cross(input: Tensor, other: Tensor, dim=None, *, out=None) -> Tensor:
    """The vector product along ``dim`` (size 3); by default the first dim of that size."""
    if input.ndim != other.ndim:
        raise RuntimeError(
            "linalg.cross: inputs must have the same number of dimensions, got "
            f"{input.ndim} and {other.ndim}"
        )
    if dim is None:
        dim = next((i for i, s in enumerate(input.shape) if s == 3), None)
        if dim is None:
            raise RuntimeError("no dimension of size 3 in input")
    dim = wrap_dim(dim, input.ndim)
    if input.shape[dim] != 3 or other.shape[dim] != 3:
        raise RuntimeError(
            f"linalg.cross: inputs dimension {dim} must have length 3. Got {input.shape[dim]} and "
            f"{other.shape[dim]}"
        )
    xp = namespace_of(input._data)
    ahead, behind = wrap(xp.asarray([1, 2, 0])), wrap(xp.asarray([2, 0, 1]))
    pick = REGISTRY["index_select"].call
    result = pick(input, dim, ahead) * pick(other, dim, behind) \
        - pick(input, dim, behind) * pick(other, dim, ahead)
    return result if out is None else write_out(result, out, "cross")


# ---------------------------------------------------------------- covariance
def cov(input: Tensor, *, correction=1, fweights=None, aweights=None) -> Tensor:
    """The covariance matrix of variables in rows, observations in columns.

    Args:
        correction: subtracted from the number of observations.
        fweights: how often each observation occurred (integers); aweights: its importance.
    """
    if input.ndim > 2:
        raise RuntimeError(
            "cov(): expected input to have two or fewer dimensions but got an input with "
            f"{input.ndim} dimensions"
        )
    if input.dtype is dtypes.bool:
        raise RuntimeError("cov(): bool dtype is not supported for input")
    rows = input.reshape(1, -1) if input.ndim < 2 else input
    if rows.dtype.category < dtypes.FLOAT:
        rows = to(rows, dtypes.get_default_dtype())
    weights = fweights
    if aweights is not None:
        weights = aweights if fweights is None else fweights * aweights
    if weights is None:
        weights = wrap(namespace_of(rows._data).ones(rows.shape[1], rows.real.dtype.np))
    total = weights.sum()
    centred = rows - (rows * weights).sum(1, True) / total
    lost = correction if aweights is None else correction * (weights * aweights).sum() / total
    products = REGISTRY["matmul"].call(centred * weights, centred.conj().transpose(0, 1))
    result = products / (total - lost).clamp(min=0)
    return result.reshape(()) if input.ndim < 2 else result


def corrcoef(input: Tensor) -> Tensor:
    """Pearson's correlation matrix of variables in rows, observations in columns."""
    matrix = cov(input)
    if not matrix.ndim:
        return matrix / matrix
    scale = matrix.diagonal().real.sqrt() if matrix.dtype.is_complex else matrix.diagonal().sqrt()
    return (matrix / scale.unsqueeze(1) / scale.unsqueeze(0)).clamp(-1, 1)


# ---------------------------------------------------------------- counting
def bincount(input: Tensor, weights=None, minlength=0) -> Tensor:
    """How often each of 0, 1, 2, … occurs in a vector, or the sum of its weights."""
    if minlength < 0:
        raise RuntimeError("minlength should be >= 0")
    if input.dtype.category != dtypes.INT:
        raise no_kernel("bincount", input.dtype)
    if input.ndim != 1 or (input.numel() and int(input._data.min()) < 0):
        raise RuntimeError("bincount only supports 1-d non-negative integral inputs.")
    xp = namespace_of(input._data)
    if weights is None:
        return wrap(xp.bincount(input._data, minlength=minlength).astype(dtypes.int64.np))
    if weights.shape != input.shape:
        raise RuntimeError("weights should be 1-d and have the same length as input")
    counts = xp.bincount(input._data, weights._data, minlength)
    single = weights.dtype is dtypes.float32
    return wrap(counts.astype(dtypes.float32.np if single else dtypes.float64.np))


def _range_of(name, array, low, high):
    """The histogram's range: the data's own where low and high are equal."""
    if low == high and array.size:
        low, high = float(array.min()), float(array.max())
    if low == high:
        low, high = low - 1, high + 1
    if not (math.isfinite(low) and math.isfinite(high)):
        raise RuntimeError(f"{name}: range of [{low}, {high}] is not finite")
    if low > high:
        raise RuntimeError(f"{name}: max must be larger than min")
    return low, high


def histc(input: Tensor, bins=100, min=0, max=0, *, out=None) -> Tensor:
    """Counts of the elements in ``bins`` equal bins of [min, max] (of the data if both are 0)."""
    if input.dtype not in (dtypes.float32, dtypes.float64, dtypes.float16, dtypes.bfloat16):
        raise no_kernel("histogram", input.dtype)
    if bins <= 0:
        raise RuntimeError("bins must be > 0")
    array = input._data.reshape(-1)
    xp = namespace_of(array)
    low, high = _range_of("torch.histc", array, float(min), float(max))
    counts, _ = xp.histogram(array.astype(dtypes.float64.np), bins, (low, high))
    result = wrap(counts.astype(array.dtype))
    return result if out is None else write_out(result, out, "histc")


def histogram(input: Tensor, bins, *, range=None, weight=None, density=False, out=None):
    """(hist, bin_edges): counts, weights or densities of the elements in bins.

    Args:
        bins: their number, or a vector of increasing edges.
    """
    if input.dtype not in (dtypes.float32, dtypes.float64):
        raise no_kernel("histogram", input.dtype)
    array = input._data.reshape(-1)
    xp = namespace_of(array)
    if isinstance(bins, Tensor):
        if bins.dtype is not input.dtype:
            raise RuntimeError(
                "torch.histogram(): input tensor and bins tensors should have the same dtype, but "
                f"got input with dtype {input.dtype} and bins with dtype {bins.dtype}"
            )
        edges, limits = bins._data, None
    else:
        low, high = range if range is not None else (0.0, 0.0)
        edges, limits = int(bins), _range_of("torch.histogram", array, low, high)
    weights = None if weight is None else weight._data.reshape(-1)
    hist, edges = xp.histogram(array, edges, limits, density=density, weights=weights)
    pair = [wrap(a.astype(array.dtype)) for a in (hist, edges)]
    return named("histogram", pair, out)


COMPOSITES = {
    f.__name__: f
    for f in (cumsum, cumprod, cummax, cummin, diff, cross, cov, corrcoef, bincount,
              histc, histogram)
}
FUNCTIONS: dict = {"trapezoid": trapezoid, "trapz": trapezoid, "gradient": gradient,
             "cumulative_trapezoid": cumulative_trapezoid}
INPLACE = ("cumsum", "cumprod")
