"""fully_shard on threads and on processes, and that its tests can fail."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import fsdp_counts
import fsdp_interface
import fsdp_scenarios
import fsdp_wrapper_scenarios
import pytest
from fsdp_models import Stack, build
from mpi_runner import clean_environment, run_command, run_ranks_of

import disttorch.distributed as dist
from disttorch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from disttorch.distributed.fsdp._reduce import Reduction
from disttorch.distributed.fsdp._state import State
from disttorch.distributed.fsdp._unit import Unit
from disttorch.distributed.fsdp.wrap import always_wrap_policy
from disttorch.distributed.tensor import _norms

HERE = Path(__file__).parent


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("scenario", fsdp_scenarios.SCENARIOS, ids=lambda s: s.__name__)
def test_on_threads(scenario, n):
    dist.run_local(n, lambda rank: scenario(), timeout=100)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "scenario", fsdp_counts.SCENARIOS + fsdp_interface.SCENARIOS, ids=lambda s: s.__name__
)
def test_counts_on_threads(scenario, n):
    dist.run_local(n, lambda rank: scenario(), timeout=100)


def check_job(job, n: int) -> None:
    assert not job.timed_out and job.status == 0, job.output[-6000:]
    modules = (fsdp_scenarios, fsdp_counts, fsdp_interface, fsdp_wrapper_scenarios)
    count = sum(len(module.SCENARIOS) for module in modules)
    ends = re.findall(r"rank (\d): (\d+) scenarios, 0 failures", job.output)
    assert sorted(ends) == [(str(r), str(count)) for r in range(n)], job.output
    for line in re.findall(r"rank \d: memory (.*)", job.output):
        figures = {k: float(v) for k, v in (pair.split("=") for pair in line.split())}
        # Beside the sharded gradients, of 8 units: the one that computes, the one that is gathered
        # ahead, one unit's gradients and one reduction's buffer; and shards of the last three
        assert figures["peak"] <= figures["gradients"] + (4 + 3 / n) * figures["unit"], figures
        assert figures["held"] <= 1.02 * figures["gradients"] + 0.2 * figures["unit"], figures


def test_over_mpi():
    check_job(run_ranks_of(HERE / "fsdp_worker.py", 2, "mpi", "2", timeout=150), 2)


def test_over_sockets():  # 4 ranks: shards × replicas on processes too
    worker = str(HERE / "fsdp_worker.py")
    command = [sys.executable, "-m", "launcher", "--via", "spawn", "--oversubscribe", "-n", "4"]
    check_job(run_command([*command, worker, "tcp", "4"], 200, clean_environment()), 4)


# ---- the scenarios would notice ------------------------------------------------------------------


def on_two(scenario) -> None:
    dist.run_local(2, lambda rank: scenario(), timeout=60)


def test_gradients_that_are_not_reduced_are_noticed(monkeypatch):
    def keep_own(self, lane):  # this rank's part of its own gradients, not of the sum
        section = lane.flat.reshape(lane.layout.n, lane.layout.section)
        lane.out = section[0 if self.unit.shards is None else self.unit.shards.rank()].copy()

    monkeypatch.setattr(Reduction, "_launch", keep_own)
    for scenario in (fsdp_scenarios.gradients_equal_one_process, fsdp_scenarios.weights_after_20_steps):
        with pytest.raises(AssertionError):
            on_two(scenario)


def test_the_norm_of_a_shard_is_noticed(monkeypatch):
    monkeypatch.setattr(_norms, "_over_ranks", lambda groups, value, p: value)
    for scenario in (
        fsdp_scenarios.clipping_takes_the_norm_over_all_ranks,
        fsdp_scenarios.weights_after_20_steps,
    ):
        with pytest.raises(AssertionError):
            on_two(scenario)


def test_accumulation_that_is_never_synchronised_is_noticed(monkeypatch):
    monkeypatch.setattr(
        FSDPModule, "set_requires_gradient_sync",
        lambda self, value, recurse=True: [setattr(u, "sync", False) for u in self._units(True)],
    )  # fmt: skip
    with pytest.raises(AssertionError):
        on_two(fsdp_scenarios.gradients_accumulate)


def test_accumulated_gradients_that_are_dropped_are_noticed(monkeypatch):
    real = Unit.accumulate

    def drop(self):
        real(self)
        for p in self.params:
            p.whole._grad = p.accumulated = None

    monkeypatch.setattr(Unit, "accumulate", drop)
    with pytest.raises(AssertionError):
        on_two(fsdp_scenarios.gradients_accumulate)


def test_parameters_that_stay_whole_are_noticed(monkeypatch):
    monkeypatch.setattr(Unit, "after_forward", lambda self: None)
    for scenario in (
        fsdp_counts.bytes_and_calls_follow_the_theory,
        fsdp_counts.peak_of_whole_parameters,
    ):
        with pytest.raises(AssertionError):
            on_two(scenario)


def test_a_gather_that_comes_too_late_is_noticed(monkeypatch):
    monkeypatch.setattr(State, "_prefetch_next", lambda self, context: None)
    on_two(fsdp_scenarios.gradients_equal_one_process)  # the values are right all the same
    with pytest.raises((AssertionError, ValueError)):
        on_two(fsdp_counts.the_next_unit_is_gathered_before_this_ones_forward_ends)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("scenario", fsdp_wrapper_scenarios.SCENARIOS, ids=lambda s: s.__name__)
def test_the_older_wrapper(scenario, n):
    dist.run_local(n, lambda rank: scenario(), timeout=100)


def test_a_container_that_is_wrapped_is_told():
    def run(rank):
        model = FullyShardedDataParallel(build(Stack), auto_wrap_policy=always_wrap_policy)
        return len(FullyShardedDataParallel.fsdp_modules(model))

    with pytest.warns(UserWarning, match="containers"):
        assert dist.run_local(1, run) == [16]
