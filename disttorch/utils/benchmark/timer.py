"""``Timer`` measures, ``Measurement`` keeps what was measured, ``Compare`` lays results side by side."""

from __future__ import annotations

import statistics
import timeit
from dataclasses import dataclass, field
from time import perf_counter

_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))


def timer() -> float:
    """Seconds on a clock that waits for the GPU, where there is one."""
    from ... import cuda

    if cuda.is_available():
        cuda.synchronize()
    return perf_counter()


@dataclass
class Measurement:
    """Times of one statement.

    Attributes:
        number_per_run: how often the statement ran in each measured run.
        raw_times: seconds of each run.
        label, sub_label, description, env, num_threads: what ``Timer`` was given.
        stmt: the statement.
    """

    number_per_run: int
    raw_times: list[float]
    stmt: str = ""
    label: str | None = None
    sub_label: str | None = None
    description: str | None = None
    env: str | None = None
    num_threads: int = 1
    metadata: dict = field(default_factory=dict)

    @property
    def times(self) -> list[float]:
        """Seconds per statement of each run."""
        return [t / self.number_per_run for t in self.raw_times]

    @property
    def mean(self) -> float:
        """Mean seconds per statement."""
        return statistics.fmean(self.times)

    @property
    def median(self) -> float:
        """Median seconds per statement."""
        return statistics.median(self.times)

    @property
    def iqr(self) -> float:
        """Distance between the quartiles, in seconds; 0 for fewer than two runs."""
        if len(self.times) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.times, n=4, method="inclusive")
        return high - low

    @property
    def title(self) -> str:
        """What was measured, as one line."""
        parts = [self.label or self.stmt, self.sub_label, self.description]
        return ": ".join(p for p in parts if p)

    def __repr__(self):
        runs = f"{len(self.raw_times)} runs of {self.number_per_run}, {self.num_threads} thread(s)"
        return (
            f"{self.title}\n  median {in_seconds(self.median)}, IQR {in_seconds(self.iqr)}, "
            f"mean {in_seconds(self.mean)}\n  {runs}"
        )


def in_seconds(value: float) -> str:
    """A time with its unit: ``12.34 us``."""
    for size, unit in _UNITS:
        if value >= size:
            return f"{value / size:.2f} {unit}"
    return f"{value / 1e-9:.2f} ns"


class Timer:
    """Measure a statement.

    Args:
        stmt, setup: code that is run many times, and once before.
        global_setup: run before everything; only Python is known here.
        timer: clock that returns seconds.
        globals: names that the code may use; ``torch`` is always there.
        label, sub_label, description, env: names for the results; ``Compare`` makes a table per label,
            a row per sub_label and a column per description.
        num_threads: threads of the computation while measuring.

    Raises:
        NotImplementedError: for another language than Python.
    """

    def __init__(self, stmt: str = "pass", setup: str = "pass", global_setup: str = "",
                 timer=timer, globals: dict | None = None, label: str | None = None,
                 sub_label: str | None = None, description: str | None = None,
                 env: str | None = None, num_threads: int = 1, language: str = "python"):
        import disttorch

        if str(getattr(language, "value", language)).lower() not in ("python", "py", "0"):
            raise NotImplementedError(f"Timer measures Python only, not {language}")
        names = {**(globals or {})}
        names.setdefault("torch", disttorch)
        if global_setup:
            exec(global_setup, names)
        self._timer = timeit.Timer(stmt, setup, timer, names)
        self._torch, self.num_threads = disttorch, num_threads
        self._names: dict = {"stmt": stmt, "label": label, "sub_label": sub_label,
                             "description": description, "env": env}

    def _measured(self, number: int, times: list[float]) -> Measurement:
        return Measurement(number, times, num_threads=self.num_threads, **self._names)

    def _threads(self):
        return _Threads(self._torch, self.num_threads)

    def timeit(self, number: int = 1_000_000) -> Measurement:
        """Run the statement ``number`` times, after a hundredth of that to warm up."""
        with self._threads():
            self._timer.timeit(max(number // 100, 2))
            return self._measured(number, [self._timer.timeit(number)])

    def blocked_autorange(self, callback=None, min_run_time: float = 0.2) -> Measurement:
        """Measure for ``min_run_time`` seconds in blocks long enough for the clock.

        Args:
            callback: called with ``(number, seconds)`` after each block.
        """
        with self._threads():
            number = self._block_size(min_run_time)
            times: list[float] = []
            while sum(times) < min_run_time:
                times.append(self._timer.timeit(number))
                if callback is not None:
                    callback(number, times[-1])
        return self._measured(number, times)

    def adaptive_autorange(self, threshold: float = 0.1, *, min_run_time: float = 0.01,
                           max_run_time: float = 10.0, callback=None) -> Measurement:
        """Measure until the quartiles are closer than ``threshold`` of the median."""
        with self._threads():
            number = self._block_size(min_run_time)
            times: list[float] = []
            while sum(times) < max_run_time:
                times.append(self._timer.timeit(number))
                if callback is not None:
                    callback(number, times[-1])
                found = self._measured(number, times)
                steady = len(times) > 3 and found.iqr < threshold * found.median
                if steady and sum(times) >= min_run_time:
                    break
        return self._measured(number, times)

    def _block_size(self, min_run_time: float) -> int:
        """A number of runs that takes at least a thousandth of the whole."""
        number = 1
        while self._timer.timeit(number) < min_run_time / 1000:
            number *= 10
        return number


class _Threads:
    """The number of threads for the length of a block."""

    def __init__(self, torch, count: int):
        self.torch, self.count = torch, count

    def __enter__(self):
        self.before = self.torch.get_num_threads()
        self.torch.set_num_threads(self.count)

    def __exit__(self, *exc):
        self.torch.set_num_threads(self.before)


class Compare:
    """Tables of measurements: one per label, a row per sub_label, a column per description."""

    def __init__(self, results: list[Measurement]):
        self.results = list(results)

    def extend_results(self, results: list[Measurement]) -> None:
        """Take more measurements in."""
        self.results += results

    def print(self) -> None:
        """Print the tables."""
        print(self)

    def __str__(self):
        labels = dict.fromkeys(r.label or r.stmt for r in self.results)
        return "\n\n".join(self._table(label) for label in labels)

    def _table(self, label: str) -> str:
        mine = [r for r in self.results if (r.label or r.stmt) == label]
        columns = list(dict.fromkeys(r.description or "" for r in mine))
        rows = list(dict.fromkeys((r.num_threads, r.sub_label or r.stmt) for r in mine))
        cells = [[label, "threads", *columns]]
        for threads, name in rows:
            times = {
                r.description or "": in_seconds(r.median) for r in mine
                if (r.num_threads, r.sub_label or r.stmt) == (threads, name)
            }
            cells.append([name, str(threads), *(times.get(c, "") for c in columns)])
        widths = [max(map(len, column)) for column in zip(*cells)]
        return "\n".join(
            "  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths)))
            for line in cells
        )


__all__ = ["Compare", "Measurement", "Timer", "timer"]
