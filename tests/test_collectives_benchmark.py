"""What benchmarks/collectives.py does with its samples; the jobs themselves are run by hand."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent))
from benchmarks import _collectives_common as common
from benchmarks import collectives as bench

SAMPLES = {
    ("all_reduce", 1 << 20): {
        "disttorch": [1e-3, 9e-3, 2e-3],
        "gloo": [8e-3] * 3,
        "mpi4py (mpich)": [4e-3] * 3,
        "limit": [1e-3] * 3,
        "in cache": [5e-4] * 3,
    },
    ("broadcast", 8): {"disttorch": [5e-6], "gloo": [1e-3], "mpi4py (mpich)": [4e-6]},
}


def test_sizes():
    assert [bench.to_bytes(text) for text in ("8", "64K", "3M", "1G")] == [8, 65536, 3 << 20, 1 << 30]
    assert [bench.as_text(n) for n in (8, 65536, 3 << 20)] == ["8 B", "64 KiB", "3 MiB"]
    assert [common.elements(8, n) for n in (1, 2, 3, 4)] == [2, 2, 3, 4]


def test_busbw_as_nccl_tests_define_it():
    assert common.bus_factor("all_reduce", 4) == 1.5
    assert common.bus_factor("broadcast", 4) == 1
    assert common.bus_factor("all_gather", 4) == 0.75


def test_timer_takes_turns_and_counts_calls():
    calls = []
    timer = common.Timer(lambda: None, lambda seconds: seconds, seconds=0, repeat=3)
    found = timer.measure({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")})
    assert calls == ["a"] * 5 + ["b"] * 5 + ["a", "b", "b", "a", "a", "b"]
    assert {name: len(times) for name, times in found.items()} == {"a": 3, "b": 3}


def test_report(tmp_path, monkeypatch):
    rows = bench.figures(SAMPLES, 2)
    found = {(row["call"], row["library"]): row for row in rows}
    ours = found["all_reduce", "disttorch"]
    assert ours["us"] == pytest.approx(2000) and ours["least_us"] == pytest.approx(1000)
    assert ours["busbw_GB_s"] == pytest.approx((1 << 20) / 2e-3 / 1e9)
    text = bench.table(rows, {"gloo": "torch 9"}, {"1": 9e-6, "0": 6e-6}, 2, 0.5)
    line = next(line for line in text.splitlines() if line.strip().startswith("1 MiB"))
    assert line.split("|")[2].split() == ["4.00", "2.00", "0.50"]
    assert "gloo: torch 9" in text and "9.0 us, with DISTTORCH_CHECKS=0 6.0 us: +3.0 us" in text

    (tmp_path / "results").mkdir()
    monkeypatch.setattr(bench, "HERE", tmp_path)
    bench.save(rows, text, 2)
    names = sorted(path.name for path in (tmp_path / "results").iterdir())
    assert names == ["collectives.csv", "collectives.png", "collectives.txt"]
    with open(tmp_path / "results" / "collectives.csv") as file:
        assert len(list(csv.DictReader(file))) == len(rows) == 8


def test_a_failing_job_is_an_error():
    with pytest.raises(RuntimeError, match="ended with status 3"):
        bench.run([[sys.executable, "-c", "raise SystemExit(3)"]], [{}])


def test_wrong_options(monkeypatch, capsys):
    for arguments, message in (
        (["--calls", "all_reduce,sum"], "unknown calls sum; known are all_reduce"),
        (["--sizes", "8,many"], "--sizes 8,many: numbers with K, M or G"),
    ):
        monkeypatch.setattr(sys, "argv", ["collectives.py", *arguments])
        with pytest.raises(SystemExit):
            bench.arguments()
        assert message in capsys.readouterr().err
