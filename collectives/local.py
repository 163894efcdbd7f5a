"""Ranks as threads of one process: the oracle that every other backend is compared with.

A collective here is one function over all ranks' buffers. The ranks meet; whoever comes last runs
that function while the others wait, so their buffers are at rest. Reductions follow the tree by
rank order (`tree`) and are therefore the same bits every time.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from . import check, flight, tree
from .backend import Counts
from .buffers import UFUNCS, Array, ReduceOp
from .call import Call
from .group import Group
from .watch.local import LocalWatch
from .work import PolledWork, RankFailedError, Work

T = TypeVar("T")

_current: contextvars.ContextVar[Group | None] = contextvars.ContextVar("rank", default=None)


def current() -> Group | None:
    """The calling thread's group of all ranks inside `run_ranks`, else None."""
    return _current.get()


def single() -> Group:
    """A group of one rank, without threads or MPI."""
    return LocalGroup(_Room(_World(), (0,), "world"), 0)


def run_ranks(
    n: int,
    fn: Callable[[Group], T],
    timeout: float | None = None,
    call_timeout: float | None = None,
) -> list[T]:
    """Call `fn(group)` in `n` threads, each a rank of one group, and return their results.

    Args:
        n: number of ranks, at least 1.
        fn: what each rank runs; tells ranks apart by `group.rank`.
        timeout: seconds after which ranks that wait for others are woken; None for no limit.
        call_timeout: the groups' `timeout`.

    Raises:
        Exception: the first one raised by any rank, with a note that names the rank. The other
            ranks are woken wherever they wait, with RankFailedError.
        TimeoutError: the ranks did not end in time.
    """
    if n < 1:
        raise ValueError(f"run_ranks needs at least 1 rank, got {n}")
    world = _World(n, call_timeout)
    room = _Room(world, tuple(range(n)), "world")
    results: list[Any] = [None] * n

    def run(rank: int) -> None:
        world.watches[rank].thread = threading.get_ident()
        group = LocalGroup(room, rank)
        _current.set(group)
        try:
            results[rank] = fn(group)
            world.leave(rank)
        except BaseException as error:
            world.fail(rank, error)

    # Daemons: a rank that never comes back from its own code must not keep the process alive.
    threads = [
        threading.Thread(target=run, args=(rank,), name=f"rank {rank}", daemon=True)
        for rank in range(n)
    ]
    for thread in threads:
        thread.start()
    deadline = None if timeout is None else time.monotonic() + timeout
    try:
        for thread in threads:
            thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                late = [r for r in range(n) if threads[r].is_alive()]
                world.fail(late[0], TimeoutError(f"ranks {late} did not end in {timeout} seconds"))
    except BaseException as error:  # the caller was interrupted: free the ranks first
        world.fail(0, error)
        raise
    if world.failure is not None:
        rank, first = world.failure
        first.add_note(f"raised on rank {rank} of {n} local ranks")
        raise first
    return results


class _World:
    """What all local ranks of one job share: one lock, and the first failure."""

    def __init__(self, size: int = 1, timeout: float | None = None) -> None:
        self.changed = threading.Condition()
        # Threads of one process have a recorder each.
        self.watches = LocalWatch.make([flight.Recorder() for _ in range(size)], timeout)
        self.failure: tuple[int, BaseException] | None = None
        self._groups: list[LocalGroup] = []
        self._rooms: dict[str, _Room] = {}

    def room(self, members: tuple[int, ...], name: str) -> _Room:
        """The one room of this name, made by whoever comes first."""
        with self.changed:
            if name not in self._rooms:
                self._rooms[name] = _Room(self, members, name)
            return self._rooms[name]

    def enter(self, group: LocalGroup) -> None:
        with self.changed:
            self._groups.append(group)

    def fail(self, rank: int, error: BaseException) -> None:
        """Keep the first failure and wake everyone."""
        with self.changed:
            if self.failure is None:
                self.failure = (rank, error)
            self.changed.notify_all()

    def leave(self, rank: int) -> None:
        """End rank `rank` (of all ranks): finish what it has begun, then fail those who wait."""
        mine = [group for group in self._groups if group.room.members[group.rank] == rank]
        # All groups first, each behind its own queue, or two ranks could wait for each other.
        for group in mine:
            group.depart()
        for group in mine:
            group.close()


@dataclass
class _Meeting:
    """One collective: who has come, with what, and how it ended."""

    calls: dict[int, Call] = field(default_factory=dict)
    brought: dict[int, Any] = field(default_factory=dict)
    done: bool = False
    result: Any = None
    error: BaseException | None = None


@dataclass(eq=False)  # told apart by identity: comparing their fields would compare arrays
class _Receive:
    """A posted receive and, once it has come, the message's sender."""

    buffer: Array
    src: int | None
    tag: int
    source: int | None = None
    error: Exception | None = None


class _Room:
    """What the ranks of one group share.

    Args:
        world: the job.
        members: the rank in the whole job of each rank here.
        name: the group's name.
    """

    def __init__(self, world: _World, members: tuple[int, ...], name: str) -> None:
        self.world = world
        self.members = members
        self.name = name
        self.departed: set[int] = set()
        self._arrivals = [0] * len(members)
        self._meetings: dict[int, _Meeting] = {}
        # Per receiving rank, in order of arrival: messages nobody asked for yet, and receives.
        self._messages: list[list[tuple[int, int, Array]]] = [[] for _ in members]
        self._receives: list[list[_Receive]] = [[] for _ in members]

    def meet(
        self, rank: int, call: Call, brought: Any, perform: Callable[[list[Any]], Any]
    ) -> Any:
        """Bring something, wait for all, and return what `perform` made of all that was brought."""
        n = len(self.members)
        with self.world.changed:
            number = self._arrivals[rank]
            self._arrivals[rank] += 1
            meeting = self._meetings.setdefault(number, _Meeting())
            meeting.calls[rank] = call
            meeting.brought[rank] = brought
            last = len(meeting.calls) == n
            if not last:
                self._wait(
                    call,
                    rank,
                    lambda: meeting.done,
                    lambda: [r for r in range(n) if r not in meeting.calls],
                )
        if last:
            try:
                check.same(self.name, {self.members[r]: meeting.calls[r] for r in range(n)})
                meeting.result = perform([meeting.brought[r] for r in range(n)])
            except BaseException as error:
                meeting.error = error
            with self.world.changed:
                del self._meetings[number]
                meeting.done = True
                self.world.changed.notify_all()
        if meeting.error is not None:
            raise meeting.error
        return meeting.result

    def depart(self, rank: int) -> None:
        with self.world.changed:
            self.departed.add(rank)
            self.world.changed.notify_all()

    def post_send(self, src: int, dst: int, tag: int, buffer: Array) -> None:
        with self.world.changed:
            for receive in self._receives[dst]:
                if receive.src in (None, src) and receive.tag == tag:
                    self._receives[dst].remove(receive)
                    _deliver(src, buffer, receive)
                    break
            else:
                self._messages[dst].append((src, tag, buffer.copy()))
            self.world.changed.notify_all()

    def post_receive(self, dst: int, receive: _Receive) -> None:
        with self.world.changed:
            for message in self._messages[dst]:
                src, tag, data = message
                if receive.src in (None, src) and receive.tag == tag:
                    # By identity: comparing messages would compare arrays.
                    self._messages[dst] = [m for m in self._messages[dst] if m is not message]
                    _deliver(src, data, receive)
                    return
            self._receives[dst].append(receive)

    def has_received(
        self, call: Call, dst: int, receive: _Receive, timeout: float | None
    ) -> bool:
        """Whether a posted receive has ended within `timeout` seconds; raises its error."""
        others = [r for r in range(len(self.members)) if r != dst]

        def senders() -> list[int]:
            if receive.src is not None:
                return [receive.src]
            return others if self.departed.issuperset(others) else []

        with self.world.changed:
            ended = self._wait(call, dst, lambda: receive.source is not None, senders, timeout)
        if receive.error is not None:
            raise receive.error
        return ended

    def _wait(
        self,
        call: Call,
        rank: int,
        ready: Callable[[], bool],
        missing: Callable[[], list[int]],
        patience: float | None = None,
    ) -> bool:
        """Wait (holding the lock) until `ready`; raise if it can never be.

        Args:
            patience: seconds after which to return False; None for none.
        """
        watch = self.world.watches[self.members[rank]]
        begin = time.monotonic()
        limit = None if call.timeout is None else begin + call.timeout
        deadline = None if patience is None else begin + patience
        while not ready():
            if self.world.failure is not None:
                rank, error = self.world.failure
                raise RankFailedError(
                    f"{call} in group {self.name!r} cannot complete: "
                    f"rank {rank} failed with {type(error).__name__}: {error}"
                )
            gone = self.departed.intersection(missing())
            if gone:
                raise RankFailedError(
                    f"{call} in group {self.name!r} cannot complete: "
                    f"ranks {[self.members[r] for r in sorted(gone)]} have returned without taking part"
                )
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                return False
            if limit is not None and now >= limit:
                watch.look(call, [self.members[rank] for rank in missing()])
            ends = [end - now for end in (deadline, limit) if end is not None]
            self.world.changed.wait(min(ends) if ends else None)
        return True


def _deliver(src: int, data: Array, receive: _Receive) -> None:
    receive.source = src
    if (data.dtype, data.size) == (receive.buffer.dtype, receive.buffer.size):
        receive.buffer[...] = data
        return
    receive.error = ValueError(
        f"recv of {receive.buffer.size} x {receive.buffer.dtype}, tag {receive.tag}: "
        f"rank {src} sent {data.size} x {data.dtype}"
    )


def _fold(buffers: Sequence[Array], op: ReduceOp) -> Array:
    """The reduction of all buffers, in the tree by rank order."""
    with np.errstate(all="ignore"):  # overflow is a value (inf, wrap-around), as in MPI
        return tree.fold(buffers, UFUNCS[op])


def _cut(whole: Array, counts: Counts, n: int) -> list[Array]:
    """The ranks' parts of a flat array, as views."""
    parts = [whole.size // n] * n if counts is None else counts
    return np.split(whole, np.cumsum(parts[:-1]))


class LocalGroup(Group):
    """A group whose ranks are threads of this process. Made by `run_ranks`, `single`, `split`."""

    def __init__(self, room: _Room, rank: int) -> None:
        watch = room.world.watches[room.members[rank]]
        super().__init__(
            rank, len(room.members), room.name, room.members, watch.timeout, watch.recorder
        )
        self.room = room
        room.world.enter(self)

    def depart(self) -> None:
        """Leave the group once everything under way has ended. Does not wait for it."""
        if self._thread.idle:
            self.room.depart(self.rank)
        else:
            self._thread.put("depart", lambda: self.room.depart(self.rank))

    def _meet(self, call: Call, brought: Any, perform: Callable[[list[Any]], Any]) -> Any:
        return self.room.meet(self.rank, call, brought, perform)

    def _agree(self, call: Call) -> None:
        self._meet(call, None, lambda _: None)

    def _all_reduce(self, call: Call, buffer: Array, op: ReduceOp) -> None:
        def perform(buffers: list[Array]) -> None:
            total = _fold(buffers, op)
            for each in buffers:
                each[...] = total

        self._meet(call, buffer, perform)

    def _reduce(self, call: Call, buffer: Array, op: ReduceOp, root: int) -> None:
        def perform(buffers: list[Array]) -> None:
            buffers[root][...] = _fold(buffers, op)

        self._meet(call, buffer, perform)

    def _reduce_scatter(
        self, call: Call, out: Array, buffer: Array, op: ReduceOp, counts: Counts
    ) -> None:
        def perform(pairs: list[tuple[Array, Array]]) -> None:
            total = _fold([each for _, each in pairs], op)
            for (target, _), part in zip(pairs, _cut(total, counts, self.size)):
                target[...] = part

        self._meet(call, (out, buffer), perform)

    def _broadcast(self, call: Call, buffer: Array, root: int) -> None:
        def perform(buffers: list[Array]) -> None:
            for rank, each in enumerate(buffers):
                if rank != root:
                    each[...] = buffers[root]

        self._meet(call, buffer, perform)

    def _all_gather(self, call: Call, out: Array, buffer: Array, counts: Counts) -> None:
        def perform(pairs: list[tuple[Array, Array]]) -> None:
            whole = np.concatenate([each for _, each in pairs])
            for target, _ in pairs:
                target[...] = whole

        self._meet(call, (out, buffer), perform)

    def _all_to_all(
        self, call: Call, out: Array, buffer: Array, out_counts: Counts, in_counts: Counts
    ) -> None:
        def perform(ranks: list[tuple[Array, Array, Counts, Counts]]) -> None:
            if in_counts is not None:
                sent, expected = ([list(each[i] or ()) for each in ranks] for i in (3, 2))
                check.fits(call, self.members, sent, expected)
            parts = [_cut(source, ins, self.size) for _, source, _, ins in ranks]
            for r, (target, *_) in enumerate(ranks):
                target[...] = np.concatenate([part[r] for part in parts])

        self._meet(call, (out, buffer, out_counts, in_counts), perform)

    def _gather(
        self, call: Call, out: Array | None, buffer: Array, root: int, counts: Counts
    ) -> None:
        def perform(pairs: list[tuple[Array | None, Array]]) -> None:
            whole = pairs[root][0]
            assert whole is not None
            whole[...] = np.concatenate([each for _, each in pairs])

        self._meet(call, (out, buffer), perform)

    def _scatter(
        self, call: Call, out: Array, buffer: Array | None, root: int, counts: Counts
    ) -> None:
        def perform(pairs: list[tuple[Array, Array | None]]) -> None:
            whole = pairs[root][1]
            assert whole is not None
            for (target, _), part in zip(pairs, _cut(whole, counts, self.size)):
                target[...] = part

        self._meet(call, (out, buffer), perform)

    def _barrier(self, call: Call) -> None:
        self._agree(call)

    def _split(self, call: Call, color: int | None, key: int) -> Group | None:
        def perform(wishes: list[tuple[int | None, int]]) -> dict[int, _Room]:
            rooms: dict[int, _Room] = {}
            for chosen in sorted({c for c, _ in wishes if c is not None}):
                ranks = [r for r in range(self.size) if wishes[r][0] == chosen]
                ranks.sort(key=lambda r: (wishes[r][1], r))
                members = tuple(self.room.members[r] for r in ranks)
                name = f"{self.name}/{call.number}.{chosen}"
                rooms[chosen] = _Room(self.room.world, members, name)
            return rooms

        rooms = self._meet(call, (color, key), perform)
        if color is None:
            return None
        room = rooms[color]
        return LocalGroup(room, room.members.index(self.room.members[self.rank]))

    def _subset(self, ranks: Sequence[int], name: str) -> Group:
        members = tuple(self.room.members[rank] for rank in ranks)
        return LocalGroup(self.room.world.room(members, name), list(ranks).index(self.rank))

    def _isend(self, call: Call, buffer: Array, dst: int, tag: int) -> Work:
        self.room.post_send(self.rank, dst, tag, buffer)
        return PolledWork("send", lambda: True, lambda _: True, lambda: None)

    def _irecv(
        self, call: Call, buffer: Array, src: int | None, tag: int, store: Callable[[], None]
    ) -> Work:
        receive = _Receive(buffer, src, tag)
        self.room.post_receive(self.rank, receive)

        def finish() -> int | None:
            store()
            return receive.source

        return PolledWork(
            "recv",
            lambda: self.room.has_received(call, self.rank, receive, 0.0),
            lambda timeout: self.room.has_received(call, self.rank, receive, timeout),
            finish,
        )
