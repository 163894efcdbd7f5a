"""The tests of GPU code (tests/gpu) without a GPU: under a stand-in for CuPy, kernels on the CPU.

Breaking a kernel, using a name that CuPy lacks, forgetting an event between two streams or reading a
value on the host inside a captured step fails here. See ``tests/cupy_standin``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cuda_host
import pytest

HERE = Path(__file__).parent
# What needs more than one process, or PyTorch on the GPU
LEFT_OUT = {"test_fsdp_on_gpu", "test_two_ranks_on_gpu", "test_parity_on_gpu"}
FILES = sorted(p.stem for p in (HERE / "gpu").glob("test_*_on_gpu.py") if p.stem not in LEFT_OUT)


@pytest.fixture(scope="module")
def runs(request):
    """The files that are asked for, as many at once as there are processors: most of a first run is
    compiling."""
    names = [item.callspec.params["name"] for item in request.session.items
             if getattr(item, "originalname", "") == "test_under_the_stand_in"]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        started = {name: pool.submit(run, name) for name in names}
        yield started
        for future in started.values():
            future.cancel()


def run(name: str) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    paths = [str(HERE), str(HERE / "gpu"), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "cupy_standin.plugin", "-p", "no:cacheprovider",
         "--tb=short", "-rs", str(HERE / "gpu" / f"{name}.py")],
        cwd=HERE.parent, env=environment, capture_output=True, text=True)


@pytest.mark.skipif(not cuda_host.available(), reason="needs g++ and an x86-64 processor")
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", FILES)
def test_under_the_stand_in(name, runs):
    done = runs[name].result()
    words = done.stdout + done.stderr
    assert done.returncode == 0, f"{name} under the stand-in for CuPy:\n{words[-8000:]}"
    assert " passed" in words and "no CUDA device" not in words, words[-2000:]
