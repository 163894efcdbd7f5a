"""The stub of ``disttorch.tensor``: the class with all that is attached to it, and its neighbours."""

from __future__ import annotations

import inspect

from disttorch.tensor import Tensor
from disttorch.utils.stub_signatures import define, text_of, translate

IMPORTS = """\
from builtins import (
    bool as _bool, bytes as _bytes, complex as _complex, dict as _dict, float as _float,
    int as _int, list as _list, object as _object, slice as _slice, str as _str,
    tuple as _tuple,
)
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, SupportsIndex, TypeAlias, overload

from . import return_types as _return_types
from .backend.devices import device as _device
from .backend.dtypes import dtype as _dtype
from .ops.random import Generator as _Generator

__all__ = ["Size", "Tensor", "current_node", "strided", "wrap"]

_Number: TypeAlias = _bool | _int | _float | _complex
_DeviceLike: TypeAlias = _device | _str | _int

class Size(_tuple[_int, ...]):
    def numel(self) -> _int: ...
    def __add__(self, other: Iterable[_int]) -> Size: ...  # type: ignore[override]
    def __mul__(self, n: Any) -> Size: ...
    @overload
    def __getitem__(self, index: SupportsIndex) -> _int: ...
    @overload
    def __getitem__(self, index: _slice) -> Size: ...

class layout_type: ...

class memory_format:
    name: _str
    def __init__(self, name: _str) -> None: ...

_Size = Size
_memory_format = memory_format

strided: layout_type
contiguous_format: memory_format
preserve_format: memory_format
channels_last: memory_format
channels_last_3d: memory_format

def wrap(array: Any) -> Tensor: ...
def current_node(t: Tensor) -> Any: ...

"""

_BINARY = ("add", "and", "floordiv", "lshift", "matmul", "mod", "mul", "or", "pow", "rshift",
           "sub", "truediv", "xor")
OPERATORS = {f"__{p}{n}__" for n in _BINARY for p in ("", "r", "i")}
COMPARISONS = ("__eq__", "__ge__", "__gt__", "__le__", "__lt__", "__ne__")
UNARY = ("__abs__", "__invert__", "__neg__", "__pos__")
# Python's own protocols: parameters after self, and the result
PROTOCOLS = {
    "__array__": ("dtype: Any = None, copy: _bool | None = None", "Any"),
    "__bool__": ("", "_bool"), "__complex__": ("", "_complex"),
    "__contains__": ("element: Any", "_bool"), "__copy__": ("", "Tensor"),
    "__deepcopy__": ("memo: Any", "Tensor"), "__float__": ("", "_float"),
    "__format__": ("spec: _str", "_str"), "__getitem__": ("index: Any", "Tensor"),
    "__hash__": ("", "_int"), "__index__": ("", "_int"), "__int__": ("", "_int"),
    "__iter__": ("", "Iterator[Tensor]"), "__len__": ("", "_int"),
    "__reduce_ex__": ("protocol: Any", "Any"),
    "__repr__": ("*, tensor_contents: _str | None = None", "_str"),
    "__setitem__": ("index: Any, value: Any", "None"),
    "__str__": ("*, tensor_contents: _str | None = None", "_str"),
}
SKIPPED = ("__annotations__", "__dict__", "__doc__", "__module__", "__new__", "__weakref__",
           "__static_attributes__", "__firstlineno__", "__annotate_func__",
           "__annotations_cache__", "__annotate__", "__conditional_annotations__")
PROPERTY_TYPES = {"layout": "layout_type", "grad_fn": "Any"} | dict.fromkeys(
    ("H", "T", "imag", "mH", "mT", "real"), "Tensor"
)


def member(name: str, value) -> str:
    if isinstance(value, property):
        return _property(name, value)
    if name in PROTOCOLS:
        rest, result = PROTOCOLS[name]
        return text_of(name, ["self", *filter(None, [rest])], result, "    ")
    if name in OPERATORS:
        return f"    def {name}(self, other: Any) -> Tensor: ...\n"
    if name in COMPARISONS:
        ignored = "  # type: ignore[override]" if name in ("__eq__", "__ne__") else ""
        return f"    def {name}(self, other: Any) -> Tensor: ...{ignored}\n"
    if name in UNARY:
        return f"    def {name}(self) -> Tensor: ...\n"
    if name == "__init__":
        return define(name, value, method=True).replace("-> Any", "-> None")
    if callable(value):
        return define(name, value, method=True)
    if name.startswith("_") and not name.startswith("__"):
        return f"    {name}: Any\n"
    return f"    {name}: {'_' + type(value).__name__}\n"


def _property(name: str, value: property) -> str:
    told = translate(inspect.signature(value.fget).return_annotation) if value.fget else None
    kind = PROPERTY_TYPES.get(name, told or "Any")
    if value.fset is not None:
        return f"    {name}: {kind}\n"
    return f"    @property\n    def {name}(self) -> {kind}: ...\n"


def tensor_stub() -> str:
    """Text of ``disttorch/tensor.pyi`` after its header."""
    members = {n: v for n, v in vars(Tensor).items() if n not in SKIPPED}
    body = "".join(member(n, members[n]) for n in sorted(members))
    return IMPORTS + "class Tensor:\n    _data: Any\n" + body


__all__ = ["tensor_stub"]
