"""The group of all ranks of a job that no MPI started: rendezvous, watch, and the way out."""

from __future__ import annotations

import hashlib
from typing import Any

from .. import failure, flight, selection
from ..group import Group
from ..processes import ProcessesGroup
from ..secret import job_secret
from ..store import Store
from ..watch.process import NullWatch, Watch
from ..work import CommunicationThread
from . import rendezvous
from .transport import TCPTransport, gather_bytes


class _CurrentWatch:
    """The watch of the job that this process is in now; the way out is installed only once."""

    target: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.target, name)


_current = _CurrentWatch()


def connect(
    init_method: str | None, rank: int, world_size: int, store: Store | None, timeout: float | None
) -> ProcessesGroup:
    """Meet the other ranks; from then on a rank that fails ends its process and is named to the others.

    Args:
        init_method, rank, world_size, store: see `rendezvous.connect`; -1 for what is not known.
        timeout: seconds, for the meeting as well as for each call later; None for no limit.

    Returns:
        The group of all ranks; its `store` is the store in which they met.
    """
    transport = rendezvous.connect(
        init_method,
        None if rank < 0 else rank,
        None if world_size < 0 else world_size,
        rendezvous.DEFAULT_TIMEOUT if timeout is None else min(timeout, rendezvous.DEFAULT_TIMEOUT),
        store,
    )
    watch = _start_watch(transport)
    first = _current.target is None
    _current.target = watch
    if first:
        failure.install(transport.rank, lambda status: None, CommunicationThread.drain_all, _current)  # type: ignore[arg-type]
    watch.managed = True
    transport.watch = watch
    selection.share(lambda data: gather_bytes(transport, data))
    group = ProcessesGroup(transport, "world", watch, timeout)
    group.store = transport.store
    return group


def disconnect(group: Group) -> None:
    """Leave the job once all ranks have come here."""
    assert isinstance(group, ProcessesGroup)
    group.barrier()
    group.watch.left()
    group.watch.close()
    _current.target = NullWatch(flight.recorder())
    group.transport.close()


def _start_watch(transport: TCPTransport) -> Any:
    # The watch's own secret: whoever can connect to it has met in the store before.
    secret = hashlib.sha256(b"watch " + job_secret()).digest()
    return Watch.start(
        transport.rank,
        transport.size,
        lambda data: gather_bytes(transport, data),
        recorder=flight.recorder(),
        secret=secret,
    )
