"""DistributedDataParallel on threads and over MPI, and that its tests can fail."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import ddp_models
import ddp_process_scenarios
import ddp_scenarios
import distributed_scenarios
import pytest
from mpi_runner import run_command, run_ranks_of

import disttorch as torch
import disttorch.distributed as dist
from disttorch import autograd
from disttorch.autograd.engine import queue_callback
from disttorch.distributed.buckets import assign
from disttorch.distributed.reducer import Reducer

HERE = Path(__file__).parent


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("scenario", ddp_scenarios.SCENARIOS, ids=lambda s: s.__name__)
def test_on_threads(scenario, n):
    dist.run_local(n, lambda rank: scenario(), timeout=100)


def check_job(job, n):
    assert not job.timed_out and job.status == 0, job.output[-6000:]
    modules = (ddp_scenarios, ddp_process_scenarios, distributed_scenarios)
    count = sum(len(module.SCENARIOS) for module in modules)
    ends = re.findall(r"rank (\d): (\d+) scenarios, 0 failures", job.output)
    assert sorted(ends) == [(str(rank), str(count)) for rank in range(n)], job.output


def test_over_mpi():
    check_job(run_ranks_of(HERE / "ddp_worker.py", 2, "2", "mpi", timeout=100), 2)


def test_over_sockets():
    command = [
        sys.executable, "-m", "launcher", "-n", "3", "--via", "spawn", "--oversubscribe",
        str(HERE / "ddp_worker.py"), "3", "tcp",
    ]  # fmt: skip
    check_job(run_command(command, timeout=150), 3)


# ---- the scenarios would notice ------------------------------------------------------------------

GRADIENTS = ddp_scenarios.gradients_equal_one_process


def broken(monkeypatch, method, replacement):
    monkeypatch.setattr(Reducer, method, replacement)


def test_a_hook_that_reduces_nothing_is_noticed(monkeypatch):
    broken(monkeypatch, "gradient_ready", lambda self, i: None)
    dist.run_local(1, lambda rank: GRADIENTS(), timeout=60)
    with pytest.raises(AssertionError):
        dist.run_local(2, lambda rank: GRADIENTS(), timeout=60)
    with pytest.raises(AssertionError):
        dist.run_local(2, lambda rank: ddp_scenarios.weights_after_20_steps(), timeout=60)


def test_a_result_that_is_not_brought_back_is_noticed(monkeypatch):
    broken(monkeypatch, "_bring_back", lambda self, parameter, view: None)
    with pytest.raises(AssertionError):
        dist.run_local(2, lambda rank: GRADIENTS(), timeout=60)


def test_reduction_after_backward_is_noticed(monkeypatch):
    real, finish = Reducer._launch_full_buckets, Reducer._finish

    def finish_first(self):
        self.ended = True
        finish(self)
        self.ended = False

    broken(monkeypatch, "_finish", finish_first)
    broken(
        monkeypatch,
        "_launch_full_buckets",
        lambda self: real(self) if getattr(self, "ended", False) else None,
    )
    dist.run_local(2, lambda rank: GRADIENTS(), timeout=60)  # the values are right all the same
    with pytest.raises((AssertionError, ValueError)):
        dist.run_local(
            2, lambda rank: ddp_scenarios.reduction_starts_before_the_last_gradient(), timeout=60
        )


# ---- errors that only one rank can have ----------------------------------------------------------


def test_parameters_unused_on_one_rank_are_named():
    def unused_on_last(rank):
        ddp, _ = ddp_models.ddp_and_whole(ddp_models.Branches, bucket_cap_mb=1e-6)
        if rank == 0:  # uses everything
            x = torch.tanh(ddp.module.stem(ddp_models.batch(0, 0)))
            out = ddp.module.low(x) + ddp.module.high(x) + ddp.module.spare(x)
        else:
            out = ddp(ddp_models.batch(0, rank))
        ddp_models.loss_of(out).backward()

    with pytest.raises(RuntimeError, match="on rank 1: low.weight, low.bias, spare.weight, sp"):
        dist.run_local(2, unused_on_last, timeout=20)


def test_no_group():
    with pytest.raises(ValueError, match="Default process group has not been initialized"):
        ddp_models.DDP(ddp_models.mlp())


# ---- buckets, and the end of backward ------------------------------------------------------------


def test_buckets_close_at_their_limit():
    sizes = [1, 2, 3, 4, 5]
    parameters = [torch.zeros(n, dtype=torch.float32) for n in sizes]
    order = [4, 3, 2, 1, 0]
    assert assign(order, parameters, [4, 1000]) == [[4], [3, 2, 1, 0]]
    assert assign(order, parameters, [20, 28]) == [[4], [3, 2], [1, 0]]
    assert assign(order, parameters, [1e9, 1e9]) == [order]
    parameters[3] = parameters[3].double()
    parameters[1] = parameters[1].double()
    assert assign(order, parameters, [1e9, 1e9]) == [[3, 1], [4, 2, 0]]
    assert assign(order, parameters, [32, 32]) == [[3], [4, 2], [1], [0]]


def test_callbacks_run_once_after_the_outermost_backward():
    x = torch.ones(2, requires_grad=True)
    y = torch.ones(2, requires_grad=True)
    events = []

    def nested(grad):
        queue_callback(lambda: events.append("first"))
        with torch.enable_grad():
            (y * 2).sum().backward()
        queue_callback(lambda: queue_callback(lambda: events.append("last")))
        events.append("hook")

    product = x * 3
    product.register_hook(nested)
    x.register_post_accumulate_grad_hook(lambda p: events.append("leaf"))
    product.sum().backward()
    assert events == ["hook", "leaf", "first", "last"]
    (x * 3).sum().backward()
    assert events == ["hook", "leaf", "first", "last", "leaf"]


def test_callbacks_do_not_survive_an_exception():
    x = torch.ones(2, requires_grad=True)
    events = []

    def fail(p):
        queue_callback(lambda: events.append("never"))
        raise KeyError("on purpose")

    handle = x.register_post_accumulate_grad_hook(fail)
    with pytest.raises(KeyError):
        (x * 3).sum().backward()
    handle.remove()
    (x * 3).sum().backward()
    assert autograd.grad((x * 3).sum(), x)[0].tolist() == [3, 3]
    assert events == []
    with pytest.raises(RuntimeError, match="can only be installed during backward pass"):
        queue_callback(lambda: None)
