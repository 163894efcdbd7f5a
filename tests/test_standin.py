"""The tests of GPU code (tests/gpu) without a GPU: under a stand-in for CuPy, kernels on the CPU.

Breaking a kernel, using a name that CuPy lacks, forgetting an event between two streams or reading a
value on the host inside a captured step fails here. See ``tests/cupy_standin``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cuda_host
import pytest

HERE = Path(__file__).parent
# What needs more than one process, NCCL or PyTorch on the GPU
LEFT_OUT = {"test_fsdp_on_gpu", "test_nccl_on_gpu", "test_two_ranks_on_gpu", "test_parity_on_gpu"}
FILES = sorted(p.stem for p in (HERE / "gpu").glob("test_*_on_gpu.py") if p.stem not in LEFT_OUT)


@pytest.mark.skipif(not cuda_host.available(), reason="needs g++ and an x86-64 processor")
@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", FILES)
def test_under_the_stand_in(name):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    paths = [str(HERE), str(HERE / "gpu"), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "cupy_standin.plugin", "-p", "no:cacheprovider",
         "--tb=short", "-rs", str(HERE / "gpu" / f"{name}.py")],
        cwd=HERE.parent, env=environment, capture_output=True, text=True)
    words = done.stdout + done.stderr
    assert done.returncode == 0, f"{name} under the stand-in for CuPy:\n{words[-8000:]}"
    assert " passed" in words and "no CUDA device" not in words, words[-2000:]
