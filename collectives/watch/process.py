"""The control plane of a job: a missing, failed or dead rank becomes one sentence on every rank.

```
rank 0: hub thread ◄─┬─ rank 0's watch thread
                     ├─ rank 1's watch thread       one connection each, silent while all is well
                     └─ rank 2's watch thread
```

Every rank has a thread that sleeps in `select` until something comes: the news that a rank has ended,
or the question where this rank is, which it answers while the main thread computes. A connection that
ends without a goodbye means that its process has died.

While a rank waits for others it calls `look` each millisecond, which raises when waiting is in vain.
Inside a native call that nobody can interrupt (`blocked`), the watch thread ends the process instead.

The hub lives in rank 0, and says goodbye last: rank 0 lingers until all others have ended. If rank 0
dies, that is the news.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import json
import os
import queue
import select
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .. import failure
from ..call import Call
from ..flight import Recorder, last_words
from ..timeline import clock_offset
from ..work import CollectiveError
from . import report as wr
from .base import ANSWER, BaseWatch, GaveUp, NullWatch, end_of
from .blocked import GRACE, BlockedCalls, Inside
from .hub import Hub
from .link import BadFrame, Link, Message, connect, listen, node
from .local import LocalWatch
from .report import FAILED, KILLED, LEFT, Ended, Report

__all__ = ["BaseWatch", "Ended", "LocalWatch", "NullWatch", "Report", "Watch"]

LINGER = 60.0  # seconds that rank 0 stays for the others after its own end
TICK = 1.0  # seconds between looks at the clock for calls that cannot look themselves
QUICK = 150_000  # nanoseconds there and back, after which no better estimate is looked for
HEARD = 0.5  # seconds for the hub to confirm that it has heard how this rank ended
FOLLOW = 3.0  # seconds that a rank which fails because of another leaves that one to end the job
Exchange = Callable[[bytes], list[bytes]]

_live: weakref.WeakSet[Watch] = weakref.WeakSet()


class Watch(BaseWatch):
    """A rank's connection to the watch of its job. Made by `start`.

    Attributes:
        abort: ends all ranks of the job with an exit status; None where nothing can.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        recorder: Recorder,
        timeout: float | None,
        abort: Callable[[int], None] | None,
        nodes: list[Message],
    ) -> None:
        super().__init__(rank, size, recorder, timeout)
        self._nodes, self.abort = nodes, abort
        self._hub: Hub | None = None
        self._link: Link | None = None
        self._wake, self._woken = socket.socketpair()
        self._numbers = itertools.count(1)
        self._answers: dict[int, queue.SimpleQueue[Message]] = {}
        self._blocked = BlockedCalls(self)
        self._news = threading.Condition()
        self._heard = threading.Event()  # the hub has told the others how this rank ended
        self._said = self._closed = self._recorded = False
        self._owner = os.getpid()
        self._thread = threading.Thread(target=self._run, name="disttorch watch", daemon=True)

    @staticmethod
    def start(
        rank: int,
        size: int,
        exchange: Exchange,
        *,
        recorder: Recorder,
        secret: bytes,
        timeout: float | None = None,
        abort: Callable[[int], None] | None = None,
        host: str | None = None,
    ) -> BaseWatch:
        """Connect all ranks of a job; every rank calls it.

        Args:
            rank, size: of this process in the job.
            exchange: given this rank's bytes, returns all ranks' in order (an all-gather over
                whatever is there already); called twice.
            recorder: knows this rank's calls.
            secret: of the job; only who knows it is let in.
            timeout: seconds that a call may wait by default; None for no limit.
            abort: ends all ranks with an exit status, where something can; see `blocked`.
            host: address of this machine's interface that other nodes reach; None to try all.

        Raises:
            CollectiveError: this rank cannot reach rank 0, or rank 0 cannot listen.
        """
        recorder.arm(rank, size)
        if size == 1:
            return NullWatch(recorder, timeout)
        nodes = [json.loads(text) for text in exchange(json.dumps(node()).encode())]
        watch = Watch(rank, size, recorder, timeout, abort, nodes)
        try:
            watch._connect(exchange, secret, host)
        except (OSError, CollectiveError) as error:
            watch.close()
            text = f"rank {rank} of {size} cannot join the job's watch: {error}"
            raise CollectiveError(text) from error
        _live.add(watch)
        watch._thread.start()
        atexit.register(_at_exit, weakref.ref(watch))
        return watch

    def _connect(self, exchange: Exchange, secret: bytes, host: str | None) -> None:
        listener: socket.socket | None = None
        address: Message = {}
        if self.rank == 0:
            together = len({(each["node"], each["network"]) for each in self._nodes}) == 1
            try:
                listener, address = listen(together, host)
            except OSError as error:
                address = {"error": str(error)}
        address = json.loads(exchange(json.dumps(address).encode())[0])
        if "error" in address:
            raise CollectiveError(f"rank 0 cannot listen: {address['error']}")
        if self.rank:
            self._link = Link(connect(address, secret, self.rank))
            return
        mine, hubs = socket.socketpair()
        self._link = Link(mine)
        self._hub = Hub(self.size, listener, hubs, secret, address["purpose"], self._complain)

    # ---- to be told ----------------------------------------------------------------------------

    def left(self, status: int = 0) -> None:
        self._say(Ended(self.rank, LEFT, "", status, self.recorder.furthest()))

    def failed(self, error: BaseException | str, status: int = 1) -> None:
        self._say(end_of(self.rank, error, status, self.recorder))

    def _say(self, end: Ended) -> None:
        if not self._said and self._mine():
            self._said = end.how == FAILED  # a good end may still turn bad
            self._heard.clear()
            if self._send(end.as_message()):
                # Bytes not yet read can be lost when a process ends, and rank 0's hub ends with it.
                self._heard.wait(HEARD)

    def settle(self, error: BaseException | str | None = None, seconds: float = 0.5) -> None:
        """Give the other ranks time to say why they end, before this one ends them all by `abort`.

        A rank that fails because another failed waits longer: that one, or what started the ranks, ends
        the job, and with the status that fits.

        Args:
            error: what this rank fails by.
            seconds: to wait at most, where it failed by itself.
        """
        if self.abort is None or not self._mine():
            return
        culprit = wr.culprit_of(error) if isinstance(error, BaseException) else None
        follows = culprit not in (None, self.rank)
        if follows and culprit in self._ended and self._ended[culprit].how == LEFT:
            follows = False  # nobody else will end the job
        if failure.LAUNCHER in os.environ:
            follows = False  # it knows who was first, whoever ends the job
        others = set(range(self.size)) - {self.rank}
        deadline = time.monotonic() + (FOLLOW if follows else seconds)
        with self._news:
            while follows or not others <= self._ended.keys():
                left = deadline - time.monotonic()
                if left <= 0:
                    return
                self._news.wait(left)

    def close(self, linger: float = LINGER) -> None:
        """Stop watching. Rank 0 first waits until all others have ended.

        Args:
            linger: seconds to wait for them at most. Afterwards a rank's death is no longer seen by
                the others, and their waits end by their timeouts.
        """
        if self._closed or not self._mine():
            return
        if self._hub is not None and not self._said:
            self._hub.wait_for_the_others(linger)
        self._closed = True
        with contextlib.suppress(OSError):
            self._wake.send(b"x")
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(2.0)
        if self._hub is not None:
            self._hub.stop()
        self._drop_files()

    def _drop_files(self) -> None:
        if self._link is not None:
            self._link.close()
        self._wake.close()
        self._woken.close()

    def _mine(self) -> bool:
        return os.getpid() == self._owner

    # ---- questions -----------------------------------------------------------------------------

    def ask(
        self, ranks: Sequence[int], seconds: float = ANSWER, group: str = ""
    ) -> dict[int, Report | None]:
        found: dict[int, Report | None] = dict.fromkeys(ranks)
        others = [rank for rank in found if rank != self.rank and rank not in self._ended]
        if self.rank in found:
            found[self.rank] = wr.report(self.recorder, self.rank, group)
        for message in self._question({"what": "where", "group": group}, others, seconds):
            found[message["rank"]] = wr.report_from(message["report"])
        return found

    def clock_offsets(self, rounds: int = 64) -> dict[int, int]:
        """By how many nanoseconds each rank's `perf_counter_ns` is ahead of this rank's.

        The exchange with the shortest way there and back is taken, halved (D. Mills, RFC 5905). Its
        error is at most half of that way: some tens of microseconds inside a node.

        Args:
            rounds: exchanges with each rank at most; fewer where one was as quick as can be.

        Returns:
            rank -> offset; 0 for this rank; ranks that do not answer are left out.
        """
        offsets = {self.rank: 0}
        for rank in range(self.size):
            if rank != self.rank and rank not in self._ended:
                exchanges = self._clock_exchanges(rank, rounds)
                if exchanges:
                    offsets[rank] = clock_offset(exchanges)
        return offsets

    def _clock_exchanges(self, rank: int, rounds: int) -> list[tuple[int, int, int]]:
        """(sent, the other's clock, came) of up to `rounds` questions."""
        exchanges: list[tuple[int, int, int]] = []
        for number in range(rounds):
            sent = time.perf_counter_ns()
            for message in self._question({"what": "clock"}, [rank], ANSWER):
                if isinstance(message["report"], int):
                    exchanges.append((sent, message["report"], message["came"]))
            quickest = min((came - sent for sent, _, came in exchanges), default=None)
            if quickest is None or number >= 7 and quickest < QUICK:
                break
        return exchanges

    def _question(self, question: Message, ranks: Sequence[int], seconds: float) -> Iterator[Message]:
        """The answers as they come, at most for so many seconds."""
        if not ranks:
            return
        number = next(self._numbers)
        answers = self._answers[number] = queue.SimpleQueue()
        try:
            if not self._send({"kind": "ask", "id": number, "ranks": list(ranks), **question}):
                return
            deadline = time.monotonic() + seconds
            for _ in ranks:
                try:
                    yield answers.get(timeout=max(0.001, deadline - time.monotonic()))
                except queue.Empty:
                    return
        finally:
            del self._answers[number]

    def _silence(self, rank: int) -> str:
        if rank in self._ended:
            return self._ended[rank].sentence()
        for each in {rank, 0}:
            there, here = self._nodes[each], self._nodes[self.rank]
            if (there["node"], there["processes"]) == (here["node"], here["processes"]):
                said = wr.process_state(there["pid"])
                if said and (each == rank or "stopped" in said):
                    whose = "" if each == rank else "rank 0, which passes questions on, does not: "
                    return whose + said
        return super()._silence(rank)

    def _tell_gave_up(self, gave_up: GaveUp) -> None:
        self._send(
            {
                "kind": "gave up", "absent": list(gave_up.absent), "group": gave_up.group,
                "number": gave_up.number, "text": gave_up.text,
            }
        )  # fmt: skip

    def _send(self, message: Message) -> bool:
        return self._mine() and self._link is not None and self._link.send(message)

    # ---- calls that cannot look ----------------------------------------------------------------

    def blocked(self, call: Call, members: Sequence[int] = ()) -> Inside:
        """`with watch.blocked(call, members):` around a native call that nobody can interrupt.

        When a member fails or dies meanwhile, or leaves before it has made this call, or the time is
        up, the watch's thread says so on stderr, writes the flight record and ends the process.

        Args:
            members: the group's ranks in the job; () for those that the recorder knows, else all.

        Raises:
            RankFailedError: on entry: it is known already that the call cannot complete.
        """
        known = members or self.recorder.groups.get(call.group) or range(self.size)
        return Inside(self._blocked, call, known)

    # ---- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closed:
                self._turn()
        except Exception as error:
            if self._closed or not self._mine():
                return
            self._complain(f"the watch of this rank broke: {type(error).__name__}: {error}")
            self._lose_hub(died=False)

    def _turn(self) -> None:
        link = self._link
        assert link is not None
        wait = GRACE / 2 if self._blocked.doomed else TICK
        files = [self._woken, link.socket] if link.open else [self._woken]
        ready, _, _ = select.select(files, [], [], wait)
        if self._closed:
            return
        if self._woken in ready:
            self._woken.recv(4096)
        if link.socket in ready:
            try:
                messages = link.receive()
            except BadFrame as error:
                self._complain(f"the watch of this rank heard no sense from rank 0: {error}")
                messages = None
            if messages is None:
                self._lose_hub(died=True)
            for message in messages or ():
                self._hear(message)
        if self._blocked:
            self._blocked.check()

    def _hear(self, message: Message) -> None:
        kind = message["kind"]
        if kind == "ask":
            answer: Any = time.perf_counter_ns()
            if message["what"] == "where":
                answer = vars(wr.report(self.recorder, self.rank, message["group"]))
            back = {"kind": "report", "id": message["id"], "to": message["from"], "report": answer}
            self._send(back)
        elif kind == "report":
            message["came"] = time.perf_counter_ns()
            waiting = self._answers.get(message["id"])
            if waiting is not None:
                waiting.put(message)
        elif kind == "heard":
            self._heard.set()
        elif kind == "ended":
            self._learn(Ended.from_message(message))
        elif kind == "gave up":
            by, absent = message["rank"], tuple(message["absent"])
            self._given_up.append(
                GaveUp(by, absent, message["group"], message["number"], message["text"])
            )
            self.trouble = True
            if self.rank in absent:
                self._record(self._why(self._given_up[-1]))
        elif kind == "closing":
            self._lose_hub(died=False)

    def _learn(self, end: Ended) -> None:
        with self._news:
            self._ended[end.rank] = end
            self.trouble = True
            self._news.notify_all()
        if end.how != LEFT:
            self._record(end.sentence())

    def _record(self, reason: str) -> None:
        """Write the flight record at the first bad news: this rank may be killed before it looks."""
        if not self._recorded and not self._said and self._mine():
            self._recorded = True
            last_words(self.recorder, reason)

    def _lose_hub(self, died: bool) -> None:
        """`died`: the connection broke; otherwise rank 0 has said that it stops watching."""
        link = self._link
        assert link is not None
        link.open = False
        self._heard.set()
        if died and self.rank:
            if 0 not in self._ended:
                first = min(
                    (end for end in self._ended.values() if end.how != LEFT),
                    key=lambda end: end.order,
                    default=None,
                )
                cause = None if first is None else first.rank
                self._learn(Ended(0, KILLED, cause=cause, order=len(self._ended)))
            self._orphaned = self._ended[0].how != LEFT
        with self._news:
            self._news.notify_all()

    def _complain(self, text: str) -> None:
        failure.report(
            self.rank, f"{text}; from now on another rank's end shows only as a timeout: report this"
        )


# ---- the end of the process, and its children ---------------------------------------------------


def _at_exit(reference: weakref.ref[Watch]) -> None:
    """Say goodbye for a rank whose end nobody else looks after."""
    watch = reference()
    if watch is None or watch.managed or not watch._mine():
        return
    # Set by the interpreter when an exception has ended the program.
    error = getattr(sys, "last_value", None)
    if error is not None and not sys.flags.interactive:
        watch.failed(error)
    else:
        watch.left()
    watch.close()


def _in_child() -> None:
    """A forked child is no rank: it must not hold the connections open, or a death goes unseen."""
    for watch in list(_live):
        watch._closed, watch.trouble = True, False
        if watch._hub is not None:
            watch._hub.drop_files()
        watch._drop_files()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
