"""DataParallel: one process, several devices, the batch cut between them.

Each device runs the module on its part of the batch with its own copies of the parameters, which
stay in the graph: gradients come back to the one module and add up. One process per device under
``DistributedDataParallel`` is faster, since here the devices are served one after the other.
"""

from __future__ import annotations

import warnings

from ... import cuda, ops
from ...backend import devices
from ...tensor import Tensor
from ..modules.module import Module


class DataParallel(Module):
    """A module under the name ``module``, run on several devices; keys as in PyTorch.

    Args:
        module: what to call; its parameters stay on, or go to, the first device.
        device_ids: indices of CUDA devices, or devices; None: all GPUs, and without any the module
            stays where it is. Naming a device twice cuts the batch all the same.
        output_device: where results are gathered; default the first.
        dim: the batch dim.
    """

    def __init__(self, module: Module, device_ids=None, output_device=None, dim: int = 0):
        super().__init__()
        self.module, self.dim = module, dim
        given = range(cuda.device_count()) if device_ids is None else device_ids
        places = [_device(d) for d in given]
        self._places = places
        self.device_ids = [d.index if d.type == "cuda" else d for d in places]
        self._gather_on = places[0] if output_device is None and places else None
        if output_device is not None:
            self._gather_on = _device(output_device)
        self.output_device = None if self._gather_on is None else self._gather_on.index
        if places:
            self.module.to(places[0])

    def forward(self, *inputs, **kwargs):
        if not self._places:
            return self.module(*inputs, **kwargs)
        parts = scatter((inputs, kwargs), self._places, self.dim)
        if len(self._places) == 1:
            inputs, kwargs = parts[0]
            return self.module(*inputs, **kwargs)
        outputs = [
            self._run_on(place, *part) for place, part in zip(self._places, parts)
        ]
        return gather(outputs, self._gather_on, self.dim)

    def _run_on(self, place, inputs, kwargs):
        """The module on one device; copies of its state are in the graph, and there its own stays."""
        from ...func import functional_call

        state = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        here = {name: t.to(place) for name, t in state.items()}
        return functional_call(self.module, here, tuple(inputs), kwargs)


def _device(d) -> devices.device:
    return devices.device("cuda", d) if isinstance(d, int) else devices.device(d)


def scatter(value, places, dim: int = 0) -> list:
    """``value`` once per device: tensors cut along ``dim``, containers gone through, others as is.

    A batch of fewer rows than devices gives fewer parts.
    """
    places = [_device(d) for d in places]
    count = min([len(places), *_row_counts(value, dim, len(places))])
    return [_part(value, places[i], dim, i, len(places)) for i in range(count)]


def _row_counts(value, dim, n):
    if isinstance(value, Tensor):
        return [len(value.chunk(n, dim))]
    members = value.values() if isinstance(value, dict) else value
    if isinstance(value, (tuple, list, dict)):
        return [c for member in members for c in _row_counts(member, dim, n)]
    return []


def _part(value, place, dim, i, n):
    if isinstance(value, Tensor):
        return value.chunk(n, dim)[i].to(place)
    if isinstance(value, dict):
        return type(value)((k, _part(v, place, dim, i, n)) for k, v in value.items())
    if isinstance(value, (tuple, list)):
        members = [_part(v, place, dim, i, n) for v in value]
        return type(value)(*members) if hasattr(value, "_fields") else type(value)(members)
    return value


def gather(outputs, target_device, dim: int = 0):
    """The results of all devices as one: tensors joined along ``dim`` on ``target_device``."""
    first = outputs[0]
    if isinstance(first, Tensor):
        here = [o.to(target_device) for o in outputs]
        if all(o.ndim == 0 for o in here) and dim == 0:
            warnings.warn(
                "Was asked to gather along dimension 0, but all input tensors were scalars; will "
                "instead unsqueeze and return a vector."
            )
            return ops.stack(here)
        return ops.cat(here, dim)
    if first is None:
        return None
    if isinstance(first, dict):
        return type(first)((k, gather([o[k] for o in outputs], target_device, dim)) for k in first)
    if isinstance(first, (tuple, list)):
        members = [gather(list(o), target_device, dim) for o in zip(*outputs)]
        return type(first)(*members) if hasattr(first, "_fields") else type(first)(members)
    raise TypeError(f"DataParallel cannot gather results of type {type(first).__name__}")


def data_parallel(module, inputs, device_ids=None, output_device=None, dim=0, module_kwargs=None):
    """Call ``module`` on ``inputs`` (a tuple, or one value); arguments as of ``DataParallel``."""
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    return DataParallel(module, device_ids, output_device, dim)(*inputs, **(module_kwargs or {}))


__all__ = ["DataParallel", "data_parallel", "gather", "scatter"]
