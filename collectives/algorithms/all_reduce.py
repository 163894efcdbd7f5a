"""All-reduce in place: every rank's buffer becomes the reduction of all.

`direct` and `tree` reduce in the fixed tree of `collectives.tree`, and so does `recursive_doubling`
where n is a power of two: their bits depend on the number of ranks alone.
"""

from __future__ import annotations

import numpy as np

from . import broadcast, reduce
from .steps import PowerOfTwo, Transport, Ufunc, combine, edges, exchange, receive, send


def ring(transport: Transport, buffer: np.ndarray, ufunc: Ufunc, tag: int = 0) -> None:
    """Reduce-scatter and all-gather around a ring; for large buffers, any n.

    Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations" (2009).
    Cost: 2(n−1) steps, 2S(n−1)/n bytes, which is the least.
    """
    n, rank = transport.size, transport.rank
    if n == 1:
        return
    at = edges(buffer.size, n)
    parts = [buffer[at[p] : at[p + 1]] for p in range(n)]
    right, left = (rank + 1) % n, (rank - 1) % n
    received = np.empty(max(part.size for part in parts), buffer.dtype)
    for step in range(n - 1):
        sent, mine = parts[(rank - step) % n], parts[(rank - step - 1) % n]
        arriving = received[: mine.size]
        exchange(transport, sent, right, arriving, left, tag)
        combine(ufunc, arriving, mine, mine)
    for step in range(n - 1):
        sent, mine = parts[(rank + 1 - step) % n], parts[(rank - step) % n]
        exchange(transport, sent, right, mine, left, tag)


def recursive_doubling(transport: Transport, buffer: np.ndarray, ufunc: Ufunc, tag: int = 0) -> None:
    """Exchange everything at distances 1, 2, 4, …; for small buffers.

    Thakur, Rabenseifner, Gropp, "Optimization of collective communication operations in MPICH" (2005).
    Cost: log2 n steps, S·log2 n bytes; 2 more steps where n is no power of two.
    """
    two = PowerOfTwo(transport.rank, transport.size)
    if not _hand_in(transport, buffer, ufunc, two, tag):
        return
    received = np.empty_like(buffer)
    place, distance = two.place, 1
    assert place is not None
    while distance < two.size:
        other = two.rank_of(place ^ distance)
        exchange(transport, buffer, other, received, other, tag)
        # The lower rank's on the left, on both sides alike.
        left, right = (buffer, received) if place & distance == 0 else (received, buffer)
        combine(ufunc, left, right, buffer)
        distance *= 2
    _hand_back(transport, buffer, two, tag)


def recursive_halving_doubling(
    transport: Transport, buffer: np.ndarray, ufunc: Ufunc, tag: int = 0
) -> None:
    """Reduce-scatter by halving, all-gather by doubling; for large buffers.

    Rabenseifner, "Optimization of collective reduction operations" (2004).
    Cost: 2·log2 n steps, 2S(n−1)/n bytes; where n is no power of two, with p the largest one below,
    2 more steps, and 2S(p−1)/p bytes, S more for those that stand for two.
    """
    two = PowerOfTwo(transport.rank, transport.size)
    if not _hand_in(transport, buffer, ufunc, two, tag):
        return
    at = edges(buffer.size, two.size)
    received = np.empty(buffer.size - buffer.size // 2, buffer.dtype)
    place, low, high = two.place, 0, two.size
    assert place is not None
    halves = []
    while high - low > 1:
        middle = (low + high) // 2
        lower = place < middle
        other = two.rank_of(place ^ (high - low) // 2)
        kept, given = ((low, middle), (middle, high)) if lower else ((middle, high), (low, middle))
        mine, theirs = (buffer[at[b] : at[e]] for b, e in (kept, given))
        arriving = received[: mine.size]
        exchange(transport, theirs, other, arriving, other, tag)
        combine(ufunc, mine, arriving, mine)
        halves.append((other, mine, theirs))
        low, high = kept
    for other, mine, theirs in reversed(halves):
        exchange(transport, mine, other, theirs, other, tag)
    _hand_back(transport, buffer, two, tag)


def tree(transport: Transport, buffer: np.ndarray, ufunc: Ufunc, tag: int = 0) -> None:
    """Binomial reduction to rank 0 and broadcast from there, in the fixed tree; for small buffers.

    Cost: 2·log2 n steps; S bytes at most ranks, S·log2 n at rank 0.
    """
    reduce.binomial(transport, buffer, ufunc, 0, tag)
    broadcast.binomial(transport, buffer, 0, tag)


def direct(transport: Transport, buffer: np.ndarray, ufunc: Ufunc, tag: int = 0) -> None:
    """Part p of every buffer goes to rank p, which reduces the n parts in the fixed tree.

    All ranks then collect the results. The reduction's bits depend neither on timing nor on where a
    part begins, so they are those of `tree`, shared memory and `local`.
    Cost: 2(n−1) messages in 2 steps where a rank can receive several at once; 2S(n−1)/n bytes.
    """
    n, rank = transport.size, transport.rank
    if n == 1:
        return
    at = edges(buffer.size, n)
    parts = [buffer[at[p] : at[p + 1]] for p in range(n)]
    reduce.reduce_parts(transport, parts, ufunc, parts[rank], tag)
    works = []
    others = [(rank + step) % n for step in range(1, n)]  # each rank begins with another one
    for other in others:
        if parts[other].size:
            works.append(transport.irecv(parts[other], other, tag))
    for other in others:
        if parts[rank].size:
            works.append(transport.isend(parts[rank], other, tag))
    for work in works:
        work.wait()


def _hand_in(
    transport: Transport, buffer: np.ndarray, ufunc: Ufunc, two: PowerOfTwo, tag: int
) -> bool:
    """Give the buffer to the one who stands for this rank; False where that was this rank's part."""
    if two.partner is None:
        return True
    if two.place is None:
        send(transport, buffer, two.partner, tag)
        receive(transport, buffer, two.partner, tag)
        return False
    received = np.empty_like(buffer)
    receive(transport, received, two.partner, tag)
    combine(ufunc, buffer, received, buffer)
    return True


def _hand_back(transport: Transport, buffer: np.ndarray, two: PowerOfTwo, tag: int) -> None:
    if two.partner is not None:
        send(transport, buffer, two.partner, tag)
