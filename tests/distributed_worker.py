"""One rank of a job of processes: runs every scenario of torch.distributed, and says so.

    disttorch-run -n 2 distributed_worker.py FOLDER
"""

from __future__ import annotations

import pathlib
import sys
import warnings

import distributed_more_scenarios
import distributed_scenarios

import disttorch.distributed as dist


def main(folder: str) -> None:
    warnings.simplefilter("error")
    dist.init_process_group()
    scenarios = (*distributed_scenarios.SCENARIOS, *distributed_more_scenarios.MORE)
    for scenario in scenarios:
        scenario()
    distributed_more_scenarios.reports(pathlib.Path(folder))
    rank, n, backend = dist.get_rank(), dist.get_world_size(), dist.get_backend()
    dist.destroy_process_group()
    print(f"<rank {rank} of {n}: {len(scenarios) + 1} scenarios over {backend}>", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
