"""Start ranks of a script under mpiexec from a test, with a hard limit on their time."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Finished:
    """How a job ended: exit status, stdout and stderr of all ranks together, timed out or not."""

    status: int
    output: str
    timed_out: bool


def find_mpiexec() -> str | None:
    """The mpiexec beside this Python (where MPI wheels put theirs), else PATH's, else None."""
    beside = Path(sys.executable).parent / "mpiexec"
    return str(beside) if os.access(beside, os.X_OK) else shutil.which("mpiexec")


def require_mpi() -> str:
    """mpiexec's path; skips the calling test when there is no mpi4py or no mpiexec."""
    if importlib.util.find_spec("mpi4py") is None:
        pytest.skip("mpi4py is not installed")
    mpiexec = find_mpiexec()
    if mpiexec is None:
        pytest.skip("no mpiexec beside this Python or on PATH: pip install '.[mpich]'")
    return mpiexec


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without any rank's variables, with the checkout importable."""
    dropped = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK")
    prefixes = ("PMI_", "PMIX_", "OMPI_COMM_", "MPI_LOCAL")
    env = {
        key: value
        for key, value in os.environ.items()
        if key not in dropped and not key.startswith(prefixes)
    }
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH", "")]))
    # Ranks outnumber cores in tests: one BLAS thread each, or spinning threads starve the others.
    env.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
    env.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    env.update(PRTE_MCA_rmaps_default_mapping_policy=":oversubscribe")
    env.update(extra or {})
    return env


def run_command(
    command: Sequence[str], timeout: float = 60.0, env: Mapping[str, str] | None = None
) -> Finished:
    """Run `command`; after `timeout` seconds kill its whole process group and say so.

    Output goes to a file and not to a pipe: a pipe that a surviving grandchild holds open would
    keep us reading after the command itself has ended.
    """
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=clean_environment(env),
            start_new_session=True,
        )
        timed_out = False
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
        _remove_what_killed_jobs_left()
        out.seek(0)
        return Finished(process.returncode, out.read().decode(errors="replace"), timed_out)


def _remove_what_killed_jobs_left() -> None:
    """An MPI's shared memory that no process has mapped any more: a killed rank leaves its name."""
    shared = Path("/dev/shm")
    left = {*shared.glob("mpich_shm_*"), *shared.glob("sm_segment.*")}
    if not left:
        return
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            text = maps.read_text(errors="replace")
        except OSError:
            continue  # it has ended, or is not ours
        left = {path for path in left if str(path) not in text}
    for path in left:
        # One that was made a moment ago may not be mapped yet.
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > 10:
                path.unlink()


def run_ranks_of(
    script: str | os.PathLike[str],
    n: int,
    *arguments: str,
    timeout: float = 60.0,
    env: Mapping[str, str] | None = None,
) -> Finished:
    """Run `n` ranks of a Python script under mpiexec; skips the test where there is no MPI."""
    command = [require_mpi(), "-n", str(n), sys.executable, os.fspath(script), *arguments]
    return run_command(command, timeout, env)
