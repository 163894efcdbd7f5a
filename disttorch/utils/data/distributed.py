"""A sampler that gives each rank its own share of the samples."""

from __future__ import annotations

from ... import ops
from .sampler import Sampler


class DistributedSampler(Sampler[int]):
    """Rank r of W visits samples r, r + W, r + 2W, … of a common order.

    Call ``set_epoch`` before each pass, or every epoch has the same order.

    A pass may be saved after any number of batches and go on with another number of ranks: the
    state counts what all ranks have used of the common order, and the rest is dealt anew. Together
    with ``exact`` every sample is then seen once, whatever happens to the number of ranks.

    Args:
        dataset: anything with a length.
        num_replicas, rank: W and r; those of the default process group if None.
        shuffle: draw the order from ``seed`` and the epoch, the same on every rank.
        seed: must be equal on all ranks.
        drop_last: leave out the samples that do not divide by W; otherwise samples are repeated
            from the start until they do.
        exact: neither repeat nor leave out: lengths differ by one between ranks where the samples
            do not divide by W. For evaluation; training steps that wait for each other need equal
            lengths (or DDP's ``join``).

    Raises:
        ValueError: if the rank is not one of W, or for ``exact`` with ``drop_last``.
        RuntimeError: if W or r are asked from a process group that does not exist.
    """

    def __init__(
        self, dataset, num_replicas: int | None = None, rank: int | None = None,
        shuffle: bool = True, seed: int = 0, drop_last: bool = False, *, exact: bool = False,
    ):
        if num_replicas is None or rank is None:
            from ... import distributed

            num_replicas = distributed.get_world_size() if num_replicas is None else num_replicas
            rank = distributed.get_rank() if rank is None else rank
        if rank >= num_replicas or rank < 0:
            raise ValueError(
                f"Invalid rank {rank}, rank should be in the interval [0, {num_replicas - 1}]"
            )
        if exact and drop_last:
            raise ValueError("exact=True keeps every sample, drop_last=True does not: choose one")
        self.dataset, self.num_replicas, self.rank = dataset, num_replicas, rank
        self.epoch, self.drop_last, self.shuffle, self.seed = 0, drop_last, shuffle, seed
        self.exact = exact
        self._next_start = 0  # where in the common order the next pass begins
        self._start = 0  # where the present one began
        self.num_samples = self._share(len(dataset))
        self.total_size = len(dataset) if exact else self.num_samples * num_replicas

    def _share(self, n: int) -> int:
        """How many of n samples this rank visits."""
        if self.exact:
            return len(range(self.rank, n, self.num_replicas))
        return n // self.num_replicas if self.drop_last else -(-n // self.num_replicas)

    def _common_order(self) -> list[int]:
        n = len(self.dataset)
        if not self.shuffle:
            return list(range(n))
        from ...ops.random import Generator

        generator = Generator().manual_seed(self.seed + self.epoch)
        return ops.randperm(n, generator=generator).tolist()

    def __iter__(self):
        self._start, self._next_start = self._next_start, 0
        order = self._common_order()
        rest = order[self._start :]
        if self.exact:
            return iter(rest[self.rank :: self.num_replicas])
        total = self._share(len(rest)) * self.num_replicas
        if not self.drop_last and rest:
            padding = total - len(rest)
            rest += (order * -(-padding // len(order)))[:padding]
        return iter(rest[self.rank : total : self.num_replicas])

    def __len__(self) -> int:
        return self.num_samples

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass; another epoch than a loaded one begins at its start."""
        if epoch != self.epoch:
            self._next_start = 0
        self.epoch = epoch

    def state_dict(self, consumed: int = 0) -> dict:
        """Where the present pass stands after this rank has used ``consumed`` samples.

        The ranks are taken to have used the same number. The state is the same on all of them.
        """
        used = self._start + consumed * self.num_replicas
        return {
            "epoch": self.epoch, "seed": self.seed, "shuffle": self.shuffle,
            "consumed": min(used, len(self.dataset)), "length": len(self.dataset),
        }

    def load_state_dict(self, state_dict: dict) -> None:
        """Go on, in the next pass, with what the saved one had left, at any number of ranks.

        Raises:
            ValueError: if the saved order is not that of this dataset and these options.
        """
        mine = {"seed": self.seed, "shuffle": self.shuffle, "length": len(self.dataset)}
        for name, value in mine.items():
            if state_dict[name] != value:
                raise ValueError(
                    f"DistributedSampler: the saved pass had {name}={state_dict[name]}, this "
                    f"sampler has {name}={value}; its order would be another one"
                )
        self.epoch, self._next_start = state_dict["epoch"], state_dict["consumed"]


__all__ = ["DistributedSampler"]
