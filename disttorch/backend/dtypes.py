"""Data types: PyTorch's names over NumPy's (and ml_dtypes') element types, and the promotion rules.

PyTorch promotes by *category* first (bool < integer < floating < complex) and looks at a tensor's
number of dimensions: a 0-dim tensor or a Python scalar changes the result's type only if it brings
a higher category than the tensors with dimensions. NumPy has no such rule for 0-dim arrays, which
is why promotion is done here, before an array function is called.
"""

from __future__ import annotations

import builtins

import ml_dtypes
import numpy as np

BOOL, INT, FLOAT, COMPLEX = 0, 1, 2, 3


class dtype:
    """The element type of a tensor, for example ``disttorch.float32``."""

    __slots__ = ("name", "np", "category", "itemsize", "rank")

    def __init__(self, name: str, np_dtype, category: builtins.int, rank: builtins.int):
        self.name, self.np, self.category, self.rank = name, np.dtype(np_dtype), category, rank
        self.itemsize = self.np.itemsize

    @property
    def is_floating_point(self) -> builtins.bool:
        return self.category == FLOAT

    @property
    def is_complex(self) -> builtins.bool:
        return self.category == COMPLEX

    @property
    def is_signed(self) -> builtins.bool:
        return self.category >= FLOAT or (self.category == INT and self.np.kind == "i")

    def to_real(self) -> dtype:
        """The real type of the same precision: complex64 -> float32; real types unchanged."""
        return {complex64: float32, complex128: float64}.get(self, self)

    def to_complex(self) -> dtype:
        """The complex type of at least this precision: float64 -> complex128, others -> complex64.

        PyTorch's complex32 does not exist here: float16 gives complex64 like bfloat16.
        """
        if self.category == COMPLEX:
            return self
        if self.category != FLOAT:
            raise RuntimeError(f"{self!r} has no complex counterpart; use float32 or float64")
        return complex128 if self is float64 else complex64

    def __repr__(self) -> str:
        return f"torch.{self.name}"

    def __reduce__(self):
        return self.name  # a module-level name: copies and pickles are the same object

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self


# rank orders the types inside a category for promotion
bool = dtype("bool", np.bool_, BOOL, 0)
uint8 = dtype("uint8", np.uint8, INT, 1)
int8 = dtype("int8", np.int8, INT, 1)
int16 = dtype("int16", np.int16, INT, 2)
int32 = dtype("int32", np.int32, INT, 3)
int64 = dtype("int64", np.int64, INT, 4)
float16 = dtype("float16", np.float16, FLOAT, 5)
bfloat16 = dtype("bfloat16", ml_dtypes.bfloat16, FLOAT, 5)
float32 = dtype("float32", np.float32, FLOAT, 6)
float64 = dtype("float64", np.float64, FLOAT, 7)
complex64 = dtype("complex64", np.complex64, COMPLEX, 6)
complex128 = dtype("complex128", np.complex128, COMPLEX, 7)

half, float, double = float16, float32, float64
short, int, long = int16, int32, int64
cfloat, cdouble = complex64, complex128

ALL = (
    bool, uint8, int8, int16, int32, int64, float16, bfloat16, float32, float64,
    complex64, complex128,
)
FROM_NP = {d.np: d for d in ALL}
BY_NAME = {d.name: d for d in ALL}
# 16-bit types: computed in float32, stored in 16 bits
HALF_NP = frozenset({float16.np, bfloat16.np})
FLOAT_NP = frozenset(d.np for d in ALL if d.category >= FLOAT)

_default = float32


def get_default_dtype() -> dtype:
    """The floating type that factories and Python floats get; float32 unless changed."""
    return _default


def set_default_dtype(d: dtype) -> None:
    """Set the floating type that factories and Python floats get.

    Raises:
        TypeError: if ``d`` is not a floating point dtype.
    """
    global _default
    if not isinstance(d, dtype) or d.category != FLOAT:
        raise TypeError(f"only floating-point types are supported as the default type, got {d!r}")
    _default = d


def from_np(np_dtype) -> dtype:
    """The dtype of a NumPy element type.

    Raises:
        TypeError: if tensors cannot hold that element type.
    """
    try:
        return FROM_NP[np_dtype]
    except KeyError:
        try:
            return FROM_NP[np.dtype(np_dtype).newbyteorder("=")]
        except KeyError:
            names = ", ".join(d.name for d in ALL)
            raise TypeError(
                f"can't convert np.ndarray of type {np_dtype}. "
                f"The only supported types are: {names}."
            ) from None


def of_scalar(value) -> dtype:
    """The dtype a Python scalar becomes as a tensor of its own."""
    if isinstance(value, (np.bool_, builtins.bool)):
        return bool
    if isinstance(value, np.generic):
        return from_np(value.dtype)
    if isinstance(value, builtins.int):
        return int64
    if isinstance(value, builtins.float):
        return _default
    if isinstance(value, complex):
        return _default.to_complex()
    raise TypeError(f"expected a number, got {type(value).__name__}: {value!r}")


def promote_types(a: dtype, b: dtype) -> dtype:
    """The smallest dtype to which both may be cast, by PyTorch's table.

    Integers and floats give the float; uint8 with a signed integer gives the next signed type;
    float16 with bfloat16 gives float32; a real float with a complex widens the complex.
    """
    for position, given in enumerate((a, b), 1):
        if not isinstance(given, dtype):
            raise TypeError(
                f"promote_types(): argument 'type{position}' (position {position}) must be "
                f"torch.dtype, not {type(given).__name__}"
            )
    if a is b:
        return a
    if a.category < b.category:
        a, b = b, a
    if a.category > b.category:
        if a.category == COMPLEX and b is float64:
            return complex128
        return a
    if a.category == INT and a.rank == b.rank:  # uint8 with int8
        return int16
    if a.rank == b.rank:  # float16 with bfloat16
        return float32
    return a if a.rank > b.rank else b


_SCALAR_CATEGORY = {builtins.bool: BOOL, builtins.int: INT, builtins.float: FLOAT, complex: COMPLEX}


def scalar_category(value) -> builtins.int:
    """The category of a Python or NumPy number."""
    got = _SCALAR_CATEGORY.get(type(value))
    return of_scalar(value).category if got is None else got


def _category_default(category, among: dtype | None) -> dtype:
    if category == BOOL:
        return bool
    if category == INT:
        return int64
    if category == FLOAT:
        return _default
    return (among if among is not None and among.category == FLOAT else _default).to_complex()


def result_type(arrays, scalars=()) -> dtype:
    """PyTorch's result type of an operation over arrays (their dtypes and ndim) and numbers.

    Args:
        arrays: objects with ``dtype`` (NumPy) and ``ndim``.
        scalars: Python numbers.
    """
    dim: dtype | None = None
    zero: dtype | None = None
    for a in arrays:
        d = FROM_NP[a.dtype]
        if a.ndim:
            dim = d if dim is None else promote_types(dim, d)
        else:
            zero = d if zero is None else promote_types(zero, d)
    if dim is None:
        result = zero
    elif zero is None or zero.category <= dim.category:
        result = dim
    else:
        result = promote_types(dim, zero)  # the 0-dim tensor brings a higher category
        if zero.category == COMPLEX and dim.category == FLOAT:
            result = dim.to_complex()
    for s in scalars:
        category = scalar_category(s)
        if result is None:
            result = _category_default(category, None)
        elif category > result.category:
            result = _category_default(category, result)
    if result is None:
        raise ValueError("result_type needs at least one array or number")
    return result


class finfo:
    """Limits of a floating point type: ``eps, max, min, tiny, smallest_normal, resolution``."""

    def __init__(self, type: dtype | None = None):
        d = _default if type is None else type
        if d.category == COMPLEX:
            d = d.to_real()
        if d.category != FLOAT:
            raise TypeError(f"torch.finfo() requires a floating point input type, got {d!r}")
        info = ml_dtypes.finfo(d.np)
        self.bits, self.dtype = d.itemsize * 8, d.name
        self.eps, self.max, self.min = builtins.float(info.eps), builtins.float(info.max), \
            builtins.float(info.min)
        self.tiny = self.smallest_normal = builtins.float(info.smallest_normal)
        self.resolution = 10.0 ** -builtins.int(info.precision)

    def __repr__(self):
        return (
            f"finfo(resolution={self.resolution:g}, min={self.min:g}, max={self.max:g}, "
            f"eps={self.eps:g}, smallest_normal={self.smallest_normal:g}, tiny={self.tiny:g}, "
            f"dtype={self.dtype})"
        )


class iinfo:
    """Limits of an integer type: ``bits, max, min``."""

    def __init__(self, type: dtype):
        if type.category != INT:
            raise TypeError(f"torch.iinfo() requires an integer input type, got {type!r}")
        info = np.iinfo(type.np)
        self.bits, self.dtype = info.bits, type.name
        self.max, self.min = builtins.int(info.max), builtins.int(info.min)

    def __repr__(self):
        return f"iinfo(min={self.min:g}, max={self.max:g}, dtype={self.dtype})"


__all__ = [
    "bfloat16", "bool", "cdouble", "cfloat", "complex64", "complex128", "double", "float",
    "float16", "float32", "float64", "half", "int", "int8", "int16", "int32", "int64", "long",
    "short", "uint8",
]
