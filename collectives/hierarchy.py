"""Collectives over several nodes: inside each node first, between the nodes once per node.

Between nodes every byte is dear, inside a node it is cheap. So a node's ranks combine what they have
(through shared memory), its leader, the first of its ranks, speaks for them to the leaders of the
other nodes, and hands them the result. Large all-reduces would leave the other ranks idle meanwhile:
where all nodes have equally many ranks, each takes one part between the nodes instead, on its own
*rail*: the ranks of all nodes with the same place in their node.

A node's ranks combine in the fixed tree, but the tree over all ranks is another one where a node's
ranks are not neighbours in it. Deterministic reductions do not come here.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from . import selection
from .algorithms import ALGORITHMS
from .algorithms.steps import edges, edges_of, receive, send
from .backend import Counts
from .buffers import Array
from .by_messages import ByMessages, CallWatch
from .call import Call
from .settings import settings
from .transport import Transport

#: From here an all-reduce goes over all rails, not only over that of the leaders.
RAIL_BYTES = 256 << 10
#: All ranks' meetings before a call have this fingerprint, whatever the call is.
_MEETING = 0x5DEECE66D


class Hierarchy:
    """Carries out calls among ranks on several nodes. Used by one thread at a time.

    Every call first makes sure that all ranks, on all nodes, make the same one, and raises
    MismatchError on every rank where they do not (unless checks are off).

    Args:
        transport: of all ranks.
        nodes: the ranks of each node, in the order of their places there; the same on every rank.
            Any ranks may share a node, and nodes may differ in size.
        engine: calls among this node's ranks, with a `shm.NodeEngine`'s methods. None: by messages.
    """

    def __init__(self, transport: Transport, nodes: Sequence[Sequence[int]], engine: Any = None) -> None:
        self.rank, self.size = transport.rank, transport.size
        if sorted(chain(*nodes)) != list(range(self.size)):
            raise ValueError(f"nodes {nodes} must name each of {self.size} ranks once")
        self.nodes = [list(node) for node in nodes]
        # Of its own: messages here never match those of others, and waits know the call.
        self._all = transport.sub(range(self.size), "hierarchy")
        self._messages = ByMessages(self._all, transport.watch, lambda: False)
        self._watch = self._all.watch = CallWatch(transport.watch)
        self._home = next(i for i, node in enumerate(self.nodes) if self.rank in node)
        self._node = self.nodes[self._home]
        self._place = self._node.index(self.rank)
        self._leads = self._place == 0
        self._engine = engine
        if engine is None and len(self._node) > 1:
            self._engine = _NodeMessages(self._all.sub(self._node, f"node {self._home}"))
        even = len({len(node) for node in self.nodes}) == 1
        self._rails = even and len(self._node) > 1
        self._rail: Transport | None = None  # of the ranks with my place; the leaders' is the first
        if self._leads or even:
            rail = [node[self._place] for node in self.nodes if self._place < len(node)]
            self._rail = self._all.sub(rail, f"rail {self._place}")
        # Ranks node after node, and where each rank is there.
        self._by_node = [rank for node in self.nodes for rank in node]
        self._ordered = self._by_node == list(range(self.size))

    def close(self) -> None:
        """Free the transports that were made here. Local: no rank waits for another."""
        parts = [self._rail]
        if isinstance(self._engine, _NodeMessages):
            parts.append(self._engine.transport)
        for transport in (*parts, self._all):
            if transport is not None:
                transport.close()

    # ---- meetings --------------------------------------------------------------------------------

    def agree(self, call: Call) -> None:
        """Return when all ranks have come with the same call; else raise on every rank."""
        self._watch.call = call
        if settings.checks:
            self.arrive(call)

    def arrive(self, call: Call) -> None:
        """`agree`, also where checks are off: everybody has come when it returns."""
        self._watch.call = call
        # One node must not raise alone while others go on: what its ranks are about to do is not
        # compared by the node's own meeting but gathered from all.
        meeting = call.step("agree")
        meeting.fingerprint = _MEETING
        mine = np.array([call.fingerprint], np.int64)
        here = np.empty(len(self._node), np.int64) if self._leads else None
        self._node_gather(meeting, here, mine, 0)
        verdict = np.zeros(1, np.int64)
        if here is not None:
            same = (here == here[0]).all()
            everywhere = np.empty(len(self.nodes), np.int64)
            self._between("all_gather", everywhere, np.array([here[0] if same else 0], np.int64))
            verdict[0] = (everywhere == everywhere[0]).all() and everywhere[0] != 0
        self._node_broadcast(meeting, verdict, 0)
        if not verdict[0]:
            self._messages.arrive(call)  # every rank's call, and the error

    def barrier(self, call: Call) -> None:
        """Return when all ranks have come."""
        self.arrive(call)

    # ---- reductions ------------------------------------------------------------------------------

    def all_reduce(self, call: Call, buffer: Array, ufunc: Any) -> None:
        """Reduce in place on every rank."""
        self.agree(call)
        if self._rails and buffer.nbytes >= RAIL_BYTES:
            at = edges(buffer.size, len(self._node))
            counts = [end - begin for begin, end in zip(at, at[1:])]
            part = np.empty(counts[self._place], buffer.dtype)
            self._engine.reduce_scatter(call, part, buffer, ufunc, counts)
            self._between("all_reduce", part, ufunc)
            self._engine.all_gather(call, buffer, part, counts)
            return
        self._node_reduce(call, buffer, ufunc, 0)
        if self._leads:
            self._between("all_reduce", buffer, ufunc)
        self._node_broadcast(call, buffer, 0)

    def reduce(self, call: Call, buffer: Array, ufunc: Any, root: int) -> None:
        """Reduce in place on `root`; others keep theirs."""
        self.agree(call)
        leader = self._leader_of(root)
        total = buffer.copy() if self._leads and self.rank != root else buffer
        self._node_reduce(call, total, ufunc, 0)
        if self._leads:
            self._between("reduce", total, ufunc, self._node_of(root))
            if self.rank == leader != root:
                send(self._all, total, root, 0)
        if self.rank == root != leader:
            receive(self._all, buffer, leader, 0)

    def reduce_scatter(
        self, call: Call, out: Array, buffer: Array, ufunc: Any, counts: Counts = None
    ) -> None:
        """Leave part r of the reduction in rank r's `out`."""
        self.agree(call)
        parts = [out.size] * self.size if counts is None else list(counts)
        total = buffer.copy() if self._leads else buffer
        self._node_reduce(call, total, ufunc, 0)
        sizes = self._node_sizes(parts)
        block: Array | None = None
        if self._leads:
            block = np.empty(sizes[self._home], buffer.dtype)
            self._between("reduce_scatter", block, self._to_nodes(total, parts), ufunc, counts=sizes)
        self._node_scatter(call, out, block, 0, [parts[rank] for rank in self._node])

    # ---- moves -----------------------------------------------------------------------------------

    def broadcast(self, call: Call, buffer: Array, root: int) -> None:
        """Give `root`'s buffer to all."""
        self.agree(call)
        at_home = root in self._node
        if at_home:  # the leader gets it like the others, and passes it on
            self._node_broadcast(call, buffer, self._node.index(root))
        if self._leads:
            self._between("broadcast", buffer, self._node_of(root))
        if not at_home:
            self._node_broadcast(call, buffer, 0)

    def all_gather(self, call: Call, out: Array, buffer: Array, counts: Counts = None) -> None:
        """Put all ranks' buffers behind each other into `out`, in rank order."""
        self.agree(call)
        parts = [buffer.size] * self.size if counts is None else list(counts)
        sizes = self._node_sizes(parts)
        block = np.empty(sizes[self._home], out.dtype) if self._leads else None
        self._node_gather(call, block, buffer, 0, [parts[rank] for rank in self._node])
        if self._leads:
            whole = out if self._ordered else np.empty_like(out)
            self._between("all_gather", whole, block, counts=sizes)
            if not self._ordered:
                self._to_ranks(whole, out, parts)
        self._node_broadcast(call, out, 0)

    def gather(
        self, call: Call, out: Array | None, buffer: Array, root: int, counts: Counts = None
    ) -> None:
        """Put all ranks' buffers behind each other into `root`'s `out`; None elsewhere."""
        self.agree(call)
        parts = [buffer.size] * self.size if counts is None else list(counts)
        at, sizes = edges_of(parts), self._node_sizes(parts)
        collector = root if root in self._node else self._node[0]
        mine = self.rank == collector
        block = np.empty(sizes[self._home], buffer.dtype) if mine else None
        here = [parts[rank] for rank in self._node]
        self._node_gather(call, block, buffer, self._node.index(collector), here)
        if block is not None and self.rank != root:
            send(self._all, block, root, 0)
        if out is None:
            return
        blocks = [np.empty(size, buffer.dtype) for size in sizes]
        for node, other in zip(self.nodes, blocks):
            if root in node:
                assert block is not None
                other[...] = block
            else:
                receive(self._all, other, node[0], 0)
        for rank, part in self._parts(blocks, parts):
            out[at[rank] : at[rank + 1]] = part

    def scatter(
        self, call: Call, out: Array, buffer: Array | None, root: int, counts: Counts = None
    ) -> None:
        """Put part r of `root`'s `buffer` into rank r's `out`; None elsewhere."""
        self.agree(call)
        parts = [out.size] * self.size if counts is None else list(counts)
        sizes = self._node_sizes(parts)
        divider = root if root in self._node else self._node[0]
        block: Array | None = None
        if buffer is not None:
            whole, at = self._to_nodes(buffer, parts), edges_of(sizes)
            blocks = [whole[begin:end] for begin, end in zip(at, at[1:])]
            block = blocks[self._home]
            works = [
                self._all.isend(other, node[0], 0)
                for node, other in zip(self.nodes, blocks)
                if root not in node and other.size
            ]
            for work in works:
                work.wait()
        elif self.rank == divider:
            block = np.empty(sizes[self._home], out.dtype)
            receive(self._all, block, root, 0)
        here = [parts[rank] for rank in self._node]
        self._node_scatter(call, out, block, self._node.index(divider), here)

    def all_to_all(
        self, call: Call, out: Array, buffer: Array, out_counts: Counts = None, in_counts: Counts = None
    ) -> None:
        """Part s of rank r's `buffer` becomes part r of rank s's `out`; by messages between all."""
        self._messages.all_to_all(call, out, buffer, out_counts, in_counts)

    # ---- inside this node ------------------------------------------------------------------------

    def _node_reduce(self, call: Call, buffer: Array, ufunc: Any, place: int) -> None:
        if len(self._node) > 1:
            self._engine.reduce(call, buffer, ufunc, place)

    def _node_broadcast(self, call: Call, buffer: Array, place: int) -> None:
        if len(self._node) > 1:
            self._engine.broadcast(call, buffer, place)

    def _node_gather(
        self, call: Call, out: Array | None, buffer: Array, place: int, counts: Counts = None
    ) -> None:
        if len(self._node) > 1:
            self._engine.gather(call, out, buffer, place, counts)
        elif out is not None:
            out[...] = buffer

    def _node_scatter(
        self, call: Call, out: Array, buffer: Array | None, place: int, counts: Counts = None
    ) -> None:
        if len(self._node) > 1:
            self._engine.scatter(call, out, buffer, place, counts)
        elif buffer is not None:
            out[...] = buffer

    # ---- between nodes ---------------------------------------------------------------------------

    def _between(self, name: str, *args: Any, counts: Counts = None) -> None:
        """A call over this rank's rail, by messages."""
        rail = self._rail
        assert rail is not None
        nbytes = args[1 if name == "reduce_scatter" else 0].nbytes
        way = selection.algorithm(name, nbytes, rail.size, unequal=counts is not None)
        more = {} if counts is None else {"counts": counts}
        ALGORITHMS[name][way](rail, *args, **more)

    # ---- places ----------------------------------------------------------------------------------

    def _node_of(self, rank: int) -> int:
        return next(i for i, node in enumerate(self.nodes) if rank in node)

    def _leader_of(self, rank: int) -> int:
        return self.nodes[self._node_of(rank)][0]

    def _node_sizes(self, parts: Sequence[int]) -> list[int]:
        """Elements of each node's ranks together."""
        return [sum(parts[rank] for rank in node) for node in self.nodes]

    def _parts(self, blocks: Sequence[Array], parts: Sequence[int]) -> list[tuple[int, Array]]:
        """Every rank's part of its node's block."""
        result = []
        for node, block in zip(self.nodes, blocks):
            at = edges_of([parts[rank] for rank in node])
            result += [(rank, block[at[i] : at[i + 1]]) for i, rank in enumerate(node)]
        return result

    def _to_nodes(self, buffer: Array, parts: Sequence[int]) -> Array:
        """Parts in rank order put node after node."""
        if self._ordered:
            return buffer
        at = edges_of(parts)
        return np.concatenate([buffer[at[rank] : at[rank + 1]] for rank in self._by_node])

    def _to_ranks(self, whole: Array, out: Array, parts: Sequence[int]) -> None:
        """Parts node after node put in rank order."""
        at, come = edges_of(parts), 0
        for rank in self._by_node:
            out[at[rank] : at[rank + 1]] = whole[come : come + parts[rank]]
            come += parts[rank]


class _NodeMessages(ByMessages):
    """An engine for nodes without shared memory: calls are compared by the hierarchy alone."""

    def __init__(self, transport: Transport) -> None:
        super().__init__(transport, transport.watch, lambda: False)

    def agree(self, call: Call) -> None:
        self._watch.call = call
