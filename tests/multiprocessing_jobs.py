"""What the processes of the multiprocessing tests run: functions that new processes can import."""

from __future__ import annotations

import os
import signal
import sys
import time

import disttorch as torch
import disttorch.multiprocessing as mp
from disttorch import nn

METHODS = ["fork", "spawn", "forkserver"]


def until(condition, seconds=30.0):
    """Wait for something that another process does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


class Marked(torch.Tensor):
    """A subclass of one's own."""


def echo(connection):
    """Tell about each tensor that arrives, add one to it, and send it back; until None comes."""
    while (t := connection.recv()) is not None:
        facts = (type(t).__name__, t.dtype, tuple(t.shape), t.stride(), t.requires_grad,
                 t.is_shared(), t.tolist())
        with torch.no_grad():
            t.copy_(t.logical_not() if t.dtype is torch.bool else t + 1)
        connection.send((facts, t))


def add_to(i, tensors):
    for t in tensors:
        t[i] += i + 1


def add_to_parameters(model, tied):
    with torch.no_grad():
        model.weight.add_(1)
        assert tied.weight is model.weight


def put_and_end(queue, values):
    for value in values:
        queue.put(torch.tensor(value))


def put_one_and_stay(queue, ready):
    queue.put(torch.ones(1000))
    ready.wait()


def keep(queue, back):
    """Hold what comes, say so, and wait to be killed."""
    t = queue.get()
    back.send(t.sum().item())
    time.sleep(600)


def double(t):
    return t * 2


def set_first(t):
    t[0] = 7
    return t


def count(tensors):
    return sum(int(t.is_shared()) for t in tensors)


def reply_count(connection, tensors):
    connection.send(count(tensors))


def fill(shared):
    shared["reply"] = shared["sent"] + 1


# ---------------------------------------------------------------- spawn
def fail(i, how, culprit):
    """Process ``culprit`` fails in a way; the others wait to be ended."""
    if i != culprit:
        time.sleep(600)
    if how == "raise":
        raise ValueError(f"process {i} is unwell")
    if how == "exit":
        sys.exit(3)
    if how == "signal":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "os._exit":
        os._exit(9)


def succeed(i, queue=None):
    if queue is not None:
        queue.put((i, os.environ["DISTTORCH_JOB_SECRET"]))


def refuse_to_end(i, ready):
    if i == 0:
        ready.wait()
        raise ValueError("ends")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ready.set()
    time.sleep(600)


def end_alone(i, ready, done):
    """Process 1 ends by itself soon after process 0 failed."""
    if i == 0:
        raise ValueError("ends")
    ready.wait()
    done.set()


def wait_for(i, event):
    event.wait()


# ---------------------------------------------------------------- Hogwild
def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))


def data(n=64):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(n, 4, generator=generator)
    return x, (x[:, :1] * x[:, 1:2]).sin()


def loss_of(model):
    x, y = data()
    return nn.functional.mse_loss(model(x), y)


def train(i, model, steps, grads):
    """Train a model that other processes train too, without any lock."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
    grads.put((i, all(not p.grad.is_shared() for p in model.parameters())))


def report_and_wait(i, reports, event):
    reports.put(os.getpid())
    event.wait()


if __name__ == "__main__":  # a job whose parent gets killed: python multiprocessing_jobs.py METHOD
    method = sys.argv[1]
    queue, event = mp.get_context(method).SimpleQueue(), mp.get_context(method).Event()
    context = mp.start_processes(report_and_wait, (queue, event), 2, join=False, start_method=method)
    print(queue.get(), queue.get(), flush=True)
    context.join()
