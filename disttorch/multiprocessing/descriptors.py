"""Descriptors of shared memory on their way to another process.

A pickle cannot carry a descriptor. It carries the address of a unix socket where the sender's thread
hands the descriptor out, once. Processes that are just being spawned inherit theirs instead.

A child that ends while some of its tensors have not been fetched, as in ``q.put(t)`` at the end of its
function, leaves a process behind that does nothing but hand them out; it goes with the last of them,
and with the child's parent.
"""

from __future__ import annotations

import multiprocessing
import os
import secrets
import select
import signal
import socket
import struct
import sys
import tempfile
import threading
import warnings
from multiprocessing import context

_KEY = 16  # bytes; who does not know it gets nothing
_ATTEMPTS = 5
_CLOEXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


class Inherited:
    """A descriptor that the new process has by its number."""

    def __init__(self, fd: int):
        self.fd = fd

    def receive(self) -> int:
        return self.fd


class Served:
    """A descriptor waiting in the sender."""

    def __init__(self, address: str, key: bytes):
        self.address, self.key = address, key

    def receive(self) -> int:
        """The descriptor, now this process's.

        Raises:
            ConnectionError: if the sender has ended, or it was fetched before.
        """
        for _ in range(_ATTEMPTS):
            with socket.socket(socket.AF_UNIX) as link:
                try:
                    link.connect(_bound(self.address))
                    link.sendall(self.key)
                    answer, fds, _, _ = socket.recv_fds(link, 1, 1, _CLOEXEC)
                except (ConnectionRefusedError, FileNotFoundError):
                    break
                except ConnectionError:
                    continue  # the sender ended in the middle: its successor answers
                if fds:
                    return fds[0]
                if answer:
                    raise ConnectionError(
                        "a tensor sent by another process has been received already: a message is "
                        "unpickled once; send the tensor again"
                    )
        raise ConnectionError(
            "the process that sent a tensor ended before it was received (killed, or the main "
            "process, whose exit ends the job): keep it alive until the receiver has it"
        )


def _bound(address: str) -> str:
    return "\0" + address[1:] if address.startswith("@") else address


def send(fd: int) -> Inherited | Served:
    """What a pickle that is being written carries for ``fd``; the caller keeps and closes ``fd``."""
    child = context.get_spawning_popen()
    # A forkserver takes at most 256 descriptors for a child, so those are served
    if child is not None and child.method == "spawn":
        return Inherited(child.duplicate_for_child(fd))
    return _server.offer(fd)


class _Server:
    """Hands out this process's descriptors; its thread starts with the first of them."""

    def __init__(self):
        self.lock = threading.Lock()
        self.waiting: dict[bytes, int] = {}
        self.listener: socket.socket | None = None
        self.handing_over = False

    def offer(self, fd: int) -> Served:
        with self.lock:
            if self.listener is None:
                self._start()
            key = secrets.token_bytes(_KEY)
            self.waiting[key] = os.dup(fd)
            return Served(self.address, key)

    def _start(self) -> None:
        name = f"disttorch-{os.getpid()}-{secrets.token_hex(8)}"
        # Linux's abstract sockets have no file that somebody must remove
        self.address = "@" + name if sys.platform == "linux" else \
            os.path.join(tempfile.mkdtemp(prefix="disttorch-"), "socket")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(_bound(self.address))
        listener.listen(128)
        self.wakeup, self.stopper = os.pipe()
        self.thread = threading.Thread(target=self._serve, name="disttorch-descriptors",
                                       args=(listener, self.wakeup), daemon=True)
        self.thread.start()
        self.listener = listener

    def _serve(self, listener: socket.socket, stop: int) -> None:
        """Answer until ``stop`` is readable."""
        while True:
            if stop in _ready(listener.fileno(), stop):
                return
            link, _ = listener.accept()
            with link:
                self._answer(link)

    def _answer(self, link: socket.socket) -> None:
        link.settimeout(10.0)  # a stranger that says nothing must not keep the others waiting
        try:
            if _same_user(link):
                fd = self._take(link.recv(_KEY, socket.MSG_WAITALL))
                if fd is None:
                    link.sendall(b"-")
                    return
                try:
                    socket.send_fds(link, [b"+"], [fd])
                finally:
                    os.close(fd)
        except OSError:
            pass  # the receiver ended

    def _take(self, key: bytes) -> int | None:
        with self.lock:
            return self.waiting.pop(key, None)

    def hand_over(self) -> None:
        """At the end of a child: leave a successor for what has not been fetched yet."""
        parent = multiprocessing.parent_process()
        if self.listener is None or parent is None or parent.pid is None:
            return  # the main process ended its children before
        os.write(self.stopper, b".")
        self.thread.join()
        if not self.waiting:
            return
        self.handing_over = True
        with warnings.catch_warnings():
            # that other threads hold locks is no danger: the successor only uses its sockets
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            try:
                self._succeed(parent.pid)
            finally:
                os._exit(0)

    def _succeed(self, parent: int) -> None:
        assert self.listener is not None
        self.lock = threading.Lock()  # another thread may have held it
        os.setsid()  # Ctrl-C is not for it
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, signal.SIG_DFL)
        kept = sorted({self.listener.fileno(), *self.waiting.values()})
        for below, fd in zip([-1, *kept], [*kept, os.sysconf("SC_OPEN_MAX")]):
            os.closerange(below + 1, fd)  # others wait for the ends of pipes that the child held
        while self.waiting and _is_running(parent):
            if _ready(self.listener.fileno(), seconds=1.0):
                link, _ = self.listener.accept()
                with link:
                    self._answer(link)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _ready(*fds: int, seconds: float | None = None) -> list[int]:
    """Wait for some of the descriptors; those that can be read, none if the time is up."""
    poll = select.poll()  # select() stops at descriptor 1023
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return [fd for fd, _ in poll.poll(None if seconds is None else seconds * 1000)]


def _same_user(link: socket.socket) -> bool:
    if not hasattr(socket, "SO_PEERCRED"):
        return True  # a socket with a path, in a folder that is ours alone
    size = struct.calcsize("3i")
    _, uid, _ = struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return uid == os.getuid()


_server = _Server()


def hand_over() -> None:
    """At the end of a process: see to it that descriptors on their way can still be fetched."""
    _server.hand_over()


def _forget() -> None:
    """In a forked child: the thread is its parent's, and so is what waits there."""
    global _server
    old, _server = _server, _Server()
    if old.listener is not None and not old.handing_over:
        old.listener.close()
        for fd in (*old.waiting.values(), old.wakeup, old.stopper):
            os.close(fd)


os.register_at_fork(after_in_child=_forget)

__all__ = ["Inherited", "Served", "hand_over", "send"]
