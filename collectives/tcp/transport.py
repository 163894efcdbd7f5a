"""Messages between processes that no MPI started: a transport over sockets.

Every two ranks are connected since the start (`rendezvous.connect` makes the connections), through a
unix-domain socket inside a node and TCP between nodes. So the death of any rank is seen at once, and
nothing needs to listen while the job runs. Moving the messages on is `progress`'s affair.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Sequence

import numpy as np

from ..store import Store
from ..transport import NoWatch, Transport, Watch
from ..work import Work
from .operations import CODES, Receive, Send
from .progress import Engine


class TCPTransport(Transport):
    """The ranks of a job, or of a part of it, connected by sockets.

    Made by `rendezvous.connect`, and by `sub`.

    Attributes:
        store: where the ranks met; None for a transport that was made otherwise.
    """

    backend = "tcp"

    def __init__(
        self,
        engine: Engine,
        members: Sequence[int],
        nodes: Sequence[str],
        context: int,
        watch: Watch,
    ) -> None:
        self._engine = engine
        self._context = context
        self._nodes = list(nodes)
        self.members = tuple(members)
        self.rank = self.members.index(engine.rank)
        self.size = len(self.members)
        self.watch = watch
        self.store: Store | None = None
        self._others = tuple(member for member in self.members if member != engine.rank)

    @classmethod
    def over(cls, rank: int, sockets: dict[int, socket.socket], nodes: Sequence[str]) -> TCPTransport:
        """The transport of a whole job.

        Args:
            rank: of this process.
            sockets: for each other rank a connected, handshaken socket.
            nodes: for each rank the identity of its node.
        """
        engine = Engine(rank, len(nodes), sockets)
        return cls(engine, range(len(nodes)), nodes, 0, NoWatch())

    def isend(self, buffer: np.ndarray, dst: int, tag: int) -> Work:
        self._check(buffer, dst, tag)
        peer = self.members[dst]
        item = Send("send", self._engine, self, (peer,))
        self._engine.send(item, self._context, tag, CODES[buffer.dtype], buffer, peer)
        return item

    def irecv(self, buffer: np.ndarray, src: int | None, tag: int) -> Work:
        self._check(buffer, src, tag)
        peer = None if src is None else self.members[src]
        peers = self._others if peer is None else (peer,)
        item = Receive(self._engine, self, buffer, peer, tag, peers)
        self._engine.receive(item, self._context)
        return item

    def sub(self, ranks: Sequence[int], name: str) -> TCPTransport:
        members = tuple(self.members[rank] for rank in ranks)
        if self._engine.rank not in members:
            raise ValueError(
                f"rank {self.rank} is not one of the ranks {list(ranks)} of the sub-transport {name!r}"
            )
        # All members have made the same ones before, so they count alike without asking each other.
        made = self._engine.parts[self._context, members, name]
        self._engine.parts[self._context, members, name] += 1
        text = repr((self._context, members, name, made)).encode()
        context = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
        nodes = [self._nodes[rank] for rank in ranks]
        part = TCPTransport(self._engine, members, nodes, context, self.watch)
        part.store = self.store
        return part

    def node_of(self) -> list[str]:
        return list(self._nodes)

    def close(self) -> None:
        """Send what is under way, then leave: other ranks see the connections closed.

        Only the transport of the whole job has something to close.
        """
        if self._context == 0:
            self._engine.close()

    def _check(self, buffer: np.ndarray, rank: int | None, tag: int) -> None:
        if buffer.ndim != 1 or not buffer.flags.c_contiguous or buffer.dtype not in CODES:
            raise ValueError(
                f"a transport moves flat contiguous buffers of numbers, got {buffer.dtype} "
                f"of shape {buffer.shape}"
            )
        if rank is not None and not 0 <= rank < self.size:
            raise ValueError(f"rank {rank} is not one of the {self.size} ranks of this transport")
        if not 0 <= tag <= self.largest_tag:
            raise ValueError(f"tag {tag} is not between 0 and {self.largest_tag}")


def gather_bytes(transport: Transport, data: bytes) -> list[bytes]:
    """What every rank brings, on every rank: for setting things up before there are collectives.

    Uses a sub-transport of its own, so all ranks must call it in the same order.
    """
    own = transport.sub(range(transport.size), "gather_bytes")
    mine = np.frombuffer(data, np.uint8)
    sizes = np.zeros(own.size, np.int64)
    sizes[own.rank] = mine.size
    others = [rank for rank in range(own.size) if rank != own.rank]
    works = [own.isend(sizes[own.rank : own.rank + 1].copy(), rank, 0) for rank in others]
    works += [own.isend(mine, rank, 1) for rank in others]
    for work in [own.irecv(sizes[rank : rank + 1], rank, 0) for rank in others]:
        work.wait()
    parts = [np.empty(int(size), np.uint8) for size in sizes]
    parts[own.rank] = mine
    works += [own.irecv(parts[rank], rank, 1) for rank in others]
    for work in works:
        work.wait()
    return [part.tobytes() for part in parts]
