"""Rearranging elements: flips, rolls, triangles, diagonals, windows, grids."""

from __future__ import annotations

import math
import operator

from ..backend import dtypes, namespace_of
from ..tensor import Size, Tensor, wrap
from .core import REGISTRY, op, wrap_dim, write_out
from .join import cat, stack
from .samples import case
from .views import expand, reshape, sizes


# ---------------------------------------------------------------- reversing and rolling
@op(moves=True, method=False, out=False, samples=lambda m: [
    case(m(3, 4), (0,)), case(m(2, 3, 4), (0, -1)), case(m(2, 0, 3), (1,)), case(m(3), ()),
])
def flip(xp, input, dims):
    """The order of elements reversed along each of ``dims`` (a copy)."""
    dims = tuple(wrap_dim(d, input.ndim) for d in dims)
    if len(set(dims)) != len(dims):
        repeated = next(d for d in dims if dims.count(d) > 1)
        raise RuntimeError(f"dim {repeated} appears multiple times in the list of dims")
    return xp.contiguous_copy(xp.flip(input, dims) if dims and input.ndim else input)


@flip.grad("input")
def _(F, g, dims):
    return F.flip(g, dims)


def _flip(input: Tensor, *dims) -> Tensor:
    """The order of elements reversed along each of ``dims``: a copy, unlike NumPy's."""
    return flip.apply((input, sizes(dims)))


_flip.__name__ = "flip"


def fliplr(input: Tensor) -> Tensor:
    """The columns in reverse order."""
    if input.ndim < 2:
        raise RuntimeError("Input must be >= 2-d.")
    return flip.apply((input, (1,)))


def flipud(input: Tensor) -> Tensor:
    """The rows in reverse order."""
    if input.ndim < 1:
        raise RuntimeError("Input must be >= 1-d.")
    return flip.apply((input, (0,)))


@op(moves=True, method=False, name="roll", out=False, samples=lambda m: [
    case(m(3, 4), (1,), (0,)), case(m(2, 3, 4), (2, -1), (0, 2)), case(m(3, 4), (2,), ()),
    case(m(0, 3), (1,), (0,)), case(m(2, 5), (-7,), (1,))])
def _roll(xp, input, shifts, dims):
    return xp.roll(input, shifts if dims else shifts[0], dims or None)


@_roll.grad("input")
def _(F, g, shifts, dims):
    return F.roll(g, tuple(-s for s in shifts), dims)


def roll(input: Tensor, shifts, dims=None) -> Tensor:
    """Elements moved by ``shifts`` along ``dims``, those beyond the end re-entering at the front.

    Without dims the flattened tensor is rolled.
    """
    shifts = (shifts,) if isinstance(shifts, int) else tuple(shifts)
    dims = () if dims is None else (dims,) if isinstance(dims, int) else tuple(dims)
    if not shifts:
        raise RuntimeError("`shifts` required")
    if not dims and len(shifts) == 1:
        return _roll.apply((input, shifts, ()))
    if len(shifts) != len(dims):
        raise RuntimeError(
            f"shifts and dimensions must align. shifts: {len(shifts)}, dims:{len(dims)}"
        )
    return _roll.apply((input, shifts, tuple(wrap_dim(d, input.ndim) for d in dims)))


def rot90(input: Tensor, k=1, dims=(0, 1)) -> Tensor:
    """Turned by k·90° in the plane of two dims, from the first towards the second."""
    if len(dims) != 2:
        raise RuntimeError(f"expected total rotation dims == 2, but got dims = {len(dims)}")
    if input.ndim < 2:
        raise RuntimeError(f"expected total dims >= 2, but got total dims = {input.ndim}")
    a, b = (wrap_dim(d, input.ndim) for d in dims)
    if a == b:
        raise RuntimeError(
            f"expected rotation dims to be different, but got dim0 = {a} and dim1 = {b}"
        )
    k %= 4
    if k == 0:
        return REGISTRY["clone"].call(input)
    if k == 2:
        return flip.apply((input, (a, b)))
    turned = flip.apply((input, (b if k == 1 else a,)))
    return REGISTRY["transpose"].call(turned, a, b)


# ---------------------------------------------------------------- triangles and diagonals
def _triangle(name, doc):
    def forward(xp, input, diagonal=0):
        if not isinstance(diagonal, int):
            raise TypeError(
                f"{name}(): argument 'diagonal' (position 2) must be int, not "
                f"{type(diagonal).__name__}"
            )
        if input.ndim < 2:
            raise RuntimeError(f"{name}: input tensor must have at least 2 dimensions")
        return getattr(xp, name)(input, diagonal)

    forward.__name__, forward.__doc__ = name, doc
    made = op(moves=True, inplace=True, samples=lambda m: [
        case(m(3, 4)), case(m(4, 3), 1), case(m(2, 3, 3), -1), case(m(0, 3)), case(m(3, 3), -5),
    ])(forward)
    made.grad("input")(_tril_rule if name == "tril" else _triu_rule)
    return made


def _tril_rule(F, g, diagonal):
    return F.tril(g, diagonal)


def _triu_rule(F, g, diagonal):
    return F.triu(g, diagonal)


tril = _triangle("tril", "Each matrix without what lies above its ``diagonal``.")
triu = _triangle("triu", "Each matrix without what lies below its ``diagonal``.")


@op(moves=True, out=False, samples=lambda m: [
    case(m(3)), case(m(2, 3), 1), case(m(2, 3), -2, 0, 2), case(m(2, 3), 0, 1, 0)])
def diag_embed(xp, input, offset=0, dim1=-2, dim2=-1):
    """Zeros with ``input``'s last dim on a diagonal over two new dims."""
    dim1, dim2 = wrap_dim(dim1, input.ndim + 1), wrap_dim(dim2, input.ndim + 1)
    if dim1 == dim2:
        raise RuntimeError(f"diagonal dimensions cannot be identical {dim1}, {dim2}")
    n = input.shape[-1] + abs(offset)
    out = xp.zeros((*input.shape[:-1], n, n), input.dtype)
    k = xp.arange(input.shape[-1])
    out[..., k + max(-offset, 0), k + max(offset, 0)] = input
    return xp.moveaxis(out, (-2, -1), (dim1, dim2))


@diag_embed.grad("input")
def _(F, g, offset, dim1, dim2):
    return F.diagonal(g, offset, dim1, dim2)


def diag(input: Tensor, diagonal=0, *, out=None) -> Tensor:
    """The diagonal of a matrix, or a matrix with a vector on its diagonal."""
    if input.ndim == 1:
        result = diag_embed.call(input, diagonal)
    elif input.ndim == 2:
        result = REGISTRY["clone"].call(REGISTRY["diagonal"].call(input, diagonal))
    else:
        raise RuntimeError(f"diag(): Supports 1D or 2D tensors. Got {input.ndim}D")
    return result if out is None else write_out(result, out, "diag")


def diagflat(input: Tensor, offset=0) -> Tensor:
    """A matrix with the flattened input on its diagonal."""
    return diag_embed.call(reshape.call(input, (-1,)), offset)


def _linalg_diagonal(A: Tensor, *, offset=0, dim1=-2, dim2=-1) -> Tensor:
    """The diagonals of the last two dims: a view."""
    return REGISTRY["diagonal"].call(A, offset, dim1, dim2)


def trace(input: Tensor) -> Tensor:
    """The sum of a matrix's diagonal."""
    if input.ndim != 2:
        raise RuntimeError(f"trace: expected a matrix, but got tensor with dim {input.ndim}")
    return REGISTRY["sum"].call(REGISTRY["diagonal"].call(input))


# ---------------------------------------------------------------- windows over a dim
def _windows(xp, a, dim, size, step):
    """The view with one more dim: windows of ``size`` starting every ``step`` along ``dim``."""
    dim = wrap_dim(dim, a.ndim)
    n = a.shape[dim] if a.ndim else 1
    if size > n:
        raise RuntimeError(
            f"maximum size for tensor at dimension {dim} is {n} but size is {size}"
        )
    if size < 0:
        raise RuntimeError(f"size is {size} but must be >= 0")
    if step <= 0:
        raise RuntimeError(f"step is {step} but must be > 0")
    if a.ndim == 0:
        return a.reshape(1)[:size]
    count = (n - size) // step + 1
    shape = (*a.shape[:dim], count, *a.shape[dim + 1:], size)
    strides = (*a.strides[:dim], a.strides[dim] * step, *a.strides[dim + 1:], a.strides[dim])
    return xp.strided_view(a, shape, strides)


@op(view=True, method=False, name="unfold", samples=lambda m: [
    case(m(7), 0, 3, 1), case(m(2, 7), 1, 2, 3), case(m(5, 3), 0, 2, 2), case(m(6), -1, 6, 1),
])
def unfold(xp, input, dimension, size, step):
    """Windows of ``size`` elements, one every ``step`` along a dim, as a new last dim: a view."""
    return _windows(xp, input, dimension, size, step)


@unfold.grad("input")
def _(F, g, input_shape, dimension, size, step):
    return F.unfold_backward(g, input_shape, dimension, size, step)


@op(moves=False, method=False, samples=lambda m: [
    case(m(5, 3), (7,), 0, 3, 1), case(m(2, 2, 2), (2, 7), 1, 2, 3)])
def unfold_backward(xp, input, input_sizes, dim, size, step):
    """Windows added up where they came from: the adjoint of ``unfold``."""
    out = xp.zeros(input_sizes, input.dtype)
    if not out.ndim:
        return input.sum() + out
    dim = wrap_dim(dim, out.ndim)
    lead, count = (slice(None),) * dim, input.shape[dim]
    for k in range(size):  # element k of every window: these places never coincide
        out[(*lead, slice(k, k + (count - 1) * step + 1, step))] += input[..., k]
    return out


@unfold_backward.grad("input")
def _(F, g, dim, size, step):
    return F.unfold(g, dim, size, step)


# ---------------------------------------------------------------- repeating
def tile(input: Tensor, *dims) -> Tensor:
    """Repeated ``dims`` times along each dim; missing counts in front are 1."""
    dims = sizes(dims)
    return input.repeat((1,) * (input.ndim - len(dims)) + dims)


def repeat_interleave(input: Tensor, repeats=None, dim=None, *, output_size=None) -> Tensor:
    """Each element (of the flattened tensor, or along ``dim``) repeated in place.

    Args:
        input: any shape; alone (without ``repeats``) the counts of 0, 1, 2, ... themselves.
        repeats: a number, or integers: one, or one for each element along ``dim``.

    Raises:
        RuntimeError: for negative counts or another number of them.
    """
    if repeats is None:
        return wrap(_repeat_index(input, None))
    if dim is None:
        input, dim = reshape.call(input, (-1,)), 0
    if input.ndim == 0:
        input = reshape.call(input, (1,))
    n = input._data.shape[wrap_dim(dim, input.ndim)]
    index = wrap(_repeat_index(repeats, n, namespace_of(input._data)))
    if output_size is not None and output_size != index.numel():
        raise RuntimeError(
            f"repeat_interleave: output_size is {output_size} but the repeats add up to "
            f"{index.numel()}"
        )
    return REGISTRY["index_select"].call(input, dim, index)


def _repeat_index(repeats, n, xp=None):
    if isinstance(repeats, Tensor):
        counts, xp = repeats._data, namespace_of(repeats._data)
        if counts.ndim > 1:
            raise RuntimeError("repeat_interleave only accept 1D vector as repeat")
        if counts.dtype.kind not in "iu":
            raise RuntimeError("repeats has to be Long or Int tensor")
    elif isinstance(repeats, (tuple, list)):
        counts = xp.asarray(repeats)
    else:
        counts = xp.asarray(operator.index(repeats))
    if counts.size and int(counts.min()) < 0:
        raise RuntimeError("repeats can not be negative")
    if n is not None and counts.ndim and counts.size not in (1, n):
        raise RuntimeError(
            f"repeats must have the same size as input along dim, but got repeats.size(0) = "
            f"{counts.size} and input.size(dim) = {n}"
        )
    if counts.size == 1 and n is not None:
        counts = int(counts.reshape(()))
    return xp.repeat(xp.arange(n if n is not None else counts.size), counts).astype(dtypes.int64.np)


# ---------------------------------------------------------------- broadcasting
def broadcast_shapes(*shapes) -> Size:
    """The shape that tensors of these shapes broadcast to.

    Raises:
        RuntimeError: if they do not.
    """
    shapes = tuple((s,) if isinstance(s, int) else tuple(s) for s in shapes)
    width = max((len(s) for s in shapes), default=0)
    out = [1] * width
    for s in shapes:
        for k, n in enumerate(s, width - len(s)):
            if n < 0:
                raise RuntimeError(
                    f"Trying to create tensor with negative dimension ({n}): ({list(s)})"
                )
            if n != 1 and out[k] not in (1, n):
                raise RuntimeError(
                    "Shape mismatch: objects cannot be broadcast to a single shape: "
                    f"{', '.join(str(list(s)) for s in shapes)}"
                )
            out[k] = n if n != 1 else out[k]
    return Size(out)


def broadcast_to(input: Tensor, size) -> Tensor:
    """``input`` expanded to ``size`` without copying."""
    return expand.call(input, tuple(size))


def broadcast_tensors(*tensors) -> tuple:
    """All tensors expanded to their common shape."""
    tensors = _unpacked(tensors)
    shape = _common_shape(tensors)
    return tuple(expand.call(t, shape) for t in tensors)


def _common_shape(tensors):
    shapes = [t._data.shape for t in tensors]
    try:
        return tuple(broadcast_shapes(*shapes))
    except RuntimeError:
        width = max(map(len, shapes))
        for k in range(1, width + 1):
            have = [s[-k] for s in shapes if len(s) >= k and s[-k] != 1]
            if len(set(have)) > 1:
                raise RuntimeError(
                    f"The size of tensor a ({have[0]}) must match the size of tensor b "
                    f"({next(n for n in have if n != have[0])}) at non-singleton dimension "
                    f"{width - k}"
                ) from None
        raise


def _unpacked(tensors):
    if len(tensors) == 1 and isinstance(tensors[0], (tuple, list)):
        return list(tensors[0])
    return list(tensors)


# ---------------------------------------------------------------- grids and combinations
def meshgrid(*tensors, indexing=None) -> tuple:
    """Coordinate grids of vectors: views of shape N0×N1×…

    Args:
        tensors: vectors or 0-dim tensors, separate or as one list.
        indexing: "ij" (the default: dims in the order of the inputs) or "xy" (first two swapped).
    """
    tensors = _unpacked(tensors)
    if not tensors:
        raise ValueError("meshgrid expects a non-empty TensorList")
    for t in tensors:
        if t.ndim > 1:
            raise RuntimeError(
                f"torch.meshgrid: Expected 0D or 1D tensor in the tensor list but got: {t!r}"
            )
        if t.dtype is not tensors[0].dtype:
            raise RuntimeError("torch.meshgrid expects all tensors to have the same dtype")
    indexing = "ij" if indexing is None else indexing
    if indexing not in ("ij", "xy"):
        raise RuntimeError(
            f'torch.meshgrid: indexing must be one of "xy" or "ij", but received: {indexing}'
        )
    swap = indexing == "xy" and len(tensors) >= 2
    if swap:
        tensors = (tensors[1], tensors[0], *tensors[2:])
    shape = tuple(t.numel() for t in tensors)
    grids = [
        expand.call(reshape.call(t, tuple(n if k == i else 1 for k in range(len(shape)))), shape)
        for i, (t, n) in enumerate(zip(tensors, shape))
    ]
    if swap:
        grids[0], grids[1] = grids[1], grids[0]
    return tuple(grids)


def cartesian_prod(*tensors) -> Tensor:
    """All combinations of one element from each vector, a row each."""
    tensors = _unpacked(tensors)
    for t in tensors:
        if t.ndim != 1:
            raise RuntimeError(f"Expect a 1D vector, but got shape {list(t._data.shape)}")
    if len(tensors) == 1:
        return tensors[0]
    grids = meshgrid(*tensors, indexing="ij")
    return stack.call([reshape.call(g, (g.numel(),)) for g in grids], 1)


def combinations(input: Tensor, r=2, with_replacement=False) -> Tensor:
    """All combinations of r elements of a vector, a row each, in lexicographic order."""
    import itertools

    if input.ndim != 1:
        raise RuntimeError(f"Expect a 1D vector, but got shape {list(input._data.shape)}")
    if r < 0:
        raise RuntimeError(f"Expect a non-negative number, but got {r}")
    if r == 0:
        return wrap(namespace_of(input._data).empty((0,), input._data.dtype))
    choose = itertools.combinations_with_replacement if with_replacement else itertools.combinations
    rows = list(choose(range(input.numel()), r))
    index = namespace_of(input._data).asarray(rows, dtypes.int64.np).reshape(len(rows), r)
    return REGISTRY["index"].call(input, (index,))


def block_diag(*tensors) -> Tensor:
    """A matrix with the given ones (vectors count as rows) along its diagonal, zeros elsewhere."""
    tensors = _unpacked(tensors)
    blocks = []
    for i, t in enumerate(tensors):
        if t.ndim > 2:
            raise RuntimeError(
                "torch.block_diag: Input tensors must have 2 or fewer dimensions. Input "
                f"{i} has {t.ndim} dimensions"
            )
        blocks.append(t if t.ndim == 2 else reshape.call(t, (1, t.numel())))
    width, start, rows = sum(b._data.shape[1] for b in blocks), 0, []
    for b in blocks:
        n, m = b._data.shape
        where = (slice(None), slice(start, start + m))
        rows.append(REGISTRY["slice_backward"].call(b, (n, width), where))
        start += m
    return cat.call(rows, 0)


def vander(x: Tensor, N=None, increasing=False) -> Tensor:
    """Powers of a vector's elements in columns (Vandermonde), falling unless ``increasing``."""
    if x.ndim != 1:
        raise RuntimeError("x must be a one-dimensional tensor.")
    powers = linalg_vander(x, N=x.numel() if N is None else N)
    return powers if increasing else flip.apply((powers, (1,)))


def linalg_vander(x: Tensor, *, N=None) -> Tensor:
    """Powers 0 … N−1 of the elements, as a new last dim."""
    count = x._data.shape[-1] if N is None else N
    if count < 0:
        raise RuntimeError(f"N must be greater than 0. Got {count}")
    one = REGISTRY["ones_like"].call(x)
    columns = [one]
    for _ in range(1, count):
        columns.append(columns[-1] * x)
    return stack.call(columns[:count], -1) if count else REGISTRY["slice"].call(
        REGISTRY["unsqueeze"].call(x, -1), (Ellipsis, slice(0, 0)))


def _triangle_indices(name):
    def indices(row, col, offset=0, *, dtype=dtypes.int64, device=None, layout=None) -> Tensor:
        from ..backend import devices, namespace_for

        if row < 0 or col < 0:
            raise RuntimeError(f"row and col must be non-negative, got {row} and {col}")
        place = devices.get_default_device() if device is None else devices.device(device)
        xp = namespace_for(place)
        found = getattr(xp, f"{name}_indices")(row, offset, col)
        return wrap(xp.stack(found).astype(dtype.np))

    indices.__name__ = f"{name}_indices"
    side = "below" if name == "tril" else "above"
    indices.__doc__ = f"Positions (2×N) on and {side} a diagonal of a row×col matrix, row by row."
    return indices


tril_indices, triu_indices = _triangle_indices("tril"), _triangle_indices("triu")


# ---------------------------------------------------------------- products
def kron(input: Tensor, other: Tensor, *, out=None) -> Tensor:
    """The Kronecker product: every element of ``input`` times all of ``other``."""
    n = max(input.ndim, other.ndim)
    a = (1,) * (n - input.ndim) + input._data.shape
    b = (1,) * (n - other.ndim) + other._data.shape
    left = reshape.call(input, tuple(x for s in a for x in (s, 1)))
    right = reshape.call(other, tuple(x for s in b for x in (1, s)))
    result = reshape.call(left * right, tuple(map(math.prod, zip(a, b))))
    return result if out is None else write_out(result, out, "kron")


COMPOSITES = {
    "flip": _flip, "fliplr": fliplr, "flipud": flipud, "roll": roll, "rot90": rot90, "diag": diag,
    "diagflat": diagflat, "trace": trace, "tile": tile, "repeat_interleave": repeat_interleave,
    "broadcast_to": broadcast_to, "kron": kron,
}
FUNCTIONS = {
    "meshgrid": meshgrid, "cartesian_prod": cartesian_prod, "combinations": combinations,
    "block_diag": block_diag, "vander": vander, "tril_indices": tril_indices,
    "triu_indices": triu_indices, "broadcast_tensors": broadcast_tensors,
    "broadcast_shapes": broadcast_shapes,
}
METHODS = {"unfold": unfold.call}
