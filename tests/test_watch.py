"""The watch between the ranks of a job: real processes that end in every way."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from mpi_runner import clean_environment

from collectives import flight
from collectives.call import Call
from collectives.watch import hub as watch_hub
from collectives.watch import process as watch_module
from collectives.watch.process import LocalWatch, Watch
from collectives.work import CollectiveError, CollectiveTimeout, RankFailedError

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
        what = said.format(v=victim).partition(" after call")[0]
        assert any(what in reason for reason in record["reasons"])
        assert any(" in ending" in line for line in record["stacks"]["MainThread"])


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
        record = json.loads((tmp_path / "flight" / "rank1.json").read_text())
        assert any("gave up waiting for rank 1" in reason for reason in record["reasons"])
        assert any(f" in {at}" in line for line in record["stacks"]["MainThread"])


def test_stopped_rank_is_named_as_stopped(tmp_path):
    with started(tmp_path, "late: stopped", 2) as ranks:
        end = end_of(ranks[0])
        assert f"rank 1 does not answer: its process {ranks[1].pid} is stopped" in end.err


def test_stopped_rank_0_is_named_though_it_is_the_hub(tmp_path):
    with started(tmp_path, "late: hub stopped", 3) as ranks:
        for rank in ranks[1:]:
            assert f"rank 0 does not answer: its process {ranks[0].pid} is stopped" in end_of(rank).err


def test_absent_rank_learns_that_the_others_gave_up(tmp_path):
    ends = run(tmp_path, "late: comes later", 2)
    assert "CollectiveTimeout: barrier()" in ends[0].err
    assert "rank 0 gave up waiting for rank 1 in call 2 of this group" in last_line(ends[1])
    assert not (tmp_path / "went on").exists()  # nor does rank 0 itself make calls in that group


def test_child_of_a_killed_rank_does_not_keep_it_alive(tmp_path):
    ends = run(tmp_path, "forked", 2)
    assert "rank 1 died without a word" in last_line(ends[0])


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("how, said", WAYS)
def test_rank_that_is_a_child_of_multiprocessing(tmp_path, method, how, said):
    ends = run(tmp_path, f"{method} child ending: {how}", 2)
    assert said.format(v=1) in last_line(ends[0])
    if how == "exception":
        assert "boom on purpose" in ends[1].err


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
    apart = []
    for number in range(4):
        result = json.loads((tmp_path / f"result.{number}").read_text())
        offsets = {int(rank): offset for rank, offset in result["offsets"].items()}
        assert sorted(offsets) == [0, 1, 2, 3]
        apart += [abs(offset) for rank, offset in offsets.items() if rank != number]
        assert all("watch_worker.py:" in at for at in result["where"].values())
    # One machine has one clock: what is measured is the error. Single ones suffer from other load.
    assert sorted(apart)[len(apart) // 2] < 100_000, apart


# ---- two ranks in this process ----------------------------------------------------------------------


class Pair:
    """The watches of two ranks, both in this process, over the hub's real socket."""

    def __init__(self, secrets: Sequence[bytes] = (b"secret",) * 2, host: str | None = None) -> None:
        self.meeting = threading.Barrier(2)
        self.brought: dict[int, bytes] = {}
        self.address: dict = {}
        self.recorders = [flight.Recorder(), flight.Recorder()]
        with ThreadPoolExecutor(2) as pool:
            begun = [
                pool.submit(
                    Watch.start, rank, 2, partial(self.exchange, rank), recorder=self.recorders[rank],
                    secret=secrets[rank], host=host,
                )
                for rank in (0, 1)
            ]  # fmt: skip
        self.watches = [one.result() for one in begun if one.exception() is None]
        self.errors = [one.exception() for one in begun]

    def exchange(self, rank: int, mine: bytes) -> list[bytes]:
        self.brought[rank] = mine
        self.meeting.wait(10)
        everyone = [self.brought[0], self.brought[1]]
        self.meeting.wait(10)
        self.address = json.loads(everyone[0])
        return everyone

    def stranger(self) -> socket.socket:
        if "unix" in self.address:
            connection = socket.socket(socket.AF_UNIX)
            connection.connect("\0" + self.address["unix"])
            return connection
        return socket.create_connection(("127.0.0.1", self.address["port"]))

    def close(self) -> None:
        for watch in reversed(self.watches):  # rank 0 waits for the others
            watch.left()
            watch.close()

    def check(self) -> None:
        """Each can ask the other."""
        for watch in self.watches:
            answer = watch.ask([1 - watch.rank], 10.0)[1 - watch.rank]
            assert answer is not None and answer.pid == os.getpid()
            assert not watch.trouble


@pytest.fixture(params=["one node", "two nodes"])
def pair(request, monkeypatch):
    """`two nodes`: as seen by the ranks, which then connect through TCP."""
    host = None
    if request.param == "two nodes":
        host, ours, count = "127.0.0.1", watch_module.node(), itertools.count()
        monkeypatch.setattr(watch_module, "node", lambda: {**ours, "node": f"node {next(count)}"})
    made = Pair(host=host)
    assert made.errors == [None, None] and ("unix" in made.address) == (host is None)
    yield made
    made.close()


def test_strangers_are_dropped(pair, monkeypatch):
    monkeypatch.setattr(watch_hub, "GREETING", 0.2)  # for the one that says too little
    strangers = [pair.stranger() for _ in range(5)]
    strangers[0].sendall(os.urandom(1000))
    strangers[1].sendall(b"\xff\xff\xff\xff" + b"x" * 100)  # a frame of 4 GiB
    strangers[2].sendall(b"GET / HTTP/1.1\r\n\r\n")
    strangers[3].close()  # the last one says nothing, and stays
    pair.check()
    for stranger in strangers[:3]:
        stranger.settimeout(10)
        try:
            while stranger.recv(4096):
                pass
        except ConnectionResetError:
            pass
    pair.check()
    for stranger in strangers:
        stranger.close()


def test_another_secret_is_refused_with_advice():
    # Rank 0 does not know that the stranger was meant to be its rank 1: it just does not come.
    made = Pair(secrets=(b"secret", b"another"))
    assert made.errors[0] is None and isinstance(made.errors[1], CollectiveError)
    assert "rank 1 of 2 cannot join the job's watch" in str(made.errors[1])
    assert "DISTTORCH_JOB_SECRET" in str(made.errors[1])
    made.watches[0].close(linger=0)


def test_rank_that_talks_nonsense_is_dropped_and_named(pair):
    pair.watches[1]._link.socket.send(b"\x00\x00\x00\x02[]")
    call = Call("barrier")
    call.group, call.number = "world", 1
    with pytest.raises(RankFailedError, match="rank 1 died without a word") as caught:
        while True:
            pair.watches[0].look(call, [1])
    assert caught.value.culprit == 1


def test_more_news_than_a_stopped_rank_reads_is_dropped_not_waited_for(pair):
    # Rank 1's thread stops reading; rank 0 asks until its buffer would be full many times over.
    pair.check()
    hub = pair.watches[0]._hub
    peer = hub._peers[1]
    question = {"kind": "ask", "id": 1, "ranks": [], "from": 0, "what": "where", "group": "x" * 500_000}
    pair.watches[1]._hear = lambda message: stop.wait(20)
    stop = threading.Event()
    for _ in range(20):
        pair.watches[0]._send({**question, "ranks": [1]})
    assert pair.watches[0].ask([0], 10.0)[0] is not None
    deadline = time.monotonic() + 10
    while not peer.unsent and time.monotonic() < deadline:
        time.sleep(0.001)
    assert 0 < len(peer.unsent) < 6 << 20
    del pair.watches[1]._hear
    stop.set()


def test_watch_that_breaks_says_so(pair, capsys):
    pair.check()
    pair.watches[1]._hear = lambda message: message["no such key"]
    pair.watches[0].ask([1], 0.0)
    pair.watches[1]._thread.join(10)
    said = capsys.readouterr().err
    assert "[rank 1] the watch of this rank broke: KeyError: 'no such key'" in said
    assert not pair.watches[1].trouble


def test_null_watch_keeps_time_only():
    watch = Watch.start(0, 1, lambda mine: [mine], recorder=flight.Recorder(), secret=b"", timeout=30.0)
    call = Call("barrier")
    call.group, call.number = "world", 1
    watch.look(call, [])
    with watch.blocked(call):
        pass
    call.timeout = 0.0
    late = r"\(call 1 of group 'world'\) timed out after 0 s on rank 0"
    with pytest.raises(CollectiveTimeout, match=late):
        watch.look(call, [])


# ---- ranks that are threads -------------------------------------------------------------------------


def test_local_watch_says_the_same():
    first, second = LocalWatch.make([flight.Recorder(), flight.Recorder()], timeout=30.0)
    entered, leave = threading.Event(), threading.Event()

    def absent() -> None:
        second.thread = threading.get_ident()
        entered.set()
        leave.wait(20)

    thread = threading.Thread(target=absent)
    thread.start()
    entered.wait(10)
    call = Call("barrier")
    call.group, call.number, call.timeout = "world", 1, 0.0
    with pytest.raises(CollectiveTimeout) as caught:
        first.look(call, [1])
    assert caught.value.missing == [1]
    assert "rank 1 has not come; it has made no call yet; it is at test_watch.py:" in str(caught.value)
    assert " in absent" in str(caught.value)
    with pytest.raises(RankFailedError, match="rank 0 gave up waiting for rank 1 in call 1"):
        second.enter(call)
    leave.set()
    thread.join()
    second.failed(ValueError("boom"))
    call.group, call.number, call.timeout = "part", 1, None
    with pytest.raises(RankFailedError, match="rank 1 failed: ValueError: boom"):
        first.look(call, [1])
    first.look(call, [0])  # nobody waits for rank 1 here


def test_any_rank_will_do_as_long_as_one_is_there():
    watches = LocalWatch.make([flight.Recorder() for _ in range(3)])
    call = Call("recv")
    watches[1].left()
    watches[0].look(call, [])
    watches[2].left()
    with pytest.raises(RankFailedError, match="rank 1 left the job with status 0"):
        watches[0].look(call, [])
