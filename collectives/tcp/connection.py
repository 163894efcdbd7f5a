"""One connection to one other rank: frames in and out of a socket that never blocks."""

from __future__ import annotations

import os
import socket
import threading
import weakref
from collections import deque
from typing import Any, Protocol

from ..wire import FRAME, WireError

_STAGE = 1 << 16  # small messages come several at once; of a large one at most this much is copied
_TURN = 1 << 22  # bytes to take from one peer before the others have their turn
SOCKET_BUFFER = 1 << 19  # bytes that a unix-domain socket holds: they stay in the cores' cache

_open: weakref.WeakSet[Connection] = weakref.WeakSet()


class Receiver(Protocol):
    """Who is told what happens. What a message is, is the receiver's affair."""

    def begin(
        self, peer: int, context: int, tag: int, dtype: int, count: int
    ) -> tuple[Any, memoryview]:
        """A message begins; returns the message and where its bytes go."""

    def arrived(self, message: Any) -> None:
        """The bytes of a message that has begun are complete."""

    def broken_off(self, message: Any, connection: Connection) -> None:
        """The rest of a message that has begun will never come."""

    def sent(self, item: Any) -> None:
        """A message has gone out. An outgoing one has `parts`: its bytes that have not gone yet."""

    def unsendable(self, item: Any, connection: Connection) -> None:
        """A message will never go out completely."""

    def want_to_write(self, connection: Connection, wanted: bool) -> None:
        """Whether `flush` is to be called when there is room to write."""

    def lost(self, connection: Connection) -> None:
        """The other side has gone, and everything that it sent has been read."""


class Connection:
    """A handshaken socket to the process of one rank.

    Reading (`read`) is for one thread at a time, which the owner sees to; `send` and `flush` may be
    called by any.

    Args:
        sock: handshaken; becomes non-blocking and belongs to the connection.
        peer: the job's rank at the other end.
        receiver: who is told.

    Attributes:
        gone: why nothing more can be sent; "" while it can.
        ended: whether everything that the peer sent has been read.
    """

    def __init__(self, sock: socket.socket, peer: int, receiver: Receiver) -> None:
        self.sock = sock
        self.peer = peer
        self.gone = ""
        self.ended = False
        self._receiver = receiver
        self._stage = memoryview(bytearray(_STAGE))
        self._kept = 0  # bytes at the start of the stage: a header of which the rest has not come
        self._message: Any = None
        self._target: memoryview | None = None  # where the rest of the message's bytes goes
        self._queue: deque[Any] = deque()
        self._send_lock = threading.Lock()
        self._waits_to_write = False
        sock.setblocking(False)
        if sock.family == socket.AF_UNIX:  # TCP's the kernel fits to the network
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER)
        _open.add(self)

    @property
    def unsent(self) -> int:
        """Number of messages that have not gone out completely."""
        return len(self._queue)

    def send(self, item: Any) -> None:
        """Send as much as there is room for now; the rest goes by `flush`."""
        with self._send_lock:
            self._queue.append(item)
            self._flush()

    def flush(self) -> None:
        """Send on, as much as there is room for."""
        with self._send_lock:
            self._flush()

    def _flush(self) -> None:
        queue, parts = self._queue, []
        try:
            while queue and not self.gone:
                parts = queue[0].parts
                _advance(parts, self.sock.sendmsg(parts))
                if not parts:
                    self._receiver.sent(queue.popleft())
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            self.gone = _reason(error)  # what it sent before may still be read
        while queue and self.gone:
            self._receiver.unsendable(queue.popleft(), self)
        if bool(queue) != self._waits_to_write:
            self._waits_to_write = bool(queue)
            self._receiver.want_to_write(self, self._waits_to_write)

    def read(self) -> None:
        """Take what has come, and tell the receiver of messages and of the end."""
        taken = 0
        try:
            while taken < _TURN:
                target = self._target
                if target is not None and len(target) > _STAGE // 2:
                    wanted = len(target)
                    size = self.sock.recv_into(target)
                    self._fill(size)
                else:
                    wanted = _STAGE - self._kept
                    size = self.sock.recv_into(self._stage[self._kept :])
                    self._unpack(self._kept + size)
                if not size:
                    return self._end("its connection closed")
                if size < wanted:
                    return  # that was all; if more comes, the socket is readable again
                taken += size
        except (BlockingIOError, InterruptedError):
            return
        except WireError as error:
            self._end(f"it sent what no rank sends ({error})")
        except OSError as error:
            self._end(_reason(error))

    def _fill(self, size: int) -> None:
        """`size` bytes of the message have arrived."""
        assert self._target is not None
        if size < len(self._target):
            self._target = self._target[size:]
            return
        message, self._message, self._target = self._message, None, None
        self._receiver.arrived(message)

    def _unpack(self, end: int) -> None:
        """Use up the first `end` bytes of the stage."""
        stage, at = self._stage, 0
        while at < end:
            if self._target is not None:
                size = min(len(self._target), end - at)
                self._target[:size] = stage[at : at + size]
                at += size
                self._fill(size)
                continue
            if end - at < FRAME.size:
                break
            context, tag, dtype, count = FRAME.unpack_from(stage, at)
            at += FRAME.size
            self._message, self._target = self._receiver.begin(self.peer, context, tag, dtype, count)
            if not len(self._target):
                self._fill(0)
        self._kept = end - at
        if at and self._kept:
            stage[: self._kept] = bytes(stage[at:end])

    def _end(self, reason: str) -> None:
        self.gone = self.gone or reason
        self.ended = True
        self._receiver.lost(self)  # takes it out of the loop
        if self._message is not None:
            message, self._message, self._target = self._message, None, None
            self._receiver.broken_off(message, self)
        self.flush()  # which now says that nothing goes out

    def close(self) -> None:
        """Say that nothing more comes, and leave."""
        self.gone = self.gone or "this rank has closed the connection"
        try:
            self.sock.shutdown(socket.SHUT_WR)
            while self.sock.recv_into(self._stage):
                pass  # unread data would make the kernel take back what we sent last
        except OSError:
            pass
        self.sock.close()


def _advance(parts: list[memoryview], sent: int) -> None:
    while parts and sent >= len(parts[0]):
        sent -= len(parts.pop(0))
    if sent:
        parts[0] = parts[0][sent:]


def _reason(error: OSError) -> str:
    return f"its connection broke ({os.strerror(error.errno) if error.errno else error})"


def _close_in_child() -> None:
    """A forked child is no rank: its copies would hide from the peers that its parent has ended."""
    for connection in list(_open):
        connection.sock.close()


os.register_at_fork(after_in_child=_close_in_child)
