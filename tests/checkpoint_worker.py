"""A job that saves checkpoints until it is killed, or trains and resumes: the ranks' program.

    checkpoint_worker.py save FOLDER [async]    save step after step; print each step when it is whole
    checkpoint_worker.py reshard FOLDER         save in one layout, load in others, in processes
    checkpoint_worker.py train FOLDER BATCHES   a part of an epoch, from the last checkpoint on
"""

from __future__ import annotations

import itertools
import sys

import checkpoint_states as states

import disttorch as torch
import disttorch.distributed as dist
import disttorch.distributed.checkpoint as dcp
from disttorch.distributed.fsdp import fully_shard
from disttorch.utils.data import DataLoader, DistributedSampler


def state_of(step: int) -> dict:
    """A state that shows whether its parts are of one step."""
    return {
        "step": step,
        "weights": {f"w{i}": torch.full((500 + i, 3), float(step)) for i in range(6)},
        "blob": "x" * 70_000 + str(step),  # too long for the manifest: in a file
    }


def check_whole(state: dict, step: int) -> None:
    """Everything is of this step."""
    assert state["step"] == step and state["blob"].endswith(f"x{step}"), (state["step"], step)
    for name, weight in state["weights"].items():
        assert (weight == step).all(), (name, step)


def save_until_killed(folder: str, asynchronous: bool) -> None:
    """Steps 0, 1, 2, … with the state of each; goes on after the last whole one."""
    manager = dcp.CheckpointManager(folder, keep=2, asynchronous=asynchronous)
    state = state_of(0)
    last = manager.load_latest(state)
    if last is not None:
        check_whole(state, last)
    ranks, rank = dist.get_world_size(), dist.get_rank()
    for step in itertools.count(0 if last is None else last + 1):
        state = state_of(step)
        state["weights"] = states.laid_out(state["weights"], "boxes", rank, ranks)
        manager.save(step, state)
        for part in state["weights"].values():  # "training" goes on in the same memory
            for tensor in part.shards.values():
                tensor.fill_(-1.0)
        if asynchronous:
            manager.wait()
        if rank == 0:
            print(step, flush=True)


def reshard(folder: str) -> None:
    """Every layout of these processes into every other."""
    rank, n = dist.get_rank(), dist.get_world_size()
    for layout in states.LAYOUTS:
        dcp.save(states.laid_out(states.tensors(), layout, rank, n), checkpoint_id=f"{folder}/{layout}")
        for other in states.LAYOUTS:
            state = states.laid_out(states.zeros(), other, rank, n)
            dcp.load(state, checkpoint_id=f"{folder}/{layout}")
            states.check(state, states.tensors(), (layout, other))
    weight = torch.full((4,), float(rank))
    future = dcp.async_save({f"w{rank}": weight}, checkpoint_id=f"{folder}/later")
    for _ in range(20):  # the group goes on working meanwhile
        weight.add_(1)
        dist.all_reduce(torch.ones(3))
    future.result()
    state = {f"w{(rank + 1) % n}": torch.zeros(4)}
    dcp.load(state, checkpoint_id=f"{folder}/later")
    assert state[f"w{(rank + 1) % n}"].tolist() == [(rank + 1) % n] * 4
    print(f"<rank {rank} of {n}: resharded over {dist.get_backend()}>", flush=True)


def train(folder: str, batches: str) -> None:
    """A part of an epoch under fully_shard; goes on from the last checkpoint, leaves one behind."""
    rank, n = dist.get_rank(), dist.get_world_size()
    model = states.small_model()
    fully_shard(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
    sampler = DistributedSampler(range(42), shuffle=True, seed=3, exact=True)
    loader = DataLoader(range(42), batch_size=2, sampler=sampler)
    manager = dcp.CheckpointManager(folder, keep=1, asynchronous=True)
    state = {"run": dcp.RunState(model, optimizer, schedule, loader), "steps": 0}
    before = manager.load_latest(state)
    assert state["steps"] == (before or 0)
    seen = []
    for number, batch in enumerate(loader, start=1):
        seen += batch.tolist()
        x = torch.randn(4, 6, generator=torch.Generator().manual_seed(number + 10 * rank))
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        state["steps"] += 1
        if number == int(batches):
            manager.save(state["steps"], state)
            manager.wait()
            break
    step = float(next(iter(optimizer.state.values()))["step"])
    rate = schedule.get_last_lr()[0]
    print(f"<rank {rank} of {n} steps {state['steps']} {step} rate {rate}>", flush=True)
    print(f"<saw {seen}>", flush=True)


def main(task: str, folder: str, *options: str) -> None:
    dist.init_process_group()
    if task == "save":
        save_until_killed(folder, "async" in options)
    elif task == "train":
        train(folder, options[0])
    else:
        reshard(folder)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
