"""The hub of the watch: a thread of rank 0 that every rank is connected to.

It passes questions and answers on, and tells everybody how a rank has ended, in the order in which it
learned of it. It reads and writes without ever blocking, so one stopped rank holds up nobody.
"""

from __future__ import annotations

import contextlib
import os
import queue
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from ..secret import Handshake
from .link import BadFrame, Frames, Message, greet, pack
from .report import FAILED, KILLED, LEFT, UNREACHED, Ended

GREETING = 5.0  # seconds in which a new connection must have proved what it is
COMING = 60.0  # seconds in which every rank must have connected
MOST_UNSENT = 4 << 20  # bytes kept for a rank that does not read


@dataclass(eq=False)
class _Peer:
    """A rank's connection. `unsent`: what its socket would not take yet."""

    rank: int
    socket: socket.socket
    frames: Frames = field(default_factory=Frames)
    unsent: bytearray = field(default_factory=bytearray)
    events: int = selectors.EVENT_READ


class Hub:
    """Args:
        size: number of ranks.
        listener: where ranks 1 and up connect; None if there are none.
        home: rank 0's own connection.
        secret: of the job.
        purpose: of connections to this hub; from `link.listen`.
        complain: told, as one sentence, if the hub itself breaks.
    """

    def __init__(
        self,
        size: int,
        listener: socket.socket | None,
        home: socket.socket,
        secret: bytes,
        purpose: str,
        complain: Callable[[str], None],
    ) -> None:
        self._size, self._listener, self._complain = size, listener, complain
        self._secret, self._purpose = secret, purpose
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._peers: dict[int, _Peer] = {}
        self._ended: dict[int, Ended] = {}
        self._early: dict[int, deque[Message]] = {}  # questions to ranks that have not connected yet
        self._admitted: queue.SimpleQueue[tuple[int, socket.socket]] = queue.SimpleQueue()
        self._greeting: set[socket.socket] = set()
        self._stopping = False
        self._deadline = time.monotonic() + COMING
        self._nobody_else = threading.Event()  # all other ranks have come and ended
        self._selector.register(self._woken, selectors.EVENT_READ, None)
        if listener is not None:
            listener.setblocking(False)
            self._selector.register(listener, selectors.EVENT_READ, None)
        self._join(0, home)
        self._thread = threading.Thread(target=self._run, name="disttorch watch hub", daemon=True)
        self._thread.start()

    # ---- for rank 0 ----------------------------------------------------------------------------

    def wait_for_the_others(self, seconds: float) -> bool:
        """Wait until every other rank has ended; whether they have."""
        return self._nobody_else.wait(seconds)

    def stop(self) -> None:
        """Tell all that nobody watches any more, and end the thread."""
        self._stopping = True
        with contextlib.suppress(OSError):
            self._wake.send(b"x")
        self._thread.join(2.0)
        self.drop_files()

    def drop_files(self) -> None:
        """Close this process's files; in a forked child that leaves the parent's as they are."""
        everything = [self._wake, self._woken, *list(self._greeting)]
        everything += [peer.socket for peer in list(self._peers.values())]
        if self._listener is not None:
            everything.append(self._listener)
        # The selector first: closing it touches none of the files that it shares with a parent.
        self._selector.close()
        for each in everything:
            each.close()

    # ---- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._turn()
            self._say_goodbye()
        except Exception as error:
            self._complain(f"the watch's hub broke: {type(error).__name__}: {error}")
            self._say_goodbye()

    def _turn(self) -> None:
        wait = None
        if len(self._peers) + len(self._ended) < self._size:
            wait = max(0.0, self._deadline - time.monotonic())
        events = self._selector.select(wait)
        for key, mask in events:
            peer: _Peer | None = key.data
            if peer is None:
                self._welcome(key.fileobj)
                continue
            if mask & selectors.EVENT_WRITE:
                self._flush(peer)
            if mask & selectors.EVENT_READ and self._peers.get(peer.rank) is peer:
                self._read(peer)
        if wait is not None and time.monotonic() > self._deadline:
            for rank in range(self._size):
                if rank not in self._peers and rank not in self._ended:
                    self._end(Ended(rank, UNREACHED, f"not connected after {COMING:g} s"))

    def _welcome(self, source: object) -> None:
        if source is self._woken:
            with contextlib.suppress(BlockingIOError):
                self._woken.recv(4096)
            while not self._admitted.empty():
                self._join(*self._admitted.get())
            return
        assert self._listener is not None
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            if len(self._greeting) > self._size + 16:
                connection.close()  # a crowd of strangers; a rank tries again
                return
            self._greeting.add(connection)
            threading.Thread(
                target=self._admit, args=(connection,), name="disttorch watch door", daemon=True
            ).start()

    def _admit(self, connection: socket.socket) -> None:
        """In a thread of its own: strangers may be slow, and are dropped without a word."""
        try:
            _owner_only(connection)
            claim = greet(connection, Handshake(self._secret, self._purpose, False), GREETING)
            rank = int.from_bytes(claim[:8], "big")
            if not 0 < rank < self._size:
                raise BadFrame("it is no rank")
        except Exception:
            self._greeting.discard(connection)
            connection.close()
            return
        self._admitted.put((rank, connection))
        self._greeting.discard(connection)
        with contextlib.suppress(OSError):
            self._wake.send(b"x")

    def _join(self, rank: int, connection: socket.socket) -> None:
        if rank in self._peers or rank in self._ended:
            connection.close()  # there is one of each
            return
        connection.setblocking(False)
        peer = self._peers[rank] = _Peer(rank, connection)
        self._selector.register(connection, selectors.EVENT_READ, peer)
        self._send(peer, {"kind": "welcome"})
        for end in sorted(self._ended.values(), key=lambda end: end.order):
            self._send(peer, end.as_message())
        for question in self._early.pop(rank, ()):
            self._send(peer, question)

    def _read(self, peer: _Peer) -> None:
        try:
            data = peer.socket.recv(65536)
            messages = peer.frames.feed(data)
        except BlockingIOError:
            return
        except (OSError, BadFrame):
            data, messages = b"", []
        for message in messages:
            try:
                self._hear(peer, message)
            except (KeyError, TypeError, ValueError):
                data = b""  # no rank of ours says that
        if not data:
            self._lose(peer)

    def _hear(self, peer: _Peer, message: Message) -> None:
        kind = message["kind"]
        if kind == "ended":
            self._end(Ended.from_message({**message, "rank": peer.rank}))
            self._send(peer, {"kind": "heard"})
        elif kind == "ask":
            for rank in message["ranks"]:
                self._pass_on({**message, "ranks": [], "from": peer.rank}, rank)
        elif kind == "report":
            other = self._peers.get(message["to"])
            if other is not None:
                self._send(other, {**message, "rank": peer.rank})
        elif kind == "gave up":
            for other in list(self._peers.values()):
                if other is not peer:
                    self._send(other, {**message, "rank": peer.rank})
        else:
            raise ValueError(kind)

    def _pass_on(self, question: Message, rank: int) -> None:
        other = self._peers.get(rank)
        if other is not None:
            self._send(other, question)
        elif rank not in self._ended and 0 <= rank < self._size:
            self._early.setdefault(rank, deque(maxlen=64)).append(question)  # it is about to connect
        elif question["from"] in self._peers:
            answer = {"kind": "report", "id": question["id"], "rank": rank, "report": None}
            self._send(self._peers[question["from"]], answer)

    # ---- ends ----------------------------------------------------------------------------------

    def _lose(self, peer: _Peer) -> None:
        if self._peers.get(peer.rank) is peer:
            del self._peers[peer.rank]
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(peer.socket)
            peer.socket.close()
        if peer.rank not in self._ended:
            # Who dies after a failure dies of it: launchers end a job by killing its ranks.
            first = self._first_failure()
            self._end(Ended(peer.rank, KILLED, cause=None if first is None else first.rank))
        self._count()

    def _first_failure(self) -> Ended | None:
        failures = [end for end in self._ended.values() if end.how != LEFT]
        return min(failures, key=lambda end: end.order, default=None)

    def _end(self, end: Ended) -> None:
        known = self._ended.get(end.rank)
        if known is not None and not (known.how == LEFT and end.how == FAILED):
            return  # the first thing known is what happened; only a good end may yet turn bad
        end.order = len(self._ended) if known is None else known.order
        self._ended[end.rank] = end
        for peer in list(self._peers.values()):
            if peer.rank != end.rank:
                self._send(peer, end.as_message())
        self._count()

    def _count(self) -> None:
        if all(rank in self._ended for rank in range(1, self._size)):
            self._nobody_else.set()

    # ---- writing -------------------------------------------------------------------------------

    def _send(self, peer: _Peer, message: Message) -> None:
        if len(peer.unsent) < MOST_UNSENT:  # else it has not read for a long time: it is stopped
            peer.unsent += pack(message)
            self._flush(peer)

    def _flush(self, peer: _Peer) -> None:
        try:
            while peer.unsent:
                del peer.unsent[: peer.socket.send(peer.unsent)]
        except BlockingIOError:
            pass
        except OSError:
            peer.unsent.clear()  # it is gone; reading will tell
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if peer.unsent else 0)
        if events != peer.events:
            peer.events = events
            with contextlib.suppress(KeyError, ValueError, OSError):
                self._selector.modify(peer.socket, events, peer)

    def _say_goodbye(self) -> None:
        for peer in list(self._peers.values()):
            self._send(peer, {"kind": "closing"})


def _owner_only(connection: socket.socket) -> None:
    """Refuse another user's process at the other end of a unix socket.

    Raises:
        PermissionError: it belongs to somebody else.
    """
    if connection.family == socket.AF_UNIX and hasattr(socket, "SO_PEERCRED"):
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        user = int.from_bytes(credentials[4:8], "little")
        if user not in (os.getuid(), os.geteuid()):
            raise PermissionError(f"user {user} is not ours")
