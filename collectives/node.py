"""The ranks of one node find a piece of memory to share."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import shm
from .transport import Transport

PATH_BYTES = 256
_warned = False


def nodes_of(identities: Sequence[str]) -> list[list[int]]:
    """The ranks of each node, nodes in the order of their first rank."""
    nodes: dict[str, list[int]] = {}
    for rank, node in enumerate(identities):
        nodes.setdefault(node, []).append(rank)
    return list(nodes.values())


def connect(transport: Transport, ranks: Sequence[int], watch: Any) -> shm.NodeEngine | None:
    """Shared memory among some ranks of a transport; collective among them.

    The first of them creates the segment and tells its path. When all have attached, or one could
    not, the file is removed, so that nothing is left whatever happens later.

    Args:
        transport: for messages with tag 0, which nobody else uses meanwhile.
        ranks: of one node, in order; this rank is one of them.
        watch: polled while calls wait.

    Returns:
        None, on all of them, where one of them cannot: rank 0 of the job says why, once.
    """
    place = list(ranks).index(transport.rank)
    nbytes = shm.NodeEngine.nbytes_for(len(ranks))
    segment, reason = None, shm.why_not()
    if place == 0:
        if not reason:
            try:
                segment = shm.Segment.create(nbytes)
            except OSError as error:
                reason = str(error)
        _send_text(transport, ranks[1:], segment.path if segment else "")
    else:
        path = _receive_text(transport, ranks[0])
        if path and not reason:
            try:
                segment = shm.Segment.attach(path, nbytes)
            except OSError as error:
                reason = str(error)
        elif not reason:
            reason = "the first rank of the node has none"
    together = _everyone_has(transport, ranks, segment is not None)
    if segment is None or not together:
        if segment is not None:
            segment.close()
        _say_why(transport, place, reason)
        return None
    segment.unlink()
    members = [transport.members[rank] for rank in ranks]
    return shm.NodeEngine(segment, place, len(ranks), members, watch)


def _everyone_has(transport: Transport, ranks: Sequence[int], mine: bool) -> bool:
    """Whether all ranks say yes; the first of them collects and tells."""
    answer = np.array([mine], np.uint8)
    if transport.rank != ranks[0]:
        transport.isend(answer, ranks[0], 0).wait()
        transport.irecv(answer, ranks[0], 0).wait()
        return bool(answer[0])
    for rank in ranks[1:]:
        theirs = np.zeros(1, np.uint8)
        transport.irecv(theirs, rank, 0).wait()
        answer &= theirs
    for work in [transport.isend(answer, rank, 0) for rank in ranks[1:]]:
        work.wait()
    return bool(answer[0])


def _send_text(transport: Transport, ranks: Sequence[int], text: str) -> None:
    data = np.zeros(PATH_BYTES, np.uint8)
    encoded = text.encode()
    data[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    for work in [transport.isend(data, rank, 0) for rank in ranks]:
        work.wait()


def _receive_text(transport: Transport, rank: int) -> str:
    data = np.zeros(PATH_BYTES, np.uint8)
    transport.irecv(data, rank, 0).wait()
    return data.tobytes().rstrip(b"\0").decode()


def _say_why(transport: Transport, place: int, reason: str) -> None:
    global _warned
    if place == 0 and not _warned:
        _warned = True
        sys.stderr.write(
            f"[rank {transport.members[transport.rank]}] collectives of this node go without shared "
            f"memory, which is slower: {reason or 'another rank could not attach it'}\n"
        )
