"""Messages over sockets: between processes, between two nodes, with strangers at the door."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from mpi_runner import clean_environment
from netns import two_nodes

from collectives import listen
from collectives.secret import MAGIC, Handshake, HandshakeError
from collectives.store import HashStore, TCPStore
from collectives.tcp import rendezvous
from collectives.tcp.transport import TCPTransport, gather_bytes
from collectives.work import CollectiveError, CollectiveTimeout, RankFailedError

WORKER = Path(__file__).parent / "tcp_worker.py"
SECRET = "a secret of these tests"


@pytest.fixture(autouse=True)
def secret(monkeypatch):
    monkeypatch.setenv("DISTTORCH_JOB_SECRET", SECRET)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


class Job:
    """Ranks of the worker; each rank's output is a file.

    Args:
        scratch: a folder of this job.
        n: number of ranks.
        scenarios: of the worker.
        env: for all ranks.
        prefixes: for each rank what stands before its command.
    """

    def __init__(
        self,
        scratch: Path,
        n: int,
        scenarios: Sequence[str],
        env: dict[str, str] | None = None,
        prefixes: Sequence[Sequence[str]] = (),
        sizes: Sequence[int] = (),
        ranks: Sequence[int] = (),
    ) -> None:
        self.scratch = scratch
        common = {
            "SCRATCH": str(scratch),
            "MASTER_ADDR": "127.0.0.1",
            "DISTTORCH_JOB_SECRET": SECRET,
            **(env or {}),
        }
        common.setdefault("MASTER_PORT", str(free_port()))
        self.port = int(common["MASTER_PORT"])
        self.processes = []
        self.outputs = []
        for i in range(n):
            rank = ranks[i] if ranks else i
            out = scratch / f"out.{i}"
            self.outputs.append(out)
            extra = {**common, "RANK": str(rank), "WORLD_SIZE": str(sizes[i] if sizes else n)}
            with out.open("wb") as file:
                self.processes.append(
                    subprocess.Popen(
                        [*(prefixes[i] if prefixes else ()), sys.executable, str(WORKER), *scenarios],
                        env=clean_environment(extra), stdin=subprocess.DEVNULL, stdout=file,
                        stderr=subprocess.STDOUT,
                    )  # fmt: skip
                )

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()

    def finish(self, timeout: float = 60.0) -> list[int]:
        """Wait for all ranks and return their exit statuses; a rank that hangs fails the test."""
        end = time.monotonic() + timeout
        try:
            return [process.wait(max(end - time.monotonic(), 0.1)) for process in self.processes]
        except subprocess.TimeoutExpired:
            pytest.fail(f"ranks hang:\n{self.output()}")

    def output(self) -> str:
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in self.outputs
        )

    def check(self, ranks: Sequence[int], scenarios: Sequence[str]) -> None:
        for rank in ranks:
            text = self.outputs[rank].read_text()
            for name in scenarios:
                assert f"rank {rank}: {name} ok" in text, self.output()


EVERYTHING = [
    "ring", "dtypes", "order", "any_source", "to_itself", "sub", "misfit", "threads",
    "behind_the_back", "polled",
]  # fmt: skip


@pytest.mark.parametrize("n", [2, 4])
def test_messages_between_processes(tmp_path, n):
    with Job(tmp_path, n, EVERYTHING) as job:
        assert job.finish() == [0] * n, job.output()
        job.check(range(n), EVERYTHING)


def test_messages_between_two_nodes(tmp_path):
    with two_nodes() as nodes:
        prefixes = [nodes.prefixes[0]] * 2 + [nodes.prefixes[1]] * 2
        env = {"MASTER_ADDR": nodes.addresses[0], "LOCAL_WORLD_SIZE": "2"}
        with Job(tmp_path, 4, ["nodes", *EVERYTHING], env, prefixes) as job:
            assert job.finish() == [0] * 4, job.output()
            job.check(range(4), ["nodes", *EVERYTHING])


def test_messages_between_two_loopback_addresses(tmp_path):
    """As between two nodes, where no namespaces can be made: TCP between ranks 0, 1 and 2, 3."""
    names = ["nodes", "dtypes", "sub", "misfit", "threads"]
    prefixes = [
        ["env", f"PRETENDED_NODE={rank // 2}", f"DISTTORCH_NODE_ADDR=127.0.0.{1 + rank // 2}"]
        for rank in range(4)
    ]
    with Job(tmp_path, 4, names, prefixes=prefixes) as job:
        assert job.finish() == [0] * 4, job.output()
        job.check(range(4), names)


def test_file_rendezvous_and_removal_of_the_file(tmp_path):
    file = tmp_path / "meet"
    with Job(tmp_path, 2, ["order"], {"INIT_METHOD": f"file://{file}"}) as job:
        assert job.finish() == [0, 0], job.output()
    assert not file.exists()


def test_killed_rank_is_named(tmp_path):
    with Job(tmp_path, 3, ["killed"]) as job:
        assert job.finish() == [0, -signal.SIGKILL, 0], job.output()
        job.check([0, 2], ["killed"])


# Strangers


def knock(address: tuple[str, int] | str, data: bytes = b"") -> socket.socket:
    if isinstance(address, str):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect("\0" + address)
    else:
        sock = socket.create_connection(address, timeout=10)
    if data:
        sock.sendall(data)
    return sock


def harass(address: tuple[str, int] | str, purpose: str) -> list[socket.socket]:
    """All kinds of visitors that do not belong here; returns those that stay connected."""
    stay = [knock(address) for _ in range(20)]  # half-open: say nothing
    stay += [knock(address, MAGIC[:3])]  # begin the handshake and stop
    knock(address).close()
    for data in (b"GET / HTTP/1.0\r\n\r\n".ljust(200), os.urandom(5000), b"\xff" * (1 << 20)):
        with knock(address) as sock:
            try:
                sock.sendall(data)  # they close as soon as they have seen enough
                assert sock.recv(100) == b""
            except ConnectionError:
                pass
    # Frames without a handshake, as if it were over.
    with knock(address, (1 << 62).to_bytes(8, "little") + bytes(400)) as sock:
        try:
            assert sock.recv(100) == b""
        except ConnectionError:
            pass
    for wrong_secret, wrong_purpose in ((b"another secret", purpose), (SECRET.encode(), "another job")):
        with pytest.raises(HandshakeError, match="refused us.*set DISTTORCH_JOB_SECRET to the same"):
            listen.connect(address, wrong_secret, wrong_purpose, timeout=10)
    # The right greeting and a wrong proof, then what would be a request.
    with knock(address, Handshake(b"guess", purpose, True).start() + bytes(32) + bytes(500)) as sock:
        try:
            while sock.recv(100):
                pass
        except ConnectionError:
            pass
    return stay


def drip(address: tuple[str, int], stop: threading.Event) -> None:
    """Say a right greeting one byte at a time."""
    with knock(address) as sock:
        for byte in Handshake(SECRET.encode(), "store", True).start():
            if stop.wait(0.05):
                return
            try:
                sock.sendall(bytes([byte]))
            except OSError:
                return


def listening_ports(pids: Sequence[int]) -> set[tuple[str, int]]:
    """The TCP addresses at which these processes listen."""
    inodes = set()
    for pid in pids:
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            try:
                inodes.add(os.readlink(fd))
            except OSError:
                pass
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                host, port = fields[1].split(":")
                name = "127.0.0.1" if host == "0100007F" else host
                found.add((name, int(port, 16)))
    return found


def test_strangers_do_not_disturb_a_running_job(tmp_path):
    stop = threading.Event()
    with Job(tmp_path, 2, ["linger"]) as job:
        end = time.monotonic() + 60
        while not all((tmp_path / f"going.{rank}").exists() for rank in range(2)):
            assert time.monotonic() < end and job.processes[0].poll() is None, job.output()
            time.sleep(0.01)
        # All that listens is the store, on the loopback device.
        ports = listening_ports([process.pid for process in job.processes])
        assert ports == {("127.0.0.1", job.port)}, ports
        slow = threading.Thread(target=drip, args=(("127.0.0.1", job.port), stop))
        slow.start()
        stay = harass(("127.0.0.1", job.port), "store")
        # Who belongs here gets in at once, past all who wait at the door.
        store = TCPStore("127.0.0.1", job.port)
        store.set("visitor", "was here")
        assert store.get("visitor") == b"was here"
        (tmp_path / "stop").touch()
        assert job.finish() == [0, 0], job.output()
        job.check(range(2), ["linger"])
        # Noted once, however many came from this address.
        assert job.output().count("turned a connection from 127.0.0.1") == 1, job.output()
    stop.set()
    slow.join()
    for sock in stay:
        sock.close()


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_strangers_at_the_door_of_the_data(kind, capfd, monkeypatch):
    monkeypatch.setattr(listen, "TIME_LIMIT", 0.3)
    selector = selectors.DefaultSelector()
    if kind == "tcp":
        listener = listen.listen("127.0.0.1", 0)
        address = listener.getsockname()[:2]
    else:
        address = f"disttorch-test-{os.getpid()}"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind("\0" + address)
        listener.listen()
    admitted: list[bytes] = []
    welcome: list[socket.socket] = []

    def admit(sock: socket.socket, claim: bytes) -> None:
        admitted.append(claim.rstrip(b"\0"))
        welcome.append(sock)

    doorman = listen.Doorman(listener, SECRET.encode(), "data job", selector, admit)
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            for key, mask in selector.select(0.02):
                key.data(mask)
            doorman.tick()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        stay = harass(address, "data job")
        mine = listen.connect(address, SECRET.encode(), "data job", b"me", timeout=10)
        end = time.monotonic() + 10
        while not admitted and time.monotonic() < end:  # it has answered before it says so
            time.sleep(0.001)
        assert admitted == [b"me"]
        for sock in stay:  # they are sent away when their time is up
            sock.settimeout(10)
            assert sock.recv(1) == b""
            sock.close()
        mine.close()
    finally:
        stop.set()
        thread.join()
        doorman.close()
        selector.close()
        for sock in welcome:
            sock.close()
    assert doorman.strangers >= 28
    assert capfd.readouterr().err.count("turned a connection from") == 1


def test_a_listener_that_is_no_job(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        def greet() -> None:
            sock, _ = server.accept()
            with sock:
                sock.sendall(b"220 mail.example.org ESMTP ready, who are you and what do you want?")
                sock.recv(200)

        thread = threading.Thread(target=greet)
        thread.start()
        with pytest.raises(HandshakeError, match="is no process of a disttorch job: it sent b'220 mail"):
            listen.connect(server.getsockname(), b"x", "store", timeout=10)
        thread.join()


# Rendezvous


def test_wrong_secret_is_said_to_the_one_who_connects(tmp_path):
    env = {"RENDEZVOUS_TIMEOUT": "2"}
    port = free_port()
    host = threading.Thread(target=lambda: _quiet(
        lambda: rendezvous.connect(f"tcp://127.0.0.1:{port}", 0, 2, timeout=8)
    ))
    host.start()
    with Job(tmp_path, 1, [], {**env, "DISTTORCH_JOB_SECRET": "other", "MASTER_PORT": str(port)},
             sizes=[2], ranks=[1]) as job:  # fmt: skip
        assert job.finish() == [1]
        assert f"HandshakeError: 127.0.0.1:{port} refused us" in job.output()
        assert "set DISTTORCH_JOB_SECRET to the same value on all nodes" in job.output()
    # The right one still gets in.
    transport = rendezvous.connect(f"tcp://127.0.0.1:{port}?rank=1&world_size=2", timeout=20)
    transport.close()
    host.join()


def _quiet(job) -> None:
    try:
        job().close()
    except CollectiveError:
        pass


@pytest.mark.parametrize(
    "case, ranks, sizes, kind, text",
    [
        ("missing", [0, 1], [4, 4], "CollectiveTimeout", "ranks 2 and 3 of 4 did not come to 127.0."),
        ("twice", [0, 1, 1], [3, 3, 3], "RendezvousError", "rank 1 of 3 came twice to 127.0.0.1:"),
        ("host twice", [0, 1, 0], [3, 3, 3], "RendezvousError", "rank 0 of 3 came twice to 127.0.0.1:"),
        ("sizes", [0, 1], [2, 3], "RendezvousError", "all ranks must be given the same"),
        ("no host", [1], [2], "CollectiveTimeout", "rank 0, which hosts the store, did not come to"),
    ],
)
def test_who_is_wrong_is_named_on_all_ranks(tmp_path, case, ranks, sizes, kind, text):
    env = {"RENDEZVOUS_TIMEOUT": "3" if kind == "CollectiveTimeout" else "30"}
    with Job(tmp_path, len(ranks), ["order"], env, ranks=ranks, sizes=sizes) as job:
        assert job.finish(25) == [1] * len(ranks), job.output()
        for path in job.outputs:
            shown = path.read_text()
            assert kind in shown and text in shown, job.output()


def connect_in_threads(n: int, store=None, init_method=None) -> list[TCPTransport]:
    """All ranks of a job in threads of this process."""
    store = None if init_method else store or HashStore()
    found: list[TCPTransport | None] = [None] * n

    def go(rank: int) -> None:
        found[rank] = rendezvous.connect(init_method, rank, n, 20, store)

    crew = [threading.Thread(target=go, args=(rank,)) for rank in range(n)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    assert all(found)
    return found  # type: ignore[return-value]


@pytest.mark.parametrize(
    "arguments, text",
    [
        ({"init_method": "env://"}, "needs the variable MASTER_ADDR|needs a rank and a world size"),
        ({"init_method": "tcp://localhost"}, "must be tcp://host:port"),
        ({"init_method": "tcp://localhost:80"}, "rank is not given"),
        ({"init_method": "tcp://localhost:80?rank=0"}, "world_size is not given"),
        ({"init_method": "tcp://localhost:80?rank=x&world_size=2"}, "rank must be a number, got 'x'"),
        ({"init_method": "tcp://localhost:80", "rank": 2, "world_size": 2}, "rank 2 does not fit"),
        ({"init_method": "file://relative", "rank": 0, "world_size": 1}, "must be file:///path"),
        ({"init_method": "ftp://a", "rank": 0, "world_size": 1}, "unknown init_method 'ftp://a'"),
    ],
)
def test_wrong_arguments(arguments, text, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match=text):
        rendezvous.connect(**arguments)


def test_one_rank_alone():
    transport = rendezvous.connect(rank=0, world_size=1, store=HashStore())
    assert (transport.rank, transport.size, transport.members) == (0, 1, (0,))
    assert gather_bytes(transport, b"x") == [b"x"]
    transport.close()


def test_several_jobs_in_one_store():
    store = HashStore()
    for _ in range(2):
        transports = connect_in_threads(2, store)
        for transport in transports:
            transport.close()


def test_ranks_meet_again_at_the_same_place():
    place = f"tcp://127.0.0.1:{free_port()}"
    for turn in range(3):
        transports = connect_in_threads(3, init_method=place)
        sent = transports[2].isend(np.array([turn]), 0, 1)
        out = np.empty(1, np.int64)
        transports[0].irecv(out, 2, 1).wait(10)
        sent.wait(10)
        assert out[0] == turn
        for transport in transports:
            transport.close()


def test_a_store_that_the_launcher_hosts(tmp_path):
    host = TCPStore("127.0.0.1", 0, None, True)
    env = {"DISTTORCH_STORE_HOSTED": "1", "MASTER_PORT": str(host.port)}
    with Job(tmp_path, 2, ["order"], env) as job:
        assert job.finish() == [0, 0], job.output()
    assert any("rendezvous/" in key for key in host.list_keys())
    host.close()


# Waiting


class Complaint:
    """A watch that complains from the third question on."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, ...]] = []

    def look(self, call, missing) -> None:
        self.asked.append(tuple(missing))
        if len(self.asked) >= 3:
            raise RankFailedError("rank 1 has left")


def test_a_wait_asks_the_watch_for_whom_it_waits():
    a, b = connect_in_threads(2)
    part = a.sub([1, 0], "turned") if a.rank == 0 else None
    assert part is not None
    b.sub([1, 0], "turned")
    part.watch = Complaint()
    work = part.irecv(np.empty(1), 0, 1)  # rank 0 there is rank 1 of the job
    with pytest.raises(RankFailedError, match="rank 1 has left"):
        work.wait()
    assert part.watch.asked == [(1,)] * 3
    assert isinstance(a.watch, type(b.watch)) and not isinstance(a.watch, Complaint)
    a.close(), b.close()


def test_a_message_that_came_beats_the_complaint():
    a, b = connect_in_threads(2)

    class Late:
        def look(self, call, missing) -> None:
            b.isend(np.array([5.0]), 0, 1).wait()
            raise RankFailedError("rank 1 has left, after it did its part")

    a.watch = Late()
    out = np.empty(1)
    assert a.irecv(out, 1, 1).wait(10) and out[0] == 5
    a.close(), b.close()


def cut(transport: TCPTransport) -> None:
    """End all connections of one side at once, as its death would."""
    for connection in transport._engine.connections.values():
        connection.sock.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("posted", ["before", "meanwhile", "afterwards"])
def test_a_message_that_breaks_off_ends_its_receive(posted):
    a, b = connect_in_threads(2)
    out, work = np.empty(8 << 20), None
    if posted == "before":
        work = a.irecv(out, 1, 1)
    with b._engine._seat:  # keeps b's background thread from sending on
        with a._engine._seat:  # and a's from taking all of it while b's call still writes
            sent = b.isend(np.ones(8 << 20), 0, 1)
        a._engine.glance()
        if posted == "meanwhile":
            work = a.irecv(out, 1, 1)
        cut(b)
    if posted == "afterwards":
        with pytest.raises(RankFailedError):
            a.irecv(np.empty(1), 1, 2).wait(10)
        work = a.irecv(out, 1, 1)
    for broken in (work, sent):
        with pytest.raises(RankFailedError, match="rank . is gone: its connection"):
            broken.wait(10)
    a.close(), b.close()


def test_the_watch_says_why_a_rank_has_gone():
    a, b = connect_in_threads(2)

    class News:
        def look(self, call, missing) -> None:
            assert list(missing) == [1]
            raise RankFailedError("rank 1 failed: ZeroDivisionError at train.py:3")

    b.close()
    work = a.irecv(np.empty(1), 1, 1)
    a.watch = News()
    for _ in range(2):  # each wait says the same
        with pytest.raises(RankFailedError, match="ZeroDivisionError at train.py:3"):
            work.wait(10)
    a.close()
    with pytest.raises(CollectiveError, match="rank 0 has closed its transport"):
        a.isend(np.zeros(1), 1, 1)
    a.close()


def test_wait_with_a_time_limit_can_be_repeated():
    a, b = connect_in_threads(2)
    out = np.empty(2)
    work = a.irecv(out, 1, 1)
    with pytest.raises(TimeoutError, match="recv is not complete after 0.02 seconds"):
        work.wait(0.02)
    assert not work.is_completed() and work.exception() is None
    b.isend(np.array([1.0, 2.0]), 0, 1).wait()
    assert work.wait(10) and out.tolist() == [1, 2]
    a.close(), b.close()


def test_a_thread_that_waits_is_woken_by_the_one_that_drives():
    a, b = connect_in_threads(2)
    outs = [np.empty(1), np.empty(1)]
    works = [a.irecv(out, 1, tag) for tag, out in enumerate(outs)]
    crew = [threading.Thread(target=work.wait, args=(20,)) for work in works]
    for thread in crew:
        thread.start()
    for tag in (1, 0):  # whichever of them drives, one is done before the other
        b.isend(np.array([float(tag)]), 0, tag).wait()
        crew[tag].join(20)
        assert not crew[tag].is_alive() and outs[tag][0] == tag
    a.close(), b.close()


def test_wrong_buffers_ranks_and_tags():
    a, b = connect_in_threads(2)
    with pytest.raises(ValueError, match="flat contiguous"):
        a.isend(np.zeros((2, 2)), 1, 0)
    with pytest.raises(ValueError, match="flat contiguous"):
        a.isend(np.zeros(4)[::2], 1, 0)
    with pytest.raises(ValueError, match="rank 2 is not one of the 2 ranks"):
        a.isend(np.zeros(4), 2, 0)
    with pytest.raises(ValueError, match="tag -1"):
        a.irecv(np.zeros(4), 1, -1)
    with pytest.raises(ValueError, match=r"rank 0 is not one of the ranks \[1\]"):
        a.sub([1], "without me")
    a.close(), b.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_child_does_not_keep_connections_alive():
    a, b = connect_in_threads(2)
    child = os.fork()
    if child == 0:
        time.sleep(30)
        os._exit(0)
    try:
        b.close()
        with pytest.raises(RankFailedError, match="rank 1 is gone"):
            a.irecv(np.empty(1), 1, 1).wait(10)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    a.close()


def test_timeout_error_names_the_ranks_as_numbers():
    with pytest.raises(CollectiveTimeout) as caught:
        rendezvous.connect(rank=0, world_size=3, store=HashStore(), timeout=0.3)
    assert caught.value.missing == [1, 2]
    assert "ranks 1 and 2 of 3 did not come to the given HashStore within 0.3 s" in str(caught.value)
