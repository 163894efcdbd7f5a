"""All-gather, gather and scatter: parts of all ranks in rank order, on all ranks or on the root.

`counts` are the sizes of the parts, known to all ranks; None means equal ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .steps import Transport, edges_of, exchange, part_edges, receive, send

# ---- all_gather: `out` on every rank becomes the parts of all --------------------------------------


def ring_all_gather(
    transport: Transport,
    out: np.ndarray,
    buffer: np.ndarray,
    tag: int = 0,
    counts: Sequence[int] | None = None,
) -> None:
    """Every part travels around the ring; for large parts, any n and sizes.

    Cost: n−1 steps; all parts but that of the right neighbour, S(n−1)/n bytes of S in `out`: the least.
    """
    n, rank = transport.size, transport.rank
    at = part_edges(out, n, counts)
    parts = [out[at[p] : at[p + 1]] for p in range(n)]
    parts[rank][...] = buffer
    right, left = (rank + 1) % n, (rank - 1) % n
    for step in range(n - 1):
        exchange(transport, parts[(rank - step) % n], right, parts[(rank - step - 1) % n], left, tag)


def recursive_doubling_all_gather(
    transport: Transport,
    out: np.ndarray,
    buffer: np.ndarray,
    tag: int = 0,
    counts: Sequence[int] | None = None,
) -> None:
    """Exchange all that one has at distances 1, 2, 4, …; for small parts, n a power of two.

    Thakur, Rabenseifner, Gropp (2005). Cost: log2 n steps, S(n−1)/n bytes.

    Raises:
        ValueError: n is no power of two.
    """
    n, rank = transport.size, transport.rank
    if n & (n - 1):
        raise ValueError(f"all_gather by recursive doubling needs a power of two of ranks, not {n}")
    at = part_edges(out, n, counts)
    out[at[rank] : at[rank + 1]] = buffer
    distance = 1
    while distance < n:
        other = rank ^ distance
        mine, theirs = (place & ~(distance - 1) for place in (rank, other))
        exchange(
            transport, out[at[mine] : at[mine + distance]], other,
            out[at[theirs] : at[theirs + distance]], other, tag,
        )  # fmt: skip
        distance *= 2


def bruck_all_gather(
    transport: Transport,
    out: np.ndarray,
    buffer: np.ndarray,
    tag: int = 0,
    counts: Sequence[int] | None = None,
) -> None:
    """Collect the parts of the ranks that follow, twice as many each time; for small parts, any n.

    Bruck, Ho, Kipnis, Upfal, Weathersby, "Efficient algorithms for all-to-all communications in
    multiport message-passing systems" (1997). Cost: ⌈log2 n⌉ steps, S(n−1)/n bytes, and one copy of S,
    because parts are collected beginning with the own one.
    """
    n, rank = transport.size, transport.rank
    at = part_edges(out, n, counts)
    sizes = [at[p + 1] - at[p] for p in range(n)]
    rotated = edges_of([sizes[(rank + p) % n] for p in range(n)])
    collected = np.empty_like(out)
    collected[: buffer.size] = buffer
    have = 1
    while have < n:
        more = min(have, n - have)
        # The rank before, for which these are the parts `have` to `have + more`, lacks them.
        exchange(
            transport, collected[: rotated[more]], (rank - have) % n,
            collected[rotated[have] : rotated[have + more]], (rank + have) % n, tag,
        )  # fmt: skip
        have += more
    head = rotated[n - rank]  # the parts of ranks `rank` to n - 1
    out[at[rank] :] = collected[:head]
    out[: at[rank]] = collected[head:]


# ---- gather: `out` on the root becomes the parts of all; None elsewhere ----------------------------


def linear_gather(
    transport: Transport,
    out: np.ndarray | None,
    buffer: np.ndarray,
    root: int,
    tag: int = 0,
    counts: Sequence[int] | None = None,
) -> None:
    """Every rank sends its part to the root; for large or unequal parts.

    Only the root uses `counts`; a rank needs to know its own part alone. Cost: n−1 messages at the
    root, each part once.
    """
    n = transport.size
    if transport.rank != root:
        send(transport, buffer, root, tag)
        return
    assert out is not None
    at = part_edges(out, n, counts)
    works = [
        transport.irecv(out[at[p] : at[p + 1]], p, tag)
        for p in range(n)
        if p != root and at[p] < at[p + 1]
    ]
    out[at[root] : at[root + 1]] = buffer
    for work in works:
        work.wait()


def binomial_gather(
    transport: Transport, out: np.ndarray | None, buffer: np.ndarray, root: int, tag: int = 0
) -> None:
    """Up a binomial tree, collecting on the way; for small equal parts.

    Cost: log2 n steps; at most S/2 bytes, where a rank hands on what it has collected.
    """
    n, each = transport.size, buffer.size
    place = (transport.rank - root) % n
    width = _subtree(place, n)
    collected = np.empty(width * each, buffer.dtype)  # parts of places `place` to `place + width`
    collected[:each] = buffer
    distance = 1
    while distance < n:
        if place & distance:
            send(transport, collected, (place - distance + root) % n, tag)
            return
        if place + distance < n:
            arriving = collected[distance * each : 2 * distance * each]
            receive(transport, arriving, (place + distance + root) % n, tag)
        distance *= 2
    assert out is not None
    head = (n - root) * each
    out[root * each :] = collected[:head]
    out[: root * each] = collected[head:]


# ---- scatter: rank r's `out` becomes part r of the root's buffer; None elsewhere -------------------


def linear_scatter(
    transport: Transport,
    out: np.ndarray,
    buffer: np.ndarray | None,
    root: int,
    tag: int = 0,
    counts: Sequence[int] | None = None,
) -> None:
    """The root sends every rank its part; for large or unequal parts.

    Only the root uses `counts`. Cost: n−1 messages at the root, each part once.
    """
    n = transport.size
    if transport.rank != root:
        receive(transport, out, root, tag)
        return
    assert buffer is not None
    at = part_edges(buffer, n, counts)
    works = [
        transport.isend(buffer[at[p] : at[p + 1]], p, tag)
        for p in range(n)
        if p != root and at[p] < at[p + 1]
    ]
    out[...] = buffer[at[root] : at[root + 1]]
    for work in works:
        work.wait()


def binomial_scatter(
    transport: Transport, out: np.ndarray, buffer: np.ndarray | None, root: int, tag: int = 0
) -> None:
    """Down a binomial tree, each rank handing on what is for others; for small equal parts.

    Cost: log2 n steps; S(n−1)/n bytes at the root.
    """
    n, each = transport.size, out.size
    place = (transport.rank - root) % n
    width = _subtree(place, n)
    held = np.empty(width * each, out.dtype)  # parts of places `place` to `place + width`
    distance = 1
    while distance < n and not place & distance:
        distance *= 2
    if place:
        receive(transport, held, (place - distance + root) % n, tag)
    else:
        assert buffer is not None
        head = (n - root) * each
        held[:head] = buffer[root * each :]
        held[head:] = buffer[: root * each]
    while distance > 1:
        distance //= 2
        if place + distance < n:
            given = held[distance * each : 2 * distance * each]
            send(transport, given, (place + distance + root) % n, tag)
    out[...] = held[:each]


def _subtree(place: int, n: int) -> int:
    """How many places a binomial tree over n has below `place`, itself included."""
    return min(place & -place, n - place) if place else n
