"""The older interface, ``torch.autograd.profiler``: one recording per ``with`` block."""

from __future__ import annotations

from .events import EventList, FunctionEvent, FunctionEventAvg
from .recorder import Recorder, record_function


class profile:
    """Record the operations inside a ``with`` block.

    Args:
        enabled: False makes it do nothing.
        use_cuda, use_device: measure the time on the GPU, too.
        record_shapes, with_flops, profile_memory, with_stack: what else to note.
        with_modules, use_kineto, use_cpu, experimental_config, acc_events: accepted; they change
            nothing here.
    """

    def __init__(self, enabled: bool = True, *, use_cuda: bool = False,
                 use_device: str | None = None, record_shapes: bool = False,
                 with_flops: bool = False, profile_memory: bool = False, with_stack: bool = False,
                 with_modules: bool = False, use_kineto: bool = False, use_cpu: bool = True,
                 experimental_config=None, acc_events: bool = False):
        self.enabled, self.entered = enabled, False
        self.function_events: EventList | None = None
        self._recorder = Recorder(record_shapes, profile_memory, with_stack, with_flops,
                                  use_cuda or use_device == "cuda")

    def __enter__(self):
        if self.entered:
            raise RuntimeError("Profiler context manager is not reentrant")
        self.entered = True
        if self.enabled:
            self._recorder.start()
        return self

    def __exit__(self, *exc):
        if self.enabled:
            self._recorder.stop()
            self.function_events = self._recorder.events()

    def _finished(self) -> EventList:
        if self.function_events is None:
            raise RuntimeError("Profiler didn't finish running")
        return self.function_events

    def key_averages(self, group_by_input_shape: bool = False,
                     group_by_stack_n: int = 0) -> EventList:
        """Averages per operation."""
        return self._finished().key_averages(group_by_input_shape, group_by_stack_n)

    def table(self, *args, **kwargs) -> str:
        """All events as text; see ``EventList.table``."""
        return self._finished().table(*args, **kwargs)

    def export_chrome_trace(self, path) -> None:
        """Write a Chrome trace."""
        self._finished().export_chrome_trace(path)

    def export_stacks(self, path, metric: str = "self_cpu_time_total") -> None:
        """Write stacks for a flame graph."""
        self._finished().export_stacks(path, metric)

    def total_average(self) -> FunctionEventAvg:
        """All events as one."""
        return self._finished().total_average()

    @property
    def self_cpu_time_total(self) -> float:
        """Microseconds in all operations."""
        return self._finished().self_cpu_time_total

    def __str__(self):
        return "<unfinished profile>" if self.function_events is None else str(self._finished())


class emit_nvtx:
    """Not built: marks for NVIDIA's tools."""

    def __init__(self, enabled: bool = True, record_shapes: bool = False):
        raise NotImplementedError(
            "emit_nvtx is not built; use torch.profiler.profile with ProfilerActivity.CUDA"
        )


__all__ = ["EventList", "FunctionEvent", "FunctionEventAvg", "emit_nvtx", "profile",
           "record_function"]
