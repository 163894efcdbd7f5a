"""What the algorithms need to move arrays between processes: send, receive, and sub-transports.

`mpi` and `tcp` implement it. A transport knows flat contiguous NumPy buffers, ranks and tags; it
knows nothing of reductions, shapes or calls.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from .call import Call
from .work import Work


class Watch(Protocol):
    """Whoever knows how the other ranks are; asked again and again while a rank waits."""

    def look(self, call: Call | None, missing: Sequence[int]) -> None:
        """Raise if waiting is in vain: RankFailedError or CollectiveTimeout.

        Args:
            call: what the waiting rank is doing, if known.
            missing: ranks in the job (global) it still waits for; empty means any of them.
        """


class NoWatch:
    """A watch that never complains: for transports before the control plane is there, and tests."""

    def look(self, call: Call | None, missing: Sequence[int]) -> None:
        return None


class Transport(ABC):
    """Moves flat buffers between the ranks of one job, or of a part of it.

    Several threads may use one transport at the same time. Messages between the same two ranks with
    the same tag arrive in the order in which they were sent.

    Attributes:
        rank: of this process in this transport.
        size: number of ranks in this transport.
        members: for each rank here, its rank in the job (its "global" rank).
        watch: polled by every blocking wait about every millisecond, so that a wait for a rank that
            has failed ends; may be replaced at any time, and sub-transports made later inherit it.
        largest_tag: tags are 0 to this number.
    """

    rank: int
    size: int
    members: tuple[int, ...]
    watch: Watch
    largest_tag: int = 2**31 - 1
    #: Name of what carries the messages.
    backend: str = ""
    #: Whether buffers may be in GPU memory.
    takes_device_arrays: bool = False

    @abstractmethod
    def isend(self, buffer: np.ndarray, dst: int, tag: int) -> Work:
        """Start to send; `buffer` must not change until the Work is complete.

        Args:
            buffer: flat and contiguous, of any dtype in `buffers.DTYPES`.
            dst: rank in this transport; the rank itself is allowed.
            tag: 0 to `largest_tag`.

        Raises:
            RankFailedError: from `Work.wait`: the destination is gone.
        """

    @abstractmethod
    def irecv(self, buffer: np.ndarray, src: int | None, tag: int) -> Work:
        """Start to receive a message of exactly the size and dtype of `buffer` into it.

        Args:
            buffer: flat, contiguous and writable.
            src: rank in this transport; None takes a message from anybody, and `Work.source` says
                afterwards from whom.
            tag: only a message sent with this tag matches.

        Raises:
            ValueError: from `Work.wait`: the message that matches has another size or dtype. It
                is consumed, and `buffer` is unchanged.
            RankFailedError: from `Work.wait`: the source is gone and sent no such message before.
        """

    @abstractmethod
    def sub(self, ranks: Sequence[int], name: str) -> Transport:
        """A transport of some of these ranks. Its messages never match those of any other.

        Args:
            ranks: of this transport, in the order of their ranks in the new one; this rank is one
                of them. Members make the same sub-transports in the same order.
            name: the same on all members.
        """

    @abstractmethod
    def node_of(self) -> list[str]:
        """For each rank an identity of its node: equal where ranks may share memory.

        Known since the start, without communication. Whether memory can be shared is certain only
        after the segment has been attached.
        """

    def native(self, watch: Watch) -> Any:
        """The transport's own collectives, with the methods of `by_messages.ByMessages`; or None."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Complete what was sent, leave, and free everything. Closing a sub-transport is local."""


class Counted(Transport):
    """A transport that counts what goes through it and through the sub-transports made of it.

    Attributes:
        moved: messages sent, bytes sent, bytes received (when the receive was posted).
    """

    def __init__(self, inner: Transport, moved: list[int] | None = None) -> None:
        self._inner = inner
        self.rank, self.size, self.members = inner.rank, inner.size, inner.members
        self.largest_tag, self.backend = inner.largest_tag, inner.backend
        self.takes_device_arrays = inner.takes_device_arrays
        self.moved = [0, 0, 0] if moved is None else moved

    @property
    def watch(self) -> Watch:  # type: ignore[override]
        return self._inner.watch

    @watch.setter
    def watch(self, value: Watch) -> None:
        self._inner.watch = value

    def isend(self, buffer: np.ndarray, dst: int, tag: int) -> Work:
        self.moved[0] += 1
        self.moved[1] += buffer.nbytes
        return self._inner.isend(buffer, dst, tag)

    def irecv(self, buffer: np.ndarray, src: int | None, tag: int) -> Work:
        self.moved[2] += buffer.nbytes
        return self._inner.irecv(buffer, src, tag)

    def sub(self, ranks: Sequence[int], name: str) -> Counted:
        return Counted(self._inner.sub(ranks, name), self.moved)

    def node_of(self) -> list[str]:
        return self._inner.node_of()

    def native(self, watch: Watch) -> Any:
        return self._inner.native(watch)

    def close(self) -> None:
        self._inner.close()


def node_identity() -> str:
    """This process's node: its boot, the /dev/shm and the network it sees (containers have their own).

    DISTTORCH_NODE, any name, takes its place: ranks with different names share no memory.
    """
    if named := os.environ.get("DISTTORCH_NODE", ""):
        return f"{named}/named"
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
    except OSError:  # not Linux: a name must do, and nothing is shared through /dev/shm there
        return f"{os.uname().nodename}/none"
    try:
        shared = os.stat("/dev/shm")
        network = os.stat("/proc/self/ns/net")
    except OSError:
        return f"{boot}/none/{os.getpid()}"  # nothing to share memory through: a node of its own
    return f"{boot}/{shared.st_dev}.{shared.st_ino}.{network.st_ino}"
