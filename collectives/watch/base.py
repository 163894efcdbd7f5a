"""What every watch does: decide whether a wait is in vain, and say why in one sentence."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from ..call import Call
from ..flight import Recorder, last_words
from ..work import CollectiveTimeout, RankFailedError
from . import report as wr
from .report import Ended, Report

_clock = time.perf_counter_ns
ANSWER = 1.0  # seconds that a rank may take to say where it is


@dataclass(frozen=True)
class GaveUp:
    """Rank `by` has stopped waiting in call `number` of `group`, where `absent` have not come."""

    by: int
    absent: tuple[int, ...]
    group: str
    number: int
    text: str


class BaseWatch(ABC):
    """Knows how the other ranks of the job are.

    Attributes:
        rank, size: of this process in the job.
        recorder: the flight recorder that tells where this rank is.
        timeout: seconds that a call may wait when it does not say so itself; None for no limit.
        trouble: whether anything is known that may concern a call; False costs nothing to test.
        managed: whether `failure` tells the others how this process ends.
    """

    def __init__(self, rank: int, size: int, recorder: Recorder, timeout: float | None = None) -> None:
        self.rank, self.size, self.recorder, self.timeout = rank, size, recorder, timeout
        self.trouble = self.managed = False
        self._ended: dict[int, Ended] = {}
        self._given_up: list[GaveUp] = []
        self._orphaned = False  # rank 0 has died, and the hub of the watch with it

    # ---- while a call waits --------------------------------------------------------------------

    def look(self, call: Call | None, missing: Sequence[int], timeout: float | None = None) -> None:
        """Return if waiting for `missing` may still come to a good end; called each millisecond.

        After it has raised RankFailedError, the waiter looks once more whether what it waits for is
        there: the rank may have left after doing its part.

        Args:
            call: what this rank is doing.
            missing: ranks in the job that it waits for; empty: any one of the group.
            timeout: seconds since `call.started`; None for the call's own, then for the watch's.

        Raises:
            RankFailedError: one of `missing` has left, failed or died. Its `culprit` is the rank
                whose end came first and led to this one.
            CollectiveTimeout: the time is up; says where each missing rank is.
        """
        if call is None:
            if self.trouble:
                self._raise_if_in_vain(call, missing)
            return
        call = call.whole
        self.recorder.waiting[call.group] = (call, missing)
        if self.trouble:
            self._raise_if_in_vain(call, missing)
        limit = timeout if timeout is not None else call.timeout
        if limit is None:
            limit = self.timeout
        if limit is not None and _clock() - call.started > limit * 1e9:
            self._raise_timeout(call, missing, limit)

    def enter(self, call: Call, members: Sequence[int] = ()) -> None:
        """Refuse a call in a group in which somebody has given up; only worth asking in `trouble`.

        Args:
            call: about to begin.
            members: the group's ranks in the job; () for all.

        Raises:
            RankFailedError: the ranks of this group no longer make their calls together.
        """
        for gave_up in self._given_up:
            if gave_up.group == call.group and (not members or gave_up.by in members):
                raise self._failure(
                    f"{wr.named(call)} cannot be made on rank {self.rank}: {self._why(gave_up)}",
                    gave_up.by,
                )

    def blocked(self, call: Call, members: Sequence[int] = ()) -> AbstractContextManager[None]:
        """`with watch.blocked(call):` around a native call that nobody can interrupt; see `Watch`.

        Args:
            members: the group's ranks in the job; () for those that the recorder knows.
        """
        return nullcontext()

    # ---- to be told and asked ------------------------------------------------------------------

    @abstractmethod
    def left(self, status: int = 0) -> None:
        """This rank ends well: told to all others."""

    @abstractmethod
    def failed(self, error: BaseException | str, status: int = 1) -> None:
        """This rank ends by an error: told to all others. The first call counts."""

    @abstractmethod
    def ask(
        self, ranks: Sequence[int], seconds: float = ANSWER, group: str = ""
    ) -> dict[int, Report | None]:
        """Where the ranks are.

        Args:
            ranks: of the job.
            seconds: to wait for answers.
            group: whose last call is wanted.

        Returns:
            None for a rank that did not answer.
        """

    def settle(self, error: BaseException | str | None = None, seconds: float = 0.5) -> None:
        """Give the other ranks time to say why they end, before this one ends them all.

        Args:
            error: what this rank fails by.
            seconds: to wait at most.
        """
        return None

    @abstractmethod
    def close(self) -> None:
        """Stop watching."""

    @abstractmethod
    def _tell_gave_up(self, gave_up: GaveUp) -> None:
        """Let the others know."""

    def _silence(self, rank: int) -> str:
        """Why a rank does not answer."""
        return "it is stopped, or native code holds its interpreter"

    # ---- decisions -----------------------------------------------------------------------------

    def _waited_for(self, call: Call | None, missing: Sequence[int]) -> list[int]:
        if missing:
            return [rank for rank in missing if rank != self.rank]
        members = range(self.size) if call is None else self.recorder.groups.get(call.group, ())
        return [rank for rank in members or range(self.size) if rank != self.rank]

    def _in_vain(self, call: Call | None, missing: Sequence[int]) -> tuple[str, int] | None:
        """Why waiting is in vain, and whose fault it is; None if it is not."""
        awaited = self._waited_for(call, missing)
        group = "" if call is None else call.group
        for gave_up in self._given_up:
            if gave_up.by in awaited and gave_up.group == group:
                return self._why(gave_up), gave_up.by
        end = wr.first_ended(awaited, self._ended)
        if end is not None and not missing and end.how == wr.LEFT:
            # Any one would do: those who left do not matter as long as somebody is there.
            if not all(rank in self._ended for rank in awaited):
                end = None
        if end is not None:
            return wr.end_sentence(end.rank, self._ended, group), wr.root_of(end.rank, self._ended).rank
        if self._orphaned and awaited:
            first = min(self._ended.values(), key=lambda one: one.order)
            return f"{first.sentence(group)}, and the job cannot go on without rank 0", first.rank
        return None

    def _why(self, gave_up: GaveUp) -> str:
        return (
            f"rank {gave_up.by} gave up waiting for {wr.ranks(gave_up.absent)} in call {gave_up.number} "
            f"of this group ({gave_up.text})"
        )

    def _raise_if_in_vain(self, call: Call | None, missing: Sequence[int]) -> None:
        found = self._in_vain(call, missing)
        if found is None:
            return
        if call is not None and call.number:
            for gave_up in self._given_up:
                same = (gave_up.group, gave_up.number) == (call.group, call.number)
                if same and gave_up.by == found[1] and self.rank not in gave_up.absent:
                    # Not somebody else's failure: the same absence, which another noticed first.
                    text = self._in_vain_text(call, found[0])
                    last_words(self.recorder, text)
                    raise CollectiveTimeout(text, gave_up.absent)
        raise self._failure(self._in_vain_text(call, found[0]), found[1])

    def _in_vain_text(self, call: Call | None, why: str) -> str:
        what = "what this rank waits for" if call is None else wr.named(call)
        return f"{what} cannot complete on rank {self.rank}: {why}"

    def _failure(self, text: str, culprit: int) -> RankFailedError:
        last_words(self.recorder, text)
        error = RankFailedError(text)
        error.culprit = culprit
        return error

    # ---- time is up ----------------------------------------------------------------------------

    def _raise_timeout(self, call: Call, missing: Sequence[int], limit: float) -> None:
        text, absent = self._timeout_text(call, self._waited_for(call, missing), limit)
        last_words(self.recorder, text)
        raise CollectiveTimeout(text, absent)

    def _timeout_text(
        self, call: Call, awaited: Sequence[int], limit: float
    ) -> tuple[str, list[int]]:
        """Where everybody is that the call waits for, and who has not come; tells the others that
        this rank has given up."""
        answers = self._follow(call, awaited)
        absent = self._absent(call, awaited, answers)
        parts = [wr.whereabouts(call, rank, answers[rank], self._silence(rank)) for rank in awaited]
        # Those on whom the awaited ones wait in turn: who waits for nobody is at the root.
        further = [rank for rank in answers if rank not in awaited and rank != self.rank]
        for rank in further:
            parts.append(wr.whereabouts(call, rank, answers[rank], self._silence(rank)))
        text = f"{wr.named(call)} timed out after {limit:g} s on rank {self.rank}: {'; '.join(parts)}"
        if call.number:  # not a message between two: the group's ranks are no longer in step
            gave_up = GaveUp(self.rank, tuple(absent), call.group, call.number, text)
            self._given_up.append(gave_up)
            self.trouble = True
            self._tell_gave_up(gave_up)
        stacks = [wr.stack_text(answer) for answer in answers.values() if answer is not None]
        return text + "".join(stacks), absent

    def _absent(
        self, call: Call, awaited: Sequence[int], answers: dict[int, Report | None]
    ) -> list[int]:
        """The ranks at the root: awaited ones that are in this very call wait for others in turn."""
        found: list[int] = []
        seen: set[int] = {self.rank}
        ask = list(awaited)
        while ask:
            rank = ask.pop(0)
            if rank in seen:
                continue
            seen.add(rank)
            further = [
                waited
                for other in wr.calls_of(answers.get(rank))
                if (other["group"], other["number"]) == (call.group, call.number)
                for waited in other["waiting_for"]
            ]
            further += [
                waited
                for gave_up in self._given_up
                if (gave_up.by, gave_up.group, gave_up.number) == (rank, call.group, call.number)
                for waited in gave_up.absent
            ]
            if further:
                ask += further
            else:
                found.append(rank)
        return sorted(found or awaited)

    def _follow(self, call: Call, awaited: Sequence[int]) -> dict[int, Report | None]:
        """Reports of the awaited ranks, of those they wait for, and so on."""
        answers: dict[int, Report | None] = {}
        ask = list(awaited)
        deadline = time.monotonic() + 2 * ANSWER
        while ask and time.monotonic() < deadline:
            answers.update(self.ask(ask, min(ANSWER, deadline - time.monotonic()), call.group))
            waited = {
                rank
                for answer in answers.values()
                for other in wr.calls_of(answer)
                for rank in other["waiting_for"]
            }
            ask = sorted(waited - answers.keys() - {self.rank})
        return {rank: answers.get(rank) for rank in [*awaited, *answers]}


class NullWatch(BaseWatch):
    """For a job of one rank: nobody can be missing, but a wait for nobody still has its limit."""

    def __init__(self, recorder: Recorder, timeout: float | None = None) -> None:
        super().__init__(0, 1, recorder, timeout)

    def left(self, status: int = 0) -> None:
        pass

    def failed(self, error: BaseException | str, status: int = 1) -> None:
        pass

    def ask(
        self, ranks: Sequence[int], seconds: float = ANSWER, group: str = ""
    ) -> dict[int, Report | None]:
        return {rank: wr.report(self.recorder, rank, group) if rank == 0 else None for rank in ranks}

    def close(self) -> None:
        pass

    def _tell_gave_up(self, gave_up: GaveUp) -> None:
        pass


def end_of(rank: int, error: BaseException | str, status: int, recorder: Recorder) -> Ended:
    """The end of this rank by an error, for the others."""
    text = error if isinstance(error, str) else wr.error_text(error)
    cause = None if isinstance(error, str) else wr.culprit_of(error)
    if cause == rank:
        cause = None
    return Ended(rank, wr.FAILED, text, status, recorder.furthest(), cause)

