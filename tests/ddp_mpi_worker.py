"""Run all scenarios of disttorch.distributed and of DDP as one rank of an MPI job.

The last line of every rank is `rank R: N scenarios, F failures`.
"""

from __future__ import annotations

import sys
import traceback
import warnings

import ddp_scenarios
import distributed_scenarios

import disttorch.distributed as dist

warnings.simplefilter("error")


def main() -> int:
    dist.init_process_group("mpi")
    rank = dist.get_rank()
    if (dist.get_backend(), dist.get_world_size()) != ("mpi", int(sys.argv[1])):
        raise RuntimeError(f"expected {sys.argv[1]} ranks over MPI, got {dist.group.WORLD}")
    scenarios = (*distributed_scenarios.SCENARIOS, *ddp_scenarios.SCENARIOS)
    failures = []
    for scenario in scenarios:
        try:
            scenario()
        except AssertionError:  # the ranks are still in step; any other error ends the job
            failures.append(f"{scenario.__name__}: {traceback.format_exc()}")
    lines = [*failures, f"{len(scenarios)} scenarios, {len(failures)} failures"]
    # One write: the ranks' lines are mixed only between writes.
    sys.stdout.write("".join(f"rank {rank}: {line}\n" for line in lines))
    sys.stdout.flush()
    dist.destroy_process_group()
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
