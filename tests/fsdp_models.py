"""Models, data and comparisons for the scenarios of sharded data parallelism.

Every rank has different data, so a reduction that does not happen shows; sizes are odd, so some
shards are shorter than others and some are empty.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

import disttorch as torch
import disttorch.distributed as dist
from disttorch import nn
from disttorch.distributed.fsdp import fully_shard
from disttorch.distributed.tensor import DTensor
from disttorch.models.gpt import GPT

ROWS = 2  # samples per rank
WIDE = torch.float64


class Block(nn.Module):
    """A residual MLP with a norm: parameters of 1 and 2 dims, of 7 and 9 rows."""

    def __init__(self, width: int = 7):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 9)
        self.down = nn.Linear(9, width)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Stack(nn.Module):
    """Blocks between a stem and a head that the root keeps."""

    def __init__(self, depth: int = 3):
        super().__init__()
        self.stem = nn.Linear(5, 7)
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
        self.head = nn.Linear(7, 3)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Twice(Stack):
    """The first block runs twice."""

    def forward(self, x):
        x = self.stem(x)
        for block in [*self.blocks, self.blocks[0]]:
            x = block(x)
        return self.head(x)


class Tied(nn.Module):
    """The embedding's weight is also the output layer's."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 7)
        self.blocks = nn.ModuleList([Block()])
        self.head = nn.Linear(7, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        tokens = (x.abs() * 100).long() % 11
        x = self.embedding(tokens)
        return self.head(self.blocks[0](x))


class BranchBlock(Block):
    """Two branches, one for rank 0, one for others, and one for nobody."""

    def __init__(self):
        super().__init__()
        self.low, self.high, self.spare = nn.Linear(7, 7), nn.Linear(7, 7), nn.Linear(7, 7)

    def forward(self, x, rank=0):
        return (self.low if rank == 0 else self.high)(super().forward(x))


class Branching(nn.Module):
    """Blocks whose parameters are used by some ranks only, or by nobody."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(5, 7)
        self.blocks = nn.ModuleList(BranchBlock() for _ in range(2))

    def forward(self, x, rank=None):
        rank = dist.get_rank() if rank is None else rank
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, rank)
        return x


class ConvBlock(nn.Module):
    """A residual block as ResNet has it, with group norm (batch statistics are another matter)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(2, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(2, channels)

    def forward(self, x):
        out = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(x + self.norm2(self.conv2(out)))


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.blocks = nn.ModuleList(ConvBlock(6) for _ in range(2))
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = self.stem(x[:, None, :, None] * x[:, None, None, :])
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


class Language(nn.Module):
    """The library's GPT over tokens made of the batch."""

    def __init__(self):
        super().__init__()
        self.gpt = GPT(13, 8, layers=2, heads=2, width=12)
        self.blocks = self.gpt.blocks

    def forward(self, x):
        return self.gpt((x.abs() * 100).long() % 13)


def frozen() -> nn.Module:
    """A whole block frozen, and one layer of another."""
    model = Stack()
    for p in [*model.blocks[0].parameters(), *model.blocks[2].down.parameters()]:
        p.requires_grad_(False)
    return model


def fill(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give all parameters values that depend on `seed` only (threads share the default RNG)."""
    draw = np.random.default_rng(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.tensor(draw.normal(size=tuple(p.shape)) * 0.4))
    return module


def build(make: Callable[[], nn.Module], dtype=WIDE) -> nn.Module:
    return fill(make().to(dtype))


def shard(model: nn.Module, **options) -> nn.Module:
    """Every block a unit, and the rest."""
    for block in model.blocks:
        fully_shard(block, **options)
    return fully_shard(model, **options)


def batch(step: int, rank: int, dtype=WIDE) -> torch.Tensor:
    draw = np.random.default_rng(1000 * step + rank)
    return torch.tensor(draw.normal(size=(ROWS, 5))).to(dtype)


def whole_batch(step: int, dtype=WIDE) -> torch.Tensor:
    return torch.cat([batch(step, rank, dtype) for rank in range(dist.get_world_size())])


def mine(step: int, dtype=WIDE) -> torch.Tensor:
    return batch(step, dist.get_rank(), dtype)


def loss_of(out: torch.Tensor) -> torch.Tensor:
    """A mean over the samples, so the mean over ranks is that over the whole batch."""
    return (out * out).mean() + out.sum() / out.numel()


def whole(value: torch.Tensor) -> np.ndarray:
    value = value.detach()
    return (value.full_tensor() if isinstance(value, DTensor) else value).numpy()


def assert_gradients_match(model: nn.Module, oracle: nn.Module, tolerance: float = 1e-10) -> None:
    pairs = list(zip(model.named_parameters(), oracle.parameters()))
    assert pairs
    for (name, p), q in pairs:
        assert isinstance(p, DTensor), name
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            assert p.grad.shape == p.shape and p.grad.dtype == p.dtype
            assert p.grad.to_local().shape == p.to_local().shape
            np.testing.assert_allclose(
                whole(p.grad), q.grad.numpy(), tolerance, tolerance, err_msg=name
            )


def assert_weights_match(model: nn.Module, oracle: nn.Module, tolerance: float = 1e-8) -> None:
    for (name, p), q in zip(model.named_parameters(), oracle.parameters()):
        np.testing.assert_allclose(whole(p), whole(q), tolerance, tolerance, err_msg=name)
