"""How ranks that no MPI started find each other, as code that builds its own stores asks for it."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, urlparse

from collectives.store import FileStore, Store, TCPStore

from .constants import default_pg_timeout

Meeting = Iterator[tuple[Store, int, int]]

_handlers: dict[str, Callable[..., Meeting]] = {}


def register_rendezvous_handler(scheme: str, handler: Callable[..., Meeting]) -> None:
    """Let `rendezvous` call `handler(url, timeout=…)` for URLs of a scheme.

    Raises:
        RuntimeError: the scheme has a handler.
    """
    if scheme in _handlers:
        raise RuntimeError(f"Rendezvous handler for {scheme}:// already registered")
    _handlers[scheme] = handler


def rendezvous(url: str, rank: int = -1, world_size: int = -1, **kwargs: Any) -> Meeting:
    """Meet at a URL: an iterator that gives (store, rank, world size) once.

    Args:
        url: "env://", "tcp://HOST:PORT" or "file://PATH", where "?rank=R&world_size=N" may follow.
        rank, world_size: this process's place; -1 where the URL or the environment says it.

    Raises:
        RuntimeError: no handler for the scheme.
        ValueError: a place is not known.
    """
    if not isinstance(url, str):
        raise RuntimeError(f"`url` must be a string. {type(url)}: {url}")
    scheme = urlparse(url).scheme
    if scheme not in _handlers:
        raise RuntimeError(f"No rendezvous handler for {scheme}://")
    place = {"rank": rank, "world_size": world_size}
    return _handlers[scheme](url, **{k: v for k, v in place.items() if v != -1}, **kwargs)


def _place(url: str, given: dict[str, int], environment: bool) -> tuple[int, int]:
    """Rank and world size, from the arguments, the URL, or RANK and WORLD_SIZE."""
    query = {name: values[-1] for name, values in parse_qs(urlparse(url).query).items()}
    found = []
    for name in ("rank", "world_size"):
        value = given.get(name, query.get(name))
        if value is None and environment:
            value = os.environ.get(name.upper())
        if value is None:
            where = f"environment variable {name.upper()} expected, but not set" if environment else (
                f"{name} parameter missing"
            )
            raise ValueError(f"Error initializing torch.distributed using {url}: {where}")
        found.append(int(value))
    return found[0], found[1]


def _tcp(url: str, timeout: datetime.timedelta = default_pg_timeout, **given: int) -> Meeting:
    parsed = urlparse(url)
    if not parsed.port or not parsed.hostname:
        raise ValueError(f"Error initializing torch.distributed using {url}: host and port are needed")
    rank, size = _place(url, given, False)
    yield TCPStore(parsed.hostname, parsed.port, size, rank == 0, timeout), rank, size
    raise RuntimeError("Unable to perform re-rendezvous using tcp:// method")


def _env(url: str, timeout: datetime.timedelta = default_pg_timeout, **given: int) -> Meeting:
    rank, size = _place(url, given, True)
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise ValueError(
            f"Error initializing torch.distributed using {url}: environment variable {missing[0]} "
            "expected, but not set"
        )
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    yield TCPStore(host, port, size, rank == 0, timeout), rank, size
    raise RuntimeError("Unable to perform re-rendezvous using env:// method")


def _file(url: str, timeout: datetime.timedelta = default_pg_timeout, **given: int) -> Meeting:
    path = urlparse(url).path
    if not path:
        raise ValueError(f"Error initializing torch.distributed using {url}: path missing")
    rank, size = _place(url, given, False)
    store = FileStore(path, size)
    store.set_timeout(timeout)
    yield store, rank, size
    raise RuntimeError("Unable to perform rerendezvous using file:// method")


for _scheme, _handler in (("tcp", _tcp), ("env", _env), ("file", _file)):
    register_rendezvous_handler(_scheme, _handler)

__all__ = ["register_rendezvous_handler", "rendezvous"]
