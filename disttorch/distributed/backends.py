"""Backend names: which way between ranks a string such as "cpu:gloo" asks for."""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import dataclass
from typing import Any

DEVICE_TYPES = ("cpu", "cuda")


class Backend(str):
    """A backend's name, lower case: `Backend("MPI") == "mpi" == Backend.MPI`.

    Raises:
        ValueError: not a string.
    """

    UNDEFINED = "undefined"
    GLOO = "gloo"
    NCCL = "nccl"
    UCC = "ucc"
    MPI = "mpi"
    XCCL = "xccl"
    TCP = "tcp"
    LOCAL = "local"
    backend_list = [UNDEFINED, GLOO, NCCL, UCC, MPI, XCCL, TCP, LOCAL]
    default_device_backend_map = {"cpu": GLOO, "cuda": NCCL}

    def __new__(cls, name: str) -> Backend:
        if not isinstance(name, str):
            raise ValueError(f"Backend constructor parameter must be string-ish, got {name!r}")
        return super().__new__(cls, name.lower())

    @classmethod
    def register_backend(cls, name: str, func: Any, *args: Any, **kwargs: Any) -> None:
        """Backends of other packages; not built.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            f"Backend.register_backend({name!r}): backends written for PyTorch's C++ classes "
            "cannot be used; a backend of disttorch is a subclass of collectives.Group"
        )


class BackendConfig:
    """What a backend string says for each device type: `str` gives "cpu:mpi,cuda:mpi"."""

    def __init__(self, backend: str) -> None:
        parts = [part.strip().rpartition(":") for part in str(backend).split(",")]
        named = {device: Backend(name) for device, colon, name in parts if colon}
        self.device_backend_map: dict[str, Backend] = named or dict.fromkeys(
            DEVICE_TYPES, Backend(str(backend))
        )

    def __repr__(self) -> str:
        return ",".join(f"{device}:{name}" for device, name in self.device_backend_map.items())

    def get_device_backend_map(self) -> dict[str, Backend]:
        """Device type -> backend."""
        return self.device_backend_map


@dataclass(frozen=True)
class Choice:
    """What a `backend` argument asks for.

    Attributes:
        cpu: "mpi", "tcp", "local", or None: whichever connects this job.
        gloo: whether "gloo" was asked for, whose place any backend takes.
        nccl: whether calls on GPU arrays shall go through NCCL.
    """

    cpu: str | None
    gloo: bool
    nccl: bool

    def config(self, used: str) -> str:
        """The backend of each device type, where `used` connects the job's processes."""
        return f"cpu:{used},cuda:{Backend.NCCL if self.nccl else used}"


def choose(text: str | None) -> Choice:
    """What a `backend` argument asks for: None, a name, or names by device, "cpu:mpi,cuda:nccl".

    Raises:
        NotImplementedError: a backend that disttorch does not have.
        RuntimeError: NCCL, whose binding is not installed.
        ValueError: an unknown name, a malformed string, two different backends.
    """
    names = [] if text is None else [_name_in(part, text) for part in str(text).split(",")]
    for name in names:
        if name == Backend.NCCL and not is_nccl_available():
            raise RuntimeError(
                "the NCCL backend needs the package nccl4py or cupy: pip install nccl4py, or use "
                "init_process_group(), whose backends carry GPU arrays too"
            )
        if name in (Backend.UCC, Backend.XCCL):
            raise NotImplementedError(
                f"there is no {name.upper()} backend: use 'mpi', 'tcp' or no name at all"
            )
    fixed = {str(name) for name in names if name in (Backend.MPI, Backend.TCP, Backend.LOCAL)}
    if len(fixed) > 1:
        raise ValueError(f"one job cannot use two backends: {text!r} asks for {sorted(fixed)}")
    return Choice(fixed.pop() if fixed else None, Backend.GLOO in names, Backend.NCCL in names)


def _name_in(part: str, text: str) -> Backend:
    device, colon, name = part.strip().rpartition(":")
    if colon and device not in DEVICE_TYPES:
        raise ValueError(
            f"Invalid backend string {text!r}: expected a name or 'cpu:NAME,cuda:NAME'"
        )
    if name.lower() not in Backend.backend_list:
        raise ValueError(
            f"Invalid backend: '{name}'; disttorch has 'mpi', 'tcp' and 'local', and 'gloo' as an "
            "alias"
        )
    return Backend(name)


_warned_of_gloo = False


def warn_of_gloo(used: str) -> None:
    """Say once in this process that "gloo" is only a name here."""
    global _warned_of_gloo
    if not _warned_of_gloo:
        _warned_of_gloo = True
        warnings.warn(
            f"disttorch has no gloo: backend 'gloo' is carried out by {used!r}", stacklevel=3
        )


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
    """Whether a binding of NCCL is installed. Does not load it, so a missing GPU is not noticed."""
    return any(importlib.util.find_spec(name) is not None for name in ("nccl", "cupy"))


def is_ucc_available() -> bool:
    """Whether there is a UCC backend: no."""
    return False


def is_xccl_available() -> bool:
    """Whether there is an XCCL backend: no."""
    return False


def is_backend_available(backend: str) -> bool:
    """Whether `init_process_group(backend)` is worth trying."""
    found = {
        Backend.MPI: is_mpi_available(),
        Backend.TCP: True,
        Backend.LOCAL: True,
        Backend.GLOO: is_gloo_available(),
        Backend.NCCL: is_nccl_available(),
    }
    return found.get(backend.lower(), False)


def get_default_backend_for_device(device: Any) -> str:
    """What PyTorch takes for a device type when no backend is named: "gloo" or "nccl".

    Raises:
        ValueError: another device type.
    """
    kind = str(device).partition(":")[0]
    if kind not in Backend.default_device_backend_map:
        raise ValueError(f"Default backend not registered for device : {device}")
    return Backend.default_device_backend_map[kind]
