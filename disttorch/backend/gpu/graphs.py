"""CUDA graphs: a sequence of launches recorded once and replayed as one.

**Memory.** The kernels of a graph read and write fixed addresses, so nothing that they touch may be used
for something else as long as the graph lives:

- What is allocated during a capture comes from a pool of the graph's own (`memory.PrivatePool`). What
  ends during the capture goes back to that pool, where a later part of the same graph may take it: in a
  replay the two follow each other as they did here. After the capture nobody allocates from the pool but
  other graphs that were given it, and these must be replayed in the order in which they were captured.
- What was allocated before, and ends during the capture (a gradient of the last warm-up step, say), was
  perhaps read by what has been captured so far. Back in the common pool it would be handed to somebody
  else, whose values the replays would read. So what this thread frees meanwhile is kept by the graph
  (`memory.keep_for`), and so are the host arrays of captured copies and whatever was recorded for
  another stream.
- What the caller reads and writes between replays (inputs, outputs, parameters) is the caller's to keep.
- `reset` lets go of all that once the streams of the replays have got there.

**What cannot be captured** is what the host would have to wait for: reading a value, copies from or to
ordinary memory, ``synchronize``. CUDA is told to be lenient (mode "relaxed"), because the pool must be
able to ask the driver for memory in a capture and a kernel to be loaded at its first use; the functions
here refuse the rest before CUDA sees it, and what CUDA refuses ends as one sentence (`explain`).

**Random numbers** go on from replay to replay: see `random`.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from . import memory

MODES = ("global", "thread_local", "relaxed")
_capturing: dict[int, Graph] = {}  # thread -> the graph it captures
_TOLD = ("default", "warn", "error")
_ERROR = 2
_waits = 0  # whether calls that wait for the GPU are told of: a place in _TOLD
# Frames of these are not the user's: this library's, those of CuPy and NCCL, the standard library's
_PACKAGES = ("disttorch", "collectives", "cupy", "nccl", "contextlib", "threading")

# What CUDA's errors in a capture come from, by the ends of their names in the runtime and the driver
_CAUSES = {
    "streamcaptureunsupported": "it makes the host wait for the GPU or copies from ordinary memory",
    "streamcaptureinvalidated": "something before it could not be captured",
    "streamcapturemerge": "it joins two captures that are independent of each other",
    "streamcaptureunmatched": "the capture was begun in another stream",
    "streamcaptureunjoined": "work given to another stream was not joined: let the capturing stream "
                             "wait for that stream (wait_stream) before the capture ends",
    "streamcaptureisolation": "it depends on work outside of the capture: let that end before",
    "streamcaptureimplicit": "it would make the default stream wait for the capture: use another stream",
    "capturedevent": "it asks for an event that was recorded in the capture",
    "streamcapturewrongthread": "it was called by another thread than the one that began the capture",
    "current stream is capturing": "it copies between the CPU and the GPU and waits for that",  # CuPy's
    "during stream capture": "it uses a library through CuPy that CuPy does not let take part",
}  # fmt: skip


class GraphError(RuntimeError):
    """A capture that cannot be made, or a graph that is not ready for what is asked of it."""


class Graph:
    """Launches that are captured once and replayed.

    Args:
        cupy: the module.
    """

    def __init__(self, cupy) -> None:
        self._cupy = cupy
        self._graph: Any = None
        self._stack: ExitStack | None = None
        self._kept: list = []
        self._random: list[tuple[Any, Any]] = []  # (generator, its capture)
        self._streams: dict[int, Any] = {}  # of the replays
        self.pool: memory.PrivatePool | None = None

    @property
    def captured(self) -> bool:
        return self._graph is not None

    def begin(self, pool: memory.PrivatePool | None, generators: Sequence[Any]) -> None:
        """Capture what this thread puts into its current stream from now on.

        Args:
            pool: memory that it shares with other graphs; None for its own.
            generators: random streams that the captured calls may draw from.

        Raises:
            GraphError: in the default stream, in a capture, or for a graph that has been captured.
        """
        cuda, thread = self._cupy.cuda, threading.get_ident()
        stream = cuda.get_current_stream()
        if self._graph is not None:
            raise GraphError("this CUDA graph has been captured already: call reset() first")
        if thread in _capturing or stream.is_capturing():
            raise GraphError("a CUDA graph is being captured already: end that capture first")
        if stream.ptr in (0, 1, 2):
            raise GraphError(
                "CUDA graphs cannot be captured in the default stream: use torch.cuda.graph(g), or a "
                "torch.cuda.Stream through torch.cuda.stream(s)"
            )
        self.device, self._stream = cuda.runtime.getDevice(), stream
        self.pool = memory.PrivatePool(self._cupy) if pool is None else pool
        with ExitStack() as stack:
            for generator in generators:
                self._random.append((generator, generator.begin_capture()))
                stack.callback(generator.end_capture)
            stack.callback(_capturing.pop, thread, None)
            _capturing[thread] = self
            stack.enter_context(memory.keep_for(self._kept))
            stack.enter_context(cuda.using_allocator(self.pool.allocate))
            stream.begin_capture(cuda.runtime.streamCaptureModeRelaxed)
            self._stack = stack.pop_all()

    def end(self) -> None:
        """End the capture; the graph can be replayed.

        Raises:
            GraphError: no capture was begun here by this thread, or it has failed.
        """
        if self._stack is None or _capturing.get(threading.get_ident()) is not self:
            raise GraphError("no capture of this CUDA graph is under way in this thread: begin one")
        stack, self._stack = self._stack, None
        try:
            graph = self._stream.end_capture()
        except Exception as error:
            self._drop()
            raise explain(error, None) or error from error
        finally:
            stack.close()
        self._graph = graph

    def abandon(self) -> None:
        """End a capture under way and drop what was captured; nothing if there is none."""
        if self._stack is not None:
            stack, self._stack = self._stack, None
            try:
                self._stream.end_capture()
            except Exception as error:
                if _cause_of(error) is None:
                    raise
            finally:
                stack.close()
                self._drop()

    def launch(self) -> None:
        """Put a replay into the current stream.

        Raises:
            GraphError: nothing was captured.
        """
        if self._graph is None:
            raise GraphError("this CUDA graph has not been captured: nothing to replay")
        with self._cupy.cuda.Device(self.device):
            stream = self._cupy.cuda.get_current_stream()
            if stream.ptr not in self._streams:
                self._streams[stream.ptr] = stream
            for generator, capture in self._random:
                if capture.used:
                    generator.before_replay(capture)
            self._graph.launch(stream)

    def reset(self) -> None:
        """Let go of the graph and its memory, once its replays have ended."""
        if self._stack is not None:
            raise GraphError("this CUDA graph is being captured: end the capture before reset()")
        if self._graph is not None and self._streams:
            memory.keep_until_done(
                list(self._streams.values()), (self._graph, self._kept, self._random, self.pool)
            )
        self._graph = None
        self._drop()

    def _drop(self) -> None:
        self._kept, self._random, self._streams, self.pool = [], [], {}, None

    def dot(self) -> str:
        """The graph as text in the language of Graphviz.

        Raises:
            GraphError: nothing was captured.
        """
        if self._graph is None:
            raise GraphError("this CUDA graph has not been captured: nothing to print")
        return self._graph.debug_dot_str()


def is_capturing() -> bool:
    """Whether this thread captures a graph."""
    return threading.get_ident() in _capturing


def refuse(what: str, unasked: bool = False) -> None:
    """Raise if this thread captures a graph: ``what`` cannot be part of one.

    Args:
        unasked: it waits for the GPU as a means to an end; a program may want to be told of that.

    Raises:
        GraphError: with the caller's line.
        RuntimeError: ``tell_of_waits("error")`` was chosen.
    """
    if _capturing and is_capturing():
        raise GraphError(_sentence(what, "the host would have to wait for the GPU", _line_of_stack()))
    if _waits and unasked:
        text = f"called a synchronizing CUDA operation: {what}{_line_of_stack()}"
        if _waits == _ERROR:
            raise RuntimeError(text)
        warnings.warn(text, stacklevel=2)


def tell_of_waits(mode: int | str) -> None:
    """What ``refuse`` does outside of captures: nothing (0, "default"), warn (1) or raise an error (2).

    Raises:
        TypeError, RuntimeError: for another mode.
    """
    global _waits
    if not isinstance(mode, (int, str)):
        raise TypeError(f"invalid type of debug_mode, expected int or str, got {type(mode).__name__}")
    if mode not in _TOLD and mode not in range(len(_TOLD)):
        raise RuntimeError(f"invalid value of debug_mode, expected one of {', '.join(_TOLD)}: {mode!r}")
    _waits = _TOLD.index(mode) if isinstance(mode, str) else int(mode)


def waits_mode() -> int:
    """What ``tell_of_waits`` has chosen."""
    return _waits


@contextmanager
def in_stream(cupy, stream) -> Iterator[None]:
    """Inside, this thread's work on the current device goes to ``stream``; afterwards to where it went.

    CuPy's own ``with stream:`` goes back to the stream of the ``with`` around it, whatever ``use()`` has
    chosen since: in a capture, to the default stream.
    """
    before = cupy.cuda.get_current_stream()
    try:
        with stream:
            yield
    finally:
        before.use()


@contextmanager
def uncaptured(cupy) -> Iterator[None]:
    """Inside, work is done at once and memory is common: for tables that are made when first needed and
    then stay, which must not become part of the graph whose capture happens to need them first."""
    if not is_capturing():
        yield
        return
    thread = threading.get_ident()
    graph, kept = _capturing.pop(thread), memory._kept.pop(thread)
    try:
        with cupy.cuda.using_allocator(memory.common_allocator(cupy)):
            stream = cupy.cuda.Stream(non_blocking=True)
            with in_stream(cupy, stream):
                yield
            stream.synchronize()
    finally:
        _capturing[thread], memory._kept[thread] = graph, kept


# ---- errors ----------------------------------------------------------------------------------------


def _cause_of(error: BaseException) -> str | None:
    """What an error of a capture comes from, None for any other exception."""
    if not isinstance(error, RuntimeError):  # CuPy's errors of CUDA, and its NotImplementedErrors, are
        return None
    text = str(error).lower().replace("_", "")
    return next((why for name, why in _CAUSES.items() if name in text), None)


def explain(error: BaseException, traceback) -> GraphError | None:
    """CUDA's error in a capture as one sentence with the user's line; None for any other exception.

    Args:
        traceback: of the exception; None where the capture as a whole has failed.
    """
    why = None if isinstance(error, GraphError) else _cause_of(error)
    if why is None:
        return None
    if traceback is None:
        return GraphError(f"the capture of this CUDA graph has failed: {why} ({error})")
    return GraphError(f"{_sentence('this call', why, _line_of(traceback))} ({error})")


def _sentence(what: str, why: str, line: str) -> str:
    return (
        f"{what} cannot be captured in a CUDA graph{line}, since {why}: do it before the capture or "
        "between replays; the capture has ended, and its stream can be used again"
    )


def _is_users(frame) -> bool:
    name = frame.f_globals.get("__name__", "")
    return not name.startswith(_PACKAGES)


def _place(frame, line: int) -> str:
    return f" at {frame.f_code.co_filename}:{line} (in {frame.f_code.co_name})"


def _line_of(traceback) -> str:
    """Where the innermost of the user's frames of a traceback stands."""
    found = ""
    while traceback is not None:
        if _is_users(traceback.tb_frame):
            found = _place(traceback.tb_frame, traceback.tb_lineno)
        traceback = traceback.tb_next
    return found


def _line_of_stack() -> str:
    frame: Any = sys._getframe(1)
    while frame is not None:
        if _is_users(frame):
            return _place(frame, frame.f_lineno)
        frame = frame.f_back
    return ""
