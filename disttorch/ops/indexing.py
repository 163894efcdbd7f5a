"""Picking and adding along one dim: gather, scatter_add, index_select, index_add; embedding."""

from __future__ import annotations

import warnings

from ..backend import namespace_of
from ..tensor import Tensor
from .core import op, wrap_dim
from .samples import case


def _check_index(xp, index, size, dim, name, negative=False):
    """IndexError for an index out of range; below 0 only where ``negative`` ones count from the end."""
    bad = xp.index_outside(index, -size if negative else 0, size)
    if bad is not None:
        raise IndexError(f"{name}index {bad} is out of bounds for dimension {dim} with size {size}")


@op(tensors=("input", "index"), moves=True, samples=lambda m: [
    case(m(3, 4), 1, m.index(4, 3, 2)), case(m(3, 4), 0, m.index(3, 2, 4)),
    case(m(5), -1, m.index(5, 7)), case(m(3, 4), 1, m.index(4, 0, 2)),
])
def gather(xp, input, dim, index):
    """``out[i][j] = input[i][index[i][j]]`` (for dim 1), for an index of any size."""
    dim = _check_gather(xp, "gather", input, dim, index)
    if input.ndim == 0:
        return input.reshape(1)[index.reshape(-1)].reshape(index.shape)
    return xp.take_along_axis(_crop(input, index.shape, dim), index, dim)


def _crop(a, shape, dim):
    """``a`` cut to ``shape`` on every dim but ``dim``."""
    return a[tuple(slice(None) if i == dim else slice(0, s) for i, s in enumerate(shape))]


def _check_gather(xp, name, input, dim, index):
    dim = wrap_dim(dim, input.ndim)
    if index.dtype.kind not in "iu":
        raise RuntimeError(f"{name}(): Expected dtype int32/int64 for index")
    if (index.ndim or 1) != (input.ndim or 1):
        raise RuntimeError("Index tensor must have the same number of dimensions as input tensor")
    for i in range(input.ndim):
        if i != dim and index.shape[i] > input.shape[i]:
            raise RuntimeError(
                f"Size does not match at dimension {i} expected index {list(index.shape)} to be no "
                f"larger than self {list(input.shape)} apart from dimension {dim}"
            )
    size = input.shape[dim] if input.ndim else 1
    bad = xp.index_outside(index, 0, size)
    if bad is not None:
        raise RuntimeError(f"index {bad} is out of bounds for dimension {dim} with size {size}")
    return dim


@gather.grad("input")
def _(F, g, input_shape, dim, index):
    return F.gather_backward(g, input_shape, dim, index)


@op(tensors=("input", "index"), method=False, moves=True, samples=lambda m: [
    case(m(4, 2), (3, 4), 0, m.index(3, 4, 2)), case(m(3, 2), (3, 4), 1, m.index(4, 3, 2)),
    case(m(1), (), 0, m.index(1, 1))])
def gather_backward(xp, input, shape, dim, index):
    """Zeros of ``shape`` with ``input`` added where ``gather`` took it from."""
    out = xp.zeros(shape, input.dtype)
    if not shape:
        return out + input.sum()
    return xp.add_along_axis(out, index, input, wrap_dim(dim, out.ndim))


@gather_backward.grad("input")
def _(F, g, dim, index):
    return F.gather(g, dim, index)


@op(tensors=("input", "index", "src"), moves=True, inplace=True, samples=lambda m: [
    case(m(3, 4), 1, m.index(4, 3, 2), m(3, 2)), case(m(3, 4), 0, m.index(3, 2, 4), m(2, 4)),
    case(m(5), 0, m.index(5, 9), m(9)),
])
def scatter_add(xp, input, dim, index, src):
    """``input`` with ``src`` added at ``index`` along ``dim``; repeated places add up."""
    dim = _check_gather(xp, "scatter", input, dim, index)
    if src.dtype != input.dtype:
        raise RuntimeError(
            f"scatter(): Expected self.dtype to be equal to src.dtype, but got {input.dtype} and "
            f"{src.dtype}"
        )
    if src.ndim != index.ndim or any(n > s for n, s in zip(index.shape, src.shape)):
        raise RuntimeError(
            f"Expected index {list(index.shape)} to be no larger than self {list(input.shape)} "
            f"apart from dimension {dim} and to be no larger size than src {list(src.shape)}"
        )
    out = xp.contiguous_copy(input)
    if index.size == 0:
        return out
    if input.ndim == 0:
        return out + src.reshape(()) if index.ndim == 0 else out + src[:1].reshape(())
    src = _crop(src, index.shape, -1)
    return xp.add_along_axis(out, index, src, dim)


@scatter_add.grad("input")
def _(F, g):
    return g


@scatter_add.grad("src")
def _(F, g, dim, index, src_shape):
    got = F.gather(g, dim, index)
    return got if tuple(got.shape) == src_shape else F.slice_backward(
        got, src_shape, tuple(slice(0, s) for s in got.shape))


@op(tensors=("input", "index"), moves=True, samples=lambda m: [
    case(m(3, 4), 0, m.index(3, 5)), case(m(3, 4), 1, m.index(4, 2)), case(m(5), 0, m.index(5, 0)),
])
def index_select(xp, input, dim, index):
    """The slices of ``input`` at ``index`` along ``dim``."""
    dim = wrap_dim(dim, input.ndim)
    if index.ndim > 1:
        raise IndexError("index_select(): Index is supposed to be a vector")
    if index.dtype.kind not in "iu":
        raise RuntimeError("index_select(): Expected dtype int32 or int64 for index")
    _check_index(xp, index, input.shape[dim] if input.ndim else 1, dim, "")
    if input.ndim == 0:
        return xp.contiguous_copy(input)
    return xp.take(input, index.reshape(-1), axis=dim)


@index_select.grad("input")
def _(F, g, input_shape, dim, index):
    return F.index_select_backward(g, input_shape, dim, index)


@op(tensors=("input", "index"), method=False, moves=True, samples=lambda m: [
    case(m(5, 4), (3, 4), 0, m.index(3, 5)), case(m(3, 2), (3, 4), 1, m.index(4, 2))])
def index_select_backward(xp, input, shape, dim, index):
    """Zeros of ``shape`` with the slices of ``input`` added where ``index_select`` took them."""
    return _add_slices(xp, xp.zeros(shape, input.dtype), dim, index, input)


@index_select_backward.grad("input")
def _(F, g, dim, index):
    return F.index_select(g, dim, index)


@op(tensors=("input", "index", "source"), moves=True, inplace=True, samples=lambda m: [
    case(m(3, 4), 0, m.index(3, 5), m(5, 4)), case(m(3, 4), 1, m.index(4, 2), m(3, 2)),
])
def index_add(xp, input, dim, index, source, alpha=1):
    """``input`` with the slices of ``source`` added at ``index`` along ``dim``."""
    dim = wrap_dim(dim, input.ndim)
    if index.size != (source.shape[dim] if source.ndim else 1):
        raise RuntimeError(
            f"index_add_(): Number of indices ({index.size}) should be equal to source.size(dim): "
            f"({source.shape[dim] if source.ndim else 1}), for dim: {dim}"
        )
    try:
        _check_index(xp, index, input.shape[dim] if input.ndim else 1, dim, "")
    except IndexError as error:  # PyTorch's type here, unlike index_select's
        raise (error if input.ndim < 2 else RuntimeError(str(error))) from None
    if alpha != 1:
        source = source * alpha
    return _add_slices(xp, xp.contiguous_copy(input), dim, index, source)


def _add_slices(xp, out, dim, index, source):
    """Add the slices of ``source`` to the contiguous ``out``, in place."""
    if out.ndim == 0:
        return out + source.sum()
    if index.size == 0:
        return out
    moved, rows = xp.moveaxis(out, dim, 0), xp.moveaxis(source, dim, 0)
    flat = xp.ascontiguousarray(moved).reshape(moved.shape[0], -1)
    xp.add_rows(flat, index.reshape(-1), rows.reshape(rows.shape[0], -1))
    if dim % out.ndim:  # otherwise ``flat`` is ``out`` itself
        xp.assign(moved, flat.reshape(moved.shape))
    return out


@index_add.grad("input")
def _(F, g):
    return g


@index_add.grad("source")
def _(F, g, dim, index, alpha):
    got = F.index_select(g, dim, index)
    return got if alpha == 1 else got * alpha


# ---------------------------------------------------------------- embedding
@op(tensors=("weight", "indices"), method=False, moves=True, samples=lambda m: [
    case(m(5, 3), m.index(5, 2, 4)), case(m(5, 3), m.index(5, 0))])
def embedding_lookup(xp, weight, indices, padding_idx=-1, scale_grad_by_freq=False):
    """Rows of ``weight`` (V×C) at ``indices`` (any shape): shape × C."""
    if indices.dtype.kind not in "iu":
        raise RuntimeError(
            "Expected tensor for argument #1 'indices' to have one of the following scalar types: "
            f"Long, Int; but got {indices.dtype.name} instead (while checking arguments for "
            "embedding)"
        )
    bad = xp.index_outside(indices, 0, weight.shape[0])
    if bad is not None:
        raise IndexError(
            f"index out of range in self: {bad} for an embedding of {weight.shape[0]} rows"
        )
    return xp.take(weight, indices, axis=0)


@embedding_lookup.grad("weight")
def _(F, g, weight_shape, indices, padding_idx, scale_grad_by_freq):
    flat = F.reshape(indices, (-1,))
    rows = F.reshape(g, (-1, weight_shape[1]))
    if scale_grad_by_freq:
        ones = F.ones_like(rows[:, :1])
        counts = F.index_select_backward(ones, (weight_shape[0], 1), 0, flat)
        rows = rows / F.index_select(counts, 0, flat)
    if padding_idx >= 0:
        keep = F.unsqueeze(F.ne(flat, padding_idx), 1)
        rows = F.where(keep, rows, F.zeros_like(rows))
    return F.index_select_backward(rows, weight_shape, 0, flat)


def embedding(input, weight, padding_idx=None, max_norm=None, norm_type=2.0,
              scale_grad_by_freq=False, sparse=False) -> Tensor:
    """Rows of ``weight`` at the indices ``input``.

    Args:
        input: integers of any shape.
        weight: V×C.
        padding_idx: a row whose gradient stays zero.
        max_norm: rows longer than this in ``norm_type`` are first shortened in place.
        scale_grad_by_freq: divide each row's gradient by how often ``input`` has it.
        sparse: the gradient is dense all the same; a warning says so.
    """
    if sparse:
        warnings.warn(
            "embedding: sparse=True asks for a sparse gradient; here the gradient has the same "
            "values but is stored densely, with zeros in the rows that were not used",
            stacklevel=3,
        )
    rows = weight._data.shape[0]
    if padding_idx is None:
        padding_idx = -1
    elif not -rows <= padding_idx < rows:
        raise AssertionError("Padding_idx must be within num_embeddings")
    elif padding_idx < 0:
        padding_idx += rows
    if max_norm is not None:
        _renorm_rows(weight, input, max_norm, norm_type)
    return embedding_lookup.call(weight, input, padding_idx, scale_grad_by_freq)


def _renorm_rows(weight, input, max_norm, norm_type):
    xp = namespace_of(weight._data)
    rows = xp.unique(input._data)
    picked = weight._data[rows]
    size = (xp.absolute(picked) ** norm_type).sum(axis=1, keepdims=True) ** (1 / norm_type)
    weight._data[rows] = xp.where(size > max_norm, picked * (max_norm / (size + 1e-7)), picked)


