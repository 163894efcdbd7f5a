"""Scripts that use torch.multiprocessing print the same under PyTorch and under disttorch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.parity, pytest.mark.timeout(300)]

SIDES = {"torch": [sys.executable], "disttorch": [sys.executable, "-m", "disttorch"]}

FAILURES = """
import os, signal, sys, time
import torch.multiprocessing as mp

def fail(i, how):
    if i != 1:
        time.sleep(100)
    if how == "raise":
        raise ValueError(f"{i} is unwell")
    if how == "exit":
        sys.exit(3)
    if how == "signal":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "segv":
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGSEGV)

if __name__ == "__main__":
    for how in ("raise", "exit", "signal", "segv"):
        context = mp.spawn(fail, args=(how,), nprocs=2, join=False)
        try:
            while not context.join():
                pass
        except Exception as error:
            lines = str(error).splitlines()
            print(type(error).__name__, lines[:4], lines[-1], error.error_index)
            print(error.error_pid == context.pids()[1], getattr(error, "exit_code", None))
            print(getattr(error, "signal_name", None))
        print([p.exitcode for p in context.processes], type(context).__name__)
    print(mp.get_sharing_strategy(), sorted(mp.get_all_sharing_strategies()))
"""

QUEUES = """
import torch
import torch.multiprocessing as mp

def child(queue, back, done):
    while (t := queue.get()) is not None:
        print(type(t).__name__, t.dtype, tuple(t.shape), t.requires_grad, t.tolist(), flush=True)
        if t.numel():
            print(t.stride(), t.is_shared(), flush=True)
        with torch.no_grad():
            t.add_(1) if t.dtype is not torch.bool else t.logical_not_()
        back.put(t)
    done.wait()

if __name__ == "__main__":
    for method in ("fork", "spawn", "forkserver"):
        context = mp.get_context(method)
        queue, back, done = context.Queue(), context.Queue(), context.Event()
        process = context.Process(target=child, args=(queue, back, done))
        process.start()
        odd = torch.arange(24.0).reshape(2, 3, 4)
        for t in (torch.ones(3), torch.tensor([True, False]), torch.ones(2, dtype=torch.bfloat16),
                  torch.ones(2, 2, dtype=torch.complex64), torch.tensor(2.5), torch.zeros(0, 3),
                  odd[1, 1:], odd.permute(2, 0, 1), odd[:, ::2, ::3],
                  torch.ones(3, requires_grad=True), torch.nn.Parameter(torch.ones(2, 2)),
                  torch.nn.Parameter(torch.ones(2), requires_grad=False)):
            queue.put(t)
            got = back.get()
            print(t.tolist() == got.tolist(), t.tolist(), type(got).__name__)
            print(t.numel() == 0 or (t.is_shared(), got.data_ptr() == t.data_ptr()), flush=True)
        queue.put(None)
        done.set()
        process.join()
        print(process.exitcode, odd.tolist())
    x = torch.ones(2, requires_grad=True) * 2
    connection, _ = mp.Pipe()
    try:
        connection.send(x)
    except RuntimeError as error:
        print(error)
"""

SHARING = """
import torch
import torch.multiprocessing as mp

def write(i, t, view, storage):
    t[2 * i] = i + 1
    view[2 * i] += 10
    storage[i] = 7

def square(t):
    return t * t

def fill(t):
    t.fill_(3)

if __name__ == "__main__":
    t = torch.zeros(4)
    view, same = t[1:], t.detach()
    print(t.is_shared(), view.share_memory_() is view, t.is_shared(), same.is_shared())
    storage = torch.UntypedStorage(2).share_memory_()
    mp.spawn(write, args=(t, view, storage), nprocs=2)
    print(t.tolist(), view.tolist(), same.tolist(), storage.tolist(), storage.is_shared())
    print(torch.empty(0).share_memory_().is_shared(), torch.ones(2).clone().is_shared())
    model = torch.nn.Linear(2, 2)
    print(model.share_memory() is model, [p.is_shared() for p in model.parameters()])
    for method in ("fork", "spawn"):
        with mp.get_context(method).Pool(2) as pool:
            tensors = [torch.full((2,), float(i)) for i in range(5)]
            print([r.tolist() for r in pool.map(square, tensors)])
            pool.map(fill, tensors)
            print([r.tolist() for r in tensors])
"""

HOGWILD = """
import torch
import torch.multiprocessing as mp
from torch import nn

def loss_of(model):
    x = torch.linspace(-1, 1, 32).reshape(-1, 1)
    return nn.functional.mse_loss(model(x), 3 * x + 1)

def train(rank, model, turn):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(20):
        while turn.item() % 2 != rank:  # one after the other, so that the sum is the same
            pass
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
        turn += 1

if __name__ == "__main__":
    torch.set_num_threads(1)
    model = nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(0.5)
        model.bias.fill_(-0.5)
    model.share_memory()
    turn = torch.zeros((), dtype=torch.int64).share_memory_()
    processes = [mp.get_context("spawn").Process(target=train, args=(rank, model, turn))
                 for rank in range(2)]
    for p in processes:
        p.start()
    for p in processes:
        p.join()
    print(turn.item(), round(loss_of(model).item(), 4), model.weight.grad)
    print([round(p.item(), 4) for p in model.parameters()])
"""


@pytest.mark.parametrize("script", [FAILURES, QUEUES, SHARING, HOGWILD],
                         ids=["failures", "queues", "sharing", "hogwild"])
def test_the_same_is_printed(script, tmp_path):
    path = tmp_path / "script.py"
    path.write_text(script)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    printed = {}
    for side, command in SIDES.items():
        done = subprocess.run([*command, str(path)], capture_output=True, text=True, timeout=200,
                              env=environment)
        assert done.returncode == 0, f"{side}: {done.stderr}"
        printed[side] = done.stdout.splitlines()
    assert printed["disttorch"] == printed["torch"]
    assert len(printed["torch"]) > 1
