"""CuPy's functions by NumPy: those that CuPy has, with the arguments that it has.

``cupy_names.json`` lists the public names of CuPy 14.2 with their parameters, and the types of its
ufuncs: what is not there raises AttributeError or TypeError here, too.
"""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path

import ml_dtypes
import numpy as np

from . import arrays, order
from .arrays import ndarray, produce, put, view_of

NAMES = json.loads((Path(__file__).parent / "cupy_names.json").read_text())
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_HOST_ONLY = {  # ask about types and shapes, or make no array
    "result_type", "can_cast", "promote_types", "min_scalar_type", "broadcast_shapes", "common_type",
    "iinfo", "finfo", "issubdtype", "isscalar", "dtype", "size", "ndim", "shape", "get_printoptions",
    "set_printoptions", "printoptions", "base_repr", "binary_repr", "format_float_positional",
    "format_float_scientific", "mask_indices", "ndindex", "s_", "index_exp", "newaxis", "errstate",
    "get_array_wrap", "typename", "iscomplexobj", "isrealobj", "isfortran",
}  # fmt: skip
_UPLOADS = {"take", "searchsorted", "isin", "in1d", "digitize"}  # NumPy arrays among operands are copied over
# what CuPy answers with values whose shape only the device knows, so that the host waits
_WAITS = {"nonzero", "flatnonzero", "argwhere", "unique", "extract", "compress", "histogram", "bincount",
          "setdiff1d", "union1d", "intersect1d", "unique_values", "unique_counts", "trim_zeros"}
_NO_BFLOAT16 = {"sort", "argsort", "partition", "argpartition", "lexsort", "msort"}


def host(value):
    """Device arrays as NumPy's views, also inside of lists and tuples.

    Raises:
        TypeError: for NumPy arrays, as CuPy.
    """
    if isinstance(value, ndarray):
        return value._np
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(map(host, value))
    if isinstance(value, dict):
        return {k: host(v) for k, v in value.items()}
    if hasattr(value, "__cuda_array_interface__") and not isinstance(value, type):
        return asarray(value)._np
    return value


def inputs_of(*values) -> list[ndarray]:
    found: list[ndarray] = []
    for value in values:
        if isinstance(value, ndarray):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += inputs_of(*value)
        elif isinstance(value, dict):
            found += inputs_of(*value.values())
    return found


def _owner(inputs, got: np.ndarray) -> ndarray | None:
    """The operand whose memory a result lies in."""
    if got.base is None or not got.size:
        return None
    address = got.__array_interface__["data"][0]
    for array in inputs:
        if array._span is not None and array._span.memory.start <= address < array._span.memory.end:
            return array
    return None


def settle(what: str, inputs: list[ndarray], compute, order_: str = "C"):
    """The device's form of what ``compute()`` returns: views stay views, the rest becomes new arrays."""
    with np.errstate(all="ignore"):
        got = compute()
    several = isinstance(got, (tuple, list))
    values = list(got) if several else [got]
    same = {id(a._np): a for a in inputs}
    out: list = [None] * len(values)
    fresh = []
    for i, value in enumerate(values):
        if not isinstance(value, (np.ndarray, np.generic, float, int, bool, complex)) or value is None:
            out[i] = value
        elif id(value) in same:
            out[i] = same[id(value)]
        elif isinstance(value, np.ndarray) and (owner := _owner(inputs, value)) is not None:
            out[i] = view_of(owner, value)
        else:
            fresh.append(i)
    if fresh:
        def pick():
            again = compute()
            again = list(again) if several else [again]
            return [np.asarray(again[i]) for i in fresh]

        made = [np.asarray(values[i]) for i in fresh]
        first = [True]

        def once():
            if first[0]:
                first[0] = False
                return made
            return pick()

        for i, array in zip(fresh, produce(what, inputs, once, order_)):
            out[i] = array
    return tuple(out) if several else out[0]


def _plain_function(name: str, function, parameters):
    allowed = None if parameters is None or any(p.startswith("**") for p in parameters) else set(parameters)

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        unknown = set(kwargs) - allowed if allowed is not None else ()
        if unknown:
            raise TypeError(f"{name}() got an unexpected keyword argument {min(unknown)!r}")
        out = kwargs.pop("out", None)
        if name in _UPLOADS:
            args = tuple(asarray(a) if isinstance(a, np.ndarray) else a for a in args)
        inputs = inputs_of(args, kwargs)
        if name in _NO_BFLOAT16 and any(a.dtype == BFLOAT16 for a in inputs):
            raise TypeError(f"{name} is not supported for bfloat16")
        if name in _WAITS:
            for a in inputs:
                a._host(name)
        given, named = host(args), host(kwargs)
        got = settle(name, inputs, lambda: function(*given, **named))
        if out is not None:
            out[...] = got
            return out
        return got

    return wrapper


# ---- ufuncs ----------------------------------------------------------------------------------------


class ufunc:
    """A function of elements; ``types`` are CuPy's loops."""

    def __init__(self, name: str, function, facts: dict):
        self.__name__ = self.name = name
        self._np, self.types, self._at = function, facts["types"], facts["at"]
        ins, outs = self.types[0].split("->")
        self.nin, self.nout = len(ins), len(outs)
        self._has_bfloat16 = any("E" in t for t in self.types)

    def __repr__(self):
        return f"<ufunc 'cupy_{self.name}'>"

    def __call__(self, *args, out=None, dtype=None, casting="same_kind", where=True):
        outs = out if isinstance(out, tuple) else (out,)
        args, extra = args[: self.nin], args[self.nin:]
        if extra:
            outs = extra
        for a in args:
            if isinstance(a, (list, tuple, np.ndarray)) or a is None:
                raise TypeError(f"Unsupported type {type(a)}")
            if not isinstance(a, (ndarray, int, float, complex, np.generic)) and not hasattr(
                    a, "__cuda_array_interface__"):
                raise TypeError(f"Unsupported type {type(a)}")
        if any(isinstance(o, np.ndarray) for o in outs) or isinstance(where, np.ndarray):
            raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        inputs = inputs_of(args, (where,))
        compute = self._compute(args, dtype, casting, host(where), outs)
        target = outs[0] if outs else None
        if all(o is None for o in outs):
            shape = np.broadcast_shapes(*(a.shape for a in inputs)) if inputs else ()
            got = produce(self.name, inputs, compute, arrays.result_order(inputs, shape))
            return got
        self._into(inputs, outs, compute, casting)
        return target if self.nout == 1 else tuple(outs)

    def _compute(self, args, dtype, casting, where, outs):
        given = [host(a) for a in args]
        if not self._has_bfloat16:  # bfloat16 casts safely to float32 only
            given = [g.astype(np.float32) if getattr(g, "dtype", None) == BFLOAT16 else g for g in given]
        kwargs = {"dtype": dtype} if dtype is not None else {}
        if where is not True:
            kwargs |= {"where": where, "out": tuple(
                o._np.copy() if o is not None else None for o in outs)} if outs else {"where": where}
        function = self._np

        def compute():
            with np.errstate(all="ignore"):
                return function(*given, **kwargs)

        return compute

    def _into(self, inputs, outs, compute, casting):
        values = compute()
        values = values if isinstance(values, tuple) else (values,)
        targets = [o._np for o in outs]
        for t, v in zip(targets, values):
            if np.broadcast_shapes(t.shape, np.shape(v)) != t.shape:
                raise ValueError(f"non-broadcastable output operand with shape {t.shape}, {np.shape(v)}")
            if not np.can_cast(np.asarray(v).dtype, t.dtype, casting):
                raise TypeError(f"output (typecode {np.asarray(v).dtype}) could not be coerced to provided "
                                f"output parameter (typecode {t.dtype}) according to the casting rule "
                                f"{casting!r}")

        def now():
            for t, v in zip(targets, values):
                t[...] = v

        def replay():
            again = compute()
            for t, v in zip(targets, again if isinstance(again, tuple) else (again,)):
                t[...] = v

        order.give(self.name, arrays.spans_of([*inputs]), arrays.spans_of(outs), now, replay)

    def reduce(self, array, axis=0, dtype=None, out=None, keepdims=False):
        if self.name not in ("add", "multiply", "maximum", "minimum", "logical_and", "logical_or",
                             "bitwise_and", "bitwise_or", "bitwise_xor"):
            raise NotImplementedError(f"reduce of {self.name}")
        source = array._np
        return settle(self.name, [array],
                      lambda: self._np.reduce(source, axis=axis, dtype=dtype, keepdims=keepdims))

    def accumulate(self, array, axis=0, dtype=None, out=None):
        if self.name not in ("add", "multiply"):
            raise NotImplementedError(f"accumulate is not implemented for {self.name}")
        source = array._np
        return settle(self.name, [array], lambda: self._np.accumulate(source, axis=axis, dtype=dtype))

    def outer(self, A, B, **kwargs):
        a, b = A._np, B._np
        return settle(self.name, [A, B], lambda: self._np.outer(a, b, **kwargs))

    def at(self, a, indices, b=None):
        if self._at is None:
            raise NotImplementedError(f"`{self.name}.at` is not supported yet")
        if a.dtype.name not in ("int32", "int64", "uint32", "uint64", "float16", "float32", "float64",
                                "complex64", "complex128"):
            raise TypeError(f"cupy.{self.name}.at does not support {a.dtype}")
        if isinstance(b, np.ndarray):
            raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        indices, target, value = arrays._index(indices), a._np, host(b)
        places = arrays._unwrap(indices)
        arrays.mutate(f"{self.name}.at", a, inputs_of(indices, (b,)),
                      lambda: self._np.at(target, places, value))


ufuncs = {name: ufunc(name, getattr(np, name), facts)
          for name, facts in NAMES["ufuncs"].items() if hasattr(np, name)}
for _name, _alias in (("nan_to_num_", None), ("isneginf", np.isneginf), ("isposinf", np.isposinf),
                      ("angle", np.angle), ("real_if_close", None), ("sinc", np.sinc), ("i0", np.i0)):
    if _name in NAMES["ufuncs"] and _alias is not None:
        ufuncs[_name] = ufunc(_name, _alias, NAMES["ufuncs"][_name])


# ---- functions that are CuPy's own affair ----------------------------------------------------------


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
        from . import functions

        whole = functions.table["stack"]([array(o, copy=False) for o in obj])
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
            raise TypeError(f"cupy.matmul of {a.dtype} with more than two axes: cuBLAS type not supported")
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
    if isinstance(obj, arrays.Capsule):
        return obj.array
    if obj.__dlpack_device__()[0] != 2:
        raise TypeError("only CUDA memory becomes a CuPy array by DLPack")
    shared = obj.__dlpack__().array
    return shared.view()


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
        if parameters == 0 or name in _HOST_ONLY or isinstance(value, type):
            found[name] = value
        elif callable(value):
            found[name] = _plain_function(prefix + name, value, parameters)
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


# ---- the array's methods and operators -------------------------------------------------------------


def _method(name):
    function = getattr(np.ndarray, name)

    def method(self, *args, **kwargs):
        out = kwargs.pop("out", None)
        if name in _UPLOADS:
            args = tuple(asarray(a) if isinstance(a, np.ndarray) else a for a in args)
        inputs = [self, *inputs_of(args, kwargs)]
        if name in _NO_BFLOAT16 and self.dtype == BFLOAT16:
            raise TypeError(f"{name} is not supported for bfloat16")
        if name == "nonzero":
            self._host(name)
        source, given, named_ = self._np, host(args), host(kwargs)
        got = settle(name, inputs, lambda: function(source, *given, **named_))
        if out is not None:
            out[...] = got
            return out
        return got

    return method


def _changing(name):
    function = getattr(np.ndarray, name)

    def method(self, *args, **kwargs):
        if name in _NO_BFLOAT16 and self.dtype == BFLOAT16:
            raise TypeError(f"{name} is not supported for bfloat16")
        source, given = self._np, host(args)
        arrays.mutate(name, self, inputs_of(args), lambda: function(source, *given, **kwargs))

    return method


for _name in ("all", "any", "argmax", "argmin", "argpartition", "argsort", "choose", "clip", "compress",
              "conj", "conjugate", "cumprod", "cumsum", "diagonal", "dot", "flatten", "max", "mean", "min",
              "nonzero", "prod", "ravel", "repeat", "reshape", "round", "searchsorted", "squeeze", "std",
              "sum", "swapaxes", "take", "trace", "transpose", "var", "tobytes"):
    setattr(ndarray, _name, _method(_name))
for _name in ("sort", "partition", "put"):
    setattr(ndarray, _name, _changing(_name))


def _operator(name, forward):
    operation = table[forward]

    def binary(self, other):
        if isinstance(other, np.ndarray):
            raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        if not isinstance(other, (ndarray, int, float, complex, np.generic)):
            return NotImplemented
        return operation(self, other)

    def swapped(self, other):
        if not isinstance(other, (int, float, complex, np.generic)):
            return NotImplemented
        return operation(other, self)

    def in_place(self, other):
        if isinstance(other, np.ndarray):
            raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        return operation(self, other, out=self)

    setattr(ndarray, f"__{name}__", binary)
    if name not in ("eq", "ne", "lt", "le", "gt", "ge"):
        setattr(ndarray, f"__r{name}__", swapped)
        if name != "divmod":
            setattr(ndarray, f"__i{name}__", in_place)


for _name, _forward in {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "true_divide", "mod": "remainder",
    "floordiv": "floor_divide", "pow": "power", "and": "bitwise_and", "or": "bitwise_or",
    "xor": "bitwise_xor", "lshift": "left_shift", "rshift": "right_shift", "eq": "equal",
    "ne": "not_equal", "lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal",
}.items():  # fmt: skip
    _operator(_name, _forward)
for _name, _forward in {"neg": "negative", "abs": "absolute", "invert": "invert"}.items():
    setattr(ndarray, f"__{_name}__", lambda self, _f=table[_forward]: _f(self))
ndarray.__pos__ = lambda self: self.copy()
ndarray.__matmul__ = lambda self, other: matmul(self, other)
