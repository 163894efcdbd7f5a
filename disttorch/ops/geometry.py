"""Views by strides, and tensors that change their own shape in place."""

from __future__ import annotations

import math

from ..autograd.graph import bump_version, share_version
from ..backend import dtypes, namespace_of
from ..tensor import Tensor, wrap
from .core import REGISTRY, op, type_name
from .inplace import check_inplace
from .samples import case
from .views import permute, sizes, t, transpose


# ---------------------------------------------------------------- views by strides
@op(view=True, method=False, name="as_strided", samples=lambda m: [
    case(m(3, 4), (2, 2), (1, 5), 1, ((4, 1), 0, 12)),
    case(m(5), (3, 3), (1, 1), 0, ((1,), 0, 5)), case(m(2, 3), (2,), (0,), 3, ((3, 1), 0, 6)),
])
def strided(xp, input, size, stride, storage_offset, geometry):
    """The window ``size``/``stride``/``storage_offset`` of the memory behind ``input``.

    ``geometry`` is where the input lies in its memory. A gradient of the same shape may lie
    elsewhere: it is first laid out the same way (and can then only be read).
    """
    if xp.geometry(input) == geometry:
        return xp.strided_window(input, size, stride, storage_offset)
    strides, offset, length = geometry
    memory = xp.zeros(length, input.dtype)
    memory[xp.strided_places(input.shape, strides, offset)] = input
    window = xp.strided_window(memory, size, stride, storage_offset)
    if xp.name == "numpy":
        window.flags.writeable = False
    return window


@strided.grad("input")
def _(F, g, input_shape, size, stride, storage_offset, geometry):
    return F.as_strided_backward(g, input_shape, stride, storage_offset, geometry)


@op(method=False, samples=lambda m: [
    case(m(2, 2), (3, 4), (1, 5), 1, ((4, 1), 0, 12)), case(m(3, 3), (5,), (1, 1), 0, ((1,), 0, 5)),
])
def as_strided_backward(xp, input, shape, stride, storage_offset, geometry):
    """What a window's elements add up to in the memory, read where the window's source lies."""
    strides, offset, length = geometry
    memory = xp.zeros(length, input.dtype)
    places = xp.strided_places(input.shape, stride, storage_offset)
    xp.scatter_at("add", memory, places, input)
    places = xp.strided_places(shape, strides, offset)
    out = memory[places]
    if 0 in strides:  # several elements of the source are one place: they share its gradient
        count = xp.zeros(length, input.dtype)
        xp.scatter_at("add", count, places, 1)
        out = out / count[places]
    return out


@as_strided_backward.grad("input")
def _(F, g, input_shape, stride, storage_offset, geometry):
    if 0 in geometry[0]:
        raise NotImplementedError("as_strided of an expanded tensor has no second derivative")
    return F.as_strided(g, input_shape, stride, storage_offset, geometry)


def as_strided(input: Tensor, size, stride, storage_offset=None) -> Tensor:
    """A view of the memory behind ``input`` with any shape, strides and offset (in elements).

    Raises:
        RuntimeError: if it would reach outside the memory, or a stride is negative.
    """
    size, stride = tuple(map(int, size)), tuple(map(int, stride))
    xp = namespace_of(input._data)
    geometry = xp.geometry(input._data)
    offset = geometry[1] if storage_offset is None else int(storage_offset)
    if len(size) != len(stride):
        raise RuntimeError("mismatch in length of strides and shape")
    if any(s < 0 for s in stride):
        raise RuntimeError(
            "as_strided: Negative strides are not supported at the moment, got strides: "
            f"{list(stride)}"
        )
    if offset < 0:
        raise RuntimeError(f"Tensor: invalid storage offset {offset}")
    if math.prod(size):
        last = offset + sum((n - 1) * s for n, s in zip(size, stride))
        if last >= geometry[2]:
            item = input._data.itemsize
            raise RuntimeError(
                f"setStorage: sizes {list(size)}, strides {list(stride)}, storage offset {offset}, "
                f"and itemsize {item} requiring a storage size of {(last + 1) * item} are out of "
                f"bounds for storage of size {geometry[2] * item}"
            )
    return strided.apply((input, size, stride, offset, geometry))


def as_strided_scatter(input: Tensor, src: Tensor, size, stride, storage_offset=None) -> Tensor:
    """A row-major copy of ``input`` whose window ``size``/``stride`` is replaced by ``src``."""
    input = input.contiguous()
    geometry = ((*_row_major(input._data.shape),), 0, input.numel())
    view = (strided, ((tuple(size), tuple(stride), storage_offset or 0, geometry), None))
    if tuple(size) != src._data.shape:
        raise RuntimeError(
            "expected src to have a size equal to the slice of self. src size = "
            f"{list(src._data.shape)}, slice size = {list(size)}"
        )
    return REGISTRY["view_scatter"].call(input, src, (view,))


def _row_major(shape):
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= max(n, 1)
    return tuple(reversed(strides))


def view_dtype(input: Tensor, dtype) -> Tensor:
    """The same bytes read as another element type; sizes of the last dim change with its width."""
    a, have, want = input._data, input._data.itemsize, dtype.itemsize
    words = f"view {type_name(input.dtype)} as {type_name(dtype)} (different element sizes)"
    if have != want:
        if a.ndim == 0:
            raise RuntimeError(f"self.dim() cannot be 0 to {words}")
        if a.size and a.strides[-1] != have and a.shape[-1] != 1:
            raise RuntimeError(
                f"self.stride(-1) must be 1 to {words}, but got {a.strides[-1] // have}"
            )
        ratio = want // have
        if ratio > 1 and a.shape[-1] % ratio:
            raise RuntimeError(
                f"self.size(-1) must be divisible by {ratio} to {words}, but got {a.shape[-1]}"
            )
    if dtype is input.dtype:
        return REGISTRY["alias"].call(input)
    result = wrap(a.view(dtype.np))
    result._ver = share_version(input)
    return result


# ---------------------------------------------------------------- transposes as attributes
def _reversed(self) -> Tensor:
    """All dims in reverse order."""
    return permute.apply((self, tuple(range(self._data.ndim))[::-1]))


def _matrix_transpose(self) -> Tensor:
    """The last two dims exchanged."""
    _need_matrix(self, "mT")
    return transpose.apply((self, -2, -1))


def _adjoint(self) -> Tensor:
    """The last two dims exchanged and conjugated."""
    _need_matrix(self, "mH")
    return _conj(transpose.apply((self, -2, -1)))


def _matrix_adjoint(self) -> Tensor:
    """The conjugate transpose of a matrix."""
    if self._data.ndim not in (0, 2):
        raise RuntimeError(
            f"tensor.H is only supported on matrices (2-D tensors). Got {self._data.ndim}-D tensor."
        )
    return _conj(_reversed(self))


def _conj(a):
    return REGISTRY["conjugate"].call(a) if a.dtype.category == dtypes.COMPLEX else a


def _need_matrix(a, name):
    if a._data.ndim < 2:
        raise RuntimeError(
            f"tensor.{name} is only supported on matrices or batches of matrices. Got "
            f"{a._data.ndim}-D tensor."
        )


# ---------------------------------------------------------------- changes of one's own shape
def _becomes(self: Tensor, view: Tensor) -> Tensor:
    """Let a tensor be what a view of it is: same memory, new shape, recorded like the view."""
    check_inplace(self, "metadata")
    self._data = view._data
    if view._node is not None:
        self._node, self._out_nr, self._rg = view._node, view._out_nr, view._rg
    if self._base is not None:
        self._view_ops = view._view_ops
    bump_version(self)
    if self._base is not None:
        self._view_ver = self._ver[0]
    return self


def _in_place(name, function):
    def method(self, *args, **kwargs):
        return _becomes(self, function(self, *args, **kwargs))

    method.__name__ = method.__qualname__ = name + "_"
    method.__doc__ = f"In-place form of ``{name}``: same memory, new shape; returns self."
    return method


def resize_(self: Tensor, *shape, memory_format=None) -> Tensor:
    """Give this tensor another size, with new memory if it needs more; returns self.

    New elements hold arbitrary values.

    Raises:
        RuntimeError: if it requires grad.
    """
    if self.requires_grad:
        raise RuntimeError("cannot resize variables that require grad")
    shape = sizes(shape)
    if any(n < 0 for n in shape):
        raise RuntimeError(f"requested resize to {list(shape)}: a size is negative")
    if shape == self._data.shape:
        return self
    xp, count = namespace_of(self._data), math.prod(shape)
    _, offset, length = xp.geometry(self._data)
    if offset + count <= length:
        self._data = xp.strided_window(self._data, shape, _row_major(shape), offset)
    else:
        grown = xp.empty(count, self._data.dtype)
        flat, start, _ = xp.storage_of(self._data)
        kept = flat[start:start + count]
        grown[:kept.size] = kept
        self._data = grown.reshape(shape)
    bump_version(self)
    return self


def resize_as_(self: Tensor, other: Tensor, memory_format=None) -> Tensor:
    """Give this tensor the size of ``other``; returns self."""
    return resize_(self, other._data.shape)


def set_(self: Tensor, source: Tensor | None = None) -> Tensor:
    """Let this tensor use the memory, size and strides of ``source`` (none: become empty)."""
    if source is None:
        self._data = namespace_of(self._data).empty(0, self._data.dtype)
        return self
    if not isinstance(source, Tensor):
        raise NotImplementedError("set_() takes a tensor; storages are not built")
    if source.dtype is not self.dtype:
        raise RuntimeError(
            f"Could not set tensor of type {type_name(source.dtype)} to a tensor of type "
            f"{type_name(self.dtype)}"
        )
    self._data = source._data
    self._ver = share_version(source)
    return self


def fill_diagonal_(self: Tensor, fill_value, wrap=False) -> Tensor:
    """Set the main diagonal (of all dims together) to ``fill_value``; returns self.

    With ``wrap`` the diagonal of a tall matrix starts again after each N+1 rows.

    Raises:
        RuntimeError: with fewer than 2 dims, or more than 2 that differ.
    """
    shape = self._data.shape
    if len(shape) < 2:
        raise RuntimeError("dimensions must larger than 1")
    if len(shape) > 2 and len(set(shape)) > 1:
        raise RuntimeError("all dimensions of input must be of equal length")
    size, step = min(shape), sum(self.stride())
    starts = range(0, shape[0], shape[1] + 1) if wrap and len(shape) == 2 else (0,)
    offset = self.storage_offset()
    for row in starts:
        count = min(size, shape[0] - row)
        as_strided(self, (count,), (step,), offset + row * self.stride(0)).fill_(fill_value)
    return self


COMPOSITES = {"as_strided": as_strided, "as_strided_scatter": as_strided_scatter}
METHODS = {
    "T": property(_reversed), "mT": property(_matrix_transpose), "mH": property(_adjoint),
    "H": property(_matrix_adjoint), "resize_": resize_, "resize_as_": resize_as_, "set_": set_,
    "fill_diagonal_": fill_diagonal_,
    "squeeze_": _in_place("squeeze", REGISTRY["squeeze"].call),
    "unsqueeze_": _in_place("unsqueeze", REGISTRY["unsqueeze"].call),
    "t_": _in_place("t", t), "transpose_": _in_place("transpose", transpose.call),
    "swapdims_": _in_place("swapdims", transpose.call),
    "swapaxes_": _in_place("swapaxes", transpose.call),
    "as_strided_": _in_place("as_strided", as_strided),
}
