"""TCPStore: the store that one process hosts and all processes reach."""

from __future__ import annotations

import os
import socket
import threading
import time
import weakref
from collections.abc import Sequence
from datetime import timedelta

from .. import listen
from ..secret import job_secret
from ..wire import length_of, pack, unpack
from .base import DEFAULT_TIMEOUT, Store
from .server import BAD_VALUE, INIT_KEY, OK, PURPOSE, QUEUE_EMPTY, REQUEST, TIMED_OUT, StoreServer
from .table import Op, QueueEmpty, StoreConnectionError, StoreError, StoreTimeout, timed_out

GRACE = 30.0  # seconds that a server may take to answer, beyond what it was asked to wait

# Stores of one process made with multi_tenant share the server of a port.
_tenants: weakref.WeakValueDictionary[int, StoreServer] = weakref.WeakValueDictionary()


class _Connections:
    """Connections to one server: as many as threads of this process use it at the same time."""

    def __init__(self, host: str, port: int, secret: bytes) -> None:
        self.host, self.port = host, port
        self._secret = secret
        self._idle: list[socket.socket] = []
        self._process = os.getpid()
        self._lock = threading.Lock()

    @property
    def where(self) -> str:
        return f"the store at {listen.text_of((self.host, self.port))}"

    def open(self, timeout: float) -> socket.socket:
        try:
            return listen.connect((self.host, self.port), self._secret, PURPOSE, timeout=timeout)
        except listen.ConnectError as error:
            raise StoreConnectionError(f"cannot reach {self.where}: {error}") from None

    def ask(self, request: bytes, timeout: float) -> tuple[int, list[bytes]]:
        """Send one request and return its answer.

        Raises:
            StoreConnectionError: the server has gone, or does not answer.
        """
        sock = self._take()
        try:
            sock.settimeout(timeout + GRACE if timeout else None)
            sock.sendall(request)
            answer = _read_record(sock)
        except OSError as error:
            sock.close()
            what = (
                f"did not answer within {timeout + GRACE:g} s"
                if isinstance(error, TimeoutError)
                else f"is gone ({error.strerror or error}): the process that hosts it has ended"
            )
            raise StoreConnectionError(f"{self.where} {what}") from None
        except BaseException:  # an interrupt in the middle: the answer would come to the next one
            sock.close()
            raise
        self.put_back(sock)
        return answer

    def _take(self) -> socket.socket:
        with self._lock:
            if os.getpid() != self._process:  # forked: these connections are the parent's
                for sock in self._idle:
                    sock.close()
                self._idle, self._process = [], os.getpid()
            if self._idle:
                return self._idle.pop()
        return self.open(GRACE)

    def put_back(self, sock: socket.socket) -> None:
        with self._lock:
            self._idle.append(sock)

    def close(self) -> None:
        with self._lock:
            for sock in self._idle:
                sock.close()
            self._idle = []


def _read_record(sock: socket.socket) -> tuple[int, list[bytes]]:
    data = bytearray()
    while not (length := length_of(data)) or len(data) < length:
        more = sock.recv(max(length - len(data), 1 << 16))
        if not more:
            raise ConnectionResetError("connection closed")
        data += more
    return unpack(data)


class TCPStore(Store):
    """A store over TCP: one process hosts it, the others connect. Only processes of this job get in.

    Args:
        host_name: where the host is. The server listens at this address only.
        port: 0 lets the system choose one, see `port`.
        world_size: number of processes that will use the store; None if not known.
        is_master: whether this process hosts the store.
        timeout: for the connection, and for `get`, `wait` and the like.
        wait_for_workers: whether the host's constructor waits until `world_size` processes have come.
        multi_tenant: whether the host may share the server with other stores of its process made
            with the same port and this argument.
        master_listen_fd: file descriptor of a listening socket, which the host then takes over.
        use_libuv: accepted for compatibility; there is one server.

    Attributes:
        host, port: where the server is.
        world_size: as given.

    Raises:
        StoreConnectionError: nobody hosts a store there, or this process cannot.
        HandshakeError: the host's secret is another one.
        StoreTimeout: not all processes came.
    """

    def __init__(
        self,
        host_name: str,
        port: int,
        world_size: int | None = None,
        is_master: bool = False,
        timeout: timedelta = DEFAULT_TIMEOUT,
        wait_for_workers: bool = True,
        multi_tenant: bool = False,
        master_listen_fd: int | None = None,
        use_libuv: bool = True,
        *,
        _listen_host: str | None = None,
    ) -> None:
        super().__init__(timeout)
        secret = job_secret()
        self._keeper: TCPStore | None = None
        self.world_size = world_size
        self.libuvBackend = use_libuv
        self._server: StoreServer | None = None
        if is_master:
            listen_host = _listen_host or host_name
            self._server = _serve(listen_host, port, secret, multi_tenant, master_listen_fd)
            port = self._server.port
        self._connections = _Connections(host_name, port, secret)
        self._connections.put_back(self._connections.open(self._seconds() or float("inf")))
        self._finalizer = weakref.finalize(self, _leave, self._connections, self._server, multi_tenant)
        if world_size is not None and world_size > 0:
            self._run(Op.ADD, [INIT_KEY, b"1"])
            if is_master and wait_for_workers:
                self._wait_for_workers(world_size)

    @property
    def host(self) -> str:
        return self._connections.host

    @property
    def port(self) -> int:
        return self._connections.port

    @property
    def strangers(self) -> int:
        """Connections that the server in this process has turned away."""
        return 0 if self._server is None else self._server.strangers

    def close(self) -> None:
        """Leave the store; on the host, end it."""
        self._finalizer()

    def clone(self) -> TCPStore:
        other = object.__new__(TCPStore)
        other.__dict__.update(self.__dict__)
        other._keeper = self  # the connections, and the server, stay as long as any is used
        return other

    def __repr__(self) -> str:
        role = "host" if self._server is not None else "client"
        return f"TCPStore({self.host!r}, {self.port}, world_size={self.world_size}, {role})"

    def _wait_for_workers(self, world_size: int) -> None:
        deadline = time.monotonic() + (self._seconds() or float("inf"))
        while (come := int(self._run(Op.ADD, [INIT_KEY, b"0"])[0])) < world_size:
            if time.monotonic() > deadline:
                raise StoreTimeout(
                    f"Timed out after {self._seconds():g} seconds waiting for clients. "
                    f"{come}/{world_size} clients joined {self._connections.where}."
                )
            time.sleep(0.005)

    def _run(
        self, op: Op, args: Sequence[bytes], keys: Sequence[bytes] = (), timeout: float = 0.0
    ) -> list[bytes]:
        fields = [REQUEST.pack(timeout, len(keys)), *keys, *args]
        # Without keys the server answers at once, so that no answer means that something is wrong.
        limit = timeout if keys else min(self._seconds() or GRACE, GRACE)
        kind, answer = self._connections.ask(pack(op, fields), limit)
        if kind == OK:
            return answer
        if kind == TIMED_OUT:
            raise timed_out(self._connections.where, answer, timeout)
        if kind == QUEUE_EMPTY:
            raise QueueEmpty(answer[0].decode())
        if kind == BAD_VALUE:
            raise ValueError(answer[0].decode())
        raise StoreError(f"{self._connections.where} gave an answer of unknown kind {kind}")


def _serve(
    host: str, port: int, secret: bytes, multi_tenant: bool, fd: int | None
) -> StoreServer:
    if multi_tenant and (server := _tenants.get(port)) is not None:
        return server
    try:
        listener = socket.socket(fileno=fd) if fd is not None else listen.listen(host, port)
    except (listen.ConnectError, OSError) as error:
        raise StoreConnectionError(f"cannot host a store: {error}") from None
    server = StoreServer(listener, secret)
    if multi_tenant:
        _tenants[server.port] = server
    return server


def _leave(connections: _Connections, server: StoreServer | None, shared: bool) -> None:
    connections.close()
    if server is not None and not shared:
        server.close()
