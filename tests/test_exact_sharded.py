"""The same weights, too, whether parameters and optimizer state are whole or cut over the ranks."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from exact_layouts import STEPS, prepare, train
from exact_models import V, data, loss_of
from mpi_runner import run_command

import disttorch.distributed as dist
from disttorch.distributed.exact import sharded

WORKER = Path(__file__).parent / "exact_worker.py"


def on(n, *args):
    found = set(dist.run_local(n, lambda rank: train(*args), timeout=100))
    assert len(found) == 1
    return found.pop()


@pytest.fixture(scope="module")
def alone():
    made = {}

    def get(name, optimizer):
        key = (name, optimizer)
        if key not in made:
            made[key] = on(1, name, optimizer, "whole")
        return made[key]

    return get


@pytest.mark.parametrize(
    ("layout", "ranks"),
    [
        ("sharded", (1, 2, 3, 4)), ("kept", (3,)), ("hybrid", (2, 4)), ("zero", (2, 3, 4)),
        ("whole", (4,)),
    ],
)
@pytest.mark.parametrize(("name", "optimizer"), [("mlp", "sgd"), ("cnn", "adamw"), ("gpt", "adamw")])
def test_same_bits_in_any_layout(alone, name, optimizer, layout, ranks):
    for n in ranks:
        assert on(n, name, optimizer, layout) == alone(name, optimizer), (layout, n)


@pytest.mark.parametrize(("name", "optimizer"), [("cnn", "sgd"), ("gpt", "adamw")])
def test_same_bits_through_checkpoints_of_other_layouts(alone, tmp_path, name, optimizer):
    root = str(tmp_path / "run")
    places = [(4, "sharded", 2), (2, "whole", 3), (3, "sharded", 5), (4, "hybrid", STEPS)]
    for n, layout, steps in places:
        result = on(n, name, optimizer, layout, steps, root)
    assert result == alone(name, optimizer)


def test_same_bits_in_processes(alone):
    command = [
        sys.executable, "-m", "launcher", "--via", "spawn", "-n", "3", "--oversubscribe",
        str(WORKER), "gpt:sharded", "adamw", str(STEPS),
    ]  # fmt: skip
    job = run_command(command, timeout=100)
    assert job.status == 0 and not job.timed_out, job.output[-4000:]
    wanted = alone("gpt", "adamw")
    assert sorted(re.findall(r"rank (\d) of 3: ([0-9a-f]{64})", job.output)) == [
        (str(rank), wanted) for rank in range(3)
    ]


def test_gradients_of_several_loops_have_no_norm():
    def rank():
        model, _ = prepare("mlp", "sgd", "sharded")
        x, y = data("mlp", V)[:]
        for _ in range(2):
            model.backward(lambda x, y: loss_of(model(x), y), x, y, whole=True)
        with pytest.raises(RuntimeError, match="accumulate over several loops"):
            model.clip_grad_norm_(1.0)

    dist.run_local(2, lambda rank_number: rank(), timeout=30)


def test_a_part_of_another_rank_is_noticed(alone, monkeypatch):
    real = sharded.Layout.own_rows

    def first_rows(self, i, rank):
        return real(self, i, rank)[0], 0

    monkeypatch.setattr(sharded.Layout, "own_rows", first_rows)
    assert on(2, "mlp", "sgd", "whole") == alone("mlp", "sgd")
    with pytest.raises((AssertionError, ValueError)):
        assert on(2, "mlp", "sgd", "sharded") == alone("mlp", "sgd")


