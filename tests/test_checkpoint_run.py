"""Checkpoints of whole runs: resuming, retention, the background."""

from __future__ import annotations

import os
import random
import re
import sys
import threading
from pathlib import Path

import mpi_runner
import pytest
from checkpoint_models import FULL, build, train
from checkpoint_states import same

import disttorch as torch
import disttorch.distributed as dist
import disttorch.distributed.checkpoint as dcp
from disttorch import nn
from disttorch.distributed.checkpoint.staging import copy_state_dict
from disttorch.distributed.checkpoint.state_dict import (
    get_state_dict,
    set_state_dict,
)
from disttorch.utils.data import DataLoader, DistributedSampler

WORKER = Path(__file__).with_name("checkpoint_worker.py")
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")


# ---- resuming ---------------------------------------------------------------------------------------


def samples_of(rank: int, n: int, folder, batches: int | None, *, resume: bool, workers: int = 0):
    """The sample numbers one rank sees in some batches of an epoch, saved afterwards."""
    sampler = DistributedSampler(range(53), n, rank, shuffle=True, seed=3, exact=True)
    loader = DataLoader(range(53), batch_size=2, sampler=sampler, num_workers=workers)
    run = {"run": dcp.RunState(nn.Linear(1, 1), loaders=loader, random_state=False)}
    sampler.set_epoch(4)
    if resume:
        dcp.load(run, checkpoint_id=folder)
    seen = []
    for number, batch in enumerate(loader):
        if number == batches:
            break
        seen += batch.tolist()
        if number + 1 == batches:
            dcp.save(run, storage_writer=quiet(folder))
    return seen


def quiet(folder) -> dcp.FileSystemWriter:
    writer = dcp.FileSystemWriter(folder)
    writer.warns = False
    return writer


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_every_sample_of_an_epoch_is_seen_once(tmp_path, n, m):
    """n ranks, then m, then n again: all 53 samples, each once."""
    plan = [(n, 3, False), (m, 2, True), (n, None, True)]
    seen: list[int] = []
    for ranks, batches, resume in plan:
        parts = dist.run_local(ranks, lambda r, k=ranks, b=batches, s=resume: samples_of(
            r, k, tmp_path, b, resume=s
        ))  # fmt: skip
        counts = [len(part) for part in parts]
        assert max(counts) - min(counts) <= 1
        seen += sum(parts, [])
    assert sorted(seen) == list(range(53))
    assert len(parts[0]) < 53 / n, "the last part was not the whole epoch"


def test_every_sample_is_seen_once_with_workers(tmp_path):
    """What workers have fetched ahead was not given, so it is not counted."""
    first = samples_of(0, 1, tmp_path, 5, resume=False, workers=2)
    rest = dist.run_local(2, lambda r: samples_of(r, 2, tmp_path, None, resume=True))
    assert len(first) == 10 and sorted(first + sum(rest, [])) == list(range(53))


class Noisy(nn.Module):
    """Random numbers in every forward."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 1))

    def forward(self, x):
        return self.net(x) * (1 + 0.01 * random.random())


def everything(seed: int):
    torch.manual_seed(seed)
    random.seed(seed)
    data = torch.arange(60.0).reshape(20, 3) / 60
    model = Noisy()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, gamma=0.5)
    loader = DataLoader(data, batch_size=3, shuffle=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    run = dcp.RunState(model, optimizer, scheduler, loader, scaler=scaler)
    return run, model, optimizer, scheduler, loader


def steps_of(objects, count: int, batches) -> None:
    _, model, optimizer, scheduler, loader = objects
    for _ in range(count):
        batch = next(batches, None)
        if batch is None:
            batches = iter(loader)
            batch = next(batches)
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()
        scheduler.step()


def test_a_resumed_run_ends_in_the_same_bits(tmp_path):
    """In mid-epoch, with dropout, shuffling, a schedule and Python's random numbers."""
    straight = everything(1)
    steps_of(straight, 11, iter(straight[4]))
    broken = everything(1)
    batches = iter(broken[4])
    steps_of(broken, 4, batches)
    manager = dcp.CheckpointManager(tmp_path)
    manager.save(4, {"run": broken[0], "note": "mid-epoch"})
    other = everything(99)
    torch.rand(7), random.random()
    state = {"run": other[0], "note": ""}
    assert manager.load_latest(state) == 4 and state["note"] == "mid-epoch"
    steps_of(other, 7, iter(other[4]))
    assert same(dict(other[1].state_dict()), dict(straight[1].state_dict()))
    assert same(other[2].state_dict(), straight[2].state_dict())
    assert other[3].get_last_lr() == straight[3].get_last_lr()


def test_random_numbers_of_more_ranks_than_saved(tmp_path):
    """Ranks that were there go on; new ones get streams of their own, always the same."""

    def run_of(rank: int):
        mine = torch.Generator().manual_seed(100 + rank)
        run = dcp.RunState(nn.Linear(1, 1), generators={"data": mine}, random_state=False)
        return mine, {"run": run}

    def saved(rank: int):
        mine, state = run_of(rank)
        torch.rand(3, generator=mine)
        dcp.save(state, checkpoint_id=tmp_path)
        return torch.rand(2, generator=mine).tolist()

    def loaded(rank: int):
        mine, state = run_of(50)
        dcp.load(state, checkpoint_id=tmp_path)
        return torch.rand(2, generator=mine).tolist()

    first = dist.run_local(2, saved)
    more, again = dist.run_local(4, loaded), dist.run_local(4, loaded)
    assert more[:2] == first and more == again
    assert len({tuple(numbers) for numbers in more}) == 4
    assert dist.run_local(1, loaded) == first[:1]


# ---- retention --------------------------------------------------------------------------------------


def test_retention(tmp_path):
    manager = dcp.CheckpointManager(tmp_path, keep=2)
    saved = []
    for step in (1, 5, 9, 30):
        manager.save(step, {"x": torch.full((3,), float(step))})
        saved.append(step)
        assert manager.steps() == saved[-2:]
    assert sorted(os.listdir(tmp_path)) == ["step-00000009", "step-00000030"]
    assert manager.steps() == [9, 30] and manager.latest() == 30
    only = dcp.CheckpointManager(tmp_path, keep=1)
    only.save(31, {"x": 1})
    assert only.steps() == [31]
    only.save(31, {"x": 2})
    assert dcp.load_keys(checkpoint_id=only.folder(31)) == {"x": 2}
    with pytest.raises(ValueError, match="keep must be at least 1"):
        dcp.CheckpointManager(tmp_path, keep=0)


def test_a_failed_save_removes_nothing(tmp_path):
    manager = dcp.CheckpointManager(tmp_path, keep=1)
    manager.save(1, {"x": 1})
    with pytest.raises(dcp.CheckpointException):
        manager.save(2, {"x": object()})
    assert manager.steps() == [1]
    assert manager.load_latest({"x": 0}) == 1


def test_damaged_ones_do_not_count_as_kept(tmp_path):
    manager = dcp.CheckpointManager(tmp_path, keep=2)
    for step in (1, 2):
        manager.save(step, {"x": torch.zeros(3)})
    next(Path(manager.folder(2)).glob("*.safetensors")).unlink()
    manager.save(3, {"x": torch.ones(3)})
    assert manager.steps() == [1, 3], "1 is the last whole one before 3"


# ---- in the background ------------------------------------------------------------------------------


def test_async_save_writes_what_was_there(tmp_path):
    """Parameters change as soon as it returns; it waits in the writer until they have."""
    from disttorch.distributed.checkpoint import filesystem

    changed = threading.Event()

    class Late(filesystem.FileSystemWriter):
        def write_data(self, plan, planner):
            assert changed.wait(30)
            return super().write_data(plan, planner)

    def rank_main(rank: int) -> None:
        model, optimizer = build("fsdp", 2)
        model.eval()  # statistics would differ between ranks
        train(model, optimizer, rank, 2, [0])
        before = copy_state_dict(get_state_dict(model, optimizer, options=FULL))
        state = dict(zip("mo", get_state_dict(model, optimizer)))
        future = dcp.async_save(state, storage_writer=Late(tmp_path))
        assert not future.done()
        train(model, optimizer, rank, 2, range(1, 4))
        dist.barrier()
        changed.set()
        assert isinstance(future.result(60), dcp.Metadata)
        dcp.load(state, checkpoint_id=tmp_path)
        set_state_dict(model, optimizer, model_state_dict=state["m"], optim_state_dict=state["o"])
        assert same(copy_state_dict(get_state_dict(model, optimizer, options=FULL)), before)

    dist.run_local(2, rank_main)


def test_a_second_async_save_waits_for_the_first(tmp_path):
    begun, written = [], []

    class Slow(dcp.FileSystemWriter):
        def finish(self, metadata, results):
            written.append(len(begun))
            super().finish(metadata, results)

    futures = []
    for i in range(3):
        futures.append(dcp.async_save({"i": i}, storage_writer=Slow(tmp_path / str(i))))
        begun.append(i)
    assert all(f.result(60) for f in futures)
    assert all(count <= i + 1 for i, count in enumerate(written)), "one was begun before another ended"
    assert [dcp.load_keys(checkpoint_id=tmp_path / str(i))["i"] for i in range(3)] == [0, 1, 2]


def test_errors_of_async_saves_are_told(tmp_path):
    future = dcp.async_save({"x": 1}, storage_writer=dcp.FileSystemWriter("/dev/null/nowhere"))
    with pytest.raises(dcp.CheckpointException, match="Not a directory"):
        future.result(60)
    dcp.async_save({"x": 1}, checkpoint_id=tmp_path).result(60)
    manager = dcp.CheckpointManager("/dev/null/nowhere", asynchronous=True)
    manager.save(1, {"x": 1})
    with pytest.raises(dcp.CheckpointException, match="Not a directory"):
        manager.wait()


def test_stagers(tmp_path):
    from disttorch.distributed.checkpoint import staging
    from disttorch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

    stager = staging.DefaultStager()
    weight = torch.ones(3)
    response = dcp.async_save({"w": weight}, checkpoint_id=tmp_path / "a", async_stager=stager)
    response.staging_completion.result(60)
    weight.zero_()
    response.upload_completion.result(60)
    assert dcp.load_keys(checkpoint_id=tmp_path / "a")["w"].tolist() == [1, 1, 1]
    stager.close()
    assert isinstance(staging.BlockingAsyncStager(), staging.AsyncStager)
    with pytest.raises(NotImplementedError, match="process"):
        dcp.async_save({}, checkpoint_id=tmp_path, async_checkpointer_type=AsyncCheckpointerType.PROCESS)


# ---- processes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3])
def test_ranks_that_are_mpi_processes(tmp_path, n):
    done = mpi_runner.run_ranks_of(WORKER, n, "reshard", str(tmp_path), timeout=100)
    assert done.status == 0, done.output
    assert done.output.count("resharded over") == n, done.output


def test_ranks_over_sockets(tmp_path):
    command = [sys.executable, "-m", "launcher", "--via", "spawn", "-n", "2", str(WORKER)]
    done = mpi_runner.run_command([*command, "reshard", str(tmp_path)], timeout=100)
    assert done.status == 0, done.output
    assert done.output.count("resharded over") == 2, done.output


def test_a_sharded_run_goes_on_on_other_numbers_of_processes(tmp_path):
    """2, 3 and 2 processes: steps and rates go on, and the epoch's 42 samples are seen once."""
    seen: list[int] = []
    steps = 0
    for n, batches in ((2, 3), (3, 2), (2, 100)):
        done = mpi_runner.run_ranks_of(WORKER, n, "train", str(tmp_path), str(batches), timeout=100)
        assert done.status == 0, done.output
        parts = re.findall(r"<saw \[(.*?)\]>", done.output)
        reports = re.findall(r"<rank \d of \d steps (\d+) (\S+) rate (\S+)>", done.output)
        assert len(parts) == len(reports) == n
        samples = [int(number) for part in parts for number in part.split(",")]
        steps += -(-len(samples) // (2 * n))
        for count, of_optimizer, rate in reports:
            assert int(count) == int(float(of_optimizer)) == steps
            assert float(rate) == 0.01 * 0.5 ** (steps // 2)
        seen += samples
    assert sorted(seen) == list(range(42))
