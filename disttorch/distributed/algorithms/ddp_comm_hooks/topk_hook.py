"""Send only the largest gradients; what was not sent is added to the next iteration's.

A. F. Aji and K. Heafield, "Sparse Communication for Distributed Gradient Descent",
arXiv:1704.05021; with the error fed back it converges as plain SGD does (S. U. Stich et al.,
"Sparsified SGD with Memory", arXiv:1809.07599).
"""

from __future__ import annotations

import math
from typing import Any

from .... import ops
from ....backend import dtypes
from ....futures import Future
from ....tensor import Tensor
from ...buckets import GradBucket
from ...process_group import ProcessGroup, belonging
from .default_hooks import _allreduce_fut
from .later import AllWorks, Later


class TopKState:
    """What `topk_hook` knows.

    Args:
        process_group: the ranks; None: all.
        density: part of each bucket's elements that is sent, between 0 and 1.
        start_iter: iterations that are averaged whole before; at least 1 with error feedback, since
            buckets are laid out anew after the first one.
        use_error_feedback: add what was not sent to the next gradient.

    Raises:
        ValueError: a density outside (0, 1]; `start_iter` below 1 with error feedback.

    Attributes:
        errors: what each bucket has not sent yet, by index.
        elements, sent: numbers of elements so far, whole and as sent (an index counts as one).
    """

    def __init__(
        self,
        process_group: ProcessGroup | None = None,
        density: float = 0.01,
        start_iter: int = 1,
        use_error_feedback: bool = True,
    ) -> None:
        if not 0 < density <= 1:
            raise ValueError(f"TopKState: density must be in (0, 1], got {density}")
        if use_error_feedback and start_iter < 1:
            raise ValueError(
                "TopKState: start_iter must be at least 1 with error feedback, got "
                f"{start_iter}: buckets change after the first iteration"
            )
        self.process_group, self.density = process_group, density
        self.start_iter, self.use_error_feedback = start_iter, use_error_feedback
        self.iter = self.elements = self.sent = 0
        self.errors: dict[int, Tensor] = {}


def topk_hook(state: TopKState, bucket: GradBucket) -> Future:
    """Average the elements of largest size of each rank's bucket; others count as zero.

    Each rank sends k values and their k places to all (an all-gather), and all ranks add them up in
    rank order, so that all have the same bits.
    """
    group = belonging(state.process_group)
    buffer = bucket.buffer()
    iteration = state.iter
    if bucket.is_last():
        state.iter += 1
    if iteration < state.start_iter:
        return _allreduce_fut(group, buffer)
    if state.use_error_feedback and bucket.index() in state.errors:
        buffer.add_(state.errors[bucket.index()])
    k = max(1, math.ceil(buffer.numel() * state.density))
    places = ops.topk(buffer.abs(), k, sorted=False).indices
    values = buffer[places]
    if state.use_error_feedback:
        left = buffer.clone()
        left[places] = 0
        state.errors[bucket.index()] = left
    state.elements += buffer.numel()
    state.sent += 2 * k
    return _gathered(group, buffer, values, places)


def _gathered(group: ProcessGroup, buffer: Tensor, values: Tensor, places: Tensor) -> Future:
    n, k = group.size(), values.numel()
    # 32 bits hold any place in a bucket; the index costs no more than a float32 value.
    sent: list[Any] = [values, places.to(dtypes.int32)]
    rows = [ops.empty((n, k), dtype=t.dtype, device=t.device) for t in sent]
    works = [
        group.ranks.all_gather(row._data, t._data, async_op=True) for row, t in zip(rows, sent)
    ]

    def add_up(_: Future) -> Tensor:
        buffer.zero_()
        for rank in range(n):
            buffer.index_add_(0, rows[1][rank].long(), rows[0][rank])
        return buffer.div_(n)

    return Later(AllWorks(works, group.timeout), add_up)


__all__ = ["TopKState", "topk_hook"]
