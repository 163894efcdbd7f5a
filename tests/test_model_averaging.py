"""Averaging models in the place of gradients: local SGD, post-local SGD, DiLoCo."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from ddp_models import batch, build, loss_of, mlp

import disttorch as torch
import disttorch.distributed as dist
from disttorch import nn, optim
from disttorch.distributed.algorithms.ddp_comm_hooks import post_localSGD_hook as post_local
from disttorch.distributed.algorithms.model_averaging import averagers, utils
from disttorch.distributed.algorithms.model_averaging.hierarchical_model_averager import (
    HierarchicalModelAverager,
)
from disttorch.distributed.optim import PostLocalSGDOptimizer
from disttorch.nn.parallel import DistributedDataParallel as DDP


def on_ranks(n, scenario):
    dist.run_local(n, lambda rank: scenario(), timeout=60)


def local_steps(make_averager, steps, n, after=lambda model: None):
    """Ranks' weights after `steps` local steps with an averager, and of a NumPy-free oracle."""

    def scenario():
        rank = dist.get_rank()
        model = build(mlp, 0)
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        averager = make_averager(model)
        for number in range(steps):
            optimizer.zero_grad()
            loss_of(model(batch(number, rank))).backward()
            optimizer.step()
            averager.average_parameters(model.parameters())
        after(model)

    on_ranks(n, scenario)


def oracle(n, steps, when, outer=None):
    """The same in one place: n models, averaged after the steps in `when`."""
    models = [build(mlp, 0) for _ in range(n)]
    optimizers = [optim.SGD(m.parameters(), lr=0.1) for m in models]
    common = [p.detach().clone() for p in models[0].parameters()]
    velocity = [torch.zeros_like(p) for p in common]
    for number in range(steps):
        for rank, (model, optimizer) in enumerate(zip(models, optimizers)):
            optimizer.zero_grad()
            loss_of(model(batch(number, rank))).backward()
            optimizer.step()
        if number in when:
            for i, rows in enumerate(zip(*(m.parameters() for m in models))):
                mean = sum(p.detach() for p in rows) / n
                if outer is not None:
                    lr, momentum = outer
                    g = common[i] - mean
                    velocity[i] = momentum * velocity[i] + g
                    common[i] = common[i] - lr * (g + momentum * velocity[i])
                    mean = common[i]
                for p in rows:
                    p.data.copy_(mean)
    return models


@pytest.mark.parametrize("n", [1, 2, 3])
def test_periodic_averaging(n):
    wanted = oracle(n, 9, {3, 6})

    def check(model):
        for p, q in zip(model.parameters(), wanted[dist.get_rank()].parameters()):
            np.testing.assert_allclose(p.detach().numpy(), q.detach().numpy(), 1e-11, 1e-12)

    local_steps(lambda m: averagers.PeriodicModelAverager(3, warmup_steps=3), 9, n, check)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_diloco(n):
    wanted = oracle(n, 9, {3, 7}, outer=(0.7, 0.9))

    def check(model):
        for p, q in zip(model.parameters(), wanted[dist.get_rank()].parameters()):
            np.testing.assert_allclose(p.detach().numpy(), q.detach().numpy(), 1e-11, 1e-12)

    local_steps(lambda m: averagers.DiLoCoAverager(m.parameters(), 4), 9, n, check)


def test_diloco_communicates_once_a_period_and_resumes():
    def scenario():
        rank = dist.get_rank()

        def train(model, averager, first, last):
            optimizer = optim.SGD(model.parameters(), lr=0.1)
            for number in range(first, last):
                optimizer.zero_grad()
                loss_of(model(batch(number, rank))).backward()
                optimizer.step()
                averager.average_parameters()

        straight = build(mlp, 0)
        dist.reset_ledger()
        train(straight, averagers.DiLoCoAverager(straight.parameters(), 4), 0, 12)
        size = sum(p.numel() * p.element_size() for p in straight.parameters())
        assert dist.ledger()["all_reduce"]["payload_bytes"] == 3 * size
        first = build(mlp, 0)
        averager = averagers.DiLoCoAverager(first.parameters(), 4)
        train(first, averager, 0, 6)
        saved = copy.deepcopy((first.state_dict(), averager.state_dict()))
        second = build(mlp, 9)
        second.load_state_dict(saved[0])
        averager = averagers.DiLoCoAverager(second.parameters(), 4)
        averager.load_state_dict(saved[1])
        train(second, averager, 6, 12)
        for p, q in zip(straight.parameters(), second.parameters()):
            assert p.tolist() == q.tolist()

    on_ranks(2, scenario)


def test_hierarchical_averaging():
    def scenario():
        rank = dist.get_rank()
        p = nn.Parameter(torch.tensor([float(rank)]))
        averager = HierarchicalModelAverager({2: 2, 4: 4}, warmup_steps=1)
        seen = []
        for _ in range(6):
            p.grad = torch.ones(1)
            averager.average_parameters([p])
            seen.append(p.item())
            with torch.no_grad():
                p += float(rank == 0)
        # averages of pairs at step 2, of all at step 4
        first = [(0 + 2 + 1) / 2, (0 + 2 + 1) / 2, 2.5, 2.5][rank]
        assert seen[2] == first and seen[0] == rank
        everyone = sum([1.5 + 2, 1.5, 2.5, 2.5]) / 4
        assert seen[4] == everyone
        with pytest.raises(ValueError, match="must be equal to the size"):
            HierarchicalModelAverager({2: 2})
        with pytest.raises(ValueError, match="must not be empty"):
            HierarchicalModelAverager({})

    on_ranks(4, scenario)


def test_post_local_sgd():
    """All ranks at first; then gradients within pairs and weights of all every second step."""

    def scenario():
        rank = dist.get_rank()
        pair, _ = dist.new_subgroups(2)
        ddp = DDP(build(mlp, rank))
        ddp.register_comm_hook(post_local.PostLocalSGDState(None, pair, 3),
                               post_local.post_localSGD_hook)
        optimizer = PostLocalSGDOptimizer(
            optim.SGD(ddp.parameters(), lr=0.1), averagers.PeriodicModelAverager(2, 3)
        )
        models = [build(mlp, 0) for _ in range(4)]
        for number in range(7):
            optimizer.zero_grad()
            loss_of(ddp(batch(number, rank))).backward()
            optimizer.step()
            for r, model in enumerate(models):
                model.zero_grad()
                loss_of(model(batch(number, r))).backward()
            groups = [[0, 1, 2, 3]] if number < 3 else [[0, 1], [2, 3]]
            for rows in zip(*(m.parameters() for m in models)):
                for members in groups:
                    mean = sum(rows[r].grad for r in members) / len(members)
                    for r in members:
                        rows[r].data.sub_(0.1 * mean)
                if number in (3, 5):
                    mean = sum(p.detach() for p in rows) / 4
                    for p in rows:
                        p.data.copy_(mean)
            for p, q in zip(ddp.parameters(), models[rank].parameters()):
                np.testing.assert_allclose(p.detach().numpy(), q.detach().numpy(), 1e-11, 1e-12)
        saved = optimizer.state_dict()
        assert saved["step"] == 7
        optimizer.averager.step = 0
        optimizer.load_state_dict(saved)
        assert optimizer.averager.step == 7
        del saved["step"]
        with pytest.warns(UserWarning, match="does not contain a step counter"):
            optimizer.load_state_dict(saved)
        assert optimizer.averager.step == 0

    on_ranks(4, scenario)


def test_averaging_helpers():
    with pytest.raises(NotImplementedError, match="not supported"):
        utils.get_params_to_average([1])

    def scenario():
        rank = dist.get_rank()
        a, b = nn.Parameter(torch.full((2,), float(rank))), nn.Parameter(torch.full((2,), float(rank)))
        a.grad = torch.ones(2)
        c = nn.Parameter(torch.full((3,), float(rank)).double())
        c.grad = torch.ones(3).double()
        utils.average_parameters_or_parameter_groups([{"params": [a, b]}, {"params": [c]}], None)
        assert (a.tolist(), b.tolist(), c.tolist()) == ([0.5] * 2, [rank] * 2, [0.5] * 3)
        with pytest.warns(UserWarning, match="When period is 1"):
            averagers.PeriodicModelAverager(1)
        with pytest.raises(ValueError, match="non-negative"):
            averagers.PeriodicModelAverager(2, -1)
        with pytest.raises(ValueError, match="positive value"):
            averagers.PeriodicModelAverager(0)

    on_ranks(2, scenario)
