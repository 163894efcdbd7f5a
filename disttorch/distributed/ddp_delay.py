"""Gradients that are reduced together, late: `delay_all_reduce_named_params` of the wrapper."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import collectives

from ..autograd.engine import queue_callback
from ..backend import namespace_of
from ..tensor import Tensor, wrap
from .ddp_setup import broadcast_tensors


class DelayedGradients:
    """Gradients in one flat array, averaged when another parameter's gradient is there.

    Args:
        ddp: the wrapper; held weakly.
        parameters: of one dtype; get rank 0's values. Their gradients must be complete before that
            of `trigger`.
        trigger: the parameter whose gradient starts the reduction.

    Raises:
        ValueError: parameters of several dtypes.
    """

    def __init__(self, ddp: Any, parameters: Sequence[Tensor], trigger: Tensor) -> None:
        self.group, self.parameters = ddp.process_group, list(parameters)
        if len({p.dtype for p in self.parameters}) > 1:
            raise ValueError("delay_all_reduce_named_params: the parameters must have one dtype")
        self._wrapper = weakref.ref(ddp)
        broadcast_tensors(self.parameters, self.group)
        first = self.parameters[0]._data
        self.flat = namespace_of(first).zeros(
            sum(p._data.size for p in self.parameters), first.dtype
        )
        self.views, start = [], 0
        for p in self.parameters:
            end = start + p._data.size
            self.views.append(self.flat[start:end].reshape(p._data.shape))
            start = end
        trigger.register_hook(self._reduce)

    def prepare(self) -> None:
        """Make every gradient that was dropped a part of the flat array again, as zeros."""
        for p, view in zip(self.parameters, self.views):
            if p._grad is None:
                view[...] = 0
                p._grad = wrap(view)

    def _reduce(self, grad: Tensor) -> None:
        ddp = self._wrapper()
        if ddp is None or not ddp._reduce_next_backward or self.group.size() == 1:
            return
        for p, view in zip(self.parameters, self.views):
            if p._grad is not None and p._grad._data is not view:
                view[...] = p._grad._data
                p._grad = wrap(view)
        work = self.group.ranks.all_reduce(self.flat, collectives.ReduceOp.AVG, async_op=True)
        timeout = self.group.timeout
        queue_callback(lambda: work.wait(timeout))
