"""Broadcast in place: every rank's buffer becomes the root's."""

from __future__ import annotations

import numpy as np

from .steps import Transport, edges, exchange, receive, send


def binomial(transport: Transport, buffer: np.ndarray, root: int, tag: int = 0) -> None:
    """Down a binomial tree; for small buffers.

    Cost: log2 n steps, S·log2 n bytes at the root, n−1 messages in all.
    """
    n = transport.size
    place = (transport.rank - root) % n
    distance = 1
    while distance < n and not place & distance:
        distance *= 2
    if place:
        receive(transport, buffer, (place - distance + root) % n, tag)
    while distance > 1:
        distance //= 2
        if place + distance < n:
            send(transport, buffer, (place + distance + root) % n, tag)


def scatter_all_gather(transport: Transport, buffer: np.ndarray, root: int, tag: int = 0) -> None:
    """Scatter the parts down a binomial tree, then collect them around a ring; for large buffers.

    Barnett, Gupta, Payne, Shuler, van de Geijn, Watts, "Interprocessor collective communication
    library" (1994). Cost: log2 n + n−1 steps; at most 2S(n−1)/n bytes, where `binomial` sends S·log2 n.
    """
    n = transport.size
    if n == 1:
        return
    place = (transport.rank - root) % n
    at = edges(buffer.size, n)  # part p is that of place p
    distance = 1
    while distance < n and not place & distance:
        distance *= 2
    if place:
        mine = buffer[at[place] : at[min(place + distance, n)]]
        receive(transport, mine, (place - distance + root) % n, tag)
    while distance > 1:
        distance //= 2
        if place + distance < n:
            given = buffer[at[place + distance] : at[min(place + 2 * distance, n)]]
            send(transport, given, (place + distance + root) % n, tag)
    right, left = (transport.rank + 1) % n, (transport.rank - 1) % n
    nothing = buffer[:0]
    for step in range(n - 1):
        sent, received = (place - step) % n, (place - step - 1) % n
        # The root has everything, so the place before it sends nothing around.
        exchange(
            transport, nothing if place == n - 1 else buffer[at[sent] : at[sent + 1]], right,
            buffer[at[received] : at[received + 1]] if place else nothing, left, tag,
        )  # fmt: skip
