"""The array: a window onto device memory whose values NumPy computes.

Not a NumPy array, and it becomes none by itself: ``numpy.asarray(a)`` raises as in CuPy. What NumPy's
functions return decides about shapes and dtypes; a result that is a view of an operand's memory is a
view here, everything else is a new array in device memory (and one operation of the current stream).
"""

from __future__ import annotations

import ctypes
import math

import numpy as np

from . import exchange, memory, order
from .memory import MemoryPointer

_IMPLICIT = ("Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a "
             "NumPy array explicitly.")


class _Flags:
    """CuPy's flags: contiguity and ownership, but no ``writeable``."""

    def __init__(self, c: bool, f: bool, own: bool):
        self.c_contiguous, self.f_contiguous, self.owndata = c, f, own
        self.fnc, self.forc = f and not c, f or c

    def __getitem__(self, name):
        return getattr(self, {"C_CONTIGUOUS": "c_contiguous", "F_CONTIGUOUS": "f_contiguous",
                              "OWNDATA": "owndata"}[name])


def _contiguous_strides(shape, itemsize, order_):
    strides, step = [0] * len(shape), itemsize
    for i in range(len(shape)) if order_ == "F" else reversed(range(len(shape))):
        strides[i] = step
        step *= shape[i]
    return tuple(strides)


def _buffer(pointer: MemoryPointer, low: int, size: int):
    """The bytes as a buffer that keeps the memory mapped (not the block: pools must see its end)."""
    found = order.memory_at(low)
    buffer = (ctypes.c_uint8 * size).from_address(low)
    buffer.keeper = None if found is None else found.keeper
    return buffer


class ndarray:
    """CuPy's array over `memory`."""

    __array_priority__ = 100
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, shape, dtype=float, memptr=None, strides=None, order="C"):
        shape = (int(shape),) if isinstance(shape, (int, np.integer)) else tuple(map(int, shape))
        dtype = np.dtype(dtype)
        if dtype.kind not in "biufcV" or dtype.name.startswith(("void", "complex256", "float128")):
            raise ValueError(f"Unsupported dtype {dtype}")
        if strides is None:
            strides = _contiguous_strides(shape, dtype.itemsize, "F" if order == "F" else "C")
        size = math.prod(shape)
        if memptr is None:
            memptr = memory.alloc(size * dtype.itemsize)
        self.data, self.shape_, self.dtype, self.base = memptr, shape, dtype, None
        low = high = memptr.ptr
        if size:
            low += sum((n - 1) * s for n, s in zip(shape, strides) if s < 0)
            high += sum((n - 1) * s for n, s in zip(shape, strides) if s > 0) + dtype.itemsize
            self._span = memory.span(low, high - low)
            bytes_ = _buffer(memptr, low, high - low)
        else:
            self._span, bytes_ = None, bytearray(0)
        self._np = np.ndarray(shape, dtype, bytes_, memptr.ptr - low, strides)

    # ---- what it is ----------------------------------------------------------------------------
    shape = property(lambda self: self.shape_, lambda self, shape: self._reshape_in_place(shape))
    strides = property(lambda self: self._np.strides)
    ndim = property(lambda self: len(self.shape_))
    size = property(lambda self: math.prod(self.shape_))
    itemsize = property(lambda self: self.dtype.itemsize)
    nbytes = property(lambda self: self.size * self.dtype.itemsize)
    device = property(lambda self: self.data.device)
    flags = property(lambda self: _Flags(self._np.flags.c_contiguous, self._np.flags.f_contiguous,
                                         self.base is None))
    _c_contiguous = property(lambda self: self._np.flags.c_contiguous)
    T = property(lambda self: self.transpose())
    real = property(lambda self: view_of(self, self._np.real) if self.dtype.kind == "c" else self,
                    lambda self, value: self.real.__setitem__(..., value))

    def _imag(self):
        if self.dtype.kind == "c":
            return view_of(self, self._np.imag)
        from .functions import zeros

        return zeros(self.shape_, self.dtype)

    imag = property(_imag, lambda self, value: self.imag.__setitem__(..., value))

    def _reshape_in_place(self, shape):
        other = self.reshape(shape)
        self.__dict__.update(shape_=other.shape_, _np=other._np)

    @property
    def __cuda_array_interface__(self):
        if self.dtype.name == "bfloat16":
            raise AttributeError("bfloat16 has no typestr in the CUDA array interface")
        return {"shape": self.shape_, "typestr": self.dtype.str, "descr": self.dtype.descr, "version": 3,
                "strides": None if self._np.flags.c_contiguous else self.strides,
                "data": (self.data.ptr, False), "stream": 1}

    def __len__(self):
        if not self.shape_:
            raise TypeError("len() of unsized object")
        return self.shape_[0]

    # ---- to the host: explicitly, or by Python's own protocols (which wait) --------------------
    def __array__(self, *args, **kwargs):
        raise TypeError(_IMPLICIT)

    def __array_function__(self, function, types, args, kwargs):
        from . import functions

        found = functions.named(function)
        return NotImplemented if found is None else found(*args, **kwargs)

    def __array_ufunc__(self, ufunc, method, *args, **kwargs):
        from . import functions

        found = functions.named(ufunc)
        if found is None or method != "__call__" or any(isinstance(a, np.ndarray) for a in args):
            return NotImplemented
        return found(*args, **kwargs)

    def get(self, stream=None, order="C", out=None, blocking=True):
        """A copy in host memory."""
        from .order import current, give, host_reads, use

        before = current()
        if stream is not None:
            use(stream._order)
        try:
            target = out
            if out is None:
                target = np.empty(self.shape_, self.dtype, order if order in "CF" else "C")
            if out is not None and (out.shape != self.shape_ or out.dtype != self.dtype):
                raise ValueError(f"get(out=) of {out.dtype} {out.shape} for {self.dtype} {self.shape_}")
            if blocking:
                host_reads("get", self._spans())
                target[...] = self._np
            else:
                give("get", self._spans(), [], lambda: np.copyto(target, self._np))
        finally:
            use(before)
        return target

    def set(self, arr, stream=None):
        """Copy host values in."""
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if arr.shape != self.shape_ or arr.dtype != self.dtype:
            raise ValueError(f"set() of {arr.dtype} {arr.shape} into {self.dtype} {self.shape_}")
        put(self, arr, stream)

    def item(self, *args):
        return self._host("item").item(*args)

    def tolist(self):
        return self.get().tolist()

    def _host(self, what):
        order.host_reads(what, self._spans())
        return self._np

    def __bool__(self):
        return bool(self._host("bool()"))

    def __int__(self):
        return int(self._host("int()"))

    def __float__(self):
        return float(self._host("float()"))

    def __complex__(self):
        return complex(self._host("complex()"))

    def __index__(self):
        raise TypeError("only integer scalar arrays can be converted to a scalar index")

    def __repr__(self):
        return repr(self.get())

    def __str__(self):
        return str(self.get())

    def __iter__(self):
        if not self.shape_:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(self.shape_[0]))

    # ---- exchange ------------------------------------------------------------------------------
    def __dlpack_device__(self):
        return (2, 0)

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        return exchange.capsule(self)

    def __reduce__(self):
        return array_from_host, (self.get(),)

    def __copy__(self):
        return self.copy()

    def __deepcopy__(self, memo):
        return self.copy()

    def view(self, dtype=None, type=None):
        return view_of(self, self._np.view() if dtype is None else self._np.view(np.dtype(dtype)))

    def astype(self, dtype, order="K", casting=None, subok=None, copy=True):
        dtype = np.dtype(dtype)
        if dtype == self.dtype and not copy:
            if order in "KA" or (order == "C" and self._np.flags.c_contiguous) or (
                    order == "F" and self._np.flags.f_contiguous):
                return self
        source, casting = self._np, casting or "unsafe"
        with np.errstate(all="ignore"):
            return produce("astype", [self], lambda: source.astype(dtype, order, casting))

    def copy(self, order="C"):
        source = self._np
        return produce("copy", [self], lambda: source.copy(order))

    def fill(self, value):
        self[...] = value

    def __getitem__(self, index):
        index = _index(index)
        source = self._np
        plain = _plain(index)
        if plain is None:  # basic: a view
            got = source[index]
            return view_of(self, got if isinstance(got, np.ndarray) else source[_dots(index)])
        _needs_host(index)
        return produce("getitem", [self, *plain],
                       lambda: np.asarray(source[_around(index, source.shape)]), "C")

    def __setitem__(self, index, value):
        index = _index(index)
        if isinstance(value, np.ndarray) and value.ndim:
            raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        source, used = self._np, [a for a in (value, *(_plain(index) or ())) if isinstance(a, ndarray)]
        if isinstance(value, (list, tuple)):
            value = np.asarray(value)
            order.counts["uploads"] += 1
        value = value._np if isinstance(value, ndarray) else value

        def change():
            with np.errstate(all="ignore"):
                source[_around(index, source.shape)] = value

        mutate("setitem", self, used, change)

    def scatter_add(self, slices, value):
        from .functions import ufuncs

        ufuncs["add"].at(self, slices, value)

    def _spans(self):
        return [] if self._span is None else [self._span]

    # methods of CuPy's that only pass on are put in by ``functions``


ndarray.__module__ = "cupy"


def array_from_host(value: np.ndarray) -> ndarray:
    out = ndarray(value.shape, value.dtype)
    put(out, value)
    return out


def put(out: ndarray, value: np.ndarray, stream=None) -> None:
    """An upload into an array."""
    state = order.current() if stream is None else stream._order
    target, value = out._np, np.array(value)
    if value.ndim:  # a single number goes as an argument of a kernel
        order.counts["uploads"] += 1
        if state.capture is not None:
            raise order.CaptureError("cudaErrorStreamCaptureUnsupported: an upload of host memory in a "
                                     "captured stream")
    order.give("upload", [], out._spans(), lambda: np.copyto(target, value, "unsafe"), stream=state)


# ---- indices ---------------------------------------------------------------------------------------


def _index(index):
    """An index as CuPy takes it; lists become arrays, NumPy's index arrays are uploads."""
    parts = index if isinstance(index, tuple) else (index,)
    out = []
    for part in parts:
        if isinstance(part, np.ndarray) and part.ndim == 0 and part.dtype.kind in "iu":
            part = int(part)
        elif isinstance(part, (list, np.ndarray)):
            order.counts["uploads"] += 1
            part = array_from_host(np.asarray(part) if np.size(part) else np.asarray(part, np.int64))
        elif isinstance(part, np.bool_):
            part = bool(part)
        out.append(part)
    return tuple(out)


def _plain(index):
    """The arrays (or bools) of an index that make it advanced; None if it is basic."""
    arrays = [part for part in index if isinstance(part, ndarray)]
    return arrays if arrays or any(isinstance(part, bool) for part in index) else None


def _needs_host(index):
    """A mask's shape is known only to the device: CuPy waits for it."""
    for part in index:
        if isinstance(part, ndarray) and part.dtype.kind == "b":
            part._host("a mask as an index")


def _unwrap(index):
    return tuple(part._np if isinstance(part, ndarray) else part for part in index)


def _around(index, shape):
    """The index for NumPy; places out of range are taken modulo the size, as CuPy does."""
    parts = [np.asarray(part) if isinstance(part, list) else part for part in _unwrap(index)]

    def dims(part):
        if part is None or part is Ellipsis or isinstance(part, (bool, np.bool_)):
            return 0
        return part.ndim if isinstance(part, np.ndarray) and part.dtype.kind == "b" else 1

    hidden, dim = len(shape) - sum(map(dims, parts)), 0
    for k, part in enumerate(parts):
        if isinstance(part, np.ndarray) and part.dtype.kind in "iu" and dim < len(shape) and shape[dim]:
            parts[k] = part.astype(np.int64) % shape[dim]
        dim += hidden if part is Ellipsis else dims(part)
    return tuple(parts)


def _dots(index):
    return index if any(part is Ellipsis for part in index) else (*index, Ellipsis)


# ---- results ---------------------------------------------------------------------------------------


def view_of(owner: ndarray, got: np.ndarray) -> ndarray:
    """The array over a NumPy view of an array's memory."""
    address = got.__array_interface__["data"][0]
    if not got.size:
        address = owner.data.ptr
    out = ndarray(got.shape, got.dtype, owner.data + (address - owner.data.ptr), got.strides)
    out.base = owner if owner.base is None else owner.base
    return out


def result_order(inputs, shape) -> str:
    """CuPy's choice: by columns if all operands lie so, else by rows."""
    many = [i for i in inputs if i.ndim > 1]
    f = bool(many) and all(i._np.flags.f_contiguous and not i._np.flags.c_contiguous for i in many)
    return "F" if f and len(shape) > 1 else "C"


def new_like(got: np.ndarray, order_: str) -> ndarray:
    if order_ == "K":
        strides = got.strides
        lowest = min(strides, default=0)
        dense = got.size <= 1 or (lowest >= 0 and sorted(strides)[0] in (got.itemsize, 0)
                                  and got.nbytes == sum((n - 1) * s for n, s in zip(got.shape, strides))
                                  + got.itemsize)
        if dense:
            return ndarray(got.shape, got.dtype, None, strides)
        order_ = "C"
    return ndarray(got.shape, got.dtype, order=order_)


def produce(what: str, inputs: list, compute, order_: str = "K"):
    """A new array (or a tuple of them) of what ``compute()`` returns from the inputs' NumPy views."""
    with np.errstate(all="ignore"):
        got = compute()
    several = isinstance(got, (tuple, list))
    values = [np.asarray(g) for g in got] if several else [np.asarray(got)]
    outs = [new_like(v, order_) for v in values]
    targets = [o._np for o in outs]

    def now():
        for target, value in zip(targets, values):
            target[...] = value

    def replay():
        with np.errstate(all="ignore"):
            again = compute()
        for target, value in zip(targets, again if several else [again]):
            target[...] = value

    order.give(what, spans_of(inputs), spans_of(outs), now, replay)
    return tuple(outs) if several else outs[0]


def mutate(what: str, target: ndarray, inputs: list, change) -> None:
    """``change()`` writes into the target's NumPy view."""
    order.give(what, spans_of([target, *inputs]), spans_of([target]), change)


def spans_of(arrays) -> list:
    return [a._span for a in arrays if isinstance(a, ndarray) and a._span is not None]
