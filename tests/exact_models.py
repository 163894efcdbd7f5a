"""Models that are trained on a varying number of ranks, and the one function that trains them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import disttorch as torch
import disttorch.distributed as dist
import disttorch.nn.functional as F
from disttorch import nn, optim
from disttorch.distributed.exact import ExactDataParallel, VirtualShardSampler
from disttorch.models.gpt import GPT
from disttorch.nn.parallel import DistributedDataParallel
from disttorch.ops.random import own_stream
from disttorch.utils.data import DataLoader, TensorDataset

V, BATCH = 12, 48


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(33, 70), nn.ReLU(), nn.Dropout(0.2), nn.Linear(70, 10))


class Cnn(nn.Module):
    """Convolutions with BatchNorm in three of its forms, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1, groups=2, bias=False),
            nn.BatchNorm2d(16, momentum=None), nn.ReLU(), nn.Dropout2d(0.1),
        )  # fmt: skip
        self.norm = nn.BatchNorm1d(16, affine=False)
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.body(x).mean((2, 3))))


def gpt() -> nn.Module:
    return GPT(vocabulary_size=61, context=12, layers=2, heads=2, width=32, dropout=0.1)


MODELS = {"mlp": mlp, "cnn": Cnn, "gpt": gpt}
OPTIMIZERS = {
    "sgd": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "adamw": lambda p: optim.AdamW(p, lr=3e-3),
}


def data(name: str, samples: int = 3 * BATCH + 5) -> TensorDataset:
    g = torch.Generator().manual_seed(5)
    if name == "gpt":
        ids = torch.randint(0, 61, (samples, 13), generator=g)
        return TensorDataset(ids[:, :-1], ids[:, 1:])
    shape = (33,) if name == "mlp" else (3, 9, 9)
    return TensorDataset(
        torch.randn(samples, *shape, generator=g), torch.randint(0, 10, (samples,), generator=g)
    )


def loss_of(out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(out.reshape(-1, out.shape[-1]), y.reshape(-1))


def build(name: str) -> nn.Module:
    with own_stream(3):
        return MODELS[name]()


def train(
    name: str, optimizer: str, steps: int, checkpoint: Path | None = None, every: int = 1000,
    visit: Callable[[int], None] = lambda step: None,
) -> dict[str, Any]:  # fmt: skip
    """Train up to `steps` in all; goes on from `checkpoint` where it exists.

    It is written after `every` steps and at the end. `visit` is called in each step, between
    backward and the optimizer.
    """
    model = ExactDataParallel(build(name), V, seed=11)
    opt = OPTIMIZERS[optimizer](model.parameters())
    schedule = optim.lr_scheduler.CosineAnnealingLR(opt, 20)
    sampler = VirtualShardSampler(data(name), BATCH, V, seed=2)
    loader = DataLoader(data(name), sampler.local_batch_size, sampler=sampler)
    losses: list[float] = []
    epoch = 0
    if checkpoint is not None and checkpoint.exists():
        saved = torch.load(checkpoint)
        model.load_state_dict(saved["model"])
        opt.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        loader.load_state_dict(saved["loader"])
        losses, epoch = saved["losses"], saved["epoch"]
    while model.step_number < steps:
        sampler.set_epoch(epoch)
        for x, y in loader:
            opt.zero_grad()
            shard_losses = []
            for part, target in model.shards(x, y):
                loss = loss_of(model(part), target)
                loss.backward()
                shard_losses.append(loss.detach())
            losses.append(model.mean(shard_losses).item())
            visit(model.step_number - 1)
            nn.utils.clip_grad_norm_(model.parameters(), 0.7)
            opt.step()
            schedule.step()
            if checkpoint is not None and model.step_number in (steps, *range(0, steps, every)):
                state = {
                    "model": model.state_dict(), "optimizer": opt.state_dict(), "losses": losses,
                    "schedule": schedule.state_dict(), "loader": loader.state_dict(), "epoch": epoch,
                }  # fmt: skip
                write(state, checkpoint)
            if model.step_number == steps:
                break
        else:
            epoch += 1
    model.audit()
    return {"digest": model.digest(), "losses": losses}


def write(state: dict[str, Any], path: Path) -> None:
    """By rank 0; whole or not at all."""
    if dist.get_rank() == 0:
        torch.save(state, path.with_suffix(".new"))
        os.replace(path.with_suffix(".new"), path)
    dist.barrier()


def train_plainly(name: str, optimizer: str, steps: int) -> str:
    """The same training by DistributedDataParallel, for which no promise is made."""
    with own_stream(100 + dist.get_rank()):
        model = DistributedDataParallel(build(name))
        opt = OPTIMIZERS[optimizer](model.parameters())
        sampler = VirtualShardSampler(data(name), BATCH, V, seed=2)
        loader, step = DataLoader(data(name), sampler.local_batch_size, sampler=sampler), 0
        while step < steps:
            for x, y in loader:
                opt.zero_grad()
                loss_of(model(x), y).backward()
                opt.step()
                step += 1
                if step == steps:
                    break
    return ExactDataParallel(model.module, V, seed=0).digest()
