"""``profile`` and its schedule, with the API of ``torch.profiler``."""

from __future__ import annotations

import json
import os
import socket
import time
import warnings
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any

from .events import EventList, trace_entry, write_trace
from .recorder import Recorder, record_function


class ProfilerActivity(Enum):
    """What to look at."""

    CPU = 0
    CUDA = 1


class ProfilerAction(Enum):
    """What a step of a schedule does."""

    NONE = 0
    WARMUP = 1
    RECORD = 2
    RECORD_AND_SAVE = 3


def schedule(*, wait: int, warmup: int, active: int, repeat: int = 0, skip_first: int = 0,
             skip_first_wait: int = 0) -> Callable[[int], ProfilerAction]:
    """A schedule for ``profile``: after ``skip_first`` steps, cycles of wait, warm up, record.

    Args:
        wait, warmup, active: steps of each part of a cycle.
        repeat: cycles; 0 for no end.
        skip_first_wait: other than 0, the first cycle does not wait.

    Raises:
        ValueError: if a number is negative, or nothing is to be recorded.
    """
    numbers = (wait, warmup, active, repeat, skip_first)
    if min(numbers) < 0 or active <= 0:
        raise ValueError(
            "Invalid profiler schedule arguments: wait, warmup, repeat and skip_first must be at "
            f"least 0 and active at least 1, got {numbers}"
        )
    if warmup == 0:
        warnings.warn("Profiler won't be using warmup, this can skew profiler results")

    def action(step: int) -> ProfilerAction:
        if step < skip_first:
            return ProfilerAction.NONE
        step -= skip_first
        if skip_first_wait:
            step += wait
        cycle = wait + warmup + active
        if repeat and step // cycle >= repeat:
            return ProfilerAction.NONE
        place = step % cycle
        if place < wait:
            return ProfilerAction.NONE
        if place < wait + warmup:
            return ProfilerAction.WARMUP
        return ProfilerAction.RECORD if place < cycle - 1 else ProfilerAction.RECORD_AND_SAVE

    return action


def supported_activities() -> set[ProfilerActivity]:
    """What can be looked at on this machine."""
    from .. import cuda

    return {ProfilerActivity.CPU} | ({ProfilerActivity.CUDA} if cuda.is_available() else set())


def tensorboard_trace_handler(dir_name: str, worker_name: str | None = None,
                              use_gzip: bool = False) -> Callable[[profile], None]:
    """A handler that writes each cycle's trace into a folder, under names TensorBoard finds."""
    def handler(prof: profile) -> None:
        os.makedirs(dir_name, exist_ok=True)
        worker = worker_name or f"{socket.gethostname()}_{os.getpid()}"
        end = ".pt.trace.json" + (".gz" if use_gzip else "")
        prof.export_chrome_trace(os.path.join(dir_name, f"{worker}.{time.time_ns()}{end}"))

    return handler


class profile:
    """Record the operations that run inside a ``with`` block.

    The time of an operation is that of its kernel on arrays: without the checks and bookkeeping around
    it. Ranges (``record_function``, steps of optimizers and of the profiler) have everything in them.

    Args:
        activities: ``ProfilerActivity`` values; default: all that the machine has.
        schedule: from a step's number to what to do in it, see ``schedule``; default: record all.
        on_trace_ready: called with this object at the end of every recorded cycle.
        record_shapes, profile_memory, with_stack, with_flops: what else to note.
        with_modules, experimental_config, execution_trace_observer, acc_events, use_cuda,
            custom_trace_id_callback, post_processing_timeout_s: accepted; they change nothing here.

    Raises:
        ValueError: for an empty or unknown choice of activities.
    """

    def __init__(self, *, activities: Iterable[ProfilerActivity] | None = None,
                 schedule: Callable[[int], ProfilerAction] | None = None,
                 on_trace_ready: Callable[[profile], Any] | None = None,
                 record_shapes: bool = False, profile_memory: bool = False,
                 with_stack: bool = False, with_flops: bool = False, with_modules: bool = False,
                 experimental_config=None, execution_trace_observer=None,
                 acc_events: bool = False, use_cuda: bool | None = None,
                 custom_trace_id_callback=None,
                 post_processing_timeout_s: float | None = None):
        self.activities = _checked_activities(activities)
        self.schedule = schedule or (lambda step: ProfilerAction.RECORD)
        self.record_steps = schedule is not None
        self.on_trace_ready = on_trace_ready
        self._options = {
            "shapes": record_shapes, "memory": profile_memory, "stacks": with_stack,
            "flops": with_flops, "device": ProfilerActivity.CUDA in self.activities,
        }
        self.step_num = 0
        self.current_action = ProfilerAction.NONE
        self._recorder: Recorder | None = None
        self._range: record_function | None = None
        self._events: EventList | None = None
        self._metadata: dict[str, Any] = {}

    # ------------------------------------------------------------- running
    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *exc):
        self.stop()

    def start(self) -> None:
        """Begin, as the schedule says for the current step."""
        self._set_action(self.schedule(self.step_num))
        self._open_range()

    def stop(self) -> None:
        """End; a cycle under way is handed over."""
        self._close_range()
        recording = self._recorder is not None
        self._end_recording()
        self.current_action = ProfilerAction.NONE
        if recording and self.on_trace_ready is not None:
            self.on_trace_ready(self)

    def step(self) -> None:
        """Tell that the next step of the training begins."""
        self._close_range()
        before = self.current_action
        self.step_num += 1
        if before is ProfilerAction.RECORD_AND_SAVE:
            self._end_recording()
            if self.on_trace_ready is not None:
                self.on_trace_ready(self)
        self._set_action(self.schedule(self.step_num))
        self._open_range()

    def _set_action(self, action: ProfilerAction) -> None:
        self.current_action = action
        wanted = action in (ProfilerAction.RECORD, ProfilerAction.RECORD_AND_SAVE)
        if wanted and self._recorder is None:
            self._recorder = Recorder(**self._options)
            self._recorder.start()
        elif not wanted:
            self._end_recording()

    def _end_recording(self) -> None:
        if self._recorder is not None:
            self._recorder.stop()
            self._events, self._recorder = self._recorder.events(), None

    def _open_range(self) -> None:
        if self.record_steps and self._recorder is not None:
            self._range = record_function(f"ProfilerStep#{self.step_num}").__enter__()

    def _close_range(self) -> None:
        if self._range is not None:
            self._range.__exit__(None, None, None)
            self._range = None

    # ------------------------------------------------------------- results
    def events(self) -> EventList:
        """The events of the last recorded cycle.

        Raises:
            AssertionError: if nothing has been recorded to its end.
        """
        if self._events is None:
            raise AssertionError(
                "the profiler has no finished recording; leave its with block, or give it a "
                "schedule whose active steps have run"
            )
        return self._events

    def key_averages(self, group_by_input_shape: bool = False,
                     group_by_stack_n: int = 0) -> EventList:
        """Averages per operation; see ``EventList.key_averages``."""
        return self.events().key_averages(group_by_input_shape, group_by_stack_n)

    def export_chrome_trace(self, path) -> None:
        """Write the last cycle as a Chrome trace (chrome://tracing, Perfetto)."""
        events = self.events()
        write_trace([trace_entry(e, events._start_us) for e in events], self._metadata, path)

    def export_stacks(self, path, metric: str = "self_cpu_time_total") -> None:
        """Write stacks for a flame graph; needs ``with_stack=True``."""
        self.events().export_stacks(path, metric)

    def add_metadata(self, key: str, value: str) -> None:
        """Put a string into the trace file."""
        self._metadata[key] = value

    def add_metadata_json(self, key: str, value: str) -> None:
        """Put a value, given as JSON, into the trace file."""
        self._metadata[key] = json.loads(value)

    def export_memory_timeline(self, path: str, device: str | None = None) -> None:
        """Not built."""
        raise NotImplementedError(
            "export_memory_timeline is not built; profile_memory=True and key_averages().table("
            "sort_by='cpu_memory_usage') show which operations allocate"
        )


def _checked_activities(activities) -> set[ProfilerActivity]:
    if activities is None:
        return supported_activities()
    wanted = set(activities)
    if not wanted:
        raise ValueError("No valid profiler activities found; give ProfilerActivity.CPU or CUDA")
    if not all(isinstance(a, ProfilerActivity) for a in wanted):
        raise ValueError(f"activities must be ProfilerActivity values, got {activities}")
    if ProfilerActivity.CUDA in wanted - supported_activities():
        warnings.warn("CUDA is not available, disabling CUDA profiling")
        wanted.discard(ProfilerActivity.CUDA)
    return wanted


__all__ = ["ProfilerAction", "ProfilerActivity", "profile", "schedule", "supported_activities",
           "tensorboard_trace_handler"]
