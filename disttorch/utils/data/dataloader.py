"""DataLoader: a dataset, an order and a way to batch, as one iterable."""

from __future__ import annotations

import itertools
import multiprocessing
import multiprocessing.context
import warnings
from typing import Any, Generic

from ...backend.devices import cpu
from .collate import default_collate, default_convert
from .dataset import IterableDataset
from .fetch import Fetcher
from .pinning import device_for
from .pinning import pin_memory as pin_batch
from .sampler import (
    BatchSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    T_co,
    draw_seed,
)
from .worker import Plan, get_worker_info
from .workers import WorkersIterator


class _InfiniteConstantSampler(Sampler):
    """Stands for the order of a stream: as many Nones as there are samples."""

    def __iter__(self):
        return itertools.repeat(None)


class DataLoader(Generic[T_co]):
    """Batches of a dataset.

    Args:
        dataset: by index, or an IterableDataset.
        batch_size: samples in a batch; None gives single samples, converted but not batched.
        shuffle: new random order in each pass.
        sampler: the order of indices instead; batch_sampler: the lists of indices.
        num_workers: processes that load; 0 loads in this one.
        collate_fn: makes a batch of a list of samples (``default_collate``).
        drop_last: leave out a last, smaller batch.
        timeout: seconds to wait for a batch of a worker; 0: as long as the worker lives.
        worker_init_fn: called in each worker with its number, after seeding.
        multiprocessing_context: how workers start: "fork", "spawn", "forkserver" or a context;
            the platform's default if None.
        generator: draws the order and the workers' seeds.
        prefetch_factor: batches asked of each worker in advance; 2 by default.
        persistent_workers: keep the workers for the next pass.
        pin_memory: batches in page-locked memory, which ``to("cuda", non_blocking=True)`` copies beside
            other work; those of workers are pinned by a thread. pin_memory_device: for another GPU than
            the current one.
        in_order: False gives batches as they arrive.

    Batches of workers come through shared memory. An exception of a worker is raised here with its
    traceback; a worker that dies raises a RuntimeError that names process and signal.

    Raises:
        ValueError, TypeError: for options of the wrong type or that exclude each other.
    """

    _FIXED = (
        "batch_size", "batch_sampler", "sampler", "drop_last", "dataset", "persistent_workers",
    )
    _initialized = False

    def __init__(
        self, dataset, batch_size: int | None = 1, shuffle: bool | None = None, sampler=None,
        batch_sampler=None, num_workers: int = 0, collate_fn=None, pin_memory: bool = False,
        drop_last: bool = False, timeout: float = 0, worker_init_fn=None,
        multiprocessing_context=None, generator=None, *, prefetch_factor: int | None = None,
        persistent_workers: bool = False, pin_memory_device: str = "", in_order: bool = True,
    ):
        prefetch_factor = self._check_workers(
            num_workers, timeout, prefetch_factor, persistent_workers
        )
        self.dataset, self.num_workers = dataset, num_workers
        self.prefetch_factor, self.pin_memory = prefetch_factor, pin_memory
        self.pin_memory_device, self.timeout = pin_memory_device, timeout
        self.worker_init_fn, self.in_order = worker_init_fn, in_order
        self.multiprocessing_context = self._check_context(multiprocessing_context, num_workers)
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
        self._kept: WorkersIterator | None = None  # workers for the next pass
        self._pin_for: int | None = None  # the GPU that batches of the present pass are pinned for
        self._resume: dict | None = None  # the state that the next pass goes on from
        self._progress: _Progress | None = None  # of the latest pass, until its end
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
        if num_workers == 0 and prefetch_factor is not None:
            raise ValueError(
                "prefetch_factor option could only be specified in multiprocessing."
                "let num_workers > 0 to enable multiprocessing, otherwise set prefetch_factor to "
                "None."
            )
        if num_workers > 0 and prefetch_factor is None:
            prefetch_factor = 2
        if prefetch_factor is not None and prefetch_factor < 0:
            raise ValueError("prefetch_factor option should be non-negative")
        if prefetch_factor == 0:
            raise AssertionError(
                "prefetch_factor must be greater than 0 for MultiProcessingDataLoaderIter"
            )
        if persistent_workers and num_workers == 0:
            raise ValueError("persistent_workers option needs num_workers > 0")
        return prefetch_factor

    @staticmethod
    def _check_context(context, num_workers):
        """A context of ``multiprocessing`` from its name, or as given."""
        if context is None:
            return None
        if num_workers == 0:
            raise ValueError(
                "multiprocessing_context can only be used with multi-process loading "
                f"(num_workers > 0), but got num_workers={num_workers}"
            )
        if isinstance(context, str):
            known = multiprocessing.get_all_start_methods()
            if context not in known:
                raise ValueError(
                    "multiprocessing_context option should specify a valid start method in "
                    f"{known!r}, but got multiprocessing_context={context!r}"
                )
            return multiprocessing.get_context(context)
        if not isinstance(context, multiprocessing.context.BaseContext):
            raise TypeError(
                "multiprocessing_context option should be a valid context object or a string "
                f"specifying the start method, but got multiprocessing_context={context}"
            )
        return context

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
        self._pin_for = device_for(self.pin_memory, self.pin_memory_device)
        workers = self._kept if self._kept is not None and self._kept.running else None
        iterator = _Iterator(self, workers)
        if self.persistent_workers:
            self._kept = iterator._workers
        return iterator

    def _new_workers(self, base_seed: int) -> WorkersIterator:
        plan = Plan(
            self.dataset, self.batch_sampler is not None, self.collate_fn, self.drop_last,
            base_seed, self.worker_init_fn, self.num_workers,
        )
        return WorkersIterator(
            self.multiprocessing_context, plan, prefetch=self.prefetch_factor,
            timeout=self.timeout, in_order=self.in_order, keep=self.persistent_workers,
            pin_for=self._pin_for,
        )

    # ---------------------------------------------------------------- saving a pass
    def _resumable(self):
        """The sampler whose state says where a pass stands; None for batches of a user's making."""
        if self._iterable or type(self.batch_sampler) not in (BatchSampler, type(None)):
            return None
        return self.sampler if self.batch_sampler is None else self.batch_sampler.sampler

    def state_dict(self) -> dict:
        """Where the present pass stands, counted by the batches that were given.

        The sampler's state is part of it; a sampler without one must give the same order again. A
        stream is read again from its start, with as many workers, and what was given is dropped.
        Between two passes it is the state of a pass that has not begun.
        """
        if self._resume is not None:
            return dict(self._resume)
        state = {"batches": 0, "samples": 0, "sampler": None, "num_workers": self.num_workers}
        progress, sampler = self._progress, self._resumable()
        if progress is not None:
            state["batches"] = progress.batches
            state["samples"] = progress.before + progress.samples
            if hasattr(sampler, "state_dict"):
                state["sampler"] = sampler.state_dict(progress.samples)
        return state

    def load_state_dict(self, state_dict: dict) -> None:
        """Let the next pass give what the saved one had left.

        With a ``DistributedSampler`` the number of ranks may be another one.

        Raises:
            ValueError: for a stream with another number of workers, whose order would differ.
        """
        if self._iterable and state_dict["num_workers"] != self.num_workers:
            raise ValueError(
                f"the pass over this IterableDataset was saved with num_workers="
                f"{state_dict['num_workers']}, this DataLoader has {self.num_workers}: its order "
                "would be another one; use the same number"
            )
        sampler = self._resumable()
        if state_dict["sampler"] is not None and not hasattr(sampler, "load_state_dict"):
            raise ValueError(
                f"the pass was saved with a sampler that has a state, {type(sampler).__name__} has "
                "no load_state_dict(): give the DataLoader the same kind of sampler"
            )
        self._resume = dict(state_dict) if state_dict["batches"] else None
        if self._resume is None and state_dict["sampler"] is not None:
            sampler.load_state_dict(state_dict["sampler"])

    def __len__(self) -> int:
        if not self._iterable:
            return len(self.sampler if self.batch_sampler is None else self.batch_sampler)
        # Streams may be wrong about their length: remembered, to warn when more samples come
        n = self._reported_length = len(self.dataset)
        if self.batch_size is None:
            return n
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)


class _Iterator:
    """One pass over a DataLoader, in this process or by its workers."""

    def __init__(self, loader: DataLoader, workers: WorkersIterator | None):
        self._loader = loader
        self._batched = loader.batch_sampler is not None
        self._streams = loader._iterable
        resume, loader._resume = loader._resume, None
        # Drawn in every pass, so that random streams do not depend on the number of workers. A pass
        # that goes on draws from a copy: the draw at its beginning is in the saved state already
        self._base_seed = draw_seed(loader.generator if resume is None else _copy(loader.generator))
        self._progress = loader._progress = _Progress()
        skip = self._restore(resume)
        order: Any = self._progress.watch(
            loader.batch_sampler if self._batched else loader.sampler, self._batched
        )
        self._yielded = 0
        self._fetch = self._workers = None
        if loader.num_workers:
            self._workers = loader._new_workers(self._base_seed) if workers is None else workers
            self._workers.begin(order)
        else:
            self._order = enumerate(order)
            self._fetch = Fetcher(
                loader.dataset, self._batched, loader.collate_fn, loader.drop_last
            )
        for _ in range(skip):
            self._next_batch()
        self._progress.batches += skip

    def _restore(self, resume) -> int:
        """Put the order where a saved pass stood; how many batches to load and drop instead."""
        if resume is None:
            return 0
        self._progress.before = resume["samples"]
        if resume["sampler"] is not None:
            self._loader._resumable().load_state_dict(resume["sampler"])
            return 0
        if self._streams:
            return resume["batches"]
        self._progress.skip = self._progress.batches = resume["batches"]
        return 0

    def __iter__(self):
        return self

    def __len__(self) -> int:
        return len(self._loader)

    def _next_batch(self):
        if self._workers is not None:
            return self._workers.next_batch()
        index, indices = next(self._order)
        batch = self._fetch(indices)
        return index, batch if self._loader._pin_for is None else pin_batch(batch)

    def __next__(self):
        try:
            index, data = self._next_batch()
        except StopIteration:
            if self._loader._progress is self._progress:
                self._loader._progress = None  # a state saved now is that of a new pass
            raise
        self._yielded += 1
        self._progress.given(index)
        expected = self._loader._reported_length
        if self._streams and expected is not None and self._yielded > len(self):
            warnings.warn(
                f"Length of IterableDataset {self._loader.dataset} was reported to be {expected} "
                f"(when accessing len(dataloader)), but {self._yielded} samples have been fetched.",
                stacklevel=2,
            )
        return data


def _copy(generator):
    """A generator in the state of this one (the default one if None)."""
    from ...ops.random import default_generator

    return (default_generator(cpu) if generator is None else generator).clone_state()


class _Progress:
    """How much of a pass was given to the user. It outlives an iterator that is left early."""

    def __init__(self):
        self._sizes: dict[int, int] = {}  # samples of the batches that were asked for
        self.batches = 0
        self.samples = 0  # without those before the pass was resumed
        self.before = 0  # those
        self.skip = 0  # batches to leave out at the beginning of the order

    def watch(self, order, batched: bool):
        """The indices (or lists of them) of ``order``, whose sizes are noted."""
        for index, indices in enumerate(itertools.islice(iter(order), self.skip, None)):
            self._sizes[index] = len(indices) if batched else 1
            yield indices

    def given(self, index: int) -> None:
        """The batch of the index-th request was given to the user."""
        self.batches += 1
        self.samples += self._sizes.pop(index)


__all__ = ["DataLoader", "get_worker_info"]
