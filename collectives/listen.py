"""Making and accepting connections, each through the handshake of `secret`.

`Doorman` lets processes of this job in; it never blocks: a stranger who says nothing, says it slowly
or talks nonsense costs a file descriptor for a few seconds and nobody's time. `connect` is the other
side: it knocks until somebody opens.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import selectors
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from .secret import ADVICE, TIME_LIMIT, Handshake, HandshakeError
from .work import CollectiveError

Address = tuple[str, int] | str  # TCP, or the abstract name of a unix-domain socket
MOST_STRANGERS = 256  # under handshake at one time
MOST_NOTES = 20  # on stderr


class ConnectError(CollectiveError):
    """Nobody of this job answers at an address."""


def text_of(address: Any) -> str:
    """An address as messages name it."""
    if isinstance(address, tuple) and len(address) >= 2:
        host = f"[{address[0]}]" if ":" in str(address[0]) else address[0]
        return f"{host}:{address[1]}"
    if isinstance(address, (str, bytes)) and address:
        return "unix socket " + os.fsdecode(address).lstrip("\0")
    return "a local process"


def is_loopback(host: str) -> bool:
    """Whether `host` (a name or an address) means this machine and is reached by no other."""
    if host in ("localhost", "localhost.localdomain"):
        return True
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
        return all(ipaddress.ip_address(str(item).split("%")[0]).is_loopback for item in found)
    except (OSError, ValueError):
        return False


def listen(host: str, port: int, backlog: int = 512) -> socket.socket:
    """Listen at one address: that of `host`, never on all interfaces unless `host` says so ("::").

    Raises:
        ConnectError: `host` has no address of this machine, or the port is taken.
    """
    if host == "localhost":
        host = "127.0.0.1"
    try:
        if host == "::" and socket.has_dualstack_ipv6():
            return socket.create_server(
                ("::", port), family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=True
            )
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = infos[0]
        return socket.create_server(address[:2], family=family, backlog=backlog)
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "")
        raise ConnectError(
            f"cannot listen at {text_of((host, port))}: {os.strerror(error.errno or 0)} ({name}); "
            + (
                "another process uses this port: choose another MASTER_PORT"
                if error.errno == errno.EADDRINUSE
                else "the host must be an address of this machine"
            )
        ) from error


def tune(sock: socket.socket) -> None:
    """Send small messages at once, and notice within a minute when a silent peer's node is gone."""
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 4)):
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def connect(
    address: Address, secret: bytes, purpose: str, claim: bytes = b"", timeout: float = 300.0
) -> socket.socket:
    """Connect and go through the handshake; tries again while nobody listens there yet.

    Args:
        address: (host, port), or the abstract name of a unix-domain socket.
        secret: the job's.
        purpose: see `Handshake`.
        claim: see `Handshake`.
        timeout: seconds in all.

    Returns:
        The blocking connected socket.

    Raises:
        ConnectError: nobody answered in time.
        HandshakeError: who answered is not of this job. Said at once: waiting would not help.
    """
    deadline = time.monotonic() + timeout
    pause, reason = 0.002, "nobody answered"
    while True:
        left = deadline - time.monotonic()
        try:
            return _connect_once(address, secret, purpose, claim, max(min(left, TIME_LIMIT), 0.01))
        except HandshakeError as error:
            raise HandshakeError(f"{text_of(address)} {error}") from None
        except OSError as error:
            reason = error.strerror or str(error) or type(error).__name__
        if time.monotonic() + pause >= deadline:
            raise ConnectError(
                f"nobody of this job answered at {text_of(address)} within {timeout:g} s "
                f"({reason}); check that the address is right and its process is running"
            )
        time.sleep(pause)
        pause = min(pause * 1.5, 0.25)


def _connect_once(
    address: Address, secret: bytes, purpose: str, claim: bytes, limit: float
) -> socket.socket:
    if isinstance(address, str):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(limit)
        try:
            sock.connect("\0" + address)
        except BaseException:
            sock.close()
            raise
    else:
        sock = socket.create_connection(address, timeout=limit)
    try:
        if sock.family != socket.AF_UNIX and sock.getsockname() == sock.getpeername():
            raise OSError(errno.ECONNREFUSED, "connected to itself")  # TCP's simultaneous open
        deadline = time.monotonic() + limit
        shake = Handshake(secret, purpose, connecting=True, claim=claim)
        sock.sendall(shake.start())
        while shake.needs:
            data = b""
            while len(data) < shake.needs:
                sock.settimeout(max(deadline - time.monotonic(), 0.01))
                more = sock.recv(shake.needs - len(data))
                if not more:
                    raise OSError(errno.ECONNRESET, "it closed the connection during the handshake")
                data += more
            answer = shake.feed(data)
            if answer:
                sock.sendall(answer)
        sock.settimeout(None)
        tune(sock)
        return sock
    except BaseException:
        sock.close()
        raise


class _Guest:
    """A connection under handshake."""

    __slots__ = ("sock", "address", "shake", "data", "deadline")

    def __init__(self, sock: socket.socket, address: Any, shake: Handshake) -> None:
        self.sock = sock
        self.address = address
        self.shake = shake
        self.data = b""
        self.deadline = time.monotonic() + TIME_LIMIT


class Doorman:
    """Accepts connections at a listening socket and lets in who passes the handshake.

    Args:
        listener: the listening socket; the doorman closes it.
        secret: the job's.
        purpose: see `Handshake`.
        selector: of the loop that owns this doorman. Each event whose `data` is callable is to be
            called with the event mask; `tick` is to be called at least every second.
        admit: called with the non-blocking socket and the claim of each who passed.

    Attributes:
        strangers: number of connections that were turned away.
    """

    def __init__(
        self,
        listener: socket.socket,
        secret: bytes,
        purpose: str,
        selector: selectors.BaseSelector,
        admit: Callable[[socket.socket, bytes], None],
    ) -> None:
        self._listener = listener
        self._secret = secret
        self._purpose = purpose
        self._selector = selector
        self._admit = admit
        self._guests: dict[_Guest, None] = {}
        self._noted: set[str] = set()
        self.strangers = 0
        listener.setblocking(False)
        selector.register(listener, selectors.EVENT_READ, self._accept)

    def tick(self) -> None:
        """Send those away whose time for the handshake is up."""
        now = time.monotonic()
        for guest in [guest for guest in self._guests if guest.deadline < now]:
            self._dismiss(guest, f"did not complete the handshake within {TIME_LIMIT:g} s")

    @property
    def busy(self) -> bool:
        """Whether somebody is under handshake."""
        return bool(self._guests)

    def close(self) -> None:
        """Stop listening."""
        for guest in list(self._guests):
            self._forget(guest).close()
        self._selector.unregister(self._listener)
        self._listener.close()

    def _accept(self, mask: int) -> None:
        for _ in range(64):  # then let others have their turn
            try:
                sock, address = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError:  # gone again, or no file descriptor left: the next round shows
                return
            if len(self._guests) >= MOST_STRANGERS:
                self._dismiss(next(iter(self._guests)), "was the oldest of too many strangers")
            sock.setblocking(False)
            guest = _Guest(sock, address, Handshake(self._secret, self._purpose, connecting=False))
            self._guests[guest] = None
            self._selector.register(sock, selectors.EVENT_READ, lambda mask, g=guest: self._hear(g))

    def _hear(self, guest: _Guest) -> None:
        shake = guest.shake
        try:
            more = guest.sock.recv(shake.needs - len(guest.data))
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            return self._dismiss(guest, f"broke off the handshake ({error.strerror})")
        if not more:
            return self._dismiss(guest, "closed the connection during the handshake")
        guest.data += more
        if len(guest.data) < shake.needs:
            return
        try:
            answer = shake.feed(guest.data)
            # A few bytes into the empty buffer of a new connection: never blocks.
            if guest.sock.send(answer) != len(answer):
                raise OSError(errno.ENOBUFS, "buffer full")
        except HandshakeError as error:
            try:
                guest.sock.send(error.answer)
            except OSError:
                pass
            return self._dismiss(guest, str(error))
        except OSError as error:
            return self._dismiss(guest, f"broke off the handshake ({error.strerror})")
        guest.data = b""
        if not shake.needs:
            sock = self._forget(guest)
            tune(sock)
            self._admit(sock, shake.claim)

    def _dismiss(self, guest: _Guest, why: str) -> None:
        self._forget(guest).close()
        self.strangers += 1
        who = guest.address[0] if isinstance(guest.address, tuple) else "a local process"
        if who not in self._noted and len(self._noted) < MOST_NOTES:
            self._noted.add(who)
            name = text_of(self._listener.getsockname())
            advice = "" if ADVICE in why else " (no harm done; further ones from there are not noted)"
            sys.stderr.write(
                f"disttorch: turned a connection from {who} to {name} away: it {why}{advice}\n"
            )

    def _forget(self, guest: _Guest) -> socket.socket:
        del self._guests[guest]
        self._selector.unregister(guest.sock)
        return guest.sock
