"""The fixed binary tree, and that it gives the same bits however the leaves are spread over ranks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire import on_wires

from collectives import tree
from collectives.algorithms import all_to_all, gather


def spelled(n):
    """The tree over n leaves as text."""
    leaves = [np.array([str(leaf)], object) for leaf in range(n)]

    def join(left, right, out):
        out[...] = f"({left[0]}{right[0]})"

    return tree.fold(leaves, join)[0]


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (1, "0"),
        (2, "(01)"),
        (3, "((01)2)"),
        (4, "((01)(23))"),
        (5, "(((01)(23))4)"),
        (6, "(((01)(23))(45))"),
        (7, "(((01)(23))((45)6))"),
        (9, "((((01)(23))((45)(67)))8)"),
    ],
)
def test_shape(n, text):
    assert spelled(n) == text


def by_levels(arrays, ufunc):
    """The tree as it is defined: neighbours are combined, an odd one out is carried up."""
    row = list(arrays)
    while len(row) > 1:
        pairs = [ufunc(left, right) for left, right in zip(row[::2], row[1::2])]
        row = pairs + row[len(row) - len(row) % 2 :]
    return row[0]


def rough(seed, count=257, dtype=np.float32):
    """Values whose sum depends on the order of the additions."""
    random = np.random.default_rng(seed)
    return (random.standard_normal(count) * 10.0 ** random.integers(-6, 6, count)).astype(dtype)


@pytest.mark.parametrize("n", range(1, 18))
def test_fold_follows_the_definition_and_leaves_its_input(n):
    arrays = [rough((n, leaf), 2 * tree.BLOCK + 3) for leaf in range(n)]
    before = [array.copy() for array in arrays]
    expected = by_levels(arrays, np.add)
    assert tree.fold(arrays, np.add).tobytes() == expected.tobytes()
    assert all(np.array_equal(a, b) for a, b in zip(arrays, before))
    for leaf in (0, n // 2, n - 1):  # the result may replace any of them
        again = [array.copy() for array in before]
        assert tree.fold(again, np.add, again[leaf]) is again[leaf]
        assert again[leaf].tobytes() == expected.tobytes()


def test_the_tree_is_not_the_sequential_sum():
    arrays = [rough(leaf) for leaf in range(6)]
    sequential = arrays[0].copy()
    for array in arrays[1:]:
        sequential += array
    assert tree.fold(arrays, np.add).tobytes() != sequential.tobytes()


def test_fold_of_nothing():
    with pytest.raises(ValueError, match="at least one"):
        tree.fold([], np.add)


@pytest.mark.parametrize(
    ("leaves", "begin", "end", "nodes"),
    [
        (6, 0, 6, [(0, 6)]),
        (6, 0, 3, [(0, 2), (2, 3)]),
        (6, 3, 6, [(3, 4), (4, 6)]),
        (5, 4, 5, [(4, 5)]),
        (12, 4, 8, [(4, 8)]),
        (12, 8, 12, [(8, 12)]),
        (12, 6, 12, [(6, 8), (8, 12)]),
        (8, 1, 7, [(1, 2), (2, 4), (4, 6), (6, 7)]),
        (8, 3, 3, []),
    ],
)
def test_frontier(leaves, begin, end, nodes):
    assert tree.frontier(leaves, begin, end) == nodes


@pytest.mark.parametrize("bounds", [(-1, 2), (3, 2), (0, 5)])
def test_frontier_outside(bounds):
    with pytest.raises(ValueError, match=r"does not lie inside 4 leaves"):
        tree.frontier(4, *bounds)


@given(st.integers(1, 40), st.lists(st.integers(0, 40), max_size=6), st.booleans())
@settings(max_examples=200, deadline=None)
def test_blocks_combine_to_the_root(leaves, cuts, into_out):
    """However the leaves are cut into blocks, the blocks' nodes give the root's bits."""
    arrays = [rough((7, leaf), 5) for leaf in range(leaves)]
    edges = sorted({0, leaves, *(cut for cut in cuts if cut < leaves)})
    nodes = {
        (b, e): tree.fold(arrays[b:e], np.add)
        for begin, end in zip(edges, edges[1:])
        for b, e in tree.frontier(leaves, begin, end)
    }
    out = np.empty(5, np.float32) if into_out else None
    root = tree.combine(nodes, leaves, np.add, out)
    assert out is None or root is out
    assert root.tobytes() == by_levels(arrays, np.add).tobytes()


def test_combine_names_the_leaf_that_is_missing():
    with pytest.raises(ValueError, match="no node covers leaf 2"):
        tree.combine({(0, 2): np.ones(1)}, 4, np.add)


# ---- tree_all_reduce -------------------------------------------------------------------------------

CASES = [(V, n) for V in (1, 2, 3, 4, 6, 8, 12) for n in range(1, V + 1) if V % n == 0]


def reduce_on(n, shards, ufunc):
    """Every rank's result, and the bytes that each has sent."""
    each = len(shards) // n

    def rank(wire):
        def exchange(out, buffer, out_counts, in_counts):
            all_to_all.pairwise(wire, out, buffer, 1, out_counts, in_counts)

        def collect(out, buffer, counts):
            gather.ring_all_gather(wire, out, buffer, 2, counts)

        mine = tree.check_shards(shards[wire.rank * each : (wire.rank + 1) * each], len(shards), n)
        return tree.tree_all_reduce(mine, len(shards), wire.rank, n, ufunc, exchange, collect)

    results, wires = on_wires(n, rank)
    return results, [wire.bytes for wire in wires]


@pytest.mark.parametrize(("V", "n"), CASES)
@pytest.mark.parametrize("count", [0, 1, 2, 257, 24000])
def test_same_bits_on_any_number_of_ranks(V, n, count):
    shards = [rough((V, leaf), count) for leaf in range(V)]
    before = [shard.copy() for shard in shards]
    expected = tree.fold(shards, np.add)
    results, _ = reduce_on(n, shards, np.add)
    assert [result.tobytes() for result in results] == [expected.tobytes()] * n
    assert all(np.array_equal(a, b) for a, b in zip(shards, before))


@pytest.mark.parametrize("ufunc", [np.maximum, np.multiply, np.bitwise_xor])
def test_other_reductions(ufunc):
    shards = [np.random.default_rng(leaf).integers(1, 9, 31) for leaf in range(6)]
    results, _ = reduce_on(3, shards, ufunc)
    assert all(np.array_equal(result, ufunc.reduce(shards)) for result in results)


@pytest.mark.parametrize(("V", "n"), [(V, n) for V, n in CASES if (V // n).bit_count() == 1])
def test_volume_is_the_least_of_an_all_reduce(V, n):
    """Where every block is one node: 2S(n-1)/n bytes."""
    shards = [rough(leaf, 1200) for leaf in range(V)]
    _, sent = reduce_on(n, shards, np.add)
    assert sent == [2 * 4800 * (n - 1) // n] * n


def test_volume_with_two_nodes_a_rank():
    """6 shards on 2 ranks: rank 0 has nodes (0, 2) and (2, 3), so twice the parts are exchanged."""
    _, sent = reduce_on(2, [rough(leaf, 1200) for leaf in range(6)], np.add)
    assert sent == [2 * 2400 + 2400] * 2


def test_refused_shards():
    ones = [np.ones(3, np.float32)] * 2
    with pytest.raises(ValueError, match="4 virtual shards cannot be held in equal blocks by 3 ranks"):
        tree.check_shards(ones, 4, 3)
    with pytest.raises(ValueError, match="must hold 3 of 6 virtual shards, this one brought 2"):
        tree.check_shards(ones, 6, 2)
    with pytest.raises(ValueError, match=r"first is float32 \[3\], number 1 is float64 \[2\]"):
        tree.check_shards([ones[0], np.ones(2)], 2, 1)
    flat = tree.check_shards([np.arange(6).reshape(2, 3).T], 1, 1)
    assert flat[0].tolist() == [0, 3, 1, 4, 2, 5]
