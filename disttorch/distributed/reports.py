"""What the ranks have told each other: counts beside theory, the last calls, a timeline of all ranks."""

from __future__ import annotations

import os
import sys
from typing import Any

from collectives.ledger import table
from collectives.settings import set_deterministic, settings
from collectives.timeline import write_trace

from .process_group import Group, Job, ProcessGroup, default_group, job, resolve

ASKED = "DISTTORCH_LEDGER"  # set to 1: print the ledger at the end of the job, on rank 0


def ledger(group: Group = None) -> dict[str, dict[str, float]]:
    """What this rank was asked to move since `init_process_group` or `reset_ledger`.

    Args:
        group: None: all groups together.

    Returns:
        call -> {"calls", "payload_bytes", "transport_bytes", "lower_bound_bytes", "seconds",
        "messages", "sent_bytes", "received_bytes"}; see `collectives.ledger` for what each is.
    """
    total: dict[str, dict[str, float]] = {}
    for each in _counted(group):
        for call, figures in each.ranks.ledger().items():
            entry = total.setdefault(call, dict.fromkeys(figures, 0))
            for name, value in figures.items():
                entry[name] += value
    return total


def reset_ledger(group: Group = None) -> None:
    """Start counting again from zero; None: in all groups."""
    for each in _counted(group):
        each.ranks.reset_ledger()


def ledger_table(group: Group = None) -> str:
    """`ledger` as a text table: bytes moved beside the least that any algorithm must send."""
    return table(ledger(group))


def _counted(group: Group) -> list[ProcessGroup]:
    default_group()
    if group is None:
        return job().groups
    chosen = resolve(group)
    return [] if chosen is None else [chosen]


def print_if_asked(mine: Job) -> None:
    """At the end of a job: rank 0's table, where DISTTORCH_LEDGER=1 asks for it."""
    if os.environ.get(ASKED, "") in ("", "0") or mine.world is None or mine.world.rank() != 0:
        return
    print(f"what rank 0 of {mine.world.size()} moved:\n{ledger_table()}", file=sys.stderr)


def flight_record(stacks: bool = False) -> dict[str, Any]:
    """This rank's last calls, as its flight record holds them; see `collectives.flight`.

    Args:
        stacks: add the Python stacks of all threads.
    """
    return default_group().ranks.flight.snapshot(with_stacks=stacks)


def write_timeline(path: str | os.PathLike[str]) -> None:
    """Write the last calls of all ranks as one trace; open it at ui.perfetto.dev.

    A call of all ranks of the job; rank 0 writes the file. Clocks of different nodes are aligned by
    asking them; what remains is some tens of microseconds.

    Raises:
        OSError: the file cannot be written; on every rank.
    """
    ranks = default_group().ranks
    snapshots = ranks.gather_object(ranks.flight.snapshot(), 0)
    problem = None
    if snapshots is not None:
        watch = getattr(ranks, "watch", None)  # ranks that are threads share one clock
        offsets = None if watch is None or ranks.size == 1 else watch.clock_offsets()
        try:
            write_trace(path, snapshots, offsets)
        except OSError as error:
            problem = error
    problem = ranks.broadcast_object(problem, 0)
    if problem is not None:
        raise problem


def breakpoint(rank: int = 0, skip: int = 0, timeout_s: float | None = 3600) -> None:
    """Stop in the debugger on one rank of the job while the others wait.

    Args:
        skip: how many times a call at the same place goes on without stopping.
        timeout_s: what calls may wait from now on, so that a long look does not end the job; None:
            as before.
    """
    frame = sys._getframe(1)
    place = (frame.f_code.co_filename, frame.f_lineno, default_group().rank())
    _passed[place] = _passed.get(place, 0) + 1
    if _passed[place] <= skip:
        return
    if timeout_s is not None:
        for pg in job().groups:
            pg.timeout = timeout_s
    if default_group().rank() == rank:
        _debugger()
    default_group().ranks.barrier()


_passed: dict[tuple[str, int, int], int] = {}


def _debugger() -> None:
    """pdb on the terminal: a launcher may have given this process another standard input."""
    import pdb

    debugger = pdb.Pdb(stdin=open("/dev/tty"), stdout=sys.stderr)  # noqa: SIM115  (read from later)
    debugger.message("type 'up' to reach the line of dist.breakpoint(), 'c' to let all ranks go on")
    debugger.set_trace(sys._getframe(1))


def are_deterministic_reductions_enabled() -> bool:
    """Whether reductions of all groups follow one tree by rank order."""
    return settings.deterministic


__all__ = [
    "are_deterministic_reductions_enabled", "breakpoint", "flight_record", "ledger", "ledger_table",
    "reset_ledger", "set_deterministic", "write_timeline",
]
