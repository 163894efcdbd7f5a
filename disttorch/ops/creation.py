"""Making tensors: from data, filled, ranges."""

from __future__ import annotations

import math
import numbers

from ..autograd.modes import state
from ..backend import CPU, devices, dtypes, layouts, namespace_for, namespace_of
from ..tensor import Tensor, wrap
from . import memory_formats
from .core import mark_inference, write_out
from .views import sizes


def _place(device):
    return devices.get_default_device() if device is None else devices.device(device)


def _finish(t: Tensor, requires_grad: bool) -> Tensor:
    if requires_grad:
        t.requires_grad = True
    return mark_inference(t) if state.inference else t


def _check_options(layout, pin_memory, memory_format=None):
    from ..tensor import strided

    if layout not in (None, strided):
        raise NotImplementedError(f"disttorch has dense strided tensors only, not {layout!r}")


def tensor(data, *, dtype=None, device=None, requires_grad=False, pin_memory=False) -> Tensor:
    """A new leaf with a copy of ``data``: a number, nested sequences, an array or a tensor.

    Python ints give int64, floats the default dtype; arrays keep their dtype.

    Raises:
        ValueError: for ragged sequences.
        TypeError: for data that are no numbers.
    """
    if isinstance(data, Tensor):
        array = data._data
        xp = namespace_of(array) if device is None else namespace_for(_place(device))
        array = xp.from_host(namespace_of(array).to_host(array))
        out = xp.array(array, copy=True, dtype=array.dtype if dtype is None else dtype.np)
        return _finish(wrap(out), requires_grad)
    xp = namespace_for(_place(device))
    array = host_array(data, dtype)
    if array is data or isinstance(data, CPU.ndarray):
        array = array.copy()
    return _finish(wrap(xp.from_host(array)), requires_grad)


def host_array(data, dtype=None):
    """``data`` as a NumPy array of PyTorch's choice of dtype."""
    if isinstance(data, bool):
        return CPU.asarray(data, (dtype or dtypes.bool).np)
    if isinstance(data, (int, float, complex)):
        if isinstance(data, int) and not -(2**63) <= data < 2**63:
            raise ValueError(f"{data} does not fit into an int64")
        if dtype is not None:
            check_fits(data, dtype)
        return CPU.asarray(data).astype((dtype or dtypes.of_scalar(data)).np)
    if isinstance(data, Tensor):
        array = namespace_of(data._data).to_host(data._data)
    elif isinstance(data, (list, tuple, range)):
        array, converted = _from_sequence(data)
        if dtype is not None and dtype.category == dtypes.INT and array.size:
            check_fits(array.min().item(), dtype), check_fits(array.max().item(), dtype)
        if not converted and dtype is None and array.dtype.kind == "f":
            dtype = dtypes.get_default_dtype()
        elif not converted and dtype is None and array.dtype.kind == "c":
            dtype = dtypes.get_default_dtype().to_complex()
    elif hasattr(data, "__cuda_array_interface__"):
        array = namespace_of(data).to_host(data)
    elif hasattr(data, "__array__") or hasattr(data, "__array_interface__"):
        array = CPU.asarray(data)
    else:
        kind = TypeError if isinstance(data, (str, bytes)) else RuntimeError
        raise kind(f"Could not infer dtype of {type(data).__name__}: new() takes numbers")
    if dtype is None:
        dtype = dtypes.from_np(array.dtype)
    if array.dtype.kind in "OUSV" and array.dtype not in dtypes.FROM_NP:
        raise TypeError(f"can't convert data of type {array.dtype} to a tensor")
    return array.astype(dtype.np, copy=False)


def _from_sequence(data):
    """(array, whether the elements were arrays or tensors, which keep their dtype)."""
    if not len(data):
        return CPU.zeros(_empty_shape(data), dtypes.get_default_dtype().np), True
    first = data[0]
    while isinstance(first, (list, tuple)) and len(first):
        first = first[0]
    if isinstance(first, Tensor) or isinstance(first, (CPU.ndarray, CPU.generic)):
        array = CPU.asarray(_to_lists(data))
        if isinstance(first, Tensor):
            if array.dtype.kind == "f":
                return array.astype(dtypes.get_default_dtype().np), True
            return array, True
        return array, True
    try:
        array = CPU.asarray(data)
    except (ValueError, TypeError):
        raise _ragged(data) from None
    if array.dtype.kind == "O":
        raise _no_number(data) or _ragged(data)
    if array.dtype.kind in "US":
        raise _no_number(data)
    return array, False


def _no_number(data):
    """The error for the first element that is neither a number nor a sequence, if there is one."""
    for item in data:
        if isinstance(item, str):
            first = data[0]
            if item is first:
                return ValueError(f"too many dimensions 'str' (got {item!r})")
            return TypeError(f"new(): invalid data type 'str' (got {item!r})")
        if isinstance(item, (list, tuple)):
            if error := _no_number(item):
                return error
        elif not isinstance(item, (int, float, complex, Tensor)) and not hasattr(item, "__array__"):
            return RuntimeError(f"Could not infer dtype of {type(item).__name__}")
        elif isinstance(item, int) and not -(2**63) <= item < 2**63:
            return ValueError(f"{item} does not fit into an int64")
    return None


def _to_lists(data):
    if isinstance(data, Tensor):
        return data._data
    return [_to_lists(d) for d in data] if isinstance(data, (list, tuple)) else data


def _empty_shape(data):
    shape = []
    while isinstance(data, (list, tuple)):
        shape.append(len(data))
        if not data:
            break
        data = data[0]
    return tuple(shape)


def _ragged(data, dim=0):
    lengths = {len(d) for d in data if isinstance(d, (list, tuple))}
    if len(lengths) > 1 or any(not isinstance(d, (list, tuple)) for d in data) and lengths:
        want = len(data[0]) if isinstance(data[0], (list, tuple)) else 0
        bad = next((len(d) for d in data if isinstance(d, (list, tuple)) and len(d) != want), 0)
        return ValueError(f"expected sequence of length {want} at dim {dim + 1} (got {bad})")
    for d in data:
        if isinstance(d, (list, tuple)):
            error = _ragged(d, dim + 1)
            if error is not None:
                return error
        elif not isinstance(d, numbers.Number):
            return TypeError(f"new(): invalid data type '{type(d).__name__}'")
    return RuntimeError("data overflow: an integer does not fit int64")


def as_tensor(data, dtype=None, device=None) -> Tensor:
    """``data`` as a tensor, sharing memory with arrays and tensors where it can."""
    if isinstance(data, Tensor):
        from .casts import to

        return to(data, device=device, dtype=dtype) if device or dtype else data
    if isinstance(data, CPU.ndarray):
        t = from_numpy(data)
        return as_tensor(t, dtype, device) if device or dtype else t
    if hasattr(data, "__cuda_array_interface__") and _place(device).type == "cuda":
        return as_tensor(wrap(namespace_for(_place(device)).asarray(data)), dtype, device)
    return tensor(data, dtype=dtype, device=device)


def from_numpy(array) -> Tensor:
    """A tensor over a NumPy array's own memory.

    Raises:
        TypeError: for other objects and for element types that tensors lack.
    """
    if not isinstance(array, CPU.ndarray):
        raise TypeError(f"expected np.ndarray (got {type(array).__name__})")
    dtypes.from_np(array.dtype)
    if any(s < 0 for s in array.strides):
        raise ValueError(
            "At least one stride in the given numpy array is negative, and tensors with negative "
            "strides are not supported. (You can work around this with array.copy().)"
        )
    return wrap(array if type(array) is CPU.ndarray else CPU.asarray(array))


def frombuffer(buffer, *, dtype, count=-1, offset=0, requires_grad=False) -> Tensor:
    """A 1-D tensor of ``dtype`` over the memory of an object with the buffer protocol.

    Args:
        buffer: bytes-like; its memory is shared, so a read-only one is refused.
        dtype: of the elements.
        count: how many elements to take; -1 for all that fit.
        offset: bytes to skip before the first.

    Raises:
        ValueError: for an empty buffer, and for a count or offset that goes past its end.
        TypeError: for a read-only buffer; ``bytearray(buffer)`` makes a writable copy.
    """
    view = memoryview(buffer)
    if view.readonly:
        raise TypeError(
            "frombuffer(): the buffer is read-only and a tensor could write to it; pass "
            "bytearray(buffer)"
        )
    size, left = dtype.itemsize, view.nbytes - offset
    if not 0 <= offset < view.nbytes:
        raise ValueError(
            f"offset ({offset} bytes) must be non-negative and no greater than buffer length "
            f"({view.nbytes} bytes) minus 1"
        )
    if count == 0 or count < -1 or left < size * max(count, 1):
        raise ValueError(
            f"requested buffer length ({count} * {size} bytes) after offset ({offset} bytes) must "
            f"not be greater than actual buffer length ({view.nbytes} bytes)"
        )
    if count == -1 and left % size:
        raise ValueError(
            f"buffer length ({left} bytes) after offset ({offset} bytes) must be a multiple of "
            f"element size ({size})"
        )
    count = left // size if count == -1 else count
    t = wrap(CPU.frombuffer(buffer, dtype=dtype.np, count=count, offset=offset))
    return t.requires_grad_() if requires_grad else t


def _filled(name, fill):
    def make(*size, out=None, dtype=None, layout=None, device=None, requires_grad=False,
             pin_memory=False, memory_format=None):
        _check_options(layout, pin_memory)
        shape = _checked(sizes(size), name)
        xp = namespace_for(_place(device))
        if memory_formats.wants_last(memory_format, len(shape)):
            n, c, *rest = shape
            array = layouts.moved_back(getattr(xp, fill)((n, *rest, c), _dtype(dtype, name).np))
        else:
            array = getattr(xp, fill)(shape, _dtype(dtype, name).np)
        if out is not None:
            return write_out(wrap(array), out, name)
        return _finish(wrap(array), requires_grad)

    make.__name__ = make.__qualname__ = name
    make.__doc__ = f"A tensor of the given size{'' if fill == 'empty' else f', filled with {name}'}."
    return make


_PYTHON_TYPES = {bool: dtypes.bool, int: dtypes.int64, float: dtypes.float64,
                 complex: dtypes.complex128}


def _dtype(dtype, name):
    if dtype is None:
        return dtypes.get_default_dtype()
    dtype = _PYTHON_TYPES.get(dtype, dtype)
    if not isinstance(dtype, dtypes.dtype):
        raise TypeError(
            f"{name}(): argument 'dtype' must be torch.dtype, not {type(dtype).__name__} ({dtype!r})"
        )
    return dtype


def _checked(shape, name):
    for s in shape:
        if s < 0:
            raise RuntimeError(
                f"Trying to create tensor with negative dimension {s}: {list(shape)}"
            )
    return shape


def _sized(make):
    """Accept ``size=`` as a keyword beside the positional forms."""

    def wrapper(*size, **options) -> Tensor:
        if "size" in options:
            size = (options.pop("size"),)
        if options.get("names", False) is None:
            options.pop("names")
        return make(*size, **options)

    wrapper.__name__ = wrapper.__qualname__ = make.__name__
    wrapper.__doc__ = make.__doc__
    return wrapper


empty = _sized(_filled("empty", "empty"))
zeros = _sized(_filled("zeros", "zeros"))
ones = _sized(_filled("ones", "ones"))


def full(
    size, fill_value, *, out=None, dtype=None, layout=None, device=None, requires_grad=False
) -> Tensor:
    """A tensor of ``size`` filled with one value, whose kind decides the dtype."""
    value = fill_value.item() if isinstance(fill_value, Tensor) else fill_value
    if dtype is None:
        dtype = dtypes.of_scalar(value)
    size = (size,) if isinstance(size, int) else size
    check_fits(value, dtype)
    xp = namespace_for(_place(device))
    result = wrap(xp.full(_checked(sizes((size,)), "full"), value, dtype.np))
    return _finish(result, requires_grad) if out is None else write_out(result, out, "full")


def check_fits(value, dtype):
    """RuntimeError for a number beyond the range of an integer dtype."""
    if dtype.category == dtypes.INT and isinstance(value, (int, float)):
        info = dtypes.iinfo(dtype)
        low = info.min if info.min < 0 else -info.max  # unsigned types wrap small negatives around
        if not low <= value <= info.max:
            raise RuntimeError(
                f"value {value} cannot be converted to type {dtype} without overflow"
            )


def _like(name, fill):
    def make(input, *, dtype=None, layout=None, device=None, requires_grad=False,
             memory_format=None) -> Tensor:
        array = input._data
        xp = namespace_of(array) if device is None else namespace_for(_place(device))
        dtype_np, shape = array.dtype if dtype is None else dtype.np, array.shape
        last = memory_formats.wants_last(memory_format, array.ndim)
        if layouts.is_channels_last(array) if last is None else last:
            made = layouts.moved_back(getattr(xp, fill)(layouts.moved(array).shape, dtype_np))
        else:
            made = getattr(xp, fill)(shape, dtype_np)
        return _finish(wrap(made), requires_grad)

    make.__name__ = make.__qualname__ = name
    make.__doc__ = f"{name[:-5].capitalize()} of the input's shape, dtype and device."
    return make


empty_like = _like("empty_like", "empty")
zeros_like = _like("zeros_like", "zeros")
ones_like = _like("ones_like", "ones")


def full_like(input, fill_value, *, dtype=None, layout=None, device=None, requires_grad=False,
              memory_format=None) -> Tensor:
    """One value in the input's shape, dtype and device."""
    return full(input._data.shape, fill_value, dtype=dtype or input.dtype,
                device=input.device if device is None else device, requires_grad=requires_grad)


def arange(start, end=None, step=1, *, out=None, dtype=None, layout=None, device=None,
           requires_grad=False) -> Tensor:
    """start, start + step, … below ``end``; integers unless an argument is a float."""
    if end is None:
        start, end = 0, start
    start, end, step = (v.item() if isinstance(v, Tensor) else v for v in (start, end, step))
    if dtype is None:
        whole = all(isinstance(v, numbers.Integral) for v in (start, end, step))
        dtype = dtypes.int64 if whole else dtypes.get_default_dtype()
    if step == 0:
        raise RuntimeError("step must be nonzero")
    if (end - start) / step < 0:
        raise RuntimeError(
            f"upper bound and lower bound inconsistent with step sign: arange({start}, {end}, {step})"
        )
    count = math.ceil((end - start) / step)
    xp = namespace_for(_place(device))
    if dtype.category != dtypes.INT or not all(isinstance(v, numbers.Integral) for v in (start, step)):
        start = float(start)
    array = xp.ramp(start, step, count, dtype.np)
    if out is not None:
        return write_out(wrap(array), out, "arange")
    return _finish(wrap(array), requires_grad)


def eye(
    n, m=None, *, out=None, dtype=None, layout=None, device=None, requires_grad=False
) -> Tensor:
    """The n×m matrix with ones on the diagonal."""
    if n < 0 or (m is not None and m < 0):
        raise RuntimeError(f"n must be greater or equal to 0, got {n if n < 0 else m}")
    xp = namespace_for(_place(device))
    result = wrap(xp.eye(n, m, dtype=(dtype or dtypes.get_default_dtype()).np))
    return _finish(result, requires_grad) if out is None else write_out(result, out, "eye")


def legacy_tensor_data(args, dtype, device):
    """The array of ``Tensor(...)``: sizes give memory, a sequence or array its values."""
    if len(args) == 1 and not isinstance(args[0], int):
        data = args[0]
        if isinstance(data, Tensor):
            return data._data
        if hasattr(data, "numel"):  # a Size
            return CPU.empty(tuple(data), dtype.np)
        return CPU.array(host_array(data, dtype), copy=True)
    return CPU.empty(_checked(sizes(args) if args else (0,), "Tensor"), dtype.np)


def _new(maker):
    def method(self, *args, dtype=None, device=None, **options) -> Tensor:
        return maker(*args, dtype=dtype or self.dtype,
                     device=self.device if device is None else device, **options)

    return method


def _new_tensor(self, data, *, dtype=None, device=None, requires_grad=False):
    return tensor(data, dtype=dtype or self.dtype, device=device or self.device,
                  requires_grad=requires_grad)


FUNCTIONS = {
    f.__name__: f
    for f in (tensor, as_tensor, from_numpy, frombuffer, empty, zeros, ones, full, empty_like,
              zeros_like, ones_like, full_like, arange, eye)
}
FUNCTIONS["asarray"] = as_tensor
METHODS = {"new_zeros": _new(zeros), "new_ones": _new(ones), "new_empty": _new(empty),
           "new_full": _new(full), "new_tensor": _new_tensor}
