"""What the algorithms are written with: a transport, its messages, and how a buffer is cut in parts.

Cost is given as in the literature: steps (messages that follow each other) and bytes that one rank
sends, for n ranks and S bytes. The lower bounds are those of Chan, Heimlich, Purkayastha and van de
Geijn, "Collective communication: theory, practice, and experience" (2007).

Empty parts are not sent: both sides know the sizes, so both leave the message out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

Ufunc = Callable[..., Any]


class Pending(Protocol):
    """A message under way."""

    def wait(self) -> object:
        """Return when the buffer may be used again; raise what went wrong."""


class Transport(Protocol):
    """Messages between n ranks. Of one pair and tag they arrive in the order in which they are sent.

    Buffers are flat contiguous arrays; a receive has the dtype and size of what is sent.
    """

    rank: int
    size: int

    def isend(self, buffer: np.ndarray, dst: int, tag: int) -> Pending:
        """Start to send; `buffer` must stay unchanged until the work has ended."""

    def irecv(self, buffer: np.ndarray, src: int, tag: int) -> Pending:
        """Start to receive into `buffer`."""


def send(transport: Transport, buffer: np.ndarray, dst: int, tag: int) -> None:
    """Send unless there is nothing to send."""
    if buffer.size:
        transport.isend(buffer, dst, tag).wait()


def receive(transport: Transport, buffer: np.ndarray, src: int, tag: int) -> None:
    """Receive unless nothing comes."""
    if buffer.size:
        transport.irecv(buffer, src, tag).wait()


def exchange(
    transport: Transport, sent: np.ndarray, dst: int, received: np.ndarray, src: int, tag: int
) -> None:
    """Send to one rank while receiving from another (or the same) one."""
    works = []
    if received.size:
        works.append(transport.irecv(received, src, tag))
    if sent.size:
        works.append(transport.isend(sent, dst, tag))
    for work in works:
        work.wait()


def combine(ufunc: Ufunc, left: np.ndarray, right: np.ndarray, out: np.ndarray) -> None:
    """ufunc(left, right) into `out`; overflow is a value (inf, wrapped around), as in MPI."""
    with np.errstate(all="ignore"):
        ufunc(left, right, out=out)


def edges(count: int, n: int) -> list[int]:
    """Where n parts of `count` elements, as equal as can be, begin and end: n + 1 indices."""
    return [p * count // n for p in range(n + 1)]


def edges_of(counts: Sequence[int]) -> list[int]:
    """Where parts of the given sizes begin and end."""
    result = [0]
    for count in counts:
        result.append(result[-1] + count)
    return result


def part_edges(buffer: np.ndarray, n: int, counts: Sequence[int] | None) -> list[int]:
    """The parts of a buffer that n ranks share: of the given sizes, or (None) of equal ones.

    Raises:
        ValueError: the counts do not fit the buffer.
    """
    if counts is None:
        if buffer.size % n:
            raise ValueError(
                f"{buffer.size} elements do not divide into {n} equal parts; give counts"
            )
        return edges(buffer.size, n)
    if len(counts) != n or sum(counts) != buffer.size:
        raise ValueError(
            f"counts {list(counts)} are not {n} parts of a buffer of {buffer.size} elements"
        )
    return edges_of(counts)


class PowerOfTwo:
    """Which ranks take part in an algorithm for powers of two, and for whom the others do.

    The first 2·extra ranks form pairs (0, 1), (2, 3), …: the odd one hands its data to the even one
    and waits for the result (Thakur, Rabenseifner, Gropp 2005). The others stand for themselves.

    Attributes:
        size: the largest power of two that is at most n.
        place: this rank's place among those that take part; None for one that waits.
        partner: the other one of this rank's pair; None outside the pairs.
        starts: size + 1 ranks: place i stands for the ranks starts[i] to starts[i + 1].
    """

    def __init__(self, rank: int, n: int) -> None:
        self.size = 1 << n.bit_length() - 1
        extra = n - self.size
        self.starts = [min(2 * i, i + extra) for i in range(self.size + 1)]
        self.partner = rank ^ 1 if rank < 2 * extra else None
        waits = self.partner is not None and rank % 2 == 1
        self.place = None if waits else rank // 2 if rank < 2 * extra else rank - extra

    def rank_of(self, place: int) -> int:
        """The rank that takes part as number `place`."""
        return self.starts[place]
