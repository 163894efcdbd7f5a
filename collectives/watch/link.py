"""Connections of the watch: framed JSON over a socket that both ends have proved to be the job's.

Messages are JSON and never pickles, so that bytes of a stranger can do no harm; frames are short, and
a link that sends anything else is dropped.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from ..secret import Handshake, HandshakeError
from ..transport import node_identity

Message = dict[str, Any]
LONGEST = 1 << 20  # bytes of one frame
_LENGTH = struct.Struct(">I")
_SIOCGIFADDR = 0x8915


class BadFrame(Exception):
    """What came is no frame of ours."""


def pack(message: Message) -> bytes:
    """`message` as one frame."""
    body = json.dumps(message, separators=(",", ":")).encode()
    if len(body) > LONGEST:
        raise BadFrame(f"a message of {len(body)} bytes is longer than {LONGEST}")
    return _LENGTH.pack(len(body)) + body


class Frames:
    """Cuts a stream of bytes into messages."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """The messages that `data` completes.

        Raises:
            BadFrame: these bytes are not ours.
        """
        self._data += data
        messages = []
        while len(self._data) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._data)
            if length > LONGEST:
                raise BadFrame(f"a frame says it has {length} bytes")
            end = _LENGTH.size + length
            if len(self._data) < end:
                break
            try:
                message = json.loads(bytes(self._data[_LENGTH.size : end]))
            except ValueError as error:
                raise BadFrame(f"a frame is no JSON: {error}") from None
            if not isinstance(message, dict) or not isinstance(message.get("kind"), str):
                raise BadFrame("a frame is no message")
            messages.append(message)
            del self._data[:end]
        return messages


class Link:
    """One rank's end of its connection to the hub. Any thread may send; one receives.

    A send waits a bounded time for a hub that does not read: a stopped rank 0 stops nobody else.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        connection.setblocking(False)
        self._frames = Frames()
        self._lock = threading.Lock()
        self.open = True

    def send(self, message: Message, seconds: float = 1.0) -> bool:
        """Whether the message could be handed over; the link is closed if only a part of it was."""
        data = memoryview(pack(message))
        deadline = time.monotonic() + seconds
        with self._lock:
            begun = False
            while self.open:
                try:
                    sent = self.socket.send(data)
                    begun, data = True, data[sent:]
                    if not data:
                        return True
                except BlockingIOError:
                    left = deadline - time.monotonic()
                    if left <= 0 or not select.select([], [self.socket], [], left)[1]:
                        self.open = self.open and not begun  # half a frame garbles all that follow
                        return False
                except (OSError, ValueError):
                    self.open = False
            return False

    def receive(self) -> list[Message] | None:
        """What has come; None at the end of the connection.

        Raises:
            BadFrame: what came is no frame.
        """
        try:
            data = self.socket.recv(65536)
        except BlockingIOError:
            return []
        except (OSError, ValueError):
            data = b""
        if not data:
            self.open = False
            return None
        return self._frames.feed(data)

    def close(self) -> None:
        self.open = False
        self.socket.close()


def node() -> dict[str, Any]:
    """This process as others must know it: whether a socket or /proc of one is that of another."""
    return {
        "node": node_identity(),
        "network": _namespace("net"),
        "processes": _namespace("pid"),
        "pid": os.getpid(),
    }


def _namespace(name: str) -> str:
    try:
        return os.readlink(f"/proc/self/ns/{name}")
    except OSError:
        return ""


def listen(together: bool, host: str | None = None) -> tuple[socket.socket, Message]:
    """A listening socket and how to reach it.

    Args:
        together: all ranks are on one node: nothing but this machine can reach the socket then.
        host: address of the interface to listen on otherwise; None for all.
    """
    purpose = f"watch {secrets.token_hex(8)}"  # a rank of another job with the same secret is a stranger
    if together and sys.platform == "linux":
        # An abstract name leaves no file behind, however the process ends.
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        name = f"disttorch-watch-{os.getpid()}-{secrets.token_hex(8)}"
        listener.bind("\0" + name)
        listener.listen(128)
        return listener, {"unix": name, "purpose": purpose}
    if together:
        host = "127.0.0.1"
    family = socket.AF_INET6 if host and ":" in host else socket.AF_INET
    listener = socket.create_server((host or "", 0), family=family, backlog=128)
    hosts = [host] if host else own_addresses()
    return listener, {"hosts": hosts, "port": listener.getsockname()[1], "purpose": purpose}


def own_addresses() -> list[str]:
    """IPv4 addresses of this machine's interfaces, loopback last."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            with contextlib.suppress(OSError):  # an interface without an address
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
                found.append(socket.inet_ntoa(answer[20:24]))
    if not found:  # not Linux
        with contextlib.suppress(OSError):
            found = [str(entry[4][0]) for entry in socket.getaddrinfo(socket.gethostname(), 0)]
    return sorted(dict.fromkeys(found or ["127.0.0.1"]), key=lambda address: address.startswith("127."))


def greet(connection: socket.socket, shake: Handshake, seconds: float = 5.0) -> bytes:
    """Go through a handshake within so many seconds; returns what the connecting side says it is.

    Raises:
        HandshakeError: the other side is not of this job.
        OSError: it left, or took too long.
    """
    deadline = time.monotonic() + seconds
    connection.settimeout(seconds)
    connection.sendall(shake.start())
    while shake.needs:
        data = b""
        while len(data) < shake.needs:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"no handshake in {seconds:g} s")
            connection.settimeout(left)
            more = connection.recv(shake.needs - len(data))
            if not more:
                raise ConnectionResetError("closed the connection during the handshake")
            data += more
        try:
            connection.sendall(shake.feed(data))
        except HandshakeError as error:
            connection.sendall(error.answer)
            raise
    return shake.claim


def connect(address: Message, secret: bytes, rank: int, seconds: float = 20.0) -> socket.socket:
    """Connect to a hub at any of its addresses.

    Args:
        address: from `listen`.
        secret: of the job.
        rank: who connects.
        seconds: to try for.

    Raises:
        ConnectionError: with what each address said.
    """
    deadline = time.monotonic() + seconds
    places = _places(address)
    pause = 0.01
    while True:
        complaints: dict[str, str] = {}
        refused = 0
        for family, place in places:
            connection = socket.socket(family, socket.SOCK_STREAM)
            connection.settimeout(min(5.0, seconds))
            try:
                connection.connect(place)
                if family != socket.AF_UNIX:
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                greet(connection, Handshake(secret, address["purpose"], True, rank.to_bytes(8, "big")))
                return connection
            except Exception as error:  # whoever answers there may be anybody
                connection.close()
                complaints[str(place).strip("\0")] = f"{type(error).__name__}: {error}"
                refused += isinstance(error, HandshakeError)
        if refused == len(places) or time.monotonic() + pause > deadline:
            said = "; ".join(f"{place}: {text}" for place, text in complaints.items())
            raise ConnectionError(f"no connection to the watch of rank 0 ({said})")
        time.sleep(pause)
        pause = min(2 * pause, 0.5)


def _places(address: Message) -> Sequence[tuple[int, Any]]:
    if "unix" in address:
        return [(socket.AF_UNIX, "\0" + address["unix"])]
    return [
        (socket.AF_INET6 if ":" in host else socket.AF_INET, (host, address["port"]))
        for host in address["hosts"]
    ]
