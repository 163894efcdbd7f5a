"""The same calls on two ranks: PyTorch's gloo, and disttorch in its place, write down the same.

disttorch runs them twice: in processes that the very same lines start (`multiprocessing.spawn`, gloo,
`file://`), and in threads.
"""

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

PROGRAM = Path(__file__).with_name("distributed_program.py")


def names() -> list[str]:
    """The program's cases; it is not imported here, where `torch` may be either."""
    text = PROGRAM.read_text()
    found = re.findall(r"^@case\ndef (\w+)\(", text, re.MULTILINE)
    assert len(found) > 20
    return [*found, "every dtype and op"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Both sides' results, each from one process of its own, running at the same time."""
    folder = tmp_path_factory.mktemp("distributed")
    ours = [sys.executable, "-m", "disttorch", PROGRAM]
    sides = {
        "torch": [sys.executable, PROGRAM, folder / "torch"],
        "processes": [*ours, folder / "processes"],
        "threads": [*ours, folder / "threads", "threads"],
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
        assert process.returncode == 0, errors
        found[side] = json.loads((folder / side).read_text())
    assert found["torch"][0].keys() == found["processes"][0].keys() == found["threads"][0].keys()
    return found


@pytest.mark.parametrize("side", ["processes", "threads"])
@pytest.mark.parametrize("name", names())
def test_case(results, name, side):
    listed = names()
    for rank in (0, 1):
        wanted, got = results["torch"][rank], results[side][rank]
        chosen = [name] if name in wanted else [each for each in wanted if each not in listed]
        assert len(chosen) == 1 or len(chosen) > 90
        for each in chosen:
            assert not re.match(r"\w+Error", wanted[each]), f"PyTorch itself: {wanted[each]}"
            assert got[each] == wanted[each], f"{each} on rank {rank}"
