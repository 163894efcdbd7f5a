"""From indices to a batch: the part of loading that is the same in every process."""

from __future__ import annotations

import itertools

from .dataset import IterableDataset


class Fetcher:
    """Fetches batches of a dataset, by index or, of a stream, one after the other.

    Args:
        dataset: by index, or an IterableDataset.
        batched: whether a batch is asked for by a list of indices, or a sample by one.
        collate_fn: makes a batch of a list of samples (or converts a sample).
        drop_last: leave out a last, smaller batch of a stream.
    """

    def __init__(self, dataset, batched: bool, collate_fn, drop_last: bool):
        self._dataset, self._batched = dataset, batched
        self._collate_fn, self._drop_last = collate_fn, drop_last
        self._stream = iter(dataset) if isinstance(dataset, IterableDataset) else None
        self._ended = False

    def __call__(self, indices):
        """The batch at ``indices``.

        Raises:
            StopIteration: at the end of a stream.
        """
        if self._stream is not None:
            return self._from_stream(indices)
        dataset = self._dataset
        if not self._batched:
            samples = dataset[indices]
        elif callable(getattr(dataset, "__getitems__", None)):
            samples = dataset.__getitems__(indices)
        else:
            samples = [dataset[i] for i in indices]
        return self._collate_fn(samples)

    def _from_stream(self, indices):
        if self._ended:
            raise StopIteration
        if not self._batched:
            return self._collate_fn(next(self._stream))
        samples = list(itertools.islice(self._stream, len(indices)))
        if len(samples) < len(indices):
            self._ended = True
            if not samples or self._drop_last:
                raise StopIteration
        return self._collate_fn(samples)


__all__ = ["Fetcher"]
