"""``cupy.cuda.nccl`` for one rank: every collective of one is a copy, in its stream and in order.

Communicators of more ranks are refused; ``fake_nccl`` has those, made of threads.
"""

from __future__ import annotations

import ctypes
import threading
from collections import deque

from . import memory, order

available = True
_BYTES = {0: 1, 1: 1, 2: 4, 3: 4, 4: 8, 5: 8, 6: 2, 7: 4, 8: 8, 9: 2}  # by NCCL's numbers of its types
_local = threading.local()  # .depth of groupStart, .sent: what waits for its recv


class NcclError(RuntimeError):
    """As CuPy's: a status other than 0."""

    def __init__(self, status: int, text: str = ""):
        super().__init__(f"NCCL_ERROR_{status}: {text}")
        self.status = status


def get_version() -> int:
    return 22809


def get_unique_id() -> bytes:
    return bytes(range(128))


def groupStart() -> None:
    _local.depth = getattr(_local, "depth", 0) + 1


def groupEnd() -> None:
    if not getattr(_local, "depth", 0):
        raise NcclError(5, "groupEnd without groupStart")
    _local.depth -= 1


class NcclCommunicator:
    """The communicator of one rank."""

    def __init__(self, ndev: int, commId: bytes, rank: int):
        if (ndev, rank) != (1, 0) or len(commId) != 128:
            raise NcclError(4, f"rank {rank} of {ndev}: the stand-in has one rank")
        self._alive, self._sent = True, deque()

    def _copy(self, what: str, send: int, recv: int, count: int, type_: int, stream: int) -> None:
        if not self._alive:
            raise NcclError(4, f"{what} with a communicator that has ended")
        size = count * _BYTES[type_]
        if size:
            order.give(f"nccl {what}", [memory.span(send, size)], [memory.span(recv, size)],
                       lambda: ctypes.memmove(recv, send, size), stream=order.streams[stream])

    def allReduce(self, send, recv, count, datatype, op, stream):
        self._copy("all_reduce", send, recv, count, datatype, stream)

    def reduce(self, send, recv, count, datatype, op, root, stream):
        self._copy("reduce", send, recv, count, datatype, stream)

    def broadcast(self, send, recv, count, datatype, root, stream):
        self._copy("broadcast", send, recv, count, datatype, stream)

    def allGather(self, send, recv, count, datatype, stream):
        self._copy("all_gather", send, recv, count, datatype, stream)

    def reduceScatter(self, send, recv, count, datatype, op, stream):
        self._copy("reduce_scatter", send, recv, count, datatype, stream)

    def send(self, buffer, count, datatype, peer, stream):
        if peer or not getattr(_local, "depth", 0):
            raise NcclError(4, f"send to rank {peer}: to itself and in a group only")
        self._sent.append((buffer, count, datatype))

    def recv(self, buffer, count, datatype, peer, stream):
        sent, n, kind = self._sent.popleft()
        if (n, kind) != (count, datatype):
            raise NcclError(5, f"recv of {count} elements where {n} are sent")
        self._copy("send and recv", sent, buffer, count, datatype, stream)

    def check_async_error(self) -> None: ...

    def abort(self) -> None:
        self._alive = False

    destroy = abort

    def rank_id(self) -> int:
        return 0

    def size(self) -> int:
        return 1
