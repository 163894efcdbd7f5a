"""What the jobs of benchmarks/collectives.py share: the cases, how they are timed, the report.

Standard library only: the jobs run in environments with different packages.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable

CALLS = ("all_reduce", "all_gather", "reduce_scatter", "broadcast", "all_to_all")
ITEM = 4  # bytes of a float32


def job_arguments() -> argparse.Namespace:
    """What the parent tells a job."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--calls", default="all_reduce")
    parser.add_argument("--sizes", default="8")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.02, help="of one sample, at least")
    parser.add_argument("--result", required=True, help="rank 0 writes its JSON here")
    parser.add_argument("--raw-only", action="store_true", help="mpi4py alone")
    options = parser.parse_args()
    options.calls = options.calls.split(",")
    options.sizes = [int(size) for size in options.sizes.split(",")]
    return options


def elements(nbytes: int, n: int) -> int:
    """Of the whole: a multiple of n."""
    return max(n, nbytes // ITEM // n * n)


def bus_factor(call: str, n: int) -> float:
    """Bytes over the busiest link per byte of S, as nccl-tests define the bus bandwidth."""
    if call == "all_reduce":
        return 2 * (n - 1) / n
    return 1.0 if call == "broadcast" else (n - 1) / n


class Timer:
    """Samples of several functions, taken in turn on all ranks at once.

    Args:
        barrier: ranks start a sample together.
        slowest: the maximum of a number over the ranks, on every rank.
    """

    def __init__(
        self, barrier: Callable[[], None], slowest: Callable[[float], float], seconds: float, repeat: int
    ) -> None:
        self.barrier, self.slowest = barrier, slowest
        self.seconds, self.repeat = seconds, repeat

    def measure(self, functions: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
        """Seconds per call of each function: `repeat` samples, each that of the slowest rank."""
        times = {}
        for name, function in functions.items():
            for _ in range(2):
                function()
            times[name] = max(1, min(2000, int(self.seconds / max(self.sample(function, 3), 1e-7))))
        found: dict[str, list[float]] = {name: [] for name in functions}
        names = list(functions)
        for turn in range(self.repeat):
            for name in names if turn % 2 == 0 else reversed(names):
                found[name].append(self.sample(functions[name], times[name]))
        return found

    def sample(self, function: Callable[[], object], times: int) -> float:
        gc.collect()
        gc.disable()
        try:
            self.barrier()
            start = time.perf_counter()
            for _ in range(times):
                function()
            return self.slowest((time.perf_counter() - start) / times)
        finally:
            gc.enable()


def write(path: str, about: dict[str, str], rows: list[tuple[str, int, dict[str, list[float]]]]) -> None:
    """What the parent reads: for each (call, bytes) the samples of each library."""
    found = [{"call": call, "bytes": size, "seconds": times} for call, size, times in rows]
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"about": about, "rows": found}, file)


def median(values: list[float]) -> float:
    return statistics.median(values)
