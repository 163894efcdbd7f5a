"""Where a rank is and how it ended, as values that travel between ranks, and as sentences."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any

from .. import flight
from ..call import Call
from ..flight import Recorder

LEFT, FAILED, KILLED, UNREACHED = "left", "failed", "killed", "unreached"


@dataclass
class Ended:
    """How one rank's part in the job ended.

    Attributes:
        rank: of the job.
        how: LEFT (a clean end), FAILED (an exception or a status that is not 0), KILLED (its
            connection broke without a word), UNREACHED (it never came to the watch).
        text: the exception; "" where there is none.
        status: of the process, where known.
        reached: name of a group -> number of the last call that the rank began in it.
        cause: the rank whose end brought this one about; None if it ended by itself.
        order: the how many-th end in the job it is, from 0.
    """

    rank: int
    how: str
    text: str = ""
    status: int = 0
    reached: dict[str, int] = field(default_factory=dict)
    cause: int | None = None
    order: int = 0

    def as_message(self) -> dict[str, Any]:
        return {"kind": "ended", **asdict(self)}

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> Ended:
        cause = message.get("cause")
        reached = message.get("reached") or {}
        return cls(
            rank=int(message["rank"]),
            how=str(message["how"]),
            text=str(message.get("text", "")),
            status=int(message.get("status", 0)),
            reached={str(group): int(number) for group, number in reached.items()},
            cause=None if cause is None else int(cause),
            order=int(message.get("order", 0)),
        )

    def sentence(self, group: str = "") -> str:
        """What happened to the rank; `group` is what the reader waits in."""
        if self.how == LEFT:
            after = ""
            if group:
                number = self.reached.get(group, 0)
                after = f" after call {number} of group {group!r}" if number else f", never in {group!r}"
            return f"rank {self.rank} left the job with status {self.status}{after}"
        if self.how == FAILED:
            return f"rank {self.rank} failed: {self.text}"
        if self.how == UNREACHED:
            return f"rank {self.rank} never reached the job's watch: {self.text}"
        return (
            f"rank {self.rank} died without a word: killed by a signal, crashed, or called os._exit"
        )


@dataclass
class Report:
    """What a rank says when it is asked where it is.

    Attributes:
        rank, pid: of the rank.
        calls: its calls under way; see `_describe` for their keys.
        last: its last call that has ended, in the group asked about if there is one; else None.
        reached: number of the last call that it began in the group asked about; 0 if none.
        at: where its main thread is in the user's code, "train.py:30 in load_batch".
        stack: of the main thread, innermost last.
    """

    rank: int
    pid: int = 0
    calls: list[dict[str, Any]] = field(default_factory=list)
    last: dict[str, Any] | None = None
    reached: int = 0
    at: str = ""
    stack: list[str] = field(default_factory=list)


def report(recorder: Recorder, rank: int, group: str, thread: int | None = None) -> Report:
    """This rank's report. `thread`: the one that is the rank; None: the main thread."""
    ident = threading.main_thread().ident if thread is None else thread
    frame = sys._current_frames().get(ident or 0)
    inner = flight.innermost(frame)
    at = ""
    if inner is not None:
        code = inner.f_code
        at = f"{os.path.basename(code.co_filename)}:{inner.f_lineno} in {code.co_name}"
    now = time.perf_counter_ns()
    last = recorder.last.get(group)
    if last is None:
        last = max(list(recorder.last.values()), key=lambda call: call.ended, default=None)
    return Report(
        rank=rank,
        pid=os.getpid(),
        calls=[_describe(call, now, recorder) for call in list(recorder.under_way)],
        last=None if last is None else _describe(last, now, recorder),
        reached=recorder.furthest().get(group, 0),
        at=at,
        stack=flight.stack(frame),
    )


def _describe(call: Call, now: int, recorder: Recorder) -> dict[str, Any]:
    waits, missing = recorder.waiting.get(call.group, (None, ()))
    return {
        "text": str(call),
        "group": call.group,
        "number": call.number,
        "seconds": (now - (call.ended or call.started)) / 1e9,  # since it ended, or began
        "error": call.error,
        "waiting_for": [int(rank) for rank in missing] if waits is call else [],
    }


def report_from(message: Any) -> Report | None:
    """A Report that came as JSON; None for one that says nothing."""
    if not isinstance(message, dict):
        return None
    known = {name: message[name] for name in Report.__dataclass_fields__ if name in message}
    return Report(**known)


def calls_of(answer: Report | None) -> list[dict[str, Any]]:
    """The calls under way of a rank, and its last one if that has failed."""
    if answer is None:
        return []
    failed = answer.last is not None and answer.last["error"]
    return [*answer.calls, answer.last] if failed and answer.last else answer.calls


def whereabouts(call: Call, rank: int, answer: Report | None, silence: str) -> str:
    """One sentence part: why `call` waits for `rank`.

    Args:
        answer: its report; None if it did not answer.
        silence: why it did not answer.
    """
    if answer is None:
        return f"rank {rank} does not answer: {silence}"
    for other in answer.calls:
        if other["group"] == call.group and other["number"] == call.number:
            waits = f", waiting for {ranks(other['waiting_for'])}" if other["waiting_for"] else ""
            same = "the same call" if other["text"] == str(call) else f"{other['text']} instead"
            return f"rank {rank} has been in {same} for {other['seconds']:.1f} s{waits}"
    last = answer.last
    this = (call.group, call.number)
    if last is not None and last["error"] and (last["group"], last["number"]) == this:
        return f"rank {rank} gave the same call up, waiting for {ranks(last['waiting_for'])}"
    if answer.calls:
        other = answer.calls[-1]
        waits = f", waiting for {ranks(other['waiting_for'])}" if other["waiting_for"] else ""
        return (
            f"rank {rank} has not come; it has been in {other['text']} (call {other['number']} of group "
            f"{other['group']!r}) for {other['seconds']:.1f} s{waits}"
        )
    came = "has not come"
    if call.number and answer.reached >= call.number:
        went_on = answer.reached > call.number
        came = f"has gone on to call {answer.reached}" if went_on else "has done its part of this call"
    if answer.last is None:
        before = "it has made no call yet"
    else:
        how = "failed" if answer.last["error"] else "finished"
        before = f"its last call was {answer.last['text']}, {how} {answer.last['seconds']:.1f} s ago"
    return f"rank {rank} {came}; {before}; it is at {answer.at or 'no Python line'}"


def stack_text(answer: Report) -> str:
    """The stack of a rank, to stand below a sentence."""
    lines = "\n".join(f"  {line}" for line in answer.stack)
    return f"\nstack of rank {answer.rank} (innermost last):\n{lines}" if lines else ""


def process_state(pid: int) -> str:
    """Why a process of this node does not answer, from /proc; "" where that says nothing."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            state = file.read().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return f"its process {pid} has ended" if os.path.isdir("/proc/self") else ""
    except (OSError, IndexError):
        return ""
    if state in "Tt":
        return f"its process {pid} is stopped (SIGSTOP or a debugger); kill -CONT {pid} lets it go on"
    if state in "ZX":
        return f"its process {pid} has ended"
    return f"its process {pid} is alive (state {state}), but native code holds its interpreter"


def ranks(numbers: Iterable[int]) -> str:
    """ "rank 1", "ranks 1, 2 and 5"."""
    chosen = sorted(set(numbers))
    if not chosen:
        return "any rank"
    if len(chosen) == 1:
        return f"rank {chosen[0]}"
    return f"ranks {', '.join(map(str, chosen[:-1]))} and {chosen[-1]}"


def named(call: Call) -> str:
    """The call with its place in its group: how messages begin."""
    return f"{call} (call {call.number} of group {call.group!r})" if call.number else str(call)


def error_text(error: BaseException) -> str:
    """ "ValueError: boom at train.py:31": the exception and the innermost line of the user's code."""
    text = str(error)
    place = _raised_at(error.__traceback__)
    name = type(error).__name__
    return f"{name}{': ' + text if text else ''}{' at ' + place if place and place not in text else ''}"


def _raised_at(trace: TracebackType | None) -> str:
    place = ""
    while trace is not None:
        frame = trace.tb_frame
        if flight.is_users(frame) or not place:
            place = f"{os.path.basename(frame.f_code.co_filename)}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def culprit_of(error: BaseException | None) -> int | None:
    """The rank that an error, or what it was raised from, lays the blame on."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        rank = getattr(error, "culprit", None)
        if rank is not None:
            return int(rank)
        error = error.__cause__ or error.__context__
    return None


def root_of(rank: int, ended: Mapping[int, Ended]) -> Ended:
    """Follow the causes of a rank's end to the first one known."""
    here, seen = ended[rank], {rank}
    while here.cause is not None and here.cause in ended and here.cause not in seen:
        seen.add(here.cause)
        here = ended[here.cause]
    return here


def end_sentence(rank: int, ended: Mapping[int, Ended], group: str) -> str:
    """Why `rank` will not come, beginning with whoever is at the root of it."""
    mine, root = ended[rank], root_of(rank, ended)
    if root is mine:
        return mine.sentence(group)
    return f"{root.sentence(group)}; rank {rank}, which this rank waits for, ended because of that"


def first_ended(missing: Sequence[int], ended: Mapping[int, Ended]) -> Ended | None:
    """The earliest end among `missing`."""
    found = [ended[rank] for rank in missing if rank in ended]
    return min(found, key=lambda end: end.order, default=None)
