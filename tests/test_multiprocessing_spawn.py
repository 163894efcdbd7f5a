"""spawn and start_processes: failures, endings, scripts, Hogwild."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys

import multiprocessing_jobs as jobs
import pytest
from multiprocessing_jobs import METHODS, is_running, until

import disttorch.multiprocessing as mp

spawn_module = sys.modules["disttorch.multiprocessing.spawn"]
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*multi-threaded, use of fork:DeprecationWarning"  # the fork method, from Python 3.12
)


# ---------------------------------------------------------------- Hogwild
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_hogwild(method):
    model = jobs.network()
    model.share_memory()
    before = jobs.loss_of(model).item()
    grads = mp.get_context(method).SimpleQueue()
    mp.start_processes(jobs.train, (model, 60, grads), nprocs=2, start_method=method)
    after = jobs.loss_of(model).item()
    assert after < 0.7 * before, (before, after)
    assert sorted(grads.get() for _ in range(2)) == [(0, True), (1, True)]
    assert all(p.grad is None for p in model.parameters())


# ---------------------------------------------------------------- spawn
WAYS = {
    "raise": (mp.ProcessRaisedException, "\n\n-- Process 1 terminated with the following error:\n"
              "Traceback (most recent call last):\n", 1),
    "exit": (mp.ProcessExitedException, "process 1 terminated with exit code 3", 3),
    "os._exit": (mp.ProcessExitedException, "process 1 terminated with exit code 9", 9),
    "signal": (mp.ProcessExitedException, "process 1 terminated with signal SIGKILL", -9),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("how", WAYS)
def test_a_failure_ends_all(how, method):
    kind, message, code = WAYS[how]
    context = mp.start_processes(jobs.fail, (how, 1), 3, join=False, start_method=method)
    pids = context.pids()
    with pytest.raises(kind) as caught:
        while not context.join():
            pass
    error = caught.value
    assert str(error).startswith(message) and (how == "raise" or str(error) == message)
    assert error.error_index == 1 and error.error_pid == error.pid == pids[1]
    if how == "raise":
        assert "ValueError: process 1 is unwell" in error.msg and "in fail" in error.msg
    else:
        assert error.exit_code == code
        assert error.signal_name == ("SIGKILL" if how == "signal" else None)
    assert [p.exitcode for p in context.processes] == [-signal.SIGTERM, code, -signal.SIGTERM]
    twin = pickle.loads(pickle.dumps(error))
    assert type(twin) is kind and vars(twin) == vars(error)
    files = context.error_files
    assert all(map(os.path.exists, files))
    del context, error, caught
    gc.collect()
    assert not any(map(os.path.exists, files))


def test_spawn_joins_and_children_share_a_secret(monkeypatch):
    monkeypatch.delenv("DISTTORCH_JOB_SECRET", raising=False)
    queue = mp.get_context("spawn").SimpleQueue()
    assert mp.spawn(jobs.succeed, (queue,), nprocs=2) is None
    got = dict(queue.get() for _ in range(2))
    assert sorted(got) == [0, 1] and len(got[0]) == 64
    assert got[0] == got[1] == os.environ["DISTTORCH_JOB_SECRET"]
    queue = mp.get_context("forkserver").SimpleQueue()
    mp.start_processes(jobs.succeed, (queue,), start_method="forkserver")
    assert queue.get() == (0, got[0])


def test_join_with_a_timeout():
    event = mp.get_context("spawn").Event()
    context = mp.spawn(jobs.wait_for, (event,), nprocs=2, join=False, daemon=True)
    assert isinstance(context, mp.ProcessContext)
    assert all(p.daemon and p.is_alive() for p in context.processes)
    assert context.join(timeout=0.01) is False and len(context.sentinels) == 2
    event.set()
    while not context.join(timeout=60):
        pass
    assert context.join() is True and not context.sentinels


def test_one_that_does_not_end_is_killed(monkeypatch):
    monkeypatch.setattr(spawn_module, "_TERM_SECONDS", 0.2)
    context = mp.spawn(jobs.refuse_to_end, (mp.get_context("spawn").Event(),), 2, join=False)
    with pytest.raises(mp.ProcessRaisedException, match="ValueError: ends"):
        context.join()
    assert context.processes[1].exitcode == -signal.SIGKILL


def test_others_may_end_by_themselves():
    events = [mp.get_context("fork").Event() for _ in range(2)]
    context = mp.start_processes(jobs.end_alone, events, 2, join=False, start_method="fork")
    until(lambda: not context.processes[0].is_alive())
    events[0].set()
    with pytest.raises(mp.ProcessRaisedException):
        context.join(grace_period=60.0)
    assert context.processes[1].exitcode == 0 and events[1].is_set()


def test_wrong_use_of_spawn():
    with pytest.warns(FutureWarning, match="only supports start_method=spawn"):
        mp.spawn(jobs.succeed, start_method="fork")
    before = set(multiprocessing.active_children())
    with pytest.raises((AttributeError, pickle.PicklingError), match="lambda"):
        mp.spawn(lambda i: None, nprocs=2)
    assert set(multiprocessing.active_children()) == before
    with pytest.raises(ValueError, match="cannot find context"):
        mp.start_processes(jobs.succeed, start_method="teleport")


@pytest.mark.parametrize("method", METHODS)
def test_children_die_with_their_parent(method):
    parent = subprocess.Popen([sys.executable, jobs.__file__, method], stdout=subprocess.PIPE)
    with parent:
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 2 and all(map(is_running, pids))
        parent.kill()
    until(lambda: not any(map(is_running, pids)))


SCRIPT = """
import os, sys
import torch
import torch.multiprocessing as mp
from torch.multiprocessing import Process, spawn

class Thing:
    def __init__(self, value):
        self.value = value

def work(rank, t, thing):
    assert torch.__name__ == "disttorch" and __name__ == "__mp_main__", (torch, __name__)
    t[rank] = thing.value + rank

if __name__ == "__main__":
    t = torch.zeros(2)
    mp.spawn(work, args=(t, Thing(5)), nprocs=2)
    print(t.tolist(), flush=True)
    try:
        spawn(work, args=(t, None), nprocs=1)
    except mp.ProcessRaisedException as error:
        print(str(error).splitlines()[-1], flush=True)
"""


@pytest.mark.parametrize("command", [
    ["-m", "disttorch"], ["-m", "launcher.cli", "-n", "1", "--"],
], ids=["python -m disttorch", "disttorch-run"])
def test_functions_of_the_script_itself(command, tmp_path):
    script = tmp_path / "script.py"
    text = SCRIPT if "disttorch" in command else SCRIPT.replace("torch.multi", "disttorch.multi") \
        .replace("import torch\n", "import disttorch as torch\n")
    script.write_text(text)
    environment = {k: v for k, v in os.environ.items() if k != "DISTTORCH_JOB_SECRET"}
    done = subprocess.run([sys.executable, *command, str(script)], capture_output=True, text=True,
                          timeout=100, env=environment)
    assert done.returncode == 0, done.stderr
    assert "[5.0, 6.0]\n" in done.stdout
    assert "AttributeError: 'NoneType' object has no attribute 'value'" in done.stdout


GROUP = """
import sys
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

def main(rank, port):
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    t = torch.full((3,), rank + 1.0)
    dist.all_reduce(t)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(1, 1))
    model(torch.full((1, 1), float(rank))).sum().backward()
    # one write: the ranks share a pipe, and unbuffered output writes each part of a print on its own
    sys.stdout.write(f"{rank} {t.tolist()} {model.module.weight.grad.item()}\\n")
    sys.stdout.flush()
    dist.destroy_process_group()

if __name__ == "__main__":
    mp.spawn(main, args=(sys.argv[1],), nprocs=2)
"""


def test_a_process_group_of_spawned_processes(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(GROUP)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {k: v for k, v in os.environ.items() if k != "DISTTORCH_JOB_SECRET"}
    done = subprocess.run([sys.executable, "-m", "disttorch", str(script), str(port)], timeout=100,
                          capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["0 [3.0, 3.0, 3.0] 0.5", "1 [3.0, 3.0, 3.0] 0.5"]
