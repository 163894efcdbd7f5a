"""What the bits of a computation depend on besides its program: processor, libraries, threads.

The fingerprint (`backend.fingerprint`) names what decides which kernels compute, and holds the digest
of a probe. Ranks compare theirs at the start; a checkpoint carries it along.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

from ... import settings
from ...backend import blas
from ...backend.fingerprint import fingerprint, probe
from ..process_group import ProcessGroup

__all__ = [
    "compare_ranks", "decisive", "differences", "fingerprint", "fix_threads", "in_words", "prepare_gpu",
    "probe",
]

# What may differ while the probe is equal: other names of the same kernels.
_ADVISORY = ("cpu",)


def fix_threads(count: int) -> None:
    """Have every BLAS in this process use `count` threads from now on, and warn if one does not."""
    libraries = blas.loaded()
    for library in libraries:
        if not library.set_threads(count):
            warnings.warn(
                f"exact: {library.path} cannot be told to use {count} thread(s); set "
                f"OMP_NUM_THREADS={count} before Python starts, or its bits may differ between runs",
                stacklevel=3,
            )
        if library.kind == "mkl" and "MKL_CBWR" not in os.environ:
            warnings.warn(
                "exact: MKL chooses kernels by the alignment of arrays; set MKL_CBWR=COMPATIBLE or "
                "AVX2,STRICT before Python starts, or its bits may differ between runs",
                stacklevel=3,
            )
    if not libraries:
        warnings.warn(
            f"exact: the threads of NumPy's BLAS ({blas.configured()}) cannot be fixed, since its "
            "library was not found in this process; its bits may differ between runs",
            stacklevel=3,
        )


def prepare_gpu(device: str) -> None:
    """Where a GPU computes, have only kernels used that repeat their bits, and say what is not known."""
    if not device.startswith("cpu"):
        settings.use_deterministic_algorithms(True)
        warnings.warn(
            f"exact: on {device} use_deterministic_algorithms(True) is in force from now on, so that "
            "scattered sums have one order; products and extremes at repeated places (scatter_reduce) "
            "still have none, and exact mode has not been checked on several GPUs",
            stacklevel=3,
        )


def differences(mine: dict[str, str], other: dict[str, str]) -> dict[str, tuple[Any, Any]]:
    """The entries in which two fingerprints differ: {name: (mine, other)}."""
    names = sorted({*mine, *other})
    return {n: (mine.get(n), other.get(n)) for n in names if mine.get(n) != other.get(n)}


def decisive(found: dict[str, tuple[Any, Any]]) -> bool:
    """Whether differences mean that bits may differ, and not only names."""
    return any(name not in _ADVISORY for name in found)


def in_words(found: dict[str, tuple[Any, Any]], here: str, there: str) -> str:
    """Differences as one clause: `here` and `there` say whose they are."""
    return "; ".join(f"{n}: {a} {here}, {b} {there}" for n, (a, b) in found.items())


def compare_ranks(mine: dict[str, str], group: ProcessGroup, strict: bool) -> None:
    """Compare fingerprints over the ranks of a group; a collective call.

    Raises:
        RuntimeError: with `strict`, on every rank, if bits may differ between two of them.
    """
    all_of_them = group.ranks.all_gather_object(mine)
    for rank, other in enumerate(all_of_them):
        found = differences(all_of_them[0], other)
        if not found:
            continue
        first, second = group.members[0], group.members[rank]
        told = in_words(found, f"on rank {first}", f"on rank {second}")
        if decisive(found) and strict:
            raise RuntimeError(
                f"exact: ranks {first} and {second} would not compute the same bits: {told}; use "
                "equal processors, libraries and threads, or pass strict=False to go on without the "
                "promise"
            )
        if group.rank() == 0:
            warnings.warn(f"exact: ranks {first} and {second} differ: {told}", stacklevel=3)
        return
