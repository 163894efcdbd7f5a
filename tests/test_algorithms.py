"""The algorithms against NumPy, against `local`, and against the costs in their docstrings."""

from __future__ import annotations

from math import ceil, log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire import data, on_wires

from collectives import ReduceOp, run_ranks, tree
from collectives.algorithms import ALGORITHMS, FIXED_TREE, POWER_OF_TWO, UNEQUAL
from collectives.buffers import UFUNCS

RANKS = [1, 2, 3, 4, 5, 8]
DTYPES = [np.float32, np.int64, np.uint8]
UFUNCS_TRIED = {
    np.float32: [np.add, np.maximum],
    np.int64: [np.add, np.multiply],
    np.uint8: [np.add, np.minimum, np.bitwise_xor],
}


def usable(call, name, n):
    return n & (n - 1) == 0 or name not in POWER_OF_TWO.get(call, ())


def algorithms(*calls):
    """All (name, n) of some calls that go together."""
    return [
        pytest.param(call, name, n, id=f"{call}-{name}-{n}")
        for call in calls
        for name in ALGORITHMS[call]
        for n in RANKS
        if usable(call, name, n)
    ]


def sizes(n):
    return sorted({0, 1, 2, 7, n - 1, n, 1000, 4099})


def reductions():
    return [(dtype, ufunc) for dtype in DTYPES for ufunc in UFUNCS_TRIED[dtype]]


def all_data(n, count, dtype):
    return [data(rank, count, dtype) for rank in range(n)]


def reduced(n, count, dtype, ufunc):
    return ufunc.reduce(all_data(n, count, dtype), dtype=dtype)


def check(got, expected, *what):
    assert got.dtype == expected.dtype and np.array_equal(got, expected), (what, got, expected)


# ---- against NumPy ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("call", "name", "n"), algorithms("all_reduce", "reduce"))
def test_reductions(call, name, n):
    function = ALGORITHMS[call][name]

    def rank(wire):
        for dtype, ufunc in reductions():
            for count in sizes(n):
                expected = reduced(n, count, dtype, ufunc)
                roots = {0, n // 2, n - 1} if call == "reduce" else {None}
                for root in roots:
                    mine = data(wire.rank, count, dtype)
                    mine.flags.writeable = root in (None, wire.rank)
                    function(wire, mine, ufunc, *([] if root is None else [root]), 5)
                    if root not in (None, wire.rank):
                        expected_here = data(wire.rank, count, dtype)  # it stays as it was
                    else:
                        expected_here = expected
                    check(mine, expected_here, dtype, ufunc, count, root)

    on_wires(n, rank)


def unequal_parts(n, salt=0):
    """Parts of which some are empty, and their sum."""
    counts = [int(c) for c in np.random.default_rng([n, salt]).integers(0, 9, n)]
    counts[salt % n] = 0
    return counts


@pytest.mark.parametrize(("call", "name", "n"), algorithms("reduce_scatter"))
def test_reduce_scatter(call, name, n):
    function = ALGORITHMS[call][name]

    def rank(wire):
        for dtype, ufunc in reductions():
            cases = [None] * 5 + [unequal_parts(n, salt) for salt in range(4)]
            for each, counts in zip([0, 1, 2, 7, 1001, 0, 0, 0, 0], cases):
                parts = counts or [each] * n
                at = np.cumsum([0, *parts])
                whole = data(wire.rank, sum(parts), dtype)
                whole.flags.writeable = False
                out = np.empty(parts[wire.rank], dtype)
                function(wire, out, whole, ufunc, 5, counts)
                expected = reduced(n, sum(parts), dtype, ufunc)[at[wire.rank] : at[wire.rank + 1]]
                check(out, expected, dtype, ufunc, parts)

    on_wires(n, rank)


@pytest.mark.parametrize(("call", "name", "n"), algorithms("broadcast"))
def test_broadcast(call, name, n):
    def rank(wire):
        for dtype in DTYPES:
            for count in sizes(n):
                for root in range(n):
                    mine = data(wire.rank, count, dtype)
                    mine.flags.writeable = wire.rank != root
                    ALGORITHMS[call][name](wire, mine, root, 5)
                    check(mine, data(root, count, dtype), count, root)

    on_wires(n, rank)


@pytest.mark.parametrize(("call", "name", "n"), algorithms("all_gather", "gather", "scatter"))
def test_moves_of_parts(call, name, n):
    function = ALGORITHMS[call][name]

    def one(wire, dtype, parts, counts, root):
        rank = wire.rank
        whole = np.concatenate([data(r, parts[r], dtype) for r in range(n)])
        mine, part = data(rank, parts[rank], dtype), np.empty(parts[rank], dtype)
        mine.flags.writeable = whole.flags.writeable = False
        more = [counts] if name in UNEQUAL[call] else []
        if call == "all_gather":
            out = np.empty_like(whole)
            function(wire, out, mine, 5, *more)
            check(out, whole, parts)
        elif call == "gather":
            out = np.empty_like(whole) if rank == root else None
            function(wire, out, mine, root, 5, *more)
            assert out is None or np.array_equal(out, whole), (parts, root)
        else:
            function(wire, part, whole if rank == root else None, root, 5, *more)
            check(part, mine, parts, root)

    def rank(wire):
        for dtype in DTYPES:
            for root in [0] if call == "all_gather" else range(n):
                for each in sizes(n):
                    one(wire, dtype, [each] * n, None, root)
                for salt in range(4) if name in UNEQUAL[call] else ():
                    parts = unequal_parts(n, salt)
                    one(wire, dtype, parts, parts, root)

    on_wires(n, rank)


@pytest.mark.parametrize(("call", "name", "n"), algorithms("all_to_all"))
def test_all_to_all(call, name, n):
    def rank(wire):
        tables = [np.full((n, n), each) for each in sizes(n)]
        if name in UNEQUAL[call]:
            tables += [np.random.default_rng(salt).integers(0, 6, (n, n)) for salt in range(4)]
        for dtype in DTYPES:
            for table in tables:  # table[r, p] elements go from rank r to rank p
                ins, outs = table[wire.rank].tolist(), table[:, wire.rank].tolist()
                at = np.cumsum(np.c_[np.zeros(n, int), table], axis=1)
                buffer, out = data(wire.rank, sum(ins), dtype), np.empty(sum(outs), dtype)
                buffer.flags.writeable = False
                more = [outs, ins] if name in UNEQUAL[call] else []
                ALGORITHMS[call][name](wire, out, buffer, 5, *more)
                expected = [
                    data(r, int(table[r].sum()), dtype)[at[r, wire.rank] : at[r, wire.rank + 1]]
                    for r in range(n)
                ]
                check(out, np.concatenate(expected), table)

    on_wires(n, rank)


@pytest.mark.parametrize("n", RANKS)
def test_nobody_leaves_a_barrier_before_all_have_come(n):
    come = []

    def rank(wire):
        for turn in range(10):
            come.append((turn, wire.rank))
            ALGORITHMS["barrier"]["dissemination"](wire, 5)
            assert sum(t == turn for t, _ in come) == n

    on_wires(n, rank)


def test_parts_that_do_not_fit():
    def rank(wire):
        for call in ("reduce_scatter", "all_gather"):
            with pytest.raises(ValueError, match="7 elements do not divide into 2 equal parts"):
                parts = [np.empty(7), np.empty(3)]
                if call == "reduce_scatter":
                    ALGORITHMS[call]["ring"](wire, parts[1], parts[0], np.add)
                else:
                    ALGORITHMS[call]["ring"](wire, parts[0], parts[1])
        with pytest.raises(ValueError, match=r"counts \[3, 5\] are not 2 parts of a buffer of 7"):
            ALGORITHMS["all_gather"]["ring"](wire, np.empty(7), np.empty(3), 0, [3, 5])

    on_wires(2, rank)

    def three(wire):
        with pytest.raises(ValueError, match="needs a power of two of ranks, not 3"):
            ALGORITHMS["all_gather"]["recursive_doubling"](wire, np.empty(3), np.empty(1))

    on_wires(3, three)


def test_overflow_is_a_value():
    """pytest turns NumPy's warnings into errors: none may come."""

    def rank(wire):
        for name in ALGORITHMS["all_reduce"]:
            array = np.full(9, 3e38, np.float32)
            ALGORITHMS["all_reduce"][name](wire, array, np.add)
            assert np.isinf(array).all()

    on_wires(3, rank)


# ---- the fixed tree --------------------------------------------------------------------------------


def rough(rank, count):
    """Values whose sum depends on the order of the additions."""
    random = np.random.default_rng([rank, count])
    return (random.standard_normal(count) * 10.0 ** random.integers(-6, 6, count)).astype(np.float32)


def trees():
    always = [(c, name, n) for c, names in FIXED_TREE.items() for name in names for n in RANKS]
    return always + [("all_reduce", "recursive_doubling", n) for n in (2, 4, 8)]


def tell_sides(left, right, out):
    """An addition that shows which side a value was on."""
    np.add(np.float32(1.5) * left, right, out=out)


@pytest.mark.parametrize(("call", "name", "n"), trees())
@pytest.mark.parametrize(("each", "ufunc"), [(1, np.add), (7, tell_sides), (5001, np.add)])
def test_bits_of_the_fixed_tree(call, name, n, each, ufunc):
    function, count = ALGORITHMS[call][name], n * each
    expected = tree.fold([rough(rank, count) for rank in range(n)], ufunc)

    def rank(wire):
        mine, out = rough(wire.rank, count), np.empty(each, np.float32)
        if call == "all_reduce":
            function(wire, mine, ufunc)
            assert mine.tobytes() == expected.tobytes()
        elif call == "reduce_scatter":
            function(wire, out, mine, ufunc)
            assert out.tobytes() == expected[wire.rank * each :][:each].tobytes()
        else:
            for root in range(n):
                mine = rough(wire.rank, count)
                function(wire, mine, ufunc, root)
                assert wire.rank != root or mine.tobytes() == expected.tobytes()

    on_wires(n, rank)


def test_a_ring_has_other_bits():
    """So the test above can fail."""

    def rank(wire):
        mine = rough(wire.rank, 5000)
        ALGORITHMS["all_reduce"]["ring"](wire, mine, np.add)
        return mine

    (ring, *_), _ = on_wires(4, rank)
    direct = tree.fold([rough(rank, 5000) for rank in range(4)], np.add)
    assert np.allclose(ring, direct, rtol=1e-3) and not np.array_equal(ring, direct)


# ---- costs -----------------------------------------------------------------------------------------

ELEMENTS = 840  # divides by every n here
S = 4 * ELEMENTS


def sent(n, call, name, *args, out=1.0, into=1.0):
    """Bytes and messages of every rank for arrays of S bytes times `out` and `into`."""

    def rank(wire):
        buffer = np.ones(int(ELEMENTS * into), np.float32)
        result = np.empty(int(ELEMENTS * out), np.float32)
        if call in ("all_reduce", "reduce", "broadcast"):
            ALGORITHMS[call][name](wire, buffer, *args)
            return
        at_root = wire.rank == 0
        target = result if at_root or call != "gather" else None
        source = buffer if at_root or call != "scatter" else None
        ALGORITHMS[call][name](wire, target, source, *args)

    _, wires = on_wires(n, rank)
    return [wire.bytes for wire in wires], [wire.messages for wire in wires]


@pytest.mark.parametrize("n", RANKS)
def test_cost_of_all_reduce(n):
    steps = ceil(log2(n))
    least = 2 * S * (n - 1) // n
    assert sent(n, "all_reduce", "ring", np.add) == ([least] * n, [2 * (n - 1)] * n)
    assert sent(n, "all_reduce", "direct", np.add) == ([least] * n, [2 * (n - 1)] * n)
    by_tree = sent(n, "all_reduce", "tree", np.add)
    assert by_tree[0][0] == S * steps and sum(by_tree[0]) == 2 * S * (n - 1)
    assert sum(by_tree[1]) == 2 * (n - 1)
    doubling = sent(n, "all_reduce", "recursive_doubling", np.add)
    halving = sent(n, "all_reduce", "recursive_halving_doubling", np.add)
    p = 1 << n.bit_length() - 1
    waiting = n - p
    assert sum(doubling[0]) == p * S * log2(p) + waiting * 2 * S
    assert sum(halving[0]) == p * 2 * S * (p - 1) // p + waiting * 2 * S
    if not waiting:
        assert doubling == ([S * steps] * n, [steps] * n)
        assert halving == ([least] * n, [2 * steps] * n)


@pytest.mark.parametrize("n", RANKS)
def test_cost_of_reduce_and_broadcast(n):
    steps, share = ceil(log2(n)), S // n
    assert sent(n, "reduce", "binomial", np.add, 0) == ([0] + [S] * (n - 1), [0] + [1] * (n - 1))
    assert sum(sent(n, "reduce", "tree", np.add, n - 1)[1]) == n - 1 + (n > 1)
    directly, _ = sent(n, "reduce", "direct", np.add, 0)
    assert directly == [share * (n - 1)] + [share * n] * (n - 1)
    down, messages = sent(n, "broadcast", "binomial", 0)
    assert down[0] == S * steps and messages[0] == steps and sum(messages) == n - 1
    two_phase, _ = sent(n, "broadcast", "scatter_all_gather", 0)
    assert max(two_phase) == two_phase[0] == 2 * share * (n - 1)


@pytest.mark.parametrize("n", RANKS)
def test_cost_of_parts(n):
    steps, share = ceil(log2(n)), S // n
    least = share * (n - 1)
    assert sent(n, "reduce_scatter", "ring", np.add, out=1 / n) == ([least] * n, [n - 1] * n)
    assert sent(n, "reduce_scatter", "direct", np.add, out=1 / n) == ([least] * n, [n - 1] * n)
    assert sent(n, "all_gather", "ring", into=1 / n) == ([least] * n, [n - 1] * n)
    assert sent(n, "all_gather", "bruck", into=1 / n) == ([least] * n, [steps] * n)
    if n & (n - 1) == 0:
        assert sent(n, "all_gather", "recursive_doubling", into=1 / n) == ([least] * n, [steps] * n)
        assert sent(n, "reduce_scatter", "halving", np.add, out=1 / n) == ([least] * n, [steps] * n)
        assert sent(n, "all_to_all", "bruck") == ([S // 2 * steps] * n, [steps] * n)
    assert sent(n, "all_to_all", "pairwise") == ([least] * n, [n - 1] * n)
    assert sum(sent(n, "gather", "linear", 0, into=1 / n)[0]) == least
    assert sum(sent(n, "gather", "binomial", 0, into=1 / n)[1]) == n - 1
    bytes_down, messages = sent(n, "scatter", "binomial", 0, out=1 / n)
    assert bytes_down[0] == least and messages[0] == steps
    bytes_down, messages = sent(n, "scatter", "linear", 0, out=1 / n)
    assert bytes_down[0] == least and messages[0] == n - 1


@pytest.mark.parametrize("n", RANKS)
def test_cost_of_barrier_and_of_nothing(n):
    _, wires = on_wires(n, lambda wire: ALGORITHMS["barrier"]["dissemination"](wire))
    assert [wire.messages for wire in wires] == [ceil(log2(n))] * n
    for call in ("all_reduce", "reduce", "broadcast"):
        for name in ALGORITHMS[call]:
            args = {"all_reduce": [np.add], "reduce": [np.add, 0], "broadcast": [0]}[call]
            assert sent(n, call, name, *args, into=0)[1] == [0] * n


# ---- random programs on `local` --------------------------------------------------------------------


class OverLocal:
    """The transport that a group of `local` ranks is."""

    def __init__(self, group):
        self.group, self.rank, self.size = group, group.rank, group.size
        self.isend, self.irecv = group.isend, group.irecv


def steps_of_programs():
    names = [(call, name) for call in ALGORITHMS for name in ALGORITHMS[call] if call != "barrier"]
    return st.tuples(
        st.sampled_from(names), st.integers(0, 40), st.sampled_from(DTYPES),
        st.sampled_from([ReduceOp.SUM, ReduceOp.MAX, ReduceOp.MIN, ReduceOp.PRODUCT]),
        st.integers(0, 7), st.integers(0, 99),
    )  # fmt: skip


def run_step(group, step):
    """One call by an algorithm and by the group itself, on equal data."""
    (call, name), each, dtype, op, root, salt = step
    if not usable(call, name, group.size):
        return
    function, over = ALGORITHMS[call][name], OverLocal(group)
    n, root, tag = group.size, root % group.size, salt
    mine, wide = data(group.rank, each, dtype, salt), data(group.rank, each * n, dtype, salt)
    theirs = mine.copy()
    if call in ("all_reduce", "reduce", "broadcast"):
        args = {"all_reduce": [UFUNCS[op]], "reduce": [UFUNCS[op], root], "broadcast": [root]}[call]
        function(over, mine, *args, tag)
        own = {"all_reduce": [op], "reduce": [root, op], "broadcast": [root]}[call]
        getattr(group, call)(theirs, *own)
        check(mine, theirs, step)
        return
    source = wide if call in ("reduce_scatter", "all_to_all", "scatter") else mine
    into = np.empty(each if call in ("reduce_scatter", "scatter") else each * n, dtype)
    at_root = group.rank == root
    out = into if call != "gather" or at_root else None
    source = source if call != "scatter" or at_root else None
    other = None if out is None else np.empty_like(into)
    if call == "reduce_scatter":
        function(over, out, source, UFUNCS[op], tag)
        group.reduce_scatter(other, source, op)
    elif call in ("gather", "scatter"):
        function(over, out, source, root, tag)
        getattr(group, call)(other, source, root)
    else:
        function(over, out, source, tag)
        getattr(group, call)(other, source)
    if out is not None:
        check(out, other, step)


@given(st.integers(1, 6), st.lists(steps_of_programs(), min_size=1, max_size=8))
@settings(max_examples=300, deadline=None)
def test_random_programs_against_local(n, program):
    run_ranks(n, lambda group: [run_step(group, step) for step in program], timeout=60)
