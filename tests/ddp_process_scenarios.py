"""The parts of data parallelism around DDP, each once, for ranks that are processes.

Threads test them one by one (`test_ddp_hooks`, `test_join`, `test_zero_optimizer`,
`test_syncbatchnorm`, `test_model_averaging`, `test_ddp_silent`); here they meet real communication.
"""

from __future__ import annotations

import numpy as np
import pytest
from ddp_models import (
    TINY,
    assert_gradients_match,
    assert_same_on_all_ranks,
    batch,
    build,
    ddp_and_whole,
    loss_of,
    mlp,
    whole_batch,
)

import disttorch as torch
import disttorch.distributed as dist
from disttorch import nn, optim
from disttorch.distributed.algorithms.ddp_comm_hooks import (
    default_hooks,
    powerSGD_hook,
    topk_hook,
)
from disttorch.distributed.algorithms.join import Join
from disttorch.distributed.algorithms.model_averaging.averagers import DiLoCoAverager
from disttorch.distributed.optim import ZeroRedundancyOptimizer
from disttorch.nn.parallel import DistributedDataParallel as DDP


def hooks_compress() -> None:
    rank = dist.get_rank()
    hooks = (
        (None, default_hooks.bf16_compress_hook, 2e-2),
        (None, default_hooks.fp16_compress_wrapper(default_hooks.allreduce_hook), 2e-3),
        (topk_hook.TopKState(density=1.0), topk_hook.topk_hook, 1e-6),
        (powerSGD_hook.PowerSGDState(None, 16, 2, 0.1), powerSGD_hook.powerSGD_hook, 1e-4),
    )
    for state, hook, tolerance in hooks:
        ddp = DDP(build(mlp, rank, torch.float32), bucket_cap_mb=TINY)
        whole = build(mlp, 0, torch.float32)
        ddp.register_comm_hook(state, hook)
        for number in range(5):
            ddp.zero_grad()
            whole.zero_grad()
            loss_of(ddp(batch(number, rank, torch.float32))).backward()
            loss_of(whole(whole_batch(number, torch.float32))).backward()
            for p, q in zip(ddp.parameters(), whole.parameters()):
                np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), tolerance, tolerance)
        assert_same_on_all_ranks([p.grad for p in ddp.parameters()])


def ranks_join_with_a_sharded_optimizer() -> None:
    rank, n = dist.get_rank(), dist.get_world_size()
    counts = [1 + r for r in range(n)]
    whole = build(mlp, 0)
    one = optim.Adam(whole.parameters(), lr=0.01)
    for number in range(n):
        one.zero_grad()
        for r in range(n):
            if number < counts[r]:
                (loss_of(whole(batch(number, r))) / n).backward()
        one.step()
    ddp = DDP(build(mlp, rank))
    zero = ZeroRedundancyOptimizer(ddp.parameters(), optim.Adam, lr=0.01)
    with Join([ddp, zero]):
        for number in range(counts[rank]):
            zero.zero_grad()
            loss_of(ddp(batch(number, rank))).backward()
            zero.step()
    for p, q in zip(ddp.parameters(), whole.parameters()):
        np.testing.assert_allclose(p.detach().numpy(), q.detach().numpy(), 1e-10, 1e-12)
    zero.consolidate_state_dict(to=n - 1)
    if rank == n - 1:
        assert len(zero.state_dict()["state"]) == 6


def unequal_batches_are_weighted() -> None:
    rank, n = dist.get_rank(), dist.get_world_size()
    ddp, whole = ddp_and_whole(mlp)
    parts = [batch(0, r)[: 1 + r % 4] for r in range(n)]
    with ddp.weighted(len(parts[rank])):
        (ddp(parts[rank]) ** 2).mean().backward()
    (whole(torch.cat(parts)) ** 2).mean().backward()
    assert_gradients_match(ddp, whole)


def batch_statistics_of_all_ranks() -> None:
    rank, n = dist.get_rank(), dist.get_world_size()

    def net() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))

    ddp = DDP(nn.SyncBatchNorm.convert_sync_batchnorm(build(net, rank).double()))
    whole = build(net, 0).double()
    for number in range(3):
        loss_of(ddp(batch(number, rank))).backward()
        loss_of(whole(whole_batch(number))).backward()
    for p, q in zip(ddp.parameters(), whole.parameters()):
        np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), 1e-8, 1e-10)
    np.testing.assert_allclose(ddp.module[1].running_var.numpy(), whole[1].running_var.numpy())
    assert n == dist.get_world_size()


def diloco_has_one_model() -> None:
    rank = dist.get_rank()
    model = build(mlp, 0)
    averager = DiLoCoAverager(model.parameters(), period=2)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    for number in range(4):
        optimizer.zero_grad()
        loss_of(model(batch(number, rank))).backward()
        optimizer.step()
        averager.average_parameters()
    assert_same_on_all_ranks(model.parameters())


def drift_is_found() -> None:
    rank, n = dist.get_rank(), dist.get_world_size()
    model = build(mlp, 0)
    dist.audit(model)
    if n > 1:
        with torch.no_grad():
            if rank == n - 1:
                model[4].bias[0] += 1e-12
        with pytest.raises(RuntimeError, match=f"'4.bias' on rank {n - 1}"):
            dist.audit(model)


SCENARIOS = (
    hooks_compress, ranks_join_with_a_sharded_optimizer, unequal_batches_are_weighted,
    batch_statistics_of_all_ranks, diloco_has_one_model, drift_is_found,
)
