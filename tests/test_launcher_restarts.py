"""disttorch-run --max-restarts and --elastic: a job that lost ranks is started again."""

import os
import signal

import pytest
from launcher_jobs import Launcher, wait_for
from test_launcher_nodes import Nodes, write

# Ranks listed in FAIL as START:RANK:HOW fail at that start; the others wait for their end.
SCRIPT = """
import os, signal, sys, time
rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
start = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
most = os.environ["TORCHELASTIC_MAX_RESTARTS"]
print(f"start {start} of {most}: {size} ranks", flush=True)
open(f"pid.{start}.{rank}", "w").write(str(os.getpid()))
faults = [fault.split(":") for fault in os.environ.get("FAIL", "").split()]
mine = [how for at, who, how in faults if (int(at), int(who)) == (start, rank)]
if mine == ["kill"]:
    os.kill(os.getpid(), signal.SIGKILL)
if mine:
    sys.exit(int(mine[0]))
if any(int(at) == start for at, _, _ in faults):
    time.sleep(100)
"""
KILLED = "was killed by SIGKILL"


def run(folder, *arguments, fail="", via="spawn"):
    write(folder, "job.py", SCRIPT)
    job = Launcher(folder, "--via", via, "--oversubscribe", "--grace", "0.5", *arguments, "job.py",
                   env={"FAIL": fail})
    status, out, err = job.finish()
    lines = [line.removeprefix("disttorch-run: ") for line in err.splitlines()]
    starts = {line.partition("] ")[2] or line for line in out.splitlines()}
    return status, starts, lines


@pytest.mark.parametrize("via", ["spawn", "mpi"])
def test_goes_on_with_the_ranks_that_remain(tmp_path, via):
    status, starts, lines = run(tmp_path, "-n", 3, "--elastic", fail="0:2:kill 1:0:5", via=via)
    assert status == 0
    assert "start 2 of 2: 1 ranks" in starts
    assert lines[1] == "starting again with 2 ranks: restart 1 of at most 2"
    assert lines[3] == "starting again with 1 rank: restart 2 of at most 2"
    assert lines[4] == "the job ended well with 1 rank after 2 restarts; before,"
    assert lines[5].startswith(f"  start 0, with 3 ranks: rank 2 of 3 {KILLED}")
    assert lines[6].startswith("  start 1, with 2 ranks: rank 0 of 2 failed with exit status 5")
    assert len(lines) == 7


def test_starts_as_many_again(tmp_path):
    fail = "0:0:kill 1:1:7"
    status, starts, lines = run(tmp_path, "-n", 2, "--max-restarts", 2, fail=fail)
    assert status == 0 and "start 2 of 2: 2 ranks" in starts
    assert [f"start {k}, with 2 ranks" in line for k, line in enumerate(lines[-2:])] == [True, True]


def test_gives_up_with_the_status_of_the_last_failure(tmp_path):
    fail = "0:0:kill 1:1:7"
    status, _, lines = run(tmp_path, "-n", 2, "--max_restarts=1", fail=fail)
    assert status == 7
    assert lines[-3:-1] == ["no more restarts: --max-restarts 1 is used up",
                            "the job failed with status 7 with 2 ranks after 1 restart; before,"]


def test_only_allowed_numbers_of_ranks(tmp_path):
    fail = "0:3:kill 1:0:kill"
    status, starts, lines = run(tmp_path, "-n", 4, "--elastic-sizes", "4,2", fail=fail)
    assert status == 137 and "start 1 of 1: 2 ranks" in starts
    assert "no more restarts: --max-restarts 1 is used up" in lines
    status, starts, lines = run(tmp_path, "-n", 3, "--min-ranks", "3", "--max-restarts", "5",
                                fail="0:1:kill")
    assert status == 137 and starts == {"start 0 of 5: 3 ranks"}
    assert lines[-1] == "no restart: 2 ranks of 3 would remain; allowed are 3"


@pytest.mark.parametrize(("fail", "expected"), [("0:0:2", 2), ("", 0)])
def test_no_restart_after_wrong_usage_or_a_good_end(tmp_path, fail, expected):
    status, starts, lines = run(tmp_path, "-n", 2, "--elastic", fail=fail)
    assert status == expected and starts == {"start 0 of 1: 2 ranks"}
    assert not any("again" in line for line in lines)


def test_the_time_limit_counts_all_starts_together(tmp_path):
    fail = "0:0:kill 1:7:none"
    status, starts, lines = run(tmp_path, "-n", 2, "--max-restarts", 5, "--timeout", "2.5", fail=fail)
    assert status == 124 and "start 1 of 5: 2 ranks" in starts
    assert sum("starting again" in line for line in lines) == 1


def test_a_signal_ends_it_for_good(tmp_path):
    write(tmp_path, "job.py", SCRIPT)
    job = Launcher(tmp_path, "--via", "spawn", "--oversubscribe", "-n", 2, "--elastic",
                   "--max-restarts", 9, "job.py", env={"FAIL": "0:1:kill 1:7:none"})
    wait_for(tmp_path, "pid.1.0")
    job.process.send_signal(signal.SIGTERM)
    status, _, err = job.finish()
    assert status == 128 + signal.SIGTERM and err.count("starting again") == 1


def test_two_nodes_start_again_together(tmp_path):
    write(tmp_path, "job.py", SCRIPT)
    os.environ["FAIL"] = "0:3:kill 1:0:7"
    try:
        nodes = Nodes(tmp_path, "--grace", "0.5", "--max-restarts", 2, "job.py")
        nodes.start(1)
        nodes.start(0)
        ends = nodes.finish()
    finally:
        del os.environ["FAIL"]
    for status, out, lines in ends:
        assert status == 0 and "start 2 of 2: 4 ranks" in out
        assert "rank 3 of 4 was killed" in lines[-2] and "rank 0 of 4 failed" in lines[-1]
