"""One program with PyTorch's checkpoints and with ours: what is loaded is the same."""

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

PROGRAM = Path(__file__).with_name("checkpoint_program.py")
CASES = re.findall(r"^@case\ndef (\w+)\(", PROGRAM.read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Both sides' results, from one process each, running at the same time."""
    folder = tmp_path_factory.mktemp("checkpoints")
    sides = {
        "torch": [sys.executable, PROGRAM, folder / "torch"],
        "ours": [sys.executable, "-m", "disttorch", PROGRAM, folder / "ours"],
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
        _, errors = process.communicate(timeout=250)
        assert process.returncode == 0, errors
        found[side] = json.loads((folder / side).read_text())
    return found


@pytest.mark.parametrize("name", CASES)
def test_case(results, name):
    for rank in (0, 1):
        wanted, got = results["torch"][rank][name], results["ours"][rank][name]
        assert not re.match(r"\w+(Error|Exception):", wanted), f"PyTorch itself: {wanted}"
        assert got == wanted, f"on rank {rank}"
