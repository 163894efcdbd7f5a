"""Run the whole conformance suite as one rank of an MPI job and print what failed.

The last line of every rank is `rank R: N cases, M scenarios, F failures`.
"""

from __future__ import annotations

import sys
import traceback
import warnings

from collectives_conformance import CALLS, DTYPES, SCENARIOS, check_call

import collectives

warnings.simplefilter("error")


def main() -> int:
    group = collectives.world()
    if type(group).__name__ != "MPIGroup" or group.size != int(sys.argv[1]):
        raise RuntimeError(f"expected {sys.argv[1]} MPI ranks, got {group}")
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
