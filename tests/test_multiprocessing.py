"""Tensors shared between processes; spawn is in test_multiprocessing_spawn.py."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import resource
import socket
import subprocess
import sys
from multiprocessing.reduction import ForkingPickler

import multiprocessing_jobs as jobs
import pytest
from multiprocessing_jobs import METHODS, is_running, until

import disttorch as torch
import disttorch.multiprocessing as mp
from disttorch import nn
from disttorch.multiprocessing import descriptors, memory, reductions

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*multi-threaded, use of fork:DeprecationWarning"  # the fork method, from Python 3.12
)


def open_files():
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


# ---------------------------------------------------------------- share_memory_
def test_sharing_moves_all_that_look_at_the_memory():
    t = torch.arange(12.0).reshape(3, 4)
    row, detached, column = t[1], t.detach(), t.t()[1]
    storage, bits = t.untyped_storage(), t.view(torch.int32)
    loose = torch.arange(12.0)
    assert not t.is_shared() and not storage.is_shared()
    assert row.share_memory_() is row
    for view in (t, row, detached, column, storage, bits):
        assert view.is_shared()
    assert not loose.is_shared()
    t[1, 1] = 50.0
    assert row[1].item() == detached[1, 1].item() == column[1].item() == 50
    assert bits[1, 1].item() == torch.tensor(50.0).view(torch.int32).item()
    assert storage.data_ptr() == t.data_ptr() and storage.nbytes() == 48
    assert column.stride() == (4,) and column.storage_offset() == 1
    assert column.untyped_storage().data_ptr() == t.data_ptr()  # not a copy of it
    before = t.data_ptr()
    assert t.share_memory_().data_ptr() == before


def test_views_under_autograd_stay_views():
    base = torch.zeros(4, requires_grad=True)
    x = base * 1
    view = x[1:3]
    x.share_memory_()
    view.mul_(0).add_(3)
    assert x.tolist() == [0, 3, 3, 0] and x.is_shared() and view.is_shared()
    x.sum().backward()
    assert base.grad.tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize("make", [
    lambda: torch.tensor(3.5), lambda: torch.empty(0), lambda: torch.zeros(0, 3),
    lambda: torch.ones(2, 3).sum(), lambda: torch.ones(1).expand(4, 3),
    lambda: torch.arange(10)[3:9:2], lambda: torch.ones(3, dtype=torch.complex64).real,
    lambda: torch.arange(6, dtype=torch.uint8)[1:5].view(torch.int16),
    lambda: torch.frombuffer(bytearray(b"abcdefgh"), dtype=torch.int32),
], ids=str)
def test_every_kind_of_tensor_can_be_shared(make):
    t, want = make(), make()
    assert t.share_memory_().is_shared() and t.detach().is_shared()
    assert t.tolist() == want.tolist() and t.dtype is want.dtype
    assert t.shape == want.shape and (t.numel() == 0 or t.stride() == want.stride())


def test_models_are_shared_without_a_look_at_all_objects(monkeypatch):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Conv1d(4, 2, 1), nn.LSTM(2, 3))
    model[0](torch.ones(2, 3)).sum().backward()
    optimizer = torch.optim.Adam(model.parameters())
    optimizer.step()
    monkeypatch.setattr(gc, "get_objects", lambda: pytest.fail("looked at all objects"))
    assert model.share_memory() is model
    monkeypatch.undo()
    for t in (*model.parameters(), *model.buffers(), model[0].weight.grad):
        assert t.is_shared()
    before = model[0].weight.detach().clone()
    optimizer.step()
    assert model[0].weight.is_shared() and not torch.equal(before, model[0].weight)


def test_lazy_modules_are_shared_later():
    model = nn.LazyLinear(2)
    model.share_memory()
    model(torch.ones(1, 3))
    assert not model.weight.is_shared() and model.share_memory().weight.is_shared()


def test_storages():
    s = torch.UntypedStorage(4).fill_(7)
    assert not s.is_shared() and s.share_memory_() is s and s.is_shared() and s.tolist() == [7] * 4
    t = torch.arange(3)
    typed = t.storage()
    assert typed.share_memory_().is_shared() and t.is_shared()
    for storage in (s, typed, torch.FloatStorage([1, 2])):
        twin = pickle.loads(ForkingPickler.dumps(storage))
        assert type(twin) is type(storage) and twin.data_ptr() == storage.data_ptr()
        assert twin.tolist() == storage.tolist() and len(twin) == len(storage)
        twin[0] = 9
        assert storage[0] == 9


def test_memory_and_descriptors_are_given_back():
    files = open_files()
    tensors = [torch.ones(1000).share_memory_() for _ in range(20)]
    view = tensors[0][5:]
    twins = [pickle.loads(ForkingPickler.dumps(t)) for t in tensors]
    twins[0][5] = 3
    assert open_files() <= files + 20 + 3  # one each, and the server's
    del tensors, twins
    assert view[0].item() == 3 and view.is_shared()
    del view
    assert open_files() <= files + 3
    # a file without a name: nobody has to remove it
    block = memory.new_block(8)
    assert os.readlink(f"/proc/self/fd/{block.fd}").startswith("/memfd:")


def test_too_many_open_files():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    tensors = [torch.ones(1) for _ in range(20)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files() + 5, hard))
    try:
        with pytest.raises(OSError, match="ulimit -n"):
            for t in tensors:
                t.share_memory_()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_strategies():
    assert mp.get_sharing_strategy() == "file_descriptor"
    assert mp.get_all_sharing_strategies() == {"file_descriptor", "file_system"}
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        mp.set_sharing_strategy("file_system")
        assert mp.get_sharing_strategy() == "file_system"
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        mp.set_sharing_strategy("file_descriptor")
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with pytest.raises(ValueError, match="not 'carrier_pigeon'"):
        mp.set_sharing_strategy("carrier_pigeon")


def test_the_names_of_the_standard_module():
    for name in multiprocessing.__all__:
        assert getattr(mp, name) is getattr(multiprocessing, name)
    assert set(multiprocessing.__all__) < set(mp.__all__)
    assert all(hasattr(mp, name) for name in mp.__all__)


# ---------------------------------------------------------------- sending
def test_what_cannot_be_sent(monkeypatch):
    x = torch.ones(2, requires_grad=True)
    with pytest.raises(RuntimeError, match="Cowardly refusing to serialize non-leaf tensor"):
        ForkingPickler.dumps(x * 2)
    ForkingPickler.dumps((x * 2).detach())
    x.register_hook(lambda grad: grad)
    with pytest.warns(UserWarning, match="hooks on a tensor stay"):
        ForkingPickler.dumps(x)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    with pytest.raises(NotImplementedError, match=r"send tensor.cpu\(\)"):
        ForkingPickler.dumps(torch.ones(1))


def test_a_message_is_received_once():
    text = ForkingPickler.dumps(torch.ones(3))
    assert pickle.loads(text).tolist() == [1, 1, 1]
    with pytest.raises(ConnectionError, match="received already"):
        pickle.loads(text)


def test_ordinary_pickles_and_copies_stay_private():
    t = torch.ones(3)
    twin = pickle.loads(pickle.dumps(t))
    assert not t.is_shared() and not twin.is_shared()
    t.share_memory_()
    assert not pickle.loads(pickle.dumps(t)).is_shared() and not t.clone().is_shared()


def test_strangers_get_nothing():
    block = memory.new_block(8)
    served = descriptors.send(block.fd)
    with socket.socket(socket.AF_UNIX) as link:  # says nothing
        link.connect(descriptors._bound(served.address))
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(descriptors._bound(served.address))
        link.sendall(bytes(16))
        answer, fds, _, _ = socket.recv_fds(link, 16, 1)
        assert answer == b"-" and not fds
    os.close(served.receive())


def kinds():
    odd = torch.arange(24.0).reshape(2, 3, 4)
    found = {str(dtype): torch.tensor([[0, 1, 1], [1, 0, 1]]).to(dtype) for dtype in (
        torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32,
        torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64, torch.complex128)}
    return {
        **found, "0-dim": torch.tensor(2.5), "empty": torch.zeros(0, 3), "offset": odd[1, 1:],
        "transposed": odd.permute(2, 0, 1), "strided": odd[:, ::2, ::3],
        "leaf": torch.ones(3, requires_grad=True), "parameter": nn.Parameter(torch.ones(2, 2)),
        "frozen": nn.Parameter(torch.ones(2), requires_grad=False),
        "buffer": nn.Buffer(torch.ones(2)), "complex part": torch.ones(2, dtype=torch.complex64).imag,
    }


@pytest.mark.parametrize("method", METHODS)
def test_tensors_to_and_from_a_process(method):
    ours, theirs = mp.Pipe()
    process = mp.get_context(method).Process(target=jobs.echo, args=(theirs,))
    process.start()
    theirs.close()
    for name, t in kinds().items():
        want = (type(t).__name__, t.dtype, tuple(t.shape), t.stride(), t.requires_grad, True,
                t.tolist())
        plus = (t.logical_not() if t.dtype is torch.bool else t + 1).tolist()
        ours.send(t)
        facts, back = ours.recv()
        assert facts == want, name
        assert t.tolist() == back.tolist() == plus, name  # its write is seen here
        assert back.data_ptr() == t.data_ptr() and type(back) is type(t), name
        with torch.no_grad():
            back.zero_()
        assert not t.any().item()
    ours.send(None)
    process.join()
    assert process.exitcode == 0


@pytest.mark.parametrize("method", METHODS)
def test_arguments_of_processes_and_what_several_tensors_share(method):
    t = torch.zeros(3, 2)
    if method == "fork":
        t.share_memory_()
    processes = [mp.get_context(method).Process(target=jobs.add_to, args=(i, (t[i:], t)))
                 for i in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    # process 0: rows 0, twice; process 1: row 1 of t[1:], row 1 of t
    assert t.tolist() == [[2, 2], [2, 2], [2, 2]]
    assert [process.exitcode for process in processes] == [0, 0]


def test_a_fork_copies_what_is_not_shared():
    t = torch.zeros(3, 2)
    process = mp.get_context("fork").Process(target=jobs.add_to, args=(0, (t,)))
    process.start()
    process.join()
    assert process.exitcode == 0 and not t.any().item() and not t.is_shared()


def test_modules_stay_tied():
    model = nn.Linear(2, 2)
    tied = nn.Linear(2, 2)
    tied.weight = model.weight
    before = model.weight.detach().clone()
    process = mp.get_context("spawn").Process(target=jobs.add_to_parameters, args=(model, tied))
    process.start()
    process.join()
    assert process.exitcode == 0 and torch.equal(model.weight, before + 1)
    assert model.weight.is_leaf and model.weight.requires_grad


def test_subclasses_share_their_memory():
    t = torch.ones(3)
    t.__class__ = jobs.Marked
    twin = pickle.loads(ForkingPickler.dumps(t))
    assert type(twin) is jobs.Marked and twin.data_ptr() == t.data_ptr() and t.is_shared()
    assert type(pickle.loads(pickle.dumps(t))) is jobs.Marked


@pytest.mark.parametrize("method", METHODS)
def test_many_tensors(method):
    """More than a message of a unix socket can carry descriptors (253)."""
    tensors = [torch.ones(1) for _ in range(300)]
    ours, theirs = mp.Pipe()
    if method == "fork":
        for t in tensors:
            t.share_memory_()
    process = mp.get_context(method).Process(target=jobs.reply_count, args=(theirs, tensors))
    process.start()
    assert ours.recv() == 300
    process.join()


def test_what_nobody_fetches_goes_with_the_job(tmp_path):
    code = """if True:
        import disttorch as torch
        import disttorch.multiprocessing as mp
        import multiprocessing_jobs as jobs
        queue = mp.get_context("fork").Queue()
        process = mp.get_context("fork").Process(target=jobs.put_and_end, args=(queue, [1, 2]))
        process.start()
        process.join()
        print(queue.get().item(), flush=True)
        input()
    """
    mark = f"MARK={tmp_path}"
    environment = {**os.environ, "MARK": str(tmp_path), "PYTHONPATH": os.path.dirname(jobs.__file__)}
    job = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE,
                           stdout=subprocess.PIPE, text=True, env=environment)
    with job:
        assert job.stdout.readline() == "1\n"
        assert len(marked(mark)) == 2  # the job, and the process that holds the second tensor
    until(lambda: not marked(mark))
    assert job.returncode != 0  # EOFError of input()


def marked(mark):
    """The running processes that were started with an environment of this content."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ") as file:
                if mark in file.read().split("\0") and is_running(pid):
                    found.append(pid)
        except OSError:
            pass
    return found


@pytest.mark.parametrize("kind", ["Queue", "SimpleQueue", "JoinableQueue"])
@pytest.mark.parametrize("method", METHODS)
def test_a_queue_outlives_who_filled_it(method, kind):
    """PyTorch loses these: nothing of a process is left to hand them out."""
    context = mp.get_context(method)
    queue = getattr(context, kind)()
    process = context.Process(target=jobs.put_and_end, args=(queue, [[1.0, 2.0], 3, True]))
    process.start()
    process.join()
    assert process.exitcode == 0
    got = [queue.get() for _ in range(3)]
    assert [t.tolist() for t in got] == [[1, 2], 3, True]
    assert all(t.is_shared() for t in got)


def test_a_killed_sender_is_named():
    context = mp.get_context("fork")
    queue, ready = context.SimpleQueue(), context.Event()
    process = context.Process(target=jobs.put_one_and_stay, args=(queue, ready))
    process.start()
    until(lambda: not queue.empty())
    process.kill()
    process.join()
    with pytest.raises(ConnectionError, match="ended before it was received"):
        queue.get()


def test_memory_outlives_a_killed_process():
    context = mp.get_context("fork")
    queue, (ours, theirs) = context.SimpleQueue(), context.Pipe()
    process = context.Process(target=jobs.keep, args=(queue, theirs))
    process.start()
    t = torch.ones(1 << 16)
    queue.put(t)
    assert ours.recv() == 1 << 16
    process.kill()
    process.join()
    assert t.sum().item() == 1 << 16


@pytest.mark.parametrize("method", METHODS)
def test_pool(method):
    with mp.get_context(method).Pool(2) as pool:
        tensors = [torch.full((2,), float(i)) for i in range(4)]
        assert [t.tolist() for t in pool.map(jobs.double, tensors)] == [[2.0 * i] * 2 for i in range(4)]
        back = pool.apply(jobs.set_first, (tensors[0],))
        assert tensors[0].tolist() == back.tolist() == [7, 0]
        assert back.data_ptr() == tensors[0].data_ptr()


def test_manager():
    with mp.get_context("spawn").Manager() as manager:
        shared = manager.dict()
        shared["sent"] = torch.ones(2)
        process = mp.get_context("spawn").Process(target=jobs.fill, args=(shared,))
        process.start()
        process.join()
        assert shared["reply"].tolist() == [2, 2] and shared["sent"].tolist() == [1, 1]


def test_reducers_work_before_the_package_is_asked_for():
    code = """if True:
        import multiprocessing, sys
        import disttorch as torch
        assert "disttorch.multiprocessing" not in sys.modules
        def child(t, q, p):
            t += 1
            q.put(p)
        if __name__ == "__main__":
            t = torch.zeros(2).share_memory_()
            queue = multiprocessing.Queue()
            p = torch.nn.Parameter(torch.ones(2))
            process = multiprocessing.get_context("fork").Process(target=child, args=(t, queue, p))
            process.start()
            process.join()
            print(t.tolist(), queue.get())
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[1.0, 1.0] Parameter containing:\ntensor([1., 1.], requires_grad=True)\n"


def test_rebuilding_checks_what_it_is_told():
    block = memory.new_block(8)
    with pytest.raises((ValueError, TypeError), match="buffer"):
        reductions.rebuild_tensor(torch.Tensor, (block, "float32", 0, (3,), (4,)), False)
