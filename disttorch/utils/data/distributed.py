"""A sampler that gives each rank its own share of the samples."""

from __future__ import annotations

import math

from ... import ops
from .sampler import Sampler


class DistributedSampler(Sampler[int]):
    """Rank r of W visits samples r, r + W, r + 2W, … of a common order.

    Call ``set_epoch`` before each pass, or every epoch has the same order.

    Args:
        dataset: anything with a length.
        num_replicas, rank: W and r; those of the default process group if None.
        shuffle: draw the order from ``seed`` and the epoch, the same on every rank.
        seed: must be equal on all ranks.
        drop_last: leave out the samples that do not divide by W; otherwise samples are repeated
            from the start until they do.

    Raises:
        ValueError: if the rank is not one of W.
        RuntimeError: if W or r are asked from a process group that does not exist.
    """

    def __init__(
        self, dataset, num_replicas: int | None = None, rank: int | None = None,
        shuffle: bool = True, seed: int = 0, drop_last: bool = False,
    ):  # fmt: skip
        if num_replicas is None or rank is None:
            from ... import distributed

            num_replicas = distributed.get_world_size() if num_replicas is None else num_replicas
            rank = distributed.get_rank() if rank is None else rank
        if rank >= num_replicas or rank < 0:
            raise ValueError(
                f"Invalid rank {rank}, rank should be in the interval [0, {num_replicas - 1}]"
            )
        self.dataset, self.num_replicas, self.rank = dataset, num_replicas, rank
        self.epoch, self.drop_last, self.shuffle, self.seed = 0, drop_last, shuffle, seed
        n = len(dataset)
        self.num_samples = n // num_replicas if drop_last else math.ceil(n / num_replicas)
        self.total_size = self.num_samples * num_replicas

    def __iter__(self):
        n = len(self.dataset)
        if self.shuffle:
            from ...ops.random import Generator

            generator = Generator().manual_seed(self.seed + self.epoch)
            indices = ops.randperm(n, generator=generator).tolist()
        else:
            indices = list(range(n))
        if not self.drop_last and indices:
            padding = self.total_size - n
            indices += (indices * math.ceil(padding / n))[:padding]
        return iter(indices[self.rank : self.total_size : self.num_replicas])

    def __len__(self) -> int:
        return self.num_samples

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass."""
        self.epoch = epoch


__all__ = ["DistributedSampler"]
