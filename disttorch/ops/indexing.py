"""Advanced indexing, gather and scatter."""

from __future__ import annotations

from ..backend import dtypes, namespace_of
from ..tensor import Tensor
from .core import Op, op, wrap_dim
from .samples import case
from .views import basic_index


def _check_index(xp, index, size, dim, name):
    """IndexError for the first index out of range."""
    if index.size:
        low, high = index.min(), index.max()
        if low < -size or high >= size:
            bad = int(high if high >= size else low)
            raise IndexError(f"{name}index {bad} is out of bounds for dimension {dim} with size {size}")


@op(tensors=("input", "index"), moves=True, samples=lambda m: [
    case(m(3, 4), 1, m.index(4, 3, 2)), case(m(3, 4), 0, m.index(3, 2, 4)),
    case(m(5), -1, m.index(5, 7)), case(m(3, 4), 1, m.index(4, 0, 2)),
])  # fmt: skip
def gather(xp, input, dim, index):
    """``out[i][j] = input[i][index[i][j]]`` (for dim 1). The index may be smaller than the input."""
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
    if index.size:
        size = input.shape[dim] if input.ndim else 1
        low, high = int(index.min()), int(index.max())
        if low < 0 or high >= size:
            bad = high if high >= size else low
            raise RuntimeError(
                f"index {bad} is out of bounds for dimension {dim} with size {size}"
            )
    return dim


@gather.grad("input")
def _(F, g, input, dim, index):
    return F.scatter_add(F.zeros_like(input), dim, index, g)


@op(tensors=("input", "index", "src"), moves=True, inplace=True, samples=lambda m: [
    case(m(3, 4), 1, m.index(4, 3, 2), m(3, 2)), case(m(3, 4), 0, m.index(3, 2, 4), m(2, 4)),
    case(m(5), 0, m.index(5, 9), m(9)),
])  # fmt: skip
def scatter_add(xp, input, dim, index, src):
    """``input`` with ``src`` added at ``index`` along ``dim``; repeated places add up."""
    dim = _check_gather(xp, "scatter", input, dim, index)
    out = input.copy()
    if index.size == 0:
        return out
    if input.ndim == 0:
        return out + src.reshape(()) if index.ndim == 0 else out + src[:1].reshape(())
    src = _crop(src, index.shape, -1)
    if _is_permutation_like(index, dim):
        places = list(xp.indices(index.shape, sparse=True))
        places[dim] = index
        out[tuple(places)] += src
        return out
    places = list(xp.indices(index.shape, sparse=True))
    places[dim] = index
    xp.add.at(out, tuple(places), src)
    return out


def _is_permutation_like(index, dim):
    """One index per line along ``dim``: nothing repeats, a plain assignment will do."""
    return index.shape[dim] == 1


@scatter_add.grad("input")
def _(F, g):
    return g


@scatter_add.grad("src")
def _(F, g, dim, index, src):
    got = F.gather(g, dim, index)
    return got if tuple(got.shape) == tuple(src.shape) else F.slice_backward(
        got, tuple(src.shape), tuple(slice(0, s) for s in got.shape))  # fmt: skip


@op(tensors=("input", "index"), moves=True, samples=lambda m: [
    case(m(3, 4), 0, m.index(3, 5)), case(m(3, 4), 1, m.index(4, 2)), case(m(5), 0, m.index(5, 0))])  # fmt: skip
def index_select(xp, input, dim, index):
    """The slices of ``input`` at ``index`` along ``dim``."""
    dim = wrap_dim(dim, input.ndim)
    if index.ndim > 1:
        raise IndexError("index_select(): Index is supposed to be a vector")
    if index.dtype.kind not in "iu":
        raise RuntimeError("index_select(): Expected dtype int32 or int64 for index")
    _check_index(xp, index, input.shape[dim] if input.ndim else 1, dim, "")
    if input.ndim == 0:
        return input.copy()
    return xp.take(input, index.reshape(-1), axis=dim)


@index_select.grad("input")
def _(F, g, input, dim, index):
    return F.index_add(F.zeros_like(input), dim, index, g)


@op(tensors=("input", "index", "source"), moves=True, inplace=True, samples=lambda m: [
    case(m(3, 4), 0, m.index(3, 5), m(5, 4)), case(m(3, 4), 1, m.index(4, 2), m(3, 2))])  # fmt: skip
def index_add(xp, input, dim, index, source, alpha=1):
    """``input`` with the slices of ``source`` added at ``index`` along ``dim``."""
    dim = wrap_dim(dim, input.ndim)
    _check_index(xp, index, input.shape[dim] if input.ndim else 1, dim, "")
    if alpha != 1:
        source = source * alpha
    out = input.copy()
    if input.ndim == 0:
        return out + source.sum()
    moved = xp.moveaxis(out, dim, 0)
    rows = xp.moveaxis(source, dim, 0)
    if index.size:
        flat = xp.ascontiguousarray(moved).reshape(moved.shape[0], -1)
        xp.add_rows(flat, index.reshape(-1), rows.reshape(rows.shape[0], -1))
        moved[...] = flat.reshape(moved.shape)
    return out


@index_add.grad("input")
def _(F, g):
    return g


@index_add.grad("source")
def _(F, g, dim, index, alpha):
    got = F.index_select(g, dim, index)
    return got if alpha == 1 else got * alpha


# ---------------------------------------------------------------- x[...] and x[...] = y
def split_index(index):
    """(basic index or None, whether it holds tensors, lists or masks)."""
    index = index if isinstance(index, tuple) else (index,)
    out, advanced = [], False
    for i in index:
        if isinstance(i, Tensor):
            if i.ndim == 0 and i.dtype.category == dtypes.INT:
                i = int(i._data)
            else:
                advanced = True
        elif isinstance(i, (list, range)) or hasattr(i, "__array__") and getattr(i, "ndim", 0):
            advanced = True
        elif isinstance(i, bool):
            advanced = True
        elif isinstance(i, slice):
            i = slice(*(None if s is None else int(s) for s in (i.start, i.stop, i.step)))
            if i.step is not None and i.step <= 0:
                raise ValueError("step must be greater than zero")
        elif i is not None and i is not Ellipsis:
            if isinstance(i, (float, complex, str)):
                raise IndexError(
                    "only integers, slices (`:`), ellipsis (`...`), None and long or byte "
                    f"Variables are valid indices (got {type(i).__name__})"
                )
            i = i.__index__()
        out.append(i)
    return tuple(out), advanced


def getitem(input: Tensor, index) -> Tensor:
    """``input[index]``: a view for numbers, slices, None and ...; a copy for tensors and masks."""
    kind = index.__class__
    if kind is int or kind is slice and _is_plain(index):
        index, advanced = (index,), False
    else:
        index, advanced = split_index(index)
    if not advanced:
        try:
            return basic_index.apply((input, index))
        except IndexError:
            _check_basic(input, index)
            raise
    return advanced_index.call(input, _raw_index(input, index))


_PLAIN_BOUNDS = (int, type(None))


def _is_plain(s: slice) -> bool:
    return (
        s.step is None
        and s.start.__class__ in _PLAIN_BOUNDS
        and s.stop.__class__ in _PLAIN_BOUNDS
    )


def _check_basic(input, index):
    """IndexErrors in PyTorch's words, before NumPy's."""
    used = sum(i is not None and i is not Ellipsis for i in index)
    if used > input.ndim:
        if input.ndim == 0:
            raise IndexError(
                "invalid index of a 0-dim tensor. Use `tensor.item()` in Python or "
                "`tensor.item<T>()` in C++ to convert a 0-dim tensor to a number"
            )
        raise IndexError(f"too many indices for tensor of dimension {input.ndim}")
    if sum(i is Ellipsis for i in index) > 1:
        raise IndexError("an index can only have a single ellipsis ('...')")
    dim = 0
    for i in index:
        if i is Ellipsis:
            dim += input.ndim - used
        elif i is not None:
            if isinstance(i, int) and not -input._data.shape[dim] <= i < input._data.shape[dim]:
                raise IndexError(
                    f"index {i} is out of bounds for dimension {dim} with size "
                    f"{input._data.shape[dim]}"
                )
            dim += 1


def _raw_index(input, index):
    """Tensors and lists in an index as arrays on the input's device."""
    xp = namespace_of(input._data)
    out = []
    for i in index:
        if isinstance(i, Tensor):
            i = i._data
            if i.dtype.kind == "u":  # bytes as masks, PyTorch's old meaning
                i = i.astype(bool)
            elif i.dtype.kind not in "bi":
                raise IndexError(
                    "tensors used as indices must be long, int, byte or bool tensors"
                )
        elif isinstance(i, (list, range)) or hasattr(i, "__array__"):
            i = xp.asarray(_plain(i))
            if i.size == 0:
                i = i.astype(dtypes.int64.np)
        out.append(i)
    return tuple(out)


def _plain(i):
    return [_plain(v) for v in i] if isinstance(i, (list, tuple)) else (
        i.tolist() if isinstance(i, Tensor) else i)  # fmt: skip


class _Advanced(Op):
    """Errors of NumPy's indexing in PyTorch's types."""

    def _forward(self, xp, args):
        try:
            return self.forward(xp, *args)
        except IndexError as error:
            raise IndexError(_translate(str(error), args[0])) from None


def _translate(text, array):
    if "boolean index did not match" in text:
        return f"The shape of the mask does not match the shape of the indexed tensor " \
               f"{list(array.shape)}: {text}"
    return text.replace("axis", "dimension").replace("too many indices for array: array is",
                                                     "too many indices for tensor of dimension")  # fmt: skip


def _advanced_forward(xp, input, index):
    out = input[index]
    return out if isinstance(out, xp.ndarray) else xp.asarray(out)


advanced_index = _Advanced(
    _advanced_forward, name="index", method=False, moves=True,
    samples=lambda m: [
        case(m(3, 4), (m.index(3, 5)._data,)),
        case(m(3, 4), (slice(None), m.index(4, 2, 2)._data)),
        case(m(3, 4), (m.bool(3, 4)._data,)),
        case(m(3, 4, 2), (m.index(3, 2)._data, slice(None), m.index(2, 2)._data)),
    ],
)  # fmt: skip


@advanced_index.grad("input")
def _(F, g, input, index):
    return F.index_put(F.zeros_like(input), index, g, True)


@op(tensors=("input", "values"), method=False, moves=True, samples=lambda m: [
    case(m(3, 4), (m.index(3, 5)._data,), m(5, 4), True),
    case(m(3, 4), (slice(None), m.permutation(4)[:2]._data), m(3, 2), False),
    case(m(3, 4), (m.bool(3, 4)._data,), m(), False),
])  # fmt: skip
def index_put(xp, input, index, values, accumulate=False):
    """``input`` with ``values`` at ``index`` (tuple of arrays, slices, numbers)."""
    out = input.copy()
    if not accumulate:
        out[index] = values
    elif len(index) == 1 and getattr(index[0], "dtype", None) is not None and (
        index[0].dtype.kind in "iu" and values.shape == index[0].shape + input.shape[1:]
    ) and input.ndim:
        flat = index[0].reshape(-1)
        xp.add_rows(out.reshape(out.shape[0], -1), xp.where(flat < 0, flat + out.shape[0], flat),
                    values.reshape(flat.size, -1))  # fmt: skip
    else:
        xp.add.at(out, index, values)
    return out


@index_put.grad("input")
def _(F, g, index, values, accumulate):
    if accumulate:
        return g
    return F.index_put(g, index, F.zeros_like(values), False)


@index_put.grad("values")
def _(F, g, index, values):
    return F.sum_to(F.index(g, index), tuple(values.shape))


# ---------------------------------------------------------------- embedding
@op(tensors=("weight", "indices"), method=False, moves=True, samples=lambda m: [
    case(m(5, 3), m.index(5, 2, 4)), case(m(5, 3), m.index(5, 0))])  # fmt: skip
def embedding_lookup(xp, weight, indices, padding_idx=-1):
    """Rows of ``weight`` (V×C) at ``indices`` (any shape): shape × C."""
    if indices.dtype.kind not in "iu":
        raise RuntimeError(
            "Expected tensor for argument #1 'indices' to have one of the following scalar types: "
            f"Long, Int; but got {indices.dtype.name} instead (while checking arguments for "
            "embedding)"
        )
    if indices.size:
        low, high = int(indices.min()), int(indices.max())
        if low < 0 or high >= weight.shape[0]:
            raise IndexError(
                f"index out of range in self: {low if low < 0 else high} for an embedding of "
                f"{weight.shape[0]} rows"
            )
    return xp.take(weight, indices, axis=0)


@embedding_lookup.grad("weight")
def _(F, g, weight, indices, padding_idx):
    flat = F.reshape(indices, (-1,))
    rows = F.reshape(g, (-1, weight.shape[1]))
    if padding_idx >= 0:
        keep = F.unsqueeze(F.ne(flat, padding_idx), 1)
        rows = F.where(keep, rows, F.zeros_like(rows))
    return F.index_add(F.zeros_like(weight), 0, flat, rows)


def embedding(input, weight, padding_idx=None, max_norm=None, norm_type=2.0,
              scale_grad_by_freq=False, sparse=False):  # fmt: skip
    """Rows of ``weight`` at the indices ``input``.

    Args:
        input: integers of any shape.
        weight: V×C.
        padding_idx: a row whose gradient stays zero.
        max_norm: rows longer than this in ``norm_type`` are first shortened in place.
    """
    if sparse:
        raise NotImplementedError("embedding: sparse gradients are not built; use sparse=False")
    if scale_grad_by_freq:
        raise NotImplementedError("embedding: scale_grad_by_freq is not built")
    rows = weight._data.shape[0]
    if padding_idx is None:
        padding_idx = -1
    elif not -rows <= padding_idx < rows:
        raise AssertionError("Padding_idx must be within num_embeddings")
    elif padding_idx < 0:
        padding_idx += rows
    if max_norm is not None:
        _renorm_rows(weight, input, max_norm, norm_type)
    return embedding_lookup.call(weight, input, padding_idx)


def _renorm_rows(weight, input, max_norm, norm_type):
    xp = namespace_of(weight._data)
    rows = xp.unique(input._data)
    picked = weight._data[rows]
    size = (xp.absolute(picked) ** norm_type).sum(axis=1, keepdims=True) ** (1 / norm_type)
    weight._data[rows] = xp.where(size > max_norm, picked * (max_norm / (size + 1e-7)), picked)


