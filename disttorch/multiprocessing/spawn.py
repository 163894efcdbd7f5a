"""``spawn``: run a function in several new processes, and fail as one when any of them fails.

A child that fails writes its traceback to a file of its own; the parent ends the others and raises
it. Children end with their parent: the kernel kills them when it dies, whatever the reason.
"""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import multiprocessing.connection
import os
import pickle
import secrets
import select
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
import weakref

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_SECRET = "DISTTORCH_JOB_SECRET"
_TERM_SECONDS = 30.0  # a child may take this long to end after SIGTERM, then it is killed


class ProcessException(Exception):
    """A process of ``spawn`` failed.

    Attributes:
        error_index: its number among the processes. error_pid (also ``pid``): its process id.
    """

    def __init__(self, msg: str, error_index: int, pid: int):
        super().__init__(msg)
        self.msg, self.error_index, self.pid = msg, error_index, pid

    @property
    def error_pid(self) -> int:
        return self.pid

    def __reduce__(self):
        return type(self), (self.msg, self.error_index, self.pid)


class ProcessRaisedException(ProcessException):
    """A process ended by an exception; the message holds its traceback."""

    def __init__(self, msg: str, error_index: int, error_pid: int):
        super().__init__(msg, error_index, error_pid)


class ProcessExitedException(ProcessException):
    """A process exited with a code other than zero, or by a signal.

    Attributes:
        exit_code: as Process.exitcode tells it: negative for a signal.
        signal_name: that signal's name, or None.
    """

    def __init__(self, msg: str, error_index: int, error_pid: int, exit_code: int,
                 signal_name: str | None = None):
        super().__init__(msg, error_index, error_pid)
        self.exit_code, self.signal_name = exit_code, signal_name

    def __reduce__(self):
        return type(self), (self.msg, self.error_index, self.pid, self.exit_code, self.signal_name)


def _die_with_parent() -> None:
    """Have this process killed when the one that started it dies (Linux)."""
    parent = multiprocessing.parent_process()
    if parent is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
    if not parent.is_alive():  # it died before the call above
        os._exit(128 + signal.SIGKILL)
    if os.getppid() != parent.pid:  # the forkserver's child: it may outlive who asked for it
        threading.Thread(target=_die_with, args=(parent.pid,), daemon=True).start()


def _die_with(pid: int) -> None:
    try:
        file = os.pidfd_open(pid)
    except ProcessLookupError:
        pass
    else:
        poll = select.poll()
        poll.register(file, select.POLLIN)
        poll.poll()
    os.kill(os.getpid(), signal.SIGKILL)


def _wrap(fn, i: int, args: tuple, error_file: str, secret: str) -> None:
    """What each process runs."""
    _die_with_parent()
    os.environ.setdefault(_SECRET, secret)  # a forkserver's children have its environment
    try:
        fn(i, *args)
    except KeyboardInterrupt:
        pass  # Ctrl-C reaches every process of the terminal: the parent tells
    except Exception:
        with open(error_file, "wb") as file:
            pickle.dump(traceback.format_exc(), file)
        sys.exit(1)


class ProcessContext:
    """The processes of one ``start_processes``.

    Attributes:
        processes: the ``multiprocessing`` processes, in order of their number.
        error_files: where each writes its traceback, removed with this object.
        sentinels: {sentinel of a running process: its number}.
    """

    def __init__(self, processes: list, error_files: list[str], args: tuple = ()):
        self.processes, self.error_files = processes, error_files
        self._args = args  # an Event or a Queue in them ends with its last owner here
        self.sentinels = {process.sentinel: i for i, process in enumerate(processes)}
        weakref.finalize(self, _remove, tuple(error_files))

    def pids(self) -> list[int]:
        """Their process ids."""
        return [int(process.pid) for process in self.processes]

    def join(self, timeout: float | None = None, grace_period: float | None = None) -> bool:
        """Wait until one process fails, all have ended, or a process has ended within the timeout.

        When one has failed the others are ended: by SIGTERM, and by SIGKILL those that are still
        there 30 seconds later.

        Args:
            timeout: seconds to wait; None for as long as it takes.
            grace_period: seconds that the others may end by themselves after a failure.

        Returns:
            Whether all have ended, with success.

        Raises:
            ProcessRaisedException: if one raised; its traceback is in the message.
            ProcessExitedException: if one exited with another code than 0 or by a signal.
        """
        if not self.sentinels:
            return True
        ready = multiprocessing.connection.wait(list(self.sentinels), timeout=timeout)
        failed = None
        for sentinel in ready:
            index = self.sentinels.pop(sentinel)  # type: ignore[arg-type]
            process = self.processes[index]
            process.join()
            if failed is None and process.exitcode != 0:
                failed = index
        if failed is None:
            return not self.sentinels
        self._end_all(grace_period)
        raise self._error(failed)

    def _end_all(self, grace_period: float | None) -> None:
        if grace_period is not None:
            self._wait(grace_period)
        for process in self.processes:
            if process.is_alive():
                log.warning("Terminating process %s via signal SIGTERM", process.pid)
                process.terminate()
        # one in C code, or with a handler of its own, does not end by that
        self._wait(_TERM_SECONDS)
        for process in self.processes:
            if process.is_alive():
                log.warning("Unable to shutdown process %s via SIGTERM, forcefully exiting via SIGKILL",
                            process.pid)
                process.kill()
            process.join()

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))

    def _error(self, index: int) -> ProcessException:
        process, error_file = self.processes[index], self.error_files[index]
        if os.path.getsize(error_file):
            with open(error_file, "rb") as file:
                text = pickle.load(file)
            message = f"\n\n-- Process {index:d} terminated with the following error:\n{text}"
            return ProcessRaisedException(message, index, process.pid)
        code = process.exitcode
        if code < 0:
            try:
                name = signal.Signals(-code).name
            except ValueError:  # a real-time signal
                name = f"<Unknown signal {-code}>"
            message = f"process {index:d} terminated with signal {name}"
            return ProcessExitedException(message, index, process.pid, code, name)
        message = f"process {index:d} terminated with exit code {code:d}"
        return ProcessExitedException(message, index, process.pid, code)


class SpawnContext(ProcessContext):
    """The name that ProcessContext had when "spawn" was the only method; for ``isinstance``'s users."""


def _remove(files: tuple[str, ...]) -> None:
    for file in files:
        try:
            os.unlink(file)
        except OSError:
            pass


def start_processes(fn, args=(), nprocs: int = 1, join: bool = True, daemon: bool = False,
                    start_method: str = "spawn"):
    """Run ``fn(i, *args)`` in ``nprocs`` processes, i from 0.

    The processes share a random secret in the environment, ``DISTTORCH_JOB_SECRET``, by which
    their process group knows its own.

    Args:
        fn: a function at the top of a module, so that a new process can import it.
        args: sent to each; tensors in it are shared with the processes ("fork" copies those whose
            memory is not shared yet).
        join: wait for all, and raise when one fails.
        daemon: whether the processes are ended when this one ends.
        start_method: "spawn", "fork" or "forkserver".

    Returns:
        None if ``join``, else a ProcessContext to join.

    Raises:
        ProcessRaisedException, ProcessExitedException: from a process that failed, if ``join``.
    """
    secret = os.environ.setdefault(_SECRET, secrets.token_hex(32))
    mp = multiprocessing.get_context(start_method)
    processes: list = []
    error_files: list[str] = []
    try:
        for i in range(nprocs):
            handle, error_file = tempfile.mkstemp(prefix="disttorch-spawn-", suffix=".pickle")
            os.close(handle)
            error_files.append(error_file)
            process = mp.Process(  # type: ignore[attr-defined]
                target=_wrap, args=(fn, i, args, error_file, secret), daemon=daemon)
            process.start()
            processes.append(process)
    except BaseException:
        # the others would wait for those that never come
        for process in processes:
            process.kill()
            process.join()
        _remove(tuple(error_files))
        raise
    started = ProcessContext(processes, error_files, args)
    if not join:
        return started
    while not started.join():
        pass
    return None


def spawn(fn, args=(), nprocs: int = 1, join: bool = True, daemon: bool = False,
          start_method: str = "spawn"):
    """Run ``fn(i, *args)`` in ``nprocs`` new Python processes; see ``start_processes``.

    Returns:
        None if ``join``, else a ProcessContext to join.
    """
    if start_method != "spawn":
        warnings.warn(
            f"This method only supports start_method=spawn (got: {start_method}).\nTo use a "
            "different start_method use:\n\t\t torch.multiprocessing.start_processes(...)",
            FutureWarning, stacklevel=2,
        )
    return start_processes(fn, args, nprocs, join, daemon, start_method="spawn")


__all__ = ["ProcessContext", "ProcessException", "ProcessExitedException", "ProcessRaisedException",
           "SpawnContext", "spawn", "start_processes"]
