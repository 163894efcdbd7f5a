"""What benchmarks/ddp.py does with its samples, and one tiny job of it; no time is asserted."""

from __future__ import annotations

import csv
import json
import socket
import sys
import types
from pathlib import Path

import pytest
from mpi_runner import run_ranks_of

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))
from benchmarks import _ddp_common as common  # noqa: E402
from benchmarks import _ddp_report as report  # noqa: E402
from benchmarks import ddp as bench  # noqa: E402

P = 1000.0  # bytes of parameters


def job(times: dict[str, float], batch: int = 128, others: float = 0.0, **more: float) -> dict:
    """What a worker writes: three samples of two steps of each mode."""
    rows = [
        {
            "mode": mode, "batch": batch // 2 if "strong" in mode else batch, "parameters": P,
            "samples": [
                {"seconds": [ms / 1e3, ms / 1e3], "sent": P, "cpu": ms / 1e3, "others": others}
            ] * 3,
            **(more if mode == "ddp" else {}),
        }
        for mode, ms in times.items()
    ]  # fmt: skip
    return {"version": "1", "rows": rows}


def rows_of(others: float = 0.0) -> list[dict]:
    samples: dict = {}
    versions: dict = {}
    two = {"alone": 8.0, "ddp": 10.0, "fsdp": 12.0, "ddp strong": 5.0}
    for library, factor in (("disttorch", 1.0), ("torch", 2.0)):
        bench.add(samples, versions, library, "mlp", 1, job({"alone": 8.0 * factor}))
        found = {mode: ms * factor for mode, ms in two.items()}
        bench.add(
            samples, versions, library, "mlp", 2, job(found, others=others, comm_ms=2.0, overlap=0.5)
        )
    return report.figures(samples)


def test_figures_and_table() -> None:
    rows = rows_of()
    ddp = next(r for r in rows if r["mode"] == "ddp" and r["library"] == "disttorch")
    assert ddp["ms"] == pytest.approx(10) and ddp["ratio"] == pytest.approx(0.5)
    assert ddp["over_alone"] == ddp["over_beside"] == pytest.approx(0.25)
    assert ddp["cpu_ms"] == pytest.approx(10)
    assert (ddp["sent_bytes"], ddp["theory_bytes"], ddp["overlap"]) == (P, P, 0.5)
    fsdp = next(r for r in rows if r["mode"] == "fsdp")
    assert fsdp["theory_bytes"] == 1.5 * P
    strong = next(r for r in rows if r["mode"] == "ddp strong")
    assert strong["over_alone"] is None  # another batch per rank
    text = report.table(rows, {"disttorch": "1", "torch": "2"}, (0.1, 0.2))
    assert "2 ranks" in text and "0.80 | 1.60" in text  # t(1)/t(2), weak and strong
    assert "at most 0.85 of torch's: 2 of 2" in text
    assert "*" not in text


def test_torch_may_be_absent() -> None:
    rows = [row for row in rows_of() if row["library"] == "disttorch"]
    for row in rows:
        row["ratio"] = None
    text = report.table(rows, {"disttorch": "1"}, (0.1, 0.2))
    assert "torch: not measured" in text and "at most" not in text


def test_disturbed_samples_do_not_count() -> None:
    calm = [{"seconds": [1.0], "others": 0.0}] * 3
    disturbed = [{"seconds": [9.0], "others": 0.5 + k} for k in range(9)]
    assert report.undisturbed(disturbed + calm) == (calm, True)
    assert report.undisturbed(disturbed) == (disturbed[:3], False)
    text = report.table(rows_of(others=1.0), {"disttorch": "1", "torch": "2"}, (3.0, 3.0))
    assert "10.00*" in text and "least disturbed" in text


def test_missed_targets_are_named() -> None:
    rows = rows_of()
    for row in rows:
        if row["mode"] == "fsdp" and row["ratio"]:
            row["ratio"] = 0.9
    (line,) = report.verdict(rows)
    assert line == "step time at most 0.85 of torch's: 1 of 2; not mlp fsdp at 2 (0.90)"


def test_files(tmp_path: Path) -> None:
    rows = rows_of()
    report.save(rows, "text", tmp_path / "results" / "ddp")
    names = sorted(path.name for path in (tmp_path / "results").iterdir())
    assert names == ["ddp.csv", "ddp.png", "ddp.txt"]
    with open(tmp_path / "results" / "ddp.csv") as file:
        assert len(list(csv.DictReader(file))) == len(rows) == 10


def test_worlds_and_volume() -> None:
    assert [bench.worlds(n) for n in (1, 2, 3, 4)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4]]
    assert common.volume("ddp strong", 100, 4) == 150 and common.volume("fsdp", 100, 4) == 225


@pytest.mark.skipif(not hasattr(socket, "TCP_INFO"), reason="no count of a socket's bytes here")
def test_bytes_of_sockets_are_counted() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as one,
        server.accept()[0] as other,
    ):
        before = common.bytes_sent_by_sockets()
        one.sendall(bytes(5000))
        other.sendall(bytes(300))
        received = 0
        while received < 5000:
            received += len(other.recv(5000))
        sent = common.bytes_sent_by_sockets() - before
    assert sent == 5300


def test_ledger_is_the_count_of_ours() -> None:
    ledger = {"all_reduce": {"sent_bytes": 5}, "broadcast": {"sent_bytes": 2}}
    assert common.bytes_sent("disttorch", types.SimpleNamespace(ledger=lambda: ledger)) == 7


def test_a_job_of_two_ranks(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    done = run_ranks_of(
        ROOT / "benchmarks" / "_ddp_worker.py", 2, "--library=disttorch", "--model=mlp", "--strong",
        "--repeat=1", "--most=1", "--seconds=0.01", f"--result={result}", timeout=100,
    )  # fmt: skip
    assert done.status == 0, done.output
    found = {row["mode"]: row for row in json.loads(result.read_text())["rows"]}
    assert list(found) == ["alone", "ddp", "fsdp", "ddp strong"]
    assert [row["batch"] for row in found.values()] == [128, 128, 128, 64]
    for mode, row in found.items():
        (sample,) = row["samples"]
        assert sample["sent"] == pytest.approx(common.volume(mode, row["parameters"], 2), rel=0.01)
        assert all(seconds > 0 for seconds in sample["seconds"])
    assert 0 <= found["ddp"]["overlap"] <= 1


def test_wrong_options(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    for arguments, message in (
        (["--models", "mlp,vgg"], "unknown models vgg; known are mlp, gpt128"),
        (["--via", "ssh"], "unknown ways to start ssh; known are mpi, spawn"),
        (["--ranks", "0"], "--ranks 0 is not at least 1"),
    ):
        monkeypatch.setattr(sys, "argv", ["ddp.py", *arguments])
        with pytest.raises(SystemExit):
            bench.arguments()
        assert message in capsys.readouterr().err
