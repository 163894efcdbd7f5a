"""What is cut: the batch into virtual shards, the parameters into buckets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...tensor import Tensor
from ...utils._pytree import tree_flatten, tree_unflatten

__all__ = ["cut", "groups_of"]


def cut(
    batch: tuple, pieces: int, first: int, count: int, rank: int
) -> tuple[list[Any], int]:
    """(parts `first` to `first + count` of `pieces` along dim 0, samples of each)."""
    leaves, spec = tree_flatten(batch)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim]
    sizes = {len(t) for t in tensors}
    if len(sizes) != 1:
        raise ValueError(
            f"ExactDataParallel: the batch's tensors have {sorted(sizes)} samples along dim 0; all "
            "must have the same number"
        )
    (total,) = sizes
    if total % pieces or not total:
        raise ValueError(
            f"ExactDataParallel: a batch of {total} samples on rank {rank} cannot be cut "
            f"into {pieces} equal virtual shards; give a multiple of {pieces}"
        )
    size = total // pieces
    parts = []
    for i in range(first, first + count):
        # Contiguous: strides must not tell how many samples the rank had.
        pieces_here = [
            leaf[i * size : (i + 1) * size].contiguous()
            if isinstance(leaf, Tensor) and leaf.ndim
            else leaf
            for leaf in leaves
        ]
        part = tree_unflatten(pieces_here, spec)
        parts.append(part if len(batch) > 1 else part[0])
    return parts, size


def groups_of(parameters: Sequence[Tensor], cap_bytes: float) -> list[list[int]]:
    """Numbers of parameters that are reduced together: of one dtype and device, up to a size."""
    groups: list[list[int]] = []
    open_ones: dict[Any, tuple[list[int], float]] = {}
    for i, p in enumerate(parameters):
        kind = (p.dtype, p.device)
        members, size = open_ones.pop(kind, ([], 0.0))
        if members and size + p._data.nbytes > cap_bytes:
            members, size = [], 0.0
        if not members:
            groups.append(members)
        members.append(i)
        open_ones[kind] = (members, size + p._data.nbytes)
    return groups
