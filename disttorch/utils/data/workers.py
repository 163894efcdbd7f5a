"""A pass over a DataLoader by worker processes: requests go out ahead, batches come back in order."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import time
import warnings
import weakref
from collections.abc import Iterator
from multiprocessing.connection import wait

from .channel import Channel
from .pinning import Pinner, pinned
from .worker import Plan, StreamEnd, WorkerError, worker_main

_PATIENCE = 5.0  # seconds that a worker has to end by itself


@contextlib.contextmanager
def _interrupts_held():
    """Hold Ctrl-C back; a process started meanwhile inherits that, until it has said whose it is."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Worker:
    """One process, this end of its channel, and how many answers it owes."""

    def __init__(self, context, plan: Plan, worker_id: int):
        ours, theirs = context.Pipe(duplex=True)
        self.process = context.Process(
            target=worker_main, args=(theirs, plan, worker_id), daemon=True
        )
        try:
            with _interrupts_held(), warnings.catch_warnings():
                # Python warns of forks beside threads, which may hold locks for ever in the child.
                # Here they are BLAS's, which sees to it (pthread_atfork), and the user's own.
                warnings.filterwarnings("ignore", ".*use of fork", DeprecationWarning)
                self.process.start()
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            ours.close()
            raise pickle.PicklingError(
                "DataLoader workers that are not forked get dataset, collate_fn and worker_init_fn "
                f"as a pickle, which failed: {error}. Define them at the top of a module, or use "
                "multiprocessing_context='fork'"
            ) from error
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()  # so that the end of the process is the end of the stream here
        self.channel, self.owes, self.active = Channel(ours), 0, True
        self.pid = self.process.pid

    def error(self) -> RuntimeError:
        """Why it gives no answer: how its process ended."""
        self.process.join(_PATIENCE)
        code = self.process.exitcode
        if code is not None and code < 0:
            name = signal.Signals(-code)
            how = f"is killed by signal: {signal.strsignal(-code)} ({name.name})."
            if name is signal.SIGKILL:
                how += " If nobody killed it, the system was out of memory."
        elif code is None:
            how = "closed its connection but is still running."
        else:
            how = f"exited unexpectedly with exit code {code}; its output may say why."
        return RuntimeError(f"DataLoader worker (pid {self.pid}) {how}")


def end_workers(workers: list[_Worker], owner: int, patience: float = _PATIENCE) -> None:
    """Ask all to stop, wait a little, then make them; no process and no zombie stays behind.

    Args:
        owner: the process that started them: a fork of it must not end them.
        patience: seconds to wait; 0 kills at once.
    """
    if os.getpid() != owner:
        return
    for w in workers:
        with contextlib.suppress(OSError):
            if patience:
                w.channel.send(None)
            w.channel.close()
        if not patience:
            w.process.terminate()
    deadline = time.monotonic() + (patience or 1.0)
    for w in workers:
        w.process.join(max(0.0, deadline - time.monotonic()))
        if w.process.is_alive():
            w.process.kill()
            w.process.join()
        with contextlib.suppress(ValueError):
            w.process.close()


class WorkersIterator:
    """Iterates over batches that worker processes make.

    Args:
        context: of ``multiprocessing``, which says how processes start.
        plan: what the workers are to do.
        prefetch: how many batches to ask of each worker in advance.
        timeout: seconds to wait for a batch; 0 waits as long as its worker lives.
        in_order: give batches in the order of the sampler, not in that of their arrival.
        keep: keep the workers at the end of a pass; ``begin`` starts another.
        pin_for: number of the GPU for which a thread pins batches as they come in; None: none does.
    """

    def __init__(self, context, plan, *, prefetch: int, timeout: float, in_order: bool, keep: bool,
                 pin_for: int | None = None):
        if context is None:
            context = multiprocessing.get_context()
        self._prefetch, self._timeout = prefetch, timeout
        self._in_order, self._keep = in_order, keep
        self._pinner = None if pin_for is None else Pinner(pin_for)
        self._workers: list[_Worker] = []
        # also ends them when this object is collected, or the interpreter exits
        self._end = weakref.finalize(self, end_workers, self._workers, os.getpid())
        self._number = -1
        try:
            for i in range(plan.num_workers):
                self._workers.append(_Worker(context, plan, i))
        except BaseException:
            self.shut_down(0)
            raise

    def shut_down(self, patience: float = _PATIENCE) -> None:
        """End the workers; the iterator gives nothing more."""
        if self._end.detach() is not None:
            end_workers(self._workers, os.getpid(), patience)
        if self._pinner is not None:
            self._pinner.close()
        self._order: Iterator = iter(())
        self._pending: dict = {}  # index of a batch -> its worker
        self._ready: dict = {}  # index -> answer that came before its turn

    @property
    def running(self) -> bool:
        """Whether there are workers that another pass could use."""
        return self._end.alive

    def begin(self, order) -> None:
        """Start a pass: ``order`` yields indices, or lists of them."""
        self._number += 1
        self._order = iter(order)
        self._pending, self._ready = {}, {}
        self._asked = self._given = self._turn = 0
        for w in self._workers:
            w.active, w.owes = True, 0
        for _ in range(self._prefetch * len(self._workers)):
            self._ask()

    def _ask(self) -> None:
        """Send the next request to the next worker that has something to give."""
        for _ in self._workers:
            worker = self._workers[self._turn]
            self._turn = (self._turn + 1) % len(self._workers)
            if worker.active and (self._in_order or worker.owes < self._prefetch):
                break
        else:
            return
        try:
            indices = next(self._order)
        except StopIteration:
            return
        index, self._asked = self._asked, self._asked + 1
        self._pending[index] = worker
        worker.owes += 1
        try:
            worker.channel.send((self._number, index, indices))
        except OSError:
            raise worker.error() from None

    def next_batch(self):
        """(index of the batch in this pass, the batch).

        Raises:
            StopIteration: at the end of the pass.
            RuntimeError: if a worker died or did not answer in time; whatever a worker raised.
        """
        try:
            index, answer = self._next_answer()
            self._ask()
            if self._pinner is not None:
                self._receive_what_is_there()  # so that the thread has something to do meanwhile
            answer = pinned(answer)
        except StopIteration:
            if not self._keep:
                self.shut_down()
            raise
        except BaseException:  # Ctrl-C too: leave no process behind
            self.shut_down(0)
            raise
        if isinstance(answer, WorkerError):
            if not self._keep:
                self.shut_down(0)
            answer.reraise()
        return index, answer

    def _next_answer(self):
        deadline = time.monotonic() + self._timeout if self._timeout else None
        while self._pending or self._ready:
            index = self._given if self._in_order else next(iter(self._ready), None)
            if index in self._ready:
                answer = self._ready.pop(index)
                self._given += 1
                if not isinstance(answer, StreamEnd):
                    return index, answer
                self._ask()  # the turn of a worker without more goes to another
                continue
            self._receive(
                [self._pending[index]] if self._in_order else set(self._pending.values()), deadline
            )
        raise StopIteration

    def _receive_what_is_there(self) -> None:
        """File the answers that have come in; a worker's end shows when it is waited for."""
        by_connection = {w.channel.connection: w for w in set(self._pending.values())}
        for connection in wait(list(by_connection), 0) if by_connection else ():
            with contextlib.suppress(EOFError, OSError):
                self._file(by_connection[connection])

    def _receive(self, workers, deadline) -> None:
        """Wait for one answer of these workers and file it."""
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        by_connection = {w.channel.connection: w for w in workers}
        by_sentinel = {w.process.sentinel: w for w in workers}
        found = wait([*by_connection, *by_sentinel], left)
        if not found:
            raise RuntimeError(f"DataLoader timed out after {self._timeout} seconds")
        for connection in found:
            worker = by_connection.get(connection)
            if worker is None:
                continue
            try:
                self._file(worker)
            except (EOFError, OSError):
                raise worker.error() from None
            return
        raise by_sentinel[found[0]].error()

    def _file(self, worker) -> None:
        """Receive one answer of a worker."""
        number, index, answer = worker.channel.receive()
        if number != self._number:
            return  # of a pass that was left early
        worker.owes -= 1
        del self._pending[index]
        if isinstance(answer, StreamEnd):
            worker.active = False
        elif self._pinner is not None and not isinstance(answer, WorkerError):
            answer = self._pinner.begin(answer)
        self._ready[index] = answer


__all__ = ["WorkersIterator", "end_workers"]
