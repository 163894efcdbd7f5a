"""``x[...]`` and ``x[...] = y``.

An index has two parts. Numbers, slices, None and ... are *basic*: they give a view. Index tensors,
lists and masks are *advanced*: they pick elements of that view. The basic part is applied first, so
that a number never takes part in the broadcasting of index tensors (in NumPy it would).
"""

from __future__ import annotations

import warnings

from ..autograd.graph import share_version
from ..autograd.modes import state
from ..backend import CPU, dtypes, namespace_of, ndarray
from ..tensor import Tensor
from .core import REGISTRY, Op, _new, op, type_name
from .inplace import apply_inplace, check_inplace, copy_, fill_
from .samples import case
from .views import basic_index, expand

_ALL = slice(None)
_PLAIN_BOUNDS = (int, type(None))
_INDEX_KINDS = (
    "only integers, slices (`:`), ellipsis (`...`), None and long or byte Variables are valid "
    "indices (got {})"
)


# ---------------------------------------------------------------- reading an index
def parse(input: Tensor, index):
    """``(basic index, advanced index of what it shows or None)``, both tuples of raw objects.

    Raises:
        IndexError: for too many indices, kinds that cannot index, masks of another shape.
        ValueError: for a slice whose step is not positive.
    """
    if isinstance(index, list) and _means_tuple(index):
        index = tuple(index)
    items = [_item(input, i) for i in (index if isinstance(index, tuple) else (index,))]
    used = sum(_dims_used(i) for i in items)
    if used > input._data.ndim:
        raise _too_many(input)
    basic: list = []
    advanced: list = []
    found = filled = False
    for i in items:
        if i is Ellipsis:
            count = 0 if filled else input._data.ndim - used
            filled = True
            basic += [_ALL] * count
            advanced += [_ALL] * count
        elif i is None or isinstance(i, slice):
            basic.append(i)
            advanced.append(_ALL)
        elif isinstance(i, bool):  # a new dim of size 1, of which all or nothing is taken
            basic.append(None)
            advanced.append(_zeros(input, int(i)))
            found = True
        elif isinstance(i, int):
            basic.append(i)
        else:
            basic += [_ALL] * _dims_used(i)
            advanced.append(i)
            found = True
    if not found:
        return tuple(basic), None
    while advanced[-1] is _ALL:
        advanced.pop()
    return tuple(basic), tuple(advanced)


def _means_tuple(index: list) -> bool:
    """NumPy's old rule, kept by PyTorch: a short list of more than numbers is a tuple."""
    if len(index) >= 32 or not any(
        i is None or i is Ellipsis or isinstance(i, (Tensor, slice, list, tuple)) for i in index
    ):
        return False
    warnings.warn(
        "Using a non-tuple sequence for multidimensional indexing is deprecated; use x[tuple(seq)] "
        "instead of x[seq], or x[torch.tensor(seq)] for an index tensor",
        stacklevel=4,
    )
    return True


def _zeros(input, count):
    return namespace_of(input._data).zeros(count, dtypes.int64.np)


def _item(input, i):
    """One index as an int, bool, slice, None, Ellipsis or a raw array of the input's namespace."""
    if i is None or i is Ellipsis or isinstance(i, (bool, int)):
        return i
    if isinstance(i, slice):
        i = slice(*(None if s is None else s.__index__() for s in (i.start, i.stop, i.step)))
        if i.step is not None and i.step <= 0:
            raise ValueError("step must be greater than zero")
        return i
    if isinstance(i, Tensor):
        return _array_item(_beside(input._data, i._data))
    xp = namespace_of(input._data)
    if isinstance(i, (list, tuple, range)):
        array = xp.asarray(_plain(i))
        if array.size == 0 or array.dtype.kind in "fc":
            array = array.astype(dtypes.int64.np)
        if array.dtype.kind not in "biu":
            raise TypeError(f"new(): invalid data type '{type(i[0]).__name__}'")
        return array
    if isinstance(i, str):
        raise TypeError("new(): invalid data type 'str'")
    if hasattr(i, "__array__") and getattr(i, "ndim", 0):
        return _array_item(xp.asarray(i))
    if isinstance(i, CPU.bool_):
        return bool(i)
    if hasattr(i, "__index__"):
        return i.__index__()
    raise IndexError(_INDEX_KINDS.format(type(i).__name__))


def _beside(array, index):
    """An index where the indexed array is, to which only those of the CPU go by themselves.

    Raises:
        RuntimeError: for an index on a GPU into an array elsewhere.
    """
    if index.__class__ is array.__class__ or not index.ndim:
        return index
    xp = namespace_of(array)
    if index.__class__ is not ndarray:
        raise RuntimeError(
            "indices should be either on cpu or on the same device as the indexed tensor "
            f"({xp.device_of(array)})"
        )
    return xp.from_host(index)


def _array_item(a):
    kind = a.dtype.kind
    if kind == "u":  # bytes are masks: their meaning before there were bool tensors
        a, kind = a.astype(bool), "b"
    if a.ndim == 0 and kind in "bi":
        return bool(a) if kind == "b" else int(a)
    if kind != "b" and (kind != "i" or a.dtype.itemsize < 4):
        raise IndexError("tensors used as indices must be long, int, byte or bool tensors")
    return a


def _plain(i):
    if isinstance(i, (list, tuple, range)):
        return [_plain(v) for v in i]
    return i.tolist() if isinstance(i, Tensor) else i


def _dims_used(i) -> int:
    if i is None or i is Ellipsis or isinstance(i, bool):
        return 0
    if isinstance(i, (int, slice)):
        return 1
    return i.ndim if i.dtype.kind == "b" else 1


def _too_many(input):
    if input.ndim == 0:
        return IndexError(
            "invalid index of a 0-dim tensor. Use `tensor.item()` in Python or `tensor.item<T>()` "
            "in C++ to convert a 0-dim tensor to a number"
        )
    return IndexError(f"too many indices for tensor of dimension {input.ndim}")


def _is_plain(s: slice) -> bool:
    return (
        s.step is None
        and s.start.__class__ in _PLAIN_BOUNDS
        and s.stop.__class__ in _PLAIN_BOUNDS
    )


def _all_plain(index: tuple) -> bool:
    """Whether there are only numbers, None and slices without a step: nothing to translate."""
    for i in index:
        kind = i.__class__
        if kind is not int and i is not None and not (kind is slice and _is_plain(i)):
            return False
    return True


def _check_range(input, basic):
    """The IndexError of a number out of range, in PyTorch's words."""
    dim = 0
    for i in basic:
        if isinstance(i, int):
            n = input._data.shape[dim]
            if not -n <= i < n:
                raise IndexError(f"index {i} is out of bounds for dimension {dim} with size {n}")
        dim += i is not None


# ---------------------------------------------------------------- getting
def getitem(input: Tensor, index) -> Tensor:
    """``input[index]``: a view for numbers, slices, None and ...; a copy for tensors and masks.

    Raises:
        IndexError: for an index out of range, too many of them, or kinds that cannot index.
    """
    kind = index.__class__
    advanced = None
    if kind is int or kind is slice and _is_plain(index):
        basic = (index,)
    elif kind is tuple and _all_plain(index):
        basic = index
    else:
        basic, advanced = parse(input, index)
    if advanced is None:
        return _basic(input, basic)
    if any(i is not _ALL for i in basic):
        input = _basic(input, basic)
    return advanced_index.apply((input, advanced))


def _basic(input, basic):
    try:
        return basic_index.apply((input, basic))
    except IndexError:
        if input.ndim < sum(i is not None for i in basic):
            raise _too_many(input) from None
        _check_range(input, basic)
        raise


def _check_masks(array, index):
    dim = 0
    for i in index:
        if not isinstance(i, slice) and i.dtype.kind == "b":
            for k, n in enumerate(i.shape):
                if array.shape[dim + k] != n:
                    raise IndexError(
                        f"The shape of the mask {list(i.shape)} at index {k} does not match the "
                        f"shape of the indexed tensor {list(array.shape)} at index {dim + k}"
                    )
            dim += i.ndim
        else:
            dim += 1


def _translated(error, array, index):
    """The IndexError of NumPy in PyTorch's words."""
    _check_masks(array, index)
    text = str(error)
    if "broadcast" in text:
        shapes = [i.nonzero()[0].shape if i.dtype.kind == "b" else i.shape
                  for i in index if not isinstance(i, slice)]
        return IndexError(
            "shape mismatch: indexing tensors could not be broadcast together with shapes "
            + ", ".join(str(list(s)) for s in shapes)
        )
    return IndexError(text.replace("axis", "dimension"))


def _index_forward(xp, input, index):
    first = index[0]
    xp.check_places(input.shape, index)
    try:
        if len(index) == 1 and not isinstance(first, slice) and first.dtype.kind == "i":
            return xp.take(input, first, axis=0)
        out = input[index]
    except IndexError as error:
        raise _translated(error, input, index) from None
    return out if isinstance(out, xp.ndarray) else xp.asarray(out)


advanced_index = Op(
    _index_forward, name="index", method=False, moves=True, out=False,
    samples=lambda m: [
        case(m(3, 4), (m.index(3, 5)._data,)),
        case(m(3, 4), (slice(None), m.index(4, 2, 2)._data)),
        case(m(3, 4), (m.bool(3, 4)._data,)),
        case(m(3, 4, 2), (m.index(3, 2)._data, slice(None), m.index(2, 2)._data)),
    ],
)


@advanced_index.grad("input")
def _(F, g, input_shape, index):
    # a mask names every place once, so its gradient can be put instead of added
    repeats = len(index) > 1 or index[0].dtype.kind != "b"
    return F.index_backward(g, input_shape, index, repeats)


# ---------------------------------------------------------------- putting
@op(tensors=("input", "values"), name="index_put", method=False, moves=True, samples=lambda m: [
    case(m(3, 4), (m.index(3, 5)._data,), m(5, 4), True),
    case(m(3, 4), (slice(None), m.permutation(4)[:2]._data), m(3, 2), False),
    case(m(3, 4), (m.bool(3, 4)._data,), m(), False),
])
def put_at(xp, input, index, values, accumulate=False):
    """``input`` with ``values`` at ``index`` (a tuple of arrays and slices)."""
    return _put(xp, xp.contiguous_copy(input), index, values, accumulate)


@op(method=False, moves=True, samples=lambda m: [
    case(m(5, 4), (3, 4), (m.index(3, 5)._data,), True),
    case(m(3, 2), (3, 4), (slice(None), m.permutation(4)[:2]._data), False)])
def index_backward(xp, input, shape, index, repeats):
    """Zeros of ``shape`` with ``input`` added where ``index`` took it from."""
    return _put(xp, xp.zeros(shape, input.dtype), index, input, repeats)


@index_backward.grad("input")
def _(F, g, index):
    return F.index(g, index)


def _put(xp, out, index, values, accumulate):
    """Write ``values`` to (or add them at) ``index`` of ``out``, in place."""
    input, first = out, index[0]
    if values.dtype != input.dtype:
        raise _dtype_mismatch(input, values)
    try:
        if not accumulate:
            xp.check_places(input.shape, index)
            out[index] = _fitting(values, lambda: input[index].ndim)
        elif (
            len(index) == 1 and not isinstance(first, slice) and first.dtype.kind == "i"
            and values.shape == first.shape + input.shape[1:]
        ):
            _add_rows(xp, out, first, values)
        else:
            xp.check_places(input.shape, index)
            xp.scatter_at("add", out, index, values)
    except IndexError as error:
        raise _translated(error, input, index) from None
    except ValueError:
        raise _shape_mismatch(values, input, index) from None
    return out


def _dtype_mismatch(array, values):
    want, have = (type_name(dtypes.FROM_NP[a.dtype]) for a in (array, values))
    return RuntimeError(
        "Index put requires the source and destination dtypes match, got "
        f"{want} for the destination and {have} for the source."
    )


def _fitting(values, ndim):
    """Assignment allows extra leading dims of size 1 in the value."""
    if values.ndim > 1 and values.shape[0] == 1:
        keep = ndim()
        while values.ndim > keep and values.shape[0] == 1:
            values = values[0]
    return values


def _add_rows(xp, out, index, values):
    n = out.shape[0]
    flat = index.reshape(-1)
    bad = xp.index_outside(flat, -n, n)
    if bad is not None:
        raise IndexError(f"index {bad} is out of bounds for dimension 0 with size {n}")
    flat = xp.counted_from_ends(flat, n)
    width = out.size // n if n else 0
    xp.add_rows(out.reshape(n, width), flat, values.reshape(flat.size, width))


def _shape_mismatch(values, array, index):
    return RuntimeError(
        f"shape mismatch: value tensor of shape {list(values.shape)} cannot be broadcast to "
        f"indexing result of shape {list(array[index].shape)}"
    )


@put_at.grad("input")
def _(F, g, index, values_shape, accumulate):
    if accumulate:
        return g
    return F.index_put(g, index, F.zeros_shaped(g, values_shape), False)


@put_at.grad("values")
def _(F, g, index, values_shape):
    got = F.index(g, index)
    extra = len(values_shape) - got.ndim  # leading dims of size 1
    if extra <= 0:
        return F.sum_to(got, values_shape)
    return F.reshape(F.sum_to(got, values_shape[extra:]), values_shape)


def setitem(input: Tensor, index, value) -> None:
    """``input[index] = value``: basic indices write through a view, others scatter.

    Raises:
        IndexError: as for getting.
        TypeError: if the value is neither a number nor a tensor.
        RuntimeError: if it does not broadcast to what the index shows.
    """
    if index is False:
        return
    if index is True:
        index = None
    basic, advanced = parse(input, index)
    view = input if all(i is _ALL for i in basic) else _basic(input, basic)
    if advanced is None:
        _write_basic(view, value)
        return
    value = _as_value(input, advanced, value)
    if not (state.enabled and (view.requires_grad or value.requires_grad)):
        check_inplace(view, "index_put_")
        _write_advanced(view._data, advanced, value._data)
        share_version(view)[0] += 1
        return
    apply_inplace(put_at, (view, advanced, value, False))


def _write_basic(view, value):
    if isinstance(value, Tensor):
        value = _without_leading_ones(value, view._data.ndim)
        if value._data.shape != view._data.shape:
            value = expand.apply((value, view._data.shape))
        copy_(view, value)
    elif isinstance(value, (int, float, complex, CPU.generic)):
        fill_(view, value)
    else:
        raise _cannot_assign(view, value)


def _write_advanced(array, index, values):
    namespace_of(array).check_places(array.shape, index)
    try:
        array[index] = _fitting(values, lambda: array[index].ndim)
    except IndexError as error:
        raise _translated(error, array, index) from None
    except ValueError:
        raise _shape_mismatch(values, array, index) from None


def _as_value(input, index, value) -> Tensor:
    if not isinstance(value, Tensor):
        if not isinstance(value, (int, float, complex, CPU.generic)):
            raise _cannot_assign(input, value)
        t = _new(Tensor)
        t._data = namespace_of(input._data).asarray(value).astype(input._data.dtype)
        return t
    if value._data.dtype != input._data.dtype:
        given = [i for i in index if not isinstance(i, slice)]
        # PyTorch fills under a single mask, which converts; anything else needs equal dtypes
        if len(given) > 1 or given[0].dtype.kind != "b" or value._data.size != 1:
            raise _dtype_mismatch(input._data, value._data)
        value = REGISTRY["to_dtype"].apply((value, input.dtype))
    return value


def _cannot_assign(input, value):
    return TypeError(
        f"can't assign a {type(value).__name__} to a torch.{type_name(input.dtype)}Tensor"
    )


def _without_leading_ones(value, ndim):
    shape = value._data.shape
    while len(shape) > ndim and shape[0] == 1:
        shape = shape[1:]
    return value if shape == value._data.shape else REGISTRY["reshape"].apply((value, shape))


def index_put(input: Tensor, indices, values: Tensor, accumulate=False) -> Tensor:
    """``input`` with ``values`` put (or added, repeated places adding up) at index tensors.

    Args:
        indices: tuple of integer tensors or masks, one for each of the first dims.
        values: broadcast to the shape that ``input[indices]`` has; of the input's dtype.

    Raises:
        RuntimeError: if dtypes differ or shapes do not broadcast. IndexError: out of range.
    """
    return put_at.apply((input, _raw_indices(input, indices), values, accumulate))


def index_put_(input: Tensor, indices, values: Tensor, accumulate=False) -> Tensor:
    """In-place form of ``index_put``; returns self."""
    return apply_inplace(put_at, (input, _raw_indices(input, indices), values, accumulate))


def _raw_indices(input, indices):
    if isinstance(indices, Tensor) or not isinstance(indices, (tuple, list)):
        raise TypeError(
            "index_put(): argument 'indices' (position 1) must be tuple of Tensors, not "
            f"{type(indices).__name__}"
        )
    index = tuple(_ALL if i is None else i._data for i in indices)
    if sum(i.ndim if i is not _ALL and i.dtype.kind == "b" else 1 for i in index) > input.ndim:
        raise _too_many(input)
    return tuple(
        i if i is _ALL else i.astype(bool) if i.dtype.kind == "u" else i for i in index
    )


COMPOSITES = {"index_put": index_put}
FUNCTIONS = {"index_put_": index_put_}
METHODS = {"index_put_": index_put_, "__getitem__": getitem, "__setitem__": setitem}
