"""fully_shard on one GPU: alone, and with two ranks that share it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from mpi_runner import ROOT, clean_environment

import disttorch as torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device, or no CuPy"),
]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("ranks", [1, 2])
def test_training(ranks):
    program = str(Path(__file__).with_name("fsdp_training.py"))
    command = [sys.executable, "-m", "launcher", "--nproc-per-node", str(ranks), "--via", "spawn"]
    done = subprocess.run(
        [*command, program], capture_output=True, text=True, cwd=ROOT, timeout=110,
        env=clean_environment({}),
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    line = next(text for text in done.stdout.splitlines() if '"ranks"' in text)
    print(line)  # shown by -rP
    found = json.loads(line[line.index("{") :])
    assert found["ranks"] == ranks
    for way, worst in found["worst"].items():
        assert worst < (0.1 if way == "bfloat16" else 1e-4), found
        on = "cpu" if "host" in way else "cuda"
        assert found["devices"][way] == [on, on]
