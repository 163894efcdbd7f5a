"""The mismatch matrix: however a rank differs from the others in a call, all of them end with an
error that names it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mismatch_worker import CALLS, kinds_of
from mpi_runner import clean_environment, require_mpi, run_command, run_ranks_of

WORKER = Path(__file__).parent / "mismatch_worker.py"
RANKS = 3
ODD = RANKS - 1
WAYS = {
    "shared memory": ("mpi", {}),
    "MPI's own calls": ("mpi", {"DISTTORCH_SHM": "0"}),
    "sockets, shared memory": ("spawn", {}),
    "sockets": ("spawn", {"DISTTORCH_SHM": "0"}),
}
ENDS = {
    "exit 0": f"rank {ODD} left the job with status 0",
    "exception": f"rank {ODD} failed: KeyError: 'gone fishing' at mismatch_worker.py:",
}


def wrong(kind: str, rank: int, text: str) -> bool:
    """Whether a rank met with something else than it should have."""
    if kind == "missing":
        # The odd one has made no call that could fail.
        return bool(text) if rank == ODD else f"rank {ODD} has not come" not in text
    if kind == "extra":
        return not ("timed out" in text and "rank 0" in text) if rank == ODD else bool(text)
    blamed = f"rank {ODD} differs from the others" in text
    return not (text.startswith("MismatchError") and blamed and "mismatch_worker.py:" in text)


@pytest.mark.parametrize("way", WAYS)
def test_ranks_that_differ(way, tmp_path):
    via, env = WAYS[way]
    if via == "mpi":
        job = run_ranks_of(WORKER, RANKS, "caught", str(tmp_path), timeout=100, env=env)
    else:
        job = run_command(
            [sys.executable, "-m", "launcher", "--via", "spawn", "-n", str(RANKS), "--oversubscribe",
             "--no-prefix", str(WORKER), "caught", str(tmp_path)],
            timeout=100, env=env,
        )  # fmt: skip
    assert not job.timed_out and job.status == 0, job.output[-4000:]
    ranks = [json.loads((tmp_path / f"found-{rank}.json").read_text()) for rank in range(RANKS)]
    expected = [(call, kind) for call in CALLS for kind in kinds_of(call)]
    for rank, rows in enumerate(ranks):
        assert [(row["call"], row["kind"]) for row in rows] == expected
        bad = [row for row in rows if wrong(row["kind"], rank, row["text"]) or row["seconds"] > 10]
        assert not bad, f"rank {rank}: {bad[:3]}"


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("how", ENDS)
def test_rank_that_ends(how, call):
    """Under plain mpiexec."""
    job = run_ranks_of(WORKER, RANKS, how, call, timeout=20)
    assert not job.timed_out and job.status == 1, job.output[-4000:]
    for rank in range(ODD):
        met = re.search(rf"rank {rank} met RankFailedError: (.*)", job.output)
        assert met and ENDS[how] in met[1], job.output[-4000:]
        assert re.search(r"at mismatch_worker.py:\d+", met[1])


@pytest.mark.parametrize("call", CALLS)
def test_rank_that_is_killed(call):
    """mpiexec kills the others at once; the launcher says who was first."""
    require_mpi()
    launcher = [sys.executable, "-m", "launcher", "-n", str(RANKS), "--oversubscribe"]
    job = subprocess.run(
        [*launcher, str(WORKER), "kill", call],
        env=clean_environment(), capture_output=True, text=True, timeout=20,
    )  # fmt: skip
    assert job.returncode == 137, job.stderr[-3000:]
    last = job.stderr.strip().splitlines()[-1]
    assert f"rank {ODD} of {RANKS} was killed by SIGKILL" in last
