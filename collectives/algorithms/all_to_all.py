"""All-to-all, and the barrier, which is one without data.

Part p of `buffer` goes to rank p; `out` collects the parts from all ranks in rank order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .steps import Transport, exchange, part_edges


def pairwise(
    transport: Transport,
    out: np.ndarray,
    buffer: np.ndarray,
    tag: int = 0,
    out_counts: Sequence[int] | None = None,
    in_counts: Sequence[int] | None = None,
) -> None:
    """In step k send to the k-th rank after, receive from the k-th before; for large parts.

    Args:
        out_counts: elements that come from each rank; None: equal parts.
        in_counts: elements that go to each rank; None: equal parts. in_counts[p] of rank r and
            out_counts[r] of rank p must be the same; no rank needs to know the others' counts.

    Cost: n−1 steps; all but the own part, S(n−1)/n bytes, the least.
    """
    n, rank = transport.size, transport.rank
    to, come = part_edges(buffer, n, in_counts), part_edges(out, n, out_counts)
    out[come[rank] : come[rank + 1]] = buffer[to[rank] : to[rank + 1]]
    for step in range(1, n):
        dst, src = (rank + step) % n, (rank - step) % n
        sent, received = buffer[to[dst] : to[dst + 1]], out[come[src] : come[src + 1]]
        exchange(transport, sent, dst, received, src, tag)


def bruck(transport: Transport, out: np.ndarray, buffer: np.ndarray, tag: int = 0) -> None:
    """Send in log2 n steps, each part by the binary digits of its way; for small equal parts.

    Bruck, Ho, Kipnis, Upfal, Weathersby (1997). Cost: ⌈log2 n⌉ steps; about half of S in each, so
    S/2·log2 n bytes, and two copies of S.
    """
    n, rank = transport.size, transport.rank
    part_edges(buffer, n, None)
    places = np.arange(n)
    # Row k is what must travel k ranks further.
    rows = buffer.reshape(n, -1)[(rank + places) % n]
    distance = 1
    while distance < n:
        moving = places[places & distance > 0]
        sent = rows[moving]
        received = np.empty_like(sent)
        exchange(
            transport, sent.reshape(-1), (rank + distance) % n,
            received.reshape(-1), (rank - distance) % n, tag,
        )  # fmt: skip
        rows[moving] = received
        distance *= 2
    out.reshape(n, -1)[(rank - places) % n] = rows


def dissemination(transport: Transport, tag: int = 0) -> None:
    """Barrier: hear from ranks at distances 1, 2, 4, …, which have heard from those before them.

    Hensgen, Finkel, Manber, "Two algorithms for barrier synchronization" (1988). Cost: ⌈log2 n⌉ steps,
    each a message of one byte.
    """
    n, rank = transport.size, transport.rank
    token, received = np.zeros(1, np.uint8), np.empty(1, np.uint8)
    distance = 1
    while distance < n:
        exchange(transport, token, (rank + distance) % n, received, (rank - distance) % n, tag)
        distance *= 2
