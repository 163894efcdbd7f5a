"""What the loader and its workers talk over: a socket for messages, shared memory for arrays.

Messages are pickles; arrays of some size in them travel as descriptors of shared blocks, so their
bytes are written once, by the worker, and mapped by the loader.
"""

from __future__ import annotations

import os
import pickle
import socket

from ...backend import shared_memory

SHARED_FROM = 1 << 14  # bytes; a smaller array is cheaper in the message itself
_FDS_AT_ONCE = 64
_CLOEXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)

blocks = shared_memory.Blocks()


class Channel:
    """One end of a two-way connection (of ``multiprocessing.Pipe``) that carries arrays."""

    def __init__(self, connection):
        self.connection = connection
        self._socket = socket.socket(fileno=os.dup(connection.fileno()))

    def send(self, message) -> None:
        """Send any picklable object.

        Raises:
            OSError: if the other end is gone.
        """
        large: list = []

        def keep_out(buffer) -> bool:
            raw = buffer.raw()
            if raw.nbytes < SHARED_FROM:
                return True  # stays in the pickle
            large.append(raw)
            return False

        text = pickle.dumps(message, protocol=5, buffer_callback=keep_out)
        fds: list[int] = []
        try:
            for raw in large:
                fds.append(blocks.take(raw))
            self.connection.send_bytes(pickle.dumps((text, [raw.nbytes for raw in large])))
            for i in range(0, len(fds), _FDS_AT_ONCE):
                socket.send_fds(self._socket, [b"."], fds[i : i + _FDS_AT_ONCE])
        finally:
            for fd in fds:
                os.close(fd)

    def receive(self):
        """Wait for the next object.

        Raises:
            EOFError, OSError: if the other end is gone.
        """
        text, sizes = pickle.loads(self.connection.recv_bytes())
        fds: list[int] = []
        while len(fds) < len(sizes):
            wanted = min(_FDS_AT_ONCE, len(sizes) - len(fds))
            data, got, _, _ = socket.recv_fds(self._socket, 1, wanted, _CLOEXEC)
            if len(data) == 0 or len(got) != wanted:
                for fd in (*fds, *got):
                    os.close(fd)
                raise EOFError("the worker ended in the middle of a batch")
            fds += got
        buffers = [shared_memory.attach(fd, n) for fd, n in zip(fds, sizes)]
        return pickle.loads(text, buffers=buffers)

    def close(self) -> None:
        """Close this end."""
        self._socket.close()
        self.connection.close()


__all__ = ["SHARED_FROM", "Channel", "blocks"]
