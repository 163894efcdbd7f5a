"""Questions about dtypes that users ask of tensors and numbers."""

from __future__ import annotations

from ..backend import dtypes
from ..tensor import Tensor


def result_type(tensor1, tensor2) -> dtypes.dtype:
    """The dtype of an operation over two tensors or numbers."""
    operands = (tensor1, tensor2)
    arrays = [t._data for t in operands if isinstance(t, Tensor)]
    return dtypes.result_type(arrays, [t for t in operands if not isinstance(t, Tensor)])


def can_cast(from_, to) -> bool:
    """Whether a cast keeps the category: floats may become float16, but not integers."""
    return from_.category <= to.category


def is_signed(input: Tensor) -> bool:
    """Whether the dtype holds negative numbers."""
    return input.dtype.is_signed


def is_nonzero(input: Tensor) -> bool:
    """Whether the only element is not zero."""
    return bool(input)


def is_same_size(input: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same shape."""
    return input.shape == other.shape


COMPOSITES = {"is_signed": is_signed, "is_nonzero": is_nonzero, "is_same_size": is_same_size}
FUNCTIONS = {"result_type": result_type, "can_cast": can_cast}
