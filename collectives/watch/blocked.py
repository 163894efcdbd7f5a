"""Native calls that nobody can interrupt: the watch's thread looks in place of the one inside.

When it learns that such a call can never complete, it prints the sentence, writes the flight record and
ends the process: there is no other way out of the call.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .. import failure
from ..call import Call
from ..flight import last_words
from ..work import CollectiveError
from . import report as wr

if TYPE_CHECKING:
    from .process import Watch

GRACE = 0.25  # seconds that a call may still take after news that it cannot complete


class BlockedCalls:
    """The native calls that this process is inside of."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._members: dict[Call, Sequence[int]] = {}
        self._doomed: dict[Call, float] = {}  # since when
        self._ending: set[Call] = set()

    def __bool__(self) -> bool:
        return bool(self._members)

    @property
    def doomed(self) -> bool:
        """Whether one of them can no longer complete, and is given its last moments."""
        return bool(self._doomed)

    def enter(self, call: Call, members: Sequence[int]) -> None:
        if self._watch.trouble:
            awaited = [rank for rank in members if self._must_come(rank, call)]
            if awaited:
                self._watch._raise_if_in_vain(call, awaited)
        self._members[call] = members

    def leave(self, call: Call) -> None:
        self._members.pop(call, None)
        if self._doomed:
            self._doomed.pop(call, None)
        self._ending.discard(call)

    def check(self) -> None:
        """Called by the watch's thread at each piece of news, and now and then."""
        watch = self._watch
        for call, members in list(self._members.items()):
            if call in self._ending:
                continue
            awaited = [rank for rank in members if self._must_come(rank, call)]
            found = watch._in_vain(call, awaited) if watch.trouble and awaited else None
            if found is not None:
                since = self._doomed.setdefault(call, time.monotonic())
                if time.monotonic() - since > GRACE:
                    self._begin(self._end, call, watch._in_vain_text(call, found[0]), found[1])
                continue
            limit = watch.timeout if call.timeout is None else call.timeout
            if limit is not None and time.perf_counter_ns() - call.started > limit * 1e9:
                self._begin(self._end_late, call, limit)

    def _must_come(self, rank: int, call: Call) -> bool:
        """Whether the end of `rank` makes `call` hang: who left after making it does not."""
        end = self._watch._ended.get(rank)
        return rank != self._watch.rank and not (
            end is not None and end.how == wr.LEFT and end.reached.get(call.group, 0) >= call.number
        )

    def _begin(self, work: Callable[..., None], call: Call, *arguments: Any) -> None:
        """In a thread of its own: it waits for what the watch's thread hears."""
        self._ending.add(call)
        threading.Thread(
            target=work, args=(call, *arguments), name="disttorch watch end", daemon=True
        ).start()

    def _end(self, call: Call, text: str, culprit: int | None) -> None:
        watch = self._watch
        if self._members.pop(call, None) is None:
            return  # it completed after all
        failure.report(watch.rank, text)
        last_words(watch.recorder, text)
        error = CollectiveError(text)
        error.culprit = culprit  # type: ignore[attr-defined]
        watch.failed(error)
        watch.settle(error)
        failure.leave(1, watch.abort)

    def _end_late(self, call: Call, limit: float) -> None:
        watch = self._watch
        awaited = [rank for rank in self._members.get(call, ()) if rank != watch.rank]
        answers = watch.ask(awaited, group=call.group)
        # A rank that is in this very call waits as this one does.
        absent = [
            rank
            for rank, answer in answers.items()
            if not any(
                (other["group"], other["number"]) == (call.group, call.number)
                for other in wr.calls_of(answer)
            )
        ]
        self._end(call, watch._timeout_text(call, absent or awaited, limit)[0], None)


class Inside:
    """The context of `Watch.blocked`: a class, since a generator costs several times as much."""

    __slots__ = ("_call", "_calls", "_members")

    def __init__(self, calls: BlockedCalls, call: Call, members: Sequence[int]) -> None:
        self._calls, self._call, self._members = calls, call, members

    def __enter__(self) -> None:
        self._calls.enter(self._call, self._members)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._calls.leave(self._call)
