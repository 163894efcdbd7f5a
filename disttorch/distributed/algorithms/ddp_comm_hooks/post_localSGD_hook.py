"""Average gradients over all ranks at first, and only within small groups later.

Between the groups a model averager brings the weights together (T. Lin et al., "Don't Use Large
Mini-Batches, Use Local SGD", arXiv:1808.07217).
"""

from __future__ import annotations

import logging

from ....futures import Future
from ...buckets import GradBucket
from ...groups import new_subgroups
from ...process_group import ProcessGroup
from .default_hooks import _allreduce_fut
from .later import finished

_log = logging.getLogger(__name__)


class PostLocalSGDState:
    """What `post_localSGD_hook` knows.

    Args:
        process_group: the ranks that average at first; None: all.
        subgroup: those that do later; None: those of this machine.
        start_localSGD_iter: number of iterations before that.
        post_local_gradient_allreduce: whether gradients are averaged within `subgroup` then, or not
            at all.

    Attributes:
        iter: iterations so far, counted up to `start_localSGD_iter`.
    """

    __slots__ = (
        "process_group", "subgroup", "start_localSGD_iter", "post_local_gradient_allreduce", "iter",
    )  # fmt: skip

    def __init__(
        self,
        process_group: ProcessGroup | None,
        subgroup: ProcessGroup | None,
        start_localSGD_iter: int,
        post_local_gradient_allreduce: bool = True,
    ) -> None:
        self.process_group, self.subgroup = process_group, subgroup
        self.start_localSGD_iter = start_localSGD_iter
        self.post_local_gradient_allreduce = post_local_gradient_allreduce
        self.iter = 0

    def maybe_increase_iter(self, bucket: GradBucket) -> None:
        """Count an iteration at its last bucket."""
        if bucket.is_last():
            self.iter += 1
        if self.iter == self.start_localSGD_iter:
            _log.info("Start to apply local SGD after %s iterations.", self.iter)


def post_localSGD_hook(state: PostLocalSGDState, bucket: GradBucket) -> Future:
    """Average the bucket over all ranks, or, after the first iterations, over the subgroup.

    Use it with `model_averaging.averagers.PeriodicModelAverager` of the same number of first
    iterations, or the groups drift apart.
    """
    buffer = bucket.buffer()
    if state.iter < state.start_localSGD_iter:
        state.maybe_increase_iter(bucket)
        return _allreduce_fut(state.process_group, buffer)
    if not state.post_local_gradient_allreduce:
        return finished(buffer)
    if state.subgroup is None:
        state.subgroup, _ = new_subgroups()
    return _allreduce_fut(state.subgroup, buffer)


__all__ = ["PostLocalSGDState", "post_localSGD_hook"]
