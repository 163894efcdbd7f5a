"""Leaves folded as they come give the bits of the whole tree, on any number of ranks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import collectives
from collectives import tree


def rough(seed, count=257):
    """Values whose sum depends on the order of the additions."""
    random = np.random.default_rng(seed)
    return (random.standard_normal(count) * 10.0 ** random.integers(-6, 6, count)).astype(np.float32)


@given(st.integers(1, 40), st.data())
@settings(max_examples=200, deadline=None)
def test_a_block_folds_to_its_frontier(leaves, data):
    begin = data.draw(st.integers(0, leaves - 1))
    end = data.draw(st.integers(begin + 1, leaves))
    kept = tree.Frontier(leaves, begin, np.add)
    most = 0
    for leaf in range(begin, end):
        kept.push(rough(leaf, 5))
        most = max(most, len(kept.arrays))
    assert kept.nodes == tree.frontier(leaves, begin, end)
    for (b, e), array in zip(kept.nodes, kept.arrays):
        wanted = tree.fold([rough(leaf, 5) for leaf in range(b, e)], np.add)
        assert array.tobytes() == wanted.tobytes()
    assert most <= 2 * leaves.bit_length()
    if begin == 0:
        assert most <= leaves.bit_length()


@pytest.mark.parametrize("leaves", range(1, 20))
def test_leaves_added_in_place(leaves):
    kept = tree.Frontier(leaves, 0, np.add)
    for leaf in range(leaves):
        left = kept.sibling()
        if left is None:
            kept.push(rough(leaf))
        else:
            left += rough(leaf)
            kept.combined()
    assert kept.nodes == [(0, leaves)]
    wanted = tree.fold([rough(leaf) for leaf in range(leaves)], np.add)
    assert kept.arrays[0].tobytes() == wanted.tobytes()


def arrays_made(V, rank, each):
    """How many arrays a rank allocates for its shards, when it uses those again that are free."""
    kept = tree.Frontier(V, rank * each, np.add)
    free = made = 0
    for _ in range(each):
        if kept.sibling() is not None:
            free += len(kept.combined())
            continue
        made += not free
        free -= free > 0
        free += len(kept.push(np.zeros(1)))
    return made


@pytest.mark.parametrize("each", range(1, 33))
def test_memory(each):
    most = max(arrays_made(each * n, rank, each) for n in (1, 2, 3, 4, 8) for rank in range(n))
    if each & (each - 1) == 0:
        assert most == max(1, each.bit_length() - 1)
    else:
        assert most <= np.log2(each) + 3


def test_freed_arrays_are_handed_back():
    kept = tree.Frontier(4, 0, np.add)
    arrays = [rough(i) for i in range(4)]
    assert [len(kept.push(a)) for a in arrays] == [0, 1, 0, 2]


CASES = [(V, n) for V in (1, 2, 3, 4, 6, 8, 12) for n in (1, 2, 3, 4) if V % n == 0]


@pytest.mark.parametrize(("V", "n"), CASES)
def test_folded_shards_reduce_to_the_same_bits(V, n):
    wanted = tree.fold([rough(leaf) for leaf in range(V)], np.add)

    def rank(group):
        each = V // n
        kept = tree.Frontier(V, group.rank * each, np.add)
        for leaf in range(group.rank * each, (group.rank + 1) * each):
            kept.push(rough(leaf))
        return group.tree_all_reduce(kept.arrays, V, folded=True)

    results = collectives.run_ranks(n, rank, 30)
    assert [r.tobytes() for r in results] == [wanted.tobytes()] * n


def test_a_wrong_number_of_nodes_is_refused():
    with pytest.raises(ValueError, match="2 nodes given, but this rank's frontier has 1"):
        collectives.run_ranks(1, lambda g: g.tree_all_reduce([rough(0)] * 2, 2, folded=True), 10)
