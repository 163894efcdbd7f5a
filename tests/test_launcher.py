"""disttorch-run: what it starts, what ranks see and print, and wrong usage."""

import json
import os
import subprocess
import sys

import pytest
from launcher_jobs import ROOT, Launcher, run_job, run_on_terminal

from launcher import plan

CONTRACT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR",
            "MASTER_PORT", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS",
            "OMP_WAIT_POLICY", "CUDA_VISIBLE_DEVICES", "EXTRA", "DISTTORCH_VIA", "DISTTORCH_RUN_ID")
SHOW_ENVIRONMENT = f"""
import json, os, sys
seen = {{k: os.environ[k] for k in {CONTRACT} if k in os.environ}}
seen["mpi"] = None
if "--mpi" in sys.argv:
    from mpi4py import MPI
    seen["mpi"] = [MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size]
seen["private"] = [k for k in os.environ if k.startswith("DISTTORCH_RUN_") and k[14:] != "ID"]
open(f"seen{{os.environ['RANK']}}.json", "w").write(json.dumps(seen))
"""


def write(folder, name, text):
    (folder / name).write_text(text)
    return name


def environment_of_ranks(folder, ranks):
    return [json.loads((folder / f"seen{rank}.json").read_text()) for rank in range(ranks)]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_environment_contract(tmp_path, ranks):
    write(tmp_path, "show.py", SHOW_ENVIRONMENT)
    status, _, err = run_job(tmp_path, "--nproc-per-node", ranks, "--oversubscribe", "show.py",
                             "--mpi")
    assert (status, err) == (0, "")
    seen = environment_of_ranks(tmp_path, ranks)
    threads = str(max(1, len(os.sched_getaffinity(0)) // ranks))
    for rank, env in enumerate(seen):
        assert env["mpi"] == [rank, ranks]
        assert env["RANK"] == env["LOCAL_RANK"] == str(rank)
        assert env["WORLD_SIZE"] == env["LOCAL_WORLD_SIZE"] == str(ranks)
        assert env["NODE_RANK"] == "0"
        assert env["MASTER_ADDR"] == "127.0.0.1"
        assert 0 < int(env["MASTER_PORT"]) < 65536
        assert env["OMP_NUM_THREADS"] == env["OPENBLAS_NUM_THREADS"] == threads
        assert env["MKL_NUM_THREADS"] == threads
        assert env["OMP_WAIT_POLICY"] == "passive"
        assert env["private"] == []
        assert env["DISTTORCH_VIA"] == ("mpi" if ranks > 1 else "spawn")
        assert env.get("CUDA_VISIBLE_DEVICES") == os.environ.get("CUDA_VISIBLE_DEVICES")
    assert len({env["MASTER_PORT"] for env in seen}) == 1
    assert len({env["DISTTORCH_RUN_ID"] for env in seen}) == 1


def test_ports_differ_between_jobs():
    assert len({plan.free_port() for _ in range(8)}) > 1


def test_what_the_user_set_wins(tmp_path):
    write(tmp_path, "show.py", SHOW_ENVIRONMENT)
    settings = {"OMP_NUM_THREADS": "5", "OMP_WAIT_POLICY": "active", "CUDA_VISIBLE_DEVICES": "7",
                "RANK": "9", "WORLD_SIZE": "9", "MASTER_PORT": "9", "PMI_RANK": "9"}
    assert run_job(tmp_path, "-n", 2, "--env", "EXTRA=a=b", "show.py", env=settings)[0] == 0
    for rank, env in enumerate(environment_of_ranks(tmp_path, 2)):
        assert env["OMP_NUM_THREADS"] == env["OPENBLAS_NUM_THREADS"] == "5"
        assert (env["OMP_WAIT_POLICY"], env["CUDA_VISIBLE_DEVICES"]) == ("active", "7")
        assert (env["EXTRA"], env["RANK"], env["WORLD_SIZE"]) == ("a=b", str(rank), "2")
        assert env["MASTER_PORT"] != "9"
    arguments = ["--nproc_per_node", 1, "--threads_per_rank", 3, "--master-port", 1234, "show.py"]
    assert run_job(tmp_path, *arguments, env=settings)[0] == 0
    (env,) = environment_of_ranks(tmp_path, 1)
    assert (env["OMP_NUM_THREADS"], env["MKL_NUM_THREADS"]) == ("3", "3")
    assert (env["MASTER_PORT"], env["WORLD_SIZE"]) == ("1234", "1")


def test_without_mpiexec_only_asking_for_it_fails(tmp_path):
    write(tmp_path, "show.py", SHOW_ENVIRONMENT)
    code = (
        "import sys; sys.modules['mpi4py'] = None; import launcher.plan, launcher.cli; "
        "launcher.plan.shutil.which = lambda *a, **k: None; sys.exit(launcher.cli.main())"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}

    def run(*arguments):
        return subprocess.run([sys.executable, "-c", code, *arguments, "show.py"], cwd=tmp_path,
                              env=env, capture_output=True, timeout=60)

    for ranks in (1, 2):
        done = run("-v", "-n", str(ranks))
        assert done.returncode == 0
        assert b"--via spawn, since" in done.stderr.splitlines()[0]
        seen = environment_of_ranks(tmp_path, ranks)
        assert [env["WORLD_SIZE"] for env in seen] == [str(ranks)] * ranks
    done = run("--via", "mpi", "-n", "2")
    assert done.returncode == 2
    assert b'pip install "disttorch[mpich]"' in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_script_runs_as_under_python(tmp_path):
    folder = tmp_path / "scripts"
    folder.mkdir()
    (folder / "beside.py").write_text("value = 42\n")
    (folder / "plan.py").write_text("value = 'not the launcher'\n")
    write(
        folder,
        "script.py",
        """
import os, pickle, sys, __main__
import beside, plan
class Thing: pass
import multiprocessing
def work(queue): queue.put(os.environ["RANK"])
if __name__ == "__main__":
    assert __main__.Thing is Thing and pickle.loads(pickle.dumps(Thing)) is Thing
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=work, args=(queue,))
    child.start()
    print(sys.argv, os.path.basename(__file__), beside.value, plan.value, queue.get())
    child.join()
""",
    )
    status, out, err = run_job(tmp_path, "scripts/script.py", "--nproc-per-node", "-x", "a b")
    assert (status, err) == (0, "")
    argv = ["scripts/script.py", "--nproc-per-node", "-x", "a b"]
    assert out == f"{argv} script.py 42 not the launcher 0\n"


def test_modules_and_programs(tmp_path):
    (tmp_path / "package").mkdir()
    write(tmp_path / "package", "__init__.py", "")
    write(tmp_path / "package", "tool.py", "import sys; print(__name__, __package__, sys.argv[1:])")
    status, out, err = run_job(tmp_path, "-n", 2, "-m", "package.tool", "-m", "x")
    assert (status, err) == (0, "")
    line = "__main__ package ['-m', 'x']"
    assert sorted(out.splitlines()) == [f"[rank 0] {line}", f"[rank 1] {line}"]
    status, out, _ = run_job(tmp_path, "-n", 2, "--no-python", "sh", "-c", "echo $RANK")
    assert (status, sorted(out.splitlines())) == (0, ["[rank 0] 0", "[rank 1] 1"])


def test_interpreter_flags_reach_the_ranks(tmp_path):
    write(tmp_path, "warn.py", "import warnings; warnings.warn('careful')")
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", "-m", "launcher", "warn.py"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, timeout=60)
    assert done.returncode == 1
    assert b"UserWarning: careful" in done.stderr


# -- output ----------------------------------------------------------------------------------------


def test_lines_are_prefixed_and_never_broken(tmp_path):
    write(
        tmp_path,
        "talk.py",
        """
import os, sys
rank = os.environ["RANK"]
for i in range(400):
    for part in (rank, "-", str(i), "-" + rank * 3000, "\\n"):
        os.write(1, part.encode())
os.write(2, b"no newline at the end")
""",
    )
    status, out, err = run_job(tmp_path, "-n", 2, "talk.py")
    assert status == 0
    for rank in "01":
        own = [line for line in out.splitlines() if line.startswith(f"[rank {rank}] ")]
        assert own == [f"[rank {rank}] {rank}-{i}-{rank * 3000}" for i in range(400)]
    assert len(out.splitlines()) == 800
    assert sorted(err.splitlines()) == [f"[rank {r}] no newline at the end" for r in "01"]


def test_output_appears_while_the_job_runs(tmp_path):
    write(tmp_path, "ask.py", "print('ready'); print('got', input())")
    job = Launcher(tmp_path, "-n", 1, "--log-dir", "logs", "ask.py", stdin=subprocess.PIPE)
    assert job.process.stdout.readline() == b"ready\n"
    assert job.finish(b"it\n") == (0, "got it\n", "")


def test_log_files_prefix_and_filter(tmp_path):
    write(
        tmp_path,
        "talk.py",
        """
import os, sys
print("out", os.environ["RANK"])
print("err", os.environ["RANK"], file=sys.stderr)
if len(sys.argv) > 1 and os.environ["RANK"] == "1":
    raise ValueError("boom")
""",
    )
    arguments = ["-n", 2, "--log-dir", "a/logs", "--local-ranks-filter", 1, "--no-prefix"]
    assert run_job(tmp_path, *arguments, "talk.py") == (0, "out 1\n", "err 1\n")
    logs = tmp_path / "a" / "logs"
    assert (logs / "rank0.stdout.log").read_text() == "out 0\n"
    assert (logs / "rank1.stderr.log").read_text() == "err 1\n"
    status, _, _ = run_job(tmp_path, *arguments, "talk.py", "fail")
    assert status == 1
    log = (logs / "rank1.stderr.log").read_text()  # appended to, and with the traceback
    assert log.startswith("err 1\nerr 1\nTraceback") and log.endswith("ValueError: boom\n")


@pytest.mark.parametrize(
    ("env", "coloured"),
    [({}, False), ({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False)],
)
def test_colour_follows_the_environment(tmp_path, env, coloured):
    write(tmp_path, "hello.py", "print('hello')")
    _, out, _ = run_job(tmp_path, "-n", 2, "hello.py", env=env)
    assert ("\x1b[36m[rank 0]\x1b[0m hello" in out) == coloured
    assert ("[rank 0] hello" in out) != coloured


def test_on_a_terminal_rank_0_has_one_too(tmp_path):
    write(
        tmp_path,
        "bar.py",
        """
import os, shutil, sys, time
rank = int(os.environ["RANK"])
def reached(name): open(name, "w").close()
def wait(name):
    while not os.path.exists(name): time.sleep(0.01)
if rank == 0:
    assert sys.stdout.isatty() and sys.stderr.isatty()
    print("width", shutil.get_terminal_size((7, 7)).columns, input("name? "))
    sys.stderr.write("\\r 50%"); sys.stderr.flush()
    time.sleep(0.3)
    reached("half"); wait("said")
    time.sleep(0.3)
    sys.stderr.write("\\r100%\\n")
else:
    assert not sys.stdout.isatty()
    wait("half"); print("other rank"); reached("said")
""",
    )
    env = {"TERM": "xterm", "COLUMNS": "60"}
    status, shown = run_on_terminal(tmp_path, "-n", 2, "bar.py", typed=b"me\n", env=env)
    zero, one = "\x1b[36m[rank 0]\x1b[0m ", "\x1b[33m[rank 1]\x1b[0m "
    assert status == 0, shown
    assert f"{zero}name? width 51 me" in shown  # the input prompt, at once; 60 less the prefix
    # The unfinished bar is wiped, the other rank's line printed, and the bar drawn again.
    assert f"\r{zero} 50%\r\x1b[K{one}other rank\r\n{zero} 50%\r{zero}100%\r\n" in shown


# -- wrong usage -----------------------------------------------------------------------------------

TWO_NODES = ["--nnodes", "2", "--node-rank", "0", "--master-addr", "127.0.0.1"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--nproc-per-node", "0", "ok.py"], ["--nproc-per-node 0", "from 1 up"]),
        (["--nproc-per-node", "-3", "ok.py"], ["--nproc-per-node -3", "from 1 up"]),
        (["--nproc-per-node", "two", "ok.py"], ["--nproc-per-node two"]),
        (["--nproc-per-node", "1.5", "ok.py"], ["--nproc-per-node 1.5"]),
        (["--nproc-per-node", "gpu", "ok.py"], ["no NVIDIA GPU"]),
        (["--nproc-per-node", "100000", "ok.py"], ["100000 ranks", "slots", "--oversubscribe"]),
        (["missing.py"], ["missing.py", "no such script"]),
        (["folder"], ["folder", "directory"]),
        (["-m", "no_such_module_here"], ["no module named no_such_module_here"]),
        (["--no-python", "no-such-program"], ["no-such-program", "no such program"]),
        (["-m", "--no-python", "ok.py"], ["exclude each other"]),
        (["--no-such-option", "ok.py"], ["arguments: --no-such-option", "--help"]),
        ([], ["required: script", "--help"]),
        (["--via", "mpi", "--nnodes", "2", "ok.py"], ["--nnodes 2", "mpirun", "--via spawn"]),
        (["--via", "tcp", "ok.py"], ["--via tcp", "spawn"]),
        (["--via", "spawn", "--mpiexec", "x", "ok.py"], ["--via spawn", "--mpiexec"]),
        (["--nnodes", "2", "ok.py"], ["--nnodes 2", "--node-rank R", "0 to 1"]),
        (["--nnodes", "2", "--node-rank", "2", "ok.py"], ["--node-rank", "0 to 1, not 2"]),
        (["--nnodes", "1:2", "ok.py"], ["--nnodes 1:2", "one number"]),
        (["--nnodes", "0", "ok.py"], ["--nnodes 0"]),
        (["--node-rank", "1", "ok.py"], ["--node-rank 1", "--nnodes N"]),
        ([*TWO_NODES[:4], "ok.py"], ["--master-addr HOST"]),
        ([*TWO_NODES, "ok.py"], ["DISTTORCH_JOB_SECRET", "--secret-file", "openssl"]),
        ([*TWO_NODES, "--secret-file", "none", "ok.py"], ["--secret-file none", "cannot be read"]),
        ([*TWO_NODES, "--secret-file", "ok.py", "--master-port", "65535", "ok.py"],
         ["--master-port 65535", "65534"]),
        (["--secret-file", "short", "ok.py"], ["--secret-file short", "5 characters", "16"]),
        (["--env", "DISTTORCH_JOB_SECRET=a", "ok.py"], ["--secret-file"]),
        (["--max-restarts", "x", "ok.py"], ["--max-restarts x", "whole number"]),
        (["--min-ranks", "2", "ok.py"], ["--min-ranks 2", "from 1 to the job's 1 ranks"]),
        (["--elastic-sizes", "2,a", "ok.py"], ["--elastic-sizes 2,a", "4,2,1"]),
        (["--elastic", *TWO_NODES, "--secret-file", "ok.py", "ok.py"], ["one node", "--max-restarts"]),
        (["--rdzv-backend", "etcd", "ok.py"], ["--rdzv-backend etcd", "c10d"]),
        (["--rdzv-endpoint", "a:1", "--master-port", "2", "ok.py"], ["--rdzv-endpoint a:1"]),
        (["--rdzv-conf", "a=b", *TWO_NODES, "--secret-file", "ok.py", "ok.py"], ["--rdzv-conf a=b"]),
        (["-r", "3", "ok.py"], ["--redirects 3", "--log-dir"]),
        (["-t", "3", "ok.py"], ["--tee 3", "--log-dir"]),
        (["--flight-dir", "ok.py/f", "ok.py"], ["--flight-dir ok.py/f"]),
        (["--out", "x", "ok.py"], ["--out", "--tune"]),
        (["--tune", "ok.py"], ["--tune", "no script"]),
        (["--env", "NOVALUE", "ok.py"], ["--env NOVALUE", "NAME=VALUE"]),
        (["--timeout", "-1", "ok.py"], ["--timeout -1", "positive"]),
        (["--timeout", "nan", "ok.py"], ["--timeout nan", "positive"]),
        (["--threads-per-rank", "0", "ok.py"], ["--threads-per-rank 0"]),
        (["--master-port", "70000", "ok.py"], ["--master-port 70000", "65535"]),
        (["--local-ranks-filter", "5", "ok.py"], ["--local-ranks-filter 5"]),
        (["--log-dir", "ok.py/logs", "ok.py"], ["--log-dir ok.py/logs"]),
        (["--mpiexec", "/no/mpiexec", "ok.py"], ["/no/mpiexec", "no such program"]),
        (["--mpiexec-args", "'", "ok.py"], ["--mpiexec-args"]),
    ],
)
def test_wrong_usage_is_one_sentence(tmp_path, capfd, monkeypatch, arguments, words):
    from launcher.cli import main

    write(tmp_path, "ok.py", "raise SystemExit('was started')")
    write(tmp_path, "short", "short\n")
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISTTORCH_JOB_SECRET", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main(arguments) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("disttorch-run: ") and err.count("\n") == 1, err
    assert all(word in err for word in words), err


def test_mpiexec_that_starts_nothing_or_the_wrong_number(tmp_path):
    write(tmp_path, "ok.py", "pass")
    fake = tmp_path / "mpiexec"
    fake.write_text("#!/bin/sh\necho cannot do that >&2\nexit 3\n")
    fake.chmod(0o755)
    status, _, err = run_job(tmp_path, "-n", 2, "--mpiexec", fake, "ok.py")
    assert status == 3
    assert err.splitlines()[0] == "cannot do that"
    assert err.splitlines()[-1].endswith("exit status 3 after starting 0 of 2 ranks")
    fake.write_text("#!/bin/sh\nexit 0\n")
    status, _, err = run_job(tmp_path, "-n", 2, "--mpiexec", fake, "ok.py")
    assert status == 1 and err.endswith("exit status 0 after starting 0 of 2 ranks\n")
    # One that belongs to another MPI: every process takes itself for the only rank.
    fake.write_text('#!/bin/sh\nshift 2\nexport PMI_RANK=0 PMI_SIZE=1\n"$@" & "$@" & wait\n')
    status, _, err = run_job(tmp_path, "-n", 2, "--mpiexec", fake, "ok.py")
    assert status == 1 and "started rank 0 of 1 where 2 ranks were asked for" in err


def test_help_has_examples(capsys):
    from launcher.cli import main

    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    out = capsys.readouterr().out
    assert stop.value.code == 0
    assert "disttorch-run --nproc-per-node 2 train.py" in out and "--oversubscribe" in out


# -- plans -----------------------------------------------------------------------------------------


def test_gpus_are_counted_by_what_the_driver_shows(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(plan, "ROOT", tmp_path)
    assert plan.count_gpus() == 0
    (tmp_path / "dev").mkdir()
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "nvidia-caps", "null"):
        (tmp_path / "dev" / name).touch()
    assert plan.count_gpus() == 2
    for address in ("0000:01:00.0", "0000:41:00.0", "0000:81:00.0"):
        (tmp_path / "proc/driver/nvidia/gpus" / address).mkdir(parents=True)
    assert plan.count_gpus() == plan.ranks_from("gpu") == 3


@pytest.mark.parametrize(("devices", "count"), [("0,1,2", 3), ("", 0), ("-1", 0), ("0,-1,2", 1)])
def test_gpus_are_counted_by_cuda_visible_devices(monkeypatch, devices, count):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
    assert plan.count_gpus() == count
    if count:
        assert plan.ranks_from("gpu") == plan.ranks_from("auto") == count
    else:
        assert plan.ranks_from("auto") == plan.ranks_from("cpu") == plan.cpu_cores()


@pytest.mark.parametrize(
    ("name", "version", "kind", "option"),
    [
        ("mpiexec", "HYDRA build details:", "hydra", "fork"),
        ("mpiexec", "mpiexec (Open MPI) 5.0.11", "openmpi", ":OVERSUBSCRIBE"),
        ("mpirun", "Intel(R) MPI Library for Linux", "hydra", "fork"),
        ("srun", "slurm 24.05", "slurm", "--ntasks=3"),
        ("mpiexec", "something else", "unknown", "-n"),
    ],
)
def test_every_mpiexec_gets_its_own_options(tmp_path, name, version, kind, option):
    program = tmp_path / name
    program.write_text(f"#!/bin/sh\necho '{version}'\n")
    program.chmod(0o755)
    made = plan.make_plan(3, "script", "x.py", ["a"], mpiexec=str(program))
    assert (made.via, made.mpi) == ("mpi", kind)
    assert option in made.argv[: made.argv.index(sys.executable)]
    assert made.argv[-3:] == ["script", "x.py", "a"]
