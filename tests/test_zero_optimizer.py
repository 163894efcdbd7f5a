"""ZeroRedundancyOptimizer against the optimizer that it shards, on the whole batch."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from ddp_models import (
    Tied,
    assert_same_on_all_ranks,
    batch,
    build,
    frozen,
    loss_of,
    mlp,
    whole_batch,
)

import disttorch as torch
import disttorch.distributed as dist
from disttorch import nn, optim
from disttorch.distributed.optim import ZeroRedundancyOptimizer as Zero
from disttorch.nn.parallel import DistributedDataParallel as DDP


def on_ranks(n, scenario):
    dist.run_local(n, lambda rank: scenario(), timeout=60)


def train(model, optimizer, first, last, data):
    for number in range(first, last):
        optimizer.zero_grad()
        loss_of(model(data(number))).backward()
        optimizer.step()


def close(model, other, tolerance=1e-9):
    for p, q in zip(model.parameters(), other.parameters()):
        np.testing.assert_allclose(p.detach().numpy(), q.detach().numpy(), tolerance, tolerance)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("view", [False, True])
@pytest.mark.parametrize("make", [mlp, Tied, frozen])
def test_weights_after_20_steps(n, view, make):
    def scenario():
        rank = dist.get_rank()
        for kind, options in ((optim.AdamW, {"lr": 0.01}), (optim.SGD, {"lr": 0.05, "momentum": 0.9})):
            ddp, whole = DDP(build(make, rank)), build(make, 0)
            zero = Zero(ddp.parameters(), kind, parameters_as_bucket_view=view, **options)
            train(ddp, zero, 0, 20, lambda s: batch(s, rank))
            train(whole, kind(whole.parameters(), **options), 0, 20, whole_batch)
            assert_same_on_all_ranks(ddp.parameters())
            close(ddp, whole)

    on_ranks(n, scenario)


@pytest.mark.parametrize("view", [False, True])
def test_bytes_per_step(view):
    """2Ψ(n-1)/n for the gradients and Ψ(n-1)/n for the parameters."""

    def scenario():
        n = dist.get_world_size()
        ddp = DDP(build(mlp, 0))
        zero = Zero(ddp.parameters(), optim.Adam, parameters_as_bucket_view=view)
        size = sum(p.numel() * p.element_size() for p in ddp.parameters())
        train(ddp, zero, 0, 2, lambda s: batch(s, dist.get_rank()))
        dist.reset_ledger()
        train(ddp, zero, 2, 3, lambda s: batch(s, dist.get_rank()))
        entries = dist.ledger()
        assert entries["all_reduce"]["lower_bound_bytes"] == pytest.approx(2 * size * (n - 1) / n)
        assert entries["all_gather"]["lower_bound_bytes"] == pytest.approx(size * (n - 1) / n)
        assert entries["all_gather"]["calls"] == 1 and set(entries) == {"all_reduce", "all_gather"}

    on_ranks(3, scenario)


def state_bytes(optimizer):
    return sum(
        t.numel() * t.element_size()
        for values in optimizer.state.values()
        for key, t in values.items()
        if key != "step"
    )


@pytest.mark.parametrize("n", [2, 3, 4])
def test_memory_of_the_state_is_one_nth(n):
    def scenario():
        n, rank = dist.get_world_size(), dist.get_rank()

        def net():
            return nn.Sequential(*[nn.Linear(24, 24) for _ in range(24)], nn.Linear(24, 3), )

        model = build(net, 0, torch.float32)
        zero = Zero(model.parameters(), optim.Adam)
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        zero.step()
        whole = 2 * sum(p.numel() * 4 for p in model.parameters())
        mine = state_bytes(zero.optim)
        assert mine == pytest.approx(whole / n, rel=0.02)
        total = torch.tensor([mine])
        dist.all_reduce(total)
        assert total.item() == whole
        assert rank < n

    on_ranks(n, scenario)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("view", [False, True])
def test_state_is_that_of_the_whole_optimizer_and_loads_anywhere(n, view):
    def scenario():
        rank, n = dist.get_rank(), dist.get_world_size()
        ddp, whole = DDP(build(mlp, rank)), build(mlp, 0)
        zero = Zero(ddp.parameters(), optim.Adam, lr=0.01, parameters_as_bucket_view=view)
        plain = optim.Adam(whole.parameters(), lr=0.01)
        train(ddp, zero, 0, 5, lambda s: batch(s, rank))
        train(whole, plain, 0, 5, whole_batch)
        with pytest.raises(RuntimeError, match="has not been consolidated on this rank"):
            zero.state_dict()
        zero.param_groups[0]["lr"] = plain.param_groups[0]["lr"] = 0.02
        zero.consolidate_state_dict(to=n - 1)
        box = [None]
        if rank == n - 1:
            box = [zero.state_dict()]
            mine, wanted = box[0], plain.state_dict()
            assert mine["param_groups"] == wanted["param_groups"]
            assert list(mine["state"]) == list(wanted["state"])
            for i, values in wanted["state"].items():
                for key, value in values.items():
                    np.testing.assert_allclose(
                        mine["state"][i][key].numpy(), value.numpy(), 1e-9, 1e-12
                    )
        else:
            with pytest.raises(RuntimeError, match="has not been consolidated"):
                zero.state_dict()
        dist.broadcast_object_list(box, src=n - 1)
        saved = box[0]
        # into another sharded optimizer, and into a plain one
        other = DDP(build(mlp, 3))
        other.load_state_dict(ddp.state_dict())
        again = Zero(other.parameters(), optim.Adam, parameters_as_bucket_view=view)
        again.load_state_dict(copy.deepcopy(saved))
        assert again.param_groups[0]["lr"] == again.optim.param_groups[0]["lr"] == 0.02
        alone = build(mlp, 4)
        alone.load_state_dict(ddp.module.state_dict())
        one = optim.Adam(alone.parameters())
        one.load_state_dict(copy.deepcopy(saved))
        train(whole, plain, 5, 8, whole_batch)
        train(ddp, zero, 5, 8, lambda s: batch(s, rank))
        train(other, again, 5, 8, lambda s: batch(s, rank))
        train(alone, one, 5, 8, whole_batch)
        for model in (ddp, other, alone):
            close(model, whole)
        with pytest.raises(ValueError, match="doesn't match the size"):
            again.load_state_dict({"state": {}, "param_groups": [{"params": [0]}]})

    on_ranks(n, scenario)


@pytest.mark.parametrize("view", [False, True])
def test_groups_options_schedulers_and_closures(view):
    def scenario():
        rank = dist.get_rank()
        ddp, whole = DDP(build(mlp, rank)), build(mlp, 0)

        def groups(model):
            ps = list(model.parameters())
            return [{"params": ps[:2], "lr": 0.3}, {"params": ps[2:4], "momentum": 0.5}], ps[4:]

        first, late = groups(ddp)
        zero = Zero(first, optim.SGD, lr=0.1, parameters_as_bucket_view=view)
        first, other_late = groups(whole)
        plain = optim.SGD(first, lr=0.1)
        runs = ((ddp, zero, late, lambda s: batch(s, rank)), (whole, plain, other_late, whole_batch))
        for model, optimizer, more, data in runs:
            schedule = optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.1)
            for number in range(6):
                if number == 2:
                    optimizer.add_param_group({"params": more, "lr": 0.05})
                    schedule.base_lrs.append(0.05)

                def closure(model=model, optimizer=optimizer, x=data(number)):
                    optimizer.zero_grad()
                    loss = loss_of(model(x))
                    loss.backward()
                    return loss

                assert optimizer.step(closure).numel() == 1
                schedule.step()
            assert len(optimizer.param_groups) == 3
        assert [g["lr"] for g in zero.param_groups] == [g["lr"] for g in plain.param_groups]
        close(ddp, whole)

    on_ranks(2, scenario)


def test_more_ranks_than_parameters():
    def scenario():
        ddp, whole = DDP(build(lambda: nn.Linear(5, 3), 0)), build(lambda: nn.Linear(5, 3), 0)
        zero = Zero(ddp.parameters(), optim.Adam, lr=0.01)
        train(ddp, zero, 0, 3, lambda s: batch(s, dist.get_rank()))
        train(whole, optim.Adam(whole.parameters(), lr=0.01), 0, 3, whole_batch)
        close(ddp, whole)
        zero.consolidate_state_dict()
        if dist.get_rank() == 0:
            assert set(zero.state_dict()["state"]) == {0, 1}

    on_ranks(4, scenario)


def test_wrong_use_is_refused():
    def scenario():
        p = nn.Parameter(torch.ones(2))
        with pytest.raises(TypeError, match="but got a Tensor"):
            Zero(p, optim.SGD)
        with pytest.raises(TypeError, match="iterable of Tensors or dicts"):
            Zero(3, optim.SGD)
        with pytest.raises(TypeError, match="iterable of Tensors or dicts"):
            Zero([p, 3], optim.SGD)
        with pytest.raises(ValueError, match="empty parameter list"):
            Zero([], optim.SGD)
        with pytest.raises(ValueError, match="same dense type .* float32 on cpu and float64"):
            Zero([p, nn.Parameter(torch.ones(2).double())], optim.SGD)
        with pytest.raises(NotImplementedError, match="overlap_with_ddp"):
            Zero([p], optim.SGD, overlap_with_ddp=True)

    on_ranks(1, scenario)
