"""Calls of a group carried out by the algorithms over messages.

The ranks first exchange the fingerprints of their calls (`agree`): that is what makes a mismatch an
error on every rank instead of wrong numbers or a hang, and tells whether everybody has come.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import check, selection
from .algorithms import ALGORITHMS
from .backend import Counts
from .buffers import Array
from .call import Call
from .settings import settings
from .transport import Transport


class CallWatch:
    """A watch that knows which call the waits of a transport belong to."""

    def __init__(self, watch: Any) -> None:
        self.watch = watch
        self.call: Call | None = None

    def look(self, call: Call | None, missing: Sequence[int]) -> None:
        self.watch.look(call or self.call, missing)


class ByMessages:
    """Carries out calls among the ranks of a transport.

    Args:
        transport: used by nobody else; its `watch` is replaced.
        watch: the process's.
        deterministic: asks whether reductions must follow the tree by rank order.
    """

    def __init__(self, transport: Transport, watch: Any, deterministic: Callable[[], bool]) -> None:
        self.transport = transport
        self._deterministic = deterministic
        self._watch = transport.watch = CallWatch(watch)

    def agree(self, call: Call) -> None:
        """Return when all ranks have come with the same call; else raise on every rank."""
        self._watch.call = call
        if not settings.checks or self.transport.size == 1:
            return
        self.arrive(call)

    def arrive(self, call: Call) -> None:
        """`agree`, also where checks are off: everybody has come when it returns."""
        self._watch.call = call
        check.compare(call, self.transport.members, self._exchange)

    def _exchange(self, mine: np.ndarray, everyone: np.ndarray) -> None:
        ALGORITHMS["all_gather"]["bruck"](self.transport, everyone, mine)

    def barrier(self, call: Call) -> None:
        self.arrive(call)

    def all_reduce(self, call: Call, buffer: Array, ufunc: Any) -> None:
        self._begin(call, "all_reduce", buffer.nbytes)(self.transport, buffer, ufunc)

    def reduce(self, call: Call, buffer: Array, ufunc: Any, root: int) -> None:
        self._begin(call, "reduce", buffer.nbytes)(self.transport, buffer, ufunc, root)

    def reduce_scatter(
        self, call: Call, out: Array, buffer: Array, ufunc: Any, counts: Counts = None
    ) -> None:
        run = self._begin(call, "reduce_scatter", buffer.nbytes, counts)
        run(self.transport, out, buffer, ufunc, counts=counts)

    def broadcast(self, call: Call, buffer: Array, root: int) -> None:
        self._begin(call, "broadcast", buffer.nbytes)(self.transport, buffer, root)

    def all_gather(self, call: Call, out: Array, buffer: Array, counts: Counts = None) -> None:
        run = self._begin(call, "all_gather", out.nbytes, counts)
        run(self.transport, out, buffer, counts=counts)

    def gather(
        self, call: Call, out: Array | None, buffer: Array, root: int, counts: Counts = None
    ) -> None:
        run = self._begin(call, "gather", self._part(buffer, counts), counts)
        run(self.transport, out, buffer, root, **_sizes(counts))

    def scatter(
        self, call: Call, out: Array, buffer: Array | None, root: int, counts: Counts = None
    ) -> None:
        run = self._begin(call, "scatter", self._part(out, counts), counts)
        run(self.transport, out, buffer, root, **_sizes(counts))

    def all_to_all(
        self, call: Call, out: Array, buffer: Array, out_counts: Counts = None, in_counts: Counts = None
    ) -> None:
        if in_counts is None or out_counts is None:
            self._begin(call, "all_to_all", buffer.nbytes)(self.transport, out, buffer)
            return
        run = self._begin(call, "all_to_all", buffer.nbytes, in_counts)
        if settings.checks:
            members = self.transport.members
            check.compare_counts(call, members, self._exchange, out_counts, in_counts)
        run(self.transport, out, buffer, out_counts=out_counts, in_counts=in_counts)

    def _part(self, mine: Array, counts: Counts) -> int:
        """Bytes of one rank's part, the same on all ranks."""
        n = self.transport.size
        return mine.itemsize * (mine.size if counts is None else sum(counts) // n)

    def _begin(self, call: Call, name: str, nbytes: int, counts: Counts = None) -> Callable[..., None]:
        """Agree on the call, and choose its algorithm."""
        self.agree(call)
        unequal = counts is not None
        chosen = selection.algorithm(
            name, nbytes, self.transport.size, self._deterministic(), unequal=unequal
        )
        return ALGORITHMS[name][chosen]


def _sizes(counts: Counts) -> dict[str, Counts]:
    """Arguments of algorithms of which only some take parts of unequal sizes."""
    return {} if counts is None else {"counts": counts}
