"""Futures whose next step is taken by whoever waits, not by a thread that happens to be free.

A hook's steps may communicate themselves. Ranks must make the same calls in the same order, and
threads of different buckets would race; the reducer waits for the buckets in their order, so steps
taken then are in order too. It also costs no thread per bucket.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from ....futures import Future


class Later(Future):
    """The future of `step(first)` once `first` is done, computed in the thread that waits.

    Args:
        first: what has to be done before.
        step: takes the future that is done, as `Future.then`'s callbacks do.
        communicates: whether the step makes calls, and so may run only in `wait`, never because
            someone asks `done`.
    """

    def __init__(
        self, first: Future, step: Callable[[Future], Any], communicates: bool = False
    ) -> None:
        super().__init__()
        self._first, self._step, self._communicates = first, step, communicates
        self._settling = threading.RLock()

    def wait(self) -> Any:
        self._settle()
        return self.value()

    def done(self) -> bool:
        if not self._done and not self._communicates and self._first.done():
            self._settle()
        return self._done

    def then(self, callback: Callable[[Future], Any]) -> Later:
        return Later(self, callback, self._communicates)

    def _settle(self) -> None:
        with self._settling:
            if self._done:
                return
            result: Any = None
            error: BaseException | None = None
            try:
                self._first.wait()
                result = self._step(self._first)
            except Exception as raised:
                error = raised
            self._first = self._step = None  # type: ignore[assignment]  # they hold gradients
            self._complete(result, error)


class AllWorks(Future):
    """Done when several of the transport's works are; its result is None.

    Args:
        timeout: seconds to wait for each.
    """

    def __init__(self, works: list[Any], timeout: float | None) -> None:
        super().__init__()
        self._works, self._timeout = works, timeout

    def done(self) -> bool:
        return all(work.is_completed() for work in self._works)

    def wait(self) -> None:
        for work in self._works:
            work.wait(self._timeout)


def finished(value: Any) -> Future:
    """A future that is done."""
    future: Future = Future()
    future.set_result(value)
    return future
