"""What the small examples share: command line, run folder, progress, pictures."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import disttorch as torch
from progress import Status, make_progress
from runfolder import RunFolder
from text import UserError


class Run:
    """One run of a small example: its folder, its metrics and what is shown of them.

    Args:
        name: of the example; the default folder is ``runs/NAME-DATE-TIME``.
        arguments: the parsed command line; ``out`` and ``seed`` are used here.
        steps: how many times :meth:`log` will count up to.
        unit: what :meth:`log` counts.
    """

    def __init__(self, name: str, arguments: argparse.Namespace, steps: int, unit: str) -> None:
        default = time.strftime(f"runs/{name}-%Y%m%d-%H%M%S")
        self.folder = RunFolder(Path(arguments.out or default))
        self.folder.refuse_if_taken()
        try:
            self.folder.create({"example": name, **vars(arguments)})
        except OSError as error:
            raise UserError(f"cannot write {self.folder.path}: {error.strerror}") from error
        torch.manual_seed(arguments.seed)
        self.steps, self.unit = steps, unit
        self.progress = make_progress(0, steps)
        self.progress.note(f"run folder {self.folder.path}")
        self._mark, self._began = (0, time.perf_counter()), time.perf_counter()

    def log(self, step: int, work: int, loss: float, val_loss: float | None = None, **more: Any) -> None:
        """Write and show the state after ``step`` of ``steps``, with ``work`` units done so far."""
        now = time.perf_counter()
        done, then = self._mark
        speed = (work - done) / max(now - then, 1e-9)
        self._mark = work, now
        self.folder.log({"step": step, "train_loss": loss, "val_loss": val_loss, **more})
        left = (now - self._began) / max(step, 1) * (self.steps - step)
        self.progress.update(Status(step, self.steps, loss, val_loss, speed, left, self.unit))

    def finish(self, model: torch.nn.Module, picture: Any, result: str) -> None:
        """Save the weights and a matplotlib figure, and say what has come of the run."""
        self.progress.close()
        torch.save(model.state_dict(), self.folder.path / "model.pt")
        path = self.folder.path / "result.png"
        temporary = path.with_name(path.name + ".new")
        picture.savefig(temporary, format="png", dpi=110)
        os.replace(temporary, path)
        self.progress.note(f"{result}\npicture: {path}\neverything else: {self.folder.path}")


def parser(doc: str) -> argparse.ArgumentParser:
    """A command line whose help has the example calls of a module's docstring, with --out, --seed."""
    made = argparse.ArgumentParser(
        description=doc.splitlines()[0],
        epilog="examples:\n" + "\n".join(s for s in doc.splitlines() if s.startswith("    ")),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("--out", help="folder of the run (default: runs/NAME-DATE-TIME)")
    made.add_argument("--seed", type=int, default=1337, help="of all random draws (default: 1337)")
    return made


def positive(text: str) -> int:
    """An argument that counts something: at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def need(module: str, package: str) -> Any:
    """Import an optional module; raises UserError with what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"this example needs {package} (pip install {package})") from error


def new_figure(width: float, height: float) -> Any:
    """A matplotlib figure in inches that needs no display."""
    figure = need("matplotlib.figure", "matplotlib").Figure(figsize=(width, height))
    figure.set_layout_engine("constrained")
    return figure


def draw_loss(axes: Any, rows: list[dict[str, Any]], unit: str, quantity: str = "loss") -> None:
    """Draw the logged training and validation losses."""
    for key, label, style in (("train_loss", "training", "-"), ("val_loss", "validation", "o-")):
        points = [(row["step"], row[key]) for row in rows if row[key] is not None]
        if points:
            axes.plot(*zip(*points), style, label=label, markersize=3, linewidth=1.2)
    axes.set_xlabel(unit)
    axes.set_ylabel(quantity)
    axes.grid(alpha=0.3)
    axes.legend()


def load_digits() -> tuple[torch.Tensor, torch.Tensor]:
    """scikit-learn's 1797 digits: pixels in [0, 1], float32 [1797, 1, 8, 8], and labels, int64."""
    digits = need("sklearn.datasets", "scikit-learn").load_digits()
    pixels = torch.tensor(digits.images, dtype=torch.float32) / 16
    return pixels.unsqueeze(1), torch.tensor(digits.target, dtype=torch.int64)


def run(main: Callable[[], None]) -> None:
    """Call ``main``; a mistake of the user ends the program with status 2 and one sentence."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
