"""One rank of an MPI job of benchmarks/collectives.py: disttorch and raw mpi4py take turns.

Beside them, in the same run, the limit of this machine: what a reduction of S bytes in shared memory
must do at least. Of S bytes each of n ranks copies S(n-1)/n where the others see it, adds (n-1) times
S/n, and copies S(n-1)/n back; all ranks at once. "limit" does that in memory; "in cache" with the
shared part in pieces that never leave the core's own cache, which no exchange between cores can do.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# The folder of this file has a collectives.py, which is not the package.
sys.path[0] = str(Path(__file__).resolve().parent.parent)
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import numpy as np  # noqa: E402
from mpi4py import MPI  # noqa: E402

from benchmarks._collectives_common import Timer, elements, job_arguments, write  # noqa: E402

PIECE = 1 << 15  # elements of the pieces that stay in the cache: 128 KiB


def by_mpi(comm: MPI.Comm, call: str, whole: np.ndarray, part: np.ndarray, other: np.ndarray):
    """The call by mpi4py's buffer methods."""
    return {
        "all_reduce": lambda: comm.Allreduce(MPI.IN_PLACE, whole),
        "all_gather": lambda: comm.Allgather(part, whole),
        "reduce_scatter": lambda: comm.Reduce_scatter_block(whole, part),
        "broadcast": lambda: comm.Bcast(whole, 0),
        "all_to_all": lambda: comm.Alltoall(whole, other),
    }[call]


def by_group(group, call: str, whole: np.ndarray, part: np.ndarray, other: np.ndarray):
    """The call by a group of disttorch's collectives."""
    return {
        "all_reduce": lambda: group.all_reduce(whole),
        "all_gather": lambda: group.all_gather(whole, part),
        "reduce_scatter": lambda: group.reduce_scatter(part, whole),
        "broadcast": lambda: group.broadcast(whole, 0),
        "all_to_all": lambda: group.all_to_all(other, whole),
    }[call]


def least_reduction(n: int, buffer: np.ndarray, piece: int):
    """The memory traffic of one rank's share of a shared reduction of `buffer`."""
    moved = buffer.size * (n - 1) // n
    others, own = buffer[:moved], buffer[moved:]
    # What this rank shows, what it reads of the others, and the results that they have left.
    shown, values, results = (np.full(min(piece, moved), 0.0, buffer.dtype) for _ in range(3))

    def run() -> None:
        for begin in range(0, moved, piece):
            part = others[begin : begin + piece]
            np.copyto(shown[: part.size], part)
        for _ in range(n - 1):
            for begin in range(0, own.size, piece):
                part = own[begin : begin + piece]
                np.add(part, values[: part.size], out=part)
        for begin in range(0, moved, piece):
            part = others[begin : begin + piece]
            np.copyto(part, results[: part.size])

    return run


def main() -> None:
    options = job_arguments()
    comm = MPI.COMM_WORLD.Dup()
    n = comm.size
    raw = f"mpi4py ({MPI.get_vendor()[0].lower().replace(' ', '')})"
    if not options.raw_only:
        import collectives

        group = collectives.init("mpi")
    timer = Timer(comm.Barrier, lambda t: comm.allreduce(t, MPI.MAX), options.seconds, options.repeat)
    rows = []
    for call in options.calls:
        for size in options.sizes:
            count = elements(size, n)
            whole, other = np.full(count, 0.0, np.float32), np.full(count, 0.0, np.float32)
            part = np.full(count // n, 0.0, np.float32)
            functions = {raw: by_mpi(comm, call, whole, part, other)}
            if not options.raw_only:
                functions["disttorch"] = by_group(group, call, whole, part, other)
                if call == "all_reduce":
                    functions["limit"] = least_reduction(n, whole, count)
                    functions["in cache"] = least_reduction(n, whole, PIECE)
            rows.append((call, size, timer.measure(functions)))
    if comm.rank == 0:
        library = MPI.Get_library_version().split("\n")[0].split(",")[0].replace("\t", " ").strip()
        write(options.result, {raw: library}, rows)


if __name__ == "__main__":
    main()
