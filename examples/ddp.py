"""DistributedDataParallel: every rank holds the whole model and works on its part of each batch.

    python examples/ddp.py
    disttorch-run --nproc-per-node 2 examples/ddp.py
    disttorch-run --nproc-per-node 2 --via spawn examples/ddp.py --epochs 20 --width 32
    mpirun -n 2 python examples/ddp.py --batch 128
    disttorch-run --nproc-per-node 8 examples/ddp.py --device cuda --width 256 --batch 512

A small convolutional network learns scikit-learn's handwritten digits. The samples of a step are the
same whatever the number of ranks, and so is the loss, up to rounding.
"""

from __future__ import annotations

import argparse

import disttorch as torch
import disttorch.distributed as dist
import disttorch.nn.functional as F
from disttorch.nn.parallel import DistributedDataParallel as DDP
from ranks import DigitNet, Digits, Meter, digits_parser, own_device, parameter_bytes, run, share_of


def main(given: argparse.Namespace) -> None:
    """Train and report."""
    device, ranks = own_device(given.device), dist.get_world_size()
    digits = Digits(share_of(given.batch, ranks, "--batch"), given.seed)
    torch.manual_seed(given.seed)
    model = DDP(DigitNet(given.width).to(device))  # weights are rank 0's from here on
    optimizer = torch.optim.AdamW(model.parameters(), lr=given.lr)
    steps = given.epochs * len(digits.loader)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, given.lr, total_steps=steps)

    gradients = parameter_bytes(model)
    meter = Meter(steps, given.batch, "images")
    meter.note(
        f"{gradients / 4e3:.0f} k parameters, {steps} steps of {given.batch} images, ranks: {ranks}"
    )
    step = 0
    for epoch in range(given.epochs):
        digits.sampler.set_epoch(epoch)  # or every epoch has the order of the first
        for images, labels in digits.loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images.to(device)), labels.to(device))
            loss.backward()  # gradients are averaged over the ranks meanwhile
            optimizer.step()
            scheduler.step()
            step += 1
            meter.step(step, loss)
    # The wrapped module, not the wrapper: evaluation has no gradients to reduce.
    accuracy = digits.accuracy(model.module, device)
    meter.close()
    meter.show_bytes(2 * gradients * (ranks - 1) / ranks, "2P(n-1)/n")
    meter.note(f"held-out digits: {accuracy:.2%} right")


if __name__ == "__main__":
    run(main, digits_parser(__doc__))
