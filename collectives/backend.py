"""What a backend implements: the calls of `Group`, on flat contiguous buffers.

By the time a method here is called, arguments are checked, arrays are staged and the call is
recorded. What is left:

- Before anything of a result is delivered, a backend makes sure that all ranks make the same call
  (`Call.fingerprint`), and raises MismatchError on every rank where they do not.
- It waits for other ranks only where the wait can end: RankFailedError when a rank that it waits
  for has left, CollectiveTimeout after `call.timeout` seconds.
- Buffers hold what `buffers.Staged` makes of the caller's arrays: bool as uint8, 16-bit floats as
  uint16 where they only move and as float32 where they are reduced. `op` is never AVG.
- `counts` are the elements of every rank's part, in rank order; None where all are equal. All
  ranks have the same ones, but for `_all_to_all`, where each rank knows only what it sends and
  receives itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from .buffers import Array, ReduceOp
from .call import Call
from .work import Work

Counts = Sequence[int] | None


class Backend(ABC):
    """How one group's data moves. Attributes and public calls: see `group.Group`."""

    #: Whether the methods accept buffers in device memory.
    takes_device_arrays = False
    #: Whether 16-bit floats are reduced as they are, rather than as float32.
    reduces_halves = False
    #: The largest tag that a message may carry; MPI guarantees this much.
    largest_tag = 32767

    @abstractmethod
    def _agree(self, call: Call) -> None:
        """Return when all ranks have come with the same call."""

    @abstractmethod
    def _all_reduce(self, call: Call, buffer: Array, op: ReduceOp) -> None:
        """Reduce in place."""

    @abstractmethod
    def _reduce(self, call: Call, buffer: Array, op: ReduceOp, root: int) -> None:
        """Reduce in place on `root`; leave the buffer alone elsewhere."""

    @abstractmethod
    def _reduce_scatter(
        self, call: Call, out: Array, buffer: Array, op: ReduceOp, counts: Counts
    ) -> None:
        """`buffer` may be overwritten where it was loaded as private."""

    @abstractmethod
    def _broadcast(self, call: Call, buffer: Array, root: int) -> None: ...

    @abstractmethod
    def _all_gather(self, call: Call, out: Array, buffer: Array, counts: Counts) -> None: ...

    @abstractmethod
    def _all_to_all(
        self, call: Call, out: Array, buffer: Array, out_counts: Counts, in_counts: Counts
    ) -> None: ...

    @abstractmethod
    def _gather(
        self, call: Call, out: Array | None, buffer: Array, root: int, counts: Counts
    ) -> None: ...

    @abstractmethod
    def _scatter(
        self, call: Call, out: Array, buffer: Array | None, root: int, counts: Counts
    ) -> None: ...

    @abstractmethod
    def _barrier(self, call: Call) -> None: ...

    @abstractmethod
    def _split(self, call: Call, color: int | None, key: int) -> Any:
        """The new Group of this rank, or None."""

    def _subset(self, ranks: Sequence[int], name: str) -> Any:
        """The new Group of `ranks`, which alone call this; this rank is one of them."""
        raise NotImplementedError(
            f"{type(self).__name__} makes groups of all its ranks together only: use split"
        )

    @abstractmethod
    def _isend(self, call: Call, buffer: Array, dst: int, tag: int) -> Work: ...

    @abstractmethod
    def _irecv(
        self, call: Call, buffer: Array, src: int | None, tag: int, store: Callable[[], None]
    ) -> Work:
        """`store` runs once the buffer is filled."""
