"""CuPy's functions by NumPy: those that CuPy has, with the arguments that it has.

``cupy_names.json`` lists the public names of CuPy 14.2 with their parameters, and the types of its
ufuncs: what is not there raises AttributeError or TypeError here, too.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from . import arrays, exchange, order
from .arrays import ndarray, produce, put
from .calls import HOST_ONLY, NAMES, host, inputs_of, plain_function, settle
from .ufuncs import ufunc, ufuncs  # noqa: F401, for the package


def array(obj, dtype=None, copy=True, order="K", subok=False, ndmin=0, *, blocking=False):
    """An array of an array, a NumPy array, numbers or lists of these."""
    if isinstance(obj, ndarray):
        out = obj if dtype is None or obj.dtype == dtype else obj.astype(dtype)
        if out is obj and copy:
            out = obj.copy(order)
        if order in ("C", "F") and not getattr(out.flags, f"{order.lower()}_contiguous"):
            out = out.copy(order)
        return out if out.ndim >= ndmin else out.reshape((1,) * (ndmin - out.ndim) + out.shape)
    if isinstance(obj, (list, tuple)) and inputs_of(obj):
        whole = table["stack"]([array(o, copy=False) for o in obj])
        return whole if dtype is None else whole.astype(dtype, copy=False)
    if hasattr(obj, "__cuda_array_interface__"):
        shared = _from_interface(obj.__cuda_array_interface__, obj)
        return array(shared, dtype, copy, order, ndmin=ndmin)
    value = np.array(obj, dtype=dtype, order=order if order in "CF" else "K", ndmin=ndmin)
    if value.dtype.kind not in "biufcV" or value.dtype.name == "object":
        raise ValueError(f"Unsupported dtype {value.dtype}")
    out = arrays.new_like(value, "K")
    put(out, value)
    return out


def _from_interface(interface: dict, owner) -> ndarray:
    from .memory import MemoryPointer, UnownedMemory

    dtype = np.dtype(interface["typestr"])
    address, size = interface["data"][0], math.prod(interface["shape"]) * dtype.itemsize
    pointer = MemoryPointer(UnownedMemory(address, size, owner), 0)
    return ndarray(interface["shape"], dtype, pointer, interface.get("strides"))


def asarray(a, dtype=None, order=None, *, blocking=False):
    """As NumPy's."""
    return array(a, dtype, copy=False, order=order or "K")


def ascontiguousarray(a, dtype=None):
    """As NumPy's: at least one axis."""
    out = array(a, dtype, copy=False, order="C")
    return out.reshape(1) if out.ndim == 0 else out


def asfortranarray(a, dtype=None):
    return array(a, dtype, copy=False, order="F")


def asnumpy(a, stream=None, order="C", out=None, *, blocking=True):
    """A host copy."""
    return a.get(stream, order, out) if isinstance(a, ndarray) else np.asarray(a)


def empty(shape, dtype=float, order="C"):
    return ndarray(shape, dtype, order=order)


def _filled(shape, dtype, order_, value):
    out = ndarray(shape, dtype, order=order_)
    if out.size:
        out[...] = value
    return out


def zeros(shape, dtype=float, order="C"):
    return _filled(shape, dtype, order, 0)


def ones(shape, dtype=float, order="C"):
    return _filled(shape, dtype, order, 1)


def full(shape, fill_value, dtype=None, order="C"):
    if dtype is None:
        dtype = fill_value.dtype if hasattr(fill_value, "dtype") else np.array(fill_value).dtype
    return _filled(shape, dtype, order, fill_value)


def empty_like(prototype, dtype=None, order="K", subok=None, shape=None):
    shape = prototype.shape if shape is None else shape
    dtype = prototype.dtype if dtype is None else dtype
    if order == "K" and tuple(np.atleast_1d(shape)) == prototype.shape:
        return arrays.new_like(np.empty_like(prototype._np, dtype=dtype), "K")
    by_columns = order == "F" or (order == "A" and prototype.flags.fnc)
    return ndarray(shape, dtype, order="F" if by_columns else "C")


def zeros_like(a, dtype=None, order="K", subok=None, shape=None):
    return _fill(empty_like(a, dtype, order, subok, shape), 0)


def ones_like(a, dtype=None, order="K", subok=None, shape=None):
    return _fill(empty_like(a, dtype, order, subok, shape), 1)


def full_like(a, fill_value, dtype=None, order="K", subok=None, shape=None):
    return _fill(empty_like(a, dtype, order, subok, shape), fill_value)


def _fill(out, value):
    if out.size:
        out[...] = value
    return out


def where(condition, x=None, y=None):
    if x is None:
        return table["nonzero"](condition)
    if not isinstance(condition, ndarray):
        condition = asarray(condition)
    inputs = inputs_of(condition, x, y)
    c, a, b = host(condition), host(x), host(y)
    shape = np.broadcast_shapes(*(i.shape for i in inputs))
    return produce("where", inputs, lambda: np.where(c, a, b), arrays.result_order(inputs, shape))


def matmul(x1, x2, /, out=None, **kwargs):
    """As CuPy's: of more than two axes it takes no 16-bit floats."""
    if kwargs:
        raise TypeError(f"matmul of the stand-in takes no {sorted(kwargs)}")
    for a in (x1, x2):
        if a.dtype.itemsize == 2 and a.dtype.kind in "fV" and max(x1.ndim, x2.ndim) > 2:
            raise TypeError(f"cupy.matmul of {a.dtype} with more than two axes: no cuBLAS type")
    if order.current().capture is not None:
        raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")
    a, b = x1._np, x2._np
    got = produce("matmul", [x1, x2], lambda: np.matmul(a, b), "C")
    if out is not None:
        out[...] = got
        return out
    return got


def copyto(dst, src, casting="same_kind", where=None):
    if isinstance(src, np.ndarray) or isinstance(dst, np.ndarray):
        raise TypeError("copyto between NumPy and CuPy: use get() or set()")
    target, source, mask = dst._np, host(src), True if where is None else host(where)
    arrays.mutate("copyto", dst, inputs_of(src, where), lambda: np.copyto(target, source, casting, mask))


def from_dlpack(obj, *, device=None, copy=None):
    if obj.__dlpack_device__()[0] != 2:
        raise TypeError("only CUDA memory becomes a CuPy array by DLPack")
    return exchange.array_of(obj.__dlpack__()).view()


def may_share_memory(a, b, max_work=None):
    return np.may_share_memory(a._np, b._np)


shares_memory = may_share_memory


def get_array_module(*args):
    import cupy

    return cupy if inputs_of(args) else np


def is_available() -> bool:
    return True


def clip(a, a_min=None, a_max=None, out=None):
    got = settle("clip", inputs_of(a, a_min, a_max),
                 functools.partial(np.clip, host(a), host(a_min), host(a_max)))
    if out is not None:
        out[...] = got
        return out
    return got


_own = [array, asarray, ascontiguousarray, asfortranarray, asnumpy, empty, zeros, ones, full, empty_like,
        zeros_like, ones_like, full_like, where, matmul, copyto, from_dlpack, may_share_memory,
        shares_memory, get_array_module, is_available, clip]
table: dict = {f.__name__: f for f in _own}
table |= {"asanyarray": asarray}


def _put_in(names: dict, module, prefix: str) -> dict:
    found = {}
    for name, parameters in names.items():
        value = getattr(module, name, None)
        if value is None:
            continue
        if parameters == 0 or name in HOST_ONLY or isinstance(value, type):
            found[name] = value
        elif callable(value):
            found[name] = plain_function(prefix + name, value, parameters)
    return found


for _name, _value in _put_in(NAMES["cupy"], np, "").items():
    table.setdefault(_name, _value)
table |= ufuncs
for _name in ("result_type", "can_cast"):
    def _typed(*args, _function=getattr(np, _name), **kwargs):
        return _function(*(a.dtype if isinstance(a, ndarray) else a for a in args), **kwargs)

    table[_name] = _typed
table["size"] = lambda a, axis=None: a.size if axis is None else a.shape[axis]
linalg = _put_in(NAMES["linalg"], np.linalg, "linalg.") | {"LinAlgError": np.linalg.LinAlgError}
fft = _put_in(NAMES["fft"], np.fft, "fft.")


def named(function):
    """The function of a NumPy function's name."""
    return table.get(getattr(function, "__name__", ""))
