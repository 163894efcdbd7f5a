"""Whole programs written for PyTorch give the same numbers with disttorch in its place."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytestmark = [pytest.mark.parity, pytest.mark.timeout(400)]

RUNNER = Path(__file__).with_name("program_runner.py")
NAMES = sorted(p.stem for p in (RUNNER.parent.parent / "programs").glob("*.py"))
TOLERANCE = {"float64": 1e-9, "float32": 1e-4}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Both sides' results, each from one process of its own, running at the same time."""
    folder = tmp_path_factory.mktemp("programs")
    sides = {"torch": [sys.executable], "disttorch": [sys.executable, "-m", "disttorch"]}
    running = {side: subprocess.Popen([*command, RUNNER, folder / side], text=True,
                                      stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                                      env={**os.environ, "OMP_NUM_THREADS": "1"})
               for side, command in sides.items()}
    found = {}
    for side, process in running.items():
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        name, file, found[side] = pickle.loads((folder / side).read_bytes())
        assert ("disttorch" in Path(file).parts) == (side == "disttorch")
    return found


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", NAMES)
def test_program(results, name, dtype):
    kind, want = results["torch"][name, dtype]
    assert kind == "ok", f"PyTorch itself:\n{want}"
    kind, got = results["disttorch"][name, dtype]
    assert kind == "ok", got
    assert len(got) == len(want) > 0
    rtol = TOLERANCE[dtype]
    for i, (a, b) in enumerate(zip(got, want)):
        if isinstance(b, str):
            assert a == b
            continue
        assert a.shape == b.shape and a.dtype == b.dtype, f"value {i}: {a!r} for {b!r}"
        size = np.abs(b[np.isfinite(b)]).max(initial=0.0) if b.dtype.kind in "fc" else 0
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * max(size, 1e-2),
                                   err_msg=f"value {i}")
