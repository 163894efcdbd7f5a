"""Ranks as threads of one process, for tests and for reading along in a debugger."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import collectives

from .begin import destroy_process_group, init_process_group
from .process_group import is_initialized


def run_local(
    nprocs: int, fn: Callable, args: tuple = (), timeout: float | None = None
) -> list[Any]:
    """Run `fn(rank, *args)` on `nprocs` ranks that are threads of this process.

    Each thread has its own default group, already initialised. Threads share the
    interpreter, so this is not for speed; they also share the default random generator, so ranks
    that draw numbers should each have a `Generator`.

    Args:
        timeout: seconds after which ranks that wait for others are woken; None for no limit.

    Returns:
        What each rank returned, in rank order.

    Raises:
        Exception: the first one that any rank raised, with a note that names the rank.
        TimeoutError: the ranks did not end in time.
    """

    def rank_main(ranks: collectives.Group) -> Any:
        init_process_group()
        result = fn(ranks.rank, *args)
        if is_initialized():
            destroy_process_group()
        return result

    return collectives.run_ranks(nprocs, rank_main, timeout)
