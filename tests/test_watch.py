"""The watch between the ranks of a job: real processes that end in every way."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from mpi_runner import clean_environment

WORKER = Path(__file__).with_name("watch_worker.py")


@dataclass
class Ended:
    status: int
    out: str
    err: str


@contextmanager
def started(folder: Path, scenario: str, size: int) -> Iterator[list[subprocess.Popen[str]]]:
    """The ranks of a job, all killed in the end."""
    ranks = [
        subprocess.Popen(
            [sys.executable, str(WORKER), scenario, str(rank), str(size), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=clean_environment({"DISTTORCH_FLIGHT_DIR": str(folder / "flight")}),
            start_new_session=True,
        )
        for rank in range(size)
    ]
    try:
        yield ranks
    finally:
        for rank in ranks:
            try:
                os.killpg(rank.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            rank.communicate()


def end_of(rank: subprocess.Popen[str]) -> Ended:
    out, err = rank.communicate(timeout=25)
    return Ended(rank.returncode, out, err)


def run(folder: Path, scenario: str, size: int, without: int | None = None) -> list[Ended | None]:
    with started(folder, scenario, size) as ranks:
        return [None if number == without else end_of(rank) for number, rank in enumerate(ranks)]


def last_line(end: Ended) -> str:
    """The sentence: the line of the traceback that has the exception."""
    lines = [line for line in end.err.splitlines() if "Error: " in line or "Timeout: " in line]
    assert lines, end.err
    return lines[-1]


WAYS = [
    ("exit 0", "rank {v} left the job with status 0 after call 1 of group 'world'"),
    ("exit 3", "rank {v} failed: it exits with status 3"),
    ("exception", "rank {v} failed: ValueError: boom on purpose at watch_worker.py:"),
    ("killed", "rank {v} died without a word"),
]


@pytest.mark.parametrize("how, said", WAYS)
@pytest.mark.parametrize("size, victim", [(2, 1), (2, 0), (4, 2)])
def test_end_of_a_rank_is_named_on_all_others(tmp_path, how, said, size, victim):
    ends = run(tmp_path, f"ending: {how} of {victim}", size)
    for number, end in enumerate(ends):
        if number == victim:
            continue
        line = last_line(end)
        assert end.status == 1 and "ended well" not in end.out
        assert "RankFailedError: barrier() at watch_worker.py:" in line
        assert f"(call 2 of group 'world') cannot complete on rank {number}: " in line
        assert said.format(v=victim) in line, line
        seconds = json.loads((tmp_path / f"noticed.{number}").read_text())
        assert seconds < 2.0, f"rank {number} noticed after {seconds} s"
        record = json.loads((tmp_path / "flight" / f"rank{number}.json").read_text())
        assert any(said.format(v=victim) in reason for reason in record["reasons"])


def test_first_failure_is_to_blame_for_those_that_follow(tmp_path):
    ends = run(tmp_path, "chain", 4)
    for number in (0, 2, 3):
        assert "rank 1 died without a word" in last_line(ends[number])
    assert "rank 2, which this rank waits for, ended because of that" in last_line(ends[3])


def test_ranks_that_leave_after_their_part_disturb_nobody(tmp_path):
    for end in run(tmp_path, "well", 3):
        assert (end.status, end.out, end.err) == (0, "ended well\n", "")


@pytest.mark.parametrize("how, at", [("sleep", "in_my_sleep"), ("busy", "busy")])
def test_rank_that_does_not_come_is_named_with_its_stack(tmp_path, how, at):
    with started(tmp_path, f"late: {how}", 3) as ranks:
        for number in (0, 2):
            end = end_of(ranks[number])
            text = end.err
            assert f"timed out after 0.5 s on rank {number}: rank 1 has not come" in text or (
                f"on rank {number}: rank {2 - number} failed: CollectiveTimeout" in text
            )
            assert "its last call was barrier() at watch_worker.py:" in text
            assert f" in {at}" in text
        # The stack goes down to the line itself, with the frames above it.
        first = WORKER.read_text().splitlines().index(f"def {at}() -> None:") + 1
        assert re.search(rf"watch_worker\.py:({first + 1}|{first + 2}) in {at}\n", text)
        assert "in late" in text and "in main" in text


def test_stopped_rank_is_named_as_stopped(tmp_path):
    with started(tmp_path, "late: stopped", 2) as ranks:
        end = end_of(ranks[0])
        assert f"rank 1 does not answer: its process {ranks[1].pid} is stopped" in end.err


def test_absent_rank_learns_that_the_others_gave_up(tmp_path):
    ends = run(tmp_path, "late: comes later", 2)
    assert "CollectiveTimeout: barrier()" in ends[0].err
    assert "rank 0 gave up waiting for rank 1 in call 2 of this group" in last_line(ends[1])
    assert not (tmp_path / "went on").exists()  # nor does rank 0 itself make calls in that group


def test_child_of_a_killed_rank_does_not_keep_it_alive(tmp_path):
    ends = run(tmp_path, "forked", 2)
    assert "rank 1 died without a word" in last_line(ends[0])


@pytest.mark.parametrize(
    "how, said",
    [
        ("exit 0", "rank 1 left the job with status 0 after call 1"),
        ("exception", "rank 1 failed: ValueError"),
        ("killed", "rank 1 died without a word"),
        ("never", "timed out after 0.5 s on rank 0: rank 1 has not come"),
    ],
)
def test_rank_inside_a_native_call_is_ended_with_the_sentence(tmp_path, how, said):
    with started(tmp_path, f"blocked: {how}", 2) as ranks:
        end = end_of(ranks[0])
    assert end.status == 1
    assert "[rank 0] all_reduce(float32 [4], SUM) at watch_worker.py:" in end.err
    assert said in end.err
    assert (tmp_path / "flight" / "rank0.json").exists()


def test_clocks_questions_and_start(tmp_path):
    run(tmp_path, "clocks", 4)
    for number in range(4):
        result = json.loads((tmp_path / f"result.{number}").read_text())
        offsets = {int(rank): offset for rank, offset in result["offsets"].items()}
        assert sorted(offsets) == [0, 1, 2, 3]
        assert all(abs(offset) < 100_000 for offset in offsets.values()), offsets
        assert all("watch_worker.py:" in at for at in result["where"].values())
