"""Collectives over several nodes, with shared memory or messages inside them."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from wire import data, on_wires

from collectives import shm
from collectives.call import Call
from collectives.hierarchy import RAIL_BYTES, Hierarchy
from collectives.settings import settings
from collectives.work import MismatchError

PLACEMENTS = {
    "one rank": [[0]],
    "one node": [[0, 1, 2]],
    "one rank a node": [[0], [1], [2]],
    "blocks": [[0, 1], [2, 3]],
    "round robin": [[0, 2, 4], [1, 3, 5]],
    "uneven": [[0, 1, 2], [3]],
    "uneven and mixed": [[3, 0], [1], [2, 4, 5]],
    "three nodes": [[0, 3], [1, 4], [2, 5]],
}
COUNTS = [0, 1, 5, 1001]
CHUNK = 64 << 10
LARGE = RAIL_BYTES // 4 + 3


class Watch:
    """Ends the waits in shared memory once a rank has failed."""

    failed = False

    def look(self, call, missing):
        if self.failed:
            raise RuntimeError(f"{call}: another rank failed")


def engines(nodes, watch):
    """Every rank's engine: the ranks of a node, threads of this process, share a segment."""
    made = {}
    for node in nodes:
        segment = shm.Segment.create(shm.NodeEngine.nbytes_for(len(node), CHUNK))
        segment.unlink()
        for place, rank in enumerate(node):
            made[rank] = shm.NodeEngine(
                segment, place, len(node), node, watch, chunk_bytes=CHUNK
            )
    return made


def on_nodes(nodes, fn, shared=False):
    """fn(ranks) on every rank, where `ranks` is a `Rank`."""
    watch = Watch()
    made = engines(nodes, watch) if shared else {}
    size = sum(map(len, nodes))

    def rank(wire):
        wire.watch = watch
        try:
            return fn(Rank(wire, Hierarchy(wire, nodes, made.get(wire.rank))))
        except BaseException:
            watch.failed = True
            raise

    return on_wires(size, rank)


class Rank:
    """A hierarchy, and calls numbered as a group numbers them."""

    def __init__(self, wire, ways):
        self.wire, self.rank, self.size, self.ways = wire, wire.rank, wire.size, ways
        self.number = 0

    def __getattr__(self, name):
        def make(array, *args, root=-1):
            self.number += 1
            call = Call(name, "-" if array is None else array.dtype.name, root=root)
            call.group, call.number = "tests", self.number
            getattr(self.ways, name)(call, *([] if array is None else [array]), *args)

        return make


@pytest.fixture(params=["messages", "shm"])
def shared(request):
    if request.param == "shm" and not shm.available():
        pytest.skip(shm.why_not())
    return request.param == "shm"


@pytest.fixture(params=PLACEMENTS)
def nodes(request):
    return PLACEMENTS[request.param]


def test_reductions(nodes, shared):
    def fn(ranks):
        n, me = ranks.size, ranks.rank
        for count in [*COUNTS, LARGE]:
            for ufunc, dtype in ((np.add, np.float32), (np.maximum, np.int64), (np.add, np.uint8)):
                total = ufunc.reduce([data(rank, count, dtype) for rank in range(n)], dtype=dtype)
                mine = data(me, count, dtype)
                ranks.all_reduce(mine, ufunc)
                assert np.array_equal(mine, total), count
                for root in range(n) if count < LARGE else [n - 1]:
                    mine = data(me, count, dtype)
                    ranks.reduce(mine, ufunc, root, root=root)
                    assert np.array_equal(mine, total if me == root else data(me, count, dtype))

    on_nodes(nodes, fn, shared)


def parts_of(n):
    """Sizes of the ranks' parts: equal ones as None, and unequal ones."""
    for each in COUNTS:
        yield [each] * n, None
    unequal = [(3 * rank + 2) % 5 for rank in range(n)]
    yield unequal, unequal


def test_parts(nodes, shared):
    def fn(ranks):
        n, me = ranks.size, ranks.rank
        for parts, counts in parts_of(n):
            at = np.cumsum([0, *parts])
            whole = np.concatenate([data(rank, parts[rank], np.float32) for rank in range(n)])
            mine = data(me, parts[me], np.float32)
            out = np.empty_like(whole)
            ranks.all_gather(out, mine, counts)
            assert np.array_equal(out, whole)

            source, part = data(me, sum(parts), np.int64), np.empty(parts[me], np.int64)
            ranks.reduce_scatter(part, source, np.add, counts)
            total = np.sum([data(rank, sum(parts), np.int64) for rank in range(n)], axis=0)
            assert np.array_equal(part, total[at[me] : at[me + 1]])
            assert np.array_equal(source, data(me, sum(parts), np.int64))

            for root in range(n):
                out = np.empty_like(whole) if me == root else None
                run(ranks, "gather", out, mine, root, counts)
                assert out is None or np.array_equal(out, whole)
                part = np.empty(parts[me], np.float32)
                run(ranks, "scatter", part, whole if me == root else None, root, counts)
                assert np.array_equal(part, mine)

    on_nodes(nodes, fn, shared)


def run(ranks, name, first, second, root, counts):
    """gather and scatter: their first array may be None."""
    ranks.number += 1
    call = Call(name, "float32", root=root)
    call.group, call.number = "tests", ranks.number
    getattr(ranks.ways, name)(call, first, second, root, counts)


def test_broadcast_leaves_the_root_alone(nodes, shared):
    def fn(ranks):
        for count in [*COUNTS, LARGE]:
            for root in range(ranks.size) if count < LARGE else [ranks.size - 1]:
                mine = data(ranks.rank, count, np.float64)
                mine.flags.writeable = ranks.rank != root
                ranks.broadcast(mine, root, root=root)
                assert np.array_equal(mine, data(root, count, np.float64))

    on_nodes(nodes, fn, shared)


def test_all_to_all(nodes, shared):
    def fn(ranks):
        n, me = ranks.size, ranks.rank
        table = np.add.outer(np.arange(n) * 2, np.arange(n)) % 4  # row r: what rank r sends
        ins, outs = table[me].tolist(), table[:, me].tolist()
        sent = np.full(sum(ins), me)
        out = np.empty(sum(outs), int)
        ranks.number += 1
        call = Call("all_to_all", "int64", -1)
        ranks.ways.all_to_all(call, out, sent, outs, ins)
        assert out.tolist() == np.repeat(np.arange(n), outs).tolist()
        out = np.empty(2 * n, int)
        ranks.all_to_all(out, np.full(2 * n, me))
        assert out.tolist() == np.repeat(np.arange(n), 2).tolist()

    on_nodes(nodes, fn, shared)


@pytest.mark.parametrize("checks", [True, False])
def test_nobody_leaves_a_barrier_before_all_have_come(nodes, shared, checks, monkeypatch):
    monkeypatch.setattr(settings, "checks", checks)
    come = []

    def fn(ranks):
        for turn in range(5):
            come.append(turn)
            ranks.barrier(None)
            assert come.count(turn) == ranks.size

    on_nodes(nodes, fn, shared)


@pytest.mark.parametrize("odd", [0, 1, 5])
@pytest.mark.parametrize("placement", ["round robin", "uneven and mixed", "three nodes"])
def test_a_mismatch_is_an_error_on_every_rank_of_every_node(placement, odd, shared):
    messages = []

    def fn(ranks):
        ranks.all_reduce(np.ones(3, np.float32), np.add)
        dtype = np.float64 if ranks.rank == odd else np.float32
        with pytest.raises(MismatchError) as caught:
            ranks.all_reduce(np.ones(3, dtype), np.add)
        messages.append(str(caught.value))

    on_nodes(PLACEMENTS[placement], fn, shared)
    assert len(messages) == 6 and len(set(messages)) == 1
    assert f"rank {odd} differs from the others" in messages[0] and "as call 2" in messages[0]


def test_what_goes_between_nodes():
    """Only leaders send when it is little; all rails when it is much: 2S(m-1)/m over m nodes."""
    nodes = [[0, 1], [2, 3], [4, 5]]
    for count, leaders_only in ((300, True), (RAIL_BYTES, False)):
        bytes_between = [0] * 6
        ready = threading.Barrier(6)

        def fn(ranks, count=count, bytes_between=bytes_between, ready=ready):
            mine = np.ones(count, np.float32)
            rail = ranks.ways._rail
            ready.wait()
            before = rail.bytes
            ranks.ways.agree(meeting := Call("all_reduce", "float32"))
            after = rail.bytes
            ranks.ways.all_reduce(meeting, mine, np.add)
            bytes_between[ranks.rank] = rail.bytes - after - (after - before)
            assert (mine == 6).all()

        on_nodes(nodes, fn)
        if leaders_only:
            assert [sent > 0 for sent in bytes_between] == [True, False] * 3
        else:
            assert sum(bytes_between) == 2 * (4 * count) * 2


def test_closing_frees_every_part(nodes, shared):
    def fn(ranks):
        ranks.ways.close()
        (mine,) = ranks.wire.parts
        assert mine.closed and all(part.closed for part in mine.parts)
        assert not ranks.wire.closed

    on_nodes(nodes, fn, shared)


def test_nodes_that_do_not_fit():
    def rank(wire):
        wire.watch = Watch()
        with pytest.raises(ValueError, match=r"nodes .* must name each of 2 ranks once"):
            Hierarchy(wire, [[0], [0, 1]])

    on_wires(2, rank)
