"""Values that come later: `Future`, as `torch.futures` has it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

T = TypeVar("T")
S = TypeVar("S")

_log = logging.getLogger(__name__)


class Future(Generic[T]):
    """A result that someone sets once, and what others want done when it is there.

    Args:
        devices: where results may live; accepted as in PyTorch. Results are complete when they are
            set, so no stream has to wait for another.
    """

    def __init__(self, *, devices: Sequence[Any] | None = None) -> None:
        self.devices = list(devices or ())
        self._changed = threading.Condition()
        self._done = False
        self._result: Any = None
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[], None]] = []

    def done(self) -> bool:
        """Whether a result or an exception has been set."""
        return self._done

    def wait(self) -> T:
        """Block until the result is there and return it; raises the exception that was set."""
        with self._changed:
            while not self._done:
                self._changed.wait()
        return self.value()

    def value(self) -> T:
        """The result of a future that is done; raises the exception that was set.

        Raises:
            RuntimeError: not done yet.
        """
        if not self.done():
            raise RuntimeError("Future.value() before the future is done: call wait() first")
        if self._error is not None:
            raise self._error
        return self._result

    def set_result(self, result: T) -> None:
        """Complete this future; RuntimeError if it is complete already. Runs the callbacks."""
        self._complete(result, None)

    def set_exception(self, result: BaseException) -> None:
        """Complete this future with an exception, which `wait` and `value` raise."""
        if not isinstance(result, BaseException):
            raise AssertionError(f"{result!r} is of type {type(result).__name__}, not an Exception.")
        self._complete(None, result)

    def then(self, callback: Callable[[Future[T]], S]) -> Future[S]:
        """Call `callback(self)` once this future is done, at once if it is.

        Returns:
            A future of what the callback returns, or of the exception that it raises.
        """
        following: Future[S] = Future(devices=self.devices)

        def run() -> None:
            try:
                result = callback(self)
            except Exception as error:
                following.set_exception(error)
            else:
                following.set_result(result)

        self._when_done(run)
        return following

    def add_done_callback(self, callback: Callable[[Future[T]], None]) -> None:
        """Call `callback(self)` once this future is done; an exception it raises is only logged."""

        def run() -> None:
            try:
                callback(self)
            except Exception:
                _log.exception("a callback of a future raised")

        self._when_done(run)

    def _when_done(self, run: Callable[[], None]) -> None:
        with self._changed:
            if not self._done:
                self._callbacks.append(run)
                return
        run()

    def _complete(self, result: Any, error: BaseException | None) -> None:
        with self._changed:
            if self._done:
                raise RuntimeError("Future is complete already: its result can be set only once")
            self._result, self._error, self._done = result, error, True
            callbacks, self._callbacks = self._callbacks, []
            self._changed.notify_all()
        for run in callbacks:
            run()


def collect_all(futures: Sequence[Future]) -> Future[list[Future]]:
    """A future of the list itself, done when all are done; the first exception becomes its own."""
    everything: Future[list[Future]] = Future()
    futures = list(futures)
    if not futures:
        everything.set_result([])
        return everything
    lock = threading.Lock()
    left = [len(futures)]

    def one_more(future: Future) -> None:
        error = None
        try:
            future.value()
        except Exception as raised:
            error = raised
        with lock:
            left[0] -= 1
            last = left[0] == 0
            if everything.done():
                return
            if error is None and not last:
                return
        if error is not None:
            everything.set_exception(error)
        else:
            everything.set_result(futures)

    for future in futures:
        future.add_done_callback(one_more)
    return everything


def wait_all(futures: Sequence[Future]) -> list[Any]:
    """Wait for all of them and return their results; raises the first exception in their order."""
    return [future.wait() for future in futures]


__all__ = ["Future", "collect_all", "wait_all"]
