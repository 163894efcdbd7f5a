"""Pickles of tensors and plain containers, in the form PyTorch's files have.

Writing: a tensor becomes a call of ``torch._utils._rebuild_tensor_v2`` on a storage that is named
by a persistent id; its bytes lie elsewhere in the file. PyTorch's names are written as text: it
need not be installed.

Reading: a name stands for one of the builders below and for nothing else. No name is imported, no
class is instantiated, no attribute of an existing object is set, so a hostile file cannot run code.
The reader is the standard library's, in Python, with all opcodes removed that could do more: its
memo is a dict, so that a small file cannot ask for a huge one.
"""

from __future__ import annotations

import codecs
import functools
import pickle
from collections import Counter, OrderedDict

from ..backend import dtypes, namespace_of
from ..backend.devices import device
from ..nn.modules.module import TENSOR_TYPES
from ..nn.parameter import Buffer, Parameter
from ..tensor import Size, Tensor, layout_type, strided, wrap

PROTOCOL = 2

STORAGE_TYPES = {name: kind.replace("Tensor", "Storage") for name, kind in TENSOR_TYPES.items()}

_PLAIN = frozenset({
    type(None), bool, int, float, complex, str, bytes, bytearray, list, dict, tuple, set,
    frozenset, slice, range, OrderedDict, Counter,
})

# What their pickles call
_CALLED = _PLAIN | {codecs.encode}
_CALLABLE_KINDS = (type, type(codecs.encode))


# ---------------------------------------------------------------- writing
class _Name:
    """A global name to be written, whether or not it exists here."""

    def __init__(self, module: str, name: str):
        self.text = f"{module}\n{name}\n".encode()

    def __call__(self, *args):
        raise TypeError("a name to be written; the pickler wants it to look like a function")


_name = functools.cache(_Name)  # one object for each name: the pickle's memo goes by identity


class _StorageId:
    def __init__(self, pid):
        self.pid = pid


class TensorPickler(pickle._Pickler):
    """Pickles to ``file``; ``storages`` is then the list of flat arrays, by their key's number.

    Raises:
        pickle.PicklingError: for an object that could not be loaded again.
    """

    dispatch = dict(pickle._Pickler.dispatch)

    def __init__(self, file):
        super().__init__(file, PROTOCOL)
        self.storages: list = []
        self._keys: dict = {}

    def _save_name(self, obj):
        self.write(pickle.GLOBAL + obj.text)
        self.memoize(obj)

    dispatch[_Name] = _save_name  # type: ignore[assignment]

    def persistent_id(self, obj):
        return obj.pid if type(obj) is _StorageId else None

    def reducer_override(self, obj):
        kind = type(obj)
        if kind is bytes and not obj:  # PyTorch reads bytes in this form only
            return codecs.encode, ("", "latin1")
        if kind in _PLAIN or kind is _Name:
            return NotImplemented
        if kind in _CALLABLE_KINDS and obj in _CALLED:
            return NotImplemented
        if kind is Parameter:
            return _name("torch._utils", "_rebuild_parameter"), (
                wrap(obj._data), obj.requires_grad, OrderedDict()
            )
        if kind in (Tensor, Buffer):
            return self._tensor(obj)
        if kind is Size:
            return _name("torch", "Size"), (tuple(obj),)
        if kind is device:
            return _name("torch", "device"), _device_args(obj)
        if kind is layout_type:
            return _name("torch.serialization", "_get_layout"), (repr(obj),)
        raise pickle.PicklingError(
            f"save() writes tensors and plain containers, which load() can build without running "
            f"code; {kind.__module__}.{kind.__qualname__} is neither. Save its state_dict(), or "
            "convert it to numbers, strings, lists or dicts"
        )

    def save(self, obj, save_persistent_id=True):
        if type(obj) is dtypes.dtype:  # a name, not a call
            obj = _name("torch", obj.name)
        return super().save(obj, save_persistent_id)  # type: ignore[misc]

    def _tensor(self, t: Tensor):
        xp = namespace_of(t._data)
        flat, offset, strides = xp.storage_of(t._data)
        memory = xp.memory_key(flat)
        key = self._keys.get(memory)
        if key is None:
            key = self._keys[memory] = len(self.storages)
            self.storages.append(flat)  # held until the file is written: no address is used twice
        storage = _StorageId((
            "storage", _name("torch", STORAGE_TYPES[t.dtype.name]), str(key), _location(t),
            flat.size,
        ))
        return _name("torch._utils", "_rebuild_tensor_v2"), (
            storage, offset, tuple(t.shape), strides, t.requires_grad, OrderedDict()
        )


def _device_args(d: device) -> tuple:
    return (d.type,) if d.index is None else (d.type, d.index)


def _location(t: Tensor) -> str:
    d = t.device
    return "cpu" if d.type == "cpu" else f"cuda:{d.index or 0}"


# ---------------------------------------------------------------- what names build
class _Builder:
    """What a name in a pickle stands for: a function that checks its arguments."""

    __slots__ = ("name", "make")

    def __init__(self, name, make):
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "make", make)

    def __setattr__(self, name, value):
        raise pickle.UnpicklingError("a pickle may not change what a name stands for")


class _StorageType:
    """The name of a storage class: only its element type counts."""

    __slots__ = ("dtype",)

    def __init__(self, dtype):
        self.dtype = dtype


class LoadedStorage:
    """Bytes of a file as a 1-dim array."""

    __slots__ = ("flat",)

    def __init__(self, flat):
        self.flat = flat


def _ints(values) -> tuple:
    if not isinstance(values, (tuple, list)) or any(type(v) is not int for v in values):
        raise pickle.UnpicklingError(f"expected sizes as ints, got {values!r}")
    return tuple(values)


def _rebuild_tensor_v2(storage, offset, size, stride, requires_grad=False, hooks=None, meta=None):
    if type(storage) is not LoadedStorage:
        raise pickle.UnpicklingError(f"a tensor without storage: {type(storage).__name__}")
    return _window(storage.flat, offset, size, stride, requires_grad)


def _window(flat, offset, size, stride, requires_grad) -> Tensor:
    shape, strides = _ints(size), _ints(stride)
    t = wrap(namespace_of(flat).window(flat, _ints([offset])[0], shape, strides))
    if requires_grad:
        t.requires_grad = True
    return t


def _rebuild_tensor_v3(storage, offset, size, stride, requires_grad, hooks, dtype, meta=None):
    if type(storage) is not LoadedStorage or type(dtype) is not dtypes.dtype:
        raise pickle.UnpicklingError("a tensor without storage or dtype")
    return _window(storage.flat.view(dtype.np), offset, size, stride, requires_grad)


def _rebuild_parameter(data, requires_grad=True, hooks=None):
    if not isinstance(data, Tensor):
        raise pickle.UnpicklingError(f"a parameter of {type(data).__name__}, not of a tensor")
    return Parameter(data, bool(requires_grad))


def _rebuild_parameter_with_state(data, requires_grad, hooks, state):
    return _with_attributes(_rebuild_parameter(data, requires_grad), state)


def _rebuild_from_type(function, kind, args, state):
    if type(function) is not _Builder or not isinstance(args, tuple):
        raise pickle.UnpicklingError("a tensor subclass in an unknown form")
    if kind is not BUILDERS["torch", "Tensor"] and kind is not BUILDERS[_PARAMETER]:
        raise pickle.UnpicklingError("tensor subclasses other than Parameter cannot be loaded")
    return _with_attributes(function.make(*args), state)


def _with_attributes(t, state):
    if isinstance(state, dict):
        for name, value in state.items():
            if not isinstance(name, str) or name.startswith("_") or hasattr(Tensor, name):
                raise pickle.UnpicklingError(f"a tensor may not be given the attribute {name!r}")
            setattr(t, name, value)
    elif state is not None:
        raise pickle.UnpicklingError(f"attributes of a tensor as {type(state).__name__}")
    return t


def _bytes_of(text="", encoding="latin1"):
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes in an unknown form: {type(text).__name__}")
    return text.encode("latin-1")


def _bytearray_of(content=b"", encoding="latin-1"):
    # never an int: that would be a number of bytes to allocate
    return bytearray(content if isinstance(content, bytes) else _bytes_of(content, encoding))


def _of_items(kind, accepted):
    def make(*args):
        if len(args) > 1 or not all(isinstance(a, accepted) for a in args):
            raise pickle.UnpicklingError(f"{kind.__name__} of {args!r:.80}")
        for key in args[0] if args else ():
            _check_key(key[0] if kind is OrderedDict else key)
        return kind(*args)

    return make


def _of_numbers(kind, number):
    def make(*args):
        if any(a is not None and not isinstance(a, number) for a in args):
            raise pickle.UnpicklingError(f"{kind.__name__} of {args!r:.80}")
        return kind(*args)

    return make


def _layout_named(name):
    if name != "torch.strided":
        raise pickle.UnpicklingError(f"tensors of layout {name!r} cannot be loaded; only strided")
    return strided


def _no_tensor(*args):
    raise pickle.UnpicklingError("a tensor in the form of PyTorch before 0.4 cannot be loaded")


_PARAMETER = ("torch.nn.parameter", "Parameter")

_FUNCTIONS = {
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor_v2,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor_v2,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter_with_state,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type,
    ("torch", "Tensor"): _no_tensor,
    _PARAMETER: _rebuild_parameter,
    ("torch", "Size"): lambda sizes=(): Size(_ints(sizes)),
    ("torch", "device"): lambda kind, index=None: device(kind, index),
    ("torch.serialization", "_get_layout"): _layout_named,
    ("collections", "OrderedDict"): _of_items(OrderedDict, list),
    ("collections", "Counter"): _of_items(Counter, dict),
    ("_codecs", "encode"): _bytes_of,
}
for _module in ("builtins", "__builtin__"):
    _FUNCTIONS |= {
        (_module, "set"): _of_items(set, list),
        (_module, "frozenset"): _of_items(frozenset, list),
        (_module, "complex"): _of_numbers(complex, (int, float)),
        (_module, "slice"): _of_numbers(slice, int),
        (_module, "range"): _of_numbers(range, int),
        (_module, "xrange"): _of_numbers(range, int),
        (_module, "bytes"): _bytes_of,
        (_module, "bytearray"): _bytearray_of,
    }

BUILDERS: dict = {key: _Builder(".".join(key), make) for key, make in _FUNCTIONS.items()}
BUILDERS |= {("torch", d.name): d for d in dtypes.ALL}
for _prefix in ("torch", "torch.cuda"):
    BUILDERS |= {
        (_prefix, kind): _StorageType(dtypes.BY_NAME[name]) for name, kind in STORAGE_TYPES.items()
    }
BUILDERS["torch.storage", "UntypedStorage"] = _StorageType(dtypes.uint8)


# ---------------------------------------------------------------- reading
_KEY_TYPES = (str, int, float, complex, bytes, type(None), Tensor, dtypes.dtype, device, frozenset)


def _check_key(key, budget=100):
    """A hashable whose hash is cheap: nested tuples could take exponential time."""
    if isinstance(key, tuple):
        for part in key:
            budget = _check_key(part, budget - 1)
    elif not isinstance(key, _KEY_TYPES):
        raise pickle.UnpicklingError(f"a {type(key).__name__} as a key")
    if budget < 0:
        raise pickle.UnpicklingError("a nested tuple as a key")
    return budget


class _Allowed(dict):
    def __missing__(self, code):
        raise pickle.UnpicklingError(f"the pickle contains the disallowed opcode {code:#04x}")


_OPCODES = (
    "PROTO", "FRAME", "MARK", "STOP", "POP", "POP_MARK", "DUP", "NONE", "NEWTRUE", "NEWFALSE",
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
    "LIST", "EMPTY_LIST", "TUPLE", "EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_DICT",
    "EMPTY_SET", "GET", "BINGET", "LONG_BINGET", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE",
    "GLOBAL", "STACK_GLOBAL", "BINPERSID",
)


class TensorUnpickler(pickle._Unpickler):
    """Reads what TensorPickler and PyTorch write.

    Args:
        file: the pickle.
        load_storage: function ``(dtype, key, location, count) -> flat array``.

    Raises:
        pickle.UnpicklingError: for a name that is not known to be harmless, or a damaged pickle.
    """

    dispatch = _Allowed(
        (getattr(pickle, name)[0], pickle._Unpickler.dispatch[getattr(pickle, name)[0]])
        for name in _OPCODES
    )

    def __init__(self, file, load_storage):
        super().__init__(file, encoding="utf-8")
        self._load_storage = load_storage

    def load(self):
        try:
            return super().load()
        except pickle.UnpicklingError:
            raise
        except RuntimeError as error:
            if isinstance(error, RecursionError):
                raise pickle.UnpicklingError("the pickle is nested too deeply") from None
            raise
        except Exception as error:
            raise pickle.UnpicklingError(
                f"the pickle is damaged ({type(error).__name__}: {error})"
            ) from error

    def find_class(self, module, name):
        try:
            return BUILDERS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"the file refers to {module}.{name}, which load() does not build: it makes "
                "tensors and plain containers only and never runs code. If you trust the file, "
                "load it where it was written and save a state_dict()"
            ) from None

    def persistent_load(self, pid):
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage":
            raise pickle.UnpicklingError(f"an unknown persistent id: {pid!r:.80}")
        _, kind, key, location, count = pid
        if type(kind) is not _StorageType or not isinstance(key, str) or type(count) is not int:
            raise pickle.UnpicklingError(f"an unknown storage: {pid!r:.80}")
        return LoadedStorage(self._load_storage(kind.dtype, key, location, count))

    def _reduce(self):
        args = self.stack.pop()
        function = self.stack[-1]
        if type(function) is not _Builder or not isinstance(args, tuple):
            raise pickle.UnpicklingError(f"a call of {type(function).__name__}")
        self.stack[-1] = function.make(*args)

    dispatch[pickle.REDUCE[0]] = _reduce

    def _build(self):
        state = self.stack.pop()
        target = self.stack[-1]
        # PyTorch's state dicts carry their modules' versions as an attribute
        if type(target) is not OrderedDict or type(state) is not dict:
            raise pickle.UnpicklingError(f"attributes for a {type(target).__name__}")
        for name, value in state.items():
            if not isinstance(name, str) or hasattr(OrderedDict, name):
                raise pickle.UnpicklingError(f"the attribute {name!r} for an OrderedDict")
            setattr(target, name, value)

    dispatch[pickle.BUILD[0]] = _build

    def _target(self, *kinds):
        if type(self.stack[-1]) not in kinds:
            raise pickle.UnpicklingError(f"items for a {type(self.stack[-1]).__name__}")
        return self.stack[-1]

    def _append(self):
        value = self.stack.pop()
        self._target(list).append(value)

    dispatch[pickle.APPEND[0]] = _append

    def _appends(self):
        values = self.pop_mark()
        self._target(list).extend(values)

    dispatch[pickle.APPENDS[0]] = _appends

    def _set(self, items):
        target = self._target(dict, OrderedDict, Counter)
        for i in range(0, len(items), 2):
            _check_key(items[i])
            target[items[i]] = items[i + 1]

    def _setitem(self):
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    dispatch[pickle.SETITEM[0]] = _setitem

    def _setitems(self):
        items = self.pop_mark()
        self._set(items)

    dispatch[pickle.SETITEMS[0]] = _setitems

    def _dict(self):
        items = self.pop_mark()
        self.stack.append({})
        self._set(items)

    dispatch[pickle.DICT[0]] = _dict

    def _additems(self):
        items = self.pop_mark()
        for item in items:
            _check_key(item)
        self._target(set).update(items)

    dispatch[pickle.ADDITEMS[0]] = _additems

    def _frozenset(self):
        items = self.pop_mark()
        for item in items:
            _check_key(item)
        self.stack.append(frozenset(items))

    dispatch[pickle.FROZENSET[0]] = _frozenset


__all__ = ["LoadedStorage", "TensorPickler", "TensorUnpickler"]
