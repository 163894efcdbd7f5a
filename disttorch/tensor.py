"""The Tensor: an array, its gradient, and its place in the graph.

This file holds the data structure only. Operators and methods are attached by ``ops`` as they are
registered, ``backward`` by ``autograd``. Attributes that few tensors need have class-level defaults,
so making a tensor sets one attribute.
"""

from __future__ import annotations

from typing import Any

from .backend import device_of, dtypes
from .backend import devices as _devices


class Size(tuple):
    """A tensor's shape: a tuple that knows its product."""

    __slots__ = ()

    def numel(self) -> int:
        n = 1
        for s in self:
            n *= s
        return n

    def __repr__(self):
        return f"torch.Size([{', '.join(map(str, self))}])"

    __str__ = __repr__

    def __add__(self, other):
        return Size(tuple.__add__(self, tuple(other)))

    def __mul__(self, n):
        return Size(tuple.__mul__(self, n))

    def __getitem__(self, index):
        got = tuple.__getitem__(self, index)
        return Size(got) if isinstance(index, slice) else got

    def __reduce__(self):
        return (Size, (tuple(self),))


class Tensor:
    """A multi-dimensional array on one device that remembers how it was computed.

    Attributes (internal; each has one meaning everywhere):
        _data: the NumPy or CuPy array.
        _rg: whether gradients flow to it: a leaf that asked for them, or a result of one.
        _node, _out_nr: the graph node that made it, and which of its outputs it is.
        _grad: the accumulated gradient, a Tensor or None.
        _ver: the version counter [n], shared by all views of one storage; None while it is 0 and
            nobody shares it.
        _base, _view_ops: for a view, the tensor that owns the storage and the (op, arguments)
            pairs that lead from it to this view; None otherwise.
        _view_ver: the version at which ``_node`` of a view was made; a later in-place change of
            the base makes the node stale, and it is rebuilt on next use.
    """

    _rg = False
    _node: Any = None
    _out_nr = 0
    _grad: Tensor | None = None
    _ver: list[int] | None = None
    _base: Tensor | None = None
    _view_ops: tuple | None = None
    _view_ver = 0
    _view_kind: str | None = None
    _hooks: dict | None = None
    _acc_hooks: dict | None = None
    _retains = False
    _acc: Any = None
    _name = None
    _inference = False
    _local_tensor: Tensor | None = None  # of a distributed tensor: the part that this rank holds

    # Only NumPy's scalars and arrays on the left of an operator ask for this: it makes them give way
    __array_priority__ = 1000

    def __new__(cls, *args, **kwargs):
        return object.__new__(cls)

    def __init__(self, *sizes, dtype=None, device=None):
        """The legacy constructor: sizes give uninitialised memory, a sequence gives its data."""
        self._data = _legacy_data(self, sizes, dtypes.get_default_dtype(), device)

    # ---------------------------------------------------------------- what it is
    @property
    def shape(self) -> Size:
        return Size(self._data.shape)

    @property
    def dtype(self) -> dtypes.dtype:
        return dtypes.FROM_NP[self._data.dtype]

    @property
    def device(self) -> _devices.device:
        return device_of(self._data)

    @property
    def ndim(self) -> int:
        return self._data.ndim

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def is_cpu(self) -> bool:
        return self.device.type == "cpu"

    @property
    def is_meta(self) -> bool:
        return self.device.type == "meta"

    is_sparse = is_quantized = is_mps = is_xpu = is_nested = is_mkldnn = False

    @property
    def layout(self):
        return strided

    @property
    def itemsize(self) -> int:
        return self._data.itemsize

    @property
    def nbytes(self) -> int:
        return self._data.nbytes

    # ---------------------------------------------------------------- its place in the graph
    @property
    def requires_grad(self) -> bool:
        return self._rg or (self._base is not None and self._base._rg)

    @requires_grad.setter
    def requires_grad(self, value: bool):
        if self.grad_fn is not None:
            if not value:
                raise RuntimeError(
                    "you can only change requires_grad flags of leaf variables. If you want to "
                    "use a computed variable in a subgraph that doesn't require differentiation "
                    "use var_no_grad = var.detach()."
                )
            return
        if value and self.dtype.category < dtypes.FLOAT:
            raise RuntimeError(
                "only Tensors of floating point and complex dtype can require gradients"
                f" (this one is {self.dtype})"
            )
        if value and self._inference:
            from .autograd.modes import state

            if not state.inference:
                raise RuntimeError(
                    "Setting requires_grad=True on inference tensor outside InferenceMode is not "
                    "allowed: clone() it first."
                )
        self._rg = bool(value)

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Ask for gradients of this leaf (in place); returns self."""
        self.requires_grad = requires_grad
        return self

    @property
    def is_leaf(self) -> bool:
        return self.grad_fn is None

    @property
    def grad_fn(self):
        return current_node(self)

    @property
    def output_nr(self) -> int:
        return self._out_nr

    @property
    def grad(self) -> Tensor | None:
        return self._grad

    @grad.setter
    def grad(self, value: Tensor | None):
        if value is not None:
            if not isinstance(value, Tensor):
                raise TypeError(
                    "assigned grad expected to be a Tensor or None but got grad of type "
                    f"{type(value).__name__}"
                )
            if value is self:
                raise RuntimeError("can't assign Variable as its own grad")
            if value._data.shape != self._data.shape:
                raise RuntimeError(
                    f"attempting to assign a gradient of size '{list(value._data.shape)}' to a "
                    f"tensor of size '{list(self._data.shape)}'. Please ensure that the gradient "
                    "and the tensor are the same size"
                )
            if value._data.dtype != self._data.dtype:
                raise RuntimeError(
                    f"attempting to assign a gradient with dtype '{value.dtype.name}' to a tensor "
                    f"with dtype '{self.dtype.name}': they must match"
                )
            if value.device != self.device:
                raise RuntimeError(
                    f"assigned grad has data located on a different device: {value.device}, but the "
                    f"tensor is on {self.device}"
                )
        self._grad = value

    @grad.deleter
    def grad(self):
        self._grad = None

    @property
    def retains_grad(self) -> bool:
        return self._retains

    @property
    def _version(self) -> int:
        return 0 if self._ver is None else self._ver[0]

    @property
    def data(self) -> Tensor:
        """The same storage outside the graph; changes through it are not tracked."""
        return wrap(self._data)

    @data.setter
    def data(self, other: Tensor):
        if not isinstance(other, Tensor):
            raise TypeError(f"Variable data has to be a tensor, but got {type(other).__name__}")
        if self._rg and other.dtype.category < dtypes.FLOAT:
            raise RuntimeError(
                "data set to a tensor that requires gradients must be floating point or complex "
                f"dtype, got {other.dtype}"
            )
        self._data = other._data

    def _view_is_stale(self) -> bool:
        """Whether an in-place change has given the base a node this view's node knows nothing of."""
        ver = self._ver
        return ver is not None and ver[0] != self._view_ver and self._base._node is not None

    def _rebuild_view_node(self) -> None:
        """Replay the view's operations from its changed base to get the node it now has."""
        t = self._base
        for op, args in self._view_ops:
            t = op.replay(t, args)
        self._node, self._out_nr, self._rg = t._node, t._out_nr, t._rg
        self._view_ver = self._ver[0]

    def is_inference(self) -> bool:
        """Whether it was made under ``inference_mode``."""
        return self._inference

    def __hash__(self):
        return id(self)

    def __reduce_ex__(self, protocol):
        from .interop import reduce_tensor

        return reduce_tensor(self)

    def __deepcopy__(self, memo):
        from .interop import deepcopy_tensor

        return deepcopy_tensor(self, memo)


class layout_type:
    """How a tensor's elements lie in memory; disttorch has dense strided tensors only."""

    def __repr__(self):
        return "torch.strided"


strided = layout_type()


class memory_format:
    """The order of elements in memory: row-major, or with the channels (dim 1) innermost. It changes
    speed, never values."""

    def __init__(self, name: str):
        self.name = name

    def __repr__(self):
        return f"torch.{self.name}"

    def __reduce__(self):
        return self.name


contiguous_format = memory_format("contiguous_format")
preserve_format = memory_format("preserve_format")
channels_last = memory_format("channels_last")
channels_last_3d = memory_format("channels_last_3d")


def wrap(array) -> Tensor:
    """A new tensor over an array, outside any graph."""
    t = _new(Tensor)
    t._data = array
    return t


_new = object.__new__


def _legacy_data(tensor, sizes, dtype, device):
    from . import ops

    return ops.creation.legacy_tensor_data(sizes, dtype, device)


def current_node(t: Tensor):
    """The node that made ``t``; a view whose base has changed since is given a new one first."""
    if t._base is not None and t._view_is_stale():
        t._rebuild_view_node()
    return t._node


__all__ = ["Size", "Tensor", "current_node", "strided", "wrap"]
