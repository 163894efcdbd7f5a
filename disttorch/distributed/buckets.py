"""Buckets: gradients that are reduced together, in one flat array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..backend import namespace_of
from ..tensor import Tensor

MIB = 1 << 20


class Bucket:
    """Some parameters' gradients, side by side in one contiguous array.

    Args:
        members: numbers of the parameters, in the order in which their gradients are expected.
        parameters: all parameters.

    Attributes:
        flat: the array that is reduced.
        views: each member's part of it, in the shape of the parameter.
        missing: how many members' gradients of the current backward are not in yet.
        work: the reduction under way, or None.
    """

    def __init__(self, members: Sequence[int], parameters: Sequence[Tensor]) -> None:
        self.members = list(members)
        self.missing = 0
        self.work: Any = None
        arrays = [parameters[i]._data for i in self.members]
        first = arrays[0]
        self.flat = namespace_of(first).empty(sum(a.size for a in arrays), first.dtype)
        self.views = []
        start = 0
        for array in arrays:
            self.views.append(self.flat[start : start + array.size].reshape(array.shape))
            start += array.size

    def __repr__(self) -> str:
        return f"Bucket({self.members}, {self.flat.nbytes} bytes of {self.flat.dtype})"


def assign(
    order: Sequence[int], parameters: Sequence[Tensor], first_bytes: float, cap_bytes: float
) -> list[list[int]]:
    """Cut parameters into buckets, each of one dtype and device.

    A bucket is closed by the parameter that brings it to its limit, and buckets stand in the order
    in which they are closed, which is the order in which they will be ready.

    Args:
        order: numbers of the parameters in the order in which gradients are expected.
        first_bytes: limit of the first bucket, which is small so that reduction starts early.
        cap_bytes: limit of every other bucket.

    Returns:
        The members of each bucket.
    """
    closed: list[list[int]] = []
    open_ones: dict[Any, list[int]] = {}
    sizes: dict[Any, int] = {}
    for i in order:
        kind = (parameters[i].dtype.name, str(parameters[i].device))
        # Moved to the end: the buckets left open are closed in the order of their last members.
        members = open_ones.pop(kind, [])
        open_ones[kind] = members
        members.append(i)
        sizes[kind] = sizes.get(kind, 0) + parameters[i]._data.nbytes
        if sizes[kind] >= (cap_bytes if closed else first_bytes):
            closed.append(open_ones.pop(kind))
            sizes[kind] = 0
    return closed + list(open_ones.values())
