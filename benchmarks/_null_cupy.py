"""A CuPy that computes nothing: arrays with shape, strides and dtype but no memory.

For measuring the Python of the GPU engine on a machine without a GPU (``host_cost.py``). Attributes
cost about what CuPy's do; ``counts`` has the views, CuPy's own functions and, with ``install(True)``,
launches.
"""

from __future__ import annotations

import functools
import math
import sys
import types
from collections import Counter
from typing import Any

import numpy as np
from _null_libraries import (
    ADDRESS,
    Address,
    Device,
    Event,
    Library,
    Memory,
    OutOfMemory,
    Runtime,
    Stream,
    cudnn,
    the_stream,
)

counts: Counter = Counter()


class Pointer:
    __slots__ = ("mem", "ptr", "__weakref__")
    device = Device()
    device_id = 0

    def __init__(self, mem=None, offset=0):
        self.mem, self.ptr = mem, ADDRESS

    def __add__(self, n):
        return self


_pool = Pointer(Memory())


class UnownedMemory:
    def __init__(self, ptr, size, owner, device_id=0):
        self.ptr, self.size, self._owner, self.device_id = ptr, size, owner, device_id


_allocator = [lambda size: _pool]
_layouts: dict = {}


def _layout(shape, itemsize, order="C"):
    key = shape, itemsize, order
    found = _layouts.get(key)
    if found is None:
        strides, step = [0] * len(shape), itemsize
        for i in (range(len(shape)) if order == "F" else reversed(range(len(shape)))):
            strides[i] = step
            step *= shape[i]
        found = _layouts[key] = tuple(strides), math.prod(shape)
    return found


def _dummy(shape, strides, dtype):
    """A NumPy array of this layout over (untouched) memory."""
    size = 1 + sum((n - 1) * s for n, s in zip(shape, strides) if n) // dtype.itemsize
    return np.lib.stride_tricks.as_strided(np.empty(max(1, size), dtype), shape, strides)


class _Flags:
    __slots__ = ("c_contiguous", "f_contiguous", "owndata")


class ndarray:
    __slots__ = ("shape", "dtype", "strides", "size", "data", "base", "_c_contiguous", "__weakref__")
    __hash__ = None
    device = Device()

    def __init__(self, shape, dtype=np.dtype("f8"), memptr=None, strides=None, order="C"):
        if shape.__class__ is not tuple:
            shape = (shape,) if isinstance(shape, int) else tuple(shape)
        if dtype.__class__ is type or dtype.__class__ is str:
            dtype = np.dtype(dtype)
        self.shape, self.dtype, self.base = shape, dtype, None
        try:
            own, self.size = _layouts[shape, dtype.itemsize, order]
        except KeyError:
            own, self.size = _layout(shape, dtype.itemsize, order)
        if strides is None:
            self.strides, self._c_contiguous = own, order == "C"
        else:
            self.strides = tuple(strides)
            self._c_contiguous = all(n == 1 or a == b for n, a, b in zip(shape, own, self.strides))
        self.data = _allocator[0](self.size) if memptr is None else memptr

    ndim = property(lambda self: len(self.shape))
    itemsize = property(lambda self: self.dtype.itemsize)
    nbytes = property(lambda self: self.size * self.dtype.itemsize)
    T = property(lambda self: self.transpose())

    @property
    def flags(self):
        f = _Flags()
        f.c_contiguous, f.owndata = self._c_contiguous, self.base is None
        f.f_contiguous = _layout(self.shape, self.dtype.itemsize, "F")[0] == self.strides
        return f

    def _view(self, key, change):
        counts["view"] += 1
        key = (self.shape, self.strides, self.dtype, key)
        found = _views.get(key)
        if found is None:
            before = _dummy(self.shape, self.strides, self.dtype)
            after = change(before)
            found = _views[key] = (after.shape, after.strides, after.dtype,
                                   np.may_share_memory(before, after))
        shape, strides, dtype, view = found
        out = _new(ndarray)
        out.shape, out.strides, out.dtype = shape, strides, dtype
        own, out.size = _layout(shape, dtype.itemsize)
        out._c_contiguous = own == strides or all(
            n == 1 or a == b for n, a, b in zip(shape, own, strides))
        if view:
            out.base = self if self.base is None else self.base
            out.data = self.data
        else:
            counts["cupy copy" + _caller()] += 1
            out.base, out.data = None, _allocator[0](out.size)
        return out

    def reshape(self, *shape, order="C"):
        if len(shape) == 1 and not isinstance(shape[0], int):
            shape = tuple(shape[0])
        return self._view(("r", shape), lambda a: a.reshape(shape))

    def transpose(self, *axes):
        if len(axes) == 1 and not isinstance(axes[0], int):
            axes = axes[0] if axes[0] is None else tuple(axes[0])
        return self._view(("t", axes), lambda a: a.transpose(axes) if axes else a.transpose())

    def swapaxes(self, a, b):
        return self._view(("s", a, b), lambda x: x.swapaxes(a, b))

    def view(self, dtype=None):
        return self._view(("v", dtype), lambda a: a.view() if dtype is None else a.view(dtype))

    def ravel(self, order="C"):
        return self._view("ravel", lambda a: a.ravel())

    def squeeze(self, axis=None):
        return self._view(("q", axis), lambda a: a.squeeze(axis))

    def __getitem__(self, index):
        parts = index if index.__class__ is tuple else (index,)
        if any(isinstance(p, ndarray) for p in parts):
            counts["cupy take"] += 1
            parts = tuple(np.zeros(p.shape, int) if isinstance(p, ndarray) else p for p in parts)
            got = _dummy(self.shape, self.strides, self.dtype)[parts]
            return ndarray(got.shape, self.dtype)
        if Ellipsis not in parts:
            parts = (*parts, Ellipsis)
        return self._view(("i", repr(index)), lambda a: a[parts])

    def __setitem__(self, index, value):
        counts[f"cupy setitem{_caller()}"] += 1

    def copy(self, order="C"):
        counts["cupy copy" + _caller()] += 1
        return empty_like(self) if order == "K" else ndarray(self.shape, self.dtype)

    def astype(self, dtype, order="K", copy=True, **kwargs):
        if not copy and np.dtype(dtype) == self.dtype:
            return self
        counts["cupy astype"] += 1
        return ndarray(self.shape, np.dtype(dtype))

    def fill(self, value):
        counts["cupy fill"] += 1

    def get(self, *args, **kwargs):
        return np.zeros(self.shape, self.dtype)

    def item(self):
        return 0.0

    def __float__(self):
        return 0.0

    def __len__(self):
        return self.shape[0]

    def __array_ufunc__(self, ufunc, method, *args, **kwargs):
        return _ufunc(ufunc, *args, **kwargs)


def _operator(name, ufunc, reverse=False, inplace=False):
    def method(self, other):
        out = _ufunc(ufunc, other, self) if reverse else _ufunc(ufunc, self, other)
        return self if inplace else out
    setattr(ndarray, name, method)


def _caller():
    if not COUNTING[0]:
        return ""
    frame = sys._getframe(2)
    while frame.f_code.co_filename == __file__:
        frame = frame.f_back
    names = []
    for _ in range(3):
        names.append(f"{frame.f_code.co_filename.split('/')[-1]}:{frame.f_lineno}")
        frame = frame.f_back
    return " at " + " < ".join(names)


def _ufunc(ufunc, *args, out=None, dtype=None, **kwargs):
    counts[f"cupy {ufunc.__name__}{_caller()}"] += 1
    if out is not None:
        return out[0] if isinstance(out, tuple) else out
    given = [np.ones((1,) * a.ndim, a.dtype) if isinstance(a, ndarray) else a for a in args]
    kind = ufunc(*given).dtype if dtype is None else np.dtype(dtype)
    return ndarray(np.broadcast_shapes(*[a.shape for a in args if isinstance(a, ndarray)]), kind)


for _op, _f in {"add": np.add, "sub": np.subtract, "mul": np.multiply, "truediv": np.true_divide,
                "pow": np.power, "and": np.bitwise_and, "or": np.bitwise_or}.items():
    _operator(f"__{_op}__", _f)
    _operator(f"__r{_op}__", _f, reverse=True)
    _operator(f"__i{_op}__", _f, inplace=True)
for _op, _f in {"lt": np.less, "gt": np.greater, "le": np.less_equal, "ge": np.greater_equal,
                "eq": np.equal, "ne": np.not_equal}.items():
    _operator(f"__{_op}__", _f)
ndarray.__neg__ = lambda self: _ufunc(np.negative, self)
ndarray.__module__ = "cupy"
_views: dict = {}
_new = object.__new__


def empty(shape, dtype=float, order="C"):
    return ndarray(shape, np.dtype(dtype))


def empty_like(a, dtype=None, **kwargs):
    if a._c_contiguous:
        return ndarray(a.shape, a.dtype if dtype is None else np.dtype(dtype))
    scale = (a.dtype if dtype is None else np.dtype(dtype))
    return ndarray(a.shape, scale, None, [s // a.dtype.itemsize * scale.itemsize for s in a.strides])


def zeros(shape, dtype=float, order="C"):
    counts["cupy zeros"] += 1
    return ndarray(shape, np.dtype(dtype))


def full(shape, value, dtype=None):
    counts["cupy full"] += 1
    return ndarray(shape, np.dtype(dtype) if dtype is not None else np.asarray(value).dtype)


def arange(*args, dtype=None):
    counts["cupy arange"] += 1
    made = np.arange(*args, dtype=dtype)
    return ndarray(made.shape, made.dtype)


def asarray(a, dtype=None, **kwargs):
    if isinstance(a, ndarray):
        return a if dtype is None or a.dtype == dtype else a.astype(dtype)
    counts["cupy upload"] += 1
    a = np.asarray(a, dtype)
    return ndarray(a.shape, a.dtype)


def broadcast_to(a, shape):
    return a._view(("b", tuple(shape)), lambda x: np.broadcast_to(x, shape))


def may_share_memory(a, b):
    counts["cupy may_share_memory"] += 1
    return a.data is b.data


def ascontiguousarray(a, dtype=None):
    if a._c_contiguous and (dtype is None or a.dtype == dtype):
        return a
    counts["cupy ascontiguousarray"] += 1
    return ndarray(a.shape, a.dtype)


# ---- kernels
class _Function:
    """A kernel: its "machine code" is a number that knows its name."""

    max_dynamic_shared_size_bytes = 0

    def __init__(self, name):
        self.kernel = types.SimpleNamespace(ptr=Address(1))
        self.kernel.ptr.name = name


class RawModule:
    def __init__(self, options=(), **kwargs):
        keep = ("-DEXPR", "-DFIRST", "-DSECOND", "-DRESULT", "-DNDIM")
        self.what = " ".join(o[2:] for o in options if o.startswith(keep))

    def get_function(self, name):
        return _Function(f"{name} {self.what}" if name.startswith("elementwise") else name)


COUNTING = [False]


def _note(name):
    counts["launch " + name] += 1


def install(counting=False):
    """Put the null CuPy (and cuBLAS, and cuDNN's frontend) in the places of the real ones."""
    COUNTING[0] = counting
    note = _note if counting else None
    cupy: Any = types.ModuleType("cupy")
    here = globals()
    for name in ("ndarray", "empty", "empty_like", "zeros", "full", "arange", "asarray", "RawModule",
                 "ascontiguousarray", "broadcast_to", "may_share_memory"):
        setattr(cupy, name, here[name])
    cupy.array = asarray
    cupy.ones = lambda shape, dtype=float: full(shape, 1, dtype)
    cupy.zeros_like = lambda a, dtype=None: zeros(a.shape, dtype or a.dtype)
    cupy.ones_like = lambda a, dtype=None: full(a.shape, 1, dtype or a.dtype)
    cupy.is_available = lambda: True
    cupy.__version__ = "14.2.0"
    cupy.__path__ = []
    cuda: Any = types.ModuleType("cupy.cuda")
    cuda.runtime, cuda.Device = Runtime(), Device
    cuda.get_current_stream = functools.partial(getattr, the_stream, "none", the_stream)
    cuda.get_allocator = lambda: _allocator[0]
    cuda.set_allocator = lambda f: _allocator.__setitem__(0, f)
    cuda.alloc = lambda size: _allocator[0](size)
    cuda.MemoryPointer, cuda.UnownedMemory, cuda.Memory = Pointer, UnownedMemory, Memory
    cuda.Stream = Stream
    Stream.null = the_stream
    cuda.memory = types.SimpleNamespace(OutOfMemoryError=OutOfMemory)
    cuda.Event = Event
    cuda.alloc_pinned_memory = lambda size: bytearray(size)
    cupy.cuda = cuda

    def missing(name):
        if name.startswith("__"):
            raise AttributeError(name)
        f = getattr(np, name)
        if isinstance(f, np.ufunc):
            return lambda *a, **k: _ufunc(f, *a, **k)
        if isinstance(f, type) or not callable(f):
            return f

        def call(*args, **kwargs):
            counts[f"cupy {name}{_caller()}"] += 1
            if name == 'take':
                return ndarray((*args[1].shape, *args[0].shape[1:]), args[0].dtype)
            given = [_dummy(a.shape, a.strides, a.dtype) if isinstance(a, ndarray) else a for a in args]
            got = f(*given, **kwargs)
            return ndarray(got.shape, got.dtype) if isinstance(got, (np.ndarray, np.generic)) else got
        return call

    cupy.__getattr__ = missing
    driver: Any = types.ModuleType("cupy_backends.cuda.api.driver")
    driver.launchKernel = (lambda address, *args: _note(address.name)) if counting else "".format
    driver.CUDADriverError = OutOfMemory
    modules: dict[str, Any] = {"cupy": cupy, "cupy.cuda": cuda, "cudnn": cudnn(note)}
    for name in ("cupy_backends", "cupy_backends.cuda", "cupy_backends.cuda.api",
                 "cupy_backends.cuda.libs"):
        modules[name] = types.ModuleType(name)
        modules[name].__path__ = []
    modules["cupy_backends.cuda.api.driver"] = driver
    modules["cupy_backends.cuda.api"].driver = driver
    modules["cupy_backends.cuda.libs"].cublas = None
    sys.modules.update(modules)
    from disttorch.backend.gpu import cublas

    cublas._open = lambda major: Library(note)
    return cupy
