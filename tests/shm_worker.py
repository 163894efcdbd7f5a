"""One rank of tests/test_shm.py: `python shm_worker.py SCENARIO PATH SIZE RANK CHUNK_BYTES [WORD…]`.

The word "direct" has all but the smallest calls read the other ranks' memory. What goes wrong is
printed, and ends the rank with status 1.
"""

import os
import sys
import threading
import time
import warnings

import numpy as np

from collectives.call import Call
from collectives.shm import NodeEngine, Segment
from collectives.shm import peers as peers_module
from collectives.work import CollectiveError, MismatchError, RankFailedError

warnings.simplefilter("error")

DTYPES = [
    np.uint8,
    np.int16,
    np.uint16,
    np.int32,
    np.int64,
    np.float32,
    np.float64,
    np.complex64,
    np.complex128,
]


class Watch:
    """Says that the missing ranks failed once the same ones are missing for `patience` seconds."""

    def __init__(self, patience=20.0):
        self.patience = patience
        self.asked = 0
        self.since = None
        self.waits = None

    def look(self, call, missing):
        self.asked += 1
        assert missing, "asked about nobody"
        if self.waits != (call.number, missing):
            self.waits, self.since = (call.number, missing), time.monotonic()
        if time.monotonic() - self.since > self.patience:
            raise RankFailedError(f"{call}: ranks {list(missing)} failed")


class Ranks:
    """The engine of this rank, and what the others hold."""

    def __init__(self, path, size, rank, chunk_bytes):
        self.size, self.rank, self.chunk = size, rank, chunk_bytes
        self.watch = Watch()
        segment = Segment.attach(path, NodeEngine.nbytes_for(size, chunk_bytes))
        self.engine = NodeEngine(
            segment,
            rank,
            size,
            [10 + r for r in range(size)],
            self.watch,
            chunk_bytes=chunk_bytes,
            direct_bytes=0 if "direct" in sys.argv[6:] else None,
        )
        self.number = 0
        self.pool = {}

    def call(self, name, array=None, op="", root=-1, count=None):
        self.number += 1
        made = (
            Call(name, op=op, root=root)
            if array is None
            else Call(
                name, array.dtype.name, array.size if count is None else count, array.shape, op, root
            )
        )
        made.group, made.number = "tests", self.number
        return made

    def data(self, rank, count, dtype, salt=0):
        """What `rank` brings: known to all, different on each, sums depend on their order."""
        key = rank, np.dtype(dtype)
        if key not in self.pool or self.pool[key].size < count + 8:
            self.pool[key] = values_of(rank, max(2 * count, 10_000), np.dtype(dtype))
        return self.pool[key][salt : salt + count].copy()

    def everybody(self, count, dtype, salt=0):
        return [self.data(r, count, dtype, salt) for r in range(self.size)]


def values_of(rank, count, dtype):
    rng = np.random.default_rng([rank, count])
    if dtype.kind in "iu":
        return rng.integers(0, 100, count).astype(dtype)
    values = rng.standard_normal(count) * 10.0 ** rng.integers(-6, 6, count)
    if dtype.kind == "c":
        values = values + 1j * rng.standard_normal(count)
    return values.astype(dtype)


def tree(values, ufunc):
    """Neighbours are combined, an odd one out is carried up, until one is left."""
    with np.errstate(all="ignore"):
        while len(values) > 1:
            pairs = [ufunc(left, right) for left, right in zip(values[::2], values[1::2])]
            values = pairs + values[len(pairs) * 2 :]
    return values[0]


def guarded(values):
    """A copy with a margin around it that must stay as it is: (whole, inner view)."""
    whole = np.full(values.size + 16, 77).astype(values.dtype)
    inner = whole[8 : 8 + values.size]
    inner[...] = values
    return whole, inner


def same(result, expected, what):
    whole, inner = result
    edges = np.full(8, 77).astype(whole.dtype)
    assert whole[:8].tobytes() == edges.tobytes() == whole[-8:].tobytes(), f"{what}: wrote outside"
    expected = np.asarray(expected, inner.dtype)
    assert inner.tobytes() == expected.tobytes(), f"{what}: {inner[:8]} is not {expected[:8]}"


def sizes(ranks, itemsize):
    slot, small, direct = ranks.chunk // itemsize, (8 << 10) // itemsize, (32 << 10) // itemsize
    limits = [small, small + 1, direct, direct + 1, slot - 1, slot, slot + 1]
    return [0, 1, 2, 3, 7, 101, *limits, 3 * slot + 5, 7 * slot]


def conformance(ranks):
    for dtype in DTYPES if ranks.chunk < 100_000 else [np.float32]:
        counts = sizes(ranks, np.dtype(dtype).itemsize)
        for count in counts if dtype in (np.float32, np.int16) else [*counts[:6:2], counts[-1]]:
            reductions(ranks, dtype, count)
            movements(ranks, dtype, count)
            unequal(ranks, dtype, count)
    for count in (2, 5_000, 30_000):  # overflow is a value, in calls of every length
        huge = np.full(count, 3e38, np.float32)
        ranks.engine.all_reduce(ranks.call("all_reduce", huge, "SUM"), huge, np.add)
        assert (huge == np.float32("inf" if ranks.size > 1 else 3e38)).all()
    ranks.engine.barrier(ranks.call("barrier"))


def volumes(ranks):
    """What each call counts: a byte is sent by whose it is, and received by who reads it."""
    n, me, engine = ranks.size, ranks.rank, ranks.engine
    part = 24_000 * 4
    whole = part * n
    wide, mine = np.ones(whole // 4, np.float32), np.ones(part // 4, np.float32)
    here = me == 0

    def count(name, call, sent, received):
        before = engine.sent, engine.received
        call(ranks.call(name))
        moved = engine.sent - before[0], engine.received - before[1]
        assert moved == (sent, received), f"{name} on rank {me} of {n}: {moved}"

    count("all_reduce", lambda c: engine.all_reduce(c, wide, np.add), whole, 2 * part * (n - 1))
    count(
        "reduce_scatter",
        lambda c: engine.reduce_scatter(c, mine, wide, np.add),
        whole - part,
        part * (n - 1),
    )
    count("all_gather", lambda c: engine.all_gather(c, wide, mine), part, whole - part)
    other = wide.copy()
    count("all_to_all", lambda c: engine.all_to_all(c, other, wide), whole - part, whole - part)
    count("broadcast", lambda c: engine.broadcast(c, mine, 0), part * here, part * (not here))
    gathered = wide if here else None
    count(
        "gather",
        lambda c: engine.gather(c, gathered, mine, 0),
        part * (not here),
        (whole - part) * here,
    )
    count(
        "scatter",
        lambda c: engine.scatter(c, mine, gathered, 0),
        (whole - part) * here,
        part * (not here),
    )


def reductions(ranks, dtype, count):
    engine, size, me = ranks.engine, ranks.size, ranks.rank
    root = count % size
    everybody = ranks.everybody(count, dtype)
    for name in ("add", "maximum", "multiply") if dtype != np.complex128 else ("add", "multiply"):
        ufunc = getattr(np, name)
        expected = tree(everybody, ufunc)
        what = f"{name} of {count} {np.dtype(dtype).name}, rank {me} of {size}"

        mine = guarded(everybody[me])
        engine.all_reduce(ranks.call("all_reduce", mine[1], name), mine[1], ufunc)
        same(mine, expected, f"all_reduce, {what}")

        mine = guarded(everybody[me])
        engine.reduce(ranks.call("reduce", mine[1], name, root), mine[1], ufunc, root)
        same(mine, expected if me == root else everybody[me], f"reduce, {what}")

    wide = ranks.everybody(count * size, dtype, 1)
    expected = tree(wide, np.add).reshape(size, -1)[me]
    out, mine = guarded(np.zeros(count, dtype)), guarded(wide[me])
    engine.reduce_scatter(ranks.call("reduce_scatter", out[1], "add"), out[1], mine[1], np.add)
    same(out, expected, f"reduce_scatter, {what}")
    same(mine, wide[me], f"reduce_scatter's buffer, {what}")


def movements(ranks, dtype, count):
    engine, size, me = ranks.engine, ranks.size, ranks.rank
    root = (count + 1) % size
    everybody = ranks.everybody(count, dtype, 2)
    wide = ranks.everybody(count * size, dtype, 3)
    parts = [each.reshape(size, -1) for each in wide]
    what = f"{count} {np.dtype(dtype).name}, rank {me} of {size}"

    mine = guarded(everybody[me])
    engine.broadcast(ranks.call("broadcast", mine[1], root=root), mine[1], root)
    same(mine, everybody[root], f"broadcast, {what}")

    out = guarded(np.zeros(count * size, dtype))
    engine.all_gather(ranks.call("all_gather", everybody[me]), out[1], everybody[me])
    same(out, np.concatenate(everybody), f"all_gather, {what}")

    out = guarded(np.zeros(count * size, dtype)) if me == root else None
    call = ranks.call("gather", everybody[me], root=root)
    engine.gather(call, out and out[1], everybody[me], root)
    if out:
        same(out, np.concatenate(everybody), f"gather, {what}")

    out = guarded(np.zeros(count, dtype))
    call = ranks.call("scatter", out[1], root=root)
    engine.scatter(call, out[1], wide[me] if me == root else None, root)
    same(out, parts[root][me], f"scatter, {what}")

    out = guarded(np.zeros(count * size, dtype))
    engine.all_to_all(ranks.call("all_to_all", out[1]), out[1], wide[me])
    same(out, np.concatenate([part[me] for part in parts]), f"all_to_all, {what}")


def unequal(ranks, dtype, count):
    engine, size, me = ranks.engine, ranks.size, ranks.rank
    root = (count + 1) % size
    counts = [count // (1 + r) * (r != 1) + r for r in range(size)]
    edges = np.cumsum([0, *counts])
    total = int(edges[-1])
    pieces = [ranks.data(r, counts[r], dtype, 4) for r in range(size)]
    wide = ranks.everybody(total, dtype, 5)
    what = f"unequal {count} {np.dtype(dtype).name}, rank {me} of {size}"

    out = guarded(np.zeros(total, dtype))
    engine.all_gather(ranks.call("all_gather", pieces[me], count=-1), out[1], pieces[me], counts)
    same(out, np.concatenate(pieces), f"all_gather, {what}")

    out = guarded(np.zeros(total, dtype)) if me == root else None
    call = ranks.call("gather", pieces[me], root=root, count=-1)
    engine.gather(call, out and out[1], pieces[me], root, counts)
    if out:
        same(out, np.concatenate(pieces), f"gather, {what}")

    out = guarded(np.zeros(counts[me], dtype))
    call = ranks.call("scatter", out[1], root=root, count=-1)
    engine.scatter(call, out[1], wide[me] if me == root else None, root, counts)
    same(out, wide[root][edges[me] : edges[me + 1]], f"scatter, {what}")

    out = guarded(np.zeros(counts[me], dtype))
    call = ranks.call("reduce_scatter", out[1], "add", count=-1)
    engine.reduce_scatter(call, out[1], wide[me], np.add, counts)
    whole = tree(wide, np.add)
    same(out, whole[edges[me] : edges[me + 1]], f"reduce_scatter, {what}")

    # rank r sends (r + 2s) % 3 * count // 4 elements to rank s
    table = [[(r + 2 * s) % 3 * count // 4 for s in range(size)] for r in range(size)]
    brought = [ranks.data(r, sum(table[r]), dtype, 6) for r in range(size)]
    cuts = [np.split(brought[r], np.cumsum(table[r])[:-1]) for r in range(size)]
    out_counts = [table[r][me] for r in range(size)]
    out = guarded(np.zeros(sum(out_counts), dtype))
    call = ranks.call("all_to_all", out[1], count=-1)
    engine.all_to_all(call, out[1], brought[me], out_counts, table[me])
    same(out, np.concatenate([cuts[r][me] for r in range(size)]), f"all_to_all, {what}")


def primitives(ranks):
    """Meetings without arrays, from the main thread and from another one."""

    def run():
        for step in range(300):
            ranks.engine.agree(ranks.call("agree"))
            note = f"note {step} of rank {step % ranks.size}".encode()
            mine = note if step % ranks.size == ranks.rank else b""
            assert ranks.engine.publish(ranks.call("publish"), mine, step % ranks.size) == note
            call = ranks.call("hierarchical")
            ranks.engine.arrive(call)
            data = b"%d" % step * 500 if ranks.rank == 0 else b""
            assert ranks.engine.release(call, data) == b"%d" % step * 500

    run()
    failures = []
    thread = threading.Thread(target=lambda: attempt(run, failures))
    thread.start()
    thread.join()
    assert not failures, failures


def attempt(run, failures):
    try:
        run()
    except BaseException as error:
        failures.append(repr(error))


def wrap_around(ranks):
    """The counters pass 2^32 on the way, at another place of the call in each round."""
    for step in range(60):
        mine = ranks.data(ranks.rank, 5 + step % 7 * ranks.chunk // 4, np.float32)
        expected = tree(ranks.everybody(mine.size, np.float32), np.add)
        ranks.engine.all_reduce(ranks.call("all_reduce", mine, "add"), mine, np.add)
        assert mine.tobytes() == expected.tobytes(), step
    assert ranks.engine._signals.count < 1 << 31, "did not wrap around"


def uneven_pace(ranks):
    """Random pauses on each rank, calls of all kinds mixed: nobody may read or overwrite too early."""
    own = np.random.default_rng(100 + ranks.rank)
    shared = np.random.default_rng(7)
    for _ in range(80):
        if own.random() < 0.3:
            time.sleep(own.random() * 0.002)
        kind = shared.integers(3)
        count = int(shared.choice([1, 100, ranks.chunk // 8, ranks.chunk // 4, ranks.chunk]))
        [reductions, movements, unequal][kind](ranks, np.float32, count)


def mismatches(ranks):
    """The last rank makes another call; which one, argv says."""
    kind, odd = sys.argv[6], ranks.rank == ranks.size - 1
    engine, me = ranks.engine, ranks.rank
    engine.barrier(ranks.call("barrier"))
    mine = np.ones(1000, np.float32)
    try:
        if kind == "name" and odd:
            engine.broadcast(ranks.call("broadcast", mine, root=0), mine, 0)
        elif kind == "dtype" and odd:
            mine = mine.astype(np.int32)
            engine.all_reduce(ranks.call("all_reduce", mine, "SUM"), mine, np.add)
        elif kind == "size" and odd:
            mine = np.ones(1_000_000, np.float32)
            engine.all_reduce(ranks.call("all_reduce", mine, "SUM"), mine, np.add)
        elif kind == "op" and odd:
            engine.all_reduce(ranks.call("all_reduce", mine, "MAX"), mine, np.maximum)
        elif kind == "root":
            engine.reduce(ranks.call("reduce", mine, "SUM", int(odd)), mine, np.add, int(odd))
        elif kind == "counts":
            counts = [10 + (odd and r == 0) for r in range(ranks.size)]
            out, mine = np.ones(sum(counts), np.float32), np.ones(counts[me], np.float32)
            engine.all_gather(ranks.call("all_gather", mine, count=-1), out, mine, counts)
        elif kind == "splits":
            out_counts = [2 + (odd and r == 0) for r in range(ranks.size)]
            out, mine = np.ones(sum(out_counts), np.float32), np.ones(2 * ranks.size, np.float32)
            call = ranks.call("all_to_all", mine, count=-1)
            engine.all_to_all(call, out, mine, out_counts, [2] * ranks.size)
        else:
            engine.all_reduce(ranks.call("all_reduce", mine, "SUM"), mine, np.add)
    except MismatchError as error:
        print(f"rank {me}: {error}")
    else:
        raise AssertionError("no MismatchError")
    assert mine.min() == 1 == mine.max(), "data were touched"
    try:
        engine.barrier(ranks.call("barrier"))
    except CollectiveError as error:
        assert "is unusable on rank" in str(error)
    else:
        raise AssertionError("the group went on")


def missing(ranks):
    """The last rank leaves after the first call, and with it the hope of the others."""
    mine = np.ones(100_000, np.float32)
    ranks.engine.all_reduce(ranks.call("all_reduce", mine, "SUM"), mine, np.add)
    assert mine[-1] == ranks.size
    if ranks.rank == ranks.size - 1:
        return
    ranks.watch.patience = 0.2
    try:
        ranks.engine.all_reduce(ranks.call("all_reduce", mine, "SUM"), mine, np.add)
    except RankFailedError as error:
        print(f"rank {ranks.rank}: {error}")
        assert ranks.watch.asked > 5
    else:
        raise AssertionError("no RankFailedError")


def may_read(ranks):
    long_call(ranks, "all_gather")
    print(ranks.engine.peers.allowed)


def agreed(ranks):
    """One rank cannot read the others' memory, or may not: then nobody does, and all is well."""
    peers, why = ranks.engine.peers, sys.argv[7]
    if ranks.rank == 1:
        if why == "switch":
            os.environ["DISTTORCH_SHM_DIRECT"] = "0"
        elif why == "refused":
            peers._read = lambda *arguments: -1
        elif why == "another process":  # of the same number, in another container
            peers._put(peers_module._TOKEN, 5)
    movements(ranks, np.float32, 30_000)
    assert peers.allowed is (why == "nothing"), peers.allowed
    reductions(ranks, np.float32, 30_000)
    unequal(ranks, np.float32, 30_000)


def unreadable(ranks):
    """An array in memory that others cannot read passes through slots, like all of its call."""
    peers, done = ranks.engine.peers, []
    read, readable = peers._read, peers._readable
    peers._read = lambda pid, source, target, nbytes: done.append(1) or read(pid, source, target, nbytes)
    movements(ranks, np.float32, 30_000)
    assert done and peers.allowed
    if ranks.rank == 0:
        peers._readable = lambda address, nbytes: False
    done.clear()
    total = ranks.data(ranks.rank, 30_000, np.float32)
    ranks.engine.all_reduce(ranks.call("all_reduce", total, "add"), total, np.add)
    assert total.tobytes() == tree(ranks.everybody(30_000, np.float32), np.add).tobytes()
    assert not done
    unequal(ranks, np.float32, 30_000)
    peers._readable = readable
    reductions(ranks, np.float32, 30_000)
    assert done


def long_call(ranks, name):
    """A call in which every rank reads of every other's memory."""
    mine = np.full(500_000, float(ranks.rank), np.float32)
    out = np.empty(500_000 * ranks.size, np.float32)
    if name == "all_reduce":
        ranks.engine.all_reduce(ranks.call(name, mine, "SUM"), mine, np.add)
    else:
        ranks.engine.all_gather(ranks.call(name, mine), out, mine)


def dies(ranks):
    """The first rank dies when all have come, while the others read its memory."""
    name, peers = sys.argv[7], ranks.engine.peers
    long_call(ranks, name)
    read = peers.read

    def last_words(*arguments):
        os._exit(0)

    def late(call, rank, begin, out):
        if rank == 0:
            pid, at = (peers._words[word] for word in (peers_module._PID, peers_module._ADDRESS))
            while peers._read(pid, at, peers._probe_at, 1) == 1:
                time.sleep(0.001)
            assert peers._read(pid, at, peers._probe_at, 1) == -1
        read(call, rank, begin, out)

    peers.read = last_words if ranks.rank == 0 else late
    ranks.watch.patience = 0.2
    try:
        long_call(ranks, name)
    except RankFailedError as error:
        print(f"rank {ranks.rank}: {error}")
    else:
        raise AssertionError("no RankFailedError")


def gives_up(ranks):
    """The first rank's time is up, and it changes its array, while the last one has not yet read it."""
    peers = ranks.engine.peers
    peers_module._PATIENCE = 0.1
    long_call(ranks, "all_gather")
    read = peers.read

    def late(call, rank, begin, out):
        while not peers._words[peers_module._ABANDONED]:
            time.sleep(0.001)
        read(call, rank, begin, out)

    if ranks.rank == ranks.size - 1:
        peers.read = late
    elif ranks.rank == 0:
        ranks.watch.patience = 0.2
    try:
        long_call(ranks, "all_gather")
    except RankFailedError as error:
        print(f"rank {ranks.rank}: {error}")
        time.sleep(1)  # the memory stays: nothing else may tell the others
    else:
        raise AssertionError("no RankFailedError")


def fails_to_read(ranks):
    """The last rank cannot read what the first one offers, although that one is there."""
    why, peers = sys.argv[7], ranks.engine.peers
    peers_module._PATIENCE = 0.1
    long_call(ranks, "all_gather")
    last = ranks.rank == ranks.size - 1
    count = 20_000 if last and why == "too short" else 10_000
    if last and why == "refused":
        peers._read = lambda *arguments: -1
    elif not last:
        ranks.watch.patience = 0.3
    mine, out = np.ones(count, np.float32), np.empty(count * ranks.size, np.float32)
    try:
        ranks.engine.all_gather(ranks.call("all_gather", mine, count=7), out, mine)
    except RankFailedError as error:
        print(f"rank {ranks.rank}: {error}")
        time.sleep(1)
    else:
        raise AssertionError("no RankFailedError")


if __name__ == "__main__":
    scenario, path = sys.argv[1:3]
    globals()[scenario](Ranks(path, *map(int, sys.argv[3:6])))
