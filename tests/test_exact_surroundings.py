"""What the bits depend on besides the program is noticed: processors, libraries, threads."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from mpi_runner import run_command

import disttorch as torch
from disttorch.backend import blas
from disttorch.distributed.exact import differences, fingerprint, surroundings

WORKER = Path(__file__).parent / "exact_other_processor.py"


def on_two_processors(*arguments):
    command = [
        sys.executable, "-m", "launcher", "--via", "spawn", "-n", "2", "--oversubscribe",
        str(WORKER), *arguments,
    ]  # fmt: skip
    job = run_command(command, timeout=60)
    assert job.status == 0 and not job.timed_out, job.output[-4000:]
    return job.output


needs_openblas = pytest.mark.skipif(
    not any("Haswell" in lib.describe() or "SkylakeX" in lib.describe() for lib in blas.loaded()),
    reason="needs OpenBLAS on an x86-64 processor that has more kernels than one",
)


@needs_openblas
def test_ranks_on_other_processors_are_refused():
    output = on_two_processors()
    found = re.findall(r"rank (\d): exact: ranks 0 and 1 would not compute the same bits: (.*)", output)
    assert [rank for rank, _ in sorted(found)] == ["0", "1"], output
    for _, told in found:
        assert re.search(r"blas: openblas .* on rank 0, openblas .*Nehalem.* on rank 1", told)
        assert re.search(r"probe: (\w+) on rank 0, (?!\1)\w+ on rank 1", told)


@needs_openblas
def test_ranks_on_other_processors_may_go_on():
    output = on_two_processors("lenient")
    assert output.count("UserWarning: exact: ranks 0 and 1 differ") == 1
    first, second = re.findall(r"goes on; probe (\w+)", output)
    assert first != second


class Stubborn:
    """A library that cannot be told its threads."""

    kind, path, threads = "mkl", "/lib/libmkl_rt.so", None

    def set_threads(self, count):
        return False


def test_libraries_that_cannot_be_told(monkeypatch):
    monkeypatch.delenv("MKL_CBWR", raising=False)
    monkeypatch.setattr(blas, "loaded", lambda: [Stubborn()])
    with pytest.warns(UserWarning) as told:
        surroundings.fix_threads(1)
    assert [re.search(r"cannot be told to use 1|set MKL_CBWR", str(w.message))[0] for w in told] == [
        "cannot be told to use 1", "set MKL_CBWR",
    ]  # fmt: skip
    monkeypatch.setattr(blas, "loaded", lambda: [])
    with pytest.warns(UserWarning, match="cannot be fixed, since its library was not found"):
        surroundings.fix_threads(1)


def test_threads_are_part_of_the_fingerprint():
    for library in blas.loaded():
        if not library.set_threads(2):
            pytest.skip("this BLAS has one thread only")
    if not blas.loaded():
        pytest.skip("no BLAS is found in this process")
    two = fingerprint()
    surroundings.fix_threads(1)
    one = fingerprint()
    assert (one["blas threads"], two["blas threads"]) == ("1", "2")
    assert surroundings.decisive(differences(one, two))
    assert not surroundings.decisive(differences(one, one | {"cpu": "another name"}))
    assert one == fingerprint()


def test_only_numpys_own_blas_counts():
    pytest.importorskip("scipy.linalg.cython_blas")
    if len(blas.loaded()) < 2:
        pytest.skip("SciPy has no BLAS of its own here")
    (library,) = blas.of_numpy()
    assert "numpy" in library.path and "scipy.libs" not in library.path
    surroundings.fix_threads(1)
    assert [each.threads for each in blas.loaded()] == [1] * len(blas.loaded())
    assert fingerprint()["blas"].count("MAX_THREADS") == 1


def test_a_gpu_is_warned_of():
    try:
        with pytest.warns(UserWarning, match="cuda:0 use_deterministic_algorithms"):
            surroundings.prepare_gpu("cuda:0")
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
