"""One rank of a torch job of benchmarks/collectives.py: gloo, in an environment that has PyTorch."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# The folder of this file has a collectives.py, which is not the package.
sys.path[0] = str(Path(__file__).resolve().parent.parent)
os.environ["OMP_NUM_THREADS"] = "1"

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402

from benchmarks._collectives_common import Timer, elements, job_arguments, write  # noqa: E402


def by_gloo(call: str, whole, part, other):
    # Newer names of the same calls, where this PyTorch has them.
    gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
    scatter = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)
    return {
        "all_reduce": lambda: dist.all_reduce(whole),
        "all_gather": lambda: gather(whole, part),
        "reduce_scatter": lambda: scatter(part, whole),
        "broadcast": lambda: dist.broadcast(whole, 0),
        "all_to_all": lambda: dist.all_to_all_single(other, whole),
    }[call]


def slowest(value: float) -> float:
    found = torch.tensor([value], dtype=torch.float64)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return found.item()


def main() -> None:
    options = job_arguments()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    n = dist.get_world_size()
    timer = Timer(dist.barrier, slowest, options.seconds, options.repeat)
    rows = []
    for call in options.calls:
        for size in options.sizes:
            count = elements(size, n)
            whole, other = torch.zeros(count).fill_(0.0), torch.zeros(count).fill_(0.0)
            part = torch.zeros(count // n).fill_(0.0)
            rows.append((call, size, timer.measure({"gloo": by_gloo(call, whole, part, other)})))
    if dist.get_rank() == 0:
        write(options.result, {"gloo": f"torch {torch.__version__}"}, rows)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
