"""CUDA graphs: work captured once and replayed with one launch.

A replay does the same launches on the same addresses, without any of Python's part. So its inputs are
*static*: tensors that stay, filled before each replay, and read after::

    static_x, static_y = x.clone(), y.clone()
    side = torch.cuda.Stream()                     # warm-up: what is made once is made outside
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(static_x, static_y)
    torch.cuda.current_stream().wait_stream(side)

    g = torch.cuda.CUDAGraph()
    optimizer.zero_grad(set_to_none=True)          # gradients then live in the graph's memory
    with torch.cuda.graph(g):
        static_loss = step(static_x, static_y)

    for x, y in batches:
        static_x.copy_(x)
        static_y.copy_(y)
        g.replay()

Optimizers need ``capturable=True``. Dropout and other random numbers go on from replay to replay as
they would have without a graph. Nothing in the capture may wait for the GPU or read from it. NCCL's
collectives can be captured; the replays are not watched over (a rank that died is not noticed there).
"""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

from ..backend import devices, gpu_runtime
from ..backend.gpu import graphs
from ..backend.gpu.graphs import GraphError
from ..ops.random import Generator, default_generator
from . import streams
from .graphed import make_graphed_callables
from .memory import empty_cache
from .which import current_device, require

_next_handle = iter(range(1, 1 << 62))
_pools: Any = weakref.WeakValueDictionary()  # handle -> memory.PrivatePool, while a graph uses it


def graph_pool_handle() -> tuple[int, int]:
    """A name for a memory pool that several graphs share (``pool=``).

    Graphs that share one must be replayed in the order in which they were captured, and never at once.
    """
    require()
    return 0, next(_next_handle)


class CUDAGraph:
    """Work on a GPU that is captured once and replayed; see this module's text.

    Args:
        keep_graph: accepted; the captured form is kept in any case.
    """

    def __init__(self, keep_graph: bool = False):
        require()
        self._graph = graphs.Graph(gpu_runtime.cupy())
        self._generators: list[Generator] = []
        self._handle: tuple[int, int] | None = None

    def register_generator_state(self, generator: Generator) -> None:
        """Let captured calls draw from a generator of the GPU beside the default one."""
        if generator.device.type != "cuda":
            raise RuntimeError(f"a CUDA graph can use generators of a GPU, not of {generator.device}")
        if generator not in self._generators:
            self._generators.append(generator)

    def capture_begin(self, pool=None, capture_error_mode: str = "global") -> None:
        """Capture what this thread puts into its current stream from now on.

        Args:
            pool: from ``graph_pool_handle()`` or another graph's ``pool()``, to share its memory.
            capture_error_mode: "global", "thread_local" or "relaxed". CUDA's own checks are relaxed in
                any case, since the memory pool may have to grow; see ``backend.gpu.graphs``.

        Raises:
            ValueError: for another mode.
            GraphError: in the default stream, in a capture, or for a graph that has been captured.
        """
        if capture_error_mode not in graphs.MODES:
            raise ValueError(
                f"capture_error_mode must be one of {', '.join(graphs.MODES)}, got "
                f"{capture_error_mode!r}"
            )
        handle = graph_pool_handle() if pool is None else tuple(pool)
        own = default_generator(devices.device("cuda", current_device()))
        sources = [own._source, *(g._source for g in self._generators if g is not own)]
        self._graph.begin(_pools.get(handle), sources)
        self._handle = handle
        _pools[handle] = self._graph.pool

    def capture_end(self) -> None:
        """End the capture; the graph can be replayed.

        Raises:
            GraphError: it was not begun, or something in it could not be captured.
        """
        self._graph.end()

    def replay(self) -> None:
        """Put the captured work into the current stream.

        Raises:
            GraphError: nothing was captured.
        """
        self._graph.launch()

    def reset(self) -> None:
        """Give the graph and its memory back once its replays have ended."""
        self._graph.reset()
        self._handle = None

    def pool(self) -> tuple[int, int]:
        """The handle of its memory pool, for other graphs.

        Raises:
            GraphError: nothing was captured.
        """
        if self._handle is None:
            raise GraphError("this CUDA graph has no memory pool yet: capture it first")
        return self._handle

    def enable_debug_mode(self) -> None:
        """Nothing to enable: ``debug_dump`` works for every captured graph."""

    def debug_dump(self, debug_path) -> None:
        """Write the graph in the language of Graphviz."""
        Path(debug_path).write_text(self._graph.dot())

    def __del__(self):
        # The memory may be in use by a replay under way: reset() holds it until that has ended
        graph = self.__dict__.get("_graph")
        if graph is not None and graph.captured:
            graph.reset()


class graph:
    """Context manager: what is done inside is captured, not done.

    Args:
        cuda_graph: the graph to fill.
        pool: memory to share with other graphs.
        stream: the stream to capture in; None for one that all captures of a device share.
        capture_error_mode: as for ``CUDAGraph.capture_begin``.

    An exception inside ends the capture and goes on to the caller; what CUDA refuses to capture becomes
    a ``GraphError`` that names the line. The stream can be used again afterwards.
    """

    _capture_streams: dict[int, streams.Stream] = {}

    def __init__(self, cuda_graph: CUDAGraph, pool=None, stream: streams.Stream | None = None,
                 capture_error_mode: str = "global"):
        require()
        index = current_device()
        if stream is None:
            stream = self._capture_streams.get(index)
            if stream is None:
                stream = self._capture_streams[index] = streams.Stream(index)
        self.cuda_graph, self.pool = cuda_graph, pool
        self.capture_stream, self.capture_error_mode = stream, capture_error_mode

    def __enter__(self) -> None:
        graphs.refuse("the capture of another CUDA graph")
        gpu_runtime.synchronize(self.capture_stream.index)
        # Garbage that ended inside would be kept by the graph; cached blocks are of no use to its pool
        gc.collect()
        empty_cache()
        self._context = streams.StreamContext(self.capture_stream)
        self._context.__enter__()
        try:
            self.cuda_graph.capture_begin(self.pool, self.capture_error_mode)
        except BaseException:
            self._context.__exit__(None, None, None)
            raise

    def __exit__(self, exc_type, exc_value, traceback) -> None:
        try:
            if exc_value is None:
                self.cuda_graph.capture_end()
                return
            self.cuda_graph._graph.abandon()
            explained = graphs.explain(exc_value, traceback)
            if explained is not None:
                raise explained from exc_value
        finally:
            self._context.__exit__(exc_type, exc_value, traceback)


__all__ = ["CUDAGraph", "GraphError", "graph", "graph_pool_handle", "make_graphed_callables"]
