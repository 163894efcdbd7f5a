"""Stores against those of torch.distributed: the same program on both, call by call."""

from __future__ import annotations

from datetime import timedelta

import pytest

torch_distributed = pytest.importorskip("torch.distributed")
from collectives import store as ours  # noqa: E402

pytestmark = pytest.mark.parity
MS = timedelta(milliseconds=1)
KINDS = ["hash", "file", "tcp", "prefix hash", "prefix file", "prefix tcp"]


@pytest.fixture(autouse=True)
def secret(monkeypatch):
    monkeypatch.setenv("DISTTORCH_JOB_SECRET", "a secret of these tests")


def make(module, kind: str, folder):
    *how, base = kind.split()
    made = {
        "hash": module.HashStore,
        "file": lambda: module.FileStore(str(folder / f"{module.__name__}.store"), 1),
        "tcp": lambda: module.TCPStore("localhost", 0, 1, True),
    }[base]()
    return module.PrefixStore("p", made) if how else made


# (label, call); values come from both libraries and are compared.
COMMON = [
    ("timeout", lambda s: s.timeout),
    ("set_timeout", lambda s: s.set_timeout(80 * MS)),
    ("timeout is set", lambda s: s.timeout),
    ("keys at first", lambda s: s.num_keys()),
    ("set", lambda s: s.set("a", "1")),
    ("set bytes", lambda s: s.set("b", b"\x00\xff")),
    ("set empty", lambda s: s.set("e", "")),
    ("get", lambda s: [s.get("a"), s.get("b"), s.get("e")]),
    ("unicode", lambda s: (s.set("clé", "à"), s.get("clé"))),
    ("add", lambda s: [s.add("c", 5), s.add("c", -7), s.add("c", 0), s.add("a", 2)]),
    ("get counter", lambda s: s.get("c")),
    ("get missing", lambda s: s.get("none")),
    ("wait", lambda s: s.wait(["a", "c"])),
    ("wait for nothing", lambda s: s.wait([])),
    ("wait missing", lambda s: s.wait(["a", "none"])),
    ("wait missing shortly", lambda s: s.wait(["none"], 20 * MS)),
    ("check", lambda s: [s.check(["a", "c"]), s.check(["a", "none"]), s.check([])]),
    ("compare_set absent", lambda s: [s.compare_set("k", "x", "y"), s.check(["k"])]),
    ("compare_set", lambda s: [s.compare_set("k", "", "1"), s.compare_set("k", "1", "2"),
                               s.compare_set("k", "1", "3"), s.compare_set("k", "", "4"), s.get("k")]),
    ("append", lambda s: (s.append("p", "ab"), s.append("p", "cd"), s.get("p"))),
    ("multi", lambda s: (s.multi_set(["m", "n"], ["1", "2"]), s.multi_get(["n", "m"]))),
    ("multi_get missing", lambda s: s.multi_get(["m", "none"])),
    ("num_keys", lambda s: s.num_keys()),
    ("list_keys", lambda s: sorted(key for key in s.list_keys() if key != "efcount/")),
    ("delete_key", lambda s: [s.delete_key("a"), s.check(["a"]), s.num_keys()]),
    ("barrier", lambda s: [s.barrier("bar", 1), s.barrier("bar", 1)]),
    ("barrier alone", lambda s: s.barrier("two", 2, 20 * MS)),
    ("clone", lambda s: [type(s.clone()).__name__, s.clone().set("via", "x"), s.get("via")]),
    ("wrong value", lambda s: s.set("k", 3)),
    ("wrong key", lambda s: s.set(3, "x")),
]

# Ours has queues in a file, too, and tells whether a key was there to be deleted.
NOT_IN_A_FILE = [
    ("delete_key again", lambda s: s.delete_key("a")),
    ("extended", lambda s: s.has_extended_api()),
    ("queue", lambda s: [s.queue_len("q"), s.queue_push("q", "1"), s.queue_push("q", "2"),
                         s.queue_len("q"), s.check(["q"]), s.wait(["q"]), s.queue_pop("q"),
                         s.queue_pop("q"), s.check(["q"]), s.queue_len("q")]),
    ("queue empty", lambda s: s.queue_pop("q", False)),
    ("queue empty, waiting", lambda s: s.queue_pop("q")),
]

# PyTorch's server closes the connection on this one.
NOT_OVER_TCP = [("add to text", lambda s: (s.set("text", "hello"), s.add("text", 1)))]


def outcome(call, store):
    try:
        return call(store)
    except TypeError:
        return "TypeError"
    except ValueError:
        return "ValueError"
    except RuntimeError as error:
        name = type(error).__name__
        if "imeout" in f"{name} {error}":
            return "timeout"
        return "empty" if "QueueEmpty" in name else f"{name}: {error}"


@pytest.mark.parametrize("kind", KINDS)
def test_same_program_same_results(kind, tmp_path):
    steps = list(COMMON)
    if "file" not in kind:
        steps += NOT_IN_A_FILE
    if "tcp" not in kind:
        steps += NOT_OVER_TCP
    theirs, mine = make(torch_distributed, kind, tmp_path), make(ours, kind, tmp_path)
    for label, call in steps:
        assert outcome(call, mine) == outcome(call, theirs), label


def test_nested_prefixes():
    def run(module):
        base = module.HashStore()
        inner = module.PrefixStore("b", base)
        outer = module.PrefixStore("a", inner)
        outer.set("k", "1")
        base.set("other", "2")
        return (base.list_keys() and sorted(base.list_keys()), inner.list_keys(), outer.list_keys(),
                outer.num_keys(), outer.underlying_store.list_keys())

    assert run(ours) == run(torch_distributed)


def test_life_of_the_file(tmp_path):
    def run(module):
        path = tmp_path / module.__name__
        first, second = module.FileStore(str(path), 2), module.FileStore(str(path), 2)
        first.set("a", "1")
        seen = [second.get("a"), first.path == str(path)]
        del first
        seen.append(path.exists())
        del second
        seen.append(path.exists())
        kept = module.FileStore(str(path))
        del kept
        return [*seen, path.exists()]

    assert run(ours) == run(torch_distributed)


def test_attributes_and_errors():
    def run(module):
        host = module.TCPStore("localhost", 0, None, True, 100 * MS)
        client = module.TCPStore("localhost", host.port, None, False)
        client.set("k", "v")
        seen = [host.get("k"), host.host, client.host, client.port == host.port, host.timeout]
        for attempt in (
            lambda: module.TCPStore("localhost", host.port, None, True),
            lambda: module.TCPStore("localhost", 1, None, False, 100 * MS),
            lambda: module.TCPStore("localhost", 0, 2, True, 1000 * MS),
        ):
            with pytest.raises(RuntimeError) as caught:
                attempt()
            seen.append("Timed out after" in str(caught.value))
        return seen

    assert run(ours) == run(torch_distributed)
