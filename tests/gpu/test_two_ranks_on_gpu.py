"""Two processes that share one GPU: through host memory, or NCCL where it allows that."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from mpi_runner import ROOT, clean_environment, require_mpi

import disttorch as torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device, or no CuPy"),
]
PROGRAM = str(Path(__file__).with_name("two_ranks.py"))


def run(command, **environment):
    env = clean_environment(environment)
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, timeout=110)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    line = next(text for text in done.stdout.splitlines() if '"ranks"' in text)
    print(line)  # shown by -rP
    return json.loads(line[line.index("{"):])


def check(found, way):
    assert found["ranks"] == 2 and found["failures"] == [] and found["cases"] > 500
    assert found["shared"] == [[0, 1]]
    assert len(found["notices"]) == 1 and "ranks 0 and 1 share a GPU" in found["notices"][0]
    assert f"go {way}" in found["notices"][0]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("way", ["through CUDA IPC", "through host memory"])
def test_started_by_mpi(way):
    options = ["--no-ipc"] if "host" in way else []
    check(run([require_mpi(), "-n", "2", sys.executable, PROGRAM, *options],
              OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1"), way)


@pytest.mark.timeout(120)
def test_started_without_mpi():
    launcher = [sys.executable, "-m", "launcher", "--nproc-per-node", "2", "--via", "spawn"]
    check(run([*launcher, PROGRAM]), "through CUDA IPC")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("via", ["mpi", "spawn"])
def test_training_with_the_nccl_backend(via):
    launcher = [sys.executable, "-m", "launcher", "--nproc-per-node", "2", "--via", via]
    found = run([*launcher, str(Path(__file__).with_name("nccl_training.py"))])
    assert found["ranks"] == 2 and found["worst"] < 1e-4 and found["backend"] == "nccl"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("via", ["mpi", "spawn"])
def test_a_failing_rank_ends_the_other(via):
    launcher = [sys.executable, "-m", "launcher", "--nproc-per-node", "2", "--via", via]
    done = subprocess.run(
        [*launcher, str(Path(__file__).with_name("failing_rank.py"))], capture_output=True, text=True,
        env=clean_environment(), cwd=ROOT, timeout=50,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode != 0 and "out of luck" in said and "never reached" not in said
