"""The flight recorder and its reader: records of made-up jobs and of real failures."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from mpi_runner import clean_environment
from test_watch import end_of, run, started

from collectives import flight
from collectives.call import Call
from collectives.flight.reading import find, read, tell


def call(number: int, name: str = "all_reduce", group: str = "world", dtype: str = "float32") -> Call:
    made = Call(name, dtype, 4, (4,), "SUM" if name == "all_reduce" else "")
    made.group, made.number = group, number
    return made


def rank_of(rank: int, size: int, last: int, waiting: bool, name: str = "all_reduce") -> flight.Recorder:
    """A rank whose calls 1 to `last` are done, but for the last where it waits (for rank 1)."""
    recorder = flight.Recorder()
    recorder.arm(rank, size)
    recorder.groups["world"] = tuple(range(size))
    for number in range(1, last + 1):
        made = call(number, name if number == last else "all_reduce")
        recorder.begin(made)
        if number == last and waiting:
            recorder.waiting["world"] = (made, [1])
        else:
            recorder.end(made)
    return recorder


def test_ring_keeps_the_last_calls_and_those_under_way():
    recorder = flight.Recorder(3)
    old = call(1, group="other")
    recorder.begin(old)
    for number in range(1, 11):
        made = call(number)
        recorder.begin(made)
        recorder.end(made)
    assert [(c.group, c.number) for c in recorder.calls()] == [
        ("other", 1), ("world", 8), ("world", 9), ("world", 10),
    ]  # fmt: skip
    assert recorder.furthest() == {"world": 10, "other": 1}
    recorder.end(old, ValueError("boom"))
    assert old.error == "ValueError: boom" and recorder.last["other"] is old
    assert [c.number for c in recorder.calls()] == [8, 9, 10]


def test_snapshot_is_json_and_says_what_each_call_is():
    recorder = rank_of(0, 2, 3, waiting=True)
    failed = call(1, "barrier", "part")
    recorder.begin(failed)
    recorder.end(failed, "RankFailedError: rank 1 has gone")
    record = json.loads(json.dumps(recorder.snapshot(with_stacks=True)))
    assert (record["rank"], record["size"], record["pid"]) == (0, 2, os.getpid())
    assert [c["state"] for c in record["calls"]] == ["done", "done", "under way", "failed"]
    waiting = record["calls"][2]
    assert waiting["waiting_for"] == [1] and waiting["shape"] == [4] and waiting["op"] == "SUM"
    assert waiting["site"].startswith("test_flight.py:") and waiting["file"] == __file__
    assert record["reached"] == {"world": 3, "part": 1}
    main = record["stacks"]["MainThread"]
    assert any("in test_snapshot_is_json_and_says_what_each_call_is" in line for line in main)
    assert abs(record["wall_ns"] - time.time_ns()) < 60e9


@pytest.mark.parametrize("capacity", [0, -1])
def test_a_recorder_holds_something(capacity):
    with pytest.raises(ValueError, match=f"at least 1 call, got {capacity}"):
        flight.Recorder(capacity)


def test_threads_record_at_the_same_time():
    recorder = flight.Recorder(64)

    def work(group: str) -> None:
        for number in range(1, 2001):
            made = call(number, group=group)
            recorder.begin(made)
            recorder.end(made)

    threads = [threading.Thread(target=work, args=(f"group{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        json.dumps(recorder.snapshot())
    assert recorder.furthest() == {f"group{i}": 2000 for i in range(4)}
    assert not recorder.under_way and len(recorder.calls()) == 64


def test_dump_is_whole_and_keeps_all_reasons(tmp_path):
    recorder = rank_of(3, 4, 2, waiting=False)
    folder = tmp_path / "a" / "b"
    path = recorder.dump(folder, "first")
    assert recorder.dump(folder, "second") == path == str(folder / "rank3.json")
    assert json.loads(Path(path).read_text())["reasons"] == ["first", "second"]
    assert os.listdir(folder) == ["rank3.json"]
    assert recorder.dump() == ""  # nobody has said where


def test_record_that_cannot_be_written_is_said_and_no_error(tmp_path, capsys):
    recorder = rank_of(3, 4, 2, waiting=False)
    recorder.directory = str(tmp_path / "file" / "below")
    (tmp_path / "file").write_text("")
    flight.last_words(recorder, "a failure")
    assert "[rank 3] the flight record cannot be written" in capsys.readouterr().err


SIGNALLED = """
import os, signal, sys
if sys.argv[1] == "own": signal.signal(signal.SIGUSR2, lambda *_: print("mine", flush=True))
from collectives import flight
flight.recorder().arm(5, 8)
if sys.argv[1] != "none": os.kill(os.getpid(), signal.SIGUSR2)
print(signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL)
"""


@pytest.mark.parametrize(
    "how, directory, shown, written",
    [
        ("own", True, "mine\nFalse\n", []),
        ("ours", True, "False\n", ["rank5.json"]),
        ("none", False, "True\n", []),
    ],
)
def test_signal_writes_the_record_unless_it_is_the_users(tmp_path, how, directory, shown, written):
    env = clean_environment({"DISTTORCH_FLIGHT_DIR": str(tmp_path)} if directory else {})
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED, how], env=env, capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stdout) == (0, shown), done.stderr
    assert os.listdir(tmp_path) == written


# ---- reading ----------------------------------------------------------------------------------------


def records_of(tmp_path: Path, *recorders: flight.Recorder) -> Path:
    for recorder in recorders:
        recorder.dump(tmp_path, "a test")
    return tmp_path


def test_reader_names_the_rank_that_did_not_come(tmp_path):
    late = rank_of(1, 3, 4, waiting=False)
    records_of(tmp_path, rank_of(0, 3, 5, waiting=True), late, rank_of(2, 3, 5, waiting=True))
    finding = find(*read(tmp_path))
    (group,) = finding.groups
    assert group.furthest == {0: 5, 1: 4, 2: 5} and group.behind == [1] and not group.mismatches
    assert [(entry["rank"], entry["for"]) for entry in group.waiting] == [(0, [1]), (2, [1])]
    text = tell(finding)
    assert "ranks 0 and 2 came to call 5; rank 1 came to call 4." in text
    assert "MISSING: rank 1 did not come to the last call." in text
    assert "rank 0 waits in all_reduce(float32 [4], SUM) at test_flight.py:" in text
    assert "for rank 1." in text and "in test_reader_names_the_rank_that_did_not_come" in text


def test_reader_shows_calls_that_differ(tmp_path):
    records_of(
        tmp_path, rank_of(0, 2, 2, waiting=True, name="barrier"), rank_of(1, 2, 2, waiting=True)
    )
    (group,) = find(*read(tmp_path)).groups
    (text,) = group.mismatches
    assert text.startswith("call 2 differs: rank 0 made barrier(float32 [4]) at test_flight.py:")
    assert "; rank 1 made all_reduce(float32 [4], SUM) at test_flight.py:" in text


def test_reader_copes_with_torn_missing_and_foreign_files(tmp_path):
    records_of(tmp_path, rank_of(0, 5, 2, waiting=True))
    whole = (tmp_path / "rank0.json").read_text()
    (tmp_path / "rank1.json").write_text(whole[: len(whole) // 2])
    (tmp_path / "rank2.json").write_text('{"format": "something else"}')
    (tmp_path / "rank3.json").write_text(whole)
    (tmp_path / "rank4.json").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / ".rank7.tmp").write_text("")
    records, complaints = read(tmp_path)
    assert [record["rank"] for record in records] == [0]
    assert complaints == [
        "notes.txt is not named rank<R>.json and was left out",
        "rank1.json was left out: it is torn or no JSON at all",
        "rank2.json was left out: it is no 'disttorch flight record 1'",
        "rank3.json was left out: it says it is of rank 0",
        "rank4.json was left out: it is torn or no JSON at all",
    ]
    text = tell(find(records, complaints))
    assert "1 of 5 ranks left a record." in text and "No record of ranks 1, 2, 3 and 4" in text


def test_reader_sees_records_of_several_jobs(tmp_path):
    records_of(tmp_path, rank_of(0, 2, 2, waiting=False), rank_of(1, 4, 2, waiting=False))
    said = tell(find(*read(tmp_path)))
    assert "the records say the job has [2, 4] ranks: they are of several jobs" in said


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "collectives.flight", *arguments],
        env=clean_environment(), capture_output=True, text=True, timeout=30,
    )  # fmt: skip


def test_command_line(tmp_path):
    records_of(tmp_path, rank_of(0, 2, 2, waiting=True), rank_of(1, 2, 1, waiting=False))
    said = command(str(tmp_path), "--trace", str(tmp_path.parent / "trace.json"))
    assert said.returncode == 1 and "MISSING: rank 1" in said.stdout and not said.stderr
    assert json.loads((tmp_path.parent / "trace.json").read_text())["traceEvents"]
    as_json = json.loads(command(str(tmp_path), "--json").stdout)
    assert as_json["groups"][0]["behind"] == [1] and as_json["size"] == 2
    nothing = command(str(tmp_path / "nowhere"))
    assert nothing.returncode == 2 and "is no directory" in nothing.stderr
    assert "example:" in command("--help").stdout


def test_records_of_a_job_in_which_a_rank_was_killed(tmp_path):
    run(tmp_path, "ending: killed of 1", 3)
    finding = find(*read(tmp_path / "flight"))
    assert finding.lacking == [1] and finding.ranks == [0, 2]
    (group,) = finding.groups
    assert {entry["rank"]: entry["for"] for entry in group.waiting} == {0: [1], 2: [1]}
    text = tell(finding)
    assert "rank 0 waited in vain in barrier() at watch_worker.py:" in text
    assert "MISSING: rank 1 left no record" in text


def test_records_of_a_job_that_hangs_are_written_on_a_signal(tmp_path):
    with started(tmp_path, "late: patient", 2) as ranks:
        while not ((tmp_path / "world2.0").exists() and (tmp_path / "patient").exists()):
            time.sleep(0.01)
        for rank in ranks:
            rank.send_signal(signal.SIGUSR2)
        while len(list(tmp_path.glob("flight/rank?.json"))) < 2:
            time.sleep(0.01)
        (tmp_path / "let go").touch()
        assert [end_of(rank).status for rank in ranks] == [0, 0]
    (group,) = find(*read(tmp_path / "flight")).groups
    assert group.furthest == {0: 2, 1: 1} and group.behind == [1]
    assert [(entry["rank"], entry["for"]) for entry in group.waiting] == [(0, [1])]
