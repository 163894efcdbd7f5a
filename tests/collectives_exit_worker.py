"""Rank 1 leaves in the way named by the first argument while the others wait for it."""

from __future__ import annotations

import os
import sys
import threading
import time

import numpy as np

import collectives


def leave(how: str) -> None:
    try:
        sys.exit(7)  # caught and looked at: not the end of this process
    except SystemExit as error:
        assert error.code == 7
    if how == "exception":
        raise ValueError("boom on purpose")
    if how == "sys.exit":
        sys.exit(3)
    if how == "SystemExit":
        raise SystemExit(3)
    if how == "message":
        sys.exit("no such file: data.txt")
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "os._exit":
        os._exit(3)
    if how == "foreign hook":
        sys.excepthook = lambda kind, error, trace: print("foreign hook saw", error, flush=True)
        raise ValueError("boom on purpose")
    raise AssertionError(f"unknown way {how}")


def main() -> None:
    how = sys.argv[1]
    group = collectives.world()
    if how == "exit 0":
        group.barrier()
        if group.rank == 1:
            raise SystemExit(0)
        time.sleep(0.5)
        print("rank 0 ended well")
        sys.exit(None)
    if how == "thread":
        # An ordinary thread's error does not end a process in Python, and must not end the job.
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()
        group.barrier()
        print(f"rank {group.rank} ended well")
        return
    if how == "forgotten error":
        # Rank 1 asks for something that fails in its communication thread and never looks.
        if group.rank == 1:
            group._thread.put("doomed", lambda: [].pop())
            return
    elif group.rank == 1:
        leave(how)
    elif how == "exception":
        # Inside an asynchronous operation as well.
        group.all_reduce(np.zeros(10), async_op=True).wait()
    group.barrier()
    print("rank 0 got past the barrier")


if __name__ == "__main__":
    main()
