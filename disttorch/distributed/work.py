"""The handle of a call under way, as PyTorch shows it."""

from __future__ import annotations

import contextvars
import datetime
import threading
from collections.abc import Callable, Sequence
from typing import Any

import collectives

from ..futures import Future
from ..tensor import Tensor


class Work:
    """One call under way; the tensors given to it may not be read or changed before `wait`.

    Args:
        parts: the transport's handles; all must end.
        finish: run once, after all parts have succeeded (brings results into the tensors).
        outputs: the tensors that hold the result, for `result` and `get_future`.
        members: the job's rank of each rank of the group, for `source_rank`.
    """

    def __init__(
        self,
        parts: Sequence[collectives.Work],
        finish: Callable[[], None] | None = None,
        outputs: Sequence[Tensor] = (),
    ) -> None:
        self._parts = list(parts)
        self._finish = finish
        self._outputs = list(outputs)
        self._lock = threading.Lock()
        self._future: _WorkFuture | None = None

    def wait(self, timeout: datetime.timedelta | None = None) -> bool:
        """Block until the call is complete and its results are in the tensors; returns True.

        Raises:
            TimeoutError: not complete in time; it stays under way and may be waited for again.
            Exception: what the call itself raised, each time.
        """
        seconds = None
        # A millisecond below zero is PyTorch's "no timeout"
        if timeout is not None and timeout >= datetime.timedelta(0):
            seconds = timeout.total_seconds()
        for part in self._parts:
            part.wait(seconds)
        self._bring_in_results()
        return True

    def synchronize(self) -> None:
        """Like `wait`: what is complete here is complete for every stream."""
        self.wait()

    block_current_stream = synchronize

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

    def result(self) -> list[Tensor]:
        """The tensors that hold the result of a call that has completed.

        Raises:
            RuntimeError: still under way.
        """
        if not self.is_completed():
            raise RuntimeError("Work.result() before the call is complete: call wait() first")
        self.wait()
        return list(self._outputs)

    def get_future(self) -> Future[list[Tensor]]:
        """A future of `result()`; the same one each time."""
        if self._future is None:
            self._future = _WorkFuture(self)
        return self._future

    def source_rank(self) -> int:
        """The group rank that a completed receive came from; RuntimeError for other calls."""
        source = self._parts[0].source if len(self._parts) == 1 else None
        if source is None:
            raise RuntimeError("source_rank() is for receives that have completed")
        return source

    _source_rank = source_rank

    def _bring_in_results(self) -> None:
        with self._lock:
            finish, self._finish = self._finish, None
            if finish is not None:
                finish()


class _WorkFuture(Future):
    """Is done when its work is.

    Whoever waits carries it on; only when callbacks were given does a thread wait for them, so a
    call that is merely waited for costs no thread.
    """

    def __init__(self, work: Work) -> None:
        super().__init__()
        self._work = work
        self._watched = False
        self._settling = threading.RLock()

    def done(self) -> bool:
        if not self._done and self._work.is_completed():
            self._settle()
        return self._done

    def wait(self) -> list[Tensor]:
        self._settle()
        return self.value()

    def _when_done(self, run: Callable[[], None]) -> None:
        ended = self.done()
        super()._when_done(run)
        if not ended and not self._watched:
            self._watched = True
            # In a copy of this context, or ranks that are threads would be nobody there.
            follow = contextvars.copy_context().run
            threading.Thread(target=follow, args=(self._settle,), daemon=True).start()

    def _settle(self) -> None:
        with self._settling:
            if self._done:
                return
            error: BaseException | None = None
            try:
                self._work.wait()
            except Exception as raised:
                error = raised
            self._complete(None if error else self._work.result(), error)


def all_of(works: Sequence[Any]) -> Work:
    """One handle for several."""
    works = list(works)

    def finish() -> None:
        for work in works:
            work._bring_in_results()

    parts = [part for work in works for part in work._parts]
    return Work(parts, finish, [t for work in works for t in work._outputs])
