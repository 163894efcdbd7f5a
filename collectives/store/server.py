"""The server of a TCPStore: one thread that serves everybody and waits for nobody."""

from __future__ import annotations

import selectors
import socket
import struct
import threading
import time
from collections import defaultdict
from typing import Any

from ..listen import Doorman
from ..wire import WireError, pack, take
from .table import WRITES, Op, QueueEmpty, Table

PURPOSE = "store"
REQUEST = struct.Struct("<dI")  # seconds to wait (0: no limit), number of keys to wait for
OK, BAD_VALUE, QUEUE_EMPTY, TIMED_OUT = range(4)
INIT_KEY = b"\x00init"  # counts the clients of a store made with a world_size


class _Client:
    """One connection: what has come and not been read, what was answered and not been sent."""

    __slots__ = ("sock", "incoming", "outgoing", "waiting", "writing", "gone")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.incoming = bytearray()
        self.outgoing = bytearray()
        self.waiting: _Waiter | None = None
        self.writing = False
        self.gone = False


class _Waiter:
    """A request whose keys are not all there."""

    __slots__ = ("client", "keys", "op", "args", "deadline")

    def __init__(
        self, client: _Client, keys: list[bytes], op: int, args: list[bytes], deadline: float
    ) -> None:
        self.client = client
        self.keys = keys
        self.op = op
        self.args = args
        self.deadline = deadline


class StoreServer:
    """Serves one table at a listening socket, in a daemon thread, until `close`.

    Args:
        listener: the listening socket, which the server takes over.
        secret: the job's; who does not know it is turned away.
    """

    def __init__(self, listener: socket.socket, secret: bytes) -> None:
        self.port: int = listener.getsockname()[1]
        self._table = Table()
        self._waiters: defaultdict[bytes, list[_Waiter]] = defaultdict(list)  # by a key they lack
        self._deadline = float("inf")  # of the waiter whose time is up first
        self._selector = selectors.DefaultSelector()
        self._doorman = Doorman(listener, secret, PURPOSE, self._selector, self._admit)
        self._wake, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ, None)
        self._thread = threading.Thread(target=self._loop, name="collectives store", daemon=True)
        self._thread.start()

    @property
    def strangers(self) -> int:
        """Number of connections that were turned away."""
        return self._doorman.strangers

    def close(self) -> None:
        """Stop serving; clients that wait see their connection closed."""
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._wake.send(b"x")
            self._thread.join()

    def _loop(self) -> None:
        try:
            while True:
                left = min(self._deadline - time.monotonic(), 1.0)
                events = self._selector.select(max(left, 0.0))
                for key, mask in events:
                    if key.data is None:
                        return
                    key.data(mask)
                self._doorman.tick()
                if time.monotonic() >= self._deadline:
                    self._expire()
        finally:
            self._doorman.close()
            for key in list(self._selector.get_map().values()):
                key.fileobj.close()  # type: ignore[union-attr]
            self._wake.close()
            self._selector.close()

    def _admit(self, sock: socket.socket, claim: bytes) -> None:
        client = _Client(sock)
        self._selector.register(sock, selectors.EVENT_READ, lambda mask: self._serve(client, mask))

    def _serve(self, client: _Client, mask: int) -> None:
        try:
            if mask & selectors.EVENT_WRITE:
                self._flush(client)
            if mask & selectors.EVENT_READ:
                data = client.sock.recv(1 << 18)
                if not data:
                    return self._drop(client)
                client.incoming += data
                self._answer(client)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._drop(client)

    def _answer(self, client: _Client) -> None:
        try:
            # One request at a time: a client sends the next one after it has the answer.
            while client.waiting is None and (record := take(client.incoming)) is not None:
                self._begin(client, *record)
        except WireError:
            self._drop(client)  # it knows the secret, so it is not a stranger but broken

    def _begin(self, client: _Client, op: int, fields: list[bytes]) -> None:
        if not fields or len(fields[0]) != REQUEST.size:
            raise WireError("a request without its head")
        timeout, count = REQUEST.unpack(fields[0])
        keys, args = fields[1 : 1 + count], fields[1 + count :]
        missing = self._table.missing(keys)
        if missing:
            deadline = time.monotonic() + timeout if timeout else float("inf")
            waiter = client.waiting = _Waiter(client, keys, op, args, deadline)
            self._waiters[missing[0]].append(waiter)
            self._deadline = min(self._deadline, deadline)
        else:
            self._run(client, op, args)

    def _run(self, client: _Client, op: int, args: list[bytes]) -> None:
        try:
            reply = pack(OK, self._table.run(op, args))
        except QueueEmpty as error:
            reply = pack(QUEUE_EMPTY, [str(error).encode()])
        except ValueError as error:
            reply = pack(BAD_VALUE, [str(error).encode()])
        self._send(client, reply)
        if op in WRITES:
            for key in args[::2] if op == Op.SET else args[:1]:
                self._release(key)

    def _release(self, key: bytes) -> None:
        """Look again at those who lacked `key`."""
        for waiter in self._waiters.pop(key, ()):
            missing = self._table.missing(waiter.keys)
            if missing:
                self._waiters[missing[0]].append(waiter)
                continue
            waiter.client.waiting = None
            self._run(waiter.client, waiter.op, waiter.args)
            self._answer(waiter.client)

    def _expire(self) -> None:
        now, first = time.monotonic(), float("inf")
        for key, waiters in list(self._waiters.items()):
            late = [waiter for waiter in waiters if waiter.deadline <= now]
            left = [waiter for waiter in waiters if waiter.deadline > now]
            self._keep(key, left)
            first = min([first, *(waiter.deadline for waiter in left)])
            for waiter in late:
                waiter.client.waiting = None
                self._send(waiter.client, pack(TIMED_OUT, self._table.missing(waiter.keys)))
        self._deadline = first

    def _keep(self, key: bytes, waiters: list[_Waiter]) -> None:
        if waiters:
            self._waiters[key] = waiters
        else:
            self._waiters.pop(key, None)

    def _send(self, client: _Client, data: bytes) -> None:
        client.outgoing += data
        self._flush(client)

    def _flush(self, client: _Client) -> None:
        try:
            while client.outgoing:
                del client.outgoing[: client.sock.send(client.outgoing)]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            client.outgoing.clear()  # reading from it will show that it has gone
        writing = bool(client.outgoing)
        if not client.gone and writing != client.writing:
            client.writing = writing
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if writing else 0)
            key: Any = self._selector.get_key(client.sock)
            self._selector.modify(client.sock, events, key.data)

    def _drop(self, client: _Client) -> None:
        if client.gone:
            return
        client.gone = True
        waiter = client.waiting
        if waiter is not None:
            for key, waiters in list(self._waiters.items()):
                if waiter in waiters:
                    self._keep(key, [other for other in waiters if other is not waiter])
        self._selector.unregister(client.sock)
        client.sock.close()
