"""Data parallelism on two ranks: PyTorch over gloo, and disttorch in its place, compute the same."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytestmark = [pytest.mark.parity, pytest.mark.timeout(300)]

PROGRAM = Path(__file__).with_name("ddp_program.py")
TOLERANCE = {"hooks": 1e-3, "delayed": 1e-5}  # float16; float32. All else is of float64


def names() -> list[str]:
    found = re.findall(r"^@case\ndef (\w+)\(", PROGRAM.read_text(), re.MULTILINE)
    assert len(found) > 10
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Both sides' results, each from two processes, running at the same time."""
    folder = tmp_path_factory.mktemp("ddp")
    sides = {
        "torch": [sys.executable, PROGRAM, folder / "torch"],
        "disttorch": [sys.executable, "-m", "disttorch", PROGRAM, folder / "disttorch"],
    }
    running = {
        side: subprocess.Popen(
            command, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for side, command in sides.items()
    }  # fmt: skip
    found = {}
    for side, process in running.items():
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors[-5000:]
        found[side] = json.loads((folder / side).read_text())
    return found


def compare(got, wanted, tolerance, place):
    if isinstance(wanted, list):
        assert isinstance(got, list) and len(got) == len(wanted), place
        for i, (a, b) in enumerate(zip(got, wanted)):
            compare(a, b, tolerance, f"{place}[{i}]")
    elif isinstance(wanted, float):
        assert got == pytest.approx(wanted, rel=tolerance, abs=tolerance), place
    else:
        assert got == wanted, place


@pytest.mark.parametrize("name", names())
def test_case(results, name):
    for rank in (0, 1):
        got, wanted = (results[side][rank][name] for side in ("disttorch", "torch"))
        compare(got, wanted, TOLERANCE.get(name, 1e-8), f"{name} on rank {rank}")
