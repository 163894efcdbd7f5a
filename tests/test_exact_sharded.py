"""The same weights, too, whether parameters and optimizer state are whole or cut over the ranks."""

from __future__ import annotations

import pytest
from exact_models import OPTIMIZERS, V, build, data, loss_of

import disttorch.distributed as dist
import disttorch.distributed.checkpoint as dcp
from disttorch import optim
from disttorch.distributed.device_mesh import init_device_mesh
from disttorch.distributed.exact import ExactDataParallel, VirtualShardSampler, sharded
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


def on(n, *args):
    found = set(dist.run_local(n, lambda rank: train(*args), timeout=100))
    assert len(found) == 1
    return found.pop()


@pytest.fixture(scope="module")
def alone():
    made = {}

    def get(name, optimizer):
        key = (name, optimizer)
        if key not in made:
            made[key] = on(1, name, optimizer, "whole")
        return made[key]

    return get


@pytest.mark.parametrize(
    ("layout", "ranks"),
    [
        ("sharded", (1, 2, 3, 4)), ("kept", (3,)), ("hybrid", (2, 4)), ("zero", (2, 3, 4)),
        ("whole", (4,)),
    ],
)
@pytest.mark.parametrize(("name", "optimizer"), [("mlp", "sgd"), ("cnn", "adamw"), ("gpt", "adamw")])
def test_same_bits_in_any_layout(alone, name, optimizer, layout, ranks):
    for n in ranks:
        assert on(n, name, optimizer, layout) == alone(name, optimizer), (layout, n)


@pytest.mark.parametrize(("name", "optimizer"), [("cnn", "sgd"), ("gpt", "adamw")])
def test_same_bits_through_checkpoints_of_other_layouts(alone, tmp_path, name, optimizer):
    root = str(tmp_path / "run")
    places = [(4, "sharded", 2), (2, "whole", 3), (3, "sharded", 5), (4, "hybrid", STEPS)]
    for n, layout, steps in places:
        result = on(n, name, optimizer, layout, steps, root)
    assert result == alone(name, optimizer)


def test_gradients_of_several_loops_have_no_norm():
    def rank():
        model, _ = prepare("mlp", "sgd", "sharded")
        x, y = data("mlp", V)[:]
        for _ in range(2):
            model.backward(lambda x, y: loss_of(model(x), y), x, y, whole=True)
        with pytest.raises(RuntimeError, match="accumulate over several loops"):
            model.clip_grad_norm_(1.0)

    dist.run_local(2, lambda rank_number: rank(), timeout=30)


def test_a_part_of_another_rank_is_noticed(alone, monkeypatch):
    real = sharded.Layout.own_rows

    def first_rows(self, i, rank):
        return real(self, i, rank)[0], 0

    monkeypatch.setattr(sharded.Layout, "own_rows", first_rows)
    assert on(2, "mlp", "sgd", "whole") == alone("mlp", "sgd")
    with pytest.raises((AssertionError, ValueError)):
        assert on(2, "mlp", "sgd", "sharded") == alone("mlp", "sgd")


