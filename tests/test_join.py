"""Training in which ranks have different numbers of inputs, against a simulation in one place."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from ddp_models import (
    TINY,
    Averages,
    Branches,
    assert_same_on_all_ranks,
    batch,
    build,
    loss_of,
    mlp,
)

import disttorch as torch
import disttorch.distributed as dist
from disttorch import optim
from disttorch.distributed.algorithms.ddp_comm_hooks import default_hooks
from disttorch.distributed.algorithms.join import Join, Joinable, JoinHook
from disttorch.distributed.optim import ZeroRedundancyOptimizer
from disttorch.nn.parallel import DistributedDataParallel as DDP

COUNTS = {1: [3], 2: [2, 5], 3: [0, 4, 2], 4: [5, 1, 5, 3]}


def on_ranks(n, scenario):
    dist.run_local(n, lambda rank: scenario(), timeout=60)


def sgd(params):
    return optim.SGD(params, lr=0.1, momentum=0.9)


def simulated(make, counts, by_initial=True, kind=sgd):
    """The model of the ranks that train to the end."""
    model = build(make, 0)
    optimizer = kind(model.parameters())
    for number in range(max(counts)):
        active = [rank for rank, count in enumerate(counts) if number < count]
        optimizer.zero_grad()
        for rank in active:
            loss_of(model(batch(number, rank))).backward()
        for p in model.parameters():
            p.grad /= len(counts) if by_initial else len(active)
        optimizer.step()
    return model


def close(model, other, tolerance=1e-10):
    for p, q in zip(model.parameters(), other.parameters()):
        np.testing.assert_allclose(p.detach().numpy(), q.detach().numpy(), tolerance, tolerance)


def train(ddp, optimizer, count):
    for number in range(count):
        optimizer.zero_grad()
        loss_of(ddp(batch(number, dist.get_rank()))).backward()
        optimizer.step()


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("by_initial", [True, False])
@pytest.mark.parametrize("options", [{}, {"bucket_cap_mb": TINY, "gradient_as_bucket_view": True}])
@pytest.mark.parametrize("hook", [False, True])
def test_weights(n, by_initial, options, hook):
    def scenario():
        counts = COUNTS[dist.get_world_size()]
        wanted = simulated(mlp, counts, by_initial)
        ddp = DDP(build(mlp, dist.get_rank()), **options)
        if hook:
            ddp.register_comm_hook(None, default_hooks.allreduce_hook)
        with ddp.join(divide_by_initial_world_size=by_initial):
            train(ddp, sgd(ddp.parameters()), counts[dist.get_rank()])
        close(ddp, wanted)
        assert_same_on_all_ranks(ddp.parameters())
        # and everything is as before afterwards
        whole = build(mlp, 0)
        whole.load_state_dict(ddp.module.state_dict())
        ddp.zero_grad()
        loss_of(ddp(batch(9, dist.get_rank()))).backward()
        loss_of(whole(torch.cat([batch(9, r) for r in range(len(counts))]))).backward()
        for p, q in zip(ddp.parameters(), whole.parameters()):
            np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), 1e-10, 1e-10)

    on_ranks(n, scenario)


def test_a_second_epoch_and_enable():
    def scenario():
        rank = dist.get_rank()
        ddp = DDP(build(mlp, rank))
        optimizer = optim.SGD(ddp.parameters(), lr=0.1)
        for counts in ([0, 3, 1], [2, 0, 1]):
            before = build(mlp, 0)
            before.load_state_dict(ddp.module.state_dict())
            model = before
            one = optim.SGD(model.parameters(), lr=0.1)
            for number in range(max(counts)):
                one.zero_grad()
                for r in range(3):
                    if number < counts[r]:
                        (loss_of(model(batch(number, r))) / 3).backward()
                one.step()
            with ddp.join():
                train(ddp, optimizer, counts[rank])
            close(ddp, model)
        dist.reset_ledger()
        with ddp.join(enable=False):
            train(ddp, optimizer, 2)
        assert dist.ledger()["all_reduce"]["calls"] == 2

    on_ranks(3, scenario)


def test_buffers_follow_a_rank_with_input():
    def scenario():
        rank = dist.get_rank()
        ddp = DDP(build(Averages, rank))
        counts = [1, 3]
        with ddp.join():
            train(ddp, sgd(ddp.parameters()), counts[rank])
        # The highest rank with input is the source, so rank 1's batches alone count at the end.
        wanted = sum(batch(number, 1).mean(0) for number in range(3))
        np.testing.assert_allclose(ddp.module.mean.numpy(), wanted.numpy(), 1e-12)
        assert ddp.module.count.item() == 3

    on_ranks(2, scenario)


@pytest.mark.parametrize("n", [2, 3])
def test_unused_parameters(n):
    def scenario():
        rank, n = dist.get_rank(), dist.get_world_size()
        counts = [1, 3, 2][:n]
        ddp = DDP(build(Branches, rank), find_unused_parameters=True)
        model = build(Branches, 0)
        one = optim.SGD(model.parameters(), lr=0.1)
        for number in range(3):
            one.zero_grad()
            for r in range(n):
                if number < counts[r]:
                    (loss_of(model(batch(number, r), r)) / n).backward()
            one.step()
        with ddp.join():
            train(ddp, optim.SGD(ddp.parameters(), lr=0.1), counts[rank])
        close(ddp, model)

    on_ranks(n, scenario)


def test_no_sync_inside():
    def scenario():
        rank = dist.get_rank()
        ddp, model = DDP(build(mlp, rank)), build(mlp, 0)
        with ddp.join():
            for number in range([2, 4][rank]):
                if number % 2 == 0:
                    with ddp.no_sync():
                        loss_of(ddp(batch(number, rank))).backward()
                else:
                    loss_of(ddp(batch(number, rank))).backward()
                    if number == 1:
                        mine = [p.grad.clone() for p in ddp.parameters()]
        for r in range(2):
            for number in range(2):
                (loss_of(model(batch(number, r))) / 2).backward()
        for p, q in zip(mine, model.parameters()):
            np.testing.assert_allclose(p.numpy(), q.grad.numpy(), 1e-11, 1e-12)

    on_ranks(2, scenario)


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("view", [False, True])
def test_with_a_sharded_optimizer(n, view):
    """A rank without input still updates its part, with the gradient of those that have some."""

    def scenario():
        rank, n = dist.get_rank(), dist.get_world_size()
        counts = COUNTS[n]
        wanted = simulated(mlp, counts, kind=lambda ps: optim.Adam(ps, lr=0.01))
        ddp = DDP(build(mlp, rank))
        zero = ZeroRedundancyOptimizer(
            ddp.parameters(), optim.Adam, lr=0.01, parameters_as_bucket_view=view
        )
        with Join([ddp, zero]):
            train(ddp, zero, counts[rank])
        close(ddp, wanted)
        assert_same_on_all_ranks(ddp.parameters())

    on_ranks(n, scenario)


def test_throw_on_early_termination():
    def scenario():
        rank = dist.get_rank()
        ddp = DDP(build(mlp, rank))
        message = "Rank 0 exhausted all inputs" if rank == 0 else "at least one rank that exhausted"
        joined = ddp.join(False, throw_on_early_termination=True)
        with pytest.raises(RuntimeError, match=message), joined:
            train(ddp, sgd(ddp.parameters()), 2 + rank)
        # The ranks are in step, and nothing of the join is left over.
        whole = build(mlp, 0)
        whole.load_state_dict(ddp.module.state_dict())
        for weighted in (False, True):
            for model in (ddp, whole):
                model.zero_grad()
            loss = loss_of(ddp(batch(7, rank)))
            with ddp.weighted(4) if weighted else contextlib.nullcontext():
                loss.backward()
            loss_of(whole(torch.cat([batch(7, r) for r in range(3)]))).backward()
            for p, q in zip(ddp.parameters(), whole.parameters()):
                np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), 1e-11, 1e-12)

    on_ranks(3, scenario)


class Counter(Joinable):
    """Adds up, over all ranks, how many were there in each iteration."""

    def __init__(self):
        super().__init__()
        self.seen, self.ended = [], []

    def add(self):
        Join.notify_join_context(self)
        self.seen.append(self.everyone(1))

    @staticmethod
    def everyone(value):
        total = torch.tensor([float(value)])
        dist.all_reduce(total)
        return total.item()

    def join_hook(self, **kwargs):
        assert kwargs["factor"] == 3
        counter = self

        class Hook(JoinHook):
            def main_hook(self):
                counter.everyone(0)

            def post_hook(self, is_last_joiner):
                counter.ended.append(is_last_joiner)

        return Hook()

    join_device = property(lambda self: torch.device("cpu"))
    join_process_group = property(lambda self: dist.group.WORLD)


def test_anything_can_join():
    def scenario():
        rank = dist.get_rank()
        counter = Counter()
        with Join([counter], factor=3):
            for _ in range([1, 4, 4][rank]):
                counter.add()
        assert counter.seen == [3, 2, 2, 2][: [1, 4, 4][rank]]
        assert counter.ended == [rank > 0]
        with pytest.raises(ValueError, match="at least one joinable"):
            Join([])
        late = DDP(build(mlp, rank))
        joined = Join([Counter(), late], factor=3, divide_by_initial_world_size=False)
        with pytest.raises(RuntimeError, match="name the DistributedDataParallel first"), joined:
            late(batch(0, rank))
        with pytest.raises(KeyError), Join([counter], factor=3):
            raise KeyError  # passes through, and no hook runs
        assert counter.ended == [rank > 0]
        counter.add()  # outside: as if there were no Join
        assert counter.seen[-1] == 3
        ddp = DDP(build(mlp, rank), process_group=dist.new_group([0, 1, 2]))
        with pytest.raises(ValueError, match="multiple process groups"):
            Join([ddp, DDP(build(mlp, rank))])
        message = "weighted inside join"
        with pytest.raises(RuntimeError, match=message), ddp.join(), ddp.weighted(1):
            pass

    on_ranks(3, scenario)
