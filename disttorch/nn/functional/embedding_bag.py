"""Bags of table rows, each reduced to one vector.

Shape legend: V table rows, E their width, N indices, B bags.
"""

from __future__ import annotations

import warnings

from ... import ops
from ...backend import dtypes
from ...tensor import Tensor

_int64 = dtypes.int64


def embedding_bag(
    input: Tensor, weight: Tensor, offsets: Tensor | None = None, max_norm: float | None = None,
    norm_type: float = 2, scale_grad_by_freq: bool = False, mode: str = "mean",
    sparse: bool = False, per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False, padding_idx: int | None = None,
) -> Tensor:
    """The sum, mean or maximum of the table rows of each bag; 0 for an empty bag.

    Args:
        input: integers [B, N/B] (bags of one size), or [N] with ``offsets``.
        weight: [V, E].
        offsets: int [B], where in ``input`` each bag begins.
        max_norm, norm_type, scale_grad_by_freq, sparse: as of ``embedding``.
        mode: "sum", "mean" or "max".
        per_sample_weights: factor of each index, of the input's shape; for "sum" only.
        include_last_offset: offsets has one more entry, N.
        padding_idx: an index that counts as not there.

    Returns:
        [B, E].

    Raises:
        ValueError, RuntimeError, NotImplementedError: if the arguments do not fit together.
    """
    if weight.dtype.category == dtypes.INT and input.is_floating_point():
        warnings.warn(
            "Argument order of nn.functional.embedding_bag was changed. Usage "
            "`embedding_bag(weight, input, ...)` is deprecated, and should now be "
            "`embedding_bag(input, weight, ...)`.",
            stacklevel=2,
        )
        input, weight = weight, input
    _check(input, weight, offsets, mode, scale_grad_by_freq, sparse, per_sample_weights)
    if input.ndim == 2 and padding_idx is None and input.shape[1]:
        rows = ops.embedding(input, weight, None, max_norm, norm_type, scale_grad_by_freq, sparse)
        return _of_one_size(rows, mode, per_sample_weights)
    bags, count = _bag_of_each(input, offsets, include_last_offset)
    index = input.reshape(-1)
    factors = None if per_sample_weights is None else per_sample_weights.reshape(-1)
    if padding_idx is not None:
        kept = index != padding_idx % weight.shape[0]
        index, bags = index[kept], bags[kept]
        factors = None if factors is None else factors[kept]
    rows = ops.embedding(index, weight, None, max_norm, norm_type, scale_grad_by_freq, sparse)
    if mode == "max":
        return _largest(rows, bags, count)
    if factors is not None:
        rows = rows * factors.unsqueeze(1)
    total = rows.new_zeros([count, weight.shape[1]]).index_add(0, bags, rows)
    if mode == "sum":
        return total
    sizes = rows.new_zeros([count]).index_add(0, bags, ops.ones_like(rows[:, 0]).detach())
    return total / sizes.clamp(min=1).unsqueeze(1)


def _of_one_size(rows, mode, factors):
    """Bags of one size, [B, n, E]: plain reductions."""
    if mode == "max":
        return rows.max(1)[0]
    if factors is not None:
        return ops.matmul(factors.unsqueeze(1), rows).squeeze(1)
    return rows.sum(1) if mode == "sum" else rows.mean(1)


def _check(input, weight, offsets, mode, scale_grad_by_freq, sparse, per_sample_weights):
    if per_sample_weights is not None and input.shape != per_sample_weights.shape:
        raise ValueError(
            f"embedding_bag: If per_sample_weights ({per_sample_weights.shape}) is not None, then "
            f"it must have the same shape as the input ({input.shape})"
        )
    if weight.ndim != 2:
        raise ValueError(
            f"weight has to be a 2D Tensor, but got Tensor of dimension {weight.ndim}"
        )
    if input.ndim == 2 and offsets is not None:
        raise ValueError(
            "if input is 2D, then offsets has to be None, as input is treated is a mini-batch of "
            f"fixed length sequences. However, found offsets of type {type(offsets)}"
        )
    if input.ndim not in (1, 2):
        raise ValueError(
            f"input has to be 1D or 2D Tensor, but got Tensor of dimension {input.ndim}"
        )
    if input.ndim == 1 and offsets is None:
        raise ValueError("offsets has to be a 1D Tensor but got None")
    if offsets is not None and offsets.ndim != 1:
        raise ValueError("offsets has to be a 1D Tensor")
    if mode not in ("sum", "mean", "max"):
        raise ValueError("mode has to be one of sum, mean or max")
    if mode == "max" and scale_grad_by_freq:
        raise ValueError("max mode does not support scaling the gradient by the frequency")
    if mode == "max" and sparse:
        raise ValueError("max mode does not support sparse weights")
    if per_sample_weights is not None and mode != "sum":
        raise NotImplementedError(
            "embedding_bag: per_sample_weights was not None. per_sample_weights is only supported "
            f"for mode='sum' (got mode='{mode}')."
        )


def _bag_of_each(input, offsets, include_last_offset):
    """(bag of each index, int64 [N]; number of bags B)."""
    if input.ndim == 2:
        count, size = input.shape
        return ops.arange(count, device=input.device).repeat_interleave(size), count
    starts = offsets.tolist()
    if starts and starts[0] != 0:
        raise RuntimeError(
            f"offsets[0] has to be 0, i.e., the first sequence in the mini-batch has to start from "
            f"position 0. However, got {starts[0]}"
        )
    n = input.shape[0]
    if include_last_offset:
        if not starts:
            raise RuntimeError("include_last_offset: number of offset should be at least 1")
        starts, ends = starts[:-1], starts[1:]
    else:
        ends = [*starts[1:], n]
    if starts and max(starts) > n:
        raise RuntimeError(
            f"offsets[-1] can not be greater than input's length({n}) but got offsets[-1] of "
            f"{max(starts)}"
        )
    sizes = [b - a for a, b in zip(starts, ends)]
    if min(sizes, default=0) < 0:
        raise RuntimeError(f"offsets have to increase, but got {offsets.tolist()}")
    sizes = ops.tensor(sizes, dtype=_int64, device=input.device)
    return ops.arange(len(starts), device=input.device).repeat_interleave(sizes), len(starts)


def _largest(rows, bags, count):
    """The maximum of each bag and column; its gradient goes to the first row that has it."""
    if rows.shape[0] == 0:
        return rows.sum(0, keepdim=True) + rows.new_zeros([count, rows.shape[1]])
    index = bags.unsqueeze(1).expand(rows.shape)
    values = rows.detach()
    top = values.new_zeros([count, rows.shape[1]]).scatter_reduce(
        0, index, values, "amax", include_self=False
    )
    place = ops.arange(rows.shape[0], device=rows.device).unsqueeze(1).expand(rows.shape)
    place = ops.where(values == top.index_select(0, bags), place, rows.shape[0])
    first = ops.full_like(top, rows.shape[0], dtype=_int64)
    first = first.scatter_reduce(0, index, place, "amin")
    empty = first == rows.shape[0]
    return ops.where(empty, 0.0, rows.gather(0, ops.where(empty, 0, first)))


__all__ = ["embedding_bag"]
