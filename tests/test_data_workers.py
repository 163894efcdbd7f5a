"""Worker processes of the loader: order, seeds, errors, deaths, Ctrl-C, and nothing left behind."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

import disttorch as torch
from disttorch.utils import data


class Images(data.Dataset):
    """Samples large enough for shared memory."""

    def __init__(self, n=24, shape=(64, 64)):
        self.n, self.shape = n, shape

    def __getitem__(self, i):
        return {"x": torch.full(self.shape, float(i)), "y": i, "name": f"image {i}",
                "raw": np.full(5000, i, np.uint8)}

    def __len__(self):
        return self.n


class Small(data.Dataset):
    def __init__(self, n=12):
        self.n = n

    def __getitem__(self, i):
        return i * i

    def __len__(self):
        return self.n


class Shards(data.IterableDataset):
    """Each worker reads its part; worker 1's is shorter."""

    def __iter__(self):
        info = data.get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        yield from range(worker, 10 - 6 * (worker == 1), workers)


class Broken(Small):
    def __init__(self, error):
        super().__init__(8)
        self.error = error

    def __getitem__(self, i):
        if i == 5:
            raise self.error
        return i


class Odd(Exception):
    def __init__(self, a, b):
        super().__init__(a, b)


class Suicide(Small):
    def __init__(self, how):
        super().__init__(8)
        self.how = how

    def __getitem__(self, i):
        if i == 5:
            self.how()
        return i


def kill_self():
    os.kill(os.getpid(), signal.SIGKILL)


def exit_self():
    os._exit(7)


class Sleepy(Small):
    def __getitem__(self, i):
        time.sleep(30 if i == 3 else 0)
        return i


class SlowStart(Small):
    def __getitem__(self, i):
        if i == 0:
            time.sleep(0.5)
        return i


class Facts(data.Dataset):
    def __getitem__(self, i):
        info = data.get_worker_info()
        drawn = torch.randint(1 << 40, (1,)).item(), random.random(), np.random.rand()
        return os.getpid(), info.id, info.seed, *drawn, len(info.dataset), TOUCHED

    def __len__(self):
        return 8


TOUCHED = None


def touch(worker_id):
    global TOUCHED
    TOUCHED = worker_id


def as_it_is(sample):
    return sample


def a_function(batch):
    return lambda: batch


def fail_to_start(worker_id):
    raise KeyError(f"no start {worker_id}")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def nothing_is_left_behind():
    gc.collect()
    before = set(os.listdir("/dev/shm")), descriptors()
    yield
    gc.collect()
    assert not [p for p in multiprocessing.active_children() if not _is_server(p)]
    mine = {n for n in set(os.listdir("/dev/shm")) - before[0] if "disttorch" in n or "psm_" in n}
    assert not mine
    assert descriptors() <= before[1] + 3  # the forkserver and its tracker stay


def _is_server(process) -> bool:
    return "ForkServer" in type(process).__name__ and not process.is_alive()


# ---------------------------------------------------------------- what comes out
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_batches_are_those_of_one_process(method):
    expected = list(data.DataLoader(Images(), 5))
    loader = data.DataLoader(Images(), 5, num_workers=2, multiprocessing_context=method)
    got = list(loader)
    assert len(got) == len(expected) == len(loader) == 5
    for a, b in zip(got, expected):
        assert torch.equal(a["x"], b["x"]) and torch.equal(a["raw"], b["raw"])
        assert torch.equal(a["y"], b["y"]) and a["name"] == b["name"]
    got[0]["x"] += 1  # a batch is the user's own
    assert got[0]["x"][0, 0, 0].item() == 1 and got[1]["x"][0, 0, 0].item() == 5


@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("keep", [False, True])
def test_every_number_of_workers_gives_the_same(workers, keep):
    torch.manual_seed(5)
    loader = data.DataLoader(Small(30), 4, shuffle=True, num_workers=workers,
                             persistent_workers=keep and workers > 0)
    passes = [[x for b in loader for x in b.tolist()] for _ in range(2)]
    torch.manual_seed(5)
    alone = data.DataLoader(Small(30), 4, shuffle=True)
    assert passes == [[x for b in alone for x in b.tolist()] for _ in range(2)]


def test_all_kinds_of_tensors_travel():
    samples = [
        torch.ones(300, 300, dtype=d) for d in (torch.bfloat16, torch.float16, torch.complex64)
    ] + [torch.zeros(0, 3), torch.tensor(2.5), torch.randn(200, 300).t(), torch.ones(3) > 2,
         torch.nn.Parameter(torch.ones(100, 100))]
    loader = data.DataLoader(samples, None, num_workers=2)
    got = list(loader)
    for a, b in zip(got, samples):
        assert a.dtype is b.dtype and a.shape == b.shape and torch.equal(a, b)
    assert got[-1].requires_grad and isinstance(got[-1], torch.nn.Parameter)


def test_more_arrays_than_descriptors_in_one_message():
    samples = [[np.full(5000, i, np.float64) for i in range(150)]]
    (batch,) = data.DataLoader(samples, None, num_workers=1, collate_fn=as_it_is)
    assert [a[17] for a in batch] == list(range(150))


def test_streams_are_shared_out_and_may_differ_in_length():
    loader = data.DataLoader(Shards(), 2, num_workers=2)
    for _ in range(2):
        assert [b.tolist() for b in loader] == [[0, 2], [1, 3], [4, 6], [8]]
    assert [b.tolist() for b in data.DataLoader(Shards(), 5)] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    whole = data.DataLoader(Shards(), 2, num_workers=2, drop_last=True)
    assert [b.tolist() for b in whole] == [[0, 2], [1, 3], [4, 6]]


def test_without_order_the_fast_ones_come_first():
    got = [b.item() for b in data.DataLoader(SlowStart(8), 1, num_workers=2, in_order=False)]
    assert sorted(got) == list(range(8)) and got[0] != 0


def test_seeds_info_and_init():
    def facts(keep=False):
        torch.manual_seed(11)
        loader = data.DataLoader(Facts(), None, num_workers=2, worker_init_fn=touch,
                                 persistent_workers=keep, collate_fn=tuple)
        return list(loader), list(loader)

    (first, second), (again, _) = facts(), facts()
    assert [f[1] for f in first] == [0, 1] * 4 and {f[7] for f in first} == {0, 1}
    assert first[0][2] + 1 == first[1][2] and all(f[6] == 8 for f in first)
    assert [f[2:6] for f in first] == [f[2:6] for f in again]
    assert len({f[3:6] for f in first + second}) == 16  # other numbers in each worker and pass
    assert {f[0] for f in first}.isdisjoint(f[0] for f in second)
    kept, kept_too = facts(keep=True)
    assert {f[0] for f in kept} == {f[0] for f in kept_too} and data.get_worker_info() is None


def test_a_pass_left_early_and_another():
    loader = data.DataLoader(Images(), 2, num_workers=2, persistent_workers=True, prefetch_factor=3)
    for _ in range(3):
        assert next(iter(loader))["y"].tolist() == [0, 1]
    assert [b["y"][0].item() for b in loader] == list(range(0, 24, 2))
    state = loader.state_dict()
    assert state["batches"] == 0
    for k, _ in enumerate(loader):
        if k == 4:
            break
    assert loader.state_dict()["sampler"] == {"consumed": 10}  # not what was asked for in advance


# ---------------------------------------------------------------- what goes wrong
@pytest.mark.parametrize("error", [ValueError("five"), KeyError("five"), Odd(1, 2)], ids=repr)
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_an_exception_has_the_workers_traceback(error, method):
    loader = data.DataLoader(Broken(error), 2, num_workers=2, multiprocessing_context=method)
    kind = RuntimeError if isinstance(error, Odd) else type(error)
    seen = []
    with pytest.raises(kind) as caught:
        for batch in loader:
            seen.append(batch.tolist())
    text = str(caught.value)
    assert seen == [[0, 1], [2, 3]]
    assert f"Caught {type(error).__name__} in DataLoader worker process 0.\nOriginal" in text
    assert "test_data_workers.py" in text and "raise self.error" in text


def test_errors_before_the_first_batch():
    loader = data.DataLoader(Small(), num_workers=2, worker_init_fn=fail_to_start)
    with pytest.raises(KeyError, match="no start 0"):
        next(iter(loader))
    unsendable = data.DataLoader(Small(), num_workers=1, collate_fn=a_function)
    with pytest.raises(Exception, match="a_function.<locals>.<lambda>"):
        next(iter(unsendable))
    spawn = data.DataLoader(Small(), num_workers=2, multiprocessing_context="spawn",
                            collate_fn=lambda batch: batch)
    with pytest.raises(pickle.PicklingError, match="Define them at the top of a module"):
        iter(spawn)


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("how, text", [(kill_self, "SIGKILL"), (exit_self, "exit code 7")])
def test_a_dead_worker_is_named(how, text, method):
    loader = data.DataLoader(Suicide(how), 1, num_workers=2, multiprocessing_context=method)
    batches = iter(loader)
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid \d+\)") as caught:
        for _ in range(8):
            next(batches)
    assert text in str(caught.value)


def test_a_worker_killed_from_outside():
    loader = data.DataLoader(Small(400), 1, num_workers=2, persistent_workers=True)
    batches = iter(loader)
    next(batches)
    victim = batches._workers._workers[1].pid
    os.kill(victim, signal.SIGTERM)
    with pytest.raises(RuntimeError, match=f"pid {victim}.*SIGTERM"):
        list(batches)
    assert len(list(loader)) == 400  # the next pass has new workers


def test_timeout():
    loader = data.DataLoader(Sleepy(), 1, num_workers=2, timeout=0.5)
    begin = time.monotonic()
    with pytest.raises(RuntimeError, match="timed out after 0.5 seconds"):
        list(loader)
    assert time.monotonic() - begin < 25  # it did not wait for the sleeper either


SCRIPT = """
    import os, sys, time
    import disttorch as torch
    from disttorch.utils import data

    class Slow(data.Dataset):
        def __len__(self):
            return 1000

        def __getitem__(self, i):
            if i > 8:
                time.sleep(20)
            return torch.ones(200, 200) * i

    if __name__ == "__main__":
        loader = data.DataLoader(Slow(), 1, num_workers=2, multiprocessing_context=sys.argv[1])
        batches = iter(loader)
        print(*(w.pid for w in batches._workers._workers), flush=True)
        for batch in batches:
            print("batch", flush=True)
"""


def gone(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
def test_no_worker_outlives_the_loader(tmp_path, method, blow):
    script = tmp_path / "slow.py"
    script.write_text(textwrap.dedent(SCRIPT))
    process = subprocess.Popen(
        [sys.executable, str(script), method], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        # a shell's background jobs ignore it, and so would the script
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        pids = [int(p) for p in process.stdout.readline().split()]
        assert len(pids) == 2 and process.stdout.readline() == "batch\n"
        if blow is signal.SIGINT:  # as a terminal does: to all of them
            os.killpg(process.pid, blow)
        else:
            process.send_signal(blow)
        _, errors = process.communicate(timeout=20)
        deadline = time.monotonic() + 10
        while not all(map(gone, pids)) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert all(map(gone, pids))
        if blow is signal.SIGINT:
            assert errors.count("Traceback") == 1 and errors.rstrip().endswith("KeyboardInterrupt")
    finally:
        process.kill()
        process.wait()
