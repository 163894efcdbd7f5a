"""The gradients of modules under `fully_shard` (ZeRO-2 and 3, HSDP), summed in the same tree.

The units are told to leave their gradients whole on each rank. After every virtual shard they go
into the tree's sums, and in the end each rank keeps its part of the mean. The sum is that of the
unsharded model to the last bit, and so are the weights: parameters and optimizer state are cut, and
what an optimizer does to an element does not depend on the cut.

The price: the whole gradients are in memory until the loop ends, as with gradients that accumulate,
and the sum is made on all ranks: 2Ψ(n-1)/n bytes instead of Ψ(n-1)/n.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ... import ops
from ...autograd import no_grad
from ...backend import namespace_of
from ...nn import Module
from ...nn.utils import get_total_norm
from ...tensor import Tensor, wrap
from ..fsdp._layout import Layout
from ..fsdp._reduce import _take_gradient
from ..fsdp._state import state_of
from ..process_group import ProcessGroup
from .tree_sum import TreeSum


class ShardedGradients:
    """The gradients of all units in `module`, from loop to loop.

    Args:
        module: of which some part was given to `fully_shard`.
        group: all ranks that hold shards or replicas. shards: V.

    Raises:
        ValueError: units over other ranks than the group's.
    """

    def __init__(self, module: Module, group: ProcessGroup, shards: int) -> None:
        self.module = module
        states = {id(s): s for m in module.modules() if (s := state_of(m)) is not None}
        self.units = [s.unit for s in states.values() if s.unit is not None]
        for unit in self.units:
            if unit.mesh.size() != group.size():
                raise ValueError(
                    f"ExactDataParallel: a unit of fully_shard lies on {unit.mesh.size()} ranks, the "
                    f"group has {group.size()}; give the group of all its ranks"
                )
        self._lanes: list[tuple[Any, list[Any], TreeSum]] = []
        self._before: list[tuple[Any, bool, bool]] = []
        for unit in self.units:
            by_dtype: dict[Any, list[Any]] = {}
            for p in unit.trained:
                by_dtype.setdefault(unit.reduce_dtype(p), []).append(p)
            for dtype, params in by_dtype.items():
                xp = namespace_of(params[0].placeholder)
                like = [xp.broadcast_to(xp.zeros((), dtype), p.shape) for p in params]
                self._lanes.append((unit, params, TreeSum(like, group, shards)))
        self.norms: dict[int, Any] | None = None

    def begin(self) -> None:
        """Have the units leave their gradients alone."""
        self._before = [(u, u.sync, u.all_reduce) for u in self.units]
        for unit in self.units:
            unit.sync = unit.all_reduce = False
            for p in unit.trained:
                p.whole._grad = p.accumulated = None
        for _, _, total in self._lanes:
            total.restart()
        earlier = any(p.sharded.grad is not None for u in self.units for p in u.trained)
        self.norms = None if earlier else {}

    def collect(self, size: int) -> None:
        """Take in a virtual shard of `size` samples."""
        for _, params, total in self._lanes:
            total.push([_take_gradient(p) for p in params], size)

    def finish(self) -> list[tuple[int, int]]:
        """Add this rank's part of the means to the shards' `.grad`.

        Returns:
            for each sum the samples of all shards as it has counted them, and how many gradients of
            parameters of single shards went into it.
        """
        found = []
        for unit, params, total in self._lanes:
            means, counts, samples = total.mean()
            found.append((samples, sum(counts)))
            rank = 0 if unit.shards is None else unit.shards.rank()
            for p, mean, count in zip(params, means, counts):
                if not count:
                    continue
                kept, first = Layout([(p.rows, p.width)], unit.ranks).own_rows(0, rank)
                whole = mean.astype(p.sharded.dtype.np, copy=False)
                if self.norms is not None:
                    self.norms[id(p.sharded)] = namespace_of(whole).vector_norm(whole, 2.0)
                rows = p.rows_first(whole)[first : first + kept]
                p.add_gradient(namespace_of(rows).contiguous_copy(rows), unit.keep_on_host)
        return found

    def end(self) -> None:
        """Give the units back what they were told before."""
        for unit, sync, all_reduce in self._before:
            unit.sync, unit.all_reduce = sync, all_reduce

    @no_grad()
    def clip(self, parameters: Iterable[Tensor], max_norm: float) -> Tensor:
        """Scale gradients so that their common 2-norm is at most `max_norm`; returns the norm.

        The norms are those of whole gradients, as they were when their sums were made: parts'
        norms, added up, would depend on the cut.

        Raises:
            RuntimeError: gradients are sums of several loops, which no rank has in whole.
        """
        if self.norms is None:
            raise RuntimeError(
                "ExactDataParallel: the norm of gradients that accumulate over several loops is not "
                "known under fully_shard; call zero_grad() before each loop, or do not clip"
            )
        having = [p for p in parameters if p.grad is not None]
        norms = []
        for p in having:
            known = self.norms.get(id(p))
            norms.append(get_total_norm(p.grad) if known is None else wrap(known))
        total = norms[0] if len(norms) == 1 else get_total_norm([ops.stack(norms)])
        coefficient = (float(max_norm) / (total + 1e-6)).clamp(max=1.0)
        for p in having:
            local = getattr(p, "_local_tensor", p).grad
            assert local is not None
            local.mul_(coefficient)
        return total
