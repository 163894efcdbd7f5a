"""The handle of a call under way, as PyTorch shows it."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Callable

import collectives


class Work:
    """One call under way; the tensors given to it may not be read or changed before `wait`.

    Args:
        parts: the transport's handles; all must end.
        finish: run once, after all parts have succeeded (brings results into the tensors).
        timeout: seconds that `wait()` without an argument may take; None for no limit.
    """

    def __init__(
        self,
        parts: list[collectives.Work],
        finish: Callable[[], None] | None = None,
        timeout: float | None = None,
    ) -> None:
        self._parts = parts
        self._finish = finish
        self._timeout = timeout
        self._lock = threading.Lock()

    def wait(self, timeout: datetime.timedelta | None = None) -> bool:
        """Block until the call is complete and its results are in the tensors; returns True.

        Raises:
            TimeoutError: not complete in time; it stays under way and may be waited for again.
            Exception: what the call itself raised, each time.
        """
        seconds = self._timeout if timeout is None else timeout.total_seconds()
        for part in self._parts:
            part.wait(seconds)
        self._bring_in_results()
        return True

    def is_completed(self) -> bool:
        """Whether the call has ended, well or with an exception. Does not block."""
        if not all(part.is_completed() for part in self._parts):
            return False
        if self.exception() is None:
            self._bring_in_results()
        return True

    def is_success(self) -> bool:
        """Whether the call has ended without an exception."""
        return self.is_completed() and self.exception() is None

    def exception(self) -> BaseException | None:
        """What the call raised; None if it succeeded or is still under way."""
        return next((e for e in (part.exception() for part in self._parts) if e is not None), None)

    def source_rank(self) -> int:
        """The group rank that a completed receive came from; RuntimeError for other calls."""
        source = self._parts[0].source if len(self._parts) == 1 else None
        if source is None:
            raise RuntimeError("source_rank() is for receives that have completed")
        return source

    def _bring_in_results(self) -> None:
        with self._lock:
            finish, self._finish = self._finish, None
            if finish is not None:
                finish()
