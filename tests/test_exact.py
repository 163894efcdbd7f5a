"""The promise: the same weights, bit by bit, on 1, 2, 3, 4, ... ranks, through interruptions."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import exact_models
import pytest
from exact_models import V, train, train_plainly
from mpi_runner import run_command, run_ranks_of

import disttorch.distributed as dist
from collectives import tree
from disttorch.distributed import exact
from disttorch.distributed.exact import model as exact_model
from disttorch.distributed.exact import tree_sum

WORKER = Path(__file__).parent / "exact_worker.py"
CASES = [(m, o) for m in exact_models.MODELS for o in exact_models.OPTIMIZERS]


def on_threads(n, *args):
    """What training gives on n ranks; all of them the same."""
    results = dist.run_local(n, lambda rank: train(*args), timeout=100)
    assert all(r == results[0] for r in results)
    return results[0]


@pytest.fixture(scope="module")
def alone():
    """Each training on one rank, made once."""
    made = {}

    def get(name, optimizer, steps=8):
        key = (name, optimizer, steps)
        if key not in made:
            made[key] = on_threads(1, *key)
        return made[key]

    return get


@pytest.mark.parametrize("n", [2, 3, 4, 6])
@pytest.mark.parametrize(("name", "optimizer"), CASES)
def test_same_bits_on_any_number_of_ranks(alone, name, optimizer, n):
    assert on_threads(n, name, optimizer, 8) == alone(name, optimizer)


@pytest.mark.parametrize("ranks", [(1, 3, 4), (4, 2, 1), (3, 3, 3)])
@pytest.mark.parametrize(("name", "optimizer"), CASES)
def test_same_bits_when_the_number_of_ranks_changes(alone, tmp_path, name, optimizer, ranks):
    """Interrupted twice, in mid-epoch, each time going on on other ranks."""
    checkpoint = tmp_path / "checkpoint.pt"
    for n, steps in zip(ranks, (2, 5, 8)):
        result = on_threads(n, name, optimizer, steps, checkpoint)
    assert result == alone(name, optimizer)


def digests_of(output):
    return re.findall(r"rank (\d) of (\d): ([0-9a-f]{64})", output)


@pytest.mark.parametrize(("name", "optimizer"), [("cnn", "sgd"), ("gpt", "adamw")])
def test_same_bits_over_mpi_with_an_interruption(alone, tmp_path, name, optimizer):
    checkpoint = str(tmp_path / "checkpoint.pt")
    for n, steps in ((2, 5), (3, 8)):
        job = run_ranks_of(WORKER, n, name, optimizer, str(steps), checkpoint, timeout=100)
        assert job.status == 0 and not job.timed_out, job.output[-4000:]
    wanted = alone(name, optimizer)["digest"]
    assert sorted(digests_of(job.output)) == [(str(r), "3", wanted) for r in range(3)]


def test_same_bits_in_spawned_processes_with_other_thread_budgets(alone):
    """OpenBLAS is told to use 2 threads by the environment; exact mode takes that back."""
    command = [
        sys.executable, "-m", "launcher", "--via", "spawn", "-n", "2", "--oversubscribe",
        "--threads-per-rank", "2", str(WORKER), "mlp", "sgd", "8",
    ]  # fmt: skip
    job = run_command(command, timeout=100)
    assert job.status == 0 and not job.timed_out, job.output[-4000:]
    wanted = alone("mlp", "sgd")["digest"]
    assert sorted(digests_of(job.output)) == [(str(r), "2", wanted) for r in range(2)]


def ratios(output):
    """Bytes that each rank has received (in shared memory one writes for all), by the bound."""
    found = re.findall(r"received (\d+) bytes, at least (\d+)", output)
    return [int(moved) / int(least) for moved, least in found]


@pytest.mark.parametrize(("n", "least", "most"), [(2, 1.4, 1.6), (3, 0.99, 1.01), (4, 1.4, 1.8)])
def test_volume_and_bits_in_processes(alone, n, least, most):
    """12 shards: 4 on each of 3 ranks are one node of the tree; 6 and 3 are two nodes."""
    command = [
        sys.executable, "-m", "launcher", "--via", "spawn", "-n", str(n), "--oversubscribe",
        str(WORKER), "gpt", "sgd", "1",
    ]  # fmt: skip
    job = run_command(command, timeout=100)
    assert job.status == 0 and not job.timed_out, job.output[-4000:]
    wanted = alone("gpt", "sgd", 1)["digest"]
    assert sorted(digests_of(job.output)) == [(str(r), str(n), wanted) for r in range(n)]
    assert len(found := ratios(job.output)) == n
    assert all(least < ratio < most for ratio in found), found


BEFORE = """
import disttorch as torch
import disttorch.nn.functional as F
from disttorch.utils.data import DataLoader, TensorDataset
g = torch.Generator().manual_seed(0)
data = TensorDataset(torch.randn(200, 5, generator=g), torch.randint(0, 3, (200,), generator=g))
Net = lambda: torch.nn.Linear(5, 3)
"""


def test_the_lines_of_the_documentation(tmp_path):
    text = (WORKER.parent.parent / "docs" / "exact.md").read_text()
    lines = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    script = tmp_path / "lines.py"
    script.write_text(f"{BEFORE}{lines}print('digest', model.step_number, model.digest())\n")
    found = set()
    for n in ("1", "3"):
        command = [
            sys.executable, "-m", "launcher", "--via", "spawn", "-n", n, "--oversubscribe", str(script)
        ]  # fmt: skip
        job = run_command(command, timeout=60)
        assert job.status == 0 and not job.timed_out, job.output[-4000:]
        found |= set(re.findall(r"digest 30 ([0-9a-f]{64})", job.output))
    assert len(found) == 1


# ---- the tests would notice ----------------------------------------------------------------------


@pytest.mark.parametrize(("name", "optimizer"), [("mlp", "sgd"), ("gpt", "adamw")])
def test_plain_data_parallelism_gives_other_bits(name, optimizer):
    found = {
        dist.run_local(n, lambda rank: train_plainly(name, optimizer, 4), timeout=60)[0]
        for n in (1, 2, 3)
    }
    assert len(found) == 3


def test_a_sum_in_another_order_is_noticed(alone, monkeypatch):
    monkeypatch.setattr(tree.Frontier, "_siblings", lambda self, left, right: True)
    monkeypatch.setattr(tree, "frontier", lambda leaves, begin, end: [(begin, end)])
    changed = on_threads(1, "mlp", "sgd", 8)
    assert changed["digest"] != alone("mlp", "sgd")["digest"]


def test_random_numbers_that_go_on_from_shard_to_shard_are_noticed(alone, monkeypatch):
    def by_rank(seed, step, shard, kind):
        each = V // dist.get_world_size()
        return exact.random_stream(seed, step, shard % each, kind)

    monkeypatch.setattr(exact_model, "random_stream", by_rank)
    assert on_threads(2, "mlp", "sgd", 3)["digest"] != on_threads(3, "mlp", "sgd", 3)["digest"]


def test_statistics_that_go_on_from_shard_to_shard_are_noticed(monkeypatch):
    monkeypatch.setattr(exact_model.RunningBuffers, "collect", lambda self: None)
    with pytest.raises((RuntimeError, AssertionError)):
        assert on_threads(2, "cnn", "sgd", 2) == on_threads(3, "cnn", "sgd", 2)


def test_a_mean_over_ranks_instead_of_shards_is_noticed(alone, monkeypatch):
    real = tree_sum.TreeSum.total

    def total(self):
        sums, counts, samples = real(self)
        for array in sums:  # as a float that is not the same sum
            array *= 1 + 2**-23
        return sums, counts, samples

    monkeypatch.setattr(tree_sum.TreeSum, "total", total)
    assert on_threads(2, "mlp", "sgd", 8)["digest"] != alone("mlp", "sgd")["digest"]
