"""One rank of a job over sockets: `tcp_worker.py SCENARIO...`, with RANK, WORLD_SIZE and the like set.

Each scenario checks what it receives; the rank prints "rank R: SCENARIO ok" for each that went well.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

import ml_dtypes
import numpy as np

from collectives.buffers import DTYPES
from collectives.tcp import rendezvous
from collectives.tcp.transport import TCPTransport, gather_bytes
from collectives.work import RankFailedError

Array = np.ndarray


def dtype_of(name: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, name, name))


def pattern(size: int, dtype: np.dtype, seed: int) -> Array:
    """Bits that differ between ranks; not always numbers."""
    return np.random.default_rng(seed).integers(0, 2, size * dtype.itemsize, np.uint8).view(dtype)


def same(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and a.tobytes() == b.tobytes()


def ring(t: TCPTransport) -> None:
    """Everybody sends 24 MiB to both neighbours before anybody receives."""
    data = np.arange(6 << 20, dtype=np.float32) + t.rank
    right, left = (t.rank + 1) % t.size, (t.rank - 1) % t.size
    sends = [t.isend(data, right, 1), t.isend(data, left, 2)]
    out = [np.empty_like(data), np.empty_like(data)]
    for work in sends:
        work.wait(60)
    receives = [t.irecv(out[0], left, 1), t.irecv(out[1], right, 2)]
    for work, source in zip(receives, (left, right)):
        work.wait(60)
        assert work.source == source
    assert (out[0] == np.arange(6 << 20, dtype=np.float32) + left).all()
    assert (out[1] == np.arange(6 << 20, dtype=np.float32) + right).all()


def dtypes(t: TCPTransport) -> None:
    """Every dtype and some sizes, posted before and after the message has come."""
    peer, source = (t.rank + 1) % t.size, (t.rank - 1) % t.size
    cases = [(dtype_of(name), size) for name in DTYPES for size in (0, 1, 7, 40_000)]
    for posted_first in (True, False):
        outs = [np.empty(size, dtype) for dtype, size in cases]
        receives = [t.irecv(out, source, tag) for tag, out in enumerate(outs)] if posted_first else []
        if posted_first:
            gather_bytes(t, b"")  # all are posted
        sends = [
            t.isend(pattern(size, dtype, tag * 7 + t.rank), peer, tag)
            for tag, (dtype, size) in enumerate(cases)
        ]
        if not posted_first:
            gather_bytes(t, b"")  # all have come or are coming
            order = list(enumerate(outs))[::-1]
            receives = [t.irecv(out, source, tag) for tag, out in order]
        for work in [*sends, *receives]:
            work.wait(60)
        for tag, (dtype, size) in enumerate(cases):
            assert same(outs[tag], pattern(size, dtype, tag * 7 + source)), (tag, dtype, size)


def order(t: TCPTransport) -> None:
    """Messages of one sender and tag come in the order in which they were sent."""
    peer, source = (t.rank + 1) % t.size, (t.rank - 1) % t.size
    sends = [t.isend(np.full(1 + i % 5, i, np.int64), peer, 3) for i in range(200)]
    for i in range(200):
        out = np.empty(1 + i % 5, np.int64)
        t.irecv(out, source, 3).wait(60)
        assert (out == i).all()
    for work in sends:
        work.wait(60)


def any_source(t: TCPTransport) -> None:
    """Rank 0 takes messages as they come and learns from whom."""
    if t.rank:
        for tag in (5, 6):
            t.isend(np.array([t.rank * tag]), 0, tag).wait(60)
        return
    for tag in (6, 5):
        seen = []
        for _ in range(t.size - 1):
            out = np.empty(1, np.int64)
            work = t.irecv(out, None, tag)
            work.wait(60)
            assert out[0] == work.source * tag
            seen.append(work.source)
        assert sorted(seen) == list(range(1, t.size))


def to_itself(t: TCPTransport) -> None:
    data, out = np.arange(5.0), np.empty(5)
    first = t.irecv(out, t.rank, 9)
    t.isend(data, t.rank, 9).wait(60)
    first.wait(60)
    assert first.source == t.rank and same(out, data)
    t.isend(data * 2, t.rank, 9).wait(60)
    t.irecv(out, t.rank, 9).wait(60)
    assert same(out, data * 2)


def sub(t: TCPTransport) -> None:
    """The same tags in several transports of the same ranks do not mix."""
    everyone = list(range(t.size))
    turned = t.sub(everyone[::-1], "turned")
    again = t.sub(everyone[::-1], "turned")
    mine = t.sub([rank for rank in everyone if rank % 2 == t.rank % 2], f"half {t.rank % 2}")
    assert turned.rank == t.size - 1 - t.rank and turned.members == tuple(everyone[::-1])
    assert mine.members == tuple(rank for rank in everyone if rank % 2 == t.rank % 2)
    inner = mine.sub(range(mine.size), "inner")
    assert inner.members == mine.members
    transports = [again, inner, t, mine, turned]
    sends = [
        x.isend(np.array([i * 100 + t.rank]), (x.rank + 1) % x.size, 4) for i, x in enumerate(transports)
    ]
    for i, x in reversed(list(enumerate(transports))):
        out = np.empty(1, np.int64)
        work = x.irecv(out, (x.rank - 1) % x.size, 4)
        work.wait(60)
        assert out[0] == i * 100 + x.members[(x.rank - 1) % x.size], (i, out)
        assert work.source == (x.rank - 1) % x.size
    for work in sends:
        work.wait(60)


def misfit(t: TCPTransport) -> None:
    """Another size or dtype is an error that names both, and the next message is unharmed."""
    peer, source = (t.rank + 1) % t.size, (t.rank - 1) % t.size
    for posted_first in (True, False):
        outs = [np.full(4, 7, np.float32), np.full(3, 7, np.float32), np.full(3, 7, np.int32)]
        receives = [t.irecv(out, source, 11) for out in outs] if posted_first else []
        gather_bytes(t, b"")
        sends = [t.isend(np.arange(3, dtype=np.int32), peer, 11) for _ in outs]
        if not posted_first:
            gather_bytes(t, b"")
            receives = [t.irecv(out, source, 11) for out in outs]
        texts = ("4 x float32 (16 bytes)", "3 x float32 (12 bytes)")
        for work, out, wanted in zip(receives, outs, texts):
            try:
                work.wait(60)
            except ValueError as error:
                text = str(error)
                assert wanted in text and "3 x int32 (12 bytes)" in text, text
                assert "tag 11" in text and f"rank {source} sent" in text, text
                assert (out == 7).all()
            else:
                raise AssertionError("no error")
        receives[2].wait(60)
        assert outs[2].tolist() == [0, 1, 2]
        for work in sends:
            work.wait(60)


def threads(t: TCPTransport) -> None:
    """Four threads exchange messages with tags and transports of their own at the same time."""
    parts = [t.sub(range(t.size), f"thread {i}") for i in range(4)]
    errors: list[BaseException] = []

    def talk(i: int) -> None:
        try:
            x = parts[i]
            peer, source = (x.rank + 1) % x.size, (x.rank - 1) % x.size
            for turn in range(40):
                size = (1, 50_000, 3)[turn % 3] + i
                out = np.empty(size)
                data = np.full(size, turn + x.rank * 1000.0)
                for work in (x.isend(data, peer, i), x.irecv(out, source, i)):
                    work.wait(60)
                assert (out == turn + source * 1000).all()
        except BaseException as error:
            errors.append(error)

    crew = [threading.Thread(target=talk, args=(i,)) for i in range(4)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    if errors:
        raise errors[0]


def behind_the_back(t: TCPTransport) -> None:
    """A large send goes on while its rank waits for nobody: the peer needs all of it to go on."""
    data = np.arange(4 << 20, dtype=np.float64)
    if t.rank == 0:
        work = t.isend(data, 1, 8)
        done = f"{os.environ['SCRATCH']}/received"
        end = time.monotonic() + 60
        while not os.path.exists(done):
            assert time.monotonic() < end, "the message did not arrive while nobody waited"
            time.sleep(0.005)
        work.wait(60)
    elif t.rank == 1:
        out = np.empty_like(data)
        t.irecv(out, 0, 8).wait(60)
        assert (out == data).all()
        open(f"{os.environ['SCRATCH']}/received", "w").close()


def polled(t: TCPTransport) -> None:
    """is_completed makes progress by itself."""
    out = np.empty(1 << 20)
    works = [t.irecv(out, (t.rank - 1) % t.size, 1), t.isend(np.ones(1 << 20), (t.rank + 1) % t.size, 1)]
    end = time.monotonic() + 60
    while not all(work.is_completed() for work in works):
        assert time.monotonic() < end
    assert works[0].exception() is None and (out == 1).all()


def killed(t: TCPTransport) -> None:
    """Rank 1 dies by SIGKILL: what it sent before is there, everybody who needs more learns of it."""
    last = np.arange(1000)
    if t.rank == 1:
        for rank in range(t.size):
            if rank != 1:
                t.isend(last + rank, rank, 0).wait(60)
        os.kill(os.getpid(), signal.SIGKILL)
    out = np.empty_like(last)
    waiting = t.irecv(np.empty(1), 1, 2)
    part = t.sub([t.rank, 1], "pair")
    for number, attempt in enumerate((
        lambda: waiting.wait(30),
        lambda: part.irecv(np.empty(1), 1, 2).wait(30),
        lambda: part.irecv(np.empty(1), None, 2).wait(30),
        lambda: t.isend(np.zeros(1 << 22), 1, 3).wait(30),
    )):
        try:
            attempt()
        except RankFailedError as error:
            assert "rank 1 is gone: its connection" in str(error), error
        else:
            raise AssertionError(f"no error from attempt {number}")
    t.irecv(out, 1, 0).wait(30)
    assert (out == last + t.rank).all()
    # The others still reach each other.
    others = [rank for rank in range(t.size) if rank != 1]
    rest = t.sub(others, "rest")
    assert gather_bytes(rest, b"%d" % t.rank) == [b"%d" % rank for rank in others]


def linger(t: TCPTransport) -> None:
    """Exchange messages until the file SCRATCH/stop is there."""
    peer, source = (t.rank + 1) % t.size, (t.rank - 1) % t.size
    data, out, turns = np.arange(300_000.0), np.empty(300_000), 0
    stop = False
    while not stop:
        works = [t.isend(data * turns, peer, 1), t.irecv(out, source, 1)]
        for work in works:
            work.wait(60)
        assert (out == data * turns).all()
        turns += 1
        flag = b"stop" if os.path.exists(f"{os.environ['SCRATCH']}/stop") else b""
        stop = b"stop" in gather_bytes(t, flag)
        if turns == 3:
            open(f"{os.environ['SCRATCH']}/going.{t.rank}", "w").close()
    print(f"rank {t.rank}: {turns} turns")


def nodes(t: TCPTransport) -> None:
    """Ranks 0 and 1 are on one node, 2 and 3 on the other."""
    where = t.node_of()
    assert where[0] == where[1] != where[2] == where[3], where


SCENARIOS = [
    ring, dtypes, order, any_source, to_itself, sub, misfit, threads, behind_the_back, polled, killed,
    linger, nodes,
]  # fmt: skip


def main() -> None:
    named = {scenario.__name__: scenario for scenario in SCENARIOS}
    if pretended := os.environ.get("PRETENDED_NODE"):
        rendezvous.node_identity = lambda: pretended
    transport = rendezvous.connect(
        os.environ.get("INIT_METHOD"),
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=float(os.environ.get("RENDEZVOUS_TIMEOUT", "60")),
    )
    for name in sys.argv[1:]:
        named[name](transport)
        print(f"rank {transport.rank}: {name} ok", flush=True)
    transport.close()


if __name__ == "__main__":
    main()
