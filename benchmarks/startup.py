"""What a user waits for and stores: import time, launch to exit, installed size.

    python benchmarks/startup.py [--size] [--runs 7]

Import times alternate between the two libraries in one run and are medians of whole processes, less
an empty interpreter's. ``--size`` installs ``.[mpich]`` into a temporary environment and adds it up.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
JOB = """
import disttorch as torch, disttorch.distributed as dist
dist.init_process_group()
t = torch.ones(1) * (dist.get_rank() + 1)
dist.all_reduce(t)
assert t.item() == sum(range(1, dist.get_world_size() + 1)), t
"""


def seconds(command: list[str]) -> float:
    """Wall seconds of one whole process, which must succeed."""
    # an installed package has its bytecode on disk; a first run writes it for a checkout
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL, env=environment)
    return time.perf_counter() - start


def import_times(runs: int) -> dict[str, float]:
    """Median import seconds of disttorch, and of torch where it is installed."""
    programs = {"nothing": "pass", "numpy": "import numpy", "disttorch": "import disttorch"}
    if importlib.util.find_spec("torch"):
        programs["torch"] = "import torch"
    times: dict[str, list[float]] = {name: [] for name in programs}
    for run in range(runs + 1):  # the first fills the page cache
        for name, program in programs.items():
            took = seconds([sys.executable, "-c", program])
            if run:
                times[name].append(took)
    median = {name: statistics.median(values) for name, values in times.items()}
    return {name: value - median["nothing"] for name, value in median.items() if name != "nothing"}


def launch_time(runs: int) -> float:
    """Median seconds from launch to exit of a 2-rank job that does one all_reduce."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "job.py")
        script.write_text(JOB)
        command = [sys.executable, "-m", "launcher", "--nproc-per-node", "2", str(script)]
        seconds(command)
        return statistics.median(seconds(command) for _ in range(runs))


def installed_size() -> int:
    """Bytes of the packages that ``pip install .[mpich]`` brings, pip itself aside."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        python = Path(folder, "bin", "python")
        subprocess.run(
            [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet",
             f"{ROOT}[mpich]"], check=True, stderr=subprocess.DEVNULL,
        )
        return sum(p.lstat().st_size for p in Path(folder).rglob("*") if p.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=7, help="counted runs of each (default 7)")
    parser.add_argument("--size", action="store_true", help="also install and add up the size")
    options = parser.parse_args()
    found = import_times(options.runs)
    for name, value in found.items():
        print(f"import {name:10s} {value:6.3f} s")
    if "torch" in found:
        print(f"disttorch / torch  {found['disttorch'] / found['torch']:5.2f}")
    print(f"2 ranks, one all_reduce, launch to exit {launch_time(options.runs):.2f} s")
    if options.size:
        print(f"installed size of .[mpich] {installed_size() / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
