"""A rank is killed: the ranks that remain end in the weights of the undisturbed run, bit by bit."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from exact_models import train
from launcher_jobs import Launcher
from mpi_runner import require_mpi
from test_launcher_nodes import KNOWN, Nodes

import disttorch.distributed as dist

WORKER = Path(__file__).parent / "exact_worker.py"
EXAMPLE = Path(__file__).parent.parent / "examples" / "exact_resume.py"
STEPS = 10
DRAW = random.Random(6)
# model, optimizer, how ranks start, START:RANK:STEP of the kills, and the ranks that remain
CASES = [
    ("mlp", "sgd", "spawn", f"0:{DRAW.randrange(3)}:{DRAW.randrange(STEPS)}", 2),
    ("cnn", "adamw", "mpi", f"0:{DRAW.randrange(3)}:{DRAW.randrange(STEPS)}", 2),
    ("gpt", "adamw", "spawn", f"0:{DRAW.randrange(3)}:{DRAW.randrange(STEPS)}", 2),
    ("gpt", "sgd", "spawn", "0:1:4 1:0:8", 1),
]


@pytest.mark.parametrize(("name", "optimizer", "via", "kills", "remain"), CASES)
def test_a_killed_rank_leaves_the_bits_alone(tmp_path, name, optimizer, via, kills, remain):
    if via == "mpi":
        require_mpi()
    job = Launcher(
        tmp_path, "--via", via, "-n", 3, "--oversubscribe", "--elastic", WORKER,
        name, optimizer, STEPS, tmp_path / "checkpoint.pt", env={"DIE": kills},
    )  # fmt: skip
    status, out, err = job.finish()
    assert status == 0, err
    assert err.count("was killed by SIGKILL") == 2 * len(kills.split()), err
    wanted = dist.run_local(1, lambda rank: train(name, optimizer, STEPS))[0]["digest"]
    assert sorted(re.findall(r"rank (\d) of (\d): ([0-9a-f]{64})", out)) == [
        (str(rank), str(remain), wanted) for rank in range(remain)
    ]


def test_two_nodes_start_again_and_leave_the_bits_alone(tmp_path):
    nodes = Nodes(tmp_path, "--max-restarts", 1)
    nodes.arguments += [WORKER, "mlp", "sgd", STEPS, f"{tmp_path}/checkpoint.pt"]
    for node in (1, 0):
        nodes.start(node, env={**KNOWN, "DIE": "0:3:5"})
    ends = nodes.finish()
    wanted = dist.run_local(1, lambda rank: train("mlp", "sgd", STEPS))[0]["digest"]
    for node, (status, out, lines) in enumerate(ends):
        assert status == 0 and "rank 3 of 4 was killed by SIGKILL" in lines[-1], lines
        found = sorted(re.findall(r"rank (\d) of 4: ([0-9a-f]{64})", out))
        assert found == [(str(2 * node + local), wanted) for local in range(2)]


def test_the_example_tells_one_digest(tmp_path):
    pytest.importorskip("sklearn")
    found = set()
    for number, options in enumerate((["-n", 1], ["-n", 3, "--elastic"])):
        job = Launcher(
            tmp_path, "--via", "spawn", "--oversubscribe", *options, EXAMPLE, "--steps", 16,
            "--checkpoint", f"{number}.pt", "--kill", "1:12",
        )  # fmt: skip
        status, out, err = job.finish()
        assert status == 0, err
        found |= set(re.findall(r"digest of the weights: ([0-9a-f]{64})", out))
        assert ("going on after step 10 on ranks: 2" in out) == (number == 1)
    assert len(found) == 1
    assert not list(tmp_path.glob("*.pt"))
