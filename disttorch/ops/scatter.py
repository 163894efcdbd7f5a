"""Writing to and reducing into places along a dim: scatter, scatter_reduce, index_copy, put, ...

In all of them ``index`` says where along ``dim`` each element of ``src`` goes. Gradients of what is
overwritten are zero; where places repeat, the last one written wins, as in PyTorch.
"""

from __future__ import annotations

import math

from ..tensor import Tensor
from .core import REGISTRY, op, type_name, wrap_dim, write_out
from .getset import put_at
from .indexing import _check_gather, _check_index, _crop
from .inplace import apply_inplace, inplace_of_function
from .samples import case
from .views import basic_index, reshape


def _places(xp, index, dim):
    """``index`` as a full index: other dims count up."""
    places = list(xp.indices(index.shape, sparse=True))
    places[dim] = index
    return tuple(places)


# ---------------------------------------------------------------- scatter
@op(tensors=("input", "index", "src"), numbers=("src",), moves=True, method=False, out=False,
    samples=lambda m: [
        case(m(3, 4), 1, m.index(4, 3, 1), m(3, 1)), case(m(3, 4), 0, m.index(3, 1, 4), m(1, 4)),
        case(m(5), -1, m.index(5, 1), 2.5), case(m(), 0, m.index(1), m()),
        case(m(3, 4), 0, m.index(3, 0, 4), m(0, 4)),
    ])
def scatter_into(xp, input, dim, index, src):
    """``input`` with ``src`` (a number, or a tensor as large as ``index`` or larger) put in."""
    dim = _check_gather(xp, "scatter", input, dim, index)
    out = xp.contiguous_copy(input)
    if index.size == 0:
        return out
    array = hasattr(src, "shape")
    if array and src.dtype != input.dtype:
        raise RuntimeError(
            "scatter(): Expected self.dtype to be equal to src.dtype, but got "
            f"{input.dtype.name} and {src.dtype.name}"
        )
    if input.ndim == 0:
        out[...] = src.reshape(-1)[0] if array else src
        return out
    if array:
        _check_src(src, index, input, dim)
        src = _crop(src, index.shape, -1)
    out[_places(xp, index, dim)] = src
    return out


def _check_src(src, index, input, dim):
    if src.ndim != index.ndim or any(i > s for i, s in zip(index.shape, src.shape)):
        raise RuntimeError(
            f"Expected index {list(index.shape)} to be no larger than self {list(input.shape)} "
            f"apart from dimension {dim} and to be no larger size than src {list(src.shape)}"
        )


@scatter_into.grad("input")
def _(F, g, dim, index):
    return F.scatter_into(g, dim, index, 0)


@scatter_into.grad("src")
def _(F, g, dim, index, src_shape):
    return _padded(F, F.gather(g, dim, index), src_shape)


def _padded(F, g, shape):
    """Zeros for the part of ``src`` that lies beyond the index."""
    if tuple(g.shape) == shape:
        return g
    return F.slice_backward(g, shape, tuple(slice(0, s) for s in g.shape))


def scatter(input: Tensor, dim, index, src=None, value=None, *, reduce=None, out=None) -> Tensor:
    """``out[i][index[i][j]] = src[i][j]`` (for dim 1), elsewhere ``input``.

    Args:
        index: int64, no larger than ``src``, nor than ``input`` apart from ``dim``.
        src: a tensor of the input's dtype, or a number (also as ``value=``).
        reduce: "add" or "multiply" to combine with what is there.
    """
    src = value if src is None else src
    if src is None:
        raise TypeError("scatter() missing 1 required positional argument: 'src' (or 'value')")
    if reduce is None:
        result = scatter_into.apply((input, dim, index, src))
    elif reduce in ("add", "multiply"):
        if not isinstance(src, Tensor):
            src = REGISTRY["expand"].call(input.new_tensor(src), index._data.shape)
        result = scatter_reduce(input, dim, index, src, "sum" if reduce == "add" else "prod")
    else:
        raise RuntimeError("reduce argument must be either add or multiply.")
    return result if out is None else write_out(result, out, "scatter")


def scatter_(self, dim, index, src=None, value=None, *, reduce=None) -> Tensor:
    """In-place form of ``scatter``; returns self."""
    if reduce is not None:
        return _scatter_and_combine(self, dim, index, src, value, reduce=reduce)
    src = value if src is None else src
    if src is None:
        raise TypeError("scatter_() missing 1 required positional argument: 'src' (or 'value')")
    return apply_inplace(scatter_into, (self, dim, index, src))


_scatter_and_combine = inplace_of_function("scatter", scatter)


# ---------------------------------------------------------------- scatter_reduce
_REDUCTIONS = ("sum", "prod", "mean", "amax", "amin")


@op(tensors=("input", "index", "src"), method=False, out=False, name="scatter_reduce_into",
    samples=lambda m: [
        case(m(3, 4), dim, m.index(4 if dim else 3, 3, 4), m(3, 4, avoid=(0.0,)), how, own)
        for dim, how, own in ((0, "sum", True), (1, "sum", False), (0, "mean", True),
                              (1, "mean", False), (0, "prod", True), (1, "prod", False),
                              (0, "amax", True), (1, "amax", False), (0, "amin", True))
    ])
def _reduce_into(xp, input, dim, index, src, reduce, include_self=True):
    dim = _check_gather(xp, "scatter", input, dim, index)
    out = xp.contiguous_copy(input)
    if index.size == 0:
        return out
    if input.ndim == 0:
        out, index = out.reshape(1), index.reshape(-1)
        return _reduce_into.forward(xp, out, 0, index, src.reshape(-1), reduce,
                                    include_self).reshape(())
    places = _places(xp, index, dim)
    if not include_self:
        out[places] = _neutral(xp, out.dtype, reduce)
    ufunc = {"prod": "multiply", "amax": "maximum", "amin": "minimum"}.get(reduce, "add")
    xp.scatter_at(ufunc, out, places, src)
    if reduce == "mean":
        count = _counts(xp, out.shape, places, include_self)
        out = out // count if out.dtype.kind in "iu" else (out / count).astype(out.dtype)
    return out


def _neutral(xp, dtype, reduce):
    """What the reduction of nothing begins with."""
    if reduce in ("sum", "mean"):
        return 0
    if reduce == "prod":
        return 1
    if dtype.kind == "b":
        return reduce == "amin"
    low, high = (xp.iinfo(dtype).min, xp.iinfo(dtype).max) if dtype.kind in "iu" else (
        -xp.inf, xp.inf)
    return low if reduce == "amax" else high


def _counts(xp, shape, places, include_self):
    count = (xp.ones if include_self else xp.zeros)(shape, "int64")
    xp.scatter_at("add", count, places, 1)
    return xp.maximum(count, 1)


@_reduce_into.joint_grad("input", "src")
def _(F, g, needs, input, dim, index, src, out, reduce, include_self):
    if reduce == "sum":
        mine, theirs = g, F.gather(g, dim, index)
    elif reduce == "mean":
        count = F.ones_like(input) if include_self else F.zeros_like(input)
        count = F.scatter_add(count, dim, index, F.ones_like(src))
        each = g / F.where(F.eq(count, 0), F.ones_like(count), count)
        mine, theirs = each, F.gather(each, dim, index)
    elif reduce == "prod":
        mine, theirs = _prod_gradient(F, g, input, dim, index, src, include_self)
    else:
        mine, theirs = _extreme_gradient(F, g, input, dim, index, src, out, include_self)
    if not include_self:
        mine = F.scatter_into(mine, dim, index, 0)
    return mine, theirs


def _prod_gradient(F, g, input, dim, index, src, include_self):
    """Products of all other factors: with zeros among them, dividing by a factor will not do."""
    one = F.ones_like
    none_self = F.where(F.eq(input, 0), one(input), input)
    mine = g * (F.scatter_reduce_into(none_self, dim, index, src, "prod", include_self) / none_self)
    zero = F.eq(src, 0)
    zeros_here = F.gather(
        F.scatter_add(F.zeros_like(input), dim, index, F.where(zero, one(src), F.zeros_like(src))),
        dim, index)
    alone = F.logical_and(zero, F.eq(zeros_here, 1))
    # The result without a lone zero is what that zero's gradient is multiplied by
    rest = F.scatter_reduce_into(
        input, dim, index, F.where(alone, one(src), src), "prod", include_self
    )
    full = F.scatter_reduce_into(input, dim, index, src, "prod", include_self)
    divisor = F.where(zero, one(src), src)
    others = F.gather(g * full, dim, index) / divisor
    theirs = F.where(alone, F.gather(g * rest, dim, index), others)
    return mine, theirs


def _extreme_gradient(F, g, input, dim, index, src, out, include_self):
    """Ties share the gradient evenly."""
    mine_is, theirs_is = F.eq(input, out), F.eq(src, F.gather(out, dim, index))
    ones = F.where(theirs_is, F.ones_like(src), F.zeros_like(src))
    own = F.where(mine_is, F.ones_like(input), F.zeros_like(input))
    if not include_self:
        own = F.scatter_into(own, dim, index, 0)
    count = F.scatter_add(own, dim, index, ones)
    each = g / F.where(F.eq(count, 0), F.ones_like(count), count)
    return each * own, F.gather(each, dim, index) * ones


def scatter_reduce(input: Tensor, dim, index, src, reduce, *, include_self=True,
                   out=None) -> Tensor:
    """``src`` reduced into ``input`` at the places of ``index`` along ``dim``.

    Args:
        index: int64, no larger than ``src``, nor than ``input`` apart from ``dim``.
        reduce: "sum", "prod", "mean", "amax" or "amin".
        include_self: whether what was there takes part where anything is written.
    """
    if reduce not in _REDUCTIONS:
        raise RuntimeError(
            f"reduce argument must be either sum, prod, mean, amax or amin, got {reduce}."
        )
    _check_src(src._data, index._data, input._data, dim)
    if src._data.dtype != input._data.dtype:
        raise RuntimeError("scatter(): Expected self.dtype to be equal to src.dtype")
    if src._data.shape != index._data.shape:
        src = basic_index.apply((src, tuple(slice(0, n) for n in index._data.shape)))
    result = _reduce_into.call(input, dim, index, src, reduce, include_self)
    return result if out is None else write_out(result, out, "scatter_reduce")


def index_reduce(
    input: Tensor, dim, index, source, reduce, *, include_self=True, out=None
) -> Tensor:
    """Slices of ``source`` reduced into those of ``input`` at ``index`` along ``dim``.

    ``reduce`` is "prod", "mean", "amax" or "amin".
    """
    if reduce not in ("prod", "mean", "amax", "amin"):
        raise RuntimeError(
            f"reduce argument must be either prod, mean, amax or amin, got {reduce}."
        )
    d = wrap_dim(dim, input.ndim)
    _check_slices("index_reduce", input._data, d, index._data, source._data)
    if input.ndim == 0:
        return scatter_reduce(input, 0, reshape.call(index, ()), reshape.call(source, ()), reduce,
                              include_self=include_self, out=out)
    shape = tuple(-1 if k == d else 1 for k in range(input.ndim))
    wide = REGISTRY["expand"].call(reshape.call(index, shape), source._data.shape)
    return scatter_reduce(input, dim, wide, source, reduce, include_self=include_self, out=out)


# ---------------------------------------------------------------- whole slices
def _check_slices(name, input, dim, index, source):
    if index.ndim > 1:
        raise IndexError(f"{name}_(): Index should have dimension 1 or 0 (got {index.ndim})")
    if source.dtype != input.dtype:
        raise RuntimeError(f"{name}_(): self and source expected to have the same dtype")
    count = source.shape[dim] if source.ndim else 1
    if count != index.size:
        raise IndexError(
            f"{name}_(): Number of indices ({index.size}) should be equal to source.size(dim) "
            f"({count})"
        )


@op(tensors=("input", "index", "source"), moves=True, inplace=True, samples=lambda m: [
    case(m(3, 4), 0, m.index(3, 1), m(1, 4)), case(m(3, 4), 1, m.permutation(4), m(3, 4)),
    case(m(4), -1, m.permutation(4), m(4))])
def index_copy(xp, input, dim, index, source):
    """``input`` with its slices at ``index`` along ``dim`` replaced by those of ``source``."""
    dim = wrap_dim(dim, input.ndim)
    _check_slices("index_copy", input, dim, index, source)
    _check_index(xp, index, input.shape[dim] if input.ndim else 1, dim, "")
    if input.ndim == 0:
        return xp.contiguous_copy(source.reshape(()))
    for k in range(input.ndim):
        if k != dim and source.shape[k] != input.shape[k]:
            raise RuntimeError(
                "index_copy_(): Source/destination tensor must have same slice shapes. Destination "
                f"{list(input.shape)} and source {list(source.shape)} differ at dimension {k}"
            )
    out = xp.contiguous_copy(input)
    out[(*(slice(None),) * dim, index.reshape(-1))] = source
    return out


@index_copy.grad("input")
def _(F, g, dim, index):
    return F.index_fill(g, dim, index, 0)


@index_copy.grad("source")
def _(F, g, dim, index, source_shape):
    return F.reshape(F.index_select(g, dim, index), source_shape)


@op(tensors=("input", "index", "value"), numbers=("value",), moves=True, inplace=True,
    samples=lambda m: [
        case(m(3, 4), 0, m.index(3, 2), 1.5), case(m(3, 4), 1, m.index(4, 2), m()),
        case(m(4), 0, m.index(4, 0), 1)])
def index_fill(xp, input, dim, index, value):
    """``input`` with its slices at ``index`` along ``dim`` set to ``value``."""
    dim = wrap_dim(dim, input.ndim)
    if getattr(value, "ndim", 0):
        raise RuntimeError(
            "index_fill_ only supports a 0-dimensional value tensor, but got tensor with "
            f"{value.ndim} dimension(s)."
        )
    if index.ndim > 1:
        raise IndexError("Index has to be a vector/scalar")
    if index.dtype.kind not in "iu":
        raise IndexError("index_fill_(): Expected dtype int64 for index.")
    _check_index(xp, index, input.shape[dim] if input.ndim else 1, dim, "", negative=True)
    out = xp.contiguous_copy(input)
    if input.ndim == 0:
        out[...] = value
    else:
        out[(*(slice(None),) * dim, index.reshape(-1))] = value
    return out


@index_fill.grad("input")
def _(F, g, dim, index):
    return F.index_fill(g, dim, index, 0)


@index_fill.grad("value")
def _(F, g, dim, index):
    return F.sum(F.index_select(g, dim, index))


# ---------------------------------------------------------------- flat places
def take(input: Tensor, index: Tensor, *, out=None) -> Tensor:
    """Elements of the flattened input at ``index``, in the shape of ``index``."""
    if index._data.dtype.kind != "i":
        raise RuntimeError(
            f"take(): Expected a long tensor for index, but got {type_name(index.dtype)}"
        )
    flat = reshape.call(input, (input.numel(),))
    result = REGISTRY["index"].apply((flat, (index._data,)))
    return result if out is None else write_out(result, out, "take")


def put(input: Tensor, index: Tensor, source: Tensor, accumulate=False) -> Tensor:
    """``input`` with ``source`` put (or added) at flat positions ``index``."""
    if index._data.dtype.kind != "i":
        raise RuntimeError(
            f"put_(): Expected a long tensor for index, but got {type_name(index.dtype)}"
        )
    if index.numel() != source.numel():
        raise IndexError(
            "put_(): Expected source and index to have the same number of elements, but got "
            f"source.numel() = {source.numel()}, index.numel() = {index.numel()}"
        )
    flat = reshape.call(input, (input.numel(),))
    values = reshape.call(source, (source.numel(),))
    where = (index._data.reshape(-1),)
    return reshape.call(put_at.apply((flat, where, values, accumulate)), input._data.shape)


def take_along_dim(input: Tensor, indices: Tensor, dim=None, *, out=None) -> Tensor:
    """``gather`` with the other dims of input and indices broadcast; flattened without ``dim``."""
    if indices.dtype.category != 1 or indices._data.dtype.itemsize < 8:
        raise RuntimeError(
            f"torch.take_along_dim(): dtype of indices should be Long but got "
            f"{type_name(indices.dtype)}"
        )
    if dim is None:
        input = reshape.call(input, (input.numel(),))
        return REGISTRY["gather"].call(input, 0, reshape.call(indices, (-1,)), out=out)
    if input.ndim != indices.ndim:
        raise RuntimeError(
            "torch.take_along_dim(): input and indices should have the same number of dimensions, "
            f"but got {input.ndim} dimensions for input, and {indices.ndim} dimensions for indices"
        )
    from .shapes import broadcast_shapes

    dim = wrap_dim(dim, input.ndim)
    a, b = list(input._data.shape), list(indices._data.shape)
    n, m, a[dim], b[dim] = a[dim], b[dim], 1, 1
    both = list(broadcast_shapes(a, b))
    wide = (*both[:dim], n, *both[dim + 1:])
    many = (*both[:dim], m, *both[dim + 1:])
    expand = REGISTRY["expand"].call
    return REGISTRY["gather"].call(expand(input, wide), dim, expand(indices, many), out=out)


@op(tensors=("input", "mask", "source"), moves=True, inplace=True, samples=lambda m: [
    case(m(3, 4), m.bool(3, 4), m(12)), case(m(3, 4), m.bool(4), m(3, 5)),
    case(m(4), m.bool(2, 4), m(8))])
def masked_scatter(xp, input, mask, source):
    """``input`` with its elements where ``mask`` is True replaced by ``source``'s, in order."""
    if mask.dtype.kind != "b":
        raise RuntimeError("masked_scatter_ only supports boolean masks")
    if source.dtype != input.dtype:
        raise RuntimeError(
            "masked_scatter: expected self and source to have same dtypes but got "
            f"{input.dtype.name} and {source.dtype.name}"
        )
    shape = xp.broadcast_shapes(input.shape, mask.shape)
    out, mask = xp.contiguous_copy(xp.broadcast_to(input, shape)), xp.broadcast_to(mask, shape)
    count = int(mask.sum())
    if count > source.size:
        raise RuntimeError(
            f"Number of elements of source < number of ones in mask: {source.size} < {count}"
        )
    out[mask] = source.reshape(-1)[:count]
    return out


@masked_scatter.grad("input")
def _(F, g, mask):
    return F.where(mask, F.zeros_like(g), g)


@masked_scatter.grad("source")
def _(F, g, mask, source_shape):
    picked = F.masked_pick(g, mask)
    padded = F.slice_backward(
        picked, (math.prod(source_shape),), (slice(0, picked.shape[0]),))
    return F.reshape(padded, source_shape)


@op(tensors=("input", "mask"), moves=True, method=False, samples=lambda m: [
    case(m(3, 4), m.bool(3, 4)), case(m(3, 4), m.bool(4)), case(m(4), m.bool(2, 4)),
    case(m(), m.bool())])
def masked_pick(xp, input, mask):
    """The elements where the (broadcast) mask is True, as a vector."""
    if mask.dtype.kind != "b":
        raise RuntimeError("masked_select: expected BoolTensor for mask")
    shape = xp.broadcast_shapes(input.shape, mask.shape)
    return xp.broadcast_to(input, shape)[xp.broadcast_to(mask, shape)].reshape(-1)


@masked_pick.grad("input")
def _(F, g, input_shape, mask):
    from .shapes import broadcast_shapes

    spot = F.zeros_shaped(g, tuple(broadcast_shapes(input_shape, tuple(mask.shape))))
    return F.sum_to(F.masked_scatter(spot, mask, g), input_shape)


# ---------------------------------------------------------------- views replaced
def select_scatter(input: Tensor, src: Tensor, dim, index) -> Tensor:
    """``input`` with its slice at ``index`` along ``dim`` replaced by ``src``."""
    dim = wrap_dim(dim, input.ndim)
    n = input._data.shape[dim]
    if not -n <= index < n:
        raise IndexError(
            f"select(): index {index} out of range for tensor of size {list(input._data.shape)} at "
            f"dimension {dim}"
        )
    return _replaced(input, src, (*(slice(None),) * dim, index))


def slice_scatter(input: Tensor, src: Tensor, dim=0, start=None, end=None, step=1) -> Tensor:
    """``input`` with ``start:end:step`` along ``dim`` replaced by ``src``."""
    lead = (slice(None),) * wrap_dim(dim, input.ndim)
    return _replaced(input, src, (*lead, slice(start, end, step)))


def _replaced(input, src, index):
    shape = basic_index.apply((input, index))._data.shape
    if src._data.shape != shape:
        raise RuntimeError(
            "expected src to have a size equal to the slice of self. src size = "
            f"{list(src._data.shape)}, slice size = {list(shape)}"
        )
    return REGISTRY["view_scatter"].call(input, src, ((basic_index, ((index,), None)),))


COMPOSITES = {
    "scatter": scatter, "scatter_reduce": scatter_reduce, "index_reduce": index_reduce,
    "take": take, "put": put, "take_along_dim": take_along_dim, "masked_select": masked_pick.call,
    "select_scatter": select_scatter, "slice_scatter": slice_scatter,
}
INPLACE = ("scatter_reduce", "index_reduce", "put")
METHODS = {"scatter_": scatter_}
