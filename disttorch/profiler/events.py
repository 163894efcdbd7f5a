"""What was recorded: events in a tree per thread, their averages, tables and trace files."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

_UNITS = ((1e6, "s"), (1e3, "ms"), (1.0, "us"))


class Interval:
    """A span of time in microseconds."""

    __slots__ = ("start", "end")

    def __init__(self, start: float, end: float):
        self.start, self.end = start, end

    def elapsed_us(self) -> float:
        """Its length."""
        return self.end - self.start


class FunctionEvent:
    """One call of an operation, a backward node or a marked range.

    Attributes:
        name: of the operation.
        kind: ``"cpu_op"`` or ``"user_annotation"``.
        thread: identifier of the thread; time_range: when, in microseconds.
        input_shapes: of the arrays it got (empty if not asked for).
        cpu_memory_usage, device_memory_usage: bytes that its own results take.
        device_time_total: microseconds on the GPU (0 if not asked for).
        flops: floating point operations (0 if not asked for).
        stack: the user's lines that led to it, innermost first (empty if not asked for).
        cpu_children, cpu_parent: events inside it, and the one around it.
    """

    def __init__(self, id: int, name: str, thread: int, start_us: float, end_us: float,
                 kind: str = "cpu_op", input_shapes=(), cpu_memory_usage: int = 0,
                 device_memory_usage: int = 0, flops: int = 0, stack=(),
                 device_time_total: float = 0.0):
        self.id, self.name, self.key, self.thread, self.kind = id, name, name, thread, kind
        self.time_range = Interval(start_us, end_us)
        self.input_shapes, self.stack, self.flops = list(input_shapes), list(stack), flops
        self.cpu_memory_usage, self.device_memory_usage = cpu_memory_usage, device_memory_usage
        self.device_time_total = device_time_total
        self.cpu_children: list[FunctionEvent] = []
        self.cpu_parent: FunctionEvent | None = None
        self.count = 1

    @property
    def is_user_annotation(self) -> bool:
        """Whether it is a range that the user marked."""
        return self.kind == "user_annotation"

    @property
    def cpu_time_total(self) -> float:
        """Microseconds, calls inside included."""
        return self.time_range.elapsed_us()

    cpu_time = cpu_time_total

    @property
    def self_cpu_time_total(self) -> float:
        """Microseconds without the calls inside."""
        return self.cpu_time_total - sum(child.cpu_time_total for child in self.cpu_children)

    @property
    def self_cpu_memory_usage(self) -> int:
        """Bytes of its own results alone."""
        return self.cpu_memory_usage

    @property
    def self_device_memory_usage(self) -> int:
        """The same of results on the GPU."""
        return self.device_memory_usage

    @property
    def self_device_time_total(self) -> float:
        """Microseconds on the GPU without those of the calls inside."""
        return self.device_time_total - sum(child.device_time_total for child in self.cpu_children)

    def __repr__(self):
        return (
            f"<FunctionEvent name={self.name} thread={self.thread} "
            f"cpu_time={as_time(self.cpu_time_total)} input_shapes={self.input_shapes}>"
        )


class FunctionEventAvg:
    """All events of one key together; the times are sums, ``cpu_time`` the mean."""

    def __init__(self, event: FunctionEvent, shapes: bool, stack_depth: int):
        self.key = event.key
        self.input_shapes = event.input_shapes if shapes else []
        self.stack = event.stack[:stack_depth]
        self.is_user_annotation = event.is_user_annotation
        self.count = self.flops = self.cpu_memory_usage = self.device_memory_usage = 0
        self.cpu_time_total = self.self_cpu_time_total = 0.0
        self.device_time_total = self.self_device_time_total = 0.0

    def add(self, event: FunctionEvent) -> None:
        """Take one more event in."""
        self.count += event.count
        self.self_cpu_time_total += event.self_cpu_time_total
        self.self_device_time_total += event.self_device_time_total
        if not _inside_same(event):  # a call inside a call of the same name is not counted twice
            self.cpu_time_total += event.cpu_time_total
            self.device_time_total += event.device_time_total
        self.cpu_memory_usage += event.cpu_memory_usage
        self.device_memory_usage += event.device_memory_usage
        self.flops += event.flops

    @property
    def cpu_time(self) -> float:
        """Microseconds per call."""
        return self.cpu_time_total / self.count

    @property
    def device_time(self) -> float:
        """Microseconds on the GPU per call."""
        return self.device_time_total / self.count

    @property
    def self_cpu_memory_usage(self) -> int:
        """Bytes of the results alone."""
        return self.cpu_memory_usage

    @property
    def self_device_memory_usage(self) -> int:
        """The same of results on the GPU."""
        return self.device_memory_usage

    def __repr__(self):
        return (
            f"<FunctionEventAvg key={self.key} count={self.count} "
            f"cpu_time={as_time(self.cpu_time)} self_cpu_time={as_time(self.self_cpu_time_total)} "
            f"input_shapes={self.input_shapes}>"
        )


def _inside_same(event: FunctionEvent) -> bool:
    outer = event.cpu_parent
    while outer is not None:
        if outer.key == event.key:
            return True
        outer = outer.cpu_parent
    return False


class EventList(list):
    """Events or averages, with tables and files made of them."""

    def __init__(self, events=(), memory: bool = False, device: bool = False, flops: bool = False,
                 start_us: float = 0.0):
        super().__init__(events)
        self._shows = {"memory": memory, "device": device, "flops": flops}
        self._start_us = start_us

    @property
    def self_cpu_time_total(self) -> float:
        """Microseconds in all operations; ranges that the user marked do not count."""
        return sum(e.self_cpu_time_total for e in self if not e.is_user_annotation)

    def key_averages(self, group_by_input_shapes: bool = False,
                     group_by_stack_n: int = 0) -> EventList:
        """Events of one name (and shapes, and innermost stack lines, if asked for) together."""
        groups: dict[tuple, FunctionEventAvg] = {}
        for event in self:
            key = (
                event.key, event.is_user_annotation,
                str(event.input_shapes) if group_by_input_shapes else "",
                tuple(event.stack[:group_by_stack_n]),
            )
            if key not in groups:
                groups[key] = FunctionEventAvg(event, group_by_input_shapes, group_by_stack_n)
            groups[key].add(event)
        return EventList(groups.values(), **self._shows)

    def total_average(self) -> FunctionEventAvg:
        """Everything as one entry called ``Total``."""
        total = FunctionEventAvg(FunctionEvent(0, "Total", 0, 0.0, 0.0), False, 0)
        for event in self:
            total.count += event.count
            total.self_cpu_time_total += event.self_cpu_time_total
            total.self_device_time_total += event.self_device_time_total
            total.cpu_memory_usage += event.cpu_memory_usage
            total.device_memory_usage += event.device_memory_usage
            total.flops += event.flops
        total.cpu_time_total = total.self_cpu_time_total
        total.device_time_total = total.self_device_time_total
        return total

    def table(self, sort_by: str | None = None, row_limit: int = 100,
              max_src_column_width: int = 75, max_name_column_width: int = 55,
              max_shapes_column_width: int = 80, header: str | None = None,
              top_level_events_only: bool = False) -> str:
        """The entries as a text table; see PyTorch's ``EventList.table``.

        Args:
            sort_by: an attribute of the entries, for example ``"self_cpu_time_total"``.
            row_limit: at most so many rows; -1 for all.

        Raises:
            AttributeError: if entries have no attribute ``sort_by``.
        """
        from .table import build_table

        rows = [e for e in self if not top_level_events_only or e.cpu_parent is None]
        if sort_by is not None:
            for old, new in (("cuda_time", "device_time"), ("cuda_memory", "device_memory")):
                sort_by = sort_by.replace(old, new)
            rows.sort(key=lambda e: getattr(e, sort_by), reverse=True)
        total = self.self_cpu_time_total
        return build_table(
            rows if row_limit < 0 else rows[:row_limit], total, self._shows, header,
            max_name_column_width, max_shapes_column_width, max_src_column_width,
        )

    def __str__(self):
        return self.table()

    def export_chrome_trace(self, path) -> None:
        """Write a trace that chrome://tracing and Perfetto read; a name in ``.gz`` compresses it."""
        write_trace([trace_entry(e, self._start_us) for e in self], {}, path)

    def export_stacks(self, path, metric: str = "self_cpu_time_total") -> None:
        """Write lines ``outermost;...;innermost value`` as flame graph tools read them.

        Raises:
            ValueError: for another metric than ``self_cpu_time_total``, or without stacks.
        """
        if metric != "self_cpu_time_total":
            raise ValueError(f"metric should be 'self_cpu_time_total', got {metric!r}")
        if not any(e.stack for e in self):
            raise ValueError("no stacks were recorded; profile with with_stack=True")
        table = str.maketrans(" ;\t\n", "____")
        lines = [
            ";".join(line.translate(table) for line in reversed(e.stack))
            + f" {int(e.self_cpu_time_total)}\n"
            for e in self if e.stack and int(e.self_cpu_time_total) > 0
        ]
        Path(path).write_text("".join(lines), encoding="utf-8")


def nest(events: list[FunctionEvent]) -> None:
    """Find which event is inside which: per thread, by their times."""
    by_thread: dict[int, list] = {}
    for event in events:
        by_thread.setdefault(event.thread, []).append(event)
    for mine in by_thread.values():
        mine.sort(key=lambda e: (e.time_range.start, -e.time_range.end))
        around: list[FunctionEvent] = []
        for event in mine:
            while around and around[-1].time_range.end < event.time_range.end:
                around.pop()
            if around:
                event.cpu_parent = around[-1]
                around[-1].cpu_children.append(event)
            around.append(event)


def trace_entry(event: FunctionEvent, start_us: float) -> dict:
    """One complete event ("X") of the Trace Event Format."""
    arguments: dict = {"External id": event.id}
    if event.input_shapes:
        arguments["Input Dims"] = event.input_shapes
    for name, value in (("Bytes", event.cpu_memory_usage + event.device_memory_usage),
                        ("Flops", event.flops), ("Call stack", ";".join(event.stack)),
                        ("Device time us", event.device_time_total)):
        if value:
            arguments[name] = value
    return {
        "ph": "X", "cat": event.kind, "name": event.name, "pid": os.getpid(), "tid": event.thread,
        "ts": event.time_range.start - start_us, "dur": event.cpu_time_total, "args": arguments,
    }


def write_trace(entries: list[dict], metadata: dict, path) -> None:
    """Write trace entries as one JSON object."""
    names = [
        {"ph": "M", "name": "process_name", "pid": os.getpid(), "tid": 0, "args": {"name": "python"}}
    ]
    text = json.dumps({"schemaVersion": 1, **metadata, "traceEvents": names + entries})
    if str(path).endswith(".gz"):
        with gzip.open(path, "wt", encoding="utf-8") as file:
            file.write(text)
    else:
        Path(path).write_text(text, encoding="utf-8")


def as_time(us: float) -> str:
    """Microseconds with a fitting unit, as in ``1.234ms``."""
    for size, unit in _UNITS:
        if us >= size:
            return f"{us / size:.3f}{unit}"
    return f"{us:.3f}us"


__all__ = ["EventList", "FunctionEvent", "FunctionEventAvg", "as_time"]
