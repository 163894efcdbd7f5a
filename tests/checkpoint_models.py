"""Models and optimizers in every layout, for the tests of checkpoints."""

from __future__ import annotations

import checkpoint_states as states

import disttorch as torch
import disttorch.distributed.checkpoint as dcp
from disttorch.distributed import init_device_mesh
from disttorch.distributed.checkpoint.staging import copy_state_dict
from disttorch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
)
from disttorch.distributed.exact import ExactDataParallel
from disttorch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from disttorch.distributed.optim import ZeroRedundancyOptimizer
from disttorch.nn.parallel import DistributedDataParallel

FULL = StateDictOptions(full_state_dict=True)
PLACES = [("plain", 1), ("ddp", 2), ("fsdp", 2), ("nested", 3), ("hsdp", 4), ("zero", 3), ("exact", 2),
          ("fsdp1", 3)]  # fmt: skip


def build(kind: str, n: int, seed: int = 0):
    """A model in one of the layouts, and an optimizer with two groups."""
    model = states.small_model(seed)
    if kind in ("ddp", "zero"):
        model = DistributedDataParallel(model)
    elif kind == "exact":
        model = ExactDataParallel(model, 4, seed=1)
    elif kind == "fsdp":
        fully_shard(model)
    elif kind == "fsdp1":
        model[0] = FullyShardedDataParallel(model[0])
        model = FullyShardedDataParallel(model)
    elif kind == "nested":
        for layer in (model[0], model[3]):
            fully_shard(layer)
        fully_shard(model)
    elif kind == "hsdp":
        fully_shard(model, mesh=init_device_mesh("cpu", (2, n // 2), mesh_dim_names=("copy", "shard")))
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices}, {"params": vectors, "lr": 0.02, "weight_decay": 0.0}]
    if kind == "zero":
        return model, ZeroRedundancyOptimizer(groups, torch.optim.AdamW, lr=0.01)
    return model, torch.optim.AdamW(groups, lr=0.01)


def train(model, optimizer, rank: int, n: int, seeds) -> None:
    """A step for each seed, of a batch of 12 dealt to the ranks."""
    for seed in seeds:
        x = torch.randn(12, 6, generator=torch.Generator().manual_seed(seed))
        part = x[rank * 12 // n : (rank + 1) * 12 // n]
        if isinstance(model, ExactDataParallel):
            for shard in model.shards(part):
                model(shard).square().mean().backward()
        else:
            model(part).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def trained(rank: int, kind: str, n: int, folder):
    """Three steps, saved; returns the whole states."""
    model, optimizer = build(kind, n)
    train(model, optimizer, rank, n, range(3))
    model_state, optimizer_state = get_state_dict(model, optimizer)
    dcp.save({"m": model_state, "o": optimizer_state}, checkpoint_id=folder)
    return copy_state_dict(get_state_dict(model, optimizer, options=FULL))
