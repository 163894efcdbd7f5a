"""Calls under way on a GPU: their handles, and the thread that looks after them.

NCCL has no watchdog of its own: a kernel that waits for a rank that has died waits for ever. Here a
thread asks of every call under way whether it has ended, whether NCCL reports an error, whether the
other ranks are well and whether its time is up; if something is wrong it has the communicator
aborted, which ends the kernels.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from ..call import Call
from ..work import Work, poll_until

PERIOD = 0.05  # seconds between two looks


class StreamWork(Work):
    """A call that has been put into a stream.

    `wait()` makes the calling thread's current stream wait for the result and returns at once:
    what is given to that stream afterwards finds the result in place, and the CPU goes on. To hold
    the CPU until the GPU is done, give `wait` a time limit, or call `block`.

    Args:
        call: what it is.
        gpu: whose streams and events these are.
        done: the event behind it; None until `started` brings it.
        keep: whatever must not be freed before the end (CuPy's pool knows nothing of other streams).
        finish: runs once before `wait` returns, on the stream that waited.
    """

    def __init__(
        self,
        call: Call,
        gpu: Any,
        done: Any,
        keep: Any,
        finish: Callable[[], int | None] | None = None,
    ) -> None:
        super().__init__(call.name)
        self.of = call
        self.begun = time.monotonic()
        self._gpu, self._done, self._keep, self._finish = gpu, done, keep, finish
        self._ended = False
        self._error: BaseException | None = None
        self._lock = threading.RLock()

    def started(self, done: Any) -> None:
        """The work has been put into the stream, and `done` behind it."""
        self.begun, self._done = time.monotonic(), done

    def wait(self, timeout: float | None = None) -> bool:
        """Have the current stream wait for the result; with a limit, the CPU.

        Args:
            timeout: seconds that the CPU waits; None only orders the streams.

        Raises:
            TimeoutError: not complete after `timeout` seconds; it stays under way.
            CollectiveError: what ended it.
        """
        if timeout is not None:
            super().wait(timeout)
        elif self._error is not None:
            raise self._error
        # Also after the CPU has waited: the event costs nothing then.
        if self._done is None:
            raise RuntimeError(f"{self.call} has not been started: leave `coalesced` before waiting")
        self._gpu.wait(self._done)
        self._bring()
        return True

    def block(self) -> None:
        """Hold the CPU until the GPU has done it; raises what ended it."""
        super().wait(None)

    def is_completed(self) -> bool:
        self.poll()
        if self._ended and self._error is None:
            self._bring()
        return self._ended

    def poll(self) -> bool:
        """`is_completed`, without bringing the result in; for any thread."""
        if not self._ended and self._done is not None and self._gpu.done(self._done):
            self.end(None)
        return self._ended

    def end(self, error: BaseException | None) -> None:
        """Note how it ended, and let go of what it kept. The first call counts."""
        with self._lock:
            if self._ended:
                return
            self._error, self._ended, self._keep = error, True, None
        self._tell()

    def exception(self) -> BaseException | None:
        return self._error

    def _block(self, timeout: float | None) -> bool:
        return poll_until(self.poll, timeout)

    def _bring(self) -> None:
        with self._lock:
            finish, self._finish = self._finish, None
        if finish is not None:
            self.source = finish()


class CapturedWork(StreamWork):
    """A call that became part of a CUDA graph: each replay does it again.

    Its event is a node of the graph, which nobody may ask, so its end is never seen and nobody watches
    over it. `wait` orders the streams inside the graph, whatever the time limit; until then it is held
    by `waited_for`, and with it the memory that the call uses.

    Args:
        waited_for: the calls of the group that nobody has waited for yet.
    """

    def __init__(self, call: Call, gpu: Any, done: Any, keep: Any, finish: Any, waited_for: set) -> None:
        super().__init__(call, gpu, done, keep, finish)
        self._waited_for = waited_for
        waited_for.add(self)

    def wait(self, timeout: float | None = None) -> bool:
        super().wait(None)
        self._keep = None
        self._waited_for.discard(self)
        return True

    def block(self) -> None:
        raise RuntimeError(
            f"{self.call} is part of a CUDA graph that is being captured: the host cannot wait for it; "
            "call wait() without a time limit in the capture, and synchronize after the replay"
        )

    def poll(self) -> bool:
        return False


class Overseer:
    """Looks after the calls under way, in a thread that exists while there are any.

    Args:
        name: of the thread.
        check: called with each call under way; raises what is wrong.
        fail: called with that, once; must end the calls.
    """

    def __init__(
        self,
        name: str,
        check: Callable[[StreamWork], None],
        fail: Callable[[BaseException], None],
    ) -> None:
        self._name, self._check, self._fail = name, check, fail
        self._changed = threading.Condition()
        self._under_way: list[StreamWork] = []
        self._thread: threading.Thread | None = None

    def add(self, work: StreamWork) -> None:
        """Look after one more."""
        with self._changed:
            # What has ended since lets go of its arrays here, not only at the thread's next look.
            while self._under_way and self._under_way[0].poll():
                self._under_way.pop(0)
            self._under_way.append(work)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()

    def under_way(self) -> list[StreamWork]:
        """Those that have not ended, the oldest first."""
        with self._changed:
            self._under_way = [work for work in self._under_way if not work.poll()]
            return list(self._under_way)

    def end_all(self, error: BaseException) -> None:
        """All calls under way have ended by `error`."""
        with self._changed:
            ended, self._under_way = self._under_way, []
        for work in ended:
            work.end(error)

    def _run(self) -> None:
        while True:
            time.sleep(PERIOD)
            try:
                oldest = self._oldest()
                if oldest is None:
                    return
                self._check(oldest)
            except BaseException as error:  # also CUDA's own, from asking an event
                self._fail(error)

    def _oldest(self) -> StreamWork | None:
        """The first call under way; with None the thread ends."""
        with self._changed:
            self._under_way = [work for work in self._under_way if not work.poll()]
            if not self._under_way:
                self._thread = None
                return None
            return self._under_way[0]
