"""What a rank remembers of its calls."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import sys
import sysconfig
import tempfile
import threading
import time
from collections import deque
from collections.abc import Sequence
from types import FrameType
from typing import Any

from ..call import _OUR_FOLDERS, Call

FORMAT = "disttorch flight record 1"
DIRECTORY = "DISTTORCH_FLIGHT_DIR"
CAPACITY = "DISTTORCH_FLIGHT_CALLS"
_clock = time.perf_counter_ns


class Recorder:
    """The last calls of one rank.

    Attributes:
        rank, size: of this process in the job; -1 and 0 before it is known.
        groups: name of a group -> the ranks in the job of its members.
        last: name of a group -> its last call that has ended, well or not.
        under_way: the calls that have begun and not ended, oldest first (the values mean nothing).
        waiting: name of a group -> its call that last had to wait, and the ranks it waited for.
        directory: where `dump` writes; "" for nowhere. From DISTTORCH_FLIGHT_DIR.

    Args:
        capacity: how many calls are remembered; calls under way are never forgotten.
    """

    def __init__(self, capacity: int = 256) -> None:
        if capacity < 1:
            raise ValueError(f"a flight recorder must hold at least 1 call, got {capacity}")
        self.rank, self.size = -1, 0
        self.groups: dict[str, tuple[int, ...]] = {}
        self.last: dict[str, Call] = {}
        self.under_way: dict[Call, None] = {}
        self.waiting: dict[str, tuple[Call, Sequence[int]]] = {}
        self.directory = os.environ.get(DIRECTORY, "")
        self.reasons: list[str] = []
        self._ring: deque[Call] = deque(maxlen=capacity)

    # Both change containers by one bytecode each, so threads need no lock.

    def begin(self, call: Call) -> None:
        """`call` begins; its `group` and `number` are set."""
        self._ring.append(call)
        self.under_way[call] = None

    def end(self, call: Call, error: BaseException | str | None = None) -> None:
        """`call` has ended, with `error` if not well."""
        call.ended = _clock()
        if error is not None:
            call.error = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        self.under_way.pop(call, None)
        if call.number:  # a message between two ranks has none
            self.last[call.group] = call

    def calls(self) -> list[Call]:
        """The remembered calls, oldest first."""
        kept = list(self._ring)
        forgotten = set(self.under_way).difference(kept)
        return sorted(forgotten, key=lambda call: call.started) + kept

    def furthest(self) -> dict[str, int]:
        """Name of a group -> number of the last call that this rank has begun in it."""
        reached = {group: call.number for group, call in list(self.last.items())}
        for call in list(self.under_way):
            reached[call.group] = max(call.number, reached.get(call.group, 0))
        return reached

    def snapshot(self, with_stacks: bool = False) -> dict[str, Any]:
        """Everything as values that JSON knows.

        Returns:
            "rank", "size", "host", "pid", "groups"; "clock_ns" (of `time.perf_counter_ns`, which all
            times of calls are in) and "wall_ns" (nanoseconds since 1970) of the same moment;
            "reasons" for which it was written; "calls": what `Call.as_dict` says, with "state"
            ("done", "under way" or "failed") and, where it waits or has waited in vain, "waiting_for"
            (ranks in the job); "reached": name of a group -> number of its last call;
            with stacks: "stacks", name of a thread -> its frames, innermost last, and "ours", the
            folders whose frames are not the user's.
        """
        waiting = dict(self.waiting)
        calls = []
        for call in self.calls():
            entry = call.as_dict()
            entry["state"] = "failed" if call.error else "done" if call.ended else "under way"
            entry["site"] = call.site
            waits, missing = waiting.get(call.group, (None, ()))
            if waits is call and entry["state"] != "done":
                entry["waiting_for"] = list(missing)
            calls.append(entry)
        record: dict[str, Any] = {
            "format": FORMAT,
            "rank": self.rank,
            "size": self.size,
            "host": platform.node(),
            "pid": os.getpid(),
            "clock_ns": _clock(),
            "wall_ns": time.time_ns(),
            "reasons": list(self.reasons),
            "groups": {name: list(members) for name, members in list(self.groups.items())},
            "reached": self.furthest(),
            "calls": calls,
        }
        if with_stacks:
            record["stacks"] = stacks()
            record["ours"] = list(_OUR_FOLDERS)
        return record

    def dump(
        self,
        directory: str | os.PathLike[str] = "",
        reason: str = "asked for",
        error: BaseException | None = None,
    ) -> str:
        """Write `rank<R>.json`; a reader sees the old file or the whole new one.

        Args:
            directory: made if it is not there; "" for `self.directory`.
            reason: joins those of earlier dumps, unless one of them says the same.
            error: what this thread ends by: the record shows where it was raised as this thread's stack.

        Returns:
            The file's path; "" where no directory is known.

        Raises:
            OSError: it cannot be written.
        """
        folder = os.fspath(directory) or self.directory
        if not folder:
            return ""
        if not any(known in reason for known in self.reasons):
            self.reasons.append(reason)
        record = self.snapshot(with_stacks=True)
        if error is not None:
            record["stacks"][threading.current_thread().name] = raised_in(error)
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, f"rank{max(self.rank, 0)}.json")
        handle, temporary = tempfile.mkstemp(prefix=".rank", suffix=".tmp", dir=folder)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(record, file, indent=1)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        return path

    def arm(self, rank: int, size: int) -> None:
        """Say which rank this is, and write the record when SIGUSR2 comes.

        The signal is taken only where a directory is known and nobody else has a handler for it. The
        handler runs in the main thread, between two bytecodes: not inside a blocking native call.
        """
        self.rank, self.size = rank, size
        mine = threading.current_thread() is threading.main_thread()
        if not self.directory or not mine or not hasattr(signal, "SIGUSR2"):
            return
        if signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL:
            signal.signal(signal.SIGUSR2, lambda *_: last_words(self, "SIGUSR2"))


_process: Recorder | None = None


def recorder() -> Recorder:
    """This process's recorder. DISTTORCH_FLIGHT_CALLS says how many calls it holds (256)."""
    global _process
    if _process is None:
        text = os.environ.get(CAPACITY, "256")
        if not text.isdigit() or int(text) < 1:
            raise ValueError(f"{CAPACITY}={text}: set it to the number of calls to remember, at least 1")
        _process = Recorder(int(text))
    return _process


def last_words(record: Recorder, reason: str, error: BaseException | None = None) -> None:
    """Dump on the way out: a record that cannot be written must not hide why it was to be written."""
    try:
        record.dump(reason=reason, error=error)
    except OSError as trouble:
        sys.stderr.write(
            f"[rank {record.rank}] the flight record cannot be written: {trouble}; set {DIRECTORY} to "
            "a directory that can\n"
        )


def stacks() -> dict[str, list[str]]:
    """The Python stacks of all threads of this process: name -> frames, innermost last."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    found: dict[str, list[str]] = {}
    for ident, frame in sys._current_frames().items():
        name = names.get(ident, f"thread {ident}")
        found[name if name not in found else f"{name} ({ident})"] = stack(frame)
    return found


def stack(frame: FrameType | None, limit: int = 40) -> list[str]:
    """The frames down to `frame` as "path:line in function", innermost last; without this recorder's."""
    lines: list[str] = []
    while frame is not None and len(lines) < limit:
        code = frame.f_code
        if code.co_filename != __file__:
            lines.append(f"{code.co_filename}:{frame.f_lineno} in {code.co_name}")
        frame = frame.f_back
    while len(lines) > 1 and _STARTER in lines[-1]:
        lines.pop()
    return lines[::-1]


def raised_in(error: BaseException) -> list[str]:
    """The frames through which `error` came, as `stack` has them."""
    lines, trace = [], error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        lines.append(f"{code.co_filename}:{trace.tb_lineno} in {code.co_name}")
        trace = trace.tb_next
    return lines


# Below the frames of every rank that our launcher started are those of its own.
_STARTER = os.path.join("launcher", "child.py:")
_NOT_THE_USERS = tuple(
    path + os.sep
    for path in {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    if path
) + ("<frozen",)


def is_users(frame: FrameType) -> bool:
    """Whether the frame runs the user's own code: not ours, not a library's."""
    path = frame.f_code.co_filename
    return not path.startswith(_NOT_THE_USERS) and not path.startswith(tuple(_OUR_FOLDERS))


def innermost(frame: FrameType | None) -> FrameType | None:
    """The innermost frame of the user's own code; the innermost of all if there is none."""
    first = frame
    while frame is not None:
        if is_users(frame):
            return frame
        frame = frame.f_back
    return first
