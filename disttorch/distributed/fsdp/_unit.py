"""A unit: the parameters that are gathered, and whose gradients are reduced, in one call.

    sharded ──begin_gather──► under way ──finish_gather──► whole ──reshard──► sharded

The gather of one unit travels in the communication thread while another computes; so does the
reduction of its gradients, which begins when the last of them is there. `_reduce.Reduction` holds
what is under way. Reductions go through `group.ranks.reduce_scatter` only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...backend import namespace_for, namespace_of
from ...backend.devices import device
from ._layout import Layout
from ._param import ShardedParam
from ._policies import MixedPrecisionPolicy


class Lane:
    """Parameters of a unit whose elements travel in one buffer: those of one dtype."""

    def __init__(self, params: Sequence[ShardedParam], ranks: int) -> None:
        self.params = list(params)
        self.dtype = params[0].compute_dtype
        self.layout = Layout([(p.rows, p.width) for p in params], ranks)


class Unit:
    """Parameters that are sharded together over a group.

    Args:
        params: the parameters.
        mesh: the mesh; shard_axis, replicate_axis: its axes, None for one that there is not.
        reshard: what is done after forward: True, False, or a group (`ProcessGroup`) over which the
            parameters are sharded until backward.
        policy: precisions. keep_on_host: shards are in host memory.

    Attributes:
        name: of its module, for messages.
        state: "sharded", "gathering", "whole".
    """

    def __init__(
        self,
        params: Sequence[ShardedParam],
        mesh: Any,
        shard_axis: int | None,
        replicate_axis: int | None,
        reshard: Any,
        policy: MixedPrecisionPolicy,
        keep_on_host: bool,
    ) -> None:
        self.params, self.mesh, self.policy = list(params), mesh, policy
        self.name, self.number = "", 0
        self.shards = None if shard_axis is None else mesh.get_group(shard_axis)
        self.replicas = None if replicate_axis is None else mesh.get_group(replicate_axis)
        self.reshard_after_forward = reshard
        self.reshard_after_backward = self.unshard_in_backward = True
        self.sync = self.all_reduce = True
        self.divide_by: float | None = None
        self.keep_on_host = keep_on_host
        self.state = "sharded"
        self._lanes = self._lanes_over(1 if self.shards is None else self.shards.size())
        self._works: list[Any] = []
        self._versions: list[int] = []
        self._kept: list[Any] | None = None  # parts over the smaller group, between the passes
        self.partial: list[Any] | None = None  # reduced over the shards, not yet over the replicas
        self.events: list[tuple] | None = None

    @property
    def ranks(self) -> int:
        return 1 if self.shards is None else self.shards.size()

    def _lanes_over(self, ranks: int) -> list[Lane]:
        by_dtype: dict[Any, list[ShardedParam]] = {}
        for p in self.params:
            by_dtype.setdefault(p.compute_dtype, []).append(p)
        return [Lane(params, ranks) for params in by_dtype.values()]

    @property
    def trained(self) -> list[ShardedParam]:
        return [p for p in self.params if p.sharded.requires_grad]

    # ---- gathering ---------------------------------------------------------------------------

    def begin_gather(self, why: str = "") -> None:
        """Start to make the parameters whole; does nothing if they are, or will be."""
        if self.state == "whole" and self._versions != self._current_versions():
            self.reshard()  # the shards have changed since, by an optimizer's step for example
        if self.state != "sharded":
            return
        self._note("gather", why)
        self.state = "gathering"
        self._versions = self._current_versions()
        if self._kept is not None:
            self._begin(self._small_lanes, self.reshard_after_forward, self._kept)
            self._gathered_over = self._small_lanes
        elif self.ranks > 1:
            self._begin(self._lanes, self.shards, [self._section(lane) for lane in self._lanes])
            self._gathered_over = self._lanes

    def _begin(self, lanes: list[Lane], group: Any, sections: list[Any]) -> None:
        for lane, section in zip(lanes, sections):
            out = namespace_of(section).empty(lane.layout.total, section.dtype)
            # The section must live until the call has ended
            work = group.ranks.all_gather(out, section, async_op=True)
            self._works.append((work, out, section))

    def _section(self, lane: Lane) -> Any:
        xp = self._namespace()
        flat = xp.empty(lane.layout.section, lane.dtype)
        for i, p in enumerate(lane.params):
            lane.layout.put_section(flat, i, p.local_rows(), self._on_device)
        return flat

    def finish_gather(self) -> None:
        """Wait until the parameters are whole, and have the modules show them."""
        self.begin_gather()
        for p in self.params:
            p.whole._rg = p.sharded.requires_grad
        if self.state == "whole":
            return
        if not self._works:
            for p in self.params:
                local = self._on_device(p.sharded._local_tensor._data)
                p.whole._data = local.astype(p.compute_dtype, copy=False)
        else:
            for lane in self._gathered_over:
                work, out, _ = self._works.pop(0)
                work.wait()
                for i, p in enumerate(lane.params):
                    shape = p.rows_first(p.placeholder).shape
                    rows = lane.layout.take_whole(out, i, shape[1:])
                    p.whole._data = rows if p.dim == 0 else namespace_of(rows).contiguous_copy(
                        namespace_of(rows).moveaxis(rows, 0, p.dim)
                    )
                del work, out, _  # before the next lane is unpacked
        for p in self.params:
            p.show(p.whole)
        self.state, self._kept = "whole", None
        self._note("whole")

    def reshard(self) -> None:
        """Free the whole parameters; the modules show the shards."""
        if self.state == "gathering":
            self.finish_gather()
        self._kept = None
        if self.state == "sharded":
            return
        for p in self.params:
            p.free()
            p.show(p.sharded)
        self.state = "sharded"
        self._note("sharded")

    def after_forward(self) -> None:
        """What `reshard_after_forward` says."""
        mode = self.reshard_after_forward
        if mode is False:
            return
        if mode is True:
            self.reshard()
            return
        # Shard over the smaller group: each rank keeps its part of the whole it has
        self._small_lanes = self._lanes_over(mode.size())
        kept = []
        for lane in self._small_lanes:
            flat = self._namespace().empty(lane.layout.section, lane.dtype)
            for i, p in enumerate(lane.params):
                count, first = lane.layout.own_rows(i, mode.rank())
                rows = p.rows_first(p.whole._data)[first : first + count]
                lane.layout.put_section(flat, i, rows, lambda a: a)
            kept.append(flat)
        versions = self._versions
        self.reshard()
        if versions == self._current_versions():
            self._kept = kept

    # ---- small helpers -----------------------------------------------------------------------

    def _namespace(self) -> Any:
        return namespace_of(self.params[0].placeholder)

    def _on_device(self, array: Any) -> Any:
        """A shard's array in the memory of the device that computes."""
        if not self.keep_on_host:
            return array
        return self._namespace().from_host(array)

    def to_shard_memory(self, array: Any) -> Any:
        return namespace_of(array).to_host(array) if self.keep_on_host else array

    def refresh(self) -> None:
        """Look at the shards anew, after their dtype or device, or they themselves, have changed."""
        for p in self.params:
            p.adopt()
            p.refresh(self.policy.param_dtype, self._device_namespace())
        self._lanes = self._lanes_over(self.ranks)

    def _device_namespace(self) -> Any:
        local = self.params[0].sharded._local_tensor._data
        return namespace_for(device(self.mesh.device_type)) if self.keep_on_host else namespace_of(local)

    def accumulate(self) -> None:
        """Keep this backward's gradients for a later reduction, in the reduction's dtype."""
        for p in self.trained:
            grad = p.whole._grad
            wide = self.reduce_dtype(p)
            if grad is None or (p.accumulated is None and grad._data.dtype == wide):
                continue  # it stays where it is, and the next one is added to it
            if p.accumulated is None:
                p.accumulated = grad._data.astype(wide)
            else:
                p.accumulated += grad._data
            p.whole._grad = None

    def reduce_dtype(self, p: ShardedParam) -> Any:
        """What gradients of a parameter are reduced in (a NumPy dtype)."""
        chosen = self.policy.reduce_dtype
        return p.compute_dtype if chosen is None else chosen.np

    def has_gradients(self) -> bool:
        return any(p.whole._grad is not None or p.accumulated is not None for p in self.params)

    def _current_versions(self) -> list[int]:
        return [p.sharded._local_tensor._version for p in self.params]

    def _note(self, *event: Any) -> None:
        if self.events is not None:
            self.events.append((event[0], self.name, *event[1:]))

    def __repr__(self) -> str:
        return f"Unit({self.name!r}, {len(self.params)} parameters, {self.state})"


__all__ = ["Lane", "Unit"]
