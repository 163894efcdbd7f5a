"""Measures which way each collective is fastest on these ranks, and writes the table `selection` reads.

    disttorch-run --tune -n 4                     4 ranks of this machine
    mpirun -n 16 python -m collectives.tune       the ranks of a cluster, on its own interconnect
    python -m collectives.tune --help

Each way of each call is timed at each size, the ways by turns; what counts is the slowest rank, and of
all rounds the median. Only calls whose data is in the ranks' own memory are measured.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import collectives
from collectives import selection
from collectives.algorithms import ALGORITHMS, POWER_OF_TWO
from collectives.group import Group
from collectives.processes import ProcessesGroup

CALLS = ("all_reduce", "reduce", "reduce_scatter", "broadcast", "all_gather", "all_to_all")
SIZES = [64 << 3 * step for step in range(8)]  # 64 B to 128 MiB
SECONDS = 0.05  # that one measurement should take


def main(arguments: list[str] | None = None) -> int:
    """Tune for the ranks of this job; returns the exit status."""
    options = _parser().parse_args(arguments)
    group = collectives.world()
    if not isinstance(group, ProcessesGroup) or group.size == 1:
        print("tuning needs at least 2 ranks: disttorch-run --tune -n 2", file=sys.stderr)
        return 2
    sizes = [size for size in SIZES if size <= options.largest]
    table: dict[str, dict[str, list[list[Any]]]] = {}
    for call in options.calls:
        rows: list[list[Any]] = []
        for nbytes in sizes:
            times = measure(group, call, nbytes, options.rounds)
            best = min(times, key=lambda way: times[way])
            _show(group, call, nbytes, times, best)
            if rows and rows[-1][1] == best:
                rows[-1][0] = nbytes
            else:
                rows.append([nbytes, best])
        rows[-1][0] = None
        table[call] = {str(group.size): rows}
    if group.rank == 0:
        path = selection.save_table(_merged(table, options.out), options.out)
        print(f"written to {path}; ranks read it there" + (
            f" with DISTTORCH_TUNING={path}" if path != selection.table_path() else ""
        ))
    group.barrier()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m collectives.tune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, help=f"the table's file (default {selection.table_path()})")
    parser.add_argument("--calls", nargs="+", choices=CALLS, default=list(CALLS))
    parser.add_argument("--largest", type=int, default=SIZES[-1], help="largest size in bytes")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each way, by turns")
    return parser


def _merged(table: dict[str, Any], path: Path | None) -> dict[str, Any]:
    """The new rows beside those that were measured for other numbers of ranks."""
    file = selection.table_path() if path is None else path
    old = selection.load_table(file) if file.exists() else {}
    merged = selection.for_json(old)
    for call, by_ranks in table.items():
        merged.setdefault(call, {}).update(by_ranks)
    return merged


def measure(group: ProcessesGroup, call: str, nbytes: int, rounds: int) -> dict[str, float]:
    """Seconds of each way of one call at one size, equal on all ranks."""
    run = _call(group, call, nbytes)
    ways = [*group.ways, *_algorithms(call, group.size)]
    before = selection.table()
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            selection.use(selection.parse({call: {"1": [[None, way]]}}))
            group.reconsider()
            seconds[way].append(_slowest(group, run))
    selection.use(before)
    group.reconsider()
    return {way: statistics.median(each) for way, each in seconds.items()}


def _slowest(group: Group, run: Callable[[], None]) -> float:
    """Seconds of one call on the slowest rank."""
    run()
    group.barrier()
    begin = time.perf_counter()
    run()
    repeats = np.array([max(1, int(SECONDS / max(time.perf_counter() - begin, 1e-6)))], np.int64)
    group.all_reduce(repeats, collectives.ReduceOp.MIN)
    begin = time.perf_counter()
    for _ in range(min(int(repeats[0]), 1000)):
        run()
    took = np.array([(time.perf_counter() - begin) / min(int(repeats[0]), 1000)])
    group.all_reduce(took, collectives.ReduceOp.MAX)
    return float(took[0])


def _algorithms(call: str, n: int) -> list[str]:
    even = n & (n - 1) == 0
    return [name for name in ALGORITHMS[call] if even or name not in POWER_OF_TWO.get(call, ())]


def _call(group: Group, call: str, nbytes: int) -> Callable[[], None]:
    """A function that makes the call once, of `nbytes` as `selection` counts them."""
    n = group.size
    whole = np.ones(max(nbytes // 4 // n, 1) * n, np.float32)
    part, other = np.ones(whole.size // n, np.float32), np.ones_like(whole)
    calls: dict[str, Callable[[], Any]] = {
        "all_reduce": lambda: group.all_reduce(whole, collectives.ReduceOp.MAX),
        "reduce": lambda: group.reduce(whole, 0, collectives.ReduceOp.MAX),
        "reduce_scatter": lambda: group.reduce_scatter(part, whole, collectives.ReduceOp.MAX),
        "broadcast": lambda: group.broadcast(whole, 0),
        "all_gather": lambda: group.all_gather(whole, part),
        "all_to_all": lambda: group.all_to_all(other, whole),
    }
    return calls[call]


def _show(group: Group, call: str, nbytes: int, times: dict[str, float], best: str) -> None:
    if group.rank == 0:
        each = ", ".join(f"{way} {seconds * 1e6:.0f}" for way, seconds in times.items())
        print(f"{call:15} {nbytes:>10} B  {best:12} (us: {each})", flush=True)


if __name__ == "__main__":
    sys.exit(main())
