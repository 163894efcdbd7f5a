"""The conformance suite between MPI processes, and how a job of them ends."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from mpi_runner import clean_environment, require_mpi, run_command, run_ranks_of

HERE = Path(__file__).parent


def run_python(code: str, **env: str) -> subprocess.CompletedProcess:
    """Run `code` in a fresh interpreter that no MPI started."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env=clean_environment(env),
        capture_output=True,
        text=True,
        timeout=60,
    )


def conformance(n: int, way: str, **env: str) -> None:
    job = run_ranks_of(HERE / "collectives_worker.py", n, str(n), "mpi", way, timeout=110, env=env)
    assert not job.timed_out and job.status == 0, job.output[-6000:]
    ends = re.findall(r"rank (\d): (\d+) cases, (\d+) scenarios, 0 failures", job.output)
    assert sorted(rank for rank, _, _ in ends) == [str(rank) for rank in range(n)], job.output
    assert all(int(cases) > 4000 and int(scenarios) >= 12 for _, cases, scenarios in ends)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_conformance_of_shared_memory(n):
    conformance(n, "shm")


@pytest.mark.parametrize("n", [3, 4])
def test_conformance_between_nodes(n):
    """Two nodes, as each rank is told."""
    conformance(n, "hierarchy")


@pytest.mark.parametrize("n", [2, 3])
def test_conformance_of_mpi_s_own_calls(n):
    conformance(n, "native", DISTTORCH_SHM="0")


@pytest.mark.parametrize(
    "how, status, shown",
    [
        ("exception", 1, "[rank 1] ValueError: boom on purpose"),
        ("sys.exit", 3, "[rank 1] exits with status 3"),
        ("SystemExit", 3, "[rank 1] exits with status 3"),
        ("message", 1, "no such file: data.txt"),
        ("interrupt", 130, "[rank 1] KeyboardInterrupt"),
        ("os._exit", 3, ""),
        ("foreign hook", 1, "foreign hook saw boom on purpose"),
        ("forgotten error", 1, "[rank 1] IndexError: pop from empty list"),
    ],
)
def test_failing_rank_ends_the_job(how, status, shown):
    job = run_ranks_of(HERE / "collectives_exit_worker.py", 2, how, timeout=30)
    assert not job.timed_out, job.output
    assert job.status == status, job.output
    assert shown in job.output
    assert job.output.count("[rank 1] Traceback") <= 1
    assert "got past the barrier" not in job.output


def test_traceback_has_the_failing_line():
    job = run_ranks_of(HERE / "collectives_exit_worker.py", 2, "exception", timeout=30)
    assert '[rank 1]     raise ValueError("boom on purpose")' in job.output


@pytest.mark.parametrize("how", ["exit 0", "thread"])
def test_good_end_stays_a_good_end(how):
    job = run_ranks_of(HERE / "collectives_exit_worker.py", 2, how, timeout=30)
    assert not job.timed_out and job.status == 0, job.output
    assert "rank 0 ended well" in job.output


def test_import_touches_no_mpi():
    result = run_python(
        "import sys, collectives; group = collectives.world(); assert group.size == 1\n"
        "assert type(group).__name__ == 'LocalGroup'\n"
        "assert not [name for name in sys.modules if name.startswith('mpi4py')]"
    )
    assert result.returncode == 0, result.stderr


def test_world_size_without_mpi():
    result = run_python("import collectives; collectives.world()", WORLD_SIZE="4")
    assert result.returncode != 0
    assert "WORLD_SIZE is 4 but nothing says which rank this is (RANK)" in result.stderr
    assert "disttorch-run --nproc-per-node 4" in result.stderr


def test_mpi_asked_for_in_a_process_of_its_own():
    require_mpi()
    result = run_python(
        "import collectives, numpy as np\n"
        "group = collectives.init('mpi'); assert group.size == 1, group\n"
        "array = np.ones(3); group.all_reduce(array); assert array.tolist() == [1, 1, 1]\n"
        "assert collectives.world() is group and collectives.init() is group\n"
        "try: collectives.init('local')\n"
        "except RuntimeError as error: print(error)"
    )
    assert result.returncode == 0, result.stderr
    assert "already initialised with backend 'mpi', not 'local'" in result.stdout


def test_mpiexec_of_another_mpi_is_recognised():
    """That job's ranks would otherwise run alone, each as rank 0 of 1."""
    require_mpi()
    result = run_python(
        "import collectives; collectives.world()", OMPI_COMM_WORLD_RANK="0", WORLD_SIZE="2"
    )
    assert result.returncode != 0
    assert "WORLD_SIZE is 2 but MPI_COMM_WORLD has 1 rank(s)" in result.stderr


def test_mpi_without_mpi4py():
    result = run_python(
        "import sys; sys.modules['mpi4py'] = None\nimport collectives; collectives.world()",
        PMI_RANK="0",
    )
    assert result.returncode != 0 and "needs mpi4py and an MPI library" in result.stderr


def test_unknown_backend():
    result = run_python("import collectives; collectives.init('carrier pigeon')")
    assert "unknown backend 'carrier pigeon'" in result.stderr


def test_runner_kills_what_takes_too_long():
    job = run_command([sys.executable, "-c", "import time; time.sleep(60)"], timeout=0.5)
    assert job.timed_out and job.status != 0
