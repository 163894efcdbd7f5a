"""Samplers: in which order a dataset's indices are visited."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from ... import ops
from ...backend.devices import cpu
from ...backend.dtypes import float64, int64, uint8

T_co = TypeVar("T_co", covariant=True)


class Sampler(Generic[T_co]):
    """Base of samplers: subclasses define ``__iter__`` over indices (or lists of them)."""

    def __iter__(self) -> Iterator[T_co]:
        raise NotImplementedError("Subclasses of Sampler should implement __iter__.")


def draw_seed(generator=None) -> int:
    """A non-negative 63-bit seed from ``generator`` (the default one if None)."""
    return int(ops.empty((), dtype=int64).random_(generator=generator).item())


class SequentialSampler(Sampler[int]):
    """0, 1, …, len − 1."""

    _next_start = _start = 0  # where the next pass begins, and the present one did

    def __init__(self, data_source):
        self.data_source = data_source

    def __iter__(self):
        self._start, self._next_start = self._next_start, 0
        return iter(range(self._start, len(self.data_source)))

    def state_dict(self, consumed: int = 0) -> dict:
        """Where a pass stands after ``consumed`` indices."""
        return {"consumed": self._start + consumed}

    def load_state_dict(self, state_dict: dict) -> None:
        """Begin the next pass where the saved one stood."""
        self._next_start = state_dict["consumed"]

    def __len__(self) -> int:
        return len(self.data_source)


def _check_count(name: str, value) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise ValueError(f"{name} should be a positive integer value, but got {name}={value}")


class _DrawnOrder(Sampler[int]):
    """A sampler that draws its order: subclasses define ``_draw(generator)``.

    Its state is that of the generator before the pass, and how many indices were used: an order
    that is drawn again from there is the same.
    """

    generator: Any = None
    _begun: Any = None  # the generator's state before the present pass
    _resume: dict | None = None
    _skipped = 0  # indices of the present pass that were used before it was resumed

    def _source(self):
        """The generator that draws when none was given."""
        from ...ops.random import default_generator

        return default_generator(cpu)

    def _draw(self, generator) -> Iterator[int]:
        raise NotImplementedError

    def __iter__(self) -> Iterator[int]:
        resume, self._resume = self._resume, None
        generator = self.generator
        if resume is not None:
            if generator is None:
                from ...ops.random import Generator

                generator = Generator()
            generator.set_state(ops.tensor(resume["generator"], dtype=uint8))
        elif generator is None:
            generator = self._source()
        self._begun = generator.get_state()
        self._skipped = 0 if resume is None else resume["consumed"]
        return itertools.islice(self._draw(generator), self._skipped, None)

    def state_dict(self, consumed: int = 0) -> dict:
        """Where the present pass stands after ``consumed`` indices.

        Raises:
            RuntimeError: if no pass has begun.
        """
        if self._begun is None:
            raise RuntimeError(
                f"{type(self).__name__}.state_dict(): no pass has begun, so no order was drawn yet; "
                "save the state between two batches"
            )
        return {"generator": self._begun.tolist(), "consumed": self._skipped + consumed}

    def load_state_dict(self, state_dict: dict) -> None:
        """Go on, in the next pass, with what the saved one had left."""
        self._resume = dict(state_dict)


class RandomSampler(_DrawnOrder):
    """Indices in random order.

    Args:
        replacement: draw each index independently.
        num_samples: how many to draw; the dataset's length by default.
        generator: draws the order; a fresh one, seeded by the default one, if None.

    Raises:
        TypeError, ValueError: for options of the wrong type or range.
    """

    def __init__(self, data_source, replacement: bool = False, num_samples=None, generator=None):
        self.data_source, self.replacement = data_source, replacement
        self._num_samples, self.generator = num_samples, generator
        if not isinstance(replacement, bool):
            raise TypeError(
                f"replacement should be a boolean value, but got replacement={replacement}"
            )
        _check_count("num_samples", self.num_samples)

    @property
    def num_samples(self) -> int:
        """How many indices one pass gives; follows the dataset if it was not set."""
        return len(self.data_source) if self._num_samples is None else self._num_samples

    def _source(self):
        from ...ops.random import Generator

        return Generator().manual_seed(draw_seed())

    def _draw(self, generator):
        n = len(self.data_source)
        if self.replacement:
            yield from ops.randint(n, (self.num_samples,), generator=generator).tolist()
            return
        whole, rest = divmod(self.num_samples, n)
        for _ in range(whole):
            yield from ops.randperm(n, generator=generator).tolist()
        if rest:
            yield from ops.randperm(n, generator=generator).tolist()[:rest]

    def __len__(self) -> int:
        return self.num_samples


class SubsetRandomSampler(_DrawnOrder):
    """The given indices in random order."""

    def __init__(self, indices: Sequence[int], generator=None):
        self.indices, self.generator = indices, generator

    def _draw(self, generator):
        for i in ops.randperm(len(self.indices), generator=generator).tolist():
            yield self.indices[i]

    def __len__(self) -> int:
        return len(self.indices)


class WeightedRandomSampler(_DrawnOrder):
    """Index i with a probability proportional to ``weights[i]``.

    Raises:
        ValueError: for options of the wrong type or shape.
    """

    def __init__(self, weights, num_samples: int, replacement: bool = True, generator=None):
        _check_count("num_samples", num_samples)
        if not isinstance(replacement, bool):
            raise ValueError(
                f"replacement should be a boolean value, but got replacement={replacement}"
            )
        weights = ops.as_tensor(weights, dtype=float64)
        if weights.ndim != 1:
            raise ValueError(
                "weights should be a 1d sequence but given weights have shape "
                f"{tuple(weights.shape)}"
            )
        self.weights, self.num_samples = weights, num_samples
        self.replacement, self.generator = replacement, generator

    def _draw(self, generator):
        drawn = ops.multinomial(
            self.weights, self.num_samples, self.replacement, generator=generator
        )
        yield from drawn.tolist()

    def __len__(self) -> int:
        return self.num_samples


class BatchSampler(Sampler[list[int]]):
    """Lists of ``batch_size`` indices of another sampler.

    Args:
        drop_last: leave out a last, smaller batch.

    Raises:
        ValueError: for options of the wrong type or range.
    """

    def __init__(self, sampler: Iterable[int], batch_size: int, drop_last: bool):
        _check_count("batch_size", batch_size)
        if not isinstance(drop_last, bool):
            raise ValueError(
                f"drop_last should be a boolean value, but got drop_last={drop_last}"
            )
        self.sampler, self.batch_size, self.drop_last = sampler, batch_size, drop_last

    def __iter__(self):
        indices = iter(self.sampler)
        while batch := list(itertools.islice(indices, self.batch_size)):
            if self.drop_last and len(batch) < self.batch_size:
                return
            yield batch

    def __len__(self) -> int:
        n = len(self.sampler)  # type: ignore[arg-type]  # an order may have no length
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)


__all__ = [
    "BatchSampler", "RandomSampler", "Sampler", "SequentialSampler", "SubsetRandomSampler",
    "WeightedRandomSampler",
]
