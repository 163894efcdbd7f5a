"""disttorch-run: how jobs end. Failures name their rank, and nothing survives."""

import os
import re
import signal
import time

import pytest
from launcher_jobs import Launcher, run_job, run_on_terminal, wait_for

# Rank 1 ends in the way named by the first argument while rank 0 waits in MPI for it.
FAIL_IN_MPI = """
import os, signal, sys
from mpi4py import MPI
def die(how):
    if how == "raise": raise ValueError("boom")
    if how == "exit": sys.exit(3)
    if how == "message": sys.exit("no data here")
    if how == "_exit": os._exit(5)
    if how == "kill": os.kill(os.getpid(), signal.SIGKILL)
    if how == "segfault": os.kill(os.getpid(), signal.SIGSEGV)
    if how == "abort": MPI.COMM_WORLD.Abort(7)
    if how == "hook":  # an excepthook that ends the job by MPI itself
        def hook(*error):
            sys.__excepthook__(*error)
            MPI.COMM_WORLD.Abort(1)
        sys.excepthook = hook
        raise KeyError("hooked")
MPI.COMM_WORLD.Barrier()
if MPI.COMM_WORLD.rank == 1:
    die(sys.argv[1])
MPI.COMM_WORLD.Barrier()
"""
# Each rank starts a process that tries to get away, says where it is, and waits.
WAIT_FOREVER = """
import os, subprocess, sys, time
from mpi4py import MPI
rank = os.environ["RANK"]
subprocess.Popen(["sleep", "1000"], start_new_session=True)
os.system("sleep 1000 &")
MPI.COMM_WORLD.Barrier()
open(f"up{rank}", "w").write(str(os.getpid()))
if rank == "0": time.sleep(1000)
MPI.COMM_WORLD.Barrier()
"""


def write(folder, name, text):
    (folder / name).write_text(text)
    return name


@pytest.mark.parametrize(
    ("how", "status", "words", "said"),
    [
        ("raise", 1, "failed with exit status 1", "ValueError: boom"),
        ("exit", 3, "failed with exit status 3", None),
        ("message", 1, "failed with exit status 1", "no data here"),
        ("_exit", 5, "failed with exit status 5", None),
        ("kill", 137, "killed by SIGKILL (signal 9)", None),
        ("segfault", 139, "killed by SIGSEGV (signal 11)", " in die"),
        ("abort", 7, "failed with exit status 7", None),
        ("hook", 1, "failed with exit status 1", "KeyError: 'hooked'"),
    ],
)
def test_a_rank_that_fails_ends_the_job(tmp_path, how, status, words, said):
    write(tmp_path, "fail.py", FAIL_IN_MPI)
    job = Launcher(tmp_path, "-n", 2, "fail.py", how)
    got, out, err = job.finish()
    lines = err.splitlines()
    assert (got, out) == (status, "")
    assert re.fullmatch(r"disttorch-run: rank 1 of 2 .* on host \S+; 1 other rank was stopped",
                        lines[-1])
    assert words in lines[-1]
    if how != "abort":  # in which MPI may have something to say on every rank
        assert all(line.startswith("[rank 1] ") for line in lines[:-1]), err
    if said:
        assert err.count(said) == 1
    elif how != "abort":
        assert len(lines) == 1
    assert err.count("Traceback") == (how in ("raise", "hook"))
    assert "child.py" not in err and "runpy" not in err


def test_the_traceback_is_what_python_shows(tmp_path):
    write(tmp_path, "fail.py", "def f():\n    return 1 / 0\n\n\nf()\n")
    write(tmp_path, "broken.py", "x = = 1\n")
    for script, last in (("fail.py", "ZeroDivisionError"), ("broken.py", "SyntaxError")):
        import subprocess
        import sys

        script = str(tmp_path / script)
        plain = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
        status, _, err = run_job(tmp_path, script)
        *trace, summary = err.splitlines(keepends=True)
        assert (status, "".join(trace)) == (1, plain.stderr)
        assert trace[-1].startswith(last)
        assert summary.startswith("disttorch-run: rank 0 of 1 failed")


def test_the_first_failure_in_time_is_the_culprit(tmp_path):
    # Rank 0 and 1 fail because rank 2 did; their exceptions are consequences.
    write(
        tmp_path,
        "chain.py",
        """
import os, signal, sys, time
def on_term(*_): raise RuntimeError("lost a peer")
signal.signal(signal.SIGTERM, on_term)
rank = os.environ["RANK"]
open("ready" + rank, "w").close()
while not all(os.path.exists(f"ready{r}") for r in range(3)): time.sleep(0.01)
if rank == "2": raise ValueError("the cause")
time.sleep(1000)
""",
    )
    status, _, err = run_job(tmp_path, "-n", 3, "--oversubscribe", "chain.py")
    assert status == 1
    assert "the cause" in err.splitlines()[-2] and "lost a peer" not in err
    assert "rank 2 of 3" in err.splitlines()[-1]
    assert err.splitlines()[-1].endswith("2 other ranks were stopped")


def test_exit_functions_run_and_a_stuck_one_does_not_hold_the_job(tmp_path):
    write(
        tmp_path,
        "fail.py",
        """
import atexit, os, sys, time
if len(sys.argv) > 1: atexit.register(time.sleep, 1000)
atexit.register(lambda: print("cleaned up"))
if os.environ["RANK"] == "0": raise ValueError("boom")
time.sleep(1000)
""",
    )
    for more in ([], ["stuck"]):
        arguments = ["-n", 2, "--grace", "0.5", "fail.py", *more]
        status, out, err = run_job(tmp_path, *arguments)
        assert (status, out) == (1, "[rank 0] cleaned up\n")
        assert "ValueError: boom" in err and "exit status 1" in err.splitlines()[-1]


def test_others_may_end_politely(tmp_path):
    write(
        tmp_path,
        "save.py",
        """
import os, signal, sys, time
def save(*_):
    time.sleep(0.2)
    open("saved", "w").close()
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
if os.environ["RANK"] == "1":
    while not os.path.exists("ready"): time.sleep(0.01)
    raise ValueError("boom")
open("ready", "w").close()
time.sleep(1000)
""",
    )
    assert run_job(tmp_path, "-n", 2, "save.py")[0] == 1
    assert (tmp_path / "saved").exists()


def test_a_clean_end_leaves_nothing_either(tmp_path):
    write(
        tmp_path,
        "leave.py",
        """
import subprocess
subprocess.Popen(["sleep", "1000"], start_new_session=True)
print("done")
""",
    )
    status, out, _ = run_job(tmp_path, "-n", 2, "leave.py")  # checks for survivors itself
    assert (status, sorted(out.splitlines())) == (0, ["[rank 0] done", "[rank 1] done"])


def test_a_forked_child_does_not_pass_for_its_rank(tmp_path):
    write(
        tmp_path,
        "fork.py",
        """
import os, sys
pid = os.fork()
if pid == 0: raise ValueError("in the child")
_, status = os.waitpid(pid, 0)
print("child ended with", os.waitstatus_to_exitcode(status))
""",
    )
    status, out, err = run_job(tmp_path, "fork.py")
    assert (status, out) == (0, "child ended with 1\n")
    assert "ValueError: in the child" in err and "disttorch-run" not in err


def test_unclosed_sockets_are_not_ours(tmp_path):
    import subprocess
    import sys

    from launcher_jobs import ROOT

    write(tmp_path, "fine.py", "import sys; sys.exit(0) if len(sys.argv) > 1 else None")
    for more in ([], ["exit"]):
        command = [sys.executable, "-X", "dev", "-W", "error", "-m", "launcher", "-n", "2"]
        done = subprocess.run([*command, "fine.py", *more], cwd=tmp_path, capture_output=True,
                              timeout=60, env=os.environ | {"PYTHONPATH": str(ROOT)})
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


# -- signals ---------------------------------------------------------------------------------------


def shared_memory():
    return {name for name in os.listdir("/dev/shm") if name.startswith("mpich_shm_")}


def mapped_shared_memory(pid):
    with open(f"/proc/{pid}/maps") as maps:
        return {os.path.basename(line.split()[-1]) for line in maps if "mpich_shm_" in line}


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGKILL"])
def test_a_signal_to_the_launcher_ends_every_process(tmp_path, name):
    write(tmp_path, "wait.py", WAIT_FOREVER)
    job = Launcher(tmp_path, "-n", 2, "--grace", "0.5", "wait.py")
    wait_for(tmp_path, "up0", "up1")
    time.sleep(0.05)  # the file is written after it appears
    ranks = [int((tmp_path / f"up{rank}").read_text()) for rank in range(2)]
    before = job.pids()
    assert set(ranks) < set(before)
    assert sum(command.startswith("sleep") for command in before.values()) == 4
    segments = mapped_shared_memory(ranks[0])
    number = getattr(signal, name)
    job.process.send_signal(number)
    status, _, err = job.finish()  # checks for survivors
    assert not any(os.path.exists(f"/proc/{pid}/exe") for pid in before)
    assert not segments & shared_memory()
    if name == "SIGKILL":
        assert status == -9
    else:
        assert status == 128 + number
        assert err.splitlines()[-1] == (
            f"disttorch-run: the job was stopped by {name} (signal {int(number)})"
        )
        assert "Traceback" not in err


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
    job = Launcher(tmp_path, "-n", 2, "--grace", "1000", "stubborn.py")
    wait_for(tmp_path, "up0", "up1")
    job.process.send_signal(signal.SIGINT)
    wait_for(tmp_path, "asked0", "asked1")  # and they go on
    assert job.process.poll() is None
    job.process.send_signal(signal.SIGINT)
    status, _, err = job.finish()
    assert status == 130 and "stopped by SIGINT" in err


def test_one_interrupt_lets_ranks_end_by_themselves(tmp_path):
    write(
        tmp_path,
        "polite.py",
        """
import os, time
open("up" + os.environ["RANK"], "w").close()
try:
    time.sleep(1000)
except KeyboardInterrupt:
    print("saved")
""",
    )
    job = Launcher(tmp_path, "-n", 2, "--grace", "1000", "polite.py")
    wait_for(tmp_path, "up0", "up1")
    time.sleep(0.1)
    job.process.send_signal(signal.SIGINT)
    status, out, _ = job.finish()
    assert (status, sorted(out.splitlines())) == (130, ["[rank 0] saved", "[rank 1] saved"])


@pytest.mark.parametrize("victim", ["mpiexec", "hydra_pmi_proxy"])
def test_the_death_of_a_middle_link_ends_every_process(tmp_path, victim):
    write(tmp_path, "wait.py", WAIT_FOREVER)
    job = Launcher(tmp_path, "-n", 2, "--grace", "0.5", "wait.py")
    wait_for(tmp_path, "up0", "up1")
    found = [pid for pid, command in job.pids().items() if victim in command.split()[0]]
    if not found:
        job.process.kill()
        job.finish()
        pytest.skip(f"this MPI has no {victim}")
    os.kill(found[0], signal.SIGKILL)
    status, _, err = job.finish()
    assert status not in (0, None)
    assert err.splitlines()[-1].startswith("disttorch-run: mpiexec ")


def test_a_rank_killed_from_outside_is_named(tmp_path):
    write(tmp_path, "wait.py", WAIT_FOREVER)
    job = Launcher(tmp_path, "-n", 2, "wait.py")
    wait_for(tmp_path, "up0", "up1")
    time.sleep(0.05)
    os.kill(int((tmp_path / "up0").read_text()), signal.SIGKILL)
    status, _, err = job.finish()
    assert status == 137
    assert "rank 0 of 2 was killed by SIGKILL (signal 9)" in err.splitlines()[-1]


def test_timeout_shows_where_every_rank_was(tmp_path):
    write(
        tmp_path,
        "stuck.py",
        """
from mpi4py import MPI
import time
def waits_in_mpi(): MPI.COMM_WORLD.Barrier()
def sleeps(): time.sleep(1000)
sleeps() if MPI.COMM_WORLD.rank else waits_in_mpi()
""",
    )
    status, _, err = run_job(tmp_path, "-n", 2, "--timeout", "1.5", "--grace", "0.5", "stuck.py")
    assert status == 124
    assert re.search(r"\[rank 0\]   File .*, line 4 in waits_in_mpi", err)
    assert re.search(r"\[rank 1\]   File .*, line 5 in sleeps", err)
    assert "did not end within 1.5 s" in err.splitlines()[-1]


def test_a_reader_that_goes_away_ends_the_job(tmp_path):
    write(tmp_path, "talk.py", "import time\nwhile True: print('x' * 1000); time.sleep(0.001)")
    job = Launcher(tmp_path, "-n", 2, "talk.py")
    job.process.stdout.readline()
    job.process.stdout.close()
    job.process.stdout = None
    assert job.finish()[0] == 128 + signal.SIGPIPE


def test_interrupt_on_a_terminal(tmp_path):
    write(tmp_path, "wait.py", "import time\nprint('up')\ntime.sleep(1000)")
    status, shown = run_on_terminal(tmp_path, "-n", 1, "wait.py", typed=b"\x03", after="up")
    assert status == 130
    assert "stopped by SIGINT" in shown and "Traceback" not in shown


def test_a_traceback_that_names_its_rank_is_not_marked_twice(tmp_path):
    script = tmp_path / "marks.py"
    script.write_text(
        "import os, sys, traceback\n"
        "def hook(kind, error, trace):\n"
        "    for line in traceback.format_exception(kind, error, trace):\n"
        "        for part in line.rstrip().split('\\n'):\n"
        "            print(f\"[rank {os.environ['RANK']}] {part}\", file=sys.stderr)\n"
        "sys.excepthook = hook\n"
        "if os.environ['RANK'] == '1':\n"
        "    raise ValueError('bad batch')\n"
        "import time; time.sleep(60)\n"
    )
    status, _, err = run_job(tmp_path, "-n", "2", "--oversubscribe", script)
    assert status == 1
    assert "[rank 1] ValueError: bad batch" in err
    assert "[rank 1] [rank 1]" not in err
