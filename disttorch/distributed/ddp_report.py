"""What DistributedDataParallel can say about itself: sizes, buckets, and where a step's time went."""

from __future__ import annotations

import time
from typing import Any

_ALWAYS = 10  # the first iterations are all measured, then one in `Clock.every`


class Clock:
    """Times of one iteration, in nanoseconds of the wall clock, and their means.

    Communication counts from the start of the first bucket to the end of the last one, as the
    thread that carries it out saw it; its overlap is the part of it before backward had computed
    its last gradient. A device's work is under way when a call returns: these are the host's times.

    Attributes:
        every: one in so many iterations is measured, after the first ten.
        iteration: number of backwards that were reduced.
        absent: parameters without gradient in the last one.
    """

    FIGURES = (
        "forward_compute_time", "backward_compute_time", "backward_comm_time",
        "backward_compute_comm_overlap_time",
    )  # fmt: skip

    def __init__(self) -> None:
        self.every = 100
        self.iteration = 0
        self.absent: list[int] = []
        self.last = dict.fromkeys(self.FIGURES, 0)
        self._sums = dict.fromkeys(self.FIGURES, 0)
        self._measured = 0
        self._on = True
        self._start = self._forward = self._backward = self._reduction = self._end = 0

    def forward_began(self) -> None:
        self._on = self.iteration < _ALWAYS or self.iteration % self.every == 0
        self._start = time.perf_counter_ns() if self._on else 0

    def forward_ended(self) -> None:
        if self._on:
            self._forward = time.perf_counter_ns() - self._start

    def backward_began(self) -> None:
        """At its first gradient; what came before, from the end of forward, counts as backward."""
        if self._on:
            self._backward = self._start + self._forward if self._start else time.perf_counter_ns()
            self._reduction = self._end = 0

    def reduction_began(self) -> None:
        if self._on:
            self._reduction = time.perf_counter_ns()

    def watch(self, work: Any, last: bool) -> None:
        """Note the end of the last bucket's reduction."""
        if self._on and last:
            work.when_ended(self._note_end)

    def _note_end(self, error: BaseException | None) -> None:
        self._end = time.perf_counter_ns()

    def compute_ended(self) -> None:
        """The last gradient is there."""
        if self._on:
            self._computed = time.perf_counter_ns()

    def backward_ended(self, absent: list[int]) -> None:
        """The reduced gradients are in their places."""
        self.iteration += 1
        self.absent = absent
        if not self._on or not self._backward:
            return
        end = self._end or time.perf_counter_ns()
        comm = max(0, end - self._reduction) if self._reduction else 0
        overlap = max(0, min(end, self._computed) - self._reduction) if self._reduction else 0
        figures = (self._forward, self._computed - self._backward, comm, overlap)
        self.last = dict(zip(self.FIGURES, figures))
        self._measured += 1
        for name, value in self.last.items():
            self._sums[name] += value

    def means(self) -> dict[str, int]:
        """The mean of each figure over the measured iterations."""
        return {name: total // max(1, self._measured) for name, total in self._sums.items()}

    _computed = 0


def _listed(numbers: Any) -> str:
    return ", ".join(map(str, numbers))


def logging_data(ddp: Any) -> dict[str, Any]:
    """The figures of `DistributedDataParallel._get_ddp_logging_data`, under PyTorch's names.

    Sizes in bytes, times in nanoseconds. `avg_` figures are means over the measured iterations.
    """
    reducer, clock = ddp.reducer, ddp.reducer.clock
    parameters = reducer.parameters
    buckets = [bucket.members for bucket in reducer.buckets]
    sizes = [sum(parameters[i]._data.nbytes for i in members) for members in buckets]
    dtypes = sorted({p.dtype.name for p in parameters})
    data: dict[str, Any] = {
        "module_name": type(ddp.module).__name__,
        "world_size": ddp.process_group.size(),
        "rank": ddp.process_group.rank(),
        "backend_name": ddp.process_group.backend,
        "device_ids": _listed(ddp.device_ids or ()),
        "output_device": -1 if ddp.output_device is None else ddp.output_device,
        "is_multi_device_module": ddp.is_multi_device_module,
        "broadcast_buffers": ddp.forward_sync_buffers,
        "bucket_cap_bytes": ddp.bucket_bytes_cap,
        "initial_bucket_size_limits": _listed(reducer.caps),
        "find_unused_parameters": ddp.find_unused_parameters,
        "gradient_as_bucket_view": ddp.gradient_as_bucket_view,
        "static_graph": ddp.static_graph,
        "comm_hook": ddp._hook_name,
        "num_parameter_tensors": len(parameters),
        "total_parameter_size_bytes": sum(p._data.nbytes for p in parameters),
        "dtypes": _listed(dtypes),
        "has_rebuilt_buckets": reducer.rebuilt,
        "bucket_sizes": _listed(ddp._first_bucket_sizes),
        "rebuilt_bucket_sizes": _listed(sizes) if reducer.rebuilt else "",
        "rebuilt_per_bucket_param_indices": (
            " ".join(f"[{_listed(members)}]" for members in buckets) if reducer.rebuilt else ""
        ),
        "prev_iteration_grad_ready_order_indices": _listed(reducer.last_order),
        "num_buckets_reduced": sum(not bucket.idle for bucket in reducer.buckets),
        "unused_parameter_size": sum(parameters[i]._data.nbytes for i in clock.absent),
        "iteration": clock.iteration,
        "can_set_static_graph": reducer.was_static,
        "join_uneven_inputs": ddp._joined_once,
    }
    data.update(clock.last)
    data.update({f"avg_{name}": value for name, value in clock.means().items()})
    return data
