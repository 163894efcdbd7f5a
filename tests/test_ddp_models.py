"""DistributedDataParallel on whole models for 20 steps, against one process on the whole batch."""

from __future__ import annotations

import numpy as np
import pytest
from ddp_models import Branches, assert_same_on_all_ranks, fill

import disttorch as torch
import disttorch.distributed as dist
from disttorch import nn, optim
from disttorch.distributed.algorithms.ddp_comm_hooks import default_hooks
from disttorch.models.gpt import GPT
from disttorch.models.resnet import BasicBlock, ResNet
from disttorch.nn import functional as F
from disttorch.nn.parallel import DistributedDataParallel as DDP
from disttorch.utils.checkpoint import checkpoint

ROWS = 2


def gpt():
    model = GPT(vocabulary_size=17, context=6, layers=2, heads=2, width=8).double()
    model.head.weight = model.tokens.weight  # tied
    return model


def gpt_frozen():
    model = gpt()
    for p in model.blocks[0].parameters():
        p.requires_grad_(False)
    return model


class Checkpointed(nn.Module):
    """A GPT whose blocks keep their inputs only."""

    reentrant = False

    def __init__(self):
        super().__init__()
        self.gpt = gpt()

    def forward(self, ids):
        net = self.gpt
        x = net.tokens(ids) + net.positions(torch.arange(ids.shape[1]))
        for block in net.blocks:
            x = checkpoint(block, x, use_reentrant=self.reentrant)
        return net.head(net.norm(x))


class Reentrant(Checkpointed):
    reentrant = True


def resnet():
    """Batch statistics are each rank's own in DDP, so the oracle takes them by rank too."""
    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=3, width=2, small_images=True).double()


def text(step, rank):
    return torch.tensor(np.random.default_rng(1000 * step + rank).integers(0, 17, (ROWS, 6)))


def loss_of_text(model, ids):
    logits = model(ids[:, :-1])
    return F.cross_entropy(logits.reshape(-1, 17), ids[:, 1:].reshape(-1))


def images(step, rank):
    return torch.tensor(np.random.default_rng(1000 * step + rank).normal(size=(ROWS, 3, 16, 16)))


def loss_of_images(model, x):
    return (model(x) ** 2).mean()


CASES = {
    "gpt": (gpt, text, loss_of_text, {}),
    "gpt frozen": (gpt_frozen, text, loss_of_text, {}),
    "gpt static": (gpt, text, loss_of_text, {"static_graph": True}),
    "gpt views": (gpt, text, loss_of_text, {"gradient_as_bucket_view": True}),
    "checkpoint": (Checkpointed, text, loss_of_text, {}),
    "checkpoint reentrant": (Reentrant, text, loss_of_text, {}),
    "checkpoint unused": (Reentrant, text, loss_of_text, {"find_unused_parameters": True}),
    "checkpoint static": (Reentrant, text, loss_of_text, {"static_graph": True}),
    "resnet": (resnet, images, loss_of_images, {"forward_sync_buffers": False}),
}


# Two ranks show what an option does; how many there are, two models show.
RUNS = [(case, n) for case in CASES for n in (1, 2, 3, 4) if n <= 2 or case in ("gpt", "resnet")]


@pytest.mark.parametrize(("case", "n"), RUNS)
def test_20_steps(case, n):
    make, data, loss_of, options = CASES[case]

    def scenario(rank):
        ddp = DDP(fill(make(), rank), bucket_cap_mb=0.002, **options)
        whole = fill(make(), 0)
        runs = [(m, optim.SGD(m.parameters(), lr=0.02, momentum=0.9)) for m in (ddp, whole)]
        for step in range(20):
            for _, optimizer in runs:
                optimizer.zero_grad()
            loss_of(ddp, data(step, rank)).backward()
            for r in range(n):
                (loss_of(whole, data(step, r)) / n).backward()
            if step in (0, 1, 19):
                for (name, p), q in zip(ddp.module.named_parameters(), whole.parameters()):
                    assert (p.grad is None) == (q.grad is None), name
                    if p.grad is not None:
                        np.testing.assert_allclose(
                            p.grad.numpy(), q.grad.numpy(), 1e-6, 1e-9, err_msg=f"{name} {step}"
                        )
            for _, optimizer in runs:
                optimizer.step()
        for p, q in zip(ddp.parameters(), whole.parameters()):
            np.testing.assert_allclose(p.detach().numpy(), q.detach().numpy(), 1e-6, 1e-8)
        assert_same_on_all_ranks(ddp.parameters())
        assert n == 1 or len(ddp.reducer.buckets) > 1

    dist.run_local(n, scenario, timeout=120)


class Twice(torch.autograd.Function):
    """x -> f(x), whose backward runs f again and a backward inside it: a reentrant checkpoint."""

    @staticmethod
    def forward(ctx, x, f):
        ctx.f = f
        ctx.save_for_backward(x)
        return f(x).detach()

    @staticmethod
    def backward(ctx, grad):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            out = ctx.f(x)
        torch.autograd.backward([out], [grad])
        return x.grad, None


class Reused(nn.Module):
    """One layer in two reentrant checkpoints, and one that nobody uses."""

    def __init__(self):
        super().__init__()
        self.spare, self.first = nn.Linear(2, 2), nn.Linear(5, 8)
        self.layer, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.first(x)
        for _ in range(2):
            x = torch.tanh(Twice.apply(x, self.layer))
        return self.last(x)


@pytest.mark.parametrize("view", [False, True])
def test_static_graph_allows_reentrant_backwards(view):
    """The shared layer's gradient comes in two parts; the reduction must wait for both."""

    def scenario(rank):
        def make():
            return fill(Reused().double(), rank)

        ddp = DDP(make(), bucket_cap_mb=1e-5, static_graph=True, gradient_as_bucket_view=view)
        whole = fill(Reused().double(), 0)
        for step in range(4):
            ddp.zero_grad()
            whole.zero_grad()
            parts = [
                torch.tensor(np.random.default_rng(10 * step + r).normal(size=(3, 5)))
                for r in range(2)
            ]
            (ddp(parts[rank]) ** 2).mean().backward()
            (whole(torch.cat(parts)) ** 2).mean().backward()
            for (name, p), q in zip(ddp.module.named_parameters(), whole.named_parameters()):
                q = q[1]
                assert (p.grad is None) == (q.grad is None), name
                if q.grad is not None:
                    np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), 1e-10, err_msg=name)
        plain = DDP(make(), bucket_cap_mb=1e-5)
        with pytest.raises(RuntimeError, match="'layer.* after its reduction had started"):
            (plain(parts[rank]) ** 2).mean().backward()
        dist.barrier()

    dist.run_local(2, scenario, timeout=60)


def test_gradient_penalty():
    """A gradient inside the loss, taken with create_graph, and then one backward."""

    def penalised(model, x):
        x = x.clone().requires_grad_()
        out = model(x)
        (g,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        return (out**2).mean() + (g**2).sum(1).mean()

    def scenario(rank):
        def make():
            return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1)).double()

        ddp, whole = DDP(fill(make(), rank), bucket_cap_mb=1e-5), fill(make(), 0)
        for step in range(3):
            ddp.zero_grad()
            whole.zero_grad()
            parts = [
                torch.tensor(np.random.default_rng(10 * step + r).normal(size=(3, 5)))
                for r in range(3)
            ]
            penalised(ddp, parts[rank]).backward()
            penalised(whole, torch.cat(parts)).backward()
            for p, q in zip(ddp.parameters(), whole.parameters()):
                if q.grad is not None:
                    np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), 1e-10, 1e-13)

    dist.run_local(3, scenario, timeout=60)


def test_buckets_that_no_rank_uses_are_skipped():
    def scenario(rank):
        def make():
            model = Branches(split=2).double()  # both ranks use `low`; `spare` now comes first
            for name in ("stem", "low", "high"):
                model._modules[name] = model._modules.pop(name)
            return model

        ddp = DDP(
            fill(make(), rank), bucket_cap_mb=1e-5, find_unused_parameters=True,
            skip_all_reduce_unused_params=True,
        )
        x = [torch.tensor(np.random.default_rng(r).normal(size=(3, 5))) for r in range(2)]
        flags = []

        def look(state, bucket):
            flags.append(bucket.is_last())
            return default_hooks.allreduce_hook(state, bucket)

        ddp.register_comm_hook(None, look)
        for _ in range(3):
            dist.reset_ledger()
            flags.clear()
            ddp.zero_grad()
            (ddp(x[rank]) ** 2).mean().backward()
            # stem and low; one more tells which parameters were used
            assert dist.ledger()["all_reduce"]["calls"] == 4 + 1
            assert flags == [False, False, False, True]
        whole = fill(make(), 0)
        (whole(torch.cat(x), 0) ** 2).mean().backward()
        for p, q in zip(ddp.parameters(), whole.parameters()):
            assert (p.grad is None) == (q.grad is None)
            if p.grad is not None:
                np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), 1e-12)

    dist.run_local(2, scenario, timeout=60)
