"""The small examples as a user runs them, with tiny settings: run folder, metrics and picture."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from mpi_runner import clean_environment

import disttorch as torch

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
# example: (arguments, package that it needs, least number of metrics)
RUNS = {
    "digits_cnn": (["--epochs=2", "--width=4", "--batch=256"], "sklearn", 2),
    "vae_digits": (["--epochs=2", "--hidden=16"], "sklearn", 2),
    "lstm_text": (["--steps=6", "--width=16", "--max-mb=0.3", "--length=20"], None, 6),
    "dqn_cartpole": (["--steps=40", "--carts=2", "--batch=16"], None, 20),
}


def start(name: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-W", "error", str(EXAMPLES / f"{name}.py"), *arguments]
    return subprocess.run(
        command, env=clean_environment(), capture_output=True, text=True, timeout=100
    )


@pytest.mark.parametrize("name", RUNS)
def test_run_folder_metrics_and_picture(name: str, tmp_path: Path) -> None:
    arguments, package, least = RUNS[name]
    if package is not None:
        pytest.importorskip(package)
    out = tmp_path / "run"
    done = start(name, *arguments, f"--out={out}")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) >= least
    assert all(row["train_loss"] == row["train_loss"] < 1e4 for row in rows)  # finite
    assert (out / "result.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert json.loads((out / "config.json").read_text())["seed"] == 1337
    weights = torch.load(out / "model.pt")
    assert weights and all(bool(w.isfinite().all()) for w in weights.values())
    assert str(out) in done.stdout

    again = start(name, *arguments, f"--out={out}")  # nothing is overwritten
    assert again.returncode == 2 and "already holds a run" in again.stderr
    assert "Traceback" not in again.stderr


@pytest.mark.parametrize("name", RUNS)
def test_help_shows_examples(name: str) -> None:
    done = start(name, "--help")
    assert done.returncode == 0 and f"python examples/{name}.py" in done.stdout
