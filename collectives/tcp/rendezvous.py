"""How processes that no MPI started find each other: `connect`.

All ranks meet in a store: rank 0 hosts it at MASTER_ADDR:MASTER_PORT, or it is a file, or somebody
gives it. There each rank registers itself, waits for the others, learns on which nodes they are and
where they listen, and connects to them (`mesh`). What goes wrong, like an absent rank, a rank that came
twice or world sizes that differ, is put into the store, so that all ranks raise the same sentence.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

from .. import listen
from ..secret import ADVICE, job_secret
from ..store import FileStore, PrefixStore, Store, StoreConnectionError, StoreTimeout, TCPStore
from ..transport import node_identity
from ..work import CollectiveError, CollectiveTimeout
from .mesh import Entrance, name_ranks
from .transport import TCPTransport

HOSTED = "DISTTORCH_STORE_HOSTED"  # "1": the launcher hosts the store, not rank 0
ADDRESS = "DISTTORCH_NODE_ADDR"  # this node's address for the other nodes, where the choice is wrong
DEFAULT_TIMEOUT = 300.0
_SLICE = 0.5  # seconds between two looks for an error that another rank has reported
_LINGER = 5.0  # seconds that the host of the store stays for the others to read what went wrong

# Stores that this process hosts. They stay: ranks that meet a second time at the same place must not
# find the first store there while it goes away.
_hosted: dict[tuple[int, str, int], TCPStore] = {}
_rounds: Counter[str] = Counter()  # how often this process has met others at one place


class RendezvousError(CollectiveError):
    """The processes of a job contradict each other about who they are."""


class Meeting(NamedTuple):
    """Where and as whom to meet."""

    rank: int
    size: int
    place: str  # for messages
    host: str  # an address on the way to the other nodes; "" if unknown
    store: Store
    hosting: bool


def connect(
    init_method: str | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    timeout: float = DEFAULT_TIMEOUT,
    store: Store | None = None,
) -> TCPTransport:
    """Meet all other ranks and connect to them.

    Args:
        init_method: "env://" (the default: RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT),
            "tcp://host:port" or "file:///path", both with rank and world size as arguments or as
            "?rank=0&world_size=2".
        rank, world_size: of this process and of the job; override what `init_method` says.
        timeout: seconds for everything.
        store: meet there instead; needs `rank` and `world_size`.

    Returns:
        The transport of all ranks. Its attribute `store` is the store in which they met.

    Raises:
        ValueError: `init_method` or the environment does not say where, or as whom.
        CollectiveTimeout: ranks that did not come, by number.
        RendezvousError: a rank came twice, or world sizes differ.
        HandshakeError: another secret than that of the store's host.
    """
    deadline = time.monotonic() + timeout
    meeting = _find(init_method, rank, world_size, timeout, store)
    return _Meeting(meeting, timeout, deadline).carry_out()


def _find(
    init_method: str | None, rank: int | None, size: int | None, timeout: float, store: Store | None
) -> Meeting:
    if store is not None:
        if init_method:
            raise ValueError(f"give either a store or init_method, not both (got {init_method!r})")
        r, n = _who(rank, size, "a store")
        host = store.host if isinstance(store, TCPStore) else ""
        return Meeting(r, n, f"the given {type(store).__name__}", host, store, False)
    method = init_method or "env://"
    url = urlsplit(method)
    query = {key: values[-1] for key, values in parse_qs(url.query).items()}
    rank = _number(query.get("rank"), "rank") if rank in (None, -1) else rank
    size = _number(query.get("world_size"), "world_size") if size in (None, -1) else size
    if url.scheme == "env":
        rank = _number(os.environ.get("RANK"), "RANK") if rank is None else rank
        size = _number(os.environ.get("WORLD_SIZE"), "WORLD_SIZE") if size is None else size
        r, n = _who(rank, size, "env://")
        port = _number(_variable("MASTER_PORT"), "MASTER_PORT")
        return _meet_at_host(r, n, _variable("MASTER_ADDR"), port or 0, timeout, _on_one_node(n))
    if url.scheme == "tcp":
        if not url.hostname or not url.port:
            raise ValueError(f"{method!r} must be tcp://host:port")
        r, n = _who(rank, size, method)
        return _meet_at_host(r, n, url.hostname, url.port, timeout, False)
    if url.scheme == "file":
        if not url.path or url.netloc not in ("", "localhost"):
            raise ValueError(f"{method!r} must be file:///path, with an absolute path")
        r, n = _who(rank, size, method)
        return Meeting(r, n, f"the file {url.path}", "", FileStore(url.path, n), False)
    raise ValueError(f"unknown init_method {method!r}: use env://, tcp://host:port or file:///path")


def _variable(name: str) -> str:
    value = os.environ.get(name, "")
    if not value:
        raise ValueError(
            f"env:// needs the variable {name}, which is not set: start the script with "
            "disttorch-run, or set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT"
        )
    return value


def _number(text: str | None, what: str) -> int | None:
    if text is None:
        return None
    if not text.lstrip("-").isdigit():
        raise ValueError(f"{what} must be a number, got {text!r}")
    return int(text)


def _who(rank: int | None, size: int | None, where: str) -> tuple[int, int]:
    if rank is None or size is None:
        name = "rank" if rank is None else "world_size"
        raise ValueError(f"{where} needs a rank and a world size, and {name} is not given")
    if size < 1 or not 0 <= rank < size:
        raise ValueError(f"rank {rank} does not fit a world of {size}: ranks are 0 to world_size - 1")
    return rank, size


def _on_one_node(size: int) -> bool:
    return os.environ.get("LOCAL_WORLD_SIZE", "") == str(size)


def _meet_at_host(
    rank: int, size: int, host: str, port: int, timeout: float, one_node: bool
) -> Meeting:
    hosted = os.environ.get(HOSTED, "") == "1"
    place = listen.text_of((host, port))
    if one_node and not hosted:
        host = "127.0.0.1"  # whatever MASTER_ADDR says: nobody outside needs to reach it
    limit = timedelta(seconds=timeout)
    if rank == 0 and not hosted:
        key = os.getpid(), host, port
        try:
            if key not in _hosted:
                at = None if one_node else _bindable(host)
                _hosted[key] = TCPStore(host, port, None, True, limit, _listen_host=at)
            return Meeting(rank, size, place, host, _hosted[key], True)
        except StoreConnectionError as error:
            # Perhaps another rank 0 is there already: then all ranks are to hear of it.
            try:
                store = TCPStore(host, port, None, False, timedelta(seconds=1))
            except CollectiveError:
                raise error from None
        return Meeting(rank, size, place, host, store, False)
    try:
        store = TCPStore(host, port, None, False, limit)
    except StoreConnectionError as error:
        who = "the launcher" if hosted else "rank 0"
        raise CollectiveTimeout(
            f"{who}, which hosts the store, did not come to {place} within {timeout:g} s "
            f"(rank {rank} of {size}: {error})",
            [] if hosted else [0],
        ) from None
    return Meeting(rank, size, place, host, store, False)


def _bindable(host: str) -> str:
    """The address at which the store's host listens for ranks of other nodes."""
    if host in ("localhost", "::1") or host.startswith("127."):
        return host
    if not listen.is_loopback(host):
        try:
            listen.listen(host, 0).close()
            return host
        except listen.ConnectError:
            pass
    # Its name leads here by translation, or to the loopback device, as on some distributions.
    return "::"


def _node_address(host: str) -> str:
    """This node's address on the way to `host`, or to the world if that is not known."""
    if chosen := os.environ.get(ADDRESS, ""):
        return chosen
    for target in (host, "192.0.2.1", "2001:db8::1"):  # the latter two are nobody's
        if not target:
            continue
        try:
            family, kind, _, _, address = socket.getaddrinfo(target, 9, type=socket.SOCK_DGRAM)[0]
            with socket.socket(family, kind) as probe:  # sends nothing, only asks for the route
                probe.connect(address)
                found = str(probe.getsockname()[0])
        except OSError:
            continue
        if not listen.is_loopback(found):
            return found
    raise RendezvousError(
        "this node has no address that other nodes could reach, but some ranks are on other nodes: "
        f"set {ADDRESS} to it"
    )


def _identity(store: Store) -> str:
    """Equal for two handles of one store in this process."""
    if isinstance(store, PrefixStore):
        return f"{store.prefix}/{_identity(store.underlying_store)}"
    if isinstance(store, TCPStore):
        return listen.text_of((store.host, store.port))
    if isinstance(store, FileStore):
        return os.path.abspath(store.path)
    if not hasattr(store, "_identity"):
        store._identity = secrets.token_hex(8)  # type: ignore[attr-defined]
    return str(store._identity)  # type: ignore[attr-defined]


class _Meeting:
    """One rank's part in one meeting."""

    def __init__(self, meeting: Meeting, timeout: float, deadline: float) -> None:
        self.rank, self.size, self.place, self.host, store, self.hosting = meeting
        self.timeout, self.deadline = timeout, deadline
        self.base = store
        # A second job of the same processes, or a restarted one, must not see the first one's keys.
        where = f"rank {self.rank} in {_identity(store)}"
        restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self.store = PrefixStore(f"rendezvous/{restart}/{_rounds[where]}", store)
        _rounds[where] += 1

    def carry_out(self) -> TCPTransport:
        try:
            return self._meet()
        except StoreConnectionError:
            raise RendezvousError(
                f"rank {self.rank} of {self.size}: the store at {self.place} has gone while ranks "
                "were meeting; look at the output of rank 0, which hosts it"
            ) from None

    def _meet(self) -> TCPTransport:
        self._register()
        nodes = [info["node"] for info in self._gather("node", {"node": node_identity()})]
        job = self.store.compare_set("job", "", secrets.token_hex(16)).decode()
        entrance = Entrance(self.rank, nodes, job_secret(), job, lambda: _node_address(self.host))
        self.store.set(f"address/{self.rank}", entrance.address)
        addresses = self._await("address")
        sockets = entrance.connect(addresses, max(self.deadline - time.monotonic(), 1.0))
        transport = TCPTransport.over(self.rank, sockets, nodes)
        transport.store = self.base
        return transport

    def _register(self) -> None:
        self.store.add("come", 1)
        size = self.store.compare_set("world_size", "", str(self.size))
        if int(size) != self.size:
            self._fail(
                f"rank {self.rank} was started with world size {self.size}, others with "
                f"{size.decode()}: all ranks must be given the same"
            )
        me = f"process {os.getpid()} on {socket.gethostname()}, {secrets.token_hex(4)}"
        first = self.store.compare_set(f"who/{self.rank}", "", me).decode()
        if first != me:
            self._fail(
                f"rank {self.rank} of {self.size} came twice to {self.place}: as "
                f"{first.rsplit(',', 1)[0]} and as {me.rsplit(',', 1)[0]}; give every process its own "
                "rank"
                + (", and remove the file if an earlier job left it" if "file" in self.place else "")
            )

    def _gather(self, topic: str, mine: dict[str, str]) -> list[dict[str, str]]:
        self.store.set(f"{topic}/{self.rank}", json.dumps(mine))
        return [json.loads(value) for value in self._await(topic)]

    def _await(self, topic: str) -> list[bytes]:
        """The values of all ranks under `topic`; raises what any rank has reported meanwhile."""
        keys = [f"{topic}/{rank}" for rank in range(self.size)]
        while True:
            left = self.deadline - time.monotonic()
            try:
                self.store.wait(keys, timedelta(seconds=min(max(left, 0.001), _SLICE)))
                return self.store.multi_get(keys)
            except StoreTimeout:
                pass
            self._look_for_failure()
            if left <= 0:
                self._name_absent(topic, keys)

    def _name_absent(self, topic: str, keys: Sequence[str]) -> None:
        absent = [rank for rank, key in enumerate(keys) if not self.store.check([key])]
        if not absent:
            return
        strangers = getattr(self.base, "strangers", 0)
        self._fail(
            f"{name_ranks(absent)} of {self.size} did not come to {self.place} within "
            f"{self.timeout:g} s; check that every rank was started and can reach this address"
            + (f" ({strangers} connections were turned away: {ADVICE})" if strangers else ""),
            absent,
        )

    def _fail(self, text: str, absent: Sequence[int] = ()) -> None:
        """Make all ranks raise `text`."""
        report = json.dumps({"text": text, "absent": list(absent)})
        self.store.compare_set("failure", "", report)
        self._look_for_failure()

    def _look_for_failure(self) -> None:
        if not self.store.check(["failure"]):
            return
        failure = json.loads(self.store.get("failure"))
        self.store.add("failure_seen", 1)
        end = time.monotonic() + _LINGER
        while self.hosting and time.monotonic() < end:
            come = self.store.add("come", 0)
            expected = come if failure["absent"] else max(come, self.size)
            if self.store.add("failure_seen", 0) >= expected:
                break
            time.sleep(0.02)
        if failure["absent"]:
            raise CollectiveTimeout(failure["text"], failure["absent"])
        raise RendezvousError(failure["text"])
