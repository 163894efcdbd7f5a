"""ShardedGradScaler: loss scaling where each rank sees only its part of the gradients."""

from __future__ import annotations

from typing import Any

from collectives import ReduceOp

from ... import ops
from ...amp import GradScaler
from ...autograd import no_grad
from ...backend import dtypes
from ..process_group import ProcessGroup, resolve


class ShardedGradScaler(GradScaler):
    """A `GradScaler` whose ranks agree on whether a gradient overflowed, so all skip the step.

    Args:
        device, init_scale, backoff_factor, growth_factor, growth_interval, enabled: as of
            `GradScaler`.
        process_group: the ranks; None: all.
    """

    def __init__(
        self,
        device: str = "cuda",
        init_scale: float = 2.0**16,
        backoff_factor: float = 0.5,
        growth_factor: float = 2.0,
        growth_interval: int = 2000,
        enabled: bool = True,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(
            device,
            init_scale=init_scale,
            growth_factor=growth_factor,
            backoff_factor=backoff_factor,
            growth_interval=growth_interval,
            enabled=enabled,
        )
        self.process_group = process_group

    @no_grad()
    def _unscale_grads_(self, optimizer: Any, inverse: float, allow_fp16: bool) -> dict:
        # float16 shards are gradients that were reduced in float16: they may be unscaled
        found: dict = {}
        for group in optimizer.param_groups:
            for param in group["params"]:
                mine = param if param._local_tensor is None else param._local_tensor
                grad = mine.grad
                if grad is None:
                    continue
                if grad.device not in found:
                    found[grad.device] = ops.full((), 0.0, dtype=dtypes.float32, device=grad.device)
                if inverse != 1.0:
                    grad.mul_(inverse)
                bad = ops.logical_not(ops.isfinite(grad).all()).to(dtypes.float32)
                found[grad.device].copy_(ops.maximum(found[grad.device], bad))
        group = resolve(self.process_group)
        if group is not None and found:
            for flag in found.values():
                group.ranks.all_reduce(flag._data, ReduceOp.MAX)
        return found


__all__ = ["ShardedGradScaler"]
