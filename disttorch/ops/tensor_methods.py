"""Methods of Tensor that are not operations of the graph: sizes, conversion to Python and NumPy."""

from __future__ import annotations

from ..autograd.graph import RemovableHandle, add_accumulated_hook
from ..backend import CPU, dtypes, namespace_of, ndarray
from ..tensor import Size, Tensor, current_node
from . import memory_formats
from .compare import where as _where
from .core import REGISTRY, argument_must_be_tensor, device_error, wrap_dim


def size(self, dim=None):
    """The shape, or the size of one dim."""
    shape = self._data.shape
    if dim is None:
        return Size(shape)
    n = len(shape)
    if not -n <= dim < n:
        from .core import wrap_dim

        wrap_dim(dim, n)
        raise IndexError(f"Dimension specified as {dim} but tensor has no dimensions")
    return shape[dim]


def dim(self) -> int:
    """The number of dims."""
    return self._data.ndim


def numel(self) -> int:
    """The number of elements."""
    return self._data.size


def stride(self, dim=None):
    """Elements between neighbours along each dim (or one)."""
    item, shape = self._data.itemsize, self._data.shape
    strides = [s // item for s in self._data.strides]
    for d in reversed(range(len(shape))):
        if shape[d] == 1 and strides[d] == 0:  # NumPy has 0 where PyTorch counts on
            strides[d] = strides[d + 1] * shape[d + 1] if d + 1 < len(shape) else 1
    strides = tuple(strides)
    return strides if dim is None else strides[wrap_dim(dim, self._data.ndim)]


def is_contiguous(self, memory_format=None) -> bool:
    """Whether the elements lie without gaps in row-major order, or in that of ``memory_format``."""
    if memory_format is not None:
        return memory_formats.is_contiguous(self, memory_format)
    return self._data.flags.c_contiguous


def element_size(self) -> int:
    """Bytes of one element."""
    return self._data.itemsize


def data_ptr(self) -> int:
    """The address of the first element."""
    if hasattr(self._data, "ctypes"):
        return self._data.ctypes.data
    return self._data.data.ptr


def storage_offset(self) -> int:
    """Elements between the start of the storage and the first element."""
    return namespace_of(self._data).offset_of(self._data)


def _as_number(self, kind):
    if self._data.size != 1:
        raise ValueError(
            "only one element tensors can be converted to Python scalars, not one of shape "
            f"{list(self._data.shape)}"
        )
    value = item(self)
    if isinstance(value, complex):
        if value.imag:
            raise RuntimeError(f"value {value} cannot be converted to {kind.__name__}: not real")
        value = value.real
    return kind(value)


def item(self):
    """The only element as a Python number.

    Raises:
        RuntimeError: if there is not exactly one.
    """
    if self._data.size != 1:
        raise RuntimeError(
            f"a Tensor with {self._data.size} elements cannot be converted to Scalar"
        )
    array = self._data
    value = array.item() if array.__class__ is ndarray else namespace_of(array).to_host(array).item()
    return value if isinstance(value, (int, float, complex)) else float(value)


def tolist(self):
    """Nested lists of Python numbers; a number for a 0-dim tensor."""
    array = namespace_of(self._data).to_host(self._data)
    if array.dtype == dtypes.bfloat16.np:
        array = array.astype("float32")
    return array.tolist()


def numpy(self, *, force=False):
    """The elements as a NumPy array over the same memory.

    Raises:
        RuntimeError: if the tensor requires grad. TypeError: if it is on a GPU, or bfloat16.
    """
    if force:
        return namespace_of(self._data).to_host(self._data)
    if self.requires_grad:
        raise RuntimeError(
            "Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead."
        )
    if not isinstance(self._data, CPU.ndarray):
        raise TypeError(
            f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() to copy the "
            "tensor to host memory first."
        )
    if self._data.dtype == dtypes.bfloat16.np:
        raise TypeError("Got unsupported ScalarType BFloat16")
    return self._data


def array_protocol(self, dtype=None, copy=None):
    """``numpy.asarray(tensor)``: shares memory where it can."""
    array = numpy(self)
    if dtype is None:
        return array.copy() if copy else array
    return array.astype(dtype, copy=bool(copy))


def bool_of(self):
    if self._data.size != 1:
        if self._data.size == 0:
            raise RuntimeError("Boolean value of Tensor with no values is ambiguous")
        raise RuntimeError("Boolean value of Tensor with more than one value is ambiguous")
    return bool(self._data.item())


def index_of(self):
    if self._data.size != 1 or self.dtype.category > dtypes.INT:
        raise TypeError("only integer tensors of a single element can be converted to an index")
    return int(self._data.item())


def length(self):
    if self._data.ndim == 0:
        raise TypeError("len() of a 0-d tensor")
    return self._data.shape[0]


def iterate(self):
    if self._data.ndim == 0:
        raise TypeError("iteration over a 0-d tensor")
    return iter(REGISTRY["unbind"].call(self, 0))


def contains(self, element):
    if not isinstance(element, (Tensor, int, float, complex)):
        raise RuntimeError(
            "Tensor.__contains__ only supports Tensor or scalar, but you passed in a "
            f"{type(element)}."
        )
    return bool((self == element).any().item())


def repeat(self, *sizes) -> Tensor:
    """The tensor tiled: ``sizes`` repetitions along each dim."""
    from .views import sizes as unpack

    sizes = unpack(sizes)
    lead = len(sizes) - self.ndim
    if lead < 0:
        raise RuntimeError(
            "Number of dimensions of repeat dims can not be smaller than number of dimensions of "
            "tensor"
        )
    shape = (1,) * lead + self._data.shape
    t = REGISTRY["reshape"].call(self, tuple(x for s in shape for x in (1, s)))
    t = REGISTRY["expand"].call(t, tuple(x for n, s in zip(sizes, shape) for x in (n, s)))
    return REGISTRY["reshape"].call(t, tuple(n * s for n, s in zip(sizes, shape)))


def where_method(self, condition, other) -> Tensor:
    """self where the condition holds, else other."""
    return _where.call(condition, self, other)


def where(condition, input=None, other=None, *, out=None):
    """Elements of ``input`` where the condition holds, else of ``other``; alone, the indices."""
    if input is None and other is None:
        return nonzero(condition, as_tuple=True)
    return _where.call(condition, input, other, out=out)


def nonzero(input, *, as_tuple=False):
    """Indices of the nonzero elements, N×ndim (or one vector per dim)."""
    from ..tensor import wrap

    xp = namespace_of(input._data)
    found = xp.nonzero(input._data) if input.ndim else xp.nonzero(input._data.reshape(1))
    if as_tuple:
        return tuple(wrap(i) for i in found)
    if not input.ndim:
        return wrap(xp.empty((len(found[0]), 0), dtypes.int64.np))
    return wrap(xp.stack(found, axis=1).astype(dtypes.int64.np))


def equal(input, other) -> bool:
    """Whether two tensors have the same shape and elements."""
    if not isinstance(other, Tensor):
        raise argument_must_be_tensor("equal", "other", 2, other)
    a, b = input._data, other._data
    _check_devices("equal", a, b)
    return a.shape == b.shape and bool((a == b).all())


def _check_devices(name, a, b) -> None:
    if a.__class__ is not b.__class__:
        raise device_error(name, a, b)


def allclose(input, other, rtol=1e-05, atol=1e-08, equal_nan=False) -> bool:
    """|input − other| <= atol + rtol·|other| everywhere."""
    return bool(isclose(input, other, rtol, atol, equal_nan)._data.all())


def isclose(input, other, rtol=1e-05, atol=1e-08, equal_nan=False) -> Tensor:
    """|input − other| <= atol + rtol·|other|, elementwise."""
    from ..tensor import wrap

    if input._data.dtype != other._data.dtype:
        raise RuntimeError(
            f"{_c(input)} did not match {_c(other)}: isclose needs tensors of one dtype"
        )
    xp = namespace_of(input._data)
    a, b = input._data, other._data
    _check_devices("isclose", a, b)
    if a.dtype.itemsize == 2 and a.dtype.kind not in "iu":
        a, b = a.astype("float32"), b.astype("float32")
    return wrap(xp.asarray(xp.isclose(a, b, rtol, atol, equal_nan)))


def _c(t):
    return t.dtype.name


def is_floating_point(input) -> bool:
    """Whether the dtype is a real floating point type."""
    return input.dtype.is_floating_point


def is_complex(input) -> bool:
    """Whether the dtype is complex."""
    return input.dtype.is_complex


def is_tensor(obj) -> bool:
    """Whether ``obj`` is a tensor."""
    return isinstance(obj, Tensor)


# ---------------------------------------------------------------- hooks
def register_hook(self, hook):
    """Call ``hook(grad)`` when this tensor's gradient is computed; a returned tensor replaces it.

    Returns:
        A handle with ``remove()``.

    Raises:
        RuntimeError: if the tensor does not require grad.
    """
    if not self.requires_grad:
        raise RuntimeError("cannot register a hook on a tensor that doesn't require gradient")
    node = current_node(self)
    if node is None:
        if self._hooks is None:
            self._hooks = {}
        return RemovableHandle(self._hooks, hook)
    if node.hooks is None:
        node.hooks = {}
    return RemovableHandle(node.hooks.setdefault(self._out_nr, {}), hook)


def register_post_accumulate_grad_hook(self, hook):
    """Call ``hook(tensor)`` after a gradient was added to this leaf's ``.grad``.

    Raises:
        RuntimeError: if the tensor is no leaf that requires grad.
    """
    if not self.requires_grad:
        raise RuntimeError("cannot register a hook on a tensor that doesn't require gradient")
    if current_node(self) is not None:
        raise RuntimeError(
            "post accumulate grad hooks cannot be registered on non-leaf tensors"
        )
    return add_accumulated_hook(self, hook)


def retain_grad(self) -> None:
    """Keep the gradient of this non-leaf in ``.grad`` when backward passes it."""
    import weakref

    if not self.requires_grad:
        raise RuntimeError("can't retain_grad on Tensor that has requires_grad=False")
    node = current_node(self)
    if node is None or self._retains:
        return
    self._retains = True
    if node.retain is None:
        node.retain = {}
    node.retain[self._out_nr] = weakref.ref(self)


def show(self, *, tensor_contents=None):
    from ..printing import tensor_text

    return tensor_text(self, tensor_contents)


def format_of(self, spec):
    # As in PyTorch, a single number formats as such, tracked or not; a Parameter shows itself.
    if self._data.ndim == 0 and type(self) is Tensor:
        return format(self.item(), spec)
    return object.__format__(self, spec)


def real(input):
    """The real part; real tensors unchanged."""
    from ..tensor import wrap

    return wrap(input._data.real) if input.is_complex() else input


METHODS = {
    f.__name__: f
    for f in (size, dim, numel, stride, is_contiguous, element_size, data_ptr, storage_offset,
              item, tolist, numpy, repeat, nonzero, equal, allclose, isclose,
              is_floating_point, is_complex, register_hook, register_post_accumulate_grad_hook,
              retain_grad)
}
METHODS |= {
    "where": where_method, "nelement": numel, "ndimension": dim, "__len__": length,
    "__bool__": bool_of, "__iter__": iterate, "__contains__": contains,
    "__index__": index_of, "__array__": array_protocol, "__repr__": show, "__str__": show,
    "__format__": format_of,
    "__float__": lambda self: _as_number(self, float), "__int__": lambda self: _as_number(self, int),
    "__complex__": lambda self: complex(item(self)),
}
FUNCTIONS = {
    f.__name__: f
    for f in (numel, nonzero, equal, allclose, isclose, is_floating_point,
              is_complex, is_tensor)
}
