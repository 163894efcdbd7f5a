"""The array's methods that pass on to NumPy's, and its operators. Importing this puts them in."""

from __future__ import annotations

import numpy as np

from . import arrays
from .arrays import ndarray
from .calls import BFLOAT16, NO_BFLOAT16, UPLOADS, host, inputs_of, settle
from .functions import asarray, matmul, table


def _method(name):
    function = getattr(np.ndarray, name)

    def method(self, *args, **kwargs):
        out = kwargs.pop("out", None)
        if name in UPLOADS:
            args = tuple(asarray(a) if isinstance(a, np.ndarray) else a for a in args)
        inputs = [self, *inputs_of(args, kwargs)]
        if name in NO_BFLOAT16 and self.dtype == BFLOAT16:
            raise TypeError(f"{name} is not supported for bfloat16")
        if name == "nonzero":
            self._host(name)
        source, given, named_ = self._np, host(args), host(kwargs)
        if name == "take":  # CuPy takes places out of range modulo the size
            named_["mode"] = "wrap"
        got = settle(name, inputs, lambda: function(source, *given, **named_))
        if out is not None:
            out[...] = got
            return out
        return got

    return method


def _changing(name):
    function = getattr(np.ndarray, name)

    def method(self, *args, **kwargs):
        if name in NO_BFLOAT16 and self.dtype == BFLOAT16:
            raise TypeError(f"{name} is not supported for bfloat16")
        source, given = self._np, host(args)
        arrays.mutate(name, self, inputs_of(args), lambda: function(source, *given, **kwargs))

    return method


for _name in ("all", "any", "argmax", "argmin", "argpartition", "argsort", "choose", "clip", "compress",
              "conj", "conjugate", "cumprod", "cumsum", "diagonal", "dot", "flatten", "max", "mean",
              "min", "nonzero", "prod", "ravel", "repeat", "reshape", "round", "searchsorted", "squeeze",
              "std", "sum", "swapaxes", "take", "trace", "transpose", "var", "tobytes"):
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
