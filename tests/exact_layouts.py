"""The training of `exact_models` in one call a step, with parameters whole or cut over the ranks."""

from __future__ import annotations

from exact_models import OPTIMIZERS, V, build, data, loss_of

import disttorch.distributed as dist
import disttorch.distributed.checkpoint as dcp
from disttorch import optim
from disttorch.distributed.device_mesh import init_device_mesh
from disttorch.distributed.exact import ExactDataParallel, VirtualShardSampler
from disttorch.distributed.fsdp import fully_shard
from disttorch.distributed.optim import ZeroRedundancyOptimizer
from disttorch.utils.data import DataLoader

STEPS = 6


def shard(net, mesh=None, **options):
    """Nested units where there are blocks."""
    for block in getattr(net, "blocks", ()):
        fully_shard(block, mesh=mesh, **options)
    fully_shard(net, mesh=mesh, **options)


def prepare(name, optimizer, layout):
    net = build(name)
    if layout == "sharded":
        shard(net)
    elif layout == "kept":
        shard(net, reshard_after_forward=False)
    elif layout == "hybrid":
        shard(net, init_device_mesh("cpu", (2, dist.get_world_size() // 2)))
    model = ExactDataParallel(net, V, seed=11)
    if layout == "zero":
        kind, options = {
            "sgd": (optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}),
            "adamw": (optim.AdamW, {"lr": 3e-3}),
        }[optimizer]
        return model, ZeroRedundancyOptimizer(model.parameters(), kind, **options)
    return model, OPTIMIZERS[optimizer](model.parameters())


def train(name, optimizer, layout, steps=STEPS, root=None):
    """Up to `steps` in all; a checkpoint in the folder `root` is gone on from, and left there."""
    model, opt = prepare(name, optimizer, layout)
    sampler = VirtualShardSampler(data(name), 2 * V, V, seed=2)
    loader = DataLoader(data(name), sampler.local_batch_size, sampler=sampler)
    if root is not None:
        manager = dcp.CheckpointManager(root)
        state = {"run": dcp.RunState(model, opt, loaders=loader)}
        manager.load_latest(state)
    while model.step_number < steps:
        for x, y in loader:
            opt.zero_grad()
            model.backward(lambda x, y: loss_of(model(x), y), x, y)
            model.clip_grad_norm_(0.7)
            opt.step()
            if model.step_number == steps:
                break
    if root is not None:
        manager.save(steps, state)
    return model.digest()
