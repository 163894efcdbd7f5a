"""What a person sees of a run: a bar where there is a terminal and rich, plain lines elsewhere."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any


@dataclass
class Status:
    """What one line shows. Losses in nats per character, None when not known yet."""

    step: int
    steps: int
    loss: float | None = None
    val_loss: float | None = None
    tokens_per_s: float = 0.0
    seconds_left: float = 0.0
    unit: str = "tokens"

    def losses(self) -> str:
        """Return the losses as text."""
        parts = []
        if self.loss is not None:
            parts.append(f"loss {self.loss:.3f}")
        if self.val_loss is not None:
            parts.append(f"val {self.val_loss:.3f}")
        return "  ".join(parts)

    def speed(self) -> str:
        """Return the work per second and the time left as text."""
        minutes, seconds = divmod(round(self.seconds_left), 60)
        return f"{self.tokens_per_s:,.0f} {self.unit}/s  {minutes}:{seconds:02d} left"


class Silent:
    """What the ranks other than 0 show."""

    def update(self, status: Status) -> None:
        """Show nothing."""

    def note(self, text: str) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Nothing to end."""


class Lines(Silent):
    """A line per update: for pipes, log files and terminals without rich."""

    WIDTH = 20

    def update(self, status: Status) -> None:
        done = self.WIDTH * status.step // max(status.steps, 1)
        bar = "#" * done + "-" * (self.WIDTH - done)
        digits = len(str(status.steps))
        print(
            f"[{bar}] {status.step:{digits}}/{status.steps}  {status.losses()}  {status.speed()}",
            flush=True,
        )

    def note(self, text: str) -> None:
        print(text, flush=True)


class Bar(Silent):
    """A live progress bar by rich."""

    def __init__(self, steps: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self.progress = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[losses]}"),
            TextColumn("{task.fields[speed]}"),
            refresh_per_second=4,  # drawing takes time from training
        )
        self.task = self.progress.add_task("train", total=steps, losses="", speed="")
        self.progress.start()

    def update(self, status: Status) -> None:
        fields: dict[str, Any] = {"losses": status.losses(), "speed": status.speed()}
        self.progress.update(self.task, completed=status.step, **fields)

    def note(self, text: str) -> None:
        self.progress.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        self.progress.stop()


def make_progress(rank: int, steps: int) -> Silent:
    """Return what fits: nothing off rank 0, a bar on a terminal with rich, else plain lines."""
    if rank != 0:
        return Silent()
    if sys.stdout.isatty():
        try:
            return Bar(steps)
        except ImportError:
            pass  # rich is an extra; lines show the same
    return Lines()
