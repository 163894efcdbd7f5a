"""Run all scenarios of fully_shard as one rank of a job of processes.

The last line of every rank is `rank R: N scenarios, F failures`; before it rank 0's peak of memory.
"""

from __future__ import annotations

import sys
import traceback
import warnings

import fsdp_counts
import fsdp_interface
import fsdp_scenarios
import fsdp_wrapper_scenarios

import disttorch.distributed as dist

warnings.simplefilter("error")


def main() -> int:
    backend, size = sys.argv[1], int(sys.argv[2])
    dist.init_process_group(backend)
    rank = dist.get_rank()
    if (dist.get_backend(), dist.get_world_size()) != (backend, size):
        raise RuntimeError(f"expected {size} ranks over {backend}, got {dist.group.WORLD}")
    scenarios = (
        *fsdp_scenarios.SCENARIOS,
        *fsdp_counts.SCENARIOS,
        *fsdp_interface.SCENARIOS,
        *fsdp_wrapper_scenarios.SCENARIOS,
    )
    failures = []
    for scenario in scenarios:
        try:
            scenario()
        except AssertionError:  # the ranks are still in step; any other error ends the job
            failures.append(f"{scenario.__name__}: {traceback.format_exc()}")
    peak = fsdp_counts.peak_memory()
    figures = " ".join(f"{name}={value:.0f}" for name, value in peak.items())
    lines = [*failures, f"memory {figures}", f"{len(scenarios)} scenarios, {len(failures)} failures"]
    # One write: the ranks' lines are mixed only between writes.
    sys.stdout.write("".join(f"rank {rank}: {line}\n" for line in lines))
    sys.stdout.flush()
    dist.destroy_process_group()
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
