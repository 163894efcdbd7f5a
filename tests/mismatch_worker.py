"""One rank of a job in which a rank does not do what the others do.

    mismatch_worker.py caught FOLDER       every way of differing that ranks survive, in fresh groups;
                                           what rank R met with goes to FOLDER/found-R.json
    mismatch_worker.py HOW CALL            the last rank ends (HOW: exit 0, exception, kill) instead
                                           of making CALL, which the others are in
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

import collectives
from collectives import CollectiveError, Group

ROOTED = ("reduce", "broadcast", "gather", "scatter")
CALLS = (
    "all_reduce", "reduce", "broadcast", "all_gather", "reduce_scatter", "all_to_all", "gather",
    "scatter", "barrier", "all_gather_unequal", "all_to_all_unequal", "broadcast_object",
    "all_gather_object", "tree_all_reduce", "split", "async_all_reduce",
)  # fmt: skip
WITHOUT_ARRAYS = ("barrier", "broadcast_object", "all_gather_object", "split")


def make(group: Group, call: str, size: int = 6, dtype: str = "float32", root: int = 0) -> None:
    """Make one call, on every rank alike but for what the arguments say."""
    n, rank = group.size, group.rank
    small, large = np.ones(size, dtype), np.ones(size * n, dtype)
    if call == "all_reduce":
        group.all_reduce(small)
    elif call == "async_all_reduce":
        group.all_reduce(small, async_op=True).wait()
    elif call == "reduce":
        group.reduce(small, root)
    elif call == "broadcast":
        group.broadcast(small, root)
    elif call == "all_gather":
        group.all_gather(large, small)
    elif call == "reduce_scatter":
        group.reduce_scatter(small, large)
    elif call == "all_to_all":
        group.all_to_all(large, large.copy())
    elif call == "gather":
        group.gather(large if rank == root else None, small, root)
    elif call == "scatter":
        group.scatter(small, large if rank == root else None, root)
    elif call == "barrier":
        group.barrier()
    elif call == "all_gather_unequal":
        counts = [size + r for r in range(n)]
        group.all_gather(np.ones(sum(counts), dtype), np.ones(counts[rank], dtype), counts=counts)
    elif call == "all_to_all_unequal":
        counts = [size] * n
        group.all_to_all(large, large.copy(), out_counts=counts, in_counts=counts)
    elif call == "broadcast_object":
        group.broadcast_object("text", root)
    elif call == "all_gather_object":
        group.all_gather_object("text")
    elif call == "tree_all_reduce":
        group.tree_all_reduce([small, small], 2 * n)
    elif call == "split":
        group.split(0)
    else:
        raise ValueError(call)


def differently(group: Group, kind: str, call: str) -> None:
    """What the last rank does instead."""
    if kind == "call":
        make(group, "all_reduce" if call == "barrier" else "barrier")
    elif kind == "shape":
        make(group, call, size=12)
    elif kind == "dtype":
        make(group, call, dtype="int32")
    elif kind == "root":
        make(group, call, root=1)
    elif kind == "order":
        make(group, "all_gather", size=3)
        make(group, call)
    elif kind == "extra":
        make(group, call)
        make(group, call)


def as_they_should(group: Group, kind: str, call: str) -> None:
    make(group, call)
    if kind == "order":
        make(group, "all_gather", size=3)


def kinds_of(call: str) -> list[str]:
    kinds = ["call", "order", "missing", "extra"]
    if call not in WITHOUT_ARRAYS:
        kinds += ["shape", "dtype"]
    if call in ROOTED:
        kinds.append("root")
    return kinds


def caught() -> list[dict]:
    """Every kind of difference in every call; each in a group of its own."""
    world = collectives.world()
    found = []
    for call in CALLS:
        for kind in kinds_of(call):
            trial = world.split(0)
            trial.timeout = 0.3 if kind in ("missing", "extra") else 30.0
            odd = trial.rank == trial.size - 1
            begin = time.perf_counter()
            text = ""
            try:
                if not odd:
                    as_they_should(trial, kind, call)
                elif kind != "missing":
                    differently(trial, kind, call)
            except CollectiveError as error:
                text = f"{type(error).__name__}: {error}"
            took = time.perf_counter() - begin
            found.append({"call": call, "kind": kind, "text": text, "seconds": took})
            world.barrier()
    return found


def end_instead(how: str, call: str) -> None:
    """The last rank ends, by itself or not; the others tell what they met with."""
    world = collectives.world()
    world.barrier()
    if world.rank == world.size - 1:
        time.sleep(0.2)  # so that the others wait already
        if how == "exit 0":
            sys.exit(0)
        if how == "exception":
            raise KeyError("gone fishing")
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        make(world, call)
    except CollectiveError as error:
        print(f"rank {world.rank} met {type(error).__name__}: {error}", flush=True)
        raise


if __name__ == "__main__":
    if sys.argv[1] == "caught":
        results = caught()
        path = Path(sys.argv[2]) / f"found-{collectives.world().rank}.json"
        path.write_text(json.dumps(results), encoding="utf-8")
    else:
        end_instead(sys.argv[1], sys.argv[2])
