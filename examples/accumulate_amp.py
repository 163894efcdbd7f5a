"""Gradient accumulation and mixed precision under DistributedDataParallel.

    python examples/accumulate_amp.py
    disttorch-run --nproc-per-node 2 examples/accumulate_amp.py
    disttorch-run --nproc-per-node 2 --via spawn examples/accumulate_amp.py --precision float16
    mpirun -n 2 python examples/accumulate_amp.py --accumulate 8 --batch 128
    disttorch-run --nproc-per-node 8 examples/accumulate_amp.py --device cuda --width 256 --batch 2048

A step's batch is shared by the ranks, and each works through its share in --accumulate parts that
fit in memory. Gradients add up on each rank (`no_sync`); only the last part's backward reduces them,
so a step sends as much as one without parts. Forward passes run in 16 bits under autocast, weights,
gradients and the reduction stay float32. float16 has a small range: its loss is scaled up, and a
step whose gradients overflow is left out by all ranks together, as all see the reduced gradients.
"""

from __future__ import annotations

import argparse
import contextlib

import disttorch as torch
import disttorch.distributed as dist
import disttorch.nn.functional as F
from disttorch.nn.parallel import DistributedDataParallel as DDP
from disttorch.nn.utils import clip_grad_norm_
from ranks import DigitNet, Digits, Meter, digits_parser, own_device, parameter_bytes, run, share_of
from small import positive


def main(given: argparse.Namespace) -> None:
    """Train and report."""
    device, ranks, parts = own_device(given.device), dist.get_world_size(), given.accumulate
    share_of(given.batch, ranks * parts, "--batch")
    digits = Digits(given.batch // ranks, given.seed)
    torch.manual_seed(given.seed)
    model = DDP(DigitNet(given.width).to(device))
    optimizer = torch.optim.AdamW(model.parameters(), lr=given.lr)
    steps = given.epochs * len(digits.loader)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, given.lr, total_steps=steps)
    precision = getattr(torch, given.precision)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)

    gradients = parameter_bytes(model)
    meter = Meter(steps, given.batch, "images")
    meter.note(
        f"{gradients / 4e3:.0f} k parameters, {steps} steps of {given.batch} images, ranks: {ranks}, "
        f"parts: {parts}, forward in {given.precision}"
    )
    step, skipped = 0, 0
    for epoch in range(given.epochs):
        digits.sampler.set_epoch(epoch)
        for images, labels in digits.loader:
            optimizer.zero_grad()
            total = torch.zeros((), device=device)
            for part, (x, y) in enumerate(zip(images.chunk(parts), labels.chunk(parts))):
                # The forward decides whether its backward reduces: both stand inside no_sync.
                with contextlib.nullcontext() if part == parts - 1 else model.no_sync():
                    with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                        logits = model(x.to(device))
                    loss = F.cross_entropy(logits.float(), y.to(device)) / parts  # a mean over all
                    scaler.scale(loss).backward()
                total += loss.detach()
            scaler.unscale_(optimizer)  # the norm is that of the true gradients
            clip_grad_norm_(model.parameters(), given.clip)
            before = scaler.get_scale()
            scaler.step(optimizer)  # nothing if a gradient is infinite, on all ranks alike
            scaler.update()
            skipped += scaler.get_scale() < before
            scheduler.step()
            step += 1
            meter.step(step, total)
    accuracy = digits.accuracy(model.module, device)
    meter.close()
    meter.show_bytes(2 * gradients * (ranks - 1) / ranks, "2P(n-1)/n")
    meter.note(f"steps left out as gradients overflowed: {skipped}")
    meter.note(f"held-out digits: {accuracy:.2%} right")


def options() -> argparse.ArgumentParser:
    """The command line."""
    made = digits_parser(__doc__)
    made.add_argument("--accumulate", type=positive, default=4, help="parts per step (default: 4)")
    made.add_argument("--clip", type=float, default=1.0, help="largest gradient norm (default: 1)")
    made.add_argument(
        "--precision", default="bfloat16", choices=("bfloat16", "float16", "float32"),
        help="of the forward pass (default: bfloat16)",
    )  # fmt: skip
    return made


if __name__ == "__main__":
    run(main, options())
