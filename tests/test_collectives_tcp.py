"""The conformance suite between processes that no MPI started."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from mpi_runner import clean_environment, run_command

WORKER = Path(__file__).parent / "collectives_worker.py"


def conformance(n: int, way: str, **env: str) -> None:
    job = run_command(
        [sys.executable, "-m", "launcher", "--via", "spawn", "-n", str(n), "--oversubscribe",
         str(WORKER), str(n), "tcp", way],
        timeout=110, env=env,
    )  # fmt: skip
    assert not job.timed_out and job.status == 0, job.output[-6000:]
    ends = re.findall(r"rank (\d): (\d+) cases, (\d+) scenarios, 0 failures", job.output)
    assert sorted(rank for rank, _, _ in ends) == [str(rank) for rank in range(n)], job.output
    assert all(int(cases) > 4000 and int(scenarios) >= 17 for _, cases, scenarios in ends)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_conformance_of_shared_memory(n):
    conformance(n, "shm")


@pytest.mark.parametrize("n", [2, 3, 4])
def test_conformance_of_messages(n):
    conformance(n, "messages", DISTTORCH_SHM="0")


@pytest.mark.parametrize("n", [3, 4])
def test_conformance_between_nodes(n):
    """Two nodes, as each rank is told."""
    conformance(n, "hierarchy")


def test_leaving_and_meeting_again(tmp_path):
    """A process may be in several jobs one after the other, as scripts with many tests are."""
    program = tmp_path / "program.py"
    program.write_text(
        "import collectives, numpy as np, sys\n"
        "rank = int(sys.argv[1])\n"
        "for turn in range(3):\n"
        f"    place = 'file://{tmp_path}/meet' + str(turn)\n"
        "    group = collectives.init('tcp', place, rank=rank, world_size=2)\n"
        "    array = np.array([float(rank + turn)])\n"
        "    group.all_reduce(array)\n"
        "    assert array[0] == 2 * turn + 1, array\n"
        "    collectives.finish()\n"
        "print('done', rank)\n"
    )
    ranks = [
        subprocess.Popen(
            [sys.executable, str(program), str(rank)],
            env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    for rank, process in enumerate(ranks):
        output = process.communicate(timeout=60)[0]
        assert process.returncode == 0 and output == f"done {rank}\n", output
