"""Ranks on one GPU that use torch.distributed's "nccl": what `test_two_ranks_on_gpu.py` starts.

Trains a network with DistributedDataParallel, each rank on its part of a batch, and compares it with
one that a single process trains on the whole batch; then tries the calls. Prints one JSON line.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import disttorch as torch
import disttorch.distributed as dist
from disttorch.nn.parallel import DistributedDataParallel as DDP


def network():
    torch.manual_seed(0)
    layers = [torch.nn.Linear(8, 64), torch.nn.GELU(), torch.nn.Linear(64, 3)]
    return torch.nn.Sequential(*layers).cuda()


def train(model, x, y):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(10):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def main() -> None:
    torch.cuda.set_device(0)
    warnings.simplefilter("ignore")
    dist.init_process_group("nccl")
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(1)
    x, y = torch.randn(16, 8).cuda(), torch.randint(3, (16,)).cuda()
    alone, together = network(), DDP(network())
    train(alone, x, y)
    train(together, x[rank::size], y[rank::size])
    worst = max(float((a - b).abs().max())
                for a, b in zip(alone.parameters(), together.module.parameters()))

    t = torch.full((3,), rank + 1.0, device="cuda")
    work = dist.all_reduce(t, async_op=True)
    work.wait()
    assert t.tolist() == [size * (size + 1) / 2] * 3
    parts = [torch.zeros(2, device="cuda") for _ in range(size)]
    dist.all_gather(parts, torch.full((2,), float(rank), device="cuda"))
    assert [p.tolist() for p in parts] == [[float(r)] * 2 for r in range(size)]
    half = torch.ones(4, dtype=torch.bfloat16, device="cuda")
    dist.all_reduce(half, dist.ReduceOp.AVG)
    assert half.tolist() == [1] * 4
    here = torch.ones(2)
    dist.all_reduce(here)
    assert here.tolist() == [size] * 2
    objects = [{"rank": rank}]
    dist.broadcast_object_list(objects, 0)
    assert objects == [{"rank": 0}]
    if rank == 0:
        dist.send(torch.arange(3, device="cuda"), 1)
    elif rank == 1:
        got = torch.zeros(3, dtype=torch.int64, device="cuda")
        dist.recv(got, 0)
        assert got.tolist() == [0, 1, 2]
    dist.barrier()
    found = {"ranks": size, "backend": dist.get_backend(), "worst": worst,
             "reductions": dist.ledger()["all_reduce"]["calls"]}
    dist.destroy_process_group()
    if rank == 0:
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
