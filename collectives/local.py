"""Ranks as threads of one process: the oracle that every other backend is compared with.

A collective here is one function over all ranks' buffers. The ranks meet; whoever comes last runs
that function while the others wait, so their buffers are at rest. Reductions go in rank order and
are therefore the same bits every time.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from .buffers import UFUNCS, Array, ReduceOp, name_of
from .group import Group
from .work import MismatchError, PolledWork, RankFailedError, Work

T = TypeVar("T")

_current: contextvars.ContextVar[Group | None] = contextvars.ContextVar("rank", default=None)


def current() -> Group | None:
    """The calling thread's group of all ranks inside `run_ranks`, else None."""
    return _current.get()


def single() -> Group:
    """A group of one rank, without threads or MPI."""
    return LocalGroup(_Room(_World(), (0,), "world"), 0)


def run_ranks(n: int, fn: Callable[[Group], T], timeout: float | None = None) -> list[T]:
    """Call `fn(group)` in `n` threads, each a rank of one group, and return their results.

    Args:
        n: number of ranks, at least 1.
        fn: what each rank runs; tells ranks apart by `group.rank`.
        timeout: seconds after which ranks that wait for others are woken; None for no limit.

    Raises:
        Exception: the first one raised by any rank, with a note that names the rank. The other
            ranks are woken wherever they wait, with RankFailedError.
        TimeoutError: the ranks did not end in time.
    """
    if n < 1:
        raise ValueError(f"run_ranks needs at least 1 rank, got {n}")
    world = _World()
    room = _Room(world, tuple(range(n)), "world")
    results: list[Any] = [None] * n

    def run(rank: int) -> None:
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

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.failure: tuple[int, BaseException] | None = None
        self._groups: list[LocalGroup] = []

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


@dataclass(frozen=True)
class _Call:
    """What must be equal on all ranks."""

    name: str
    dtype: str = "-"
    elements: int = 0
    op: ReduceOp | None = None
    root: int | None = None

    def __str__(self) -> str:
        text = f"{self.name}({self.elements} x {self.dtype}"
        text += f", {self.op}" if self.op else ""
        return text + (")" if self.root is None else f", root {self.root})")


@dataclass
class _Meeting:
    """One collective: who has come, with what, and how it ended."""

    calls: dict[int, _Call] = field(default_factory=dict)
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
        self, rank: int, call: _Call, brought: Any, perform: Callable[[list[Any]], Any]
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
                    lambda: meeting.done,
                    lambda: [r for r in range(n) if r not in meeting.calls],
                    str(call),
                )
        if last:
            try:
                self._check_same(meeting.calls)
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

    def has_received(self, dst: int, receive: _Receive, timeout: float | None) -> bool:
        """Whether a posted receive has ended within `timeout` seconds; raises its error."""
        others = [r for r in range(len(self.members)) if r != dst]

        def senders() -> list[int]:
            if receive.src is not None:
                return [receive.src]
            return others if self.departed.issuperset(others) else []

        what = f"recv from {'any rank' if receive.src is None else f'rank {receive.src}'}"
        with self.world.changed:
            ended = self._wait(
                lambda: receive.source is not None, senders, f"{what}, tag {receive.tag}", timeout
            )
        if receive.error is not None:
            raise receive.error
        return ended

    def _wait(
        self,
        ready: Callable[[], bool],
        missing: Callable[[], list[int]],
        what: str,
        timeout: float | None = None,
    ) -> bool:
        """Wait (holding the lock) until `ready`; raise if it can never be, False if too late."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not ready():
            if self.world.failure is not None:
                rank, error = self.world.failure
                raise RankFailedError(
                    f"{what} in group {self.name!r} cannot complete: "
                    f"rank {rank} failed with {type(error).__name__}: {error}"
                )
            gone = self.departed.intersection(missing())
            if gone:
                raise RankFailedError(
                    f"{what} in group {self.name!r} cannot complete: "
                    f"ranks {sorted(gone)} have returned without taking part"
                )
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            self.world.changed.wait(left)
        return True

    def _check_same(self, calls: dict[int, _Call]) -> None:
        if len(set(calls.values())) > 1:
            each = "; ".join(f"rank {rank}: {calls[rank]}" for rank in sorted(calls))
            raise MismatchError(f"ranks of group {self.name!r} made different calls: {each}")


def _deliver(src: int, data: Array, receive: _Receive) -> None:
    receive.source = src
    if (data.dtype, data.size) == (receive.buffer.dtype, receive.buffer.size):
        receive.buffer[...] = data
        return
    receive.error = ValueError(
        f"recv of {receive.buffer.size} x {receive.buffer.dtype}, tag {receive.tag}: "
        f"rank {src} sent {data.size} x {data.dtype}"
    )


def _fold(buffers: list[Array], op: ReduceOp) -> Array:
    """The reduction of all buffers, in rank order."""
    total = buffers[0].copy()
    with np.errstate(all="ignore"):  # overflow is a value (inf, wrap-around), as in MPI
        for buffer in buffers[1:]:
            UFUNCS[op](total, buffer, out=total)
    return total


class LocalGroup(Group):
    """A group whose ranks are threads of this process. Made by `run_ranks`, `single`, `split`."""

    def __init__(self, room: _Room, rank: int) -> None:
        super().__init__(rank, len(room.members), room.name)
        self.room = room
        room.world.enter(self)

    def depart(self) -> None:
        """Leave the group once everything under way has ended. Does not wait for it."""
        busy = not self._thread.idle
        self._run("depart", lambda: self.room.depart(self.rank), async_op=busy)

    def _meet(self, call: _Call, brought: Any, perform: Callable[[list[Any]], Any]) -> Any:
        return self.room.meet(self.rank, call, brought, perform)

    def _all_reduce(self, buffer: Array, op: ReduceOp) -> None:
        def perform(buffers: list[Array]) -> None:
            total = _fold(buffers, op)
            for each in buffers:
                each[...] = total

        self._meet(_Call("all_reduce", name_of(buffer.dtype), buffer.size, op), buffer, perform)

    def _reduce(self, buffer: Array, op: ReduceOp, root: int) -> None:
        def perform(buffers: list[Array]) -> None:
            buffers[root][...] = _fold(buffers, op)

        self._meet(_Call("reduce", name_of(buffer.dtype), buffer.size, op, root), buffer, perform)

    def _reduce_scatter(self, out: Array, buffer: Array, op: ReduceOp) -> None:
        def perform(pairs: list[tuple[Array, Array]]) -> None:
            parts = _fold([each for _, each in pairs], op).reshape(self.size, -1)
            for (target, _), part in zip(pairs, parts):
                target[...] = part

        call = _Call("reduce_scatter", name_of(out.dtype), out.size, op)
        self._meet(call, (out, buffer), perform)

    def _broadcast(self, buffer: Array, root: int) -> None:
        def perform(buffers: list[Array]) -> None:
            for rank, each in enumerate(buffers):
                if rank != root:
                    each[...] = buffers[root]

        call = _Call("broadcast", name_of(buffer.dtype), buffer.size, root=root)
        self._meet(call, buffer, perform)

    def _all_gather(self, out: Array, buffer: Array) -> None:
        def perform(pairs: list[tuple[Array, Array]]) -> None:
            whole = np.concatenate([each for _, each in pairs])
            for target, _ in pairs:
                target[...] = whole

        self._meet(_Call("all_gather", name_of(out.dtype), buffer.size), (out, buffer), perform)

    def _all_to_all(self, out: Array, buffer: Array) -> None:
        def perform(pairs: list[tuple[Array, Array]]) -> None:
            parts = [each.reshape(self.size, -1) for _, each in pairs]
            for rank, (target, _) in enumerate(pairs):
                target[...] = np.concatenate([part[rank] for part in parts])

        self._meet(_Call("all_to_all", name_of(out.dtype), buffer.size), (out, buffer), perform)

    def _gather(self, out: Array | None, buffer: Array, root: int) -> None:
        def perform(pairs: list[tuple[Array | None, Array]]) -> None:
            whole = pairs[root][0]
            assert whole is not None
            whole[...] = np.concatenate([each for _, each in pairs])

        call = _Call("gather", name_of(buffer.dtype), buffer.size, root=root)
        self._meet(call, (out, buffer), perform)

    def _scatter(self, out: Array, buffer: Array | None, root: int) -> None:
        def perform(pairs: list[tuple[Array, Array | None]]) -> None:
            whole = pairs[root][1]
            assert whole is not None
            for (target, _), part in zip(pairs, whole.reshape(self.size, -1)):
                target[...] = part

        call = _Call("scatter", name_of(out.dtype), out.size, root=root)
        self._meet(call, (out, buffer), perform)

    def _barrier(self) -> None:
        self._meet(_Call("barrier"), None, lambda _: None)

    def _split(self, color: int | None, key: int) -> Group | None:
        def perform(wishes: list[tuple[int | None, int]]) -> dict[int, _Room]:
            rooms: dict[int, _Room] = {}
            for chosen in sorted({c for c, _ in wishes if c is not None}):
                ranks = [r for r in range(self.size) if wishes[r][0] == chosen]
                ranks.sort(key=lambda r: (wishes[r][1], r))
                members = tuple(self.room.members[r] for r in ranks)
                rooms[chosen] = _Room(self.room.world, members, f"{self.name}/{chosen}")
            return rooms

        rooms = self._meet(_Call("split"), (color, key), perform)
        if color is None:
            return None
        room = rooms[color]
        return LocalGroup(room, room.members.index(self.room.members[self.rank]))

    def _isend(self, buffer: Array, dst: int, tag: int) -> Work:
        self.room.post_send(self.rank, dst, tag, buffer)
        return PolledWork("send", lambda: True, lambda _: True, lambda: None)

    def _irecv(
        self, buffer: Array, src: int | None, tag: int, store: Callable[[], None]
    ) -> Work:
        receive = _Receive(buffer, src, tag)
        self.room.post_receive(self.rank, receive)

        def finish() -> int | None:
            store()
            return receive.source

        return PolledWork(
            "recv",
            lambda: self.room.has_received(self.rank, receive, 0.0),
            lambda timeout: self.room.has_received(self.rank, receive, timeout),
            finish,
        )
