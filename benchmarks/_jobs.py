"""Jobs of several processes: by mpiexec, by the launcher, or finding each other by variables.

Standard library only.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "benchmarks"


def run(commands: list[list[str]], environments: list[dict[str, str]], seconds: float = 1800.0) -> None:
    """Start processes and wait for all; none is left behind.

    Raises:
        RuntimeError: one failed, or they took too long.
    """
    # A benchmark that is ended itself must still reach the end of this function.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    processes: list[subprocess.Popen] = []
    try:
        for command, more in zip(commands, environments):
            own = {**os.environ, **more}
            processes.append(subprocess.Popen(command, cwd=ROOT, env=own, start_new_session=True))
        for process in processes:
            status = process.wait(seconds)
            if status:
                raise RuntimeError(f"{' '.join(map(str, process.args))} ended with status {status}")
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{error.cmd} took more than {seconds} seconds") from None
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        signal.signal(signal.SIGTERM, before)


def by_mpiexec(python: str, script: str, options: list[str], ranks: int, **environment: str) -> None:
    """Run `ranks` ranks of a script of this folder under the mpiexec beside `python`, or on PATH."""
    mpiexec = Path(python).absolute().parent / "mpiexec"
    launcher = [str(mpiexec) if mpiexec.exists() else "mpiexec", "-n", str(ranks)]
    # Open MPI's words for more ranks than cores, and for a container whose user is root.
    environment |= {
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }  # fmt: skip
    run([[*launcher, python, str(HERE / script), *options]], [environment])


def by_spawn(script: str, options: list[str], ranks: int, **environment: str) -> None:
    """Run ranks as processes of disttorch's launcher, without MPI."""
    starter = [sys.executable, "-m", "launcher", "--via", "spawn", "--oversubscribe", "-n", str(ranks)]
    run([[*starter, "--threads-per-rank", "1", str(HERE / script), *options]], [environment])


def by_environment(
    python: str, script: str, options: list[str], ranks: int, **environment: str
) -> None:
    """Run ranks as processes that find each other by torchrun's variables."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    common = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo"), **environment,
    }  # fmt: skip
    command = [python, str(HERE / script), *options]
    each = [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
    run([command] * ranks, each)
