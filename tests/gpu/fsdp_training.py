"""Ranks on GPUs that train a sharded model: what `test_fsdp_on_gpu.py` starts.

Each rank has its part of a batch; the weights are compared with those of one process. Prints one
JSON line on rank 0.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import disttorch as torch
import disttorch.distributed as dist
from disttorch import nn
from disttorch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from disttorch.distributed.tensor import DTensor

WAYS = {
    "zero 3": {"reshard_after_forward": True},
    "zero 2": {"reshard_after_forward": False},
    "shards in host memory": {"offload_policy": CPUOffloadPolicy()},
    "bfloat16": {"mp_policy": MixedPrecisionPolicy(torch.bfloat16, torch.float32, torch.float32)},
}


def network():
    torch.manual_seed(0)
    layers = [nn.Linear(8, 65), nn.GELU(), nn.Linear(65, 65), nn.GELU(), nn.Linear(65, 3)]
    return nn.Sequential(*layers).cuda()


def train(model, x, y, steps=10):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x).float(), y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()


def main() -> None:
    warnings.simplefilter("ignore")
    torch.cuda.set_device(0)
    dist.init_process_group("nccl")
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(1)
    x, y = torch.randn(16, 8).cuda(), torch.randint(3, (16,)).cuda()
    alone = network()
    train(alone, x, y)
    found: dict = {"ranks": size, "worst": {}, "devices": {}}
    for way, options in WAYS.items():
        model = network()
        for layer in model:
            if isinstance(layer, nn.Linear):
                fully_shard(layer, **options)
        fully_shard(model, **options)
        train(model, x[rank::size], y[rank::size])
        p = model[0].weight
        assert isinstance(p, DTensor) and p.device_mesh.device_type == "cuda"
        found["devices"][way] = [p.device.type, p.grad.device.type]
        found["worst"][way] = max(
            float((a.cpu() - whole(b)).abs().max())
            for a, b in zip(alone.parameters(), model.parameters())
        )
    dist.destroy_process_group()
    if rank == 0:
        print(json.dumps(found), flush=True)


def whole(p):
    with torch.no_grad():
        return p.full_tensor().cpu()


if __name__ == "__main__":
    main()
