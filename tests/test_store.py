"""Stores, alike for every kind; who may use one over TCP; the secret and its file."""

from __future__ import annotations

import gc
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from datetime import timedelta

import pytest
from mpi_runner import clean_environment

from collectives import secret as secret_module
from collectives.secret import ADVICE, CLAIM, MAGIC, Handshake, HandshakeError, job_secret
from collectives.store import (
    FileStore,
    HashStore,
    PrefixStore,
    QueueEmpty,
    Store,
    StoreConnectionError,
    StoreError,
    StoreTimeout,
    TCPStore,
)
from collectives.wire import WireError, length_of, pack, take, unpack
from collectives.work import CollectiveError

SHORT = timedelta(milliseconds=60)
KINDS = ["hash", "file", "tcp", "prefix hash", "prefix tcp", "clone tcp", "clone file"]


@pytest.fixture(autouse=True)
def secret(monkeypatch):
    monkeypatch.setenv("DISTTORCH_JOB_SECRET", "a secret of these tests")


@pytest.fixture(params=KINDS)
def store(request, tmp_path):
    *how, kind = request.param.split()
    made = {
        "hash": HashStore,
        "file": lambda: FileStore(str(tmp_path / "store"), 1),
        "tcp": lambda: TCPStore("localhost", 0, 1, True),
    }[kind]()
    if how == ["prefix"]:
        made = PrefixStore("p", made)
    if how == ["clone"]:
        made = made.clone()  # the original is given up, and the clone must not mind
        gc.collect()
    made.set_timeout(SHORT)
    return made


def test_values(store):
    store.set("a", "1")
    store.set("b", b"\x00\xff")
    store.set("e", "")
    assert [store.get(key) for key in "abe"] == [b"1", b"\x00\xff", b""]
    store.set("a", "2")
    assert store.get("a") == b"2"
    store.append("a", "3")
    store.append("new", b"4")
    assert store.multi_get(["a", "new"]) == [b"23", b"4"]
    store.multi_set(["x", "y"], ["7", b"8"])
    assert store.multi_get(["y", "x"]) == [b"8", b"7"]
    store.set("clé", "à")
    assert store.get("clé") == "à".encode()
    big = os.urandom(3 << 20)
    store.set("big", big)
    assert store.get("big") == big


def test_counters(store):
    assert [store.add("c", 5), store.add("c", -7), store.add("c", 0)] == [5, -2, -2]
    assert store.get("c") == b"-2"
    store.set("n", "40")
    assert store.add("n", 2) == 42
    store.set("text", "hello")
    with pytest.raises(ValueError, match="text.*b'hello' is no integer"):
        store.add("text", 1)
    assert store.get("text") == b"hello"  # and the store still works


def test_compare_set(store):
    assert store.compare_set("k", "expected", "x") == b"expected"
    assert not store.check(["k"])
    assert store.compare_set("k", "", "one") == b"one"
    assert store.compare_set("k", "one", "two") == b"two"
    assert store.compare_set("k", "one", "three") == b"two"
    assert store.compare_set("k", "", "four") == b"two"


def test_keys(store):
    extra = store.num_keys()
    store.multi_set(["a", "b"], ["1", "2"])
    assert store.num_keys() == extra + 2
    assert sorted(store.list_keys()) == ["a", "b"]
    assert store.check(["a", "b"]) and not store.check(["a", "none"]) and store.check([])
    assert store.delete_key("a") and not store.delete_key("a")
    assert not store.check(["a"]) and store.num_keys() == extra + 1


def test_queues(store):
    assert store.has_extended_api() and store.queue_len("q") == 0
    store.queue_push("q", "1")
    store.queue_push("q", "2")
    assert store.queue_len("q") == 2 and store.check(["q"])
    assert [store.queue_pop("q"), store.queue_pop("q")] == [b"1", b"2"]
    assert not store.check(["q"])
    with pytest.raises(QueueEmpty, match="q.* is empty"):
        store.queue_pop("q", block=False)
    with pytest.raises(StoreTimeout):
        store.queue_pop("q")


def test_waits_end(store):
    store.set("a", "1")
    store.wait(["a"])
    store.wait([])
    for attempt in (
        lambda: store.get("none"),
        lambda: store.multi_get(["a", "none"]),
        lambda: store.wait(["a", "none"]),
        lambda: store.wait(["none"], timedelta(milliseconds=10)),
    ):
        text = "Wait timeout: no value for key '(p/)?none' in .* after 0.0"
        with pytest.raises(StoreTimeout, match=text):
            attempt()
    with pytest.raises(TimeoutError, match="'(p/)?n1', '(p/)?n2'"):
        store.wait(["n1", "a", "n2"])
    with pytest.raises(RuntimeError):
        store.get("none")


def test_a_waiting_thread_does_not_keep_others_from_setting(store):
    store.set_timeout(timedelta(seconds=20))
    found = []
    crew = [
        threading.Thread(target=lambda: found.append(store.get("later"))),
        threading.Thread(target=lambda: found.append(store.queue_pop("work"))),
        threading.Thread(target=lambda: found.append(store.multi_get(["m1", "m2"])[0])),
    ]
    for thread in crew:
        thread.start()
    time.sleep(0.05)
    store.set("m2", "2")
    store.append("later", "x")
    store.queue_push("work", "y")
    store.add("m1", 1)
    for thread in crew:
        thread.join(20)
    assert sorted(found) == [b"1", b"x", b"y"]


def test_adding_is_indivisible(store):
    crew = [threading.Thread(target=lambda: [store.add("n", 1) for _ in range(50)]) for _ in range(4)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    assert store.get("n") == b"200"


def test_a_queue_gives_each_value_once(store):
    store.set_timeout(timedelta(seconds=20))
    found = []
    crew = [threading.Thread(target=lambda: found.append(store.queue_pop("q"))) for _ in range(4)]
    for thread in crew:
        thread.start()
    for i in range(4):
        store.queue_push("q", str(i))
    for thread in crew:
        thread.join(20)
    assert sorted(found) == [b"0", b"1", b"2", b"3"] and store.queue_len("q") == 0


def test_barrier(store):
    store.barrier("alone", 1)
    with pytest.raises(StoreTimeout):
        store.barrier("two", 2, timedelta(milliseconds=20))


def test_wrong_types(store):
    with pytest.raises(TypeError, match="a value of a store must be str or bytes, got int"):
        store.set("k", 3)
    with pytest.raises(TypeError, match="a key"):
        store.get(3)
    with pytest.raises(TypeError, match="timedelta"):
        store.set_timeout(3)
    with pytest.raises(ValueError, match="2 keys but 1 values"):
        store.multi_set(["a", "b"], ["1"])
    assert store.timeout == SHORT


def test_prefixes_nest_and_keep_apart():
    base = HashStore()
    inner = PrefixStore("b", base)
    outer = PrefixStore("a", inner)
    outer.set("k", "1")
    PrefixStore("other", base).set("k", "2")
    assert base.list_keys() == ["b/a/k", "other/k"] and inner.list_keys() == ["a/k"]
    assert outer.list_keys() == ["k"] and outer.underlying_store is inner
    outer.set_timeout(SHORT)
    assert base.timeout == SHORT


def test_a_store_of_ones_own_class():
    class Mine(Store):
        def __init__(self) -> None:
            super().__init__()
            self.data = {}

        def set(self, key, value):
            self.data[key] = value

        def get(self, key):
            return self.data[key]

    mine = Mine()
    PrefixStore("p", mine).set("k", "v")
    assert mine.data == {"p/k": "v"} and PrefixStore("p", mine).get("k") == "v"
    with pytest.raises(NotImplementedError, match="Mine does not say how"):
        mine.add("k", 1)


# FileStore


def test_file_is_removed_by_the_last_one(tmp_path):
    path = tmp_path / "store"
    first, second = FileStore(str(path), 2), FileStore(str(path), 2)
    first.set("a", "1")
    assert second.get("a") == b"1" and first.path == str(path)
    first.close()
    assert path.exists()
    del second
    gc.collect()
    assert not path.exists()


def test_file_stays_when_nobody_says_how_many_use_it(tmp_path):
    path = tmp_path / "store"
    FileStore(str(path)).close()
    assert path.exists()


def test_file_is_shared_by_processes(tmp_path):
    path = str(tmp_path / "store")
    code = (
        "import sys; from collectives.store import FileStore\n"
        "s = FileStore(sys.argv[1], 3)\n"
        "for _ in range(100): s.add('n', 1)\n"
        "s.set('done' + sys.argv[2], 'x'); s.wait(['end'])"
    )
    mine = FileStore(path, 3)
    commands = [[sys.executable, "-c", code, path, str(i)] for i in (0, 1)]
    crew = [subprocess.Popen(command, env=clean_environment()) for command in commands]
    mine.wait(["done0", "done1"], timedelta(seconds=40))
    assert mine.get("n") == b"200"
    mine.set("end", "1")
    assert [process.wait(40) for process in crew] == [0, 0]
    mine.close()
    assert not os.path.exists(path)


def test_file_that_is_no_store(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("these are notes and no log of a store at all\n" * 3)
    with pytest.raises(CollectiveError):
        FileStore(str(path), 1)
    assert path.read_text().startswith("these are notes")
    with pytest.raises(StoreError, match="cannot open"):
        FileStore(str(tmp_path / "no" / "folder"), 1)


# TCPStore


def test_server_is_reached_by_other_processes_and_named_when_it_is_gone():
    code = (
        "from collectives.store import TCPStore\n"
        "s = TCPStore('localhost', 0, 1, True)\n"
        "print(s.port, flush=True); s.wait(['end'])"
    )
    host = subprocess.Popen(
        [sys.executable, "-c", code], env=clean_environment(), stdout=subprocess.PIPE, text=True
    )
    try:
        store = TCPStore("127.0.0.1", int(host.stdout.readline()), timeout=timedelta(seconds=20))
        store.set("a", "1")
        assert store.get("a") == b"1" and store.host == "127.0.0.1"
        caught = []

        def wait() -> None:
            with pytest.raises(StoreConnectionError, match="the store at 127.0.0.1.* is gone"):
                store.get("never")
            caught.append(True)

        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.05)
        host.send_signal(signal.SIGKILL)
        thread.join(20)
        assert caught == [True]
    finally:
        host.kill()
        host.wait()
        host.stdout.close()


def test_host_waits_for_workers():
    with pytest.raises(StoreTimeout, match=r"Timed out after 0.06 seconds .* 1/2 clients"):
        TCPStore("localhost", 0, 2, True, SHORT)
    host = TCPStore("localhost", 0, 2, True, timedelta(seconds=20), wait_for_workers=False)
    worker = TCPStore("localhost", host.port, 2, False)
    host._wait_for_workers(2)
    assert worker.port == host.port and worker.world_size == 2


def test_port_in_use_and_nobody_there():
    host = TCPStore("localhost", 0, None, True)
    with pytest.raises(StoreConnectionError, match="Address already in use.*choose another MASTER_PORT"):
        TCPStore("localhost", host.port, None, True)
    port = host.port
    host.close()
    with pytest.raises(StoreConnectionError, match=f"nobody of this job answered at localhost:{port}"):
        TCPStore("localhost", port, timeout=SHORT)


def test_several_stores_of_a_process_share_a_server():
    one = TCPStore("localhost", 0, None, True, multi_tenant=True)
    two = TCPStore("localhost", one.port, None, True, multi_tenant=True)
    two.set("k", "v")
    one.close()
    assert two.get("k") == b"v"


def test_a_listening_socket_is_taken_over():
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    host = TCPStore("127.0.0.1", port, None, True, master_listen_fd=listener.detach())
    assert host.port == port
    host.set("k", "v")
    assert TCPStore("127.0.0.1", port).get("k") == b"v"


def test_host_listens_on_the_loopback_device_only():
    host = TCPStore("localhost", 0, None, True)
    address = host._server._doorman._listener.getsockname()
    assert address == ("127.0.0.1", host.port)


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_child_uses_connections_of_its_own():
    host = TCPStore("localhost", 0, None, True)
    client = TCPStore("localhost", host.port)
    client.set("parent", "1")
    child = os.fork()
    if child == 0:
        try:
            client.add("n", 1)
            client.set("child", client.get("parent"))
            os._exit(0)
        except BaseException:
            os._exit(1)
    for _ in range(200):
        client.add("n", 1)  # answers must not go to the wrong one
    assert os.waitpid(child, 0)[1] == 0
    assert client.get("child") == b"1" and client.get("n") == b"201"


def test_broken_requests_of_a_member_hurt_nobody_else():
    host = TCPStore("localhost", 0, None, True)
    for request in (
        (1 << 60).to_bytes(8, "little"),
        pack(99, [struct.pack("<dI", 0, 0)]),
        pack(1, []),
        pack(1, [b"short"]),
        pack(1, [struct.pack("<dI", 0, 0), b"key without a value"]),
        pack(5, [struct.pack("<dI", 0, 0), b"too", b"few"]),
    ):
        sock = host._connections.open(5)
        sock.settimeout(10)
        sock.sendall(request)
        reply = sock.recv(1000)
        assert reply == b"" or unpack(reply)[0] != 0
        sock.close()
    host.set("a", "1")
    assert host.get("a") == b"1"


# Records


def test_records():
    record = pack(7, [b"", b"abc", b"\x00" * 100])
    assert unpack(record) == (7, [b"", b"abc", b"\x00" * 100])
    buffer = bytearray()
    for byte in record[:-1]:
        buffer.append(byte)
        assert take(buffer) is None
    buffer += record[-1:] + pack(8, [])
    assert take(buffer) == (7, [b"", b"abc", b"\x00" * 100]) and take(buffer) == (8, [])
    assert not buffer
    with pytest.raises(WireError, match="claims to have"):
        length_of(b"\xff" * 8)
    with pytest.raises(WireError, match="fields it claims"):
        unpack(record[:-1])


# The secret


def shake(client: Handshake, server: Handshake) -> None:
    """Carry a handshake out in memory."""
    hello = server.feed(client.start())
    proof = client.feed(hello)
    client.feed(server.feed(proof))


def test_handshake():
    client = Handshake(b"s", "store", True, b"rank 3")
    server = Handshake(b"s", "store", False)
    shake(client, server)
    assert client.needs == server.needs == 0
    assert server.claim == b"rank 3".ljust(CLAIM, b"\0")


@pytest.mark.parametrize("secret, purpose", [(b"t", "store"), (b"s", "data")])
def test_handshake_of_different_secrets_or_purposes(secret, purpose):
    client, server = Handshake(b"s", "store", True), Handshake(secret, purpose, False)
    with pytest.raises(HandshakeError, match="does not know this job's secret") as caught:
        shake(client, server)
    with pytest.raises(HandshakeError, match="refused us") as told:
        client.feed(caught.value.answer)
    assert ADVICE in str(told.value)


def test_nobody_can_repeat_or_mirror_a_proof():
    client, server = Handshake(b"s", "store", True), Handshake(b"s", "store", False)
    hello = server.feed(client.start())
    proof = client.feed(hello)
    with pytest.raises(HandshakeError):  # an impostor sends our own proof back
        client.feed(proof)
    again = Handshake(b"s", "store", False)
    again.feed(client.start())
    with pytest.raises(HandshakeError):  # the same proof against another nonce
        again.feed(proof)
    claiming = bytearray(client.start())
    claiming[-1] ^= 1
    third = Handshake(b"s", "store", False)
    answer = third.feed(bytes(claiming))
    with pytest.raises(HandshakeError):  # somebody changed what the client says of itself
        third.feed(client.feed(answer) if client.needs else proof)


def test_another_version_is_named():
    server = Handshake(b"s", "store", False)
    with pytest.raises(HandshakeError, match="version 9 of the protocol and not 1"):
        server.feed(MAGIC[:-1] + b"\x09" + bytes(server.needs - len(MAGIC)))


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.delenv("DISTTORCH_JOB_SECRET")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path / "disttorch" / "job_secret"


def test_secret_of_the_variable(monkeypatch):
    assert job_secret() == b"a secret of these tests"


def test_secret_file_is_made_once_and_for_the_owner_only(home):
    first = job_secret()
    assert len(first) == 64 and job_secret() == first
    assert stat.S_IMODE(home.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.parent.stat().st_mode) == 0o700
    assert [path.name for path in home.parent.iterdir()] == ["job_secret"]


def test_processes_that_start_together_agree_on_the_secret(home):
    code = "from collectives.secret import job_secret; print(job_secret().decode())"
    env = clean_environment({"XDG_CONFIG_HOME": str(home.parent.parent)})
    command = [sys.executable, "-c", code]
    crew = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE) for _ in range(3)]
    found = {process.communicate(timeout=60)[0].strip() for process in crew}
    assert found == {job_secret()}


def test_secret_file_that_others_may_read_is_refused(home):
    job_secret()
    home.chmod(0o644)
    with pytest.raises(CollectiveError, match="has mode 0644, so others may know it: remove it"):
        job_secret()


def test_secret_file_of_another_user_is_refused(home, monkeypatch):
    job_secret()
    monkeypatch.setattr(secret_module.os, "geteuid", lambda: 12345)
    with pytest.raises(CollectiveError, match="belongs to user .* and not to 12345"):
        job_secret()


def test_secret_file_that_is_a_link_or_empty_is_refused(home):
    job_secret()
    home.rename(home.with_name("elsewhere"))
    home.symlink_to(home.with_name("elsewhere"))
    with pytest.raises(CollectiveError, match="cannot read the job's secret"):
        job_secret()
    home.unlink()
    home.touch(0o600)
    with pytest.raises(CollectiveError, match="too few for a secret"):
        job_secret()


def test_no_home_for_the_secret_file(home, monkeypatch):
    def no_home() -> None:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setattr(secret_module.Path, "home", no_home)
    with pytest.raises(CollectiveError, match="no home directory.*set DISTTORCH_JOB_SECRET"):
        job_secret()


def test_no_place_for_the_secret_file(home, tmp_path):
    (tmp_path / "disttorch").write_text("a file where the folder should be")
    with pytest.raises(CollectiveError, match="set DISTTORCH_JOB_SECRET"):
        job_secret()
