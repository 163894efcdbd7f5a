"""One rank's end by an error ends the whole job.

Without this, an uncaught exception makes a rank leave through MPI_Finalize, which waits for the
other ranks, which wait for this one: the job hangs. `install` closes every way out of Python:

- an uncaught exception (KeyboardInterrupt too) reaches `sys.excepthook`;
- an error in one of our own threads reaches `threading.excepthook`;
- a child of multiprocessing catches the error of its function itself, and ends by os._exit if it was
  forked: a finalizer of multiprocessing runs there;
- SystemExit reaches no hook at all. What the interpreter does read, just before it ends, is the
  exception's `code`; `_watch_exit_code` puts a property in front of that attribute, and a handler
  that runs at exit acts on what was read there.

Every way prints the error with its rank once, tells the other ranks through the watch, leaves them a
moment to say why they end, then calls `abort` and never comes back.
"""

from __future__ import annotations

import array
import atexit
import ctypes
import fcntl
import gc
import os
import stat
import sys
import termios
import threading
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .flight import last_words
from .work import CollectiveError

if TYPE_CHECKING:
    from .watch.base import BaseWatch

_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep
OUR_THREADS = "collectives "
LAUNCHER = "DISTTORCH_VIA"  # set by disttorch-run
INTERRUPTED = 130  # what a shell reports for SIGINT
_watch: BaseWatch | None = None


class _ExitCode:
    """The code with which the interpreter is being left, where SystemExit is the reason."""

    seen = False
    value: Any = None

    @classmethod
    def status(cls) -> int:
        return _status(cls.value) if cls.seen else 0


def _status(code: Any) -> int:
    """The exit status for SystemExit's `code`, by Python's rules: None is 0, a message is 1."""
    if code is None:
        return 0
    return code & 0xFF if isinstance(code, int) else 1


def install(
    rank: int,
    abort: Callable[[int], None],
    finish: Callable[[], None],
    watch: BaseWatch | None = None,
) -> None:
    """Take over this process's ways out. Call once, in the main thread.

    Args:
        rank: for messages.
        abort: ends all ranks with an exit status; may return, we then leave by ourselves.
        finish: called at a good end, before the interpreter is taken down; may raise.
        watch: told how this rank ends, and closed; None: nobody is told.
    """
    owner = os.getpid()
    previous_hook, previous_thread_hook = sys.excepthook, threading.excepthook
    global _watch
    _watch = watch
    if watch is not None:
        watch.managed = True

    def end(status: int, error: BaseException | str) -> None:
        if watch is not None:
            watch.failed(error, status)
            if isinstance(error, str):
                last_words(watch.recorder, error)
            else:
                last_words(watch.recorder, f"{type(error).__name__}: {error}", error)
            watch.settle(error)
        leave(status, abort)

    def on_exception(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        if os.getpid() != owner:  # a forked child is no rank: its end is its parent's affair
            previous_hook(kind, error, trace)
            return
        report(rank, _traceback(error, trace))
        end(INTERRUPTED if issubclass(kind, KeyboardInterrupt) else 1, error)

    def on_thread_exception(args: threading.ExceptHookArgs) -> None:
        ours = args.thread is not None and args.thread.name.startswith(OUR_THREADS)
        if not ours or args.exc_value is None:
            previous_thread_hook(args)  # an ordinary thread's error does not end a process
            return
        on_exception(args.exc_type, args.exc_value, args.exc_traceback)

    def at_exit() -> None:
        if os.getpid() != owner:
            return
        # Set by the interpreter when an exception went to a hook that someone put over ours.
        uncaught = getattr(sys, "last_value", None) is not None and not sys.flags.interactive
        status = 1 if uncaught else _ExitCode.status()
        if status:
            report(rank, f"exits with status {status}; ending the other ranks")
            end(status, (uncaught and sys.last_value) or f"it exits with status {status}")
        try:
            finish()
            if watch is not None:
                watch.left()
                watch.close()
        except BaseException as error:
            on_exception(type(error), error, error.__traceback__)

    def at_process_end() -> None:
        """In a child of multiprocessing, which prints errors itself; a forked one runs no atexit."""
        error = sys.exc_info()[1]
        status = _status(error.code) if isinstance(error, SystemExit) else 1
        if error is None or not status:
            finish()
            if watch is not None:
                watch.left()
                watch.close()
        elif watch is not None:
            exits = isinstance(error, SystemExit)
            watch.failed(f"it exits with status {status}" if exits else error, status)
            last_words(watch.recorder, f"{type(error).__name__}: {error}", error)

    sys.excepthook = on_exception
    threading.excepthook = on_thread_exception
    _watch_exit_code()
    atexit.register(at_exit)
    multiprocessing = sys.modules.get("multiprocessing")
    if multiprocessing is not None and multiprocessing.parent_process() is not None:
        sys.modules["multiprocessing.util"].Finalize(None, at_process_end, exitpriority=-1)


def tell(error: BaseException, status: int = 1) -> None:
    """Tell the other ranks what this one fails by.

    For whoever catches the error of a rank's whole program before the interpreter sees it, as the main
    function of a spawned process does. What is told first counts; leaving is up to the caller.
    """
    if _watch is not None:
        _watch.failed(error, status)
        last_words(_watch.recorder, f"{type(error).__name__}: {error}", error)


def leave(status: int, abort: Callable[[int], None] | None = None) -> None:
    """End this process, and all ranks where `abort` can, once what was printed has been taken."""
    _flush()
    _let_output_through()
    if abort is not None:
        abort(status)
    os._exit(status)


def _traceback(error: BaseException, trace: TracebackType | None) -> str:
    """The traceback; of our own errors down to the user's line, since what lies below is not theirs."""
    told = traceback.TracebackException(type(error), error, trace)
    if isinstance(error, CollectiveError):
        while len(told.stack) > 1 and told.stack[-1].filename.startswith(_HERE):
            told.stack.pop()
    return "".join(told.format())


def report(rank: int, text: str) -> None:
    """Write `text` to stderr in one piece, each line marked with the rank (our launcher does that)."""
    mark = "" if LAUNCHER in os.environ else f"[rank {rank}] "
    lines = text.rstrip("\n").split("\n")
    _flush()
    sys.stderr.write("".join(f"{mark}{line}\n" for line in lines))
    _flush()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            pass  # closed or missing: nothing can be shown there anyway


def _let_output_through(limit: float = 1.0, grace: float = 0.05) -> None:
    """Wait until mpiexec has taken what we printed; it drops what is in its pipes on an abort.

    Args:
        limit: seconds to wait for the pipes to be read empty.
        grace: seconds for mpiexec to pass on what it has read.
    """
    deadline = time.monotonic() + limit
    for fd in (1, 2):
        while _unread_bytes(fd) and time.monotonic() < deadline:
            time.sleep(0.005)
    time.sleep(grace)


def _unread_bytes(fd: int) -> int:
    """Bytes in the pipe behind `fd` that nobody has read yet; 0 if it is no pipe."""
    count = array.array("i", [0])
    try:
        if stat.S_ISFIFO(os.fstat(fd).st_mode):
            fcntl.ioctl(fd, termios.FIONREAD, count)
    except OSError:
        return 0  # closed
    return count[0]


def _watch_exit_code() -> None:
    """Make `_ExitCode` learn the code of the SystemExit that ends the interpreter.

    The interpreter reads `code` of that exception after every Python frame has gone, which tells
    this read from all others. The attribute belongs to a built-in type whose dictionary is only
    read-only by its proxy. Where that is not so (another interpreter than CPython), codes given
    to `sys.exit` are still seen.
    """
    system_exit_dict = gc.get_referents(SystemExit.__dict__)[0]
    member = system_exit_dict["code"]

    def get_code(error: SystemExit) -> Any:
        code = member.__get__(error, SystemExit)
        if sys._getframe().f_back is None and threading.current_thread() is threading.main_thread():
            _ExitCode.seen, _ExitCode.value = True, code
        return code

    def exit_with_instance(status: Any = None, /) -> None:
        """Exit the interpreter by raising SystemExit(status)."""
        # Up to Python 3.11 the built-in raises a bare value, which has no `code` to be read.
        raise SystemExit(status)

    system_exit_dict["code"] = property(get_code, member.__set__, doc=member.__doc__)
    ctypes.pythonapi.PyType_Modified(ctypes.py_object(SystemExit))  # drop cached look-ups
    sys.exit = exit_with_instance  # type: ignore[assignment]
