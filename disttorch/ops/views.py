"""Views: new shapes and orders over the same memory."""

from __future__ import annotations

import math
import operator

from ..backend import dtypes
from ..tensor import Tensor
from .core import op, wrap_dim
from .elementwise_core import expand_error
from .samples import case


def check_shape(shape, size: int) -> tuple:
    """A shape with its −1 filled in.

    Raises:
        RuntimeError: if the elements do not fit.
    """
    shape = tuple(map(int, shape))
    if math.prod(shape) == size and min(shape, default=0) >= 0:
        return shape
    holes = shape.count(-1)
    if holes > 1:
        raise RuntimeError("only one dimension can be inferred")
    if any(s < -1 for s in shape):
        at, bad = next((i, s) for i, s in enumerate(shape) if s < -1)
        raise RuntimeError(
            f"invalid shape dimension {bad} at index {at} of shape {list(shape)}"
        )
    known = math.prod(s for s in shape if s != -1)
    if holes:
        if known == 0:
            raise RuntimeError(
                f"cannot reshape tensor of 0 elements into shape {list(shape)} because the "
                "unspecified dimension size -1 can be any value and is ambiguous"
            )
        if size % known:
            raise RuntimeError(f"shape '{list(shape)}' is invalid for input of size {size}")
        return tuple(size // known if s == -1 else s for s in shape)
    if known != size:
        raise RuntimeError(f"shape '{list(shape)}' is invalid for input of size {size}")
    return shape


@op(view=True, method=False, samples=lambda m: [
    case(m(3, 4), (4, 3)), case(m(2, 6), (-1, 3, 2)), case(m(), (1, 1)), case(m(0, 3), (3, 0)),
    case(m(3, 4).t(), (12,)),
])
def reshape(xp, input, shape):
    """The same elements in another shape; a view where the memory allows it."""
    return xp.reshaped(input, check_shape(shape, input.size))


@reshape.grad("input")
def _(F, g, input_shape):
    return F.reshape(g, input_shape)


@op(view=True, method=False, name="view", samples=lambda m: [
    case(m(3, 4), (4, 3)), case(m(2, 6), (-1, 3, 2))])
def _view(xp, input, shape):
    shape = check_shape(shape, input.size)
    if input.flags.c_contiguous:
        return input.reshape(shape)
    out = input.reshape(shape)
    if out.base is not input and (out.base is None or out.base is not input.base):  # it is a copy
        raise RuntimeError(
            "view size is not compatible with input tensor's size and stride (at least one "
            "dimension spans across two contiguous subspaces). Use .reshape(...) instead."
        )
    return out


@_view.grad("input")
def _(F, g, input_shape):
    return F.reshape(g, input_shape)


@op(view=True, method=False, samples=lambda m: [
    case(m(3, 4), 0, 1), case(m(2, 3, 4), -1, 0), case(m(), 0, -1)])
def transpose(xp, input, dim0, dim1):
    """Two dims exchanged."""
    dim0, dim1 = wrap_dim(dim0, input.ndim), wrap_dim(dim1, input.ndim)
    return input.swapaxes(dim0, dim1) if input.ndim else input.view()


@transpose.grad("input")
def _(F, g, dim0, dim1):
    return F.transpose(g, dim0, dim1)


@op(view=True, method=False, samples=lambda m: [
    case(m(2, 3, 4), (2, 0, 1)), case(m(2, 3), (-1, 0))])
def permute(xp, input, dims):
    """The dims in another order."""
    if len(dims) != input.ndim:
        raise RuntimeError(
            "permute(sparse_coo): number of dimensions in the tensor input does not match the "
            f"length of the desired ordering of dimensions i.e. input.dim() = {input.ndim} is not "
            f"equal to len(dims) = {len(dims)}"
        )
    dims = tuple(wrap_dim(d, input.ndim) for d in dims)
    if len(set(dims)) != len(dims):
        raise RuntimeError("permute(): duplicate dims are not allowed.")
    return input.transpose(dims)


@permute.grad("input")
def _(F, g, dims):
    n = len(dims)
    back = [0] * n
    for i, d in enumerate(dims):
        back[d % n] = i
    return F.permute(g, tuple(back))


@op(view=True, method=False, samples=lambda m: [
    case(m(3, 1), (3, 4)), case(m(3, 1), (2, -1, 4)), case(m(), (2, 2)), case(m(1, 3), (-1, 3)),
])
def expand(xp, input, shape):
    """Dims of size 1 (and new ones in front) repeated without copying."""
    shape, lead = tuple(shape), len(shape) - input.ndim
    if lead >= 0 and min(shape, default=0) >= 0:
        try:
            return xp.broadcast_to(input, shape)
        except ValueError:
            pass  # what is wrong is said below
    if lead < 0:
        raise RuntimeError(
            f"expand({_kind(input)}{{{list(input.shape)}}}, size={list(shape)}): the number of "
            f"sizes provided ({len(shape)}) must be greater or equal to the number of dimensions "
            f"in the tensor ({input.ndim})"
        )
    full = []
    for i in reversed(range(len(shape))):
        s, have = shape[i], input.shape[i - lead] if i >= lead else None
        if s == -1:
            if have is None:
                raise RuntimeError(
                    f"expand({_kind(input)}{{{list(input.shape)}}}, size={list(shape)}): the "
                    "expanded size of the tensor (-1) isn't allowed in a leading, non-existing "
                    f"dimension {i}"
                )
            s = have
        elif have not in (None, 1, s):
            raise expand_error(input.shape, _filled_in(shape, input.shape))
        full.append(s)
    return xp.broadcast_to(input, tuple(full[::-1]))


def _filled_in(shape, have):
    lead = len(shape) - len(have)
    return tuple(have[i - lead] if s == -1 and i >= lead else s for i, s in enumerate(shape))


def _kind(a):
    return f"torch.{a.dtype.name}"


@expand.grad("input")
def _(F, g, input_shape):
    return F.sum_to(g, input_shape)


@op(view=True, samples=lambda m: [case(m(3, 4), 0), case(m(3, 4), -1), case(m(), 0)])
def unsqueeze(xp, input, dim):
    """A new dim of size 1 at position ``dim``."""
    return input[(*(slice(None),) * wrap_dim(dim, input.ndim + 1), None)]


@unsqueeze.grad("input")
def _(F, g, input_shape):
    return F.reshape(g, input_shape)


@op(view=True, samples=lambda m: [
    case(m(3, 1, 4)), case(m(3, 1, 4), 1), case(m(3, 4), 0), case(m(1, 2, 1), (0, 2)), case(m()),
])
def squeeze(xp, input, dim=None):
    """Dims of size 1 removed: all, or those of ``dim`` that have size 1."""
    if dim is None:
        return input.squeeze()
    dims = (dim,) if isinstance(dim, int) else dim
    drop = tuple(d for d in (wrap_dim(d, input.ndim) for d in dims)
                 if input.ndim and input.shape[d] == 1)
    return input.squeeze(drop) if drop else input.view()


@squeeze.grad("input")
def _(F, g, input_shape):
    return F.reshape(g, input_shape)


@op(view=True, method=False, name="slice", samples=lambda m: [
    case(m(4, 5), (slice(1, 3),)), case(m(4, 5), (2, slice(None, None, 2))),
    case(m(4, 5, 2), (Ellipsis, 0)), case(m(4), (None, slice(1, None))), case(m(3), (-1,)),
])
def basic_index(xp, input, index):
    """Basic indexing (numbers, slices, None, ...): a view."""
    out = input[index]
    # an index that leaves one element gives NumPy's scalar, a copy: keep it a 0-dim view
    return out if isinstance(out, xp.ndarray) else input[(*index, Ellipsis)]


@basic_index.grad("input")
def _(F, g, input_shape, index):
    return F.slice_backward(g, input_shape, index)


@op(method=False, moves=True, samples=lambda m: [
    case(m(2, 5), (4, 5), (slice(1, 3),)), case(m(), (3,), (1,))])
def slice_backward(xp, input, shape, index):
    """Zeros of ``shape`` with ``input`` at ``index`` (basic)."""
    found = _block(shape, index)
    if found is not None:
        starts, lengths = found
        return xp.framed(input.reshape(lengths), shape, starts)
    out = xp.zeros(shape, input.dtype)
    xp.assign(out[(*index, Ellipsis)] if Ellipsis not in index else out[index], input)
    return out


def _block(shape, index):
    """(where it begins, how long it is) along every dim of what a basic index shows of ``shape``; None
    where a slice leaves elements out."""
    used = sum([i is not None and i is not Ellipsis for i in index])
    starts: list[int] = []
    lengths: list[int] = []
    for i in index:
        if i is None:
            continue
        d = len(starts)
        if i is Ellipsis:
            for n in shape[d:d + len(shape) - used]:
                starts.append(0)
                lengths.append(n)
        elif i.__class__ is slice:
            start, stop, step = i.indices(shape[d])
            if step != 1:
                return None
            starts.append(start)
            lengths.append(max(stop - start, 0))
        else:
            starts.append(i + shape[d] if i < 0 else i)
            lengths.append(1)
    rest = shape[len(starts):]
    return (*starts, *[0] * len(rest)), (*lengths, *rest)


@slice_backward.grad("input")
def _(F, g, index):
    return F.slice(g, index)


@op(view=True, nout=0, method=False, samples=lambda m: [
    case(m(5, 2), (2, 3), 0), case(m(2, 4), (1, 3), -1)])
def split_with_sizes(xp, input, split_sizes, dim=0):
    """Views of consecutive pieces along ``dim``."""
    dim = wrap_dim(dim, input.ndim)
    if builtin_sum(split_sizes) != input.shape[dim]:
        raise RuntimeError(
            f"split_with_sizes expects split_sizes to sum exactly to {input.shape[dim]} (input "
            f"tensor's size at dimension {dim}), but got split_sizes={list(split_sizes)}"
        )
    lead, pieces, start = (slice(None),) * dim, [], 0
    for n in split_sizes:
        pieces.append(input[(*lead, slice(start, start + n))])
        start += n
    return tuple(pieces)


@split_with_sizes.grad("input")
def _(F, g, input_shape, split_sizes, dim):
    shape = list(input_shape)
    like = next(x for x in g if x is not None)
    parts = []
    for n, piece in zip(split_sizes, g):
        shape[dim] = n
        parts.append(F.zeros_shaped(like, tuple(shape)) if piece is None else piece)
    return F.cat(parts, dim)


@op(view=True, nout=0, samples=lambda m: [case(m(3, 4)), case(m(3, 4), 1)])
def unbind(xp, input, dim=0):
    """Views of the slices along ``dim``, without that dim."""
    dim = wrap_dim(dim, input.ndim)
    lead = (slice(None),) * dim
    return tuple(input[(*lead, i, Ellipsis)] for i in range(input.shape[dim]))


@unbind.grad("input")
def _(F, g, dim):
    like = next(x for x in g if x is not None)
    return F.stack([F.zeros_like(like) if x is None else x for x in g], dim)


@op(view=True, samples=lambda m: [
    case(m(3, 4)), case(m(3, 4), 1), case(m(2, 3, 4), -1, 0, 2)])
def diagonal(xp, input, offset=0, dim1=0, dim2=1):
    """The diagonal over two dims, as a new last dim: a view."""
    dim1, dim2 = wrap_dim(dim1, input.ndim), wrap_dim(dim2, input.ndim)
    if dim1 == dim2:
        raise RuntimeError(f"diagonal dimensions cannot be identical {dim1}, {dim2}")
    out = xp.diagonal(input, offset, dim1, dim2)
    return _writeable(xp, out)


def _writeable(xp, view):
    """NumPy hands out some views read-only although their base may be written."""
    if xp.name == "numpy" and not view.flags.writeable:
        view.flags.writeable = True
    return view


@diagonal.grad("input")
def _(F, g, input_shape, offset, dim1, dim2):
    return F.diagonal_scatter(F.zeros_shaped(g, input_shape), g, offset, dim1, dim2)


@op(tensors=("input", "src"), moves=True, samples=lambda m: [
    case(m(3, 4), m(3)), case(m(3, 3), m(2), 1)])
def diagonal_scatter(xp, input, src, offset=0, dim1=0, dim2=1):
    """``input`` with its diagonal replaced by ``src``."""
    out = xp.contiguous_copy(input)
    diagonal = _writeable(xp, xp.diagonal(out, offset, dim1, dim2))
    if src.shape != diagonal.shape:
        raise RuntimeError(
            "expected src to have a size equal to the slice of self. src size = "
            f"{list(src.shape)}, slice size = {list(diagonal.shape)}"
        )
    xp.assign(diagonal, src)
    return out


@diagonal_scatter.grad("input")
def _(F, g, src_shape, offset, dim1, dim2):
    return F.diagonal_scatter(g, F.zeros_shaped(g, src_shape), offset, dim1, dim2)


@diagonal_scatter.grad("src")
def _(F, g, offset, dim1, dim2):
    return F.diagonal(g, offset, dim1, dim2)


@op(view=True, method=False, name="alias", samples=lambda m: [case(m(3))])
def alias(xp, input):
    """A view of the whole."""
    return input.view()


@alias.grad("input")
def _(F, g):
    return g


# ---------------------------------------------------------------- composites
builtin_sum = sum


def sizes(args) -> tuple:
    """``f(2, 3)`` and ``f((2, 3))`` alike."""
    if len(args) == 1 and args[0].__class__ is not int and hasattr(args[0], "__iter__"):
        args = args[0]
    try:
        return tuple(map(operator.index, args))
    except TypeError:
        raise TypeError(f"argument 'size' must be tuple of ints, not {args!r}") from None


def flatten(input: Tensor, start_dim=0, end_dim=-1) -> Tensor:
    """Dims start_dim..end_dim as one."""
    if input.ndim == 0:
        return reshape.call(input, (1,))
    start, end = wrap_dim(start_dim, input.ndim), wrap_dim(end_dim, input.ndim)
    if start > end:
        raise RuntimeError("flatten() has invalid args: start_dim cannot come after end_dim")
    if start == end:
        return input
    shape = input._data.shape
    return reshape.call(input, shape[:start] + (math.prod(shape[start:end + 1]),) + shape[end + 1:])


def unflatten(input: Tensor, dim, sizes) -> Tensor:
    """One dim as several; one of their sizes may be −1."""
    if not len(sizes):
        raise RuntimeError("unflatten: sizes must be non-empty")
    dim, shape = wrap_dim(dim, input.ndim), input._data.shape
    try:
        parts = check_shape(sizes, shape[dim])
    except RuntimeError:
        raise RuntimeError(
            f"unflatten: Provided sizes {list(sizes)} don't multiply up to the size of dim {dim} "
            f"({shape[dim]}) in the input tensor"
        ) from None
    return reshape.call(input, shape[:dim] + parts + shape[dim + 1:])


def select(input: Tensor, dim: int, index: int) -> Tensor:
    """The slice at ``index`` along ``dim``, without that dim.

    Raises:
        IndexError: if the index is out of range.
    """
    dim, n = wrap_dim(dim, input.ndim), input._data.shape[dim]
    if not -n <= index < n:
        raise IndexError(
            f"select(): index {index} out of range for tensor of size {list(input._data.shape)} at "
            f"dimension {dim}"
        )
    return basic_index.call(input, (slice(None),) * dim + (int(index),))


def narrow(input: Tensor, dim: int, start: int, length: int) -> Tensor:
    """Elements start..start+length along ``dim``."""
    dim, n, start = wrap_dim(dim, input.ndim), input._data.shape[dim], int(start)
    if length < 0:
        raise RuntimeError("narrow(): length must be non-negative.")
    if not -n <= start <= n or (start + n if start < 0 else start) + length > n:
        raise RuntimeError(f"start ({start}) + length ({length}) exceeds dimension size ({n}).")
    start = start + n if start < 0 else start
    return basic_index.call(input, (slice(None),) * dim + (slice(start, start + length),))


def narrow_copy(input: Tensor, dim: int, start: int, length: int) -> Tensor:
    """A copy of elements start..start+length along ``dim``."""
    from .casts import clone_contiguous

    return clone_contiguous.call(narrow(input, dim, start, length))


def split(input: Tensor, split_size_or_sections=None, dim=0, *, split_size=None) -> tuple:
    """Pieces of a given size (the last may be smaller), or of the listed sizes.

    The method's name for the size is ``split_size``.
    """
    split_size = split_size_or_sections if split_size is None else split_size
    n = input._data.shape[wrap_dim(dim, input.ndim)]
    if isinstance(split_size, int):
        if split_size < 0 or (split_size == 0 and n):
            raise RuntimeError(
                f"split expects split_size be non-negative, but got split_size={split_size}"
            )
        full = n // split_size if split_size else 0
        rest = n - full * split_size
        split_size = [split_size] * full + ([rest] if rest or not n else [])
    return split_with_sizes.call(input, tuple(split_size), dim)


def chunk(input: Tensor, chunks: int, dim=0) -> tuple:
    """At most ``chunks`` pieces of equal size (the last may be smaller)."""
    if chunks <= 0:
        raise RuntimeError(f"chunk expects `chunks` to be greater than 0, got: {chunks}")
    n = input._data.shape[wrap_dim(dim, input.ndim)]
    size = -(-n // chunks)
    if size == 0:
        return split_with_sizes.call(input, (0,) * chunks, dim)
    return split(input, size, dim)


def t(input: Tensor) -> Tensor:
    """The transpose of a matrix; vectors unchanged."""
    if input.ndim > 2:
        raise RuntimeError(f"t() expects a tensor with <= 2 dimensions, but self is {input.ndim}D")
    return transpose.call(input, 0, 1) if input.ndim == 2 else alias.call(input)


def movedim(input: Tensor, source, destination) -> Tensor:
    """Dims moved to new places, the others in order."""
    source = [source] if isinstance(source, int) else list(source)
    destination = [destination] if isinstance(destination, int) else list(destination)
    source = [wrap_dim(d, input.ndim) for d in source]
    destination = [wrap_dim(d, input.ndim) for d in destination]
    order = [d for d in range(input.ndim) if d not in source]
    for to, d in sorted(zip(destination, source)):
        order.insert(to, d)
    return permute.call(input, tuple(order))


def swapaxes(input: Tensor, axis0, axis1) -> Tensor:
    """Two dims exchanged (NumPy's name of ``transpose``)."""
    return transpose.call(input, axis0, axis1)


def contiguous(input: Tensor, memory_format=None) -> Tensor:
    """The same values in row-major memory, or in ``memory_format``; itself if they lie so already."""
    from . import casts, memory_formats

    if memory_format is not None:
        return memory_formats.contiguous(input, memory_format)
    return input if input._data.flags.c_contiguous else casts.clone_contiguous.call(input)


def expand_as(input: Tensor, other: Tensor) -> Tensor:
    """Expanded to the shape of ``other``."""
    return expand.call(input, other._data.shape)


def view_as(input: Tensor, other: Tensor) -> Tensor:
    """Viewed in the shape of ``other``."""
    return _view.call(input, other._data.shape)


def _method_of(made, unpack):
    def method(self, *args, **kwargs) -> Tensor:
        for key in ("shape", "size", "dims", "sizes"):
            if key in kwargs:
                args = (*args, kwargs.pop(key))
        if not args:
            raise TypeError(
                f"{made.name}() missing 1 required positional argument: {made.params[1]!r}"
            )
        return made.call(self, unpack(args), **kwargs)

    method.__name__, method.__doc__ = made.name, made.forward.__doc__
    return method


def view(input: Tensor, *shape, **kwargs) -> Tensor:
    """The same memory in another shape, or with its bytes read as another dtype."""
    if "dtype" in kwargs or shape and isinstance(shape[0], dtypes.dtype):
        from .geometry import view_dtype

        return view_dtype(input, kwargs.get("dtype") or shape[0])
    return _view.call(input, sizes(shape or (kwargs["size"],)))


COMPOSITES = {
    "flatten": flatten, "unflatten": unflatten, "select": select, "narrow": narrow, "split": split,
    "chunk": chunk, "t": t, "movedim": movedim, "moveaxis": movedim, "swapaxes": swapaxes,
    "swapdims": transpose.call, "transpose": transpose.call, "ravel": flatten,
    "expand_as": expand_as, "reshape": reshape.call, "permute": permute.call,
    "split_with_sizes": split_with_sizes.call, "unsafe_split_with_sizes": split_with_sizes.call,
    "unsafe_split": split, "unsafe_chunk": chunk, "narrow_copy": narrow_copy,
}
METHODS = {
    "reshape": _method_of(reshape, sizes), "permute": _method_of(permute, sizes),
    "expand": _method_of(expand, sizes), "view": view, "contiguous": contiguous,
    "view_as": view_as, "reshape_as": lambda a, b: reshape.call(a, b._data.shape),
    "split_with_sizes": split_with_sizes.call,
}
