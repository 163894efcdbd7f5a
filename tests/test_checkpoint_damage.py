"""What can go wrong with checkpoints: kills, full disks, flipped bits, lost files."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import checkpoint_states as states
import checkpoint_worker
import mpi_runner
import pytest
from checkpoint_kills import check_last

import disttorch as torch
import disttorch.distributed as dist
import disttorch.distributed.checkpoint as dcp
from disttorch.distributed.checkpoint import manifest

WORKER = Path(__file__).with_name("checkpoint_worker.py")
KILLS = int(os.environ.get("CHECKPOINT_KILLS", "40"))
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")


# ---- kills ------------------------------------------------------------------------------------------


@pytest.mark.timeout(600)
@pytest.mark.parametrize("options", [(), ("async",)])
def test_killed_while_saving_there_is_a_whole_checkpoint(tmp_path, options):
    """In a process of its own, which forks the lives that it ends."""
    script = str(Path(__file__).with_name("checkpoint_kills.py"))
    done = mpi_runner.run_command(
        [sys.executable, script, str(tmp_path), str(KILLS // 2), "1", *options], timeout=500
    )
    assert done.status == 0, done.output
    steps, torn = map(int, done.output.split()[-2:])
    assert steps >= KILLS // 2
    assert torn, "no kill fell into a save: the test tests nothing"
    assert len(dcp.CheckpointManager(tmp_path).steps()) <= 3


@pytest.mark.timeout(300)
@pytest.mark.parametrize("step", ["2", "1"], ids=["the next step", "the same step again"])
def test_killed_at_every_operation_on_files(tmp_path, step):
    command = [sys.executable, str(Path(__file__).with_name("checkpoint_kills.py"))]
    done = mpi_runner.run_command([*command, str(tmp_path / "c"), "every", step], timeout=250)
    assert done.status == 0, done.output
    assert int(done.output.split()[-1]) > 30


@pytest.mark.parametrize("n", [2])
def test_killed_ranks_leave_a_whole_checkpoint(tmp_path, n):
    """A job of several processes, killed as a whole or one rank of it."""
    rng = random.Random(3)
    command = [sys.executable, "-m", "launcher", "--via", "spawn", "-n", str(n), str(WORKER), "save"]
    announced = -1
    for _ in range(max(2, KILLS // 10)):
        job = subprocess.Popen(
            [*command, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=mpi_runner.clean_environment(), text=True, start_new_session=True,
        )  # fmt: skip
        try:
            for _ in range(rng.randrange(2, 6)):
                line = job.stdout.readline()
                assert line, "the job ended by itself"
                announced = max(announced, int(line.split()[-1]))
        finally:
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()
        job.stdout.close()
        assert check_last(tmp_path, announced) >= announced


# ---- damage -----------------------------------------------------------------------------------------


def two_steps(folder) -> dcp.CheckpointManager:
    """Steps 1 and 2, each of three ranks."""

    def rank_main(rank: int) -> None:
        manager = dcp.CheckpointManager(folder)
        for step in (1, 2):
            state = checkpoint_worker.state_of(step)
            state["weights"] = states.laid_out(state["weights"], "boxes", rank, 3)
            manager.save(step, state)

    dist.run_local(3, rank_main)
    return dcp.CheckpointManager(folder)


def load_and_see(manager, damaged: str) -> None:
    """The damaged file is named, and step 1 loaded."""
    state = checkpoint_worker.state_of(0)
    with pytest.warns(UserWarning, match="checkpoint of step 2 is not used") as caught:
        step = manager.load_latest(state)
    assert damaged in str(caught[0].message)
    assert step == 1
    checkpoint_worker.check_whole(state, 1)


def test_any_flipped_bit_is_found_and_its_file_named(tmp_path):
    manager = two_steps(tmp_path)
    rng = random.Random(5)
    folder = Path(manager.folder(2))
    names = sorted(os.listdir(folder))
    assert len(names) == 4
    for name in names:
        path = folder / name
        good = path.read_bytes()
        header = 8 + int.from_bytes(good[:8], "little")
        edges = [0, 8, 9, len(good) - 1] + ([header - 1, header] if name != "manifest.json" else [])
        for place in [*edges, *(rng.randrange(len(good)) for _ in range(25))]:
            bad = bytearray(good)
            bad[place] ^= 1 << rng.randrange(8)
            path.write_bytes(bad)
            with pytest.raises(dcp.DamagedCheckpoint, match=name):
                dcp.verify(folder)
            load_and_see(manager, name)
        path.write_bytes(good)
    dcp.verify(folder)


def test_any_truncation_or_loss_is_found_and_its_file_named(tmp_path):
    manager = two_steps(tmp_path)
    folder = Path(manager.folder(2))
    for name in sorted(os.listdir(folder)):
        path = folder / name
        good = path.read_bytes()
        for length in (0, 1, 7, len(good) // 2, len(good) - 1, len(good) + 1):
            path.write_bytes(good[:length] + b"\0" * (length - len(good)))
            with pytest.raises(dcp.DamagedCheckpoint, match=name):
                dcp.verify(folder)
            load_and_see(manager, name)
        path.unlink()
        with pytest.raises(dcp.DamagedCheckpoint, match=name):
            dcp.verify(folder)
        if name != "manifest.json":
            load_and_see(manager, f"{name} is missing")
        path.write_bytes(good)
    (folder / "manifest.json").unlink()
    assert manager.load_latest(checkpoint_worker.state_of(0)) == 1  # a save that did not end


def test_files_of_another_save_are_not_taken_for_this_one(tmp_path):
    """The data of step 1 under the names of step 2: right sizes, wrong contents."""
    manager = two_steps(tmp_path)
    one, two = (sorted(Path(manager.folder(s)).glob("*.safetensors")) for s in (1, 2))
    for source, target in zip(one, two):
        shutil.copy(source, target)
    assert manager.steps() == [1, 2], "their sizes are right"
    load_and_see(manager, two[0].name)


def test_damage_is_found_while_loading_too(tmp_path):
    """Without the check before, what is read is checked; nothing of a bad block is copied."""
    manager = two_steps(tmp_path)
    path = max(Path(manager.folder(2)).glob("*.safetensors"), key=os.path.getsize)
    bad = bytearray(path.read_bytes())
    bad[-1] ^= 1
    path.write_bytes(bad)
    state = checkpoint_worker.state_of(0)
    with pytest.raises(dcp.CheckpointException, match=path.name):
        dcp.load(state, checkpoint_id=manager.folder(2))
    with pytest.warns(UserWarning, match=path.name):
        assert manager.load_latest(state, check=False) == 1
    checkpoint_worker.check_whole(state, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e["shards"][0].update(file="../../secret"), "leads out of the folder"),
        (lambda e: e["shards"][0].update(bytes=[-8, 4]), "checksums for the bytes -8 to 4"),
        (lambda e: e["shards"][0].update(checksums=[]), "0 checksums for the bytes"),
        (lambda e: e["shards"][0].update(shape=[1 << 40]), "bytes for a shard of shape"),
        (lambda e: e.update(shape=[4]), "chunks-volume: 3"),
        (lambda e: e.update(dtype="object"), "KeyError: 'object'"),
        (lambda e: e.update(shards=None), "TypeError"),
        (lambda e: e.update(kind="pickle"), "KeyError"),
    ],
)
def test_a_manifest_that_someone_made_up(tmp_path, change, message):
    """Its checksum is right, its content is not."""
    dcp.save({"w": torch.ones(3)}, checkpoint_id=tmp_path)
    content = manifest.read(str(tmp_path))
    change(content["entries"]["w"])
    manifest.write(str(tmp_path), content)
    with pytest.raises(dcp.CheckpointException, match=message):
        dcp.load({"w": torch.zeros(3)}, checkpoint_id=tmp_path)
    with pytest.raises(dcp.DamagedCheckpoint):
        dcp.verify(tmp_path)


def test_all_ranks_take_the_same_checkpoint(tmp_path):
    """Only one file is bad, and only one rank would read it."""
    manager = two_steps(tmp_path)
    path = sorted(Path(manager.folder(2)).glob("rank-00002*"))[0]
    path.write_bytes(path.read_bytes()[:-3])

    def rank_main(rank: int) -> int | None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = checkpoint_worker.state_of(0)
            state["weights"] = states.laid_out(state["weights"], "boxes", rank, 4)
            step = dcp.CheckpointManager(tmp_path).load_latest(state)
        for part in state["weights"].values():
            assert all((tensor == 1).all() for tensor in part.shards.values())
        return step

    assert dist.run_local(4, rank_main) == [1] * 4


def test_when_none_is_whole_it_does_not_begin_anew(tmp_path):
    manager = two_steps(tmp_path)
    assert dcp.CheckpointManager(tmp_path / "empty").load_latest({"x": 1}) is None
    for step in (1, 2):
        next(Path(manager.folder(step)).glob("*.safetensors")).unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(dcp.DamagedCheckpoint, match="none of the 2 checkpoints"):
            manager.load_latest(checkpoint_worker.state_of(0))


def test_a_state_that_does_not_fit_is_no_damage(tmp_path):
    manager = two_steps(tmp_path)
    with pytest.raises(dcp.CheckpointException, match="Missing key in checkpoint state_dict: other"):
        manager.load_latest({"other": torch.zeros(1)})


# ---- a full disk ------------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path):
    manager = dcp.CheckpointManager(tmp_path)
    manager.save(1, checkpoint_worker.state_of(1))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for limit in (10, 700, 20_000, 100_000):  # in the header, in tensors, in the last ones
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
            for step in (1, 2):  # the same folder, and one of its own
                with pytest.raises(dcp.CheckpointException, match="File too large"):
                    manager.save(step, checkpoint_worker.state_of(7))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert check_last(tmp_path, 1) == 1
    assert len(os.listdir(manager.folder(1))) == 2 and not os.listdir(manager.folder(2))
    manager.save(3, checkpoint_worker.state_of(3))
    assert manager.steps() == [1, 3] and not os.path.exists(manager.folder(2))


@pytest.mark.parametrize("rank_that_fails", [0, 1])
def test_one_rank_s_full_disk_fails_all(tmp_path, monkeypatch, rank_that_fails):
    from disttorch.distributed.checkpoint import filesystem

    write = filesystem.write_file

    def full(path, *args):
        if f"rank-{rank_that_fails:05d}" in path and "step-00000002" in path:
            raise OSError(28, "No space left on device")
        return write(path, *args)

    monkeypatch.setattr(filesystem, "write_file", full)

    def rank_main(rank: int) -> list[int]:
        manager = dcp.CheckpointManager(tmp_path)
        state = states.laid_out(states.tensors(), "boxes", rank, 2)
        manager.save(1, state)
        with pytest.raises(dcp.CheckpointException, match="No space left") as caught:
            manager.save(2, state)
        assert list(caught.value.failures) == [rank_that_fails]
        return manager.steps()

    assert dist.run_local(2, rank_main) == [[1], [1]]
