"""Handles of operations under way, and the thread that carries them out."""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Callable, Sequence


class CollectiveError(RuntimeError):
    """A collective could not be carried out."""


class MismatchError(CollectiveError):
    """The ranks of a group did not make the same call."""


class RankFailedError(CollectiveError):
    """Another rank failed or left, so this call can never complete.

    Attributes:
        culprit: the job's rank whose end came first and led to this one; None where it is not known.
    """

    culprit: int | None = None


class CollectiveTimeout(CollectiveError, TimeoutError):
    """Ranks have not come in time.

    Attributes:
        missing: the job's ranks that did not come.
    """

    def __init__(self, text: str, missing: Sequence[int] = ()) -> None:
        super().__init__(text)
        self.missing = list(missing)


class Work:
    """One operation under way. The arrays given to it belong to it until `wait` has returned.

    Attributes:
        call: the name of the operation, as in messages.
        source: the sending rank, once a receive has completed; None for everything else.
    """

    def __init__(self, call: str) -> None:
        self.call = call
        self.source: int | None = None
        self._listener: Callable[[BaseException | None], None] | None = None

    def when_ended(self, listener: Callable[[BaseException | None], None]) -> None:
        """Have `listener(error or None)` called once when somebody notices the end."""
        self._listener = listener
        if self.is_completed():
            self._tell()

    def _tell(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener(self.exception())

    def wait(self, timeout: float | None = None) -> bool:
        """Block until the operation is complete and return True.

        Args:
            timeout: seconds to wait; None waits without limit.

        Raises:
            TimeoutError: not complete after `timeout` seconds. The operation stays under way and
                `wait` may be called again.
            Exception: what the operation itself raised, each time it is called.
        """
        if not self._block(timeout):
            raise TimeoutError(f"{self.call} is not complete after {timeout} seconds")
        error = self.exception()
        if error is not None:
            raise error
        return True

    def is_completed(self) -> bool:
        """Whether the operation has ended, well or with an exception. Does not block."""
        raise NotImplementedError

    def exception(self) -> BaseException | None:
        """What the operation raised; None if it succeeded or is still under way."""
        raise NotImplementedError

    def _block(self, timeout: float | None) -> bool:
        """Wait for the end of the operation; False when the time is up."""
        raise NotImplementedError


class QueuedWork(Work):
    """A job that a `CommunicationThread` runs."""

    def __init__(self, call: str, job: Callable[[], None]) -> None:
        super().__init__(call)
        self._job = job
        self._error: BaseException | None = None
        self._ended = False
        self.observed = False
        # Held while the job is under way. A bare lock hands over several times faster than Event.
        self._pending = threading.Lock()
        self._pending.acquire()

    def run(self) -> None:
        try:
            self._job()
        except BaseException as error:
            self._error = error
        finally:
            del self._job  # it holds the caller's arrays
            self._ended = True
            self._pending.release()
            self._tell()

    def is_completed(self) -> bool:
        return self._ended

    def exception(self) -> BaseException | None:
        self.observed = self.observed or self._ended
        return self._error if self._ended else None

    def _block(self, timeout: float | None) -> bool:
        if not self._pending.acquire(timeout=-1 if timeout is None else max(timeout, 0)):
            return False
        self._pending.release()  # for the next one who waits
        return True


class PolledWork(Work):
    """An operation that something else carries out and that can be asked whether it has ended.

    Args:
        call: name for messages.
        poll: returns whether the operation has ended; may raise its error.
        block: waits up to so many seconds (None: without limit), then answers like `poll`.
        finish: runs once after success, in the waiting thread (copies a staged array back);
            returns the source rank or None.
    """

    def __init__(
        self,
        call: str,
        poll: Callable[[], bool],
        block: Callable[[float | None], bool],
        finish: Callable[[], int | None],
    ) -> None:
        super().__init__(call)
        self._poll = poll
        self._wait = block
        self._finish = finish
        self._ended = False
        self._error: BaseException | None = None
        self._lock = threading.Lock()

    def is_completed(self) -> bool:
        with self._lock:
            return self._advance(self._poll)

    def exception(self) -> BaseException | None:
        return self._error

    def _block(self, timeout: float | None) -> bool:
        with self._lock:
            return self._advance(lambda: self._wait(timeout))

    def _advance(self, ask: Callable[[], bool]) -> bool:
        if not self._ended:
            try:
                if ask():
                    self.source = self._finish()
                    self._ended = True
            except Exception as error:
                self._error = error
                self._ended = True
            if self._ended:
                self._tell()
        return self._ended


def poll_until(ready: Callable[[], bool], timeout: float | None) -> bool:
    """Ask `ready` until it says True or `timeout` seconds have passed, sleeping ever longer."""
    deadline = None if timeout is None else time.monotonic() + timeout
    pause = 1e-6
    while not ready():
        if deadline is not None and time.monotonic() >= deadline:
            return False
        time.sleep(pause)
        pause = min(2 * pause, 1e-3)
    return True


class CommunicationThread:
    """Runs jobs one after another in the order in which they were given, in a thread of its own.

    One per group: the collectives of a group must start in the same order on every rank. The
    thread starts with the first job, so a program that stays synchronous never has one.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: queue.SimpleQueue[QueuedWork | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._last: QueuedWork | None = None
        self._lost: QueuedWork | None = None

    @staticmethod
    def drain_all() -> None:
        """`drain` every group's thread of this process."""
        for thread in list(_started):
            thread.drain()

    @property
    def idle(self) -> bool:
        """Whether everything given so far has ended."""
        return self._last is None or self._last.is_completed()

    def put(self, call: str, job: Callable[[], None]) -> QueuedWork:
        """Add a job and return its handle."""
        work = QueuedWork(call, job)
        if self._thread is None:
            # A daemon: a job blocked on a dead rank must not keep a failing process alive.
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
            _started.add(self)
        self._last = work
        self._jobs.put(work)
        return work

    def drain(self) -> None:
        """Wait for all jobs; raise the first error that nobody has waited for."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None
        lost = self._lost
        if lost is not None and not lost.observed:
            lost.wait()

    def _run(self) -> None:
        while (work := self._jobs.get()) is not None:
            work.run()
            if work._error is not None and self._lost is None:
                self._lost = work


_started: weakref.WeakSet[CommunicationThread] = weakref.WeakSet()
