"""disttorch-run --via spawn: ranks started without MPI; whose failure counts; nothing survives."""

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
from launcher_jobs import Launcher, run_job, run_on_terminal, wait_for

from launcher.child import children_of
from launcher.cli import job_from
from launcher.options import make_parser
from launcher.report import rank_list

SPAWN = ("--via", "spawn", "--oversubscribe")
SECRET = "DISTTORCH_JOB_SECRET"
# Every rank writes its environment to a file, and is gone only when all have.
SHOW_ENVIRONMENT = """
import json, os, sys, time
rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
with open(f"part{rank}", "w") as file:
    json.dump(dict(os.environ) | {"modules": list(sys.modules)}, file)
os.rename(f"part{rank}", f"seen{rank}.json")
while not all(os.path.exists(f"seen{r}.json") for r in range(size)): time.sleep(0.01)
if sys.argv[1:]: time.sleep(1000)
"""
# Rank 1 ends in the way named by the first argument; the others wait for ever.
FAIL = """
import os, signal, sys, time
open("up" + os.environ["RANK"], "w").close()
while not (os.path.exists("up0") and os.path.exists("up1")): time.sleep(0.01)
if os.environ["RANK"] != "1": time.sleep(1000)
how = sys.argv[1]
def die():
    if how == "raise": raise ValueError("boom")
    if how == "exit": sys.exit(3)
    if how == "message": sys.exit("no data here")
    if how == "_exit": os._exit(5)
    if how == "kill": os.kill(os.getpid(), signal.SIGKILL)
    if how == "segfault": os.kill(os.getpid(), signal.SIGSEGV)
die()
"""
# Each rank starts processes that try to get away, says where it is, and waits.
WAIT_FOREVER = """
import os, subprocess, time
rank = os.environ["RANK"]
subprocess.Popen(["sleep", "1000"], start_new_session=True)
os.system("sleep 1000 &")
with open(f"part{rank}", "w") as file: file.write(str(os.getpid()))
os.rename(f"part{rank}", f"up{rank}")
time.sleep(1000)
"""


def write(folder, name, text):
    (folder / name).write_text(text)
    return name


def start_waiting(folder, *arguments):
    """A job of two ranks that wait; returns it and the ranks' process ids."""
    write(folder, "wait.py", WAIT_FOREVER)
    job = Launcher(folder, "-n", 2, *SPAWN, "--grace", "0.5", *arguments, "wait.py")
    wait_for(folder, "up0", "up1")
    while sum(command.startswith("sleep") for command in job.pids().values()) < 4:
        time.sleep(0.01)  # the shells have yet to become what they start
    return job, [int((folder / f"up{rank}").read_text()) for rank in range(2)]


def parent_of(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


# -- what ranks get --------------------------------------------------------------------------------


def test_ranks_get_torchruns_environment_and_one_secret(tmp_path):
    write(tmp_path, "show.py", SHOW_ENVIRONMENT)
    status, out, err = run_job(tmp_path, "-n", 3, *SPAWN, "-v", "--role", "trainer", "--rdzv-id",
                               "job7", "show.py", env={"PMI_RANK": "5", "WORLD_SIZE": "9"})
    assert (status, out) == (0, "")
    seen = [json.loads((tmp_path / f"seen{rank}.json").read_text()) for rank in range(3)]
    for rank, env in enumerate(seen):
        own = ("RANK", "LOCAL_RANK", "ROLE_RANK")
        assert [env[name] for name in own] == [str(rank)] * 3
        sizes = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "ROLE_WORLD_SIZE")
        assert [env[name] for name in sizes] == ["3"] * 3
        assert [env["NODE_RANK"], env["GROUP_RANK"], env["GROUP_WORLD_SIZE"]] == ["0", "0", "1"]
        assert (env["MASTER_ADDR"], env["DISTTORCH_VIA"]) == ("127.0.0.1", "spawn")
        assert (env["DISTTORCH_RUN_ID"], env["TORCHELASTIC_RUN_ID"]) == ("job7", "job7")
        assert env["ROLE_NAME"] == "trainer"
        assert env["OMP_NUM_THREADS"] == str(max(1, len(os.sched_getaffinity(0)) // 3))
        assert not [name for name in env if name.startswith("PMI_")]
        assert not [m for m in env["modules"] if m.split(".")[0] in ("mpi4py", "launcher", "numpy")]
    assert len({env["MASTER_PORT"] for env in seen}) == 1
    (secret,) = {env[SECRET] for env in seen}
    assert len(secret) == 64 and secret not in err


@pytest.mark.parametrize("via", ["spawn", "mpi"])
def test_the_secret_is_the_users_and_in_no_command_line(tmp_path, via):
    write(tmp_path, "show.py", SHOW_ENVIRONMENT)
    (tmp_path / "secret").write_text("the secret of the file\n")
    for more, secret in (([], "the user's own secret"),
                         (["--secret-file", "secret"], "the secret of the file")):
        job = Launcher(tmp_path, "-n", 2, "--via", via, "-v", *more, "show.py", "wait",
                       env={SECRET: "the user's own secret"})
        wait_for(tmp_path, "seen0.json", "seen1.json")
        commands = job.pids().values()
        assert len(commands) >= 7 and not any(secret in command for command in commands)
        job.process.kill()
        _, out, err = job.finish()
        for rank in range(2):
            seen = tmp_path / f"seen{rank}.json"
            assert json.loads(seen.read_text())[SECRET] == secret
            seen.unlink()
        assert secret not in out + err


def test_ranks_meet_at_the_masters_port(tmp_path):
    write(
        tmp_path,
        "meet.py",
        """
import os, socket, time
rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
if rank == 0:
    with socket.create_server(place) as server:
        got = []
        for _ in range(1, size):
            link, _ = server.accept()
            with link: got.append(int(link.recv(9)))
    print("sum", sum(got))
else:
    while True:
        try:
            with socket.create_connection(place) as link: link.sendall(str(rank).encode())
            break
        except ConnectionRefusedError: time.sleep(0.01)
""",
    )
    assert run_job(tmp_path, "-n", 4, *SPAWN, "--no-prefix", "meet.py") == (0, "sum 6\n", "")


def test_one_node_listens_on_no_port(tmp_path):
    job, _ = start_waiting(tmp_path)
    inodes = set()
    for pid in job.pids():
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            if found := re.fullmatch(r"socket:\[(\d+)\]", os.readlink(fd)):
                inodes.add(found[1])
    assert inodes  # the links between launcher and watchers
    for table in ("tcp", "tcp6", "udp", "udp6"):
        lines = Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        assert not inodes & {line.split()[9] for line in lines}
    job.process.terminate()
    assert job.finish()[0] == 128 + signal.SIGTERM


def test_modules_programs_and_stdin(tmp_path):
    write(tmp_path, "tool.py", "import sys; print(__name__, sys.argv[1:], sys.stdin.read())")
    job = Launcher(tmp_path, "-n", 2, *SPAWN, "-m", "tool", "x", stdin=-1)
    status, out, err = job.finish(b"text")
    assert (status, err) == (0, "")
    assert sorted(out.splitlines()) == ["[rank 0] __main__ ['x'] text", "[rank 1] __main__ ['x'] "]
    status, out, _ = run_job(tmp_path, "-n", 2, *SPAWN, "--no-python", "sh", "-c", "echo $RANK")
    assert (status, sorted(out.splitlines())) == (0, ["[rank 0] 0", "[rank 1] 1"])


def test_tune_starts_the_module_of_the_collectives():
    def plan_of(*arguments):
        plan = job_from(make_parser().parse_args([*SPAWN, *arguments])).plan
        return plan.size, plan.argv[-plan.argv[::-1].index("module") - 1 :]

    cores = len(os.sched_getaffinity(0))
    assert plan_of("--tune") == (cores, ["module", "collectives.tune"])
    tuned = (2, ["module", "collectives.tune", "--out", "table.json"])
    assert plan_of("-n", "2", "--tune", "--out", "table.json") == tuned
    assert plan_of("--tune", "--out", "table.json", "-n", "2") == tuned


# -- whose failure counts --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "status", "words", "said"),
    [
        ("raise", 1, "failed with exit status 1", "ValueError: boom"),
        ("exit", 3, "failed with exit status 3", None),
        ("message", 1, "failed with exit status 1", "no data here"),
        ("_exit", 5, "failed with exit status 5", None),
        ("kill", 137, "killed by SIGKILL (signal 9)", None),
        ("segfault", 139, "killed by SIGSEGV (signal 11)", " in die"),
    ],
)
def test_a_rank_that_fails_ends_the_job(tmp_path, how, status, words, said):
    write(tmp_path, "fail.py", FAIL)
    got, out, err = run_job(tmp_path, "-n", 2, *SPAWN, "fail.py", how)
    *before, last = err.splitlines()
    assert (got, out) == (status, "")
    assert re.fullmatch(r"disttorch-run: rank 1 of 2 .* on host \S+; 1 other rank was stopped", last)
    assert words in last
    assert all(line.startswith("[rank 1] ") for line in before), err
    assert err.count(said) == 1 if said else not before
    assert err.count("Traceback") == (how == "raise") and "child.py" not in err


@pytest.mark.parametrize(
    ("consequence", "cause", "status"),
    [
        ("raise RankFailedError('rank 2 left')", "raise ValueError('the cause')", 1),
        ("raise KeyError('mine') from RankFailedError('rank 2 left')", "sys.exit(4)", 4),
        ("raise ExceptionGroup('two', [RankFailedError('rank 2 left')] * 2)", "os._exit(6)", 6),
        ("raise RankFailedError('rank 2 left')", "os.kill(os.getpid(), 9)", 137),
    ],
)
def test_the_cause_is_named_although_its_consequences_come_first(
    tmp_path, consequence, cause, status
):
    write(
        tmp_path,
        "chain.py",
        f"""
import os, sys, time
from collectives.work import RankFailedError
rank = os.environ["RANK"]
open("up" + rank, "w").close()
if rank != "2":
    while not os.path.exists("up2"): time.sleep(0.01)
    {consequence}
while not (os.path.exists("failed0") and os.path.exists("failed1")): time.sleep(0.01)
{cause}
""",
    )
    # The exit functions of a failing rank run after it has told of its failure.
    write(tmp_path, "sitecustomize.py", "import atexit, os\natexit.register(lambda: 'RANK' in "
          "os.environ and open('failed' + os.environ['RANK'], 'w').close())\n")
    env = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).parent.parent}"}
    got, _, err = run_job(tmp_path, "-n", 3, *SPAWN, "chain.py", env=env)
    last = err.splitlines()[-1]
    assert got == status, err
    assert last.startswith("disttorch-run: rank 2 of 3 ")
    assert last.endswith("; ranks 0 and 1 failed too")
    assert "rank 2 left" not in err
    assert ("ValueError: the cause" in err) == ("ValueError" in cause)


def test_where_all_failed_because_of_another_the_first_is_named(tmp_path):
    write(
        tmp_path,
        "left.py",
        """
import os, time
from collectives.work import RankFailedError
if os.environ["RANK"] == "1": raise RankFailedError("rank 0 left")
""",
    )
    status, _, err = run_job(tmp_path, "-n", 2, *SPAWN, "left.py")
    assert status == 1
    assert "RankFailedError: rank 0 left" in err.splitlines()[-2]
    assert "rank 1 of 2 failed with exit status 1" in err.splitlines()[-1]


def test_an_error_while_a_failed_rank_was_handled_and_done_with_is_a_cause(tmp_path):
    write(
        tmp_path,
        "handled.py",
        """
from collectives.work import RankFailedError
try: raise RankFailedError("rank 1 left")
except RankFailedError: pass
raise ValueError("another matter")
""",
    )
    from launcher.child import is_consequence

    with pytest.raises(ValueError) as caught:
        exec((tmp_path / "handled.py").read_text(), {})
    assert not is_consequence(caught.value)


def test_a_rank_that_cannot_start_is_named(tmp_path):
    write(tmp_path, "ok.py", "pass")
    status, _, err = run_job(tmp_path, "-n", 2, *SPAWN, "--env", "PYTHONHOME=/nonexistent", "ok.py")
    assert status == 1
    assert "Fatal Python error" in err
    assert re.search(r"rank [01] of 2 could not be started: its process ended with exit status 1",
                     err.splitlines()[-1])


def test_flight_records_are_pointed_at_after_a_failure(tmp_path):
    write(
        tmp_path,
        "record.py",
        """
import os, sys
folder, rank = os.environ["DISTTORCH_FLIGHT_DIR"], os.environ["RANK"]
assert os.path.isabs(folder)
if "write" in sys.argv: open(f"{folder}/rank{rank}.json", "w").close()
if "fail" in sys.argv:
    wrote = "wrote" + str("write" in sys.argv)
    open(wrote + rank, "w").close()
    while not (os.path.exists(wrote + "0") and os.path.exists(wrote + "1")): pass
    sys.exit(3)
""",
    )
    arguments = ["-n", 2, *SPAWN, "--flight-dir", "deep/flight", "record.py"]
    assert run_job(tmp_path, *arguments, "write") == (0, "", "")
    for record in (tmp_path / "deep" / "flight").iterdir():
        os.utime(record, (1, 1))  # of another job, long ago
    status, _, err = run_job(tmp_path, *arguments, "fail")
    assert status == 3 and "flight" not in err
    status, _, err = run_job(tmp_path, *arguments, "fail", "write")
    folder = tmp_path / "deep" / "flight"
    assert status == 3
    assert "failed with exit status 3" in err.splitlines()[-2]
    assert err.splitlines()[-1] == (
        f"disttorch-run: flight records of 2 ranks are in {folder}: "
        f"python -m collectives.flight {folder}"
    )


def test_being_asked_for_a_flight_record_does_not_end_a_rank_that_has_none(tmp_path):
    write(
        tmp_path,
        "save.py",
        """
import os, signal, sys, time
def save(*_):
    open("saved", "w").close()
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
open("up" + os.environ["RANK"], "w").close()
while not (os.path.exists("up0") and os.path.exists("up1")): time.sleep(0.01)
if os.environ["RANK"] == "1": sys.exit(3)
time.sleep(1000)
""",
    )
    status, _, err = run_job(tmp_path, "-n", 2, *SPAWN, "--flight-dir", "flight", "save.py")
    assert (status, err.count("\n")) == (3, 1)
    assert (tmp_path / "saved").exists()


def test_long_lists_of_ranks_are_cut_short():
    assert rank_list([3]) == "rank 3"
    assert rank_list(range(9)) == "ranks 0, 1, 2, 3, 4, 5, 6, 7 and 8"
    assert rank_list(range(100)) == "ranks 0, 1, 2, 3, 4, 5, 6, 7 and 92 more"


# -- with collectives ------------------------------------------------------------------------------

# Rank 1 ends in the way named by the first argument; the others wait for it in a collective.
COLLECTIVE = """
import os, sys
import numpy as np
import collectives
group = collectives.world()
assert not collectives.started_by_mpi() and "mpi4py" not in sys.modules
data = np.full(1000, group.rank + 1.0)
group.all_reduce(data)
assert (data == 6.0).all(), data
if group.rank == 1:
    if sys.argv[1] == "raise": raise ValueError("boom")
    if sys.argv[1] == "exit0": sys.exit(0)
    if sys.argv[1] == "kill": os.kill(os.getpid(), 9)
group.all_reduce(data)
assert (data == 18.0).all(), data
print("done")
"""


@pytest.mark.parametrize(
    ("how", "status", "sentence"),
    [
        ("well", 0, None),
        ("raise", 1, "rank 1 of 3 failed with exit status 1 on host"),
        ("exit0", 1, "rank [02] of 3 failed with exit status 1 .*; rank 1 had ended with status 0"),
        ("kill", 137, r"rank 1 of 3 was killed by SIGKILL \(signal 9\)"),
    ],
)
def test_ranks_work_together_and_name_who_left_them(tmp_path, how, status, sentence):
    write(tmp_path, "work.py", COLLECTIVE)
    got, out, err = run_job(tmp_path, "-n", 3, *SPAWN, "--flight-dir", "flight", "work.py", how)
    lines = err.splitlines()
    assert got == status, err
    if how == "well":
        assert sorted(out.splitlines()) == [f"[rank {rank}] done" for rank in range(3)]
        assert err == ""
        return
    assert out == ""
    assert re.search(sentence, lines[-2])
    assert re.search(r"flight records of . ranks are in .*/flight: python -m", lines[-1])
    records = {path.name for path in (tmp_path / "flight").iterdir()}
    assert records >= {"rank0.json", "rank2.json"}  # those that waited
    if how == "raise":
        assert lines[-3] == "[rank 1] ValueError: boom"


# -- nothing survives ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGKILL"])
def test_a_signal_to_the_launcher_ends_every_process(tmp_path, name):
    job, ranks = start_waiting(tmp_path)
    before = job.pids()
    assert set(ranks) < set(before)
    number = getattr(signal, name)
    job.process.send_signal(number)
    status, _, err = job.finish()  # checks for survivors
    assert not any(os.path.exists(f"/proc/{pid}/exe") for pid in before)
    if name == "SIGKILL":
        assert status == -9
    else:
        assert status == 128 + number
        assert err.splitlines()[-1].endswith(f"the job was stopped by {name} (signal {int(number)})")
        assert "Traceback" not in err


@pytest.mark.parametrize("victim", ["rank", "watcher", "front", "all fronts"])
def test_the_death_of_any_link_ends_every_process(tmp_path, victim):
    job, ranks = start_waiting(tmp_path)
    watcher = parent_of(ranks[1])
    front = parent_of(watcher)
    assert parent_of(front) == job.process.pid
    victims = {"rank": [ranks[1]], "watcher": [watcher], "front": [front],
               "all fronts": children_of(job.process.pid)}[victim]
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    status, _, err = job.finish()
    words = "was killed by SIGKILL (signal 9)" if victim == "rank" else "was lost: the process that"
    which = "[01]" if victim == "all fronts" else "1"
    assert status == 137
    assert re.match(rf"disttorch-run: rank {which} of 2 {re.escape(words)}", err.splitlines()[-1])


def test_the_second_interrupt_kills_at_once(tmp_path):
    write(
        tmp_path,
        "stubborn.py",
        """
import os, signal, time
signal.signal(signal.SIGINT, lambda *_: open("asked" + os.environ["RANK"], "w").close())
open("up" + os.environ["RANK"], "w").close()
while True: time.sleep(1)
""",
    )
    job = Launcher(tmp_path, "-n", 2, *SPAWN, "--grace", "1000", "stubborn.py")
    wait_for(tmp_path, "up0", "up1")
    job.process.send_signal(signal.SIGINT)
    wait_for(tmp_path, "asked0", "asked1")  # and they go on
    job.process.send_signal(signal.SIGINT)
    status, _, err = job.finish()
    assert status == 130 and "stopped by SIGINT" in err


def test_interrupt_on_a_terminal(tmp_path):
    write(tmp_path, "wait.py", "import time\nprint('up')\ntime.sleep(1000)")
    status, shown = run_on_terminal(tmp_path, "-n", 2, *SPAWN, "wait.py", typed=b"\x03", after="up")
    assert status == 130
    assert "stopped by SIGINT" in shown


def test_timeout_shows_where_every_rank_was(tmp_path):
    write(
        tmp_path,
        "stuck.py",
        """
import os, time
def waits(): time.sleep(1000)
def sleeps(): time.sleep(1000)
sleeps() if os.environ["RANK"] == "1" else waits()
""",
    )
    status, _, err = run_job(tmp_path, "-n", 2, *SPAWN, "--timeout", "1", "--grace", "0.5",
                             "stuck.py")
    assert status == 124
    assert re.search(r"\[rank 0\]   File .*, line 3 in waits", err)
    assert re.search(r"\[rank 1\]   File .*, line 4 in sleeps", err)
    assert "did not end within 1 s" in err.splitlines()[-1]


def test_a_rank_may_end_well_long_before_the_others(tmp_path):
    write(
        tmp_path,
        "early.py",
        """
import os, subprocess, time
if os.environ["RANK"] == "0":
    subprocess.Popen(["sleep", "1000"], start_new_session=True)
    print("first"); os._exit(0)
time.sleep(1); print("second")
""",
    )
    start = time.monotonic()
    status, out, err = run_job(tmp_path, "-n", 2, *SPAWN, "early.py")
    assert (status, out, err) == (0, "[rank 0] first\n[rank 1] second\n", "")
    assert time.monotonic() - start > 1
