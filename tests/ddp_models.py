"""Models, data and comparisons for the scenarios of DistributedDataParallel.

Every rank has different data and starts from different weights, so a reduction or a broadcast that
does not happen shows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np

import disttorch as torch
import disttorch.distributed as dist
from disttorch import nn
from disttorch.nn.parallel import DistributedDataParallel as DDP

TINY = 0.0005  # MiB: several buckets even here
ROWS = 4  # samples per rank


# ---- models and data -----------------------------------------------------------------------------


class Tied(nn.Module):
    """The embedding's weight is also the output layer's: one parameter, two gradients."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(12, 6)
        self.hidden = nn.Linear(6, 6)
        self.head = nn.Linear(6, 12)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        tokens = (x.abs().sum(1) * 100).long() % 12
        return self.head(torch.tanh(self.hidden(self.embedding(tokens))))


class Branches(nn.Module):
    """Ranks below `split` use one branch, the others another; `spare` is used by nobody."""

    def __init__(self, split=1):
        super().__init__()
        self.split = split
        self.stem = nn.Linear(5, 8)
        self.low = nn.Linear(8, 3)
        self.high = nn.Linear(8, 3)
        self.spare = nn.Linear(8, 3)

    def forward(self, x, rank=None):
        rank = dist.get_rank() if rank is None else rank
        return (self.low if rank < self.split else self.high)(torch.tanh(self.stem(x)))


class Backwards(nn.Module):
    """Used in the reverse of the order in which its parts were registered."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(8, 3)
        self.middle = nn.Linear(8, 8)
        self.first = nn.Linear(5, 8)

    def forward(self, x):
        return self.last(torch.tanh(self.middle(torch.tanh(self.first(x)))))


class OwnOrder(nn.Module):
    """Ranks compute two branches in different orders, so gradients are ready in different ones."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(5, 3)
        self.b = nn.Linear(5, 4)

    def forward(self, x):
        parts = [self.a, self.b]
        if dist.get_rank() % 2:
            outs = [part(x).sum(1) for part in reversed(parts)]
        else:
            outs = [part(x).sum(1) for part in parts]
        return outs[0] + outs[1]


class Averages(nn.Module):
    """Keeps a running mean and a count in buffers."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 3)
        self.register_buffer("mean", torch.zeros(5, dtype=torch.float64))
        self.register_buffer("count", torch.tensor(0))

    def forward(self, x):
        if self.training:
            with torch.no_grad():
                self.mean += x.mean(0)
                self.count += 1
        return self.linear(x - self.mean.detach().clone())


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(5, 16), nn.GELU(), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 3)
    )


def frozen() -> nn.Module:
    model = mlp()
    for p in model[0].parameters():
        p.requires_grad_(False)
    return model


def mixed_dtypes() -> nn.Module:
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide = nn.Linear(5, 8)
            self.narrow = nn.Linear(8, 3)
            self.scale = nn.Parameter(torch.ones(3, dtype=torch.float32))

        def forward(self, x):
            return self.narrow(torch.tanh(self.wide(x))) * self.scale.double()

    return Mixed()


def fill(module: nn.Module, seed: int) -> nn.Module:
    """Give all parameters values that depend on `seed` only (threads share the default RNG)."""
    draw = np.random.default_rng(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.tensor(draw.normal(size=tuple(p.shape)) * 0.5))
    return module


def build(make: Callable[[], nn.Module], seed: int, dtype=torch.float64) -> nn.Module:
    model = make()
    for p in model.parameters():
        # `mixed_dtypes` keeps its float32 parameter: only what has the layers' dtype is converted
        if p.ndim > 1 or p is not getattr(model, "scale", None):
            p.data = p.data.to(dtype)
    return fill(model, seed)


def batch(step: int, rank: int, dtype=torch.float64) -> torch.Tensor:
    draw = np.random.default_rng(1000 * step + rank)
    return torch.tensor(draw.normal(size=(ROWS, 5))).to(dtype)


def loss_of(out: torch.Tensor) -> torch.Tensor:
    """A mean over the samples, so the mean over ranks is that over the whole batch."""
    return (out * out).mean() + out.sum() / out.numel()


# ---- comparisons ---------------------------------------------------------------------------------


def ddp_and_whole(make, **options) -> tuple[DDP, nn.Module]:
    """A wrapped model that starts differently on every rank, and rank 0's as an oracle."""
    model = build(make, dist.get_rank())
    return DDP(model, **options), build(make, 0)


def whole_batch(step: int, dtype=torch.float64) -> torch.Tensor:
    return torch.cat([batch(step, rank, dtype) for rank in range(dist.get_world_size())])


def assert_gradients_match(ddp: DDP, whole: nn.Module, tolerance: float = 1e-12) -> None:
    pairs = list(zip(ddp.module.named_parameters(), whole.parameters()))
    assert pairs
    for (name, p), q in pairs:
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            assert p.grad.dtype == p.dtype and p.grad.shape == p.shape
            slack = 1e-6 if p.dtype is torch.float32 else tolerance
            mine, wanted = p.grad.detach().numpy(), q.grad.numpy()
            np.testing.assert_allclose(mine, wanted, slack, slack, err_msg=name)
    assert_same_on_all_ranks([p.grad for p in ddp.parameters() if p.grad is not None])


def assert_same_on_all_ranks(tensors) -> None:
    digest = hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in tensors)).hexdigest()
    digests = [None] * dist.get_world_size()
    dist.all_gather_object(digests, digest)
    assert set(digests) == {digest}


def average_one_by_one(model: nn.Module) -> None:
    """The naive way: after backward, one all_reduce per parameter."""
    for p in model.parameters():
        if p.requires_grad:
            dist.all_reduce(p.grad, dist.ReduceOp.AVG)


def sums_have_one_order() -> bool:
    """Whether all_reduce gives the same bits however the data is cut: ranks in order, or two."""
    return dist.get_backend() == "local" or dist.get_world_size() <= 2
