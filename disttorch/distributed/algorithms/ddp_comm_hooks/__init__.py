"""Communication hooks for `DistributedDataParallel.register_comm_hook`.

    default_hooks       the mean, also in float16 and bfloat16, and wrappers for other hooks
    powerSGD_hook       low-rank approximations with error feedback
    topk_hook           the largest elements with error feedback
    quantization_hooks  8 bits
    post_localSGD_hook  the mean over all, later over small groups
    debugging_hooks     none at all
"""

from __future__ import annotations

from enum import Enum
from typing import Any

from . import debugging_hooks as debugging
from . import default_hooks as default
from . import powerSGD_hook as powerSGD
from . import quantization_hooks as quantization


class DDPCommHookType(Enum):
    """Hooks by name: `DDPCommHookType.FP16_COMPRESS.value(model=ddp, state=group)` registers one."""

    ALLREDUCE = "allreduce_hook"
    FP16_COMPRESS = "fp16_compress_hook"
    BF16_COMPRESS = "bf16_compress_hook"
    QUANTIZE_PER_TENSOR = "quantization_pertensor_hook"
    QUANTIZE_PER_CHANNEL = "quantization_perchannel_hook"
    POWER_SGD = "powerSGD_hook", 1
    POWER_SGD_RANK2 = "powerSGD_hook", 2
    BATCHED_POWER_SGD = "batched_powerSGD_hook", 1
    BATCHED_POWER_SGD_RANK2 = "batched_powerSGD_hook", 2
    NOOP = "noop_hook"

    @property
    def value(self) -> Any:  # type: ignore[override]
        """A function of (model, state, **options of PowerSGDState) that registers the hook."""

        def register(model: Any, state: Any = None, **options: Any) -> None:
            chosen = self._value_
            if isinstance(chosen, str):
                modules = (default, debugging, quantization)
                found = [getattr(m, chosen) for m in modules if hasattr(m, chosen)]
                model.register_comm_hook(state, found[0], **options)
                return
            name, rank = chosen
            options.setdefault("matrix_approximation_rank", rank)
            model.register_comm_hook(
                powerSGD.PowerSGDState(process_group=state, **options), getattr(powerSGD, name)
            )

        return register


def register_ddp_comm_hook(
    comm_hook_type: DDPCommHookType, model: Any, state: Any = None
) -> None:
    """Register one of the hooks above.

    Args:
        comm_hook_type: which.
        model: a DistributedDataParallel.
        state: the process group; None: all ranks.
    """
    comm_hook_type.value(model=model, state=state)


__all__ = ["DDPCommHookType", "register_ddp_comm_hook"]
