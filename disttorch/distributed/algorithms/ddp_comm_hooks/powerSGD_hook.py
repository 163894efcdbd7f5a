"""PowerSGD: send low-rank approximations of gradients, and add what they lost to the next ones.

T. Vogels, S. P. Karimireddy and M. Jaggi, "PowerSGD: Practical Low-Rank Gradient Compression for
Distributed Optimization", arXiv:1905.13727, algorithm 1: one step of subspace iteration per
training step. A gradient seen as a matrix M [n, m] becomes P [n, r] and Q [m, r]:

    P = M·Q, summed over ranks and orthogonalised;   Q = Mᵀ·P, averaged;   M is taken as P·Qᵀ

so that r·(n + m) numbers travel instead of n·m.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Sequence
from typing import Any

from .... import ops
from ....backend.dtypes import finfo
from ....futures import Future
from ....ops.random import Generator
from ....tensor import Tensor
from ...buckets import GradBucket
from ...process_group import ProcessGroup, belonging, default_group
from ...reductions import all_reduce
from .default_hooks import _allreduce_fut
from .later import Later, finished

_log = logging.getLogger(__name__)


class PowerSGDState:
    """What the hooks below know; may be pickled, without its process group.

    Args:
        process_group: the ranks; None: all.
        matrix_approximation_rank: r.
        start_powerSGD_iter: iterations that are averaged whole before; at least 2 with error
            feedback or warm start, since buckets are laid out anew after the first one.
        min_compression_rate: matrices that do not shrink by this factor are sent whole.
        use_error_feedback: add what an approximation lost to the next gradient.
        warm_start: begin each iteration with the last one's Q, which makes it a power iteration.
        orthogonalization_epsilon: added to the norms of P's columns.
        random_seed: of the first Q; the same on all ranks.
        compression_stats_logging_frequency: log sizes every so many iterations.
        batch_tensors_with_same_shape: multiply matrices of one shape together.

    Attributes:
        iter: iterations so far.
        error_dict, p_memory_dict, q_memory_dict: by index of the bucket.

    Raises:
        ValueError: `start_powerSGD_iter` too small.
    """

    __slots__ = (
        "process_group", "matrix_approximation_rank", "start_powerSGD_iter", "min_compression_rate",
        "orthogonalization_epsilon", "use_error_feedback", "warm_start",
        "batch_tensors_with_same_shape", "rng", "error_dict", "p_memory_dict", "q_memory_dict",
        "iter", "total_numel_before_compression", "total_numel_after_compression",
        "compression_stats_logging_frequency", "next_stats_report",
    )  # fmt: skip

    def __init__(
        self,
        process_group: ProcessGroup | None,
        matrix_approximation_rank: int = 1,
        start_powerSGD_iter: int = 1_000,
        min_compression_rate: float = 2,
        use_error_feedback: bool = True,
        warm_start: bool = True,
        orthogonalization_epsilon: float = 0,
        random_seed: int = 0,
        compression_stats_logging_frequency: int = 10_000,
        batch_tensors_with_same_shape: bool = False,
    ) -> None:
        if (use_error_feedback or warm_start) and start_powerSGD_iter <= 1:
            raise ValueError(
                "Expect `start_powerSGD_iter` > 1 if `use_error_feedback` or `warm_start` is "
                "enabled, because PowerSGD can only be applied after the first two iterations in "
                "DDP."
            )
        self.process_group = process_group
        self.matrix_approximation_rank = matrix_approximation_rank
        self.start_powerSGD_iter = start_powerSGD_iter
        self.min_compression_rate = min_compression_rate
        self.use_error_feedback, self.warm_start = use_error_feedback, warm_start
        self.orthogonalization_epsilon = orthogonalization_epsilon
        self.batch_tensors_with_same_shape = batch_tensors_with_same_shape
        # Draws a seed per new Q: the same on all ranks, another one in every iteration.
        self.rng = random.Random(random_seed)
        self.error_dict: dict[int, Tensor] = {}
        self.p_memory_dict: dict[int, Tensor] = {}
        self.q_memory_dict: dict[int, Tensor] = {}
        self.iter = 0
        self.total_numel_before_compression = self.total_numel_after_compression = 0
        self.compression_stats_logging_frequency = max(1, compression_stats_logging_frequency)
        self.next_stats_report = 0

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__ if name != "process_group"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.process_group = default_group()
        for name, value in state.items():
            setattr(self, name, value)

    def maybe_increase_iter(self, bucket: GradBucket) -> None:
        """Count an iteration at its last bucket."""
        if bucket.is_last():
            self.iter += 1
        if self.iter == self.start_powerSGD_iter:
            _log.info("Start to apply PowerSGD after %s iterations.", self.iter)

    def compression_stats(self) -> tuple[float, int, int]:
        """(rate, elements before, elements after compression), since compression began."""
        before, after = self.total_numel_before_compression, self.total_numel_after_compression
        return (before / after if after else 0), before, after

    def _report(self, bucket: GradBucket) -> None:
        if bucket.is_last() and self.iter >= self.next_stats_report:
            _log.info(
                "Compression stats: iter %s, rate %s, before %s, after %s", self.iter,
                *self.compression_stats(),
            )  # fmt: skip
            self.next_stats_report = self.iter + self.compression_stats_logging_frequency

    def _with_error(self, index: int, flat: Tensor) -> Tensor | None:
        """Add what was lost before to `flat`; a copy of the sum, to tell later what is lost."""
        if not self.use_error_feedback:
            return None
        if index in self.error_dict:
            flat.add_(self.error_dict[index])
        return flat.clone()

    def _after(self, bucket: GradBucket, whole: Tensor | None, flat: Tensor) -> None:
        if whole is not None:
            self.error_dict[bucket.index()] = whole.sub_(flat)
        if not self.warm_start:
            self.p_memory_dict.pop(bucket.index(), None)
            self.q_memory_dict.pop(bucket.index(), None)
        self.maybe_increase_iter(bucket)


def powerSGD_hook(state: PowerSGDState, bucket: GradBucket) -> Future:
    """Average a bucket with every matrix in it approximated; vectors and small matrices whole."""
    group = belonging(state.process_group)
    flat = bucket.buffer()
    if state.iter < state.start_powerSGD_iter:
        state.maybe_increase_iter(bucket)
        return _allreduce_fut(group, flat)
    whole = state._with_error(bucket.index(), flat)
    matrices, others = _sorted_out(state, bucket.gradients())
    state._report(bucket)
    rest = ops.cat([t.reshape(-1) for t in others]) if others else None
    rest_future = finished(None) if rest is None else _allreduce_fut(group, rest)

    def rest_back(future: Future) -> None:
        start = 0
        for t in others:
            t.copy_(future.value()[start : start + t.numel()].reshape(t.shape))
            start += t.numel()

    back = Later(rest_future, rest_back) if others else rest_future
    stacks = _stacked(matrices, state.batch_tensors_with_same_shape)
    approximated = _Approximation(state, bucket.index(), group, stacks)
    p_future = approximated.start()

    def finish(future: Future) -> Tensor:
        back.wait()
        approximated.finish()
        for members, stack in stacks:
            if len(members) > 1:
                for i, matrix in enumerate(members):
                    matrix.copy_(stack[i])
        state._after(bucket, whole, flat)
        return flat

    return Later(p_future, finish, communicates=True)


def batched_powerSGD_hook(state: PowerSGDState, bucket: GradBucket) -> Future:
    """Average a bucket with all of it, as one square matrix, approximated.

    Fewer steps than `powerSGD_hook`, but rows and columns mean nothing then, so that more is lost.
    """
    group = belonging(state.process_group)
    flat = bucket.buffer()
    if state.iter < state.start_powerSGD_iter:
        state.maybe_increase_iter(bucket)
        return _allreduce_fut(group, flat)
    side = math.ceil(math.sqrt(flat.numel()))
    state.total_numel_before_compression += flat.numel()
    state.total_numel_after_compression += 2 * side * state.matrix_approximation_rank
    state._report(bucket)
    whole = state._with_error(bucket.index(), flat)
    square = ops.zeros(side * side, dtype=flat.dtype, device=flat.device)
    square[: flat.numel()] = flat
    matrix = square.reshape(1, side, side)
    approximated = _Approximation(state, bucket.index(), group, [([matrix], matrix)])
    p_future = approximated.start()

    def finish(future: Future) -> Tensor:
        approximated.finish()
        flat.copy_(square[: flat.numel()])
        state._after(bucket, whole, flat)
        return flat

    return Later(p_future, finish, communicates=True)


def _sorted_out(state: PowerSGDState, gradients: Sequence[Tensor]) -> tuple[list, list]:
    """(matrices to approximate, gradients to send whole), and counts of both."""
    matrices: list[Tensor] = []
    others: list[Tensor] = []
    for t in gradients:
        matrix = t.reshape(t.shape[0], -1) if t.dim() else t.reshape(1, 1)
        n, m = matrix.shape
        rank = min(n, m, state.matrix_approximation_rank)
        worth, before, after = _should_compress(n, m, rank, state.min_compression_rate)
        (matrices if worth else others).append(matrix if worth else t)
        state.total_numel_before_compression += before
        state.total_numel_after_compression += after if worth else before
    return matrices, others


def _should_compress(
    num_rows: int, num_cols: int, matrix_approximation_rank: int, min_compression_rate: float
) -> tuple[bool, int, int]:
    """(whether it is worth while, elements whole, elements compressed)."""
    whole = num_rows * num_cols
    small = (num_rows + num_cols) * matrix_approximation_rank
    return small * min_compression_rate < whole, whole, small


def _stacked(matrices: Sequence[Tensor], batch: bool) -> list[tuple[list[Tensor], Tensor]]:
    """(matrices, the stack [count, n, m] of them), by shape; singly, as views, unless `batch`."""
    by_shape: dict[tuple, list[Tensor]] = {}
    for matrix in matrices:
        by_shape.setdefault(tuple(matrix.shape), []).append(matrix)
    stacks = []
    for alike in by_shape.values():
        if batch and len(alike) > 1:
            stacks.append((alike, ops.stack(alike)))
        else:
            stacks += [([matrix], matrix.reshape(1, *matrix.shape)) for matrix in alike]
    return stacks


class _Approximation:
    """One step of subspace iteration on stacks of matrices [count, n, m], which it overwrites.

    Args:
        stacks: (…, stack) pairs; a stack shares its memory with the gradients or a copy of them.
    """

    def __init__(
        self, state: PowerSGDState, index: int, group: ProcessGroup, stacks: Sequence[tuple]
    ) -> None:
        self.state, self.group, self.stacks = state, group, [stack for _, stack in stacks]
        self.index = index

    def start(self) -> Future:
        """Compute P and begin to add it up; the future of that."""
        state = self.state
        if not self.stacks:
            return finished(None)
        fresh = not state.warm_start or self.index not in state.p_memory_dict
        if fresh:
            for memory, side in ((state.p_memory_dict, 1), (state.q_memory_dict, 2)):
                like = self.stacks[0]
                size = sum(s.shape[0] * s.shape[side] * self._rank(s) for s in self.stacks)
                memory[self.index] = ops.empty(size, dtype=like.dtype, device=like.device)
        self.p, self.q = state.p_memory_dict[self.index], state.q_memory_dict[self.index]
        self.ps, self.qs = self._parts(self.p, 1), self._parts(self.q, 2)
        if fresh:
            generator = Generator().manual_seed(state.rng.randrange(1_000_000_000))
            for q in self.qs:
                q.copy_(ops.randn(*q.shape, generator=generator, dtype=q.dtype))
        for stack, p, q in zip(self.stacks, self.ps, self.qs):
            _orthogonalize(q, state.orthogonalization_epsilon)
            p.copy_(ops.bmm(stack, q))
        work: Any = all_reduce(self.p, group=self.group, async_op=True)
        return work.get_future()

    def finish(self) -> None:
        """With P added up: orthogonalise it, average Q, and put P·Qᵀ into the stacks."""
        if not self.stacks:
            return
        for stack, p, q in zip(self.stacks, self.ps, self.qs):
            _orthogonalize(p, self.state.orthogonalization_epsilon)
            q.copy_(ops.bmm(stack.transpose(1, 2), p))
        all_reduce(self.q, group=self.group)
        self.q.div_(self.group.size())
        for stack, p, q in zip(self.stacks, self.ps, self.qs):
            stack.copy_(ops.bmm(p, q.transpose(1, 2)))

    def _rank(self, stack: Tensor) -> int:
        return min(stack.shape[1], stack.shape[2], self.state.matrix_approximation_rank)

    def _parts(self, memory: Tensor, side: int) -> list[Tensor]:
        parts, start = [], 0
        for stack in self.stacks:
            shape = (stack.shape[0], stack.shape[side], self._rank(stack))
            size = math.prod(shape)
            parts.append(memory[start : start + size].reshape(shape))
            start += size
        return parts


def _orthogonalize(matrices: Tensor, epsilon: float = 0) -> None:
    """Make the columns of [count, n, r] orthonormal in place (modified Gram-Schmidt).

    A column that depends on those before it becomes zero: normalising what rounding left of it
    would count a direction twice. PyTorch's has no such check and gives NaN for zero gradients.
    """
    small = 16 * finfo(matrices.dtype).eps
    for i in range(matrices.shape[2]):
        column = matrices[:, :, i : i + 1]
        before = column.norm(dim=1, keepdim=True)
        for _ in range(2):  # twice, as once leaves rounding errors where columns are nearly alike
            for j in range(i):
                other = matrices[:, :, j : j + 1]
                column -= (other * column).sum(dim=1, keepdim=True) * other
        norm = column.norm(dim=1, keepdim=True)
        keep = norm > small * before
        column.copy_(ops.where(keep, column / ops.where(keep, norm + epsilon, 1.0), 0.0))


__all__ = ["PowerSGDState", "batched_powerSGD_hook", "powerSGD_hook"]
