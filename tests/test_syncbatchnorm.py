"""SyncBatchNorm against BatchNorm on the whole batch, with different data and sizes per rank."""

from __future__ import annotations

import numpy as np
import pytest

import disttorch as torch
import disttorch.distributed as dist
from disttorch import nn
from disttorch.nn.parallel import DistributedDataParallel as DDP

SIZES = {1: [5], 2: [2, 4], 3: [3, 1, 2], 4: [1, 0, 3, 2]}


def on_ranks(n, scenario):
    dist.run_local(n, lambda rank: scenario(), timeout=60)


def data(seed, shape, dtype=torch.float64):
    return torch.tensor(np.random.default_rng(seed).normal(1.0, 2.0, size=shape)).to(dtype)


def batches(tail, dtype=torch.float64):
    sizes = SIZES[dist.get_world_size()]
    return [data(7 + r, (rows, *tail), dtype) for r, rows in enumerate(sizes)]


def close(a, b, tolerance=1e-12):
    np.testing.assert_allclose(a.detach().numpy(), b.detach().numpy(), tolerance, tolerance)


def pair(channels, **options):
    """The layer under test and its oracle, with the same parameters."""
    sync = nn.SyncBatchNorm(channels, dtype=torch.float64, **options)
    plain = nn.modules.syncbatchnorm.BatchNormNd(channels, dtype=torch.float64, **options)
    if options.get("affine", True):
        with torch.no_grad():
            for layer in (sync, plain):
                layer.weight.copy_(data(1, (channels,)))
                if layer.bias is not None:
                    layer.bias.copy_(data(2, (channels,)))
    return sync, plain


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("tail", [(3,), (3, 5), (3, 2, 4), (3, 2, 2, 2)])
def test_equals_the_whole_batch(n, tail):
    def scenario():
        rank = dist.get_rank()
        for options in ({}, {"momentum": None}, {"affine": False}, {"bias": False},
                        {"track_running_stats": False}):
            sync, plain = pair(3, **options)
            for _ in range(2):  # running statistics move twice
                parts = [x.requires_grad_() for x in batches(tail)]
                whole = torch.cat([x.detach() for x in parts]).requires_grad_()
                out, wanted = sync(parts[rank]), plain(whole)
                start = sum(len(x) for x in parts[:rank])
                rows = slice(start, start + len(parts[rank]))
                close(out, wanted[rows])
                sync.zero_grad()
                plain.zero_grad()
                (out * out * out.cos()).sum().backward()
                (wanted * wanted * wanted.cos()).sum().backward()
                close(parts[rank].grad, whole.grad[rows], 1e-10)
                for p, q in zip(sync.parameters(), plain.parameters()):
                    dist.all_reduce(p.grad)  # DistributedDataParallel's part
                    close(p.grad, q.grad, 1e-10)
            for (name, b), (_, c) in zip(sync.named_buffers(), plain.named_buffers()):
                close(b.double(), c.double()), name

    on_ranks(n, scenario)


@pytest.mark.parametrize("n", [2, 3])
def test_second_derivatives(n):
    def scenario():
        rank = dist.get_rank()
        sync, plain = pair(3)
        parts = [x.requires_grad_() for x in batches((3, 2))]
        whole = torch.cat([x.detach() for x in parts]).requires_grad_()
        start = sum(len(x) for x in parts[:rank])
        rows = slice(start, start + len(parts[rank]))
        seconds = []
        for layer, x in ((sync, parts[rank]), (plain, whole)):
            (first,) = torch.autograd.grad((layer(x) ** 3).sum(), x, create_graph=True)
            (second,) = torch.autograd.grad((first**2).sum(), x)
            seconds.append(second)
        close(seconds[0], seconds[1][rows], 1e-9)

    on_ranks(n, scenario)


def test_sixteen_bits_and_evaluation():
    def scenario():
        rank = dist.get_rank()
        for dtype in (torch.float16, torch.bfloat16):
            layer = nn.SyncBatchNorm(3)
            parts = [x.requires_grad_() for x in batches((3, 4), dtype)]
            out = layer(parts[rank])
            wanted = nn.functional.batch_norm(
                torch.cat([x.detach().float() for x in parts]), None, None, training=True
            )
            assert out.dtype is dtype
            start = sum(len(x) for x in parts[:rank])
            close(out.float(), wanted[start : start + len(out)], 0.02)
            out.sum().backward()
            assert parts[rank].grad.dtype is dtype
        layer = nn.SyncBatchNorm(3).eval()
        dist.reset_ledger()
        layer(data(rank, (1, 3)))  # one value per channel; no other rank is asked
        with torch.no_grad():
            close(layer(data(0, (2, 3), torch.float32)), data(0, (2, 3), torch.float32), 1e-4)
        assert dist.ledger() == {}
        layer.train()
        before = layer.running_mean.clone()
        with torch.no_grad():
            out = layer(data(rank, (2, 3), torch.float32))
        assert not out.requires_grad and layer.running_mean.tolist() != before.tolist()
        assert dist.ledger()["all_gather"]["calls"] == 1

    on_ranks(2, scenario)


def test_process_group_and_errors():
    def scenario():
        rank = dist.get_rank()
        pairs = [dist.new_group([0, 1]), dist.new_group([2])]
        layer = nn.SyncBatchNorm(3, process_group=pairs[rank // 2], dtype=torch.float64)
        mine = data(rank, (2, 3))
        whole = torch.cat([data(0, (2, 3)), data(1, (2, 3))]) if rank < 2 else mine
        wanted = nn.functional.batch_norm(whole, None, None, training=True)
        close(layer(mine), wanted[2 * rank : 2 * rank + 2] if rank < 2 else wanted)
        layer = nn.SyncBatchNorm(3)
        with pytest.raises(ValueError, match="at least 2D input"):
            layer(torch.ones(3))
        with pytest.raises(ValueError, match="more than 1 value per channel .* 1 over 3 ranks"):
            layer(torch.ones(1 if rank == 1 else 0, 3))

    on_ranks(3, scenario)


def test_conversion_keeps_parameters_and_goes_back():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, eps=1e-3, momentum=0.3),
                        nn.Sequential(nn.BatchNorm1d(4, affine=False), nn.InstanceNorm1d(4)))
    net.eval()
    keys, weight = list(net.state_dict()), net[1].weight
    sync = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    assert sync is net and isinstance(net[1], nn.SyncBatchNorm)
    assert net[1].weight is weight and (net[1].eps, net[1].momentum) == (1e-3, 0.3)
    assert isinstance(net[2][0], nn.SyncBatchNorm) and net[2][0].weight is None
    assert isinstance(net[2][1], nn.InstanceNorm1d) and not net[1].training
    assert list(net.state_dict()) == keys
    back = nn.SyncBatchNorm.revert_sync_batchnorm(net)
    assert type(back[1]) is nn.BatchNorm2d and back[1].weight is weight
    assert type(back[2][0]) is nn.BatchNorm1d and list(back.state_dict()) == keys
    alone = nn.SyncBatchNorm.convert_sync_batchnorm(nn.BatchNorm1d(3))
    assert isinstance(alone, nn.SyncBatchNorm)
    x = data(0, (4, 3), torch.float32)
    close(alone(x), nn.BatchNorm1d(3)(x), 1e-6)  # without a process group


@pytest.mark.parametrize("n", [2, 3])
def test_training_under_ddp_equals_one_process(n):
    """A convolutional net for 20 steps; equal batches, so that DDP's mean is the whole batch's."""

    def scenario():
        rank, n = dist.get_rank(), dist.get_world_size()

        def net():
            torch_net = nn.Sequential(
                nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
                nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
                nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2),
            ).double()
            with torch.no_grad():
                for i, p in enumerate(torch_net.parameters()):
                    p.copy_(data(i, tuple(p.shape)) * 0.3)
            return torch_net

        whole = net()
        ddp = DDP(nn.SyncBatchNorm.convert_sync_batchnorm(net()))
        runs = [(m, torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9)) for m in (ddp, whole)]
        for step in range(20):
            parts = [data(100 * step + r, (2, 1, 4, 4)) for r in range(n)]
            for (model, optimizer), x in zip(runs, (parts[rank], torch.cat(parts))):
                optimizer.zero_grad()
                (model(x) ** 2).mean().backward()
                optimizer.step()
        for p, q in zip(ddp.state_dict().values(), whole.state_dict().values()):
            close(p.double(), q.double(), 1e-7)

    on_ranks(n, scenario)
