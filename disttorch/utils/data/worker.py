"""What runs in a worker process of a DataLoader."""

from __future__ import annotations

import multiprocessing
import os
import queue
import random
import signal
import threading
import traceback
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

from ...backend import ndarray, shared_memory
from ...random import manual_seed
from .channel import SHARED_FROM, Channel, blocks
from .fetch import Fetcher


@dataclass(frozen=True)
class WorkerInfo:
    """About the worker process that this is called in.

    Attributes:
        id: from 0 to ``num_workers`` − 1.
        seed: what Python's and disttorch's generators were seeded with.
        dataset: this process's copy.
    """

    id: int
    num_workers: int
    seed: int
    dataset: Any
    rng: Any = None
    worker_method: str = "multiprocessing"


_info: WorkerInfo | None = None


def get_worker_info() -> WorkerInfo | None:
    """About the loading worker this is called in; None in the main process."""
    return _info


def worth_sharing(tensors) -> bool:
    """Whether these tensors are to be stacked in memory that the loader will map.

    Only in a worker, if there is enough of it and nothing that ``stack`` would have to look at.
    """
    if _info is None:
        return False
    first = tensors[0]._data
    return first.nbytes * len(tensors) >= SHARED_FROM and all(
        t._data.__class__ is first.__class__ is ndarray and t._data.shape == first.shape
        and t._data.dtype == first.dtype and not t._rg
        for t in tensors
    )


def shared_stack(arrays):
    """Arrays stacked in a shared block."""
    return shared_memory.stack_into(blocks, arrays)


class KeyErrorMessage(str):
    """Text that shows its line breaks where KeyError would show them escaped."""

    def __repr__(self):
        return str(self)


class WorkerError:
    """An exception of a worker on its way to the loader: its type and its traceback as text."""

    def __init__(self, error: BaseException, worker_id: int):
        self.kind, self.worker_id = type(error), worker_id
        self.text = "".join(traceback.format_exception(error))

    def __reduce__(self):
        return _rebuild_error, (_kind_or_none(self.kind), self.kind.__name__, self.text,
                                self.worker_id)

    def reraise(self) -> None:
        """Raise it here, with where it came from and the worker's traceback as its message."""
        message = (
            f"Caught {self.kind.__name__} in DataLoader worker process {self.worker_id}.\n"
            f"Original {self.text}"
        )
        if self.kind is KeyError:
            message = KeyErrorMessage(message)
        try:
            error = self.kind(message)
        except Exception:  # its constructor wants something else
            error = RuntimeError(message)
        raise error


def _kind_or_none(kind):
    """An exception class if the loader can find it by its name too."""
    import pickle

    try:
        pickle.loads(pickle.dumps(kind))
    except Exception:
        return None
    return kind


def _rebuild_error(kind, name, text, worker_id):
    error = object.__new__(WorkerError)
    error.kind = type(name, (RuntimeError,), {}) if kind is None else kind
    error.text, error.worker_id = text, worker_id
    return error


class StreamEnd:
    """The answer of a worker whose stream has no more batches."""


@dataclass
class Plan:
    """What all workers of a loader are started with."""

    dataset: Any
    batched: bool
    collate_fn: Any
    drop_last: bool
    base_seed: int
    init_fn: Any
    num_workers: int

    def fetcher(self) -> Fetcher:
        """A fetcher that begins anew."""
        return Fetcher(self.dataset, self.batched, self.collate_fn, self.drop_last)


def worker_main(connection, plan: Plan, worker_id: int) -> None:
    """Answer requests until the loader says stop or is gone.

    Requests are ``(pass number, index of the batch, indices)``, answers ``(pass number, index,
    batch or WorkerError or StreamEnd)``, in the same order.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the loader's: it ends its workers
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # held back since our start
    channel, inbox = Channel(connection), _Inbox()
    threading.Thread(target=_receive, args=(channel, inbox), daemon=True).start()
    failure = fetch = None
    try:
        _prepare(plan, worker_id)
    except Exception as error:
        failure = WorkerError(error, worker_id)
    present = None
    while (request := inbox.next()) is not None:
        number, index, indices = request
        if number != present:
            present, fetch = number, None
        answer: Any = failure
        if failure is None:
            try:
                fetch = plan.fetcher() if fetch is None else fetch
                answer = fetch(indices)
            except StopIteration:
                answer = StreamEnd()
            except Exception as error:
                answer = WorkerError(error, worker_id)
        try:
            _answer(channel, number, index, answer, worker_id)
        except OSError:
            return  # nobody listens any more
        del answer


def _answer(channel, number, index, answer, worker_id) -> None:
    try:
        channel.send((number, index, answer))
    except OSError:
        raise
    except Exception as error:  # a batch that cannot be pickled
        channel.send((number, index, WorkerError(error, worker_id)))


def _prepare(plan: Plan, worker_id: int) -> None:
    """One thread, generators of its own, and the user's function."""
    global _info
    from ...settings import set_num_threads

    set_num_threads(1)
    seed = plan.base_seed + worker_id
    random.seed(seed)
    manual_seed(seed)
    shared_memory.seed_numpy(
        [worker_id, plan.base_seed & 0xFFFFFFFF, plan.base_seed >> 32, 0]
    )
    _info = WorkerInfo(worker_id, plan.num_workers, seed, plan.dataset)
    if plan.init_fn is not None:
        plan.init_fn(worker_id)


class _Inbox:
    """Requests that have come; those of a pass that was left early are forgotten."""

    def __init__(self):
        self._requests, self._stopped, self._present = queue.SimpleQueue(), False, -1

    def put(self, request) -> None:
        """From the receiving thread: a request, or None to stop at once."""
        if request is None:
            self._stopped = True
        else:
            self._present = request[0]
        self._requests.put(request)

    def next(self):
        """The next request of the present pass, or None."""
        while True:
            request = self._requests.get()
            if self._stopped or request is None:
                return None
            if request[0] == self._present:
                return request


def _receive(channel: Channel, inbox: _Inbox) -> None:
    """Thread: take requests off the socket at once, and end the process when the loader's is gone.

    Were the socket read only between batches, a loader and a worker with much to say could wait
    for each other.
    """
    parent = multiprocessing.parent_process()
    sentinel = [] if parent is None else [parent.sentinel]
    while True:
        ready = wait([channel.connection, *sentinel])
        if channel.connection not in ready:
            os._exit(1)  # the loader's process died, nobody waits for this one
        try:
            request = channel.receive()
        except (EOFError, OSError):
            request = None
        inbox.put(request)
        if request is None:
            return


__all__ = ["Plan", "StreamEnd", "WorkerError", "WorkerInfo", "get_worker_info", "worker_main"]
