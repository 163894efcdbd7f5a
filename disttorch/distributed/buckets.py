"""Buckets: gradients that are reduced together, in one flat array; and how a comm hook sees one."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any

from ..backend import namespace_of
from ..tensor import Tensor, wrap

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
        work: the reduction under way (with `wait`), or None.
        idle: whether this backward leaves the bucket out, as no rank uses its members.
    """

    def __init__(self, members: Sequence[int], parameters: Sequence[Tensor]) -> None:
        self.members = list(members)
        self.missing = 0
        self.work: Any = None
        self.idle = False
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


class GradBucket:
    """A bucket as a communication hook gets it.

    Args:
        index: place among the buckets, in the order of reduction.
        buffer: the gradients, flat, not yet divided by the number of ranks.
        parameters: whose gradients, in their order in the buffer.
        last: whether it is the last bucket of this backward.
    """

    def __init__(
        self, index: int, buffer: Tensor, parameters: Sequence[Tensor], last: bool
    ) -> None:
        self._index, self._buffer, self._last = index, buffer, last
        self._parameters = list(parameters)

    def index(self) -> int:
        """The bucket's place among all, from 0, in the order of reduction."""
        return self._index

    def buffer(self) -> Tensor:
        """The flat tensor of the gradients; changing it changes the bucket."""
        return self._buffer

    def set_buffer(self, buffer: Tensor) -> None:
        """Put another tensor of as many elements in the place of the buffer, as of another dtype.

        Raises:
            ValueError: another number of elements.
        """
        if buffer.numel() != self._buffer.numel():
            raise ValueError(
                f"GradBucket.set_buffer: the bucket has {self._buffer.numel()} elements, the new "
                f"buffer {buffer.numel()}"
            )
        self._buffer = buffer

    def gradients(self) -> list[Tensor]:
        """Each parameter's part of the buffer, in its shape; views."""
        flat, parts, start = self._buffer._data.reshape(-1), [], 0
        for p in self._parameters:
            size = p._data.size
            parts.append(wrap(flat[start : start + size].reshape(p._data.shape)))
            start += size
        return parts

    def parameters(self) -> list[Tensor]:
        """The parameters, in their order in the buffer."""
        return list(self._parameters)

    def is_last(self) -> bool:
        """Whether no bucket of this backward comes after it."""
        return self._last


class BuiltinCommHookType(enum.Enum):
    """Hooks that `DistributedDataParallel._register_builtin_comm_hook` knows by name."""

    ALLREDUCE = 1
    FP16_COMPRESS = 2


def assign(
    order: Sequence[int], parameters: Sequence[Tensor], caps: Sequence[float]
) -> list[list[int]]:
    """Cut parameters into buckets, each of one dtype and device.

    A bucket is closed by the parameter that brings it to its limit, and buckets stand in the order
    in which they are closed, which is the order in which they will be ready.

    Args:
        order: numbers of the parameters in the order in which gradients are expected.
        caps: limits in bytes of the first bucket, the second, …; the last one holds for the rest.

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
        if sizes[kind] >= caps[min(len(closed), len(caps) - 1)]:
            closed.append(open_ones.pop(kind))
            sizes[kind] = 0
    return closed + list(open_ones.values())
