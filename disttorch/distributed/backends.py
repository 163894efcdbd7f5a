"""Backend names: which way between ranks a string such as "cpu:gloo" asks for."""

from __future__ import annotations

import importlib.util
import warnings


class Backend(str):
    """A backend's name, lower case: `Backend("MPI") == "mpi" == Backend.MPI`.

    Raises:
        ValueError: a name that neither PyTorch nor disttorch knows.
    """

    UNDEFINED = "undefined"
    GLOO = "gloo"
    NCCL = "nccl"
    UCC = "ucc"
    MPI = "mpi"
    LOCAL = "local"

    def __new__(cls, name: str) -> Backend:
        if not isinstance(name, str):
            raise ValueError(f"Backend constructor parameter must be string-ish, got {name!r}")
        if name.lower() not in (cls.UNDEFINED, cls.GLOO, cls.NCCL, cls.UCC, cls.MPI, cls.LOCAL):
            raise ValueError(f"Invalid backend: '{name}'; disttorch has 'mpi' and 'local'")
        return super().__new__(cls, name.lower())


def choose(text: str | None) -> tuple[str | None, bool]:
    """What a `backend` argument asks for.

    Args:
        text: None, a name, or one name per device type: "cpu:mpi,cuda:mpi".

    Returns:
        "mpi", "local" or None (whichever connects this job), and whether "gloo" was asked for,
        whose place any backend takes.

    Raises:
        NotImplementedError: a backend that disttorch does not have.
        ValueError: an unknown name, a malformed string, two different backends.
    """
    names = [] if text is None else [_name_in(part, text) for part in str(text).split(",")]
    for name in names:
        if name == Backend.NCCL:
            raise NotImplementedError(
                "the NCCL backend is not built yet: use init_process_group() or "
                "init_process_group('mpi'), which carries GPU arrays too"
            )
        if name == Backend.UCC:
            raise NotImplementedError("there is no UCC backend: use 'mpi' or no name at all")
    fixed = {str(name) for name in names if name in (Backend.MPI, Backend.LOCAL)}
    if len(fixed) > 1:
        raise ValueError(f"one job cannot use two backends: {text!r} asks for {sorted(fixed)}")
    return (fixed.pop() if fixed else None), Backend.GLOO in names


def _name_in(part: str, text: str) -> Backend:
    device, colon, name = part.strip().rpartition(":")
    if colon and device not in ("cpu", "cuda"):
        raise ValueError(
            f"Invalid backend string {text!r}: expected a name or 'cpu:NAME,cuda:NAME'"
        )
    return Backend(name)


_warned_of_gloo = False


def warn_of_gloo(used: str) -> None:
    """Say once in this process that "gloo" is only a name here."""
    global _warned_of_gloo
    if not _warned_of_gloo:
        _warned_of_gloo = True
        warnings.warn(f"disttorch has no gloo: backend 'gloo' is carried out by {used!r}")


def is_available() -> bool:
    """Whether this package works at all: always."""
    return True


def is_mpi_available() -> bool:
    """Whether mpi4py is installed. Does not load it, so a missing MPI library is not noticed."""
    return importlib.util.find_spec("mpi4py") is not None


def is_gloo_available() -> bool:
    """Whether the backend string "gloo" is accepted: always, as an alias."""
    return True


def is_nccl_available() -> bool:
    """Whether there is an NCCL backend: not yet."""
    return False


def is_ucc_available() -> bool:
    """Whether there is a UCC backend: no."""
    return False


def is_backend_available(backend: str) -> bool:
    """Whether `init_process_group(backend)` is worth trying."""
    found = {
        Backend.MPI: is_mpi_available(),
        Backend.LOCAL: True,
        Backend.GLOO: is_gloo_available(),
    }
    return found.get(backend.lower(), False)
