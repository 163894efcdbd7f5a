"""Kills a process that saves checkpoints, at random moments; what is left must be a whole checkpoint.

    checkpoint_kills.py FOLDER KILLS SEED [async]     prints the steps saved and the kills inside a save
    checkpoint_kills.py FOLDER every STEP             at every operation on files: prints how many

Each life is forked from here: to start an interpreter would take longer than many saves.
"""

from __future__ import annotations

import builtins
import os
import random
import shutil
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


def kill_at_every_operation(folder, second: int) -> int:
    """Save step 1, then another state as step ``second``, killed before and after each operation on
    files. Returns how many there are.

    What is then loaded is the first or the second state, whole; the second once its save has ended.
    """
    for moment in range(1, 1000):
        if os.path.exists(folder):
            shutil.rmtree(folder)
        manager = dcp.CheckpointManager(folder, keep=1)
        manager.save(1, checkpoint_worker.state_of(1))
        pid = os.fork()
        if pid == 0:
            die_at(moment)
            manager.save(second, checkpoint_worker.state_of(2))
            os._exit(3)
        ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
        state = checkpoint_worker.state_of(-5)
        step = manager.load_latest(state)
        content = state["step"]
        checkpoint_worker.check_whole(state, content)
        assert (step, content) == (second, 2) or (not ended and (step, content) == (1, 1))
        manager.save(second + 1, checkpoint_worker.state_of(3))  # it can go on from there
        assert os.listdir(folder) == [os.path.basename(manager.folder(second + 1))]
        assert len(os.listdir(manager.folder(second + 1))) == 2
        if ended:
            return moment - 1
    raise AssertionError("the save did not come to an end")


def die_at(moment: int) -> None:
    """Let this process kill itself before or after its n-th operation on files."""
    left = [moment]

    def tick() -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(operation):
        def wrapped(*args, **kwargs):
            tick()
            result = operation(*args, **kwargs)
            tick()
            return result

        return wrapped

    for module, names in ((builtins, ["open"]), (os, OPERATIONS)):
        for name in names:
            setattr(module, name, around(getattr(module, name)))


OPERATIONS = ["open", "fsync", "replace", "rename", "unlink", "mkdir", "rmdir", "fdopen"]


if __name__ == "__main__":
    warnings.filterwarnings("ignore", "torch.distributed is disabled")
    if sys.argv[2] == "every":
        print(kill_at_every_operation(sys.argv[1], int(sys.argv[3])))
        sys.exit()
    last, inside = kill_while_saving(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
    print(last + 1, inside)
