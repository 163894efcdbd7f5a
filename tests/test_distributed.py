"""disttorch.distributed: on ranks that are threads, in a lone process, and how a job begins."""

from __future__ import annotations

import datetime
import os
import socket
import subprocess
import sys
import time
import warnings

import pytest
from distributed_more_scenarios import MORE, reports
from distributed_scenarios import SCENARIOS
from mpi_runner import clean_environment, require_mpi, run_command

import disttorch as torch
import disttorch.distributed as dist
from disttorch.distributed import backends


@pytest.fixture
def alone():
    """The default group of this process, which nothing launched."""
    dist.init_process_group()
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("scenario", SCENARIOS + MORE, ids=lambda s: s.__name__)
def test_on_threads(scenario, n):
    dist.run_local(n, lambda rank: scenario(), timeout=60)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_reports(n, tmp_path):
    dist.run_local(n, lambda rank: reports(tmp_path), timeout=60)


def test_everything_needs_a_group():
    message = "Default process group has not been initialized, please make sure to call init_p"
    for call in (
        dist.get_rank,
        dist.get_world_size,
        dist.get_backend,
        dist.barrier,
        dist.ledger,
        dist.new_group,
        lambda: dist.all_reduce(torch.ones(1)),
        dist.destroy_process_group,
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert not dist.is_initialized() and dist.group.WORLD is None


def test_alone(alone):
    assert (dist.get_rank(), dist.get_world_size(), dist.get_backend()) == (0, 1, "local")
    place = {name: os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    assert place == {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    dist.destroy_process_group()
    assert not dist.is_initialized() and "RANK" not in os.environ
    dist.init_process_group("cpu:gloo,cuda:local" if backends._warned_of_gloo else "local")


def test_alone_never_loads_mpi():
    code = (
        "import sys, disttorch as torch, disttorch.distributed as dist; dist.init_process_group();"
        "t = torch.ones(2); dist.all_reduce(t); assert t.tolist() == [1, 1];"
        "assert 'mpi4py' not in sys.modules and 'disttorch.nn' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], env=clean_environment(), check=True, timeout=60)


def test_gloo_is_an_alias_with_one_warning(monkeypatch):
    monkeypatch.setattr(backends, "_warned_of_gloo", False)
    with pytest.warns(UserWarning, match="'gloo' is carried out by 'local'") as caught:
        for _ in range(2):
            dist.init_process_group("gloo")
            dist.destroy_process_group()
    assert len(caught) == 1


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"backend": "nccl"}, RuntimeError, "NCCL|GPU"),
        ({"backend": "cpu:gloo,cuda:nccl"}, RuntimeError, "NCCL|GPU"),
        ({"backend": "ucc"}, NotImplementedError, "no UCC backend"),
        ({"backend": "foo"}, ValueError, "Invalid backend: 'foo'"),
        ({"backend": "tpu:mpi"}, ValueError, "Invalid backend string 'tpu:mpi'"),
        ({"backend": "cpu:local,cuda:mpi"}, ValueError, "cannot use two backends"),
        ({"backend": "local", "world_size": 4}, ValueError,
         "world_size is 4 but this job has 1 rank.*disttorch-run"),
        ({"rank": 1}, ValueError, "rank is 1 but this process is rank 0 of 1"),
        ({"timeout": 5}, TypeError, "of type datetime.timedelta, got int"),
        ({"store": object()}, ValueError, "a store needs world_size and rank"),
        ({"store": object(), "init_method": "env://"}, ValueError, "both init_method and store"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        dist.init_process_group(**arguments)
    assert not dist.is_initialized()


def test_more_ranks_than_anything_started(monkeypatch):
    """The environment of another launcher, without MPI: an error, not a lone rank 0."""
    code = "import disttorch.distributed as dist; dist.init_process_group('gloo')"
    env = clean_environment({"WORLD_SIZE": "2", "RANK": "1"})
    job = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60
    )
    assert job.returncode != 0 and "which is not set: start the script with" in job.stderr


def meet(rank, n, how, folder, port):
    """One of `n` processes that nothing but `spawn` started."""
    warnings.simplefilter("ignore")
    timeout = datetime.timedelta(seconds=40)
    place = {"rank": rank, "world_size": n, "timeout": timeout}
    if how == "env":
        os.environ.update(
            RANK=str(rank), WORLD_SIZE=str(n), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
        )
        dist.init_process_group("gloo", timeout=timeout)
    elif how == "tcp":
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", **place)
    elif how == "file":
        dist.init_process_group(init_method=f"file://{folder}/meet", **place)
    else:
        store = dist.TCPStore("127.0.0.1", port, n, rank == 0, timeout)
        dist.init_process_group("tcp", store=dist.PrefixStore("mine", store), **place)
        dist.distributed_c10d._get_default_store().set(f"seen{rank}", "1")
    for _ in range(2):  # a second job of the same processes, where nothing is left of the first
        tensor = torch.tensor([rank + 1.0])
        dist.all_reduce(tensor)
        assert tensor.item() == n * (n + 1) / 2 and dist.get_backend() == "tcp"
        group = dist.new_group([0, n - 1])
        if rank in (0, n - 1):
            dist.broadcast(tensor, n - 1, group=group)
        assert dist.get_node_local_rank(0) >= 0
        dist.barrier()
        if how != "file":
            break
        dist.destroy_process_group()
        dist.init_process_group(init_method=f"file://{folder}/again", **place)
    dist.destroy_process_group()
    assert not dist.is_initialized()


@pytest.mark.parametrize("how", ["env", "tcp", "file", "store"])
def test_ways_to_meet(how, tmp_path, monkeypatch):
    from disttorch import multiprocessing

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    multiprocessing.spawn(meet, (3, how, str(tmp_path), port), nprocs=3)


def test_threads_have_groups_of_their_own(alone):
    """Ranks that are threads see their job, and this process keeps seeing its own."""
    found = dist.run_local(3, lambda rank: (rank, dist.get_rank(), dist.get_world_size()))
    assert found == [(0, 0, 3), (1, 1, 3), (2, 2, 3)]
    assert dist.get_world_size() == 1


def test_calls_outside_the_group_do_nothing():
    def outside(rank):
        group = dist.new_group([0])
        tensor = torch.full((2,), rank + 1.0)
        results = [
            dist.all_reduce(tensor, group=group),
            dist.broadcast_object_list([], src=0, group=group),
            dist.barrier(group),
        ]
        return tensor.tolist(), results

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert dist.run_local(2, outside) == [([1, 1], [None] * 3), ([2, 2], [None] * 3)]


def test_a_new_beginning_counts_from_zero():
    def again(rank):
        dist.all_reduce(torch.ones(1))
        dist.destroy_process_group()
        dist.init_process_group()
        return dist.ledger()

    assert dist.run_local(2, again, timeout=20) == [{}, {}]


def test_threads_refuse_mpi():
    def again(rank):
        dist.destroy_process_group()
        with pytest.raises(RuntimeError, match="ranks are threads here"):
            dist.init_process_group("mpi")
        dist.init_process_group("gloo" if backends._warned_of_gloo else "local")

    dist.run_local(2, again, timeout=20)


def test_a_timeout_ends_every_call():
    def late(rank):
        dist.destroy_process_group()
        dist.init_process_group(timeout=datetime.timedelta(milliseconds=50))
        if rank == 0:
            with pytest.raises(TimeoutError, match="timed out after 0.05 s.*rank 1 has not come"):
                dist.all_reduce(torch.ones(1))
        else:
            while not gave_up:
                time.sleep(0.001)
            dist.all_reduce(torch.ones(1))
        gave_up.append(rank)

    gave_up: list[int] = []
    dist.run_local(2, late, timeout=20)


def test_a_failing_rank_is_named():
    def fail(rank):
        if rank == 1:
            raise KeyError("on purpose")
        dist.all_reduce(torch.ones(1))

    with pytest.raises(KeyError, match="on purpose") as caught:
        dist.run_local(2, fail, timeout=20)
    assert "raised on rank 1 of 2 local ranks" in caught.value.__notes__[0]


def test_different_calls_are_an_error():
    def differ(rank):
        dist.all_reduce(torch.ones(2 + rank))

    with pytest.raises(RuntimeError, match=r"rank 0: all_reduce\(float32 \[2\], SUM\) at test_d.*3\]"):
        dist.run_local(2, differ, timeout=20)


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("via", ["mpi", "spawn"])
def test_on_processes(via, n, tmp_path):
    """Every scenario in a job of processes: over MPI, and over sockets where no MPI started them."""
    if via == "mpi":
        require_mpi()
    worker = os.path.join(os.path.dirname(__file__), "distributed_worker.py")
    job = run_command(
        [sys.executable, "-m", "launcher", "-n", str(n), "--via", via, "--oversubscribe", worker,
         str(tmp_path)], timeout=150,
    )  # fmt: skip
    assert job.status == 0 and not job.timed_out, job.output
    backend = "tcp" if via == "spawn" else "mpi"
    for rank in range(n):
        count = len(SCENARIOS + MORE) + 1
        assert f"<rank {rank} of {n}: {count} scenarios over {backend}>" in job.output


SCRIPT = """
import os
import disttorch as torch
import disttorch.distributed as dist
dist.init_process_group("cpu:mpi")
names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
total = torch.tensor([dist.get_rank() + 1.0])
dist.all_reduce(total)
place = " ".join(os.environ.get(name, "-") for name in names)
print(f"<{dist.get_backend()} {dist.get_rank()} {place} {total.item()}>", flush=True)
dist.destroy_process_group()
"""


@pytest.mark.parametrize("how", ["mpiexec", "disttorch-run"])
def test_how_a_job_is_started(how, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    mpiexec = require_mpi()
    python = [sys.executable, str(script)]
    job = run_command(
        [mpiexec, "-n", "2", *python]
        if how == "mpiexec"
        else [sys.executable, "-m", "launcher", "--nproc-per-node", "2", str(script)]
    )
    assert job.status == 0 and not job.timed_out, job.output
    for rank in (0, 1):
        assert f"<mpi {rank} {rank} 2 {rank} 2 3.0>" in job.output


@pytest.mark.parametrize("asked, chosen, variables, want", [
    (None, False, {"LOCAL_RANK": "3"}, 3), (None, False, {"LOCAL_RANK": "9"}, 1),
    (None, False, {"OMPI_COMM_WORLD_LOCAL_RANK": "2"}, 2), (None, False, {}, None),
    (None, True, {"LOCAL_RANK": "3"}, None), (2, False, {"LOCAL_RANK": "3"}, 2),
    ("cuda:1", True, {"LOCAL_RANK": "3"}, 1), ("cpu", False, {"LOCAL_RANK": "3"}, 3),
])  # fmt: skip
def test_nccl_takes_the_gpu_of_local_rank(asked, chosen, variables, want, monkeypatch):
    from disttorch.distributed import begin, environment

    taken = []
    for name in ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(begin.cupy_backend, "device_count", lambda: 4)
    monkeypatch.setattr(begin.gpu_runtime, "is_chosen", lambda: chosen)
    monkeypatch.setattr(begin.gpu_runtime, "set_device", lambda index, chosen: taken.append(index))
    begin._take_gpu(begin._device(asked), environment.local_rank(rank=5, size=8))
    assert taken == ([] if want is None else [want])
