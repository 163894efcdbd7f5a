"""One rank of a job of benchmarks/ddp.py, of either library: the same lines train with both."""

from __future__ import annotations

import gc
import importlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# The folder of this file has a collectives.py, which is not the package.
sys.path[0] = str(Path(__file__).resolve().parent.parent)
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

from benchmarks._ddp_common import (  # noqa: E402
    CASES,
    DISTURBED,
    Case,
    busy_seconds,
    bytes_sent,
    job_arguments,
)


class Training:
    """One model in one way of training; `step` is one AdamW step on fixed data of this rank."""

    def __init__(self, p: Any, case: Case, mode: str, rank: int, batch: int) -> None:
        p.manual_seed(0)
        self.model, _ = case.build(p, batch)
        p.manual_seed(1 + rank)
        _, self.loss = case.build(p, batch)  # each rank has other samples
        self.parameters = sum(w.numel() * w.element_size() for w in self.model.parameters())
        if mode == "fsdp":
            fully_shard = importlib.import_module(f"{p.__name__}.distributed.fsdp").fully_shard
            mesh_module = importlib.import_module(f"{p.__name__}.distributed.device_mesh")
            size = p.distributed.get_world_size()
            mesh = mesh_module.init_device_mesh("cpu", (size,))
            for unit in case.units(self.model):
                fully_shard(unit, mesh=mesh)
            self.model = fully_shard(self.model, mesh=mesh)
        elif mode != "alone":
            self.model = p.nn.parallel.DistributedDataParallel(self.model)
        self.batch = batch
        self.optimizer = p.optim.AdamW(self.model.parameters(), lr=1e-4)

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.loss(self.model).backward()
        self.optimizer.step()


class Sampler:
    """Samples of a number of steps each, begun together on all ranks of `dist`."""

    def __init__(self, dist: Any, library: str) -> None:
        self.dist, self.library = dist, library

    def everyone(self, mine: Any) -> list[Any]:
        """The values of all ranks."""
        found: list[Any] = [None] * self.dist.get_world_size()
        self.dist.all_gather_object(found, mine)
        return found

    def take(self, step: Callable[[], None], steps: int) -> dict[str, Any]:
        """Seconds of each step, that of its slowest rank; what a step sends and its CPU seconds (means
        over the ranks); CPUs that other programs have used.

        Of a step that reduces nothing the slowest rank counts too: reduction would wait for it.
        """
        times = []
        gc.collect()
        gc.disable()
        try:
            self.dist.barrier()
            before = bytes_sent(self.library, self.dist)
            busy, own, began = busy_seconds(), time.process_time(), time.perf_counter()
            for _ in range(steps):
                start = time.perf_counter()
                step()
                times.append(time.perf_counter() - start)
            sent = bytes_sent(self.library, self.dist) - before
            wall = time.perf_counter() - began
            busy, own = busy_seconds() - busy, time.process_time() - own
        finally:
            gc.enable()
        ranks = self.everyone((times, sent / steps, own))
        return {
            "seconds": [max(each) for each in zip(*(one[0] for one in ranks))],
            "sent": statistics.mean(one[1] for one in ranks),
            "cpu": statistics.mean(one[2] for one in ranks) / steps,
            "others": self.everyone((busy - sum(one[2] for one in ranks)) / wall)[0],
        }


def overlap(wrapper: Any, step: Callable[[], None], steps: int = 5) -> dict[str, float]:
    """Median milliseconds of communication, and its share that ran beside backward.

    Both libraries tell their times by the same name: from the start of the first bucket's reduction
    to the end of the last one's, and the part of that before the last gradient was computed.
    """
    wrapper._set_ddp_runtime_logging_sample_rate(1)
    comm, share = [], []
    for _ in range(steps):
        step()
        data = wrapper._get_ddp_logging_data()
        whole, beside = (
            float(data.get(f"backward_{name}_time", 0)) for name in ("comm", "compute_comm_overlap")
        )
        if whole:
            comm.append(whole / 1e6)
            share.append(beside / whole)
    if not comm:
        return {}
    return {"comm_ms": statistics.median(comm), "overlap": statistics.median(share)}


def main() -> None:
    options = job_arguments()
    p = importlib.import_module(options.library)
    dist = importlib.import_module(f"{options.library}.distributed")
    importlib.import_module(f"{options.library}.nn.parallel")
    p.set_num_threads(1)
    dist.init_process_group(*(["gloo"] if options.library == "torch" else []))
    rank, n, case = dist.get_rank(), dist.get_world_size(), CASES[options.model]

    ways = {mode: Training(p, case, mode, rank, case.batch) for mode in options.modes}
    if options.strong and case.batch % n == 0:
        ways |= {
            f"{mode} strong": Training(p, case, mode, rank, case.batch // n)
            for mode in options.modes
            if mode == "ddp"
        }
    sampler = Sampler(dist, options.library)
    counts, samples = {}, {mode: [] for mode in ways}
    for mode, way in ways.items():
        warm = min(sampler.take(way.step, 3)["seconds"])
        counts[mode] = min(sampler.everyone(max(1, min(50, round(options.seconds / warm)))))
    for turn in range(options.most):
        for mode in list(ways) if turn % 2 == 0 else reversed(list(ways)):
            if sum(one["others"] <= DISTURBED for one in samples[mode]) < options.repeat:
                samples[mode].append(sampler.take(ways[mode].step, counts[mode]))
    extra = {}
    if "ddp" in ways and n > 1:
        extra["ddp"] = overlap(ways["ddp"].model, ways["ddp"].step)

    if rank == 0:
        rows = [
            {
                "mode": mode,
                "batch": way.batch,
                "parameters": ways["alone"].parameters,
                "samples": samples[mode],
                **extra.get(mode, {}),
            }
            for mode, way in ways.items()
        ]
        Path(options.result).write_text(json.dumps({"version": p.__version__, "rows": rows}))
    dist.barrier()
    dist.destroy_process_group()
    if options.library == "torch":
        os._exit(0)  # 2.13 now and then aborts while it unloads, with threads of gloo still there


if __name__ == "__main__":
    main()
