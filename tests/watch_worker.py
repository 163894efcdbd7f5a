"""One rank of a job that the tests of the watch look at: no MPI, only processes and files.

Arguments: scenario, rank, size, a directory that all ranks share.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from collectives import failure, flight
from collectives.call import Call
from collectives.watch.process import Watch
from collectives.work import CollectiveTimeout, RankFailedError

SECRET = b"a secret of the tests"


class Rank:
    """This process as a rank: a barrier over files, watched by the watch."""

    def __init__(self, rank: int, size: int, folder: Path, timeout: float | None, abort=None) -> None:
        self.rank, self.size, self.folder = rank, size, folder
        self.rounds = 0
        self.recorder = flight.recorder()
        self.recorder.groups["world"] = tuple(range(size))
        began = time.perf_counter()
        self.watch = Watch.start(
            rank, size, self.exchange, recorder=self.recorder, secret=SECRET, timeout=timeout,
            abort=abort,
        )  # fmt: skip
        self.seconds_to_start = time.perf_counter() - began
        failure.install(rank, abort or (lambda status: None), lambda: None, self.watch)
        self.numbers: dict[str, int] = {}

    def exchange(self, mine: bytes) -> list[bytes]:
        self.rounds += 1
        names = [self.folder / f"exchange{self.rounds}.{rank}" for rank in range(self.size)]
        write(names[self.rank], mine)
        while not all(name.exists() for name in names):
            time.sleep(0.0005)
        return [name.read_bytes() for name in names]

    def barrier(self, members: Sequence[int] | None = None, name: str = "world") -> None:
        """Every rank leaves a file; waits until all are there."""
        call = Call("barrier")
        frame = sys._getframe(1)
        call.code, call.line = frame.f_code, frame.f_lineno
        call.group, call.number = name, self.numbers.get(name, 0) + 1
        self.numbers[name] = call.number
        if self.watch.trouble:
            self.watch.enter(call)
        self.recorder.begin(call)
        try:
            self.meet(call, members or range(self.size))
        except BaseException as error:
            self.recorder.end(call, error)
            raise
        self.recorder.end(call)

    def meet(self, call: Call, members: Sequence[int]) -> None:
        files = {rank: self.folder / f"{call.group}{call.number}.{rank}" for rank in members}
        files[self.rank].touch()
        while missing := [rank for rank, file in files.items() if not file.exists()]:
            self.watch.look(call, missing)
            time.sleep(0.001)

    def block(self) -> None:
        """A call that only the watch's thread can end."""
        call = Call("all_reduce", "float32", 4, (4,), "SUM")
        call.group, call.number = "world", self.numbers.get("world", 0) + 1
        self.recorder.begin(call)
        with self.watch.blocked(call):
            (self.folder / "blocked").touch()
            threading.Event().wait(60)


def write(path: Path, data: bytes) -> None:
    hidden = path.with_name(f".{path.name}")
    hidden.write_bytes(data)
    hidden.rename(path)


def end(rank: Rank, how: str) -> None:
    """The ways in which a rank can end."""
    write(rank.folder / "ended", str(time.perf_counter_ns()).encode())
    if how == "exit 0":
        sys.exit(0)
    if how == "exit 3":
        sys.exit(3)
    if how == "exception":
        raise ValueError("boom on purpose")
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError(how)


def note(rank: Rank) -> None:
    """Leave behind how the rank's wait ended, for the test."""
    seconds = (time.perf_counter_ns() - int((rank.folder / "ended").read_bytes())) / 1e9
    write(rank.folder / f"noticed.{rank.rank}", json.dumps(seconds).encode())


def ending(rank: Rank, how: str, victim: int) -> None:
    """`victim` ends while all the others wait for it."""
    rank.barrier()
    if rank.rank == victim:
        end(rank, how)
    try:
        rank.barrier()
    finally:
        note(rank)


def chain(rank: Rank) -> None:
    """Rank 3 waits for 2, 2 for 1, and 1 is killed: who is to blame is 1, for all."""
    rank.barrier()
    if rank.rank == 1:
        end(rank, "killed")
    rank.barrier(*{0: ([0, 3], "c"), 2: ([1, 2], "a"), 3: ([2, 3], "b")}[rank.rank])


def in_my_sleep() -> None:
    time.sleep(60)


def busy() -> None:
    while True:
        pass


def late(rank: Rank, how: str) -> None:
    """Rank 1 does not come: it sleeps, computes or is stopped; or rank 0 is stopped, hub and all."""
    rank.barrier()
    if rank.rank == 0 and how == "hub stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    if rank.rank == 1:
        if how == "sleep":
            in_my_sleep()
        elif how == "busy":
            busy()
        elif how == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif how == "patient":
            (rank.folder / "patient").touch()
            while not (rank.folder / "let go").exists():
                time.sleep(0.01)
        elif how == "comes later":
            while not (rank.folder / "gave up").exists():
                time.sleep(0.01)
    try:
        rank.barrier()
        rank.barrier()  # the first may find the others' parts from before they gave up
    except CollectiveTimeout:
        write(rank.folder / "gave up", b"")
        if how == "comes later":
            with contextlib.suppress(RankFailedError):
                rank.barrier()
                write(rank.folder / "went on", b"")
            while not (rank.folder / "done").exists():
                time.sleep(0.01)
        raise
    finally:
        if rank.rank == 1:
            write(rank.folder / "done", b"")


def well(rank: Rank) -> None:
    """Ranks leave at different times and nobody minds; a fork in between."""
    rank.barrier()
    if rank.rank == 0:
        return
    child = os.fork()
    if child == 0:
        rank.watch.look(None, [0])
        time.sleep(0.2)
        sys.exit(0)
    os.waitpid(child, 0)
    rank.barrier(range(1, rank.size), "part")


def forked(rank: Rank) -> None:
    """Rank 1 has a child that lives on when rank 1 is killed."""
    if rank.rank == 1 and os.fork() == 0:
        write(rank.folder / "child", str(os.getpid()).encode())
        while not (rank.folder / "noticed.0").exists():
            time.sleep(0.01)
        os._exit(0)
    while rank.rank == 1 and not (rank.folder / "child").exists():
        time.sleep(0.01)
    ending(rank, "killed", 1)


def clocks(rank: Rank) -> None:
    rank.barrier()
    result = {
        "offsets": rank.watch.clock_offsets(),
        "start": rank.seconds_to_start,
        "where": {
            peer: answer and answer.at for peer, answer in rank.watch.ask(range(rank.size)).items()
        },
    }
    write(rank.folder / f"result.{rank.rank}", json.dumps(result).encode())
    rank.barrier()


def blocked(rank: Rank, how: str) -> None:
    """The others are in a native call when rank 1 ends."""
    rank.barrier()
    if rank.rank == 1:
        if how == "never":
            in_my_sleep()
        while not (rank.folder / "blocked").exists():
            time.sleep(0.001)
        end(rank, how)
    rank.block()


def main() -> None:
    """Be the rank, or the parent of it."""
    method, _, scenario = sys.argv[1].rpartition("child ")
    if method and sys.argv[2] == "1":
        child = multiprocessing.get_context(method.strip()).Process(target=program, args=(scenario,))
        child.start()
        child.join()
        sys.exit(child.exitcode)
    program(scenario)


def program(scenario: str) -> None:
    number, size, folder = int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    kind, _, how = scenario.partition(": ")
    short = how in ("sleep", "busy", "stopped", "hub stopped", "comes later", "never")
    timeout = 0.5 if short else 30.0
    rank = Rank(number, size, folder, timeout)
    if kind == "ending":
        how, _, victim = how.partition(" of ")
        ending(rank, how, int(victim or 1))
    elif kind == "late":
        late(rank, how)
    elif kind == "blocked":
        blocked(rank, how)
    else:
        {"chain": chain, "well": well, "forked": forked, "clocks": clocks}[kind](rank)
    print("ended well")


if __name__ == "__main__":
    main()
