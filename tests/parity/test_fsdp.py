"""fully_shard and DTensor on two ranks: PyTorch's and disttorch's write down the same."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytestmark = [pytest.mark.parity, pytest.mark.timeout(300)]

PROGRAM = Path(__file__).with_name("fsdp_program.py")
NAMES = re.findall(r"^@case\ndef (\w+)\(", PROGRAM.read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Each side's results, from one process of its own."""
    folder = tmp_path_factory.mktemp("fsdp")
    ours = [sys.executable, "-m", "disttorch", PROGRAM]
    sides = {
        "torch": [sys.executable, PROGRAM, folder / "torch"],
        "processes": [*ours, folder / "processes"],
        "threads": [*ours, folder / "threads", "threads"],
    }
    found = {}
    for side, command in sides.items():
        done = subprocess.run(
            command, text=True, capture_output=True, timeout=150,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]
        found[side] = json.loads((folder / side).read_text())
    assert len(NAMES) > 12
    return found


def compare(mine, other, where: str) -> None:
    """Texts are equal; numbers, and nested lists of them, nearly."""
    if isinstance(mine, list) and isinstance(other, list):
        assert len(mine) == len(other), where
        for i, (a, b) in enumerate(zip(mine, other)):
            compare(a, b, f"{where}[{i}]")
    elif isinstance(mine, float) or isinstance(other, float):
        np.testing.assert_allclose(mine, other, 1e-5, 1e-7, err_msg=where)
    else:
        assert mine == other, where


@pytest.mark.parametrize("side", ["processes", "threads"])
@pytest.mark.parametrize("name", NAMES)
def test_case(results, name, side):
    for rank in range(2):
        compare(results[side][rank][name], results["torch"][rank][name], f"rank {rank} {name}")
