"""Messages of `tcp` under way: sends, receives, and what has come."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from ..buffers import DTYPES
from ..call import Call
from ..transport import NoWatch, Transport
from ..work import CollectiveError, RankFailedError, Work

if TYPE_CHECKING:
    from .progress import Engine

CODES = {np.dtype(getattr(ml_dtypes, name, name)): code for code, name in enumerate(DTYPES)}
SIZES = [dtype.itemsize for dtype in CODES]
_NAMES = [dtype.name for dtype in CODES]
_PATIENCE = 1.0  # seconds that the watch has to say why a rank has gone
_PAUSE = 1e-3  # seconds between two questions to it


class Lost(RankFailedError):
    """Seen from the connection only; nobody has been asked yet why."""


class Operation(Work):
    """A send or a receive under way.

    Attributes:
        about: the call it is part of, for the watch; set by who knows it.
    """

    def __init__(
        self, name: str, engine: Engine, transport: Transport, peers: Sequence[int]
    ) -> None:
        super().__init__(name)
        self.engine = engine
        self.transport = transport
        self.peers = peers  # the job's ranks that it waits for
        self.about: Call | None = None
        self.done = False
        self.error: BaseException | None = None

    def is_completed(self) -> bool:
        if not self.done:
            self.engine.glance()
        return self.done

    def exception(self) -> BaseException | None:
        return self.error

    def wait(self, timeout: float | None = None) -> bool:
        if self.done and self.error is None:
            return True
        return super().wait(timeout)

    def _block(self, timeout: float | None) -> bool:
        if not self.engine.wait_for(self, timeout):
            return False
        if isinstance(self.error, Lost):
            self._ask_why(self.error)
        return True

    def _ask_why(self, lost: Lost) -> None:
        """A closed connection says that a rank has gone; the watch soon knows why."""
        watch = self.transport.watch
        end = time.monotonic() + (0.0 if isinstance(watch, NoWatch) else _PATIENCE)
        self.error = RankFailedError(*lost.args)
        while time.monotonic() < end:
            try:
                watch.look(self.about, self.peers)
            except CollectiveError as better:
                self.error = better
                return
            time.sleep(_PAUSE)


class Send(Operation):
    """A message on its way out."""

    parts: list[memoryview] = []


class Receive(Operation):
    """A posted receive."""

    def __init__(
        self,
        engine: Engine,
        transport: Transport,
        buffer: np.ndarray,
        src: int | None,
        tag: int,
        peers: Sequence[int],
    ) -> None:
        super().__init__("recv", engine, transport, peers)
        self.buffer = buffer
        self.src = src  # the job's rank; None for anybody
        self.tag = tag


class Message:
    """A message that arrives; `buffer` is None if it goes straight into its receive's."""

    def __init__(self, peer: int, key: tuple[int, int], dtype: int, count: int) -> None:
        self.peer = peer
        self.key = key  # context and tag
        self.dtype = dtype
        self.count = count
        self.buffer: np.ndarray | None = None
        self.receive: Receive | None = None
        self.arrived = False


def fits(receive: Receive, message: Message) -> bool:
    buffer = receive.buffer
    return buffer.size == message.count and CODES[buffer.dtype] == message.dtype


def misfit(receive: Receive, message: Message) -> ValueError:
    buffer, tag = receive.buffer, receive.tag
    return ValueError(
        f"recv of {buffer.size} x {buffer.dtype.name} ({buffer.nbytes} bytes), tag {tag}: rank "
        f"{message.peer} sent {message.count} x {_NAMES[message.dtype]} "
        f"({message.count * SIZES[message.dtype]} bytes); both sides must name the same size and dtype"
    )
