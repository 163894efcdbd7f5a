"""Run all scenarios of disttorch.distributed and of DDP as one rank of a job: NUMBER BACKEND.

The last line of every rank is `rank R: N scenarios, F failures`.
"""

from __future__ import annotations

import sys
import traceback
import warnings

import ddp_process_scenarios
import ddp_scenarios
import distributed_scenarios

import disttorch.distributed as dist

warnings.simplefilter("error")


def main() -> int:
    size, backend = int(sys.argv[1]), sys.argv[2]
    dist.init_process_group(backend)
    rank = dist.get_rank()
    if (dist.get_backend(), dist.get_world_size()) != (backend, size):
        raise RuntimeError(f"expected {size} ranks over {backend}, got {dist.group.WORLD}")
    scenarios = (
        *distributed_scenarios.SCENARIOS,
        *ddp_scenarios.SCENARIOS,
        *ddp_process_scenarios.SCENARIOS,
    )
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
