"""Run the whole conformance suite as one rank of a job and print what failed.

    collectives_worker.py RANKS BACKEND WAY

WAY is what must carry out the calls: shm, native, hierarchy or messages. The last line of every rank
is `rank R: N cases, M scenarios, F failures`.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings

from collectives_conformance import CALLS, DTYPES, SCENARIOS, check_call

import collectives
from collectives import selection
from collectives.algorithms import ALGORITHMS

warnings.simplefilter("error")

WAYS = {
    "shm": "NodeEngine",
    "native": "NativeMPI",
    "hierarchy": "Hierarchy",
    "messages": "ByMessages",
}


def main() -> int:
    size, backend, way = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    if way == "hierarchy":  # two nodes, their ranks in turn
        names = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "RANK")
        rank = int(next(os.environ[name] for name in names if name in os.environ))
        os.environ["DISTTORCH_NODE"] = f"node {rank % 2}"
        rows = [(float("inf"), "hierarchy")]
        selection.use({call: {1: rows} for call in ALGORITHMS})
    group = collectives.world()
    if collectives.backend_of(group) != backend or group.size != size:
        raise RuntimeError(f"expected {size} ranks over {backend}, got {group}")
    if size > 1 and WAYS[way] != type(group.way("all_reduce", 8)).__name__:
        raise RuntimeError(f"expected {way}, got {group.way('all_reduce', 8)}")
    failures: list[str] = []
    cases = 0
    for call in CALLS:
        count, failed, used = check_call(group, call)
        cases += count
        failures += failed
        if used != {dtype.name for dtype in DTYPES}:
            failures.append(f"{call}: dtypes used are {sorted(used)}")
    for scenario in SCENARIOS:
        try:
            scenario(group)
        except AssertionError:
            failures.append(f"{scenario.__name__}: {traceback.format_exc()}")
    lines = [*failures[:20], f"{cases} cases, {len(SCENARIOS)} scenarios, {len(failures)} failures"]
    # One write: the ranks' lines are mixed only between writes.
    sys.stdout.write("".join(f"rank {group.rank}: {line}\n" for line in lines))
    sys.stdout.flush()
    group.barrier()
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
