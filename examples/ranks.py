"""What the recipes for several ranks share: begin and end, digits cut by rank, and what is shown.

The data order does not depend on the number of ranks: the batch of a step is the same set of
samples on 1, 2 or 8 of them, so the losses agree up to rounding.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import disttorch as torch
import disttorch.distributed as dist
from disttorch import nn
from disttorch.utils.data import DataLoader, Subset, TensorDataset
from disttorch.utils.data.distributed import DistributedSampler
from progress import Status, make_progress
from settings import Parser
from small import load_digits, positive
from text import UserError

HELD_OUT = 360  # of 1797 digits


def parser(doc: str) -> Parser:
    """A command line whose help is a module's docstring, with --seed and --device."""
    made = Parser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    made.add_argument("--seed", type=int, default=1337, help="of weights and data order")
    made.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="(default: cpu)")
    return made


def digits_parser(doc: str) -> Parser:
    """The same with what the recipes on digits share."""
    made = parser(doc)
    made.add_argument("--epochs", type=positive, default=10, help="(default: 10)")
    made.add_argument("--batch", type=positive, default=64, help="of all ranks (default: 64)")
    made.add_argument("--width", type=positive, default=16, help="channels (default: 16)")
    made.add_argument("--lr", type=float, default=5e-3, help="learning rate (default: 5e-3)")
    return made


def run(main: Callable[[argparse.Namespace], None], options: Parser) -> None:
    """Begin, call ``main``, end. A mistake of the user ends all ranks with 2 and one sentence."""
    dist.init_process_group()
    try:
        options.speaks = dist.get_rank() == 0
        main(options.parse_args())
    except UserError as error:
        if dist.get_rank() == 0:
            print(f"error: {error}", file=sys.stderr, flush=True)
        dist.barrier()  # a launcher ends all ranks once one has left: let rank 0 speak first
        dist.destroy_process_group()
        raise SystemExit(2) from None
    dist.destroy_process_group()


def own_device(kind: str) -> torch.device:
    """This rank's device: the CPU, or one GPU per rank of a node."""
    if kind == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("--device cuda, but no usable CUDA device was found; use --device cpu")
    local_rank = dist.get_node_local_rank(fallback_rank=dist.get_rank())
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def share_of(batch: int, parts: int, what: str) -> int:
    """``batch / parts``; raises UserError where it is no whole number."""
    if batch % parts:
        raise UserError(f"{what} {batch} must be a multiple of {parts}, among whom it is shared")
    return batch // parts


class DigitNet(nn.Module):
    """Images [B, 1, 8, 8] to logits [B, 10].

    GroupNorm: the result for a sample does not depend on which others are on the same rank.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.GroupNorm(1, width), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1), nn.GroupNorm(1, 2 * width), nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.ReLU(),
        )
        self.head = nn.Linear(32 * width, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(images).flatten(1))


class Digits:
    """scikit-learn's digits: a loader of this rank's part of each batch, and held-out ones.

    Args:
        batch: samples that this rank takes at a time.
        seed: of the split and the order.
    """

    def __init__(self, batch: int, seed: int) -> None:
        images, labels = load_digits()
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        self.held_out = images[order[:HELD_OUT]], labels[order[:HELD_OUT]]
        training = Subset(TensorDataset(images, labels), order[HELD_OUT:].tolist())
        # Rank r of n takes samples r, r + n, … of a common order: n ranks with batch / n samples
        # each have together what one rank has with all of them.
        self.sampler = DistributedSampler(training, seed=seed, drop_last=True)
        self.loader = DataLoader(training, batch, sampler=self.sampler, drop_last=True)

    @torch.no_grad()
    def accuracy(self, model: nn.Module, device: torch.device) -> float:
        """The share of held-out digits that are right, each looked at by exactly one rank."""
        rank, ranks = dist.get_rank(), dist.get_world_size()
        images, labels = (part[rank::ranks].to(device) for part in self.held_out)
        model.eval()
        right = (model(images).argmax(dim=1) == labels).sum()
        model.train()
        dist.all_reduce(right)  # not the mean of the ranks' shares: those may be of unequal size
        return right.item() / HELD_OUT


class Meter:
    """Shows the mean loss over the ranks and the speed, and counts what ranks send each other.

    Args:
        steps: optimizer steps in all.
        work: units of work (samples, characters) per step, over all ranks.
        every: steps between two lines.
    """

    def __init__(self, steps: int, work: int, unit: str, every: int = 20) -> None:
        self.steps, self.work, self.unit, self.every = steps, work, unit, every
        self.progress = make_progress(dist.get_rank(), steps)
        self.first = self.last = float("nan")
        self.counted, self.sent, self.calls = 0, 0.0, 0.0
        dist.reset_ledger()  # wrapping a model sends its weights
        self._mark = time.perf_counter(), 0

    def note(self, text: str) -> None:
        """Show a line of text, on rank 0."""
        self.progress.note(text)

    def step(self, number: int, loss: torch.Tensor) -> None:
        """Count step ``number`` (from 1), with this rank's mean loss over its share.

        Everything that ranks have sent since the last call counts as the step's.
        """
        for figures in dist.ledger().values():
            self.sent += figures["sent_bytes"]
            self.calls += figures["calls"]
        self.counted += 1
        if self.counted == 1 or number % self.every == 0 or number == self.steps:
            mean = loss.detach().double()
            dist.all_reduce(mean, op=dist.ReduceOp.AVG)
            self.last = mean.item()
            self.first = self.last if self.counted == 1 else self.first
            (then, done), now = self._mark, time.perf_counter()
            pace = (now - then) / max(number - done, 1)
            self._mark = now, number
            left = (self.steps - number) * pace
            self.progress.update(
                Status(number, self.steps, self.last, None, self.work / pace, left, self.unit)
            )
        dist.reset_ledger()  # what the meter itself and the caller's evaluation send is not counted

    def close(self) -> None:
        """Show first and last loss."""
        self.progress.close()
        self.note(f"loss: first {self.first:.4f}, last {self.last:.6f}")

    def show_bytes(self, theory: float, formula: str) -> None:
        """Show the bytes per step beside ``theory`` of ``formula``."""
        if dist.get_world_size() == 1:
            self.note("sent per step: nothing, there is one rank")
            return
        sent, calls = self.sent / max(self.counted, 1), self.calls / max(self.counted, 1)
        known = sent > 0 or calls == 0  # a library such as NCCL does not tell what it moves
        seen = f"{sent / 1e6:.4f} MB" if known else "not counted by this transport,"
        self.note(
            f"sent per step and rank: {seen} in {calls:.1f} calls; "
            f"theory {formula} = {theory / 1e6:.4f} MB"
        )


def parameter_bytes(model: nn.Module) -> int:
    """Bytes of all trained parameters: a parameter that is used twice counts once."""
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
