"""DataParallel: the name that older scripts wrap their model in.

One process here drives one device: the wrapper passes calls through to the module. Several devices
train with one process each, under ``DistributedDataParallel``.
"""

from __future__ import annotations

from ...backend import devices
from ..modules.module import Module


class DataParallel(Module):
    """A module under the name ``module``, called as it is.

    Its state_dict keys start with "module." as in PyTorch.

    Args:
        module: what to call.
        device_ids: at most one device, an index or a ``device``; None leaves the module where it
            is, on whatever device it is.
        output_device: the same device, if given.
        dim: the batch dim; kept for its users.

    Raises:
        RuntimeError: if several devices are asked for.
    """

    def __init__(self, module: Module, device_ids=None, output_device=None, dim: int = 0):
        super().__init__()
        ids = [_index(d) for d in device_ids or ()]
        others = set(ids) | ({_index(output_device)} if output_device is not None else set())
        if len(others) > 1:
            raise RuntimeError(
                f"DataParallel got the devices {sorted(others)}, but one process drives one device "
                "here: start one process per device (disttorch-run --nproc-per-node "
                f"{len(others)}) and wrap the model in DistributedDataParallel"
            )
        self.module, self.dim = module, dim
        self.device_ids = ids
        self.output_device = ids[0] if ids else None
        if ids:
            self.module.to(devices.device("cuda", ids[0]))

    def forward(self, *inputs, **kwargs):
        return self.module(*inputs, **kwargs)


def _index(d) -> int:
    if isinstance(d, int):
        return d
    d = devices.device(d)
    if d.type != "cuda":
        raise RuntimeError(f"DataParallel takes CUDA devices, got {d}")
    return d.index or 0


def data_parallel(module, inputs, device_ids=None, output_device=None, dim=0, module_kwargs=None):
    """Call ``module`` on ``inputs`` (a tuple, or one value); arguments as of ``DataParallel``."""
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    return DataParallel(module, device_ids, output_device, dim)(*inputs, **(module_kwargs or {}))


__all__ = ["DataParallel", "data_parallel"]
