"""DataLoader: a dataset, an order and a way to batch, as one iterable."""

from __future__ import annotations

import itertools
import warnings

from .collate import default_collate, default_convert
from .dataset import IterableDataset
from .sampler import (
    BatchSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    draw_seed,
)


class _InfiniteConstantSampler(Sampler):
    """Stands for the order of a stream: as many Nones as there are samples."""

    def __iter__(self):
        return itertools.repeat(None)


class DataLoader:
    """Batches of a dataset.

    Args:
        dataset: by index, or an IterableDataset.
        batch_size: samples in a batch; None gives single samples, converted but not batched.
        shuffle: new random order in each pass.
        sampler: the order of indices instead; batch_sampler: the lists of indices.
        num_workers: 0, loading in this process.
        collate_fn: makes a batch of a list of samples (``default_collate``).
        drop_last: leave out a last, smaller batch.
        generator: draws the order.

    Raises:
        ValueError: for options that exclude each other.
        NotImplementedError: for worker processes.
    """

    _FIXED = (
        "batch_size", "batch_sampler", "sampler", "drop_last", "dataset", "persistent_workers",
    )  # fmt: skip
    _initialized = False

    def __init__(
        self, dataset, batch_size: int | None = 1, shuffle: bool | None = None, sampler=None,
        batch_sampler=None, num_workers: int = 0, collate_fn=None, pin_memory: bool = False,
        drop_last: bool = False, timeout: float = 0, worker_init_fn=None,
        multiprocessing_context=None, generator=None, *, prefetch_factor: int | None = None,
        persistent_workers: bool = False, pin_memory_device: str = "", in_order: bool = True,
    ):  # fmt: skip
        self._check_workers(num_workers, timeout, prefetch_factor, persistent_workers)
        if pin_memory:
            warnings.warn(
                "pin_memory=True: page-locked batches are not built, batches stay in ordinary "
                "memory",
                stacklevel=2,
            )
        self.dataset, self.num_workers = dataset, num_workers
        self.prefetch_factor, self.pin_memory = prefetch_factor, pin_memory
        self.pin_memory_device, self.timeout = pin_memory_device, timeout
        self.worker_init_fn, self.in_order = worker_init_fn, in_order
        self.multiprocessing_context = multiprocessing_context
        self._iterable = isinstance(dataset, IterableDataset)
        if self._iterable:
            sampler = self._stream_order(shuffle, sampler, batch_sampler)
        else:
            shuffle = bool(shuffle)
        if sampler is not None and shuffle:
            raise ValueError("sampler option is mutually exclusive with shuffle")
        if batch_sampler is not None:
            if batch_size != 1 or shuffle or sampler is not None or drop_last:
                raise ValueError(
                    "batch_sampler option is mutually exclusive with batch_size, shuffle, sampler, "
                    "and drop_last"
                )
            batch_size, drop_last = None, False
        elif batch_size is None and drop_last:
            raise ValueError(
                "batch_size=None option disables auto-batching and is mutually exclusive with "
                "drop_last"
            )
        if sampler is None:
            sampler = (
                RandomSampler(dataset, generator=generator) if shuffle
                else SequentialSampler(dataset)
            )
        if batch_size is not None and batch_sampler is None:
            batch_sampler = BatchSampler(sampler, batch_size, drop_last)
        self.batch_size, self.drop_last = batch_size, drop_last
        self.sampler, self.batch_sampler = sampler, batch_sampler
        self.generator = generator
        if collate_fn is None:
            collate_fn = default_convert if batch_sampler is None else default_collate
        self.collate_fn = collate_fn
        self.persistent_workers = persistent_workers
        self._reported_length: int | None = None
        self._initialized = True

    @staticmethod
    def _check_workers(num_workers, timeout, prefetch_factor, persistent_workers):
        if num_workers < 0:
            raise ValueError(
                "num_workers option should be non-negative; use num_workers=0 to disable "
                "multiprocessing."
            )
        if timeout < 0:
            raise ValueError("timeout option should be non-negative")
        if num_workers > 0:
            raise NotImplementedError(
                f"DataLoader(num_workers={num_workers}): worker processes are not built; use "
                "num_workers=0, which loads in this process"
            )
        if prefetch_factor is not None:
            raise ValueError(
                "prefetch_factor option could only be specified in multiprocessing. let "
                "num_workers > 0 to enable multiprocessing, otherwise set prefetch_factor to None."
            )
        if persistent_workers:
            raise ValueError("persistent_workers option needs num_workers > 0")

    @staticmethod
    def _stream_order(shuffle, sampler, batch_sampler):
        """A stream has its own order: refuse to be given one."""
        start = "DataLoader with IterableDataset: expected unspecified "
        if shuffle not in (False, None):
            raise ValueError(f"{start}shuffle option, but got shuffle={shuffle}")
        if sampler is not None:
            raise ValueError(f"{start}sampler option, but got sampler={sampler}")
        if batch_sampler is not None:
            raise ValueError(f"{start}batch_sampler option, but got batch_sampler={batch_sampler}")
        return _InfiniteConstantSampler()

    def __setattr__(self, name, value):
        if self._initialized and name in self._FIXED:
            raise ValueError(
                f"{name} attribute should not be set after {type(self).__name__} is initialized"
            )
        super().__setattr__(name, value)

    def __iter__(self):
        return _Iterator(self)

    def __len__(self) -> int:
        if not self._iterable:
            return len(self.sampler if self.batch_sampler is None else self.batch_sampler)
        # Streams may be wrong about their length: remembered, to warn when more samples come
        n = self._reported_length = len(self.dataset)
        if self.batch_size is None:
            return n
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)


class _Iterator:
    """One pass over a DataLoader, in this process."""

    def __init__(self, loader: DataLoader):
        self._loader, self._dataset = loader, loader.dataset
        self._batched = loader.batch_sampler is not None
        self._order = iter(loader.batch_sampler if self._batched else loader.sampler)
        # Drawn in every pass, so that random streams do not depend on the number of workers
        self._base_seed = draw_seed(loader.generator)
        self._stream = iter(loader.dataset) if loader._iterable else None
        self._yielded = 0
        self._ended = False

    def __iter__(self):
        return self

    def __len__(self) -> int:
        return len(self._loader)

    def __next__(self):
        indices = next(self._order)
        data = self._by_index(indices) if self._stream is None else (
            self._from_stream(self._stream, indices)
        )
        self._yielded += 1
        expected = self._loader._reported_length
        if self._stream is not None and expected is not None and self._yielded > len(self):
            warnings.warn(
                f"Length of IterableDataset {self._dataset} was reported to be {expected} (when "
                f"accessing len(dataloader)), but {self._yielded} samples have been fetched.",
                stacklevel=2,
            )
        return data

    def _by_index(self, indices):
        dataset = self._dataset
        if not self._batched:
            samples = dataset[indices]
        elif callable(getattr(dataset, "__getitems__", None)):
            samples = dataset.__getitems__(indices)
        else:
            samples = [dataset[i] for i in indices]
        return self._loader.collate_fn(samples)

    def _from_stream(self, stream, indices):
        if self._ended:
            raise StopIteration
        if not self._batched:
            return self._loader.collate_fn(next(stream))
        samples = list(itertools.islice(stream, len(indices)))
        if len(samples) < len(indices):
            self._ended = True
            if not samples or self._loader.drop_last:
                raise StopIteration
        return self._loader.collate_fn(samples)


def get_worker_info() -> None:
    """About the loading worker this is called in: None, as loading runs in the main process."""
    return None


__all__ = ["DataLoader", "get_worker_info"]
