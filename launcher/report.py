"""The last words of a job that failed: which rank, why, and its traceback."""

import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path

# MPI_Abort kills everyone before the watcher can tell who called it; MPICH and Open MPI say so.
MPICH_NOTICE = re.compile(rb"^Abort\((-?\d+)\) on node \d+ .*\n?", re.MULTILINE)
OPENMPI_NOTICE = re.compile(rb"MPI_ABORT was invoked on rank (\d+).*?errorcode (-?\d+)", re.DOTALL)
NO_RANK = -1
MOST_LISTED = 9  # ranks by number


@dataclass
class Failure:
    """How a rank failed: `status` is its exit status, or negative the signal that killed it.

    `time`: time.monotonic() of the launcher that decides. `consequence`: it failed only because
    another had. `what`: how, where the status does not tell. A whole node that was lost has rank
    NO_RANK, and `ranks` is the number of its ranks.
    """

    rank: int
    host: str
    time: float
    status: int
    consequence: bool = False
    what: str = ""
    ranks: int = 1


@dataclass
class Verdict:
    """How a job ended, the same on every node: exit status, sentence, and the last words (`text`)
    of the `rank` that is to blame."""

    status: int
    sentence: str = ""
    rank: int = NO_RANK
    text: bytes = b""


def signal_name(number):
    try:
        return f"{signal.Signals(number).name} (signal {number})"
    except ValueError:
        return f"signal {number}"


def exit_status(status):
    """The launcher's exit status for a rank's `status`: 128 + N for signal N."""
    return status if status >= 0 else 128 - status


def how_ended(status):
    """An exit status (negative: a signal) in words."""
    if status < 0:
        return f"was killed by {signal_name(-status)}"
    return f"ended with exit status {status}"


def rank_list(ranks):
    names = [str(rank) for rank in sorted(ranks)]
    if len(names) > MOST_LISTED:
        names = [*names[: MOST_LISTED - 1], f"{len(names) - MOST_LISTED + 1} more"]
    if len(names) == 1:
        return f"rank {names[0]}"
    return f"ranks {', '.join(names[:-1])} and {names[-1]}"


def before_stop(failures, stopped_at):
    """Those of `failures` that did not come of the stop, which began at `stopped_at` or not at all."""
    return [f for f in failures if stopped_at is None or f.time <= stopped_at]


def first_failure(failures, stopped_at=None):
    """The failure that caused the others, and the ranks that failed with it before the stop.

    What failed after `stopped_at` failed because it was told to end. Of the rest, ranks that failed
    because another had come last, then the earliest counts.
    """
    lost = [failure for failure in failures if failure.rank == NO_RANK]
    told = before_stop(failures, stopped_at) or lost or failures
    first = min(told, key=lambda failure: (failure.consequence, failure.time))
    before = first.time if stopped_at is None else stopped_at
    return first, [f.rank for f in told if f is not first and f.rank >= 0 and f.time <= before]


def failure_sentence(failure, size, also=(), well=()):
    """One sentence on the rank that failed first; `also`: ranks that failed without being told;
    `well`: those that had ended with status 0."""
    if failure.what:
        what = failure.what
    elif failure.status >= 0:
        what = f"failed with exit status {failure.status}"
    else:
        what = f"was killed by {signal_name(-failure.status)}"
        if failure.status == -signal.SIGKILL:
            what += ", which the kernel also sends when memory runs out,"
    if failure.rank == NO_RANK:
        sentence = f"{failure.host} {what}"
    else:
        sentence = f"rank {failure.rank} of {size} {what} on host {failure.host}"
    if also:
        sentence += f"; {rank_list(also)} failed too"
    if well:
        sentence += f"; {rank_list(well)} had ended with status 0"
    if (stopped := size - failure.ranks - len(also) - len(well)) > 0:
        sentence += f"; {stopped} other rank{'s were' if stopped > 1 else ' was'} stopped"
    return sentence


def aborted_by(tails, mpiexec_said):
    """(rank, status) of the rank that called MPI_Abort, or None.

    `tails`: for each rank the last bytes it wrote, where MPICH leaves its notice; `mpiexec_said`:
    mpiexec's own output, where Open MPI does.
    """
    for rank, tail in tails.items():
        if found := MPICH_NOTICE.search(tail):
            return rank, int(found[1]) & 0xFF
    if found := OPENMPI_NOTICE.search(mpiexec_said):
        return int(found[1]), int(found[2]) & 0xFF
    return None


def cleaned(text, child):
    """Last words without MPICH's line on MPI_Abort (our summary says more) and without the frames
    of the file `child`, which are below every stack that faulthandler dumps."""
    frame = f'  File "{child}", line '.encode()
    lines = MPICH_NOTICE.sub(b"", text).splitlines(keepends=True)
    return b"".join(line for line in lines if not line.startswith(frame))


def flight_sentence(folder, since):
    """Where the flight records are that ranks wrote into `folder` after time.time() `since`."""
    ranks = set()
    for path in Path(folder).glob("*.json") if os.path.isdir(folder) else ():
        number = re.search(r"\d+", path.stem)
        if path.stat().st_mtime >= since:
            ranks.add(int(number[0]) if number else path.stem)
    if not ranks:
        return ""
    count = f"{len(ranks)} rank{'s are' if len(ranks) > 1 else ' is'}"
    return f"flight records of {count} in {folder}: python -m collectives.flight {folder}"
