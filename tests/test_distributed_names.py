"""Where scripts look for names of torch.distributed, and the tools found there: launchers, `record`,
rendezvous, futures, what is printed at the end of a job."""

from __future__ import annotations

import datetime
import importlib
import json
import subprocess
import sys
import threading

import pytest
from mpi_runner import clean_environment

import disttorch as torch
import disttorch.distributed as dist
from disttorch.distributed.elastic.multiprocessing.errors import (
    ChildFailedError,
    ProcessFailure,
    record,
)
from disttorch.distributed.rendezvous import register_rendezvous_handler, rendezvous
from disttorch.futures import Future, collect_all, wait_all

MODULES = {
    "distributed.device_mesh": "DeviceMesh init_device_mesh",
    "distributed.distributed_c10d": "AllgatherOptions AllreduceOptions Backend GroupMember ReduceOp "
    "Work ProcessGroup _get_default_group _coalescing_manager _resolve_process_group "
    "is_xccl_available _get_pg_default_device _rank_not_in_group all_gather_object Store",
    "distributed.constants": "default_pg_timeout",
    "distributed.nn": "all_reduce all_gather",
    "distributed.nn.functional": "all_reduce all_gather reduce_scatter all_to_all_single",
    "distributed._functional_collectives": "all_reduce wait_tensor AsyncCollectiveTensor",
    "distributed.rendezvous": "rendezvous register_rendezvous_handler",
    "distributed.run": "main run get_args_parser parse_args",
    "distributed.launch": "main",
    "distributed.elastic.multiprocessing.errors": "record ChildFailedError",
    "distributed": "TCPStore FileStore HashStore PrefixStore Store ReduceOp P2POp DeviceMesh "
    "init_device_mesh DistributedDataParallel DebugLevel QueueEmptyError get_pg_count "
    "monitored_barrier supports_complex is_torchelastic_launched record_comm breakpoint",
    "futures": "Future collect_all wait_all",
}


@pytest.mark.parametrize("module", MODULES)
def test_names(module):
    found = importlib.import_module(f"disttorch.{module}")
    for name in MODULES[module].split():
        assert hasattr(found, name), name
    code = f"import torch.{module}; from torch.{module} import {MODULES[module].split()[0]}"
    if module == "distributed":
        subprocess.run(
            [sys.executable, "-m", "disttorch", "-c", code], env=clean_environment(), check=True
        )


def test_a_script_of_collectives_loads_little():
    code = (
        "import sys, disttorch, disttorch.distributed as d; d.init_process_group(); d.barrier();"
        "loaded = [m for m in ('disttorch.nn', 'disttorch.profiler', 'mpi4py') if m in sys.modules];"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], env=clean_environment(), check=True, timeout=60)


# ---- launchers -----------------------------------------------------------------------------------

SCRIPT = """
import os, sys
import torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.tensor([dist.get_rank() + 1.0])
dist.all_reduce(total)
print(f"<{torch.__name__} {dist.get_rank()} {os.environ['LOCAL_RANK']} {total.item()} {sys.argv[1:]}>")
dist.destroy_process_group()
"""


@pytest.mark.parametrize("module", ["torch.distributed.run", "torch.distributed.launch"])
def test_torchrun(module, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    extra = ["--use_env"] if module.endswith("launch") else []
    job = subprocess.run(
        [sys.executable, "-m", "disttorch", "-m", module, *extra, "--nproc_per_node=2", str(script),
         "--lr", "1"],
        env=clean_environment(), capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert job.returncode == 0, job.stdout + job.stderr
    for rank in (0, 1):
        assert f"<disttorch {rank} {rank} 3.0 ['--lr', '1']>" in job.stdout


def test_a_failed_job_gives_its_status(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import sys; sys.exit(7)")
    from disttorch.distributed.run import parse_args, run

    with pytest.raises(SystemExit) as end:
        run(parse_args(["--nnodes=1", "--nproc-per-node", "1", str(script)]))
    assert end.value.code == 7


def test_torchruns_options():
    from disttorch.distributed.run import get_args_parser

    parsed = get_args_parser().parse_args(
        ["--nproc_per_node", "4", "--nnodes", "2", "--node-rank=1", "--master_port", "1234", "-m",
         "train", "--nnodes", "9"]
    )  # fmt: skip
    assert (parsed.nproc_per_node, parsed.nnodes, parsed.node_rank) == ("4", "2", 1)
    assert (parsed.master_port, parsed.module, parsed.training_script) == (1234, True, "train")
    assert parsed.training_script_args == ["--nnodes", "9"]


def test_record(tmp_path, monkeypatch):
    path = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(path))

    @record
    def main(what):
        if isinstance(what, BaseException):
            raise what
        return what

    assert main(3) == 3 and main.__name__ == "main" and not path.exists()
    assert main(SystemExit(0)) is None
    with pytest.raises(SystemExit):
        main(SystemExit(2))
    assert not path.exists()
    with pytest.raises(KeyError, match="lost"):
        main(KeyError("lost"))
    message = json.loads(path.read_text())["message"]
    assert message["message"] == "KeyError: 'lost'"
    assert "in main" in message["extraInfo"]["py_callstack"]
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE")
    with pytest.raises(KeyError):
        main(KeyError("no file"))


def test_the_error_of_a_job():
    failures = {
        2: ProcessFailure(2, 100, -9, timestamp=50),
        1: ProcessFailure(1, 99, 3, message="KeyError: 'x'", timestamp=40),
    }
    error = ChildFailedError("train.py", failures)
    assert error.get_first_failure()[0] == 1 and failures[2].signal_name() == "SIGKILL"
    for part in ("train.py failed", "rank 1", "pid 99", "status 3", "1 more", "KeyError: 'x'"):
        assert part in str(error)
    with pytest.raises(ValueError):
        ChildFailedError("train.py", {})


# ---- rendezvous ----------------------------------------------------------------------------------


def test_rendezvous_of_two(tmp_path):
    """Two ranks meet at each kind of URL, and see what the other wrote."""
    port = free_port()
    for url in (f"tcp://127.0.0.1:{port}", f"file://{tmp_path}/meet"):
        found: list = [None, None]

        def meet(rank, url=url, found=found):
            timeout = datetime.timedelta(seconds=20)
            store, mine, size = next(rendezvous(url, rank, 2, timeout=timeout))
            store.set(f"from{mine}", str(size))
            found[rank] = store.get(f"from{1 - mine}")

        threads = [threading.Thread(target=meet, args=(rank,), daemon=True) for rank in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert found == [b"2", b"2"], url


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_rendezvous_from_the_url(tmp_path):
    store, rank, size = next(rendezvous(f"file://{tmp_path}/meet?rank=0&world_size=1"))
    assert (rank, size) == (0, 1) and isinstance(store, dist.FileStore)


def test_rendezvous_refused(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for url, error, message in (
        ("gopher://x", RuntimeError, "No rendezvous handler for gopher://"),
        (3, RuntimeError, "must be a string"),
        ("env://", ValueError, "environment variable RANK expected"),
        ("tcp://localhost:1", ValueError, "rank parameter missing"),
        ("tcp://localhost?rank=0&world_size=1", ValueError, "host and port"),
        ("file://?rank=0&world_size=1", ValueError, "path missing"),
    ):
        with pytest.raises(error, match=message):
            next(rendezvous(url))
    with pytest.raises(RuntimeError, match="already registered"):
        register_rendezvous_handler("tcp", lambda url: iter(()))


# ---- the rest ------------------------------------------------------------------------------------


def test_the_ledger_at_the_end():
    code = (
        "import disttorch as torch, disttorch.distributed as dist; dist.init_process_group();"
        "dist.all_reduce(torch.ones(1000))"
    )
    for extra, shown in (({"DISTTORCH_LEDGER": "1"}, True), ({}, False)):
        for end in ("", "; dist.destroy_process_group()"):
            job = subprocess.run(
                [sys.executable, "-c", code + end], env=clean_environment(extra),
                capture_output=True, text=True, timeout=60, check=True,
            )  # fmt: skip
            assert job.stderr.count("what rank 0 of 1 moved") == shown, job.stderr
            assert ("all_reduce" in job.stderr and "3.9 KiB" in job.stderr) == shown


def test_debug_level(monkeypatch):
    assert dist.get_debug_level() is dist.DebugLevel.OFF
    monkeypatch.setenv("TORCH_DISTRIBUTED_DEBUG", "info")
    dist.set_debug_level_from_env()
    assert dist.get_debug_level() is dist.DebugLevel.INFO
    monkeypatch.setenv("TORCH_DISTRIBUTED_DEBUG", "much")
    with pytest.raises(ValueError, match="OFF, INFO, DETAIL; got 'MUCH'"):
        dist.set_debug_level_from_env()
    dist.set_debug_level(dist.DebugLevel.OFF)


def test_deterministic_reductions():
    assert not dist.are_deterministic_reductions_enabled()
    try:
        dist.set_deterministic(True)
        assert dist.are_deterministic_reductions_enabled()
    finally:
        dist.set_deterministic(False)
    try:
        torch.use_deterministic_algorithms(True)
        dist.run_local(2, lambda rank: dist.barrier(), timeout=20)
        assert dist.are_deterministic_reductions_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
        dist.set_deterministic(False)


def test_backend_names():
    assert dist.Backend("GLOO") == dist.Backend.GLOO == "gloo"
    assert str(dist.BackendConfig("cpu:mpi,cuda:nccl")) == "cpu:mpi,cuda:nccl"
    assert str(dist.BackendConfig("mpi")) == "cpu:mpi,cuda:mpi"
    with pytest.raises(ValueError, match="string-ish"):
        dist.Backend(3)
    with pytest.raises(NotImplementedError, match="register_backend"):
        dist.Backend.register_backend("mine", None)
    assert dist.get_default_backend_for_device("cuda:1") == "nccl"
    with pytest.raises(ValueError, match="Default backend not registered for device : tpu"):
        dist.get_default_backend_for_device("tpu")


def test_errors_are_those_of_collectives():
    def differ(rank):
        dist.all_reduce(torch.ones(2 + rank))

    with pytest.raises(dist.DistBackendError):
        dist.run_local(2, differ, timeout=20)
    with pytest.raises(dist.QueueEmptyError):
        dist.HashStore().queue_pop("q", block=False)
    assert issubclass(dist.QueueEmptyError, dist.DistStoreError)
    assert issubclass(dist.DistNetworkError, dist.DistError)


def test_the_site_of_a_call_is_the_scripts():
    def run(rank):
        dist.all_reduce(torch.ones(1))
        return [call["site"] for call in dist.flight_record()["calls"]]

    line = run.__code__.co_firstlineno + 1
    assert dist.run_local(1, run, timeout=20) == [[f"test_distributed_names.py:{line}"]]


def test_a_breakpoint_lets_others_wait(monkeypatch):
    stopped = []
    monkeypatch.setattr("disttorch.distributed.reports._debugger", lambda: stopped.append(1))

    def run(rank):
        dist.breakpoint(1)
        return list(stopped)

    assert dist.run_local(2, run, timeout=20) == [[1], [1]]


# ---- futures -------------------------------------------------------------------------------------


def test_futures_between_threads():
    future: Future[int] = Future()
    chain = future
    for _ in range(50):
        chain = chain.then(lambda f: f.value() + 1)
    waiting: list[int] = []
    threads = [threading.Thread(target=lambda: waiting.append(chain.wait())) for _ in range(4)]
    for thread in threads:
        thread.start()
    future.set_result(0)
    for thread in threads:
        thread.join(20)
    assert waiting == [50] * 4
    assert wait_all([future, chain]) == [0, 50] and collect_all([]).wait() == []


def test_a_future_ends_once():
    future: Future[int] = Future()
    with pytest.raises(RuntimeError, match="before the future is done"):
        future.value()
    future.set_exception(ValueError("no"))
    for call in (future.wait, future.value, collect_all([future]).wait):
        with pytest.raises(ValueError, match="no"):
            call()
    with pytest.raises(RuntimeError, match="complete already"):
        future.set_result(1)
    future.add_done_callback(lambda f: 1 / 0)  # only logged


# ---- a function as ranks -------------------------------------------------------------------------


def add_up(number):
    import os

    dist.init_process_group("gloo" if number else None)
    total = torch.tensor([number + dist.get_rank()])
    dist.all_reduce(total)
    found = total.item(), dist.get_backend(), os.environ["LOCAL_RANK"], dist.get_world_size()
    dist.destroy_process_group()
    return found


def fail_on_one(number):
    import os

    if os.environ["RANK"] == "1":
        raise KeyError("on purpose")


def test_a_function_as_ranks(monkeypatch):
    from disttorch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name, value in clean_environment().items():
        monkeypatch.setenv(name, value)
    config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=2)
    results = elastic_launch(config, add_up)(0)
    assert results == {0: (1, "tcp", "0", 2), 1: (1, "tcp", "1", 2)}
    with pytest.raises(ChildFailedError, match="fail_on_one failed: rank 1 .*") as caught:
        elastic_launch(config, fail_on_one)(0)
    assert "KeyError: 'on purpose'" in str(caught.value)
    assert elastic_launch(config, sys.executable)("-c", "import os; os.environ['RANK']") == {
        0: None, 1: None,
    }
    with pytest.raises(ValueError, match="this machine only"):
        LaunchConfig(min_nodes=1, max_nodes=2, nproc_per_node=2)
