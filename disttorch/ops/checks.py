"""Checks that many operations share: dims in range, dtypes that fit, PyTorch's names of types."""

from __future__ import annotations

from ..backend import dtypes

TYPE_NAMES = {
    "bool": "Bool", "uint8": "Byte", "int8": "Char", "int16": "Short", "int32": "Int",
    "int64": "Long", "float16": "Half", "bfloat16": "BFloat16", "float32": "Float",
    "float64": "Double", "complex64": "ComplexFloat", "complex128": "ComplexDouble",
}


def type_name(d: dtypes.dtype) -> str:
    """PyTorch's word for a dtype in messages: float32 -> Float."""
    return TYPE_NAMES[d.name]


def check_castable(have: dtypes.dtype, want: dtypes.dtype) -> None:
    """A result may lose precision but not its category on the way into an existing tensor."""
    if have.category > want.category:
        raise RuntimeError(
            f"result type {type_name(have)} can't be cast to the desired output type "
            f"{type_name(want)}"
        )


def wrap_dim(dim: int, ndim: int) -> int:
    """A dimension counted from the front.

    Raises:
        IndexError: if it is out of range.
    """
    n = ndim or 1
    if not -n <= dim < n:
        raise IndexError(
            f"Dimension out of range (expected to be in range of [{-n}, {n - 1}], but got {dim})"
        )
    return dim + n if dim < 0 else dim


def wrap_dims(dim, ndim: int) -> tuple:
    """One dim, several or None (all), counted from the front; a repeated one is an error."""
    if dim is None:
        return tuple(range(ndim))
    if isinstance(dim, int):
        return (wrap_dim(dim, ndim),)
    dims = tuple(wrap_dim(d, ndim) for d in dim)
    if not dims:
        return tuple(range(ndim))
    if len(set(dims)) != len(dims):
        repeated = next(d for d in dims if dims.count(d) > 1)
        raise RuntimeError(f"dim {repeated} appears multiple times in the list of dims")
    return dims
