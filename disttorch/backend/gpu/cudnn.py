"""cuDNN through its graph interface, where the wheel ``nvidia-cudnn-frontend`` is installed.

A *plan* is an operation for one set of shapes, strides, dtypes and parameters: found by cuDNN's
heuristics and compiled once (some 0.4 s), then kept for the device. Running it takes integers only:
the addresses of the tensors (multiples of 16) by the numbers (uids) that the plan's maker gave them::

    def describe(graph, cudnn):
        x = graph.tensor(dim=[...], stride=[...], data_type=data_type("bfloat16"), uid=1)
        ...
        y.set_output(True).set_uid(3)

    made = plan(xp, ("my operation", x.shape, x.strides, x.dtype.name), describe)
    made.run([x.data.ptr, w.data.ptr, y.data.ptr])  # in the order of the uids

Which plan is taken is the heuristics' first choice that can be built, the same each time; or, with
``torch.backends.cudnn.benchmark``, the one of the first ``benchmark_limit`` that took the least time.
Where deterministic algorithms are asked for, plans that cuDNN notes as nondeterministic are left out.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import threading
from pathlib import Path
from typing import Any

from . import graphs

DETERMINISTIC = ("NONDETERMINISTIC",)
_RUNS = 3  # of a plan that is timed
_ALL = 1 << 30
FULL_FLOAT32 = ("TENSOR_CORE", "DOWN_CONVERT_INPUTS")  # notes of plans that round float32 inputs
_NAMES = {"float16": "HALF", "bfloat16": "BFLOAT16", "float32": "FLOAT", "float64": "DOUBLE",
          "int32": "INT32", "int64": "INT64", "uint8": "UINT8", "bool": "BOOLEAN"}

_plans: dict[tuple, Plan | Unsupported] = {}
_building = threading.Lock()
_local = threading.local()


class Unsupported(RuntimeError):
    """cuDNN has no plan for an operation; the message says why."""


class Plan:
    """A compiled operation.

    Attributes:
        graph: the frontend's.
        uids: of its tensors, ascending.
        workspace: bytes.
        run: ``run(addresses)`` puts it into CuPy's current stream; the addresses are those of the
            tensors in the order of ``uids``. RuntimeError if cuDNN refuses.
    """

    __slots__ = ("graph", "uids", "workspace", "run")

    def __init__(self, xp, graph: Any, uids: tuple[int, ...], workspace: int):
        self.graph, self.uids, self.workspace = graph, uids, workspace
        self.run = _runner(xp, graph, uids, workspace)


# ---- the library ---------------------------------------------------------------------------------
def _preload() -> None:
    """Load cuDNN from its wheel wherever that lies on ``sys.path``: the frontend looks in
    site-packages only, and then asks the linker, which finds what is loaded already."""
    try:
        found = importlib.util.find_spec("nvidia.cudnn")
    except ModuleNotFoundError:
        return
    for folder in (found.submodule_search_locations or ()) if found else ():
        for path in sorted(Path(folder, "lib").glob("libcudnn.so.*")):
            try:
                ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
                return
            except OSError:
                continue


@functools.cache
def _library() -> tuple[Any, str]:
    """(the frontend module or None, why it is None)."""
    try:
        _preload()
        import cudnn

        cudnn.backend_version()  # raises where the frontend found no libcudnn
    except Exception as error:  # a wheel for another CUDA fails in ways of its own
        return None, f"{type(error).__name__}: {error}".splitlines()[0]
    return cudnn, ""


def available() -> bool:
    """Whether the frontend and cuDNN itself are installed. Never raises."""
    return _library()[0] is not None


def why_not() -> str:
    """Why cuDNN is not available, in a line; empty if it is."""
    return _library()[1]


def version() -> int | None:
    """cuDNN's version (91300 is 9.13.0), None without it."""
    library = _library()[0]
    return None if library is None else library.backend_version()


def data_type(name: str) -> Any:
    """cuDNN's name of a dtype.

    Raises:
        Unsupported: if it has none.
    """
    if name not in _NAMES:
        raise Unsupported(f"cuDNN computes with no {name}: use one of {', '.join(_NAMES)}")
    return getattr(_library()[0].data_type, _NAMES[name])


@functools.cache
def _modules() -> tuple[Any, Any]:
    from ... import settings
    from ...backends import cudnn

    return settings, cudnn


def switches() -> tuple:
    """All that users set, to be compared with what it was when something was decided by it."""
    settings, cudnn = _modules()
    return (cudnn.enabled, cudnn.allow_tf32, cudnn.fp32_precision, cudnn.conv.fp32_precision,
            cudnn.deterministic, settings.are_deterministic_algorithms_enabled(), cudnn.benchmark,
            cudnn.benchmark_limit)


def enabled() -> bool:
    """Whether ``torch.backends.cudnn.enabled`` is set and cuDNN is there."""
    return _modules()[1].enabled and available()


def allow_tf32() -> bool:
    """Whether float32 convolutions may round their inputs to TF32: what is set for convolutions comes
    before what is set for all of cuDNN, and that before ``allow_tf32``."""
    cudnn = _modules()[1]
    for said in (cudnn.conv.fp32_precision, cudnn.fp32_precision):
        if said != "none":
            return said == "tf32"
    return bool(cudnn.allow_tf32)


def deterministic() -> bool:
    """Whether deterministic algorithms are asked for."""
    settings, cudnn = _modules()
    return bool(cudnn.deterministic) or settings.are_deterministic_algorithms_enabled()


def in_between() -> bool:
    """Whether plans should be timed, but cannot be: nothing can be waited for in a capture."""
    return _modules()[1].benchmark and graphs.is_capturing()


def times_plans() -> int:
    """How many plans are to be timed."""
    cudnn = _modules()[1]
    return cudnn.benchmark and not in_between() and (cudnn.benchmark_limit or _ALL)


# ---- plans ---------------------------------------------------------------------------------------
class _Handle:
    """A thread's handle on a device, and the stream that it works in."""

    __slots__ = ("address", "stream", "_set_stream")

    def __init__(self, xp):
        library = _library()[0]
        if library is None:
            raise Unsupported(f"cuDNN is not available: {why_not()}")
        try:
            with xp.device:
                self.address = library.create_handle()
        except Exception as error:
            raise Unsupported(f"cuDNN made no handle on cuda:{xp.index}: {_line(error)}") from None
        self.stream, self._set_stream = None, library.set_stream

    def turn_to(self, stream: int) -> None:
        self._set_stream(handle=self.address, stream=stream)
        self.stream = stream


def _handle(xp) -> _Handle:
    """This thread's handle on the device, working in CuPy's current stream."""
    handles = _local.__dict__
    handle = handles.get(xp.index)
    if handle is None:
        handle = handles[xp.index] = _Handle(xp)
    stream = xp.cupy.cuda.get_current_stream().ptr
    if stream != handle.stream:
        handle.turn_to(stream)
    return handle


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def plan(xp, key: tuple, describe, exclude: tuple[str, ...] = (), addresses=None) -> Plan:
    """The plan of an operation on this device, made when first asked for.

    Args:
        key: what the operation depends on: its name, shapes, strides, dtypes and parameters.
        describe: ``describe(graph, cudnn)`` puts the operation into a ``cudnn.pygraph`` that
            computes in float32 and gives each input and output a uid of its own.
        exclude: names of cuDNN's numerical notes; plans that carry one are not taken.
        addresses: of the tensors by ascending uid, for plans to be timed with where
            ``torch.backends.cudnn.benchmark`` asks for that; the results are overwritten.

    Raises:
        Unsupported: if cuDNN cannot do this; the second time without trying again.
    """
    if deterministic():
        exclude = (*exclude, *DETERMINISTIC)
    timed = times_plans() if addresses is not None else 0
    full = (xp.index, exclude, timed, key)
    made = _plans.get(full)
    if made is None:
        with _building:
            made = _plans.get(full)
            if made is None:
                try:
                    with xp.device:
                        made = _build(xp, key, describe, exclude, timed, addresses)
                except Unsupported as error:
                    made = error
                _plans[full] = made
    if isinstance(made, Plan):
        return made
    raise Unsupported(*made.args)  # a fresh one: a kept exception would gather tracebacks


def described(library: Any, describe, handle: int | None = None) -> tuple[Any, tuple[int, ...]]:
    """(the graph that ``describe`` fills, checked by the frontend; the uids of its tensors)."""
    kind = library.data_type.FLOAT
    graph = library.pygraph(handle=handle, intermediate_data_type=kind, compute_data_type=kind)
    uids = _Recorder(graph)
    describe(uids, library)
    graph.validate()
    return graph, tuple(sorted(uids.seen()))


class _Recorder:
    """A graph that notes its tensors, to know their uids."""

    def __init__(self, graph):
        self._graph, self._made = graph, []

    def __getattr__(self, name):
        method = getattr(self._graph, name)

        def call(*args, **kwargs):
            out = method(*args, **kwargs)
            self._made.extend(out if isinstance(out, (list, tuple)) else (out,))
            return out

        return call

    def seen(self) -> set[int]:
        return {t.get_uid() for t in self._made
                if t is not None and not t.get_is_virtual() and not t.get_is_pass_by_value()}


def _build(xp, key, describe, exclude, timed, addresses) -> Plan:
    library, handle = _library()[0], _handle(xp)
    try:
        graph, uids = described(library, describe, handle.address)
        graph.build_operation_graph()
        graph.create_execution_plans([library.heur_mode.A, library.heur_mode.FALLBACK])
        if exclude:
            graph.deselect_numeric_notes([getattr(library.numerical_note, n) for n in exclude])
        graph.check_support()
        if timed:
            return _fastest(xp, graph, uids, timed, addresses)
        graph.build_plans()
        return _made(xp, graph, uids)
    except Exception as error:  # the frontend raises its own, RuntimeError and ValueError
        without = f" without {' and '.join(exclude)}" if exclude else ""
        raise Unsupported(f"cuDNN has no plan for {key}{without}: {_line(error)}") from None


def _made(xp, graph, uids) -> Plan:
    return Plan(xp, graph, uids, max(int(graph.get_workspace_size()), 0))


def _fastest(xp, graph, uids, most: int, addresses) -> Plan:
    """The plan that takes the least time of the first ``most``; the frontend runs what it built last."""
    found: list[tuple[float, int]] = []
    last: Exception | None = None
    for index in range(min(most, graph.get_execution_plan_count())):
        try:
            graph.build_plan_at_index(index)
            found.append((_milliseconds(xp, _made(xp, graph, uids).run, addresses), index))
        except Exception as error:  # left out by its notes, not for this device, too little memory
            last = error
    if not found:
        raise last or Unsupported("there is no candidate")
    graph.build_plan_at_index(min(found)[1])
    return _made(xp, graph, uids)


def faster(xp, calls, args):
    """The one of some functions that takes the least time; one that fails is left out."""
    found = []
    for number, call in enumerate(calls):
        try:
            found.append((_milliseconds(xp, call, *args), number))
        except RuntimeError:  # cuDNN's, or too little memory
            continue
    return calls[min(found)[1] if found else 0]


def _milliseconds(xp, call, *args) -> float:
    """The least time of some calls, after one that loads the kernels."""
    cuda = xp.cupy.cuda
    call(*args)
    times = []
    for _ in range(_RUNS):
        began, ended = cuda.Event(), cuda.Event()
        began.record()
        call(*args)
        ended.record()
        ended.synchronize()
        times.append(cuda.get_elapsed_time(began, ended))
    return min(times)


def _takes_list(graph, uids) -> bool:
    """Whether addresses can be given as a list by ascending uid: less work for each call."""
    if not hasattr(graph, "_execute_with_ptrs"):
        return False
    try:
        if hasattr(graph, "_prepare_variant_pack_template"):
            graph._prepare_variant_pack_template()  # the order may not be known before
        return tuple(graph._get_variant_pack_uids_sorted()) == uids
    except Exception:  # an interface that is the frontend's own affair: the public one will do
        return False


def _runner(xp, graph, uids, workspace: int):
    """``Plan.run``. The workspace comes from CuPy's pool and goes back to it at once: the pool gives
    it out again to the same stream only, after this work."""
    index, handles, made = xp.index, _local, _handle
    current, allocate = xp.cupy.cuda.get_current_stream, xp.cupy.cuda.alloc
    if _takes_list(graph, uids):
        put = graph._execute_with_ptrs
    else:
        def put(addresses, workspace, handle):
            graph.execute(dict(zip(uids, addresses)), workspace, handle=handle)

    def run(addresses):
        handle = handles.__dict__.get(index) or made(xp)
        stream = current().ptr
        if stream != handle.stream:
            handle.turn_to(stream)
        memory, at = None, 0
        if workspace:
            memory = allocate(workspace)
            at = memory.ptr
        try:
            put(addresses, at, handle.address)
        except Exception as error:
            raise RuntimeError(f"cuDNN failed on cuda:{index}: {_line(error)}") from None

    return run


__all__ = ["Plan", "Unsupported", "allow_tf32", "available", "data_type", "deterministic",
           "enabled", "plan", "switches", "version", "why_not"]
