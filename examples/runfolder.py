"""One run, one folder: configuration, metrics, checkpoints, sample and loss curve.

    config.json            what the run was started with
    metrics.jsonl          one object per logged step
    checkpoints/step-*.pt  whole checkpoints, the newest few
    checkpoints/latest     the name of the newest
    sample.txt, loss.png   written at the end

Every file that may be read later is replaced in one step (os.replace), so a kill at any moment
leaves either the old one or the new one. Only rank 0 writes; every rank may read.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import disttorch as torch
from text import UserError

FORMAT = "disttorch example train_gpt, 1"
CHECKPOINT_NAME = re.compile(r"step-(\d{7,})\.pt")


class RunFolder:
    """The folder of one run at ``path``; nothing is created before :meth:`create`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.metrics = path / "metrics.jsonl"
        self.sample = path / "sample.txt"
        self.plot = path / "loss.png"
        self.checkpoints = path / "checkpoints"
        self.latest = self.checkpoints / "latest"

    def refuse_if_taken(self) -> None:
        """Raise UserError when a new run here would overwrite anything."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file, not a folder; choose another --out")
        if self.config.exists() or self.metrics.exists() or self.checkpoints.exists():
            raise UserError(
                f"{self.path} already holds a run; continue it with --resume {self.path} "
                "or choose another --out"
            )

    def create(self, settings: dict[str, Any]) -> None:
        """Make the folder and write the configuration."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        replace_text(self.config, json.dumps(settings, indent=2) + "\n")

    def log(self, row: dict[str, Any]) -> None:
        """Append one object to the metrics."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """Return the logged objects; a last line that a kill cut short is left out."""
        if not self.metrics.exists():
            return []
        rows = []
        for line in self.metrics.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return rows

    def forget_after(self, step: int) -> None:
        """Drop metrics past ``step``: the run goes on from there and logs them again."""
        kept = [json.dumps(row) + "\n" for row in self.rows() if row["step"] <= step]
        replace_text(self.metrics, "".join(kept))

    def save(self, checkpoint: dict[str, Any], keep: int) -> None:
        """Write a checkpoint, point ``latest`` at it, drop all but the newest ``keep``."""
        path = self.checkpoints / f"step-{checkpoint['step']:07d}.pt"
        torch.save(checkpoint, path)  # a temporary file, then os.replace: whole or not there
        # The order matters: latest never names a file that is not whole or already gone.
        replace_text(self.latest, path.name + "\n")
        for name in self._names()[:-keep]:
            if name != path.name:
                (self.checkpoints / name).unlink()
        self._remove_leftovers()

    def latest_checkpoint(self) -> Path:
        """Return the newest whole checkpoint; raises UserError when there is none."""
        if not self.latest.exists():
            raise UserError(
                f"{self.path} holds no checkpoint to resume from; name a run folder or a "
                "checkpoint file that train_gpt.py has written"
            )
        return self.checkpoints / self.latest.read_text(encoding="utf-8").strip()

    def _names(self) -> list[str]:
        return sorted(name for name in os.listdir(self.checkpoints) if CHECKPOINT_NAME.match(name))

    def _remove_leftovers(self) -> None:
        """Remove the temporary files of a save that a kill interrupted."""
        for path in self.checkpoints.iterdir():
            if path != self.latest and not CHECKPOINT_NAME.fullmatch(path.name):
                path.unlink()


def replace_text(path: Path, text: str) -> None:
    """Write ``text`` so that a reader, or a kill, meets the old file or the new one."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read one of this example's checkpoints to the CPU; raises UserError for anything else."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; name a run folder or a checkpoint file")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a foreign file fails in as many ways as there are file formats
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} cannot be read as a checkpoint: {reason}") from error
    if not isinstance(checkpoint, dict) or checkpoint.get("format") != FORMAT:
        raise UserError(f"{path} is not a checkpoint of this example")
    return checkpoint


def draw_losses(rows: list[dict[str, Any]], path: Path) -> str | None:
    """Draw training and validation loss over steps into a PNG file.

    Returns:
        None, or one sentence that says why there is no picture.
    """
    try:
        import matplotlib
    except ImportError:
        return "no loss.png: matplotlib is not installed (pip install matplotlib)"
    matplotlib.use("Agg")  # no window: a training job has no display
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), dpi=120)
    for key, label, style in (("train_loss", "training", "-"), ("val_loss", "validation", "o-")):
        points = [(row["step"], row[key]) for row in rows if row[key] is not None]
        axes.plot(*zip(*points), style, label=label, markersize=4, linewidth=1.2)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per character)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    temporary = path.with_name(path.name + ".new")
    figure.savefig(temporary, format="png")
    pyplot.close(figure)
    os.replace(temporary, path)
    return None
