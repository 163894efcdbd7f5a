"""The gradients of one unit on their way to the ranks that keep them.

Over the shards a reduce_scatter, then over the replicas (HSDP) an all_reduce of what it left. At the
end of each section a flag for each parameter says whether the rank had a gradient: a parameter that
some ranks did not use counts there as zero, one that no rank used keeps its `.grad` as it was. After
the flags comes the unit's number: ranks that run different units of the same size would otherwise
mix their gradients, and nobody would notice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from collectives import PremulSum, ReduceOp

from ...backend import namespace_of
from ._layout import Layout
from ._param import ShardedParam
from ._unit import Unit


class _GradientLane:
    """Gradients that travel in one buffer."""

    def __init__(self, params: Sequence[ShardedParam], ranks: int) -> None:
        self.params = list(params)
        self.layout = Layout([(p.rows, p.width) for p in params], ranks, extra=len(params) + 1)
        self.mark = 0.0  # what the reduced number must be
        self.work: Any = None
        self.flat: Any = None
        self.out: Any = None


class Reduction:
    """Takes the gradients out of a unit's whole parameters and begins to reduce them.

    Call `advance` when there is time, `finish` when the results are wanted; both are calls that all
    ranks must make in the same order.
    """

    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        self._all_reduces = unit.all_reduce
        self._advanced = False
        by_dtype: dict[Any, list[ShardedParam]] = {}
        for p in unit.trained:
            by_dtype.setdefault(unit.reduce_dtype(p), []).append(p)
        unit._note("reduce")
        self.lanes = []
        for dtype, params in by_dtype.items():
            lane = _GradientLane(params, unit.ranks)
            self._pack(lane, dtype)
            self._launch(lane)
            self.lanes.append(lane)

    def _pack(self, lane: _GradientLane, dtype: Any) -> None:
        xp = self.unit._namespace()
        lane.flat = flat = xp.empty(lane.layout.total, dtype)
        used = []
        for i, p in enumerate(lane.params):
            grad = _take_gradient(p)
            used.append(grad is not None)
            if grad is None:
                xp = namespace_of(flat)
                grad = xp.broadcast_to(xp.zeros((), dtype), p.shape)
            lane.layout.put_whole(flat, i, p.rows_first(grad))
        number = self.unit.number % 128  # 16-bit floats hold it exactly
        lane.mark = float(number)
        flags = flat.reshape(lane.layout.n, lane.layout.section)[:, -len(used) - 1 :]
        flags[...] = xp.asarray([*used, number]).astype(dtype)

    def _launch(self, lane: _GradientLane) -> None:
        group = self.unit.shards
        if group is None or group.size() == 1:
            lane.out, lane.flat = lane.flat, None
            if self.unit.divide_by is not None:
                lane.out *= lane.out.dtype.type(1.0 / self.unit.divide_by)
                lane.mark /= self.unit.divide_by
            return
        lane.out = namespace_of(lane.flat).empty(lane.layout.section, lane.flat.dtype)
        lane.work = group.ranks.reduce_scatter(lane.out, lane.flat, self._op(), async_op=True)
        if self.unit.divide_by is not None:
            lane.mark *= group.size() / self.unit.divide_by

    def _op(self) -> Any:
        factor = self.unit.divide_by
        return ReduceOp.AVG if factor is None else PremulSum(1.0 / factor)

    def advance(self) -> None:
        """Wait for the reduce_scatter, free its buffer, and begin the all_reduce."""
        if self._advanced:
            return
        self._advanced = True
        unit = self.unit
        for i, lane in enumerate(self.lanes):
            if lane.work is not None:
                lane.work.wait()
            lane.work = lane.flat = None
            if unit.partial is not None:
                out, mark = unit.partial[i]
                lane.out += out
                lane.mark += mark
        if not self._all_reduces and unit.replicas is not None:
            unit.partial = [(lane.out, lane.mark) for lane in self.lanes]
            return
        unit.partial = None
        if unit.replicas is not None and unit.replicas.size() > 1:
            op = ReduceOp.AVG if unit.divide_by is None else ReduceOp.SUM
            for lane in self.lanes:
                lane.mark *= 1 if unit.divide_by is None else unit.replicas.size()
                lane.work = unit.replicas.ranks.all_reduce(lane.out, op, async_op=True)

    def finish(self) -> None:
        """Wait, and add what this rank keeps to its shards' `.grad`."""
        self.advance()
        unit = self.unit
        if unit.partial is not None:
            return
        rank = 0 if unit.shards is None else unit.shards.rank()
        for lane in self.lanes:
            if lane.work is not None:
                lane.work.wait()
            count = len(lane.params) + 1
            used = namespace_of(lane.out).to_host(lane.out[-count:]).astype("float64")
            self._check_mark(used[-1], lane.mark)
            for i, p in enumerate(lane.params):
                if used[i] != 0:
                    tail = p.rows_first(p.placeholder).shape[1:]
                    rows = lane.layout.take_section(lane.out, i, rank, tail)
                    p.add_gradient(rows, unit.keep_on_host)
        unit._note("reduced")

    def _check_mark(self, found: float, wanted: float) -> None:
        if abs(found - wanted) > 0.05 * max(abs(wanted), 1.0):
            raise RuntimeError(
                f"ranks have mixed the gradients of different units: this rank reduced "
                f"{self.unit.name!r}, unit {self.unit.number}, while others reduced another one. Every "
                "rank must run the same units in the same order, forward and backward; put what only "
                "some ranks run into one unit with what all run"
            )


def _take_gradient(p: ShardedParam) -> Any:
    """A parameter's gradient with what has accumulated, which are let go of; None without any."""
    grad, kept = p.whole._grad, p.accumulated
    p.whole._grad = p.accumulated = None
    if grad is None:
        return kept
    if kept is None:
        return grad._data
    kept += grad._data
    return kept


__all__ = ["Reduction"]
