"""Recording: an observer of the engine, and the ranges that users mark, become events."""

from __future__ import annotations

import functools
import sys
import threading
from pathlib import Path
from time import perf_counter_ns
from types import FrameType

from ..backend import ndarray
from ..ops.observe import Observer, attach, detach, label
from ..optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from ..tensor import Tensor
from ..utils.flop_counter import FORMULAS, node_flops
from .events import EventList, FunctionEvent, nest

_PACKAGE = str(Path(__file__).resolve().parent.parent)
_recorders: tuple[Recorder, ...] = ()
_lock = threading.Lock()


class Recorder(Observer):
    """Collects events between ``start`` and ``stop``.

    Args:
        shapes, memory, stacks, flops: what to note of each call; all cost time.
        device: measure the time on the GPU by events in its stream.
    """

    def __init__(self, shapes=False, memory=False, stacks=False, flops=False, device=False):
        self.shapes, self.memory, self.stacks = shapes, memory, stacks
        self.flops, self.device = flops, device
        self.raw: list[tuple] = []
        self.start_us = 0.0

    def start(self) -> None:
        """Begin to record."""
        global _recorders
        self.start_us = perf_counter_ns() / 1e3
        self.raw.clear()
        with _lock:
            _recorders = (*_recorders, self)
        self._hooks = [
            register_optimizer_step_pre_hook(_begin_step),
            register_optimizer_step_post_hook(_end_step),
        ] if len(_recorders) == 1 else []
        attach(self)

    def stop(self) -> None:
        """Record no more."""
        global _recorders
        detach(self)
        for hook in self._hooks:
            hook.remove()
        with _lock:
            _recorders = tuple(r for r in _recorders if r is not self)

    def events(self) -> EventList:
        """What was recorded, in order of time."""
        if self.device:
            from .. import cuda

            cuda.synchronize()
        made = [self._made(i, *entry) for i, entry in enumerate(self.raw)]
        nest(made)
        made.sort(key=lambda e: e.time_range.start)
        return EventList(made, self.memory, self.device, self.flops, self.start_us)

    @staticmethod
    def _made(i, name, kind, thread, begin, end, extra):
        marks = extra.pop("marks", None)
        if marks is not None:
            extra = {**extra, "device_time_total": marks[0].elapsed_time(marks[1]) * 1e3}
        return FunctionEvent(i, name, thread, begin / 1e3, end / 1e3, kind, **extra)

    # ------------------------------------------------------------- what the engine tells
    def begin_op(self, op, args):
        if not self.device or all(a.__class__ is ndarray or not _is_array(a) for a in args):
            return None
        from ..cuda import Event

        marks = Event(enable_timing=True), Event(enable_timing=True)
        marks[0].record()
        return marks

    def end_op(self, op, args, out, token, begin, end):
        extra: dict = {}
        if token is not None:
            token[1].record()
            extra["marks"] = token
        if self.shapes:
            extra["input_shapes"] = [_shape(args[i]) for i in op.slots]
        if self.memory and out is not None:
            extra |= _result_bytes(out)
        if self.flops and op.name in FORMULAS and out is not None:
            extra["flops"] = FORMULAS[op.name](args, out)
        self._keep(label(op), "cpu_op", begin, end, extra)

    def begin_node(self, node, grad):
        return node_flops(node, _first(grad)) if self.flops else None

    def end_node(self, node, grad, token, begin, end):
        extra: dict = {}
        if self.shapes:
            grads = grad if isinstance(grad, tuple) else (grad,)
            extra["input_shapes"] = [_shape(g) for g in grads]
        if token:
            extra["flops"] = token
        self._keep(node.name(), "cpu_op", begin, end, extra)

    def range(self, name: str, begin: int, end: int) -> None:
        """A range that the user marked."""
        self._keep(name, "user_annotation", begin, end, {})

    def _keep(self, name, kind, begin, end, extra):
        if self.stacks:
            extra["stack"] = user_stack()
        self.raw.append((name, kind, threading.get_ident(), begin, end, extra))


def _is_array(value) -> bool:
    return hasattr(value, "shape") and hasattr(value, "strides")


def _first(grad):
    grads = grad if isinstance(grad, tuple) else (grad,)
    first = next((g for g in grads if g is not None), None)
    return first._data if isinstance(first, Tensor) else first


def _shape(value) -> list:
    if isinstance(value, (list, tuple)):
        return [_shape(v) for v in value]
    return list(value.shape) if hasattr(value, "shape") else []


def _result_bytes(out) -> dict:
    """Bytes of results that are not views of something else."""
    host = device = 0
    for array in out if isinstance(out, (tuple, list)) else (out,):
        if getattr(array, "base", 0) is None:
            if array.__class__ is ndarray:
                host += array.nbytes
            else:
                device += array.nbytes
    return {"cpu_memory_usage": host, "device_memory_usage": device}


def user_stack() -> list[str]:
    """Lines ``file(line): function`` outside this package, innermost first."""
    frame: FrameType | None = sys._getframe(1)
    found = []
    while frame is not None:
        code = frame.f_code
        if not code.co_filename.startswith(_PACKAGE):
            found.append(f"{code.co_filename}({frame.f_lineno}): {code.co_name}")
        frame = frame.f_back
    return found


# ---------------------------------------------------------------- marked ranges
class record_function:
    """Mark what runs inside as a range of the profile: a context manager and a decorator.

    Args:
        name: of the range.
        args: accepted for PyTorch's signature; shown in no table.
    """

    def __init__(self, name: str, args: str | None = None):
        self.name, self.args, self.begin = name, args, 0

    def __enter__(self):
        self.begin = perf_counter_ns()
        return self

    def __exit__(self, *exc):
        if _recorders:
            end = perf_counter_ns()
            for recorder in _recorders:
                recorder.range(self.name, self.begin, end)

    def __call__(self, function):
        @functools.wraps(function)
        def wrapped(*args, **kwargs):
            with record_function(self.name, self.args):
                return function(*args, **kwargs)

        return wrapped


_steps = threading.local()


def _begin_step(optimizer, args, kwargs):
    name = f"Optimizer.step#{type(optimizer).__name__}.step"
    _steps.open = [*getattr(_steps, "open", []), record_function(name).__enter__()]


def _end_step(optimizer, args, kwargs):
    if getattr(_steps, "open", []):
        _steps.open.pop().__exit__(None, None, None)


__all__ = ["Recorder", "record_function", "user_stack"]
