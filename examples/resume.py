"""A run that may be killed at any moment and goes on, on as many ranks as there are then.

    disttorch-run --nproc-per-node 2 examples/resume.py --folder runs/resume --kill-at 50
    disttorch-run --nproc-per-node 3 --oversubscribe examples/resume.py --folder runs/resume
    python examples/resume.py --folder runs/resume --epochs 16
    disttorch-run -n 3 --oversubscribe --elastic examples/resume.py --folder runs/elastic --kill-at 50
    mpirun -n 2 python examples/resume.py --folder runs/sharded --layout fsdp

The same command starts a run and continues it. Weights, optimizer, learning rate, random numbers and
the place in the data are in the checkpoint; a thread writes it while training goes on. Killed in the
middle of an epoch, and of a save, the run goes on from the last whole checkpoint, sees every sample of
the epoch once, and ends where it would have ended, up to rounding: on another number of ranks, and
with weights cut over the ranks (--layout fsdp) or not (ddp).
"""

from __future__ import annotations

import argparse
import os
import signal

import disttorch as torch
import disttorch.distributed as dist
import disttorch.distributed.checkpoint as dcp
import disttorch.nn.functional as F
from disttorch.distributed.fsdp import fully_shard
from disttorch.nn.parallel import DistributedDataParallel as DDP
from ranks import DigitNet, Digits, Meter, digits_parser, own_device, run, share_of
from small import positive
from text import UserError


def main(given: argparse.Namespace) -> None:
    """Start or continue, train, report."""
    device, ranks = own_device(given.device), dist.get_world_size()
    digits = Digits(share_of(given.batch, ranks, "--batch"), given.seed)
    torch.manual_seed(given.seed)
    model = DigitNet(given.width).to(device)
    model = DDP(model) if given.layout == "ddp" else fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=given.lr)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=40, gamma=0.7)

    per_epoch = len(digits.loader)
    steps = given.epochs * per_epoch
    manager = dcp.CheckpointManager(given.folder, keep=3, asynchronous=True)
    state = {"run": dcp.RunState(model, optimizer, scheduler, digits.loader)}
    step = manager.load_latest(state) or 0  # puts everything in its place, or leaves it as it is
    if step >= steps:
        raise UserError(f"{given.folder} is at step {step} of {steps}: complete; give more --epochs")
    meter = Meter(steps, given.batch, "images")
    kill_at = given.kill_at if step == 0 else None  # once, not again after the restart
    meter.note(f"{'continuing after' if step else 'starting at'} step {step} of {steps}, ranks: {ranks}")

    while step < steps:
        digits.sampler.set_epoch(step // per_epoch)
        for images, labels in digits.loader:  # what is left of this epoch
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images.to(device)), labels.to(device))
            loss.backward()
            optimizer.step()
            scheduler.step()
            step += 1
            meter.step(step, loss)
            if step % given.save_every == 0 or step == steps:
                manager.save(step, state)
            if step == kill_at and dist.get_rank() == ranks - 1:
                os.kill(os.getpid(), signal.SIGKILL)  # no warning, nothing is cleaned up
    manager.wait()  # for the last save
    accuracy = digits.accuracy(model, device)
    meter.close()
    meter.note(f"held-out digits: {accuracy:.2%} right")
    meter.note(f"checkpoints in {given.folder}: steps {manager.steps()}")


def options() -> argparse.ArgumentParser:
    """The command line."""
    made = digits_parser(__doc__)
    made.add_argument("--folder", default="runs/resume", help="of checkpoints (default: runs/resume)")
    made.add_argument("--save-every", type=positive, default=10, help="steps (default: 10)")
    made.add_argument("--layout", default="ddp", choices=("ddp", "fsdp"), help="(default: ddp)")
    made.add_argument("--kill-at", type=positive, help="kill a rank after this step, to see it go on")
    made.set_defaults(batch=96)  # a multiple of 1, 2, 3, 4
    return made


if __name__ == "__main__":
    run(main, options())
