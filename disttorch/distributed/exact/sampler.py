"""Which samples a rank gets, so that every virtual shard has the same ones on any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ... import ops
from ...ops.random import Generator
from ...utils.data import Sampler
from ..process_group import get_rank, get_world_size
from .streams import stream_seed


class VirtualShardSampler(Sampler):
    """This rank's samples: of each global batch the part that holds its virtual shards.

        sampler = VirtualShardSampler(data, 96, 12)
        loader = DataLoader(data, batch_size=sampler.local_batch_size, sampler=sampler)

    Of each `batch_size` samples of the common order rank r of n gets the r-th contiguous n-th, in
    every step. Call `set_epoch` before each pass, or every epoch has the same order. A pass may be
    saved after any step (`loader.state_dict()`) and go on on another number of ranks.

    Args:
        dataset: anything with a length.
        batch_size: samples of the global batch, a multiple of `virtual_shards`.
        virtual_shards: V, a multiple of the number of ranks.
        shuffle: draw the order from `seed` and the epoch, the same on every rank.
        drop_last: leave out the last samples that do not fill a batch; otherwise the batch is
            filled up with samples from the start of the order.
        num_replicas, rank: n and r; those of the default process group if None.

    Attributes:
        local_batch_size: samples of this rank in a step.
        steps: of a whole pass.

    Raises:
        ValueError: V is not a multiple of n, or the batch not one of V; a batch larger than the
            data set with `drop_last`.
    """

    def __init__(
        self, dataset: Any, batch_size: int, virtual_shards: int, shuffle: bool = True,
        seed: int = 0, drop_last: bool = False, num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:  # fmt: skip
        self.num_replicas = get_world_size() if num_replicas is None else num_replicas
        self.rank = get_rank() if rank is None else rank
        check_shards(virtual_shards, self.num_replicas)
        if batch_size < 1 or batch_size % virtual_shards:
            raise ValueError(
                f"a global batch of {batch_size} samples cannot be cut into {virtual_shards} equal "
                f"virtual shards; choose a multiple of {virtual_shards}"
            )
        self.length, self.batch_size, self.virtual_shards = len(dataset), batch_size, virtual_shards
        self.shuffle, self.seed, self.drop_last = shuffle, seed, drop_last
        self.epoch = self._start = self._next_start = 0
        self.local_batch_size = batch_size // self.num_replicas
        whole, left = divmod(self.length, batch_size)
        self.steps = whole if drop_last else whole + (left > 0)
        if not self.steps:
            raise ValueError(
                f"{self.length} samples give no batch of {batch_size}; take smaller batches"
                + (" or drop_last=False" if drop_last and self.length else "")
            )

    def __len__(self) -> int:
        """This rank's samples in a whole pass."""
        return self.steps * self.local_batch_size

    def __iter__(self) -> Iterator[int]:
        self._start, self._next_start = self._next_start, 0
        order = list(range(self.length))
        if self.shuffle:
            generator = Generator().manual_seed(stream_seed(self.seed, self.epoch))
            order = ops.randperm(self.length, generator=generator).tolist()
        order *= -(-self.steps * self.batch_size // len(order))
        each = self.local_batch_size
        for step in range(self._start, self.steps):
            begin = step * self.batch_size + self.rank * each
            yield from order[begin : begin + each]

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass; another epoch than a loaded one begins at its start."""
        if epoch != self.epoch:
            self._next_start = 0
        self.epoch = epoch

    def _plan(self) -> dict[str, Any]:
        names = ("length", "batch_size", "virtual_shards", "shuffle", "seed", "drop_last")
        return {name: getattr(self, name) for name in names}

    def state_dict(self, consumed: int = 0) -> dict[str, Any]:
        """Where the pass stands after this rank has used `consumed` samples; the same on all ranks.

        Raises:
            ValueError: `consumed` is no whole number of steps.
        """
        steps, left = divmod(consumed, self.local_batch_size)
        if left:
            raise ValueError(
                f"VirtualShardSampler: {consumed} samples are no whole steps of "
                f"{self.local_batch_size}; give the DataLoader batch_size=sampler.local_batch_size"
            )
        return {"epoch": self.epoch, "steps": self._start + steps, **self._plan()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on, in the next pass, with the steps that the saved one had left.

        Raises:
            ValueError: the saved pass had other data, batches or options.
        """
        for name, value in self._plan().items():
            if state_dict[name] != value:
                raise ValueError(
                    f"VirtualShardSampler: the saved pass had {name}={state_dict[name]}, this one "
                    f"has {name}={value}; its batches would be others"
                )
        self.epoch, self._next_start = state_dict["epoch"], state_dict["steps"]


def check_shards(shards: int, ranks: int) -> None:
    """Raise ValueError unless `shards` virtual shards divide over `ranks` ranks."""
    if shards < 1 or shards % ranks:
        near = max(1, round(shards / ranks)) * ranks
        raise ValueError(
            f"{shards} virtual shards cannot be held in equal parts by {ranks} ranks; choose a "
            f"multiple of {ranks}, as {near}, and keep it for the whole training"
        )
