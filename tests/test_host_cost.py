"""benchmarks/host_cost.py: a training step over a CuPy without effect, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "host_cost.py"


def test_launches_of_a_step_are_counted():
    run = subprocess.run([sys.executable, SCRIPT, "gpt2", "--count"], capture_output=True, text=True,
                         timeout=120)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    found = {name: int(n) for n, name in (line.split(maxsplit=1) for line in lines)}
    assert found["launch cublasLtMatmul"] == 48  # 4 products with a bias in each of 12 blocks
    # weights to bfloat16, each once a step (the head's weight is the table's)
    assert found["launch elementwise RESULT=bf16_t NDIM=1 FIRST=float EXPR=a"] < 200
    assert found["launches"] == sum(n for name, n in found.items() if name.startswith("launch "))
    # more would be a step back in speed: PyTorch has 2,003 kernels in this step
    assert found["launches"] < 1000
