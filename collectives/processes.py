"""Ranks as processes: which way a call goes, over which part of the machine.

```
one node                    shared memory (`shm`); else as between nodes
several nodes               the transport's own calls (`native`: MPI's), or node first with leaders
                            between (`hierarchy`), or messages where every node has one rank
deterministic reductions    the tree by rank order: shared memory on one node, else `direct` messages
arrays in GPU memory        the transport's own calls, where it reads that (CUDA-aware MPI)
```

A tuned table (`selection`) may choose otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import flight, node, selection
from .backend import Counts
from .buffers import UFUNCS, Array, ReduceOp
from .by_messages import ByMessages
from .call import Call
from .group import Group
from .node import nodes_of
from .settings import settings
from .transport import Counted, Transport
from .work import CollectiveTimeout, PolledWork, Work

LOOK_SECONDS = 0.05
REDUCTIONS = ("all_reduce", "reduce", "reduce_scatter")


class ProcessesGroup(Group):
    """A group over a transport, which it owns. Made by `mpi.world`, `tcp` and `split`.

    Args:
        transport: of exactly this group's ranks.
        name: the same on all ranks.
        watch: the process's control plane.
        timeout: seconds that a call may wait.
        is_part: whether it was made of another group, and is freed by `close`.
    """

    def __init__(
        self,
        transport: Transport,
        name: str,
        watch: Any,
        timeout: float | None,
        is_part: bool = False,
    ) -> None:
        super().__init__(
            transport.rank, transport.size, name, transport.members, timeout, flight.recorder()
        )
        self.transport = transport
        self.watch = watch
        self._is_part = is_part
        self.store: Any = None  # in which the ranks met, where they did
        self.largest_tag = transport.largest_tag
        self.takes_device_arrays = transport.takes_device_arrays
        calls = Counted(transport.sub(range(self.size), f"{name} calls"))
        self._calls_transport = calls
        self._moved = calls.moved
        self._seen = (0, 0, 0)
        self._engine: Any = None
        self._messages = ByMessages(calls, watch, lambda: self.deterministic)
        self._ways: dict[str, Any] = self._connect(calls)
        self.reconsider()

    def _connect(self, calls: Transport) -> dict[str, Any]:
        """What can carry out calls beside messages, by its name in `selection`, the best first."""
        ways: dict[str, Any] = {}
        nodes = nodes_of(calls.node_of())
        mine = next(ranks for ranks in nodes if self.rank in ranks)
        engine = None
        if settings.shared_memory and len(mine) > 1:
            engine = self._engine = node.connect(calls, mine, self.watch)
        if engine is not None and len(nodes) == 1:
            ways["shm"] = engine
        native = calls.native(self.watch) if self.size > 1 else None
        if native is not None:
            ways["native"] = native
        if 1 < len(nodes) < self.size:
            from .hierarchy import Hierarchy

            ways["hierarchy"] = Hierarchy(calls, nodes, engine)
        return ways

    def reconsider(self) -> None:
        """Take notice of a new table in `selection`."""
        # The usual case, without a look at any table.
        self._only = None if selection.table() else self._ways.get("shm")

    @property
    def ways(self) -> list[str]:
        """What can carry out calls beside the algorithms over messages: names as in `selection`."""
        return list(self._ways)

    @property
    def backend(self) -> str:
        """Name of the transport."""
        return self.transport.backend

    def way(self, name: str, nbytes: int, buffer: Array = None) -> Any:
        """What carries out a call: an object with the calls' methods.

        Args:
            name: of the call.
            nbytes: as in `selection`, the same on all ranks.
            buffer: of this rank, to see in which memory it is.
        """
        if self.takes_device_arrays and buffer is not None and not isinstance(buffer, np.ndarray):
            return self._ways.get("native", self._messages)
        if self._only is not None:
            return self._only
        wanted = selection.tuned(name, nbytes, self.size)
        for chosen, way in self._ways.items():
            keeps_bits = chosen == "shm" or name not in REDUCTIONS
            if wanted in (None, chosen) and (keeps_bits or not self.deterministic):
                return way
        return self._messages

    def _count(self, call: Call) -> None:
        messages, sent, received = self._moved
        if self._engine is not None:
            sent += self._engine.sent
            received += self._engine.received
        before, self._seen = self._seen, (messages, sent, received)
        self._ledger.add(call, messages - before[0], sent - before[1], received - before[2])

    def close(self) -> None:
        """Wait for everything under way; a group made of another is then freed. Local.

        Raises:
            Exception: the first error that no `Work.wait` has shown.
        """
        super().close()
        if self._is_part and self._unusable is None:
            self._unusable = "it was closed"
            for way in (*self._ways.values(), self._calls_transport, self.transport):
                if hasattr(way, "close"):
                    way.close()
            self._ways, self._only, self._engine = {}, None, None

    def _may_begin(self, call: Call) -> None:
        if self.watch.trouble:
            self.watch.enter(call, self.members)

    def _agree(self, call: Call) -> None:
        self.way("barrier", 0).agree(call)

    def _barrier(self, call: Call) -> None:
        self.way("barrier", 0).barrier(call)

    def _all_reduce(self, call: Call, buffer: Array, op: ReduceOp) -> None:
        self.way("all_reduce", buffer.nbytes, buffer).all_reduce(call, buffer, UFUNCS[op])

    def _reduce(self, call: Call, buffer: Array, op: ReduceOp, root: int) -> None:
        self.way("reduce", buffer.nbytes, buffer).reduce(call, buffer, UFUNCS[op], root)

    def _reduce_scatter(
        self, call: Call, out: Array, buffer: Array, op: ReduceOp, counts: Counts
    ) -> None:
        way = self.way("reduce_scatter", buffer.nbytes, buffer)
        way.reduce_scatter(call, out, buffer, UFUNCS[op], counts)

    def _broadcast(self, call: Call, buffer: Array, root: int) -> None:
        self.way("broadcast", buffer.nbytes, buffer).broadcast(call, buffer, root)

    def _all_gather(self, call: Call, out: Array, buffer: Array, counts: Counts) -> None:
        way = self.way("all_gather", out.nbytes, out)
        way.all_gather(call, out, buffer, counts)

    def _all_to_all(
        self, call: Call, out: Array, buffer: Array, out_counts: Counts, in_counts: Counts
    ) -> None:
        # Sizes that only this rank knows must not decide which way all ranks go.
        way = self.way("all_to_all", 0 if in_counts is not None else buffer.nbytes, buffer)
        way.all_to_all(call, out, buffer, out_counts, in_counts)

    def _gather(
        self, call: Call, out: Array | None, buffer: Array, root: int, counts: Counts
    ) -> None:
        way = self.way("gather", self._part(buffer, counts), buffer)
        way.gather(call, out, buffer, root, counts)

    def _scatter(
        self, call: Call, out: Array, buffer: Array | None, root: int, counts: Counts
    ) -> None:
        way = self.way("scatter", self._part(out, counts), out)
        way.scatter(call, out, buffer, root, counts)

    def _part(self, mine: Array, counts: Counts) -> int:
        """Bytes of one rank's part, the same on all ranks."""
        return mine.itemsize * (mine.size if counts is None else sum(counts) // self.size)

    def _split(self, call: Call, color: int | None, key: int) -> Group | None:
        wishes = np.empty(2 * self.size, np.int64)
        mine = np.array([-1 if color is None else color, key], np.int64)
        self._all_gather(call.step("colors", "int64", wishes.size), wishes, mine, None)
        table = wishes.reshape(-1, 2).tolist()
        ranks = [r for r in range(self.size) if table[r][0] == color]
        if color is None:
            return None
        ranks.sort(key=lambda r: (table[r][1], r))
        name = f"{self.name}/{call.number}.{color}"
        part = self.transport.sub(ranks, name)
        return ProcessesGroup(part, name, self.watch, self.timeout, is_part=True)

    def _subset(self, ranks: Sequence[int], name: str) -> Group:
        part = self.transport.sub(ranks, name)
        return ProcessesGroup(part, name, self.watch, self.timeout, is_part=True)

    def _isend(self, call: Call, buffer: Array, dst: int, tag: int) -> Work:
        work = self.transport.isend(buffer, dst, tag)
        return self._watched(call, work, [self.members[dst]], lambda: None)

    def _irecv(
        self, call: Call, buffer: Array, src: int | None, tag: int, store: Callable[[], None]
    ) -> Work:
        work = self.transport.irecv(buffer, src, tag)

        def finish() -> int | None:
            store()
            return work.source

        others = [m for m in self.members if m != self.members[self.rank]]
        return self._watched(call, work, others if src is None else [self.members[src]], finish)

    def _watched(
        self, call: Call, work: Work, peers: Sequence[int], finish: Callable[[], int | None]
    ) -> Work:
        """The transport's work, whose waits end in time."""
        if hasattr(work, "about"):
            work.about = call  # for what its own waits say

        def poll() -> bool:
            if not work.is_completed():
                return False
            work.wait()  # raises what the message met with
            return True

        def block(timeout: float | None) -> bool:
            try:
                work.wait(LOOK_SECONDS if timeout is None else min(timeout, LOOK_SECONDS))
                return True
            except CollectiveTimeout:
                raise
            except TimeoutError:
                pass
            return False

        def wait(timeout: float | None) -> bool:
            left = timeout
            while not block(left):
                self.watch.look(call, peers)
                if left is not None:
                    left -= LOOK_SECONDS
                    if left <= 0:
                        return False
            return True

        return PolledWork(call.name, poll, wait, finish)
