"""Reduce-scatter: rank r's `out` becomes the reduction of part r of every rank's buffer.

`counts` are the sizes of the parts, known to all ranks; None means equal ones. The buffer stays as it
is. `direct` gives the bits of the fixed tree of `collectives.tree`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .reduce import reduce_parts
from .steps import PowerOfTwo, Transport, Ufunc, combine, exchange, part_edges, receive, send


def ring(
    transport: Transport,
    out: np.ndarray,
    buffer: np.ndarray,
    ufunc: Ufunc,
    tag: int = 0,
    counts: Sequence[int] | None = None,
) -> None:
    """Each part travels once around the ring and grows on the way; for large buffers.

    Cost: n−1 steps, S(n−1)/n bytes (all but the own part), which is the least.
    """
    n, rank = transport.size, transport.rank
    at = part_edges(buffer, n, counts)
    parts = [buffer[at[p] : at[p + 1]] for p in range(n)]
    if n == 1:
        out[...] = buffer
        return
    right, left = (rank + 1) % n, (rank - 1) % n
    spare = np.empty((2, max(part.size for part in parts)), buffer.dtype)
    sent = parts[(rank - 1) % n]
    for step in range(n - 1):
        mine = parts[(rank - step - 2) % n]
        arriving = spare[step % 2][: mine.size]
        exchange(transport, sent, right, arriving, left, tag)
        total = out if step == n - 2 else arriving
        combine(ufunc, arriving, mine, total)
        sent = total


def halving(
    transport: Transport,
    out: np.ndarray,
    buffer: np.ndarray,
    ufunc: Ufunc,
    tag: int = 0,
    counts: Sequence[int] | None = None,
) -> None:
    """Recursive halving: keep one half of the ranks' parts, give the other half away.

    Thakur, Rabenseifner, Gropp (2005). Cost: log2 n steps, S(n−1)/n bytes; 2 more steps where n is no
    power of two, in which the ranks that do not take part send S bytes.
    """
    n, rank = transport.size, transport.rank
    at = part_edges(buffer, n, counts)
    two = PowerOfTwo(rank, n)
    if two.place is None:
        assert two.partner is not None
        send(transport, buffer, two.partner, tag)
        receive(transport, out, two.partner, tag)
        return
    total = buffer.copy()
    received = np.empty_like(buffer)
    if two.partner is not None:
        receive(transport, received, two.partner, tag)
        combine(ufunc, total, received, total)
    low, high = 0, two.size
    while high - low > 1:
        middle = (low + high) // 2
        other = two.rank_of(two.place ^ (high - low) // 2)
        lower = two.place < middle
        kept, given = ((low, middle), (middle, high)) if lower else ((middle, high), (low, middle))
        mine, theirs = (total[at[two.starts[b]] : at[two.starts[e]]] for b, e in (kept, given))
        arriving = received[: mine.size]
        exchange(transport, theirs, other, arriving, other, tag)
        combine(ufunc, mine, arriving, mine)
        low, high = kept
    out[...] = total[at[rank] : at[rank + 1]]
    if two.partner is not None:
        send(transport, total[at[two.partner] : at[two.partner + 1]], two.partner, tag)


def direct(
    transport: Transport,
    out: np.ndarray,
    buffer: np.ndarray,
    ufunc: Ufunc,
    tag: int = 0,
    counts: Sequence[int] | None = None,
) -> None:
    """Part p goes straight to rank p, which reduces the n parts in the fixed tree.

    Cost: n−1 messages, one step where a rank can receive several at once; S(n−1)/n bytes.
    """
    n = transport.size
    at = part_edges(buffer, n, counts)
    reduce_parts(transport, [buffer[at[p] : at[p + 1]] for p in range(n)], ufunc, out, tag)
