"""The same weights, bit by bit, on any number of ranks, and after a rank was killed.

    python examples/exact_resume.py
    disttorch-run --nproc-per-node 2 examples/exact_resume.py
    disttorch-run -n 3 --oversubscribe --elastic examples/exact_resume.py --kill 1:30

All three print the same digest. In the last one rank 1 kills itself in step 30; the launcher starts
the job again with the two ranks that remain, and they go on from the last checkpoint. A small
convolutional network with BatchNorm and dropout learns scikit-learn's handwritten digits.
"""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path
from typing import Any

import disttorch as torch
import disttorch.distributed as dist
import disttorch.nn.functional as F
from disttorch import nn
from disttorch.distributed.exact import ExactDataParallel, VirtualShardSampler
from disttorch.utils.data import DataLoader, TensorDataset
from small import load_digits

SHARDS = 12  # so that 1, 2, 3, 4, 6 and 12 ranks give the same
EVERY = 10  # steps between checkpoints


def main(given: argparse.Namespace) -> None:
    dist.init_process_group()
    images, labels = load_digits()
    data = TensorDataset(images, labels)
    torch.manual_seed(1337)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.2), nn.Linear(256, 10),
    )  # fmt: skip
    model = ExactDataParallel(net, SHARDS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    sampler = VirtualShardSampler(data, 10 * SHARDS, SHARDS)
    loader = DataLoader(data, sampler.local_batch_size, sampler=sampler)
    epoch = 0
    if given.checkpoint.exists():
        saved = torch.load(given.checkpoint)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        loader.load_state_dict(saved["loader"])
        epoch = saved["epoch"]
        tell(f"going on after step {model.step_number} on ranks: {dist.get_world_size()}")

    while model.step_number < given.steps:
        sampler.set_epoch(epoch)
        for x, y in loader:
            if given.kill == (dist.get_rank(), model.step_number):
                kill_once()
            optimizer.zero_grad()
            losses = []
            for part, target in model.shards(x, y):  # one after the other, each on its own
                loss = F.cross_entropy(model(part), target)
                loss.backward()
                losses.append(loss)
            optimizer.step()
            loss = model.mean(losses)
            if model.step_number % EVERY == 0 or model.step_number == given.steps:
                tell(f"step {model.step_number}: loss {loss.item():.4f}")
                save(given.checkpoint, model=model, optimizer=optimizer, loader=loader, epoch=epoch)
            if model.step_number == given.steps:
                break
        epoch += 1
    tell(f"digest of the weights: {model.digest()}")
    if not given.keep and dist.get_rank() == 0:
        given.checkpoint.unlink()
    dist.destroy_process_group()


def save(path: Path, epoch: int, **parts: Any) -> None:
    """Rank 0's state is that of all. A file is replaced as a whole, or not at all."""
    if dist.get_rank() == 0:
        state = {"epoch": epoch} | {name: part.state_dict() for name, part in parts.items()}
        torch.save(state, path.with_suffix(".new"))
        os.replace(path.with_suffix(".new"), path)
    dist.barrier()


def kill_once() -> None:
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        os.kill(os.getpid(), signal.SIGKILL)


def tell(sentence: str) -> None:
    if dist.get_rank() == 0:
        print(sentence, flush=True)


def rank_and_step(text: str) -> tuple[int, int]:
    rank, _, step = text.partition(":")
    return int(rank), int(step)


if __name__ == "__main__":
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--steps", type=int, default=50, help="(default: 50)")
    options.add_argument("--checkpoint", type=Path, default=Path("exact-resume.pt"),
                         help="gone on from where it exists (default: exact-resume.pt)")
    options.add_argument("--keep", action="store_true", help="do not remove it at the end")
    options.add_argument("--kill", type=rank_and_step, metavar="RANK:STEP",
                         help="kill a rank of the first start by SIGKILL")
    main(options.parse_args())
