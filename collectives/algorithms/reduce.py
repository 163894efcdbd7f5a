"""Reduce in place on the root. Elsewhere the buffer stays as it is.

`tree` and `direct` give the bits of the fixed tree of `collectives.tree`, and `binomial` with root 0.
"""

from __future__ import annotations

import numpy as np

from .. import tree as fixed
from .steps import Transport, Ufunc, combine, edges, receive, send


def binomial(
    transport: Transport, buffer: np.ndarray, ufunc: Ufunc, root: int, tag: int = 0
) -> None:
    """Up a binomial tree whose root is `root`; for small buffers.

    At distances 1, 2, 4, … one of two neighbours hands its result to the other and is done, which is
    the fixed tree when ranks are counted from the root. Cost: log2 n steps, S bytes.
    """
    n = transport.size
    place = (transport.rank - root) % n
    total = buffer
    received: np.ndarray | None = None
    distance = 1
    while distance < n:
        if place & distance:
            send(transport, total, (place - distance + root) % n, tag)
            return
        if place + distance < n:
            if received is None:
                received = np.empty_like(buffer)
                if place:
                    total = buffer.copy()
            receive(transport, received, (place + distance + root) % n, tag)
            combine(ufunc, total, received, total)
        distance *= 2


def tree(transport: Transport, buffer: np.ndarray, ufunc: Ufunc, root: int, tag: int = 0) -> None:
    """The fixed tree whatever the root is: up to rank 0, then one message to the root.

    Cost: log2 n steps and, where the root is not 0, one more; S bytes.
    """
    if root == 0:
        binomial(transport, buffer, ufunc, 0, tag)
    elif transport.rank == 0:
        total = buffer.copy()
        binomial(transport, total, ufunc, 0, tag)
        send(transport, total, root, tag)
    else:
        binomial(transport, buffer, ufunc, 0, tag)
        if transport.rank == root:
            receive(transport, buffer, 0, tag)


def direct(transport: Transport, buffer: np.ndarray, ufunc: Ufunc, root: int, tag: int = 0) -> None:
    """Part p goes to rank p, which reduces it in the fixed tree and hands it to the root.

    Cost: 2 steps; at most S bytes, S(n−1)/n on the root, which receives twice that.
    """
    n, rank = transport.size, transport.rank
    if n == 1:
        return
    at = edges(buffer.size, n)
    parts = [buffer[at[p] : at[p + 1]] for p in range(n)]
    if rank != root:
        total = np.empty_like(parts[rank])
        reduce_parts(transport, parts, ufunc, total, tag)
        send(transport, total, root, tag)
        return
    reduce_parts(transport, parts, ufunc, parts[rank], tag)
    works = [transport.irecv(parts[p], p, tag) for p in range(n) if p != root and parts[p].size]
    for work in works:
        work.wait()


def reduce_parts(
    transport: Transport, parts: list[np.ndarray], ufunc: Ufunc, out: np.ndarray, tag: int
) -> None:
    """Send parts[p] to rank p; reduce this rank's part of all ranks in the fixed tree into `out`.

    `out` may be this rank's own part; the other parts stay as they are.
    """
    n, rank = transport.size, transport.rank
    mine = parts[rank]
    rows = np.empty((n - 1, mine.size), mine.dtype)
    leaves = [*rows[:rank], mine, *rows[rank:]]
    works = []
    for other in ((rank - step) % n for step in range(1, n)):
        if mine.size:
            works.append(transport.irecv(leaves[other], other, tag))
    for other in ((rank + step) % n for step in range(1, n)):
        if parts[other].size:
            works.append(transport.isend(parts[other], other, tag))
    for work in works:
        work.wait()
    fixed.fold(leaves, ufunc, out)
