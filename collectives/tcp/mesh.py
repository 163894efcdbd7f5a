"""Connecting every two processes of a job, once they know each other's addresses.

The higher rank connects to the lower one: through a unix-domain socket inside a node, else TCP. A
listening socket exists only while ranks are still to come, and only members of this very job are let
in: the handshake covers the job's random name and the ranks of both sides.
"""

from __future__ import annotations

import json
import secrets
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from .. import listen
from ..work import CollectiveError, CollectiveTimeout

_CLAIM = struct.Struct("<II")  # rank of the connecting side, rank it wants to reach


def name_ranks(ranks: Sequence[int]) -> str:
    """ "rank 2", "ranks 2 and 3", "ranks 1, 2 and 5"."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    shown = [str(rank) for rank in ranks[:16]]
    if len(ranks) > 16:
        shown.append(f"{len(ranks) - 16} more")
    return f"ranks {', '.join(shown[:-1])} and {shown[-1]}"


class Entrance:
    """Where the higher ranks connect to this one; open from the start until `connect` has returned.

    Args:
        rank: of this process in the job.
        nodes: for each rank the identity of its node.
        secret: the job's.
        job: the random name of this very job.
        host: address of this node to listen at for ranks of other nodes.
    """

    def __init__(
        self, rank: int, nodes: Sequence[str], secret: bytes, job: str, host: Callable[[], str]
    ) -> None:
        self._rank = rank
        self._nodes = nodes
        self._secret = secret
        self._job = job
        self._sockets: dict[int, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        self._doormen: list[listen.Doorman] = []
        self._places: dict[str, Any] = {}
        self._above = set(range(rank + 1, len(nodes)))
        here = {other for other in self._above if nodes[other] == nodes[rank]}
        if here:
            name = f"disttorch-{secrets.token_hex(12)}"
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind("\0" + name)
            listener.listen(512)
            self._let_in_at(listener)
            self._places["unix"] = name
        if self._above - here:
            listener = listen.listen(host(), 0)
            self._let_in_at(listener)
            self._places["tcp"] = listener.getsockname()[:2]

    def _let_in_at(self, listener: socket.socket) -> None:
        purpose = f"data {self._job}"
        self._doormen.append(
            listen.Doorman(listener, self._secret, purpose, self._selector, self._admit)
        )

    @property
    def address(self) -> bytes:
        """What the other ranks need to know for `connect`."""
        return json.dumps(self._places).encode()

    def connect(self, addresses: Sequence[bytes], timeout: float) -> dict[int, socket.socket]:
        """Connect to all lower ranks and wait for all higher ones.

        Args:
            addresses: of all ranks.
            timeout: seconds.

        Returns:
            For each other rank a handshaken socket.

        Raises:
            CollectiveTimeout: a rank did not connect.
            CollectiveError: a lower rank cannot be reached.
        """
        deadline = time.monotonic() + timeout
        # In a thread of its own, so that ranks do not wait for each other in a row.
        porter = threading.Thread(
            target=self._accept, args=(deadline,), name="collectives mesh", daemon=True
        )
        porter.start()
        try:
            lower = {
                rank: self._reach(rank, json.loads(addresses[rank]), deadline - time.monotonic())
                for rank in range(self._rank)
            }
            porter.join()
        except BaseException:
            self._above.clear()  # ends the porter
            raise
        absent = sorted(self._above - set(self._sockets))
        if absent:
            raise CollectiveTimeout(
                f"{name_ranks(absent)} of {len(self._nodes)} did not connect to rank {self._rank} "
                f"within {timeout:g} s; look at their output",
                absent,
            )
        return {**lower, **self._sockets}

    def _reach(self, rank: int, places: dict[str, Any], timeout: float) -> socket.socket:
        near = self._nodes[rank] == self._nodes[self._rank]
        address = places["unix"] if near else tuple(places["tcp"])
        claim = _CLAIM.pack(self._rank, rank)
        try:
            return listen.connect(
                address, self._secret, f"data {self._job}", claim, timeout=max(timeout, 0.1)
            )
        except CollectiveError as error:
            raise type(error)(f"rank {self._rank} cannot reach rank {rank}: {error}") from None

    def _accept(self, deadline: float) -> None:
        try:
            while self._above - set(self._sockets) and time.monotonic() < deadline:
                for key, mask in self._selector.select(0.25):
                    key.data(mask)
                for doorman in self._doormen:
                    doorman.tick()
        finally:
            for doorman in self._doormen:
                doorman.close()
            self._selector.close()

    def _admit(self, sock: socket.socket, claim: bytes) -> None:
        rank, wanted = _CLAIM.unpack_from(claim)
        if wanted != self._rank or rank not in self._above or rank in self._sockets:
            sock.close()  # it knows the secret but is confused: let it complain
            return
        self._sockets[rank] = sock
