"""Kills a process that saves checkpoints, at random moments; what is left must be a whole checkpoint.

    checkpoint_kills.py FOLDER KILLS SEED [async]     prints the steps saved and the kills inside a save

Each life is forked from here: to start an interpreter would take longer than many saves.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import warnings

import checkpoint_worker

import disttorch.distributed.checkpoint as dcp


def check_last(folder, announced: int) -> int:
    """A whole checkpoint is there, none older than the last that was announced; returns its step."""
    manager = dcp.CheckpointManager(folder)
    state = checkpoint_worker.state_of(-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing had to be passed over
        step = manager.load_latest(state)
    if step is None:
        assert announced == -1
        return -1
    checkpoint_worker.check_whole(state, step)
    assert step >= announced
    return step


def kill_while_saving(folder, kills: int, seed: int, *options: str) -> tuple[int, int]:
    """Kill -9 a job that saves, again and again. Returns (the last step, kills inside a save)."""
    rng = random.Random(seed)
    announced, torn = -1, 0
    for life in range(kills):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read)
            os.dup2(write, 1)
            sys.stdout = os.fdopen(1, "w", buffering=1)
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (lives as long as the child)
            try:
                checkpoint_worker.main("save", str(folder), *options)
            finally:
                os._exit(1)
        os.close(write)
        with os.fdopen(read) as output:
            first = output.readline()  # at least one save has come to its end in this life
            assert first, f"life {life} ended by itself"
            time.sleep(rng.uniform(0.0005, 0.02))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            announced = max([announced, int(first), *(int(line) for line in output)])
        torn += any(not os.path.exists(f"{folder}/{name}/manifest.json") for name in os.listdir(folder))
        assert check_last(folder, announced) >= announced
    return announced, torn


if __name__ == "__main__":
    warnings.filterwarnings("ignore", "torch.distributed is disabled")
    last, inside = kill_while_saving(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
    print(last + 1, inside)
