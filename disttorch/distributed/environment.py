"""Rank numbers in the environment: torchrun's names, filled in where only MPI told us.

Scripts read RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE, which a launcher sets. Under plain
mpirun or srun, and in a process that nothing launched, `init_process_group` sets what is missing
and `destroy_process_group` takes it away again.
"""

from __future__ import annotations

import os

# What MPI implementations and Slurm call a rank's place on its node: (rank, number of ranks).
_LOCAL_NAMES = (
    ("MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("SLURM_LOCALID", "SLURM_NTASKS_PER_NODE"),
)


def fill_in(rank: int, size: int) -> list[str]:
    """Set those of the variables that are missing and known.

    Returns:
        The names of the variables that were set, for `take_away`.
    """
    known = {"RANK": str(rank), "WORLD_SIZE": str(size), **_place_on_node(size)}
    missing = {name: value for name, value in known.items() if name not in os.environ}
    os.environ.update(missing)
    return list(missing)


def local_rank(rank: int, size: int) -> int | None:
    """This rank's number on its node; None where nobody tells."""
    text = os.environ.get("LOCAL_RANK") or _place_on_node(size).get("LOCAL_RANK", "")
    return int(text) if text.isdigit() else None


def take_away(names: list[str]) -> None:
    """Undo `fill_in`."""
    for name in names:
        os.environ.pop(name, None)


def _place_on_node(size: int) -> dict[str, str]:
    if size == 1:
        return {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    for rank_name, size_name in _LOCAL_NAMES:
        if rank_name in os.environ:
            found = {"LOCAL_RANK": os.environ[rank_name]}
            if os.environ.get(size_name, "").isdigit():
                found["LOCAL_WORLD_SIZE"] = os.environ[size_name]
            return found
    return {}
