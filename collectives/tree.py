"""The one fixed binary tree in which values of several leaves are reduced.

Floating-point addition is not associative, so a sum has the same bits every time only if its
parentheses are fixed. Here they follow from the number of leaves alone: neighbours (0, 1), (2, 3), …
are combined, an odd one out is carried up, and so on: 6 leaves → ((0 1)(2 3))(4 5). A node of the
tree is named by its leaves, as the half-open range (begin, end); on level k the nodes are the ranges
of 2^k leaves that begin at multiples of 2^k, cut off at the number of leaves.

Leaves are ranks (deterministic mode) or virtual shards, which keep their number when the number of
ranks changes: `tree_all_reduce` gives the same bits on any number of ranks that divides theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Node = tuple[int, int]
Ufunc = Callable[..., object]
AllToAll = Callable[[np.ndarray, np.ndarray, Sequence[int], Sequence[int]], object]
AllGather = Callable[[np.ndarray, np.ndarray, Sequence[int]], object]

#: Elements that are folded at a time: the partial results then stay in the cache.
BLOCK = 16384


def fold(arrays: Sequence[np.ndarray], ufunc: Ufunc, out: np.ndarray | None = None) -> np.ndarray:
    """Reduce `arrays`, the leaves in order, which stay as they are.

    Args:
        arrays: at least one; all flat, of one size and dtype.
        ufunc: called as ufunc(left, right, out=target), element by element.
        out: where the result goes; it may be one of `arrays`. None allocates it.

    Returns:
        `out`. Beside it, only log2(leaves) blocks of `BLOCK` elements are allocated.
    """
    if not arrays:
        raise ValueError("fold needs at least one array")
    if out is None:
        out = np.empty_like(arrays[0])
    if len(arrays) == 1:
        if out is not arrays[0]:
            out[...] = arrays[0]
        return out
    half, depth = _left_leaves(len(arrays)), (len(arrays) - 1).bit_length()
    spare = [np.empty(min(BLOCK, out.size), out.dtype) for _ in range(depth if len(arrays) > 2 else 0)]
    with np.errstate(all="ignore"):  # overflow is a value: inf, or wrapped around
        for begin in range(0, out.size, BLOCK):
            leaves = [array[begin : begin + BLOCK] for array in arrays]
            target = out[begin : begin + BLOCK]
            scratch = [each[: target.size] for each in spare]
            left = _fold_block(leaves[:half], ufunc, scratch)
            right = _fold_block(leaves[half:], ufunc, scratch[1:])
            # `out` may be one of the leaves: it is written last, when all of them have been read.
            ufunc(left, right, out=target)
    return out


def _fold_block(leaves: list[np.ndarray], ufunc: Ufunc, scratch: list[np.ndarray]) -> np.ndarray:
    """The root over `leaves`: the only leaf itself, or in scratch[0]."""
    if len(leaves) == 1:
        return leaves[0]
    half = _left_leaves(len(leaves))
    left = _fold_block(leaves[:half], ufunc, scratch)
    right = _fold_block(leaves[half:], ufunc, scratch[1:])
    ufunc(left, right, out=scratch[0])
    return scratch[0]


def _left_leaves(leaves: int) -> int:
    """How many of a node's leaves belong to its left child: the largest power of two below."""
    return 1 << (leaves - 1).bit_length() - 1


def frontier(leaves: int, begin: int, end: int) -> list[Node]:
    """The largest whole nodes of the tree over `leaves` leaves that lie inside [begin, end).

    Raises:
        ValueError: the range does not lie inside the leaves.
    """
    if not 0 <= begin <= end <= leaves:
        raise ValueError(f"frontier: [{begin}, {end}) does not lie inside {leaves} leaves")
    nodes = []
    while begin < end:
        width = 1
        while begin % (2 * width) == 0 and min(begin + 2 * width, leaves) <= end and width < leaves:
            width *= 2
        nodes.append((begin, min(begin + width, leaves)))
        begin = nodes[-1][1]
    return nodes


class Frontier:
    """A rank's leaves, folded as they come, so that all of them never are in memory at once.

    A node is combined as soon as its children are there: of L leaves at most log2(L) + 1 arrays are
    kept, and the bits are those of `fold`.

    Args:
        leaves: of the whole tree.
        begin: the first leaf that will come.
        ufunc: see `fold`.
    """

    def __init__(self, leaves: int, begin: int, ufunc: Ufunc) -> None:
        self.leaves, self.next, self.ufunc = leaves, begin, ufunc
        self.nodes: list[Node] = []
        self.arrays: list[np.ndarray] = []

    def push(self, array: np.ndarray) -> list[np.ndarray]:
        """Take in the next leaf, which becomes ours; returns the arrays that are free again."""
        node = (self.next, self.next + 1)
        self.next += 1
        return self._settle(node, array)

    def sibling(self) -> np.ndarray | None:
        """The array that the next leaf would be combined with, as the right one; None if none.

        Combine it with the leaf in place, and say so by `combined`, to spare the leaf a copy.
        """
        if self.nodes and self._siblings(self.nodes[-1], (self.next, self.next + 1)):
            return self.arrays[-1]
        return None

    def combined(self) -> list[np.ndarray]:
        """The next leaf has gone into `sibling`; returns the arrays that are free again."""
        self.next += 1
        return self._settle((self.nodes.pop()[0], self.next), self.arrays.pop())

    def _settle(self, node: Node, array: np.ndarray) -> list[np.ndarray]:
        free = []
        while self.nodes and self._siblings(self.nodes[-1], node):
            left = self.arrays.pop()
            with np.errstate(all="ignore"):
                self.ufunc(left, array, out=left)
            free.append(array)
            array, node = left, (self.nodes.pop()[0], node[1])
        self.nodes.append(node)
        self.arrays.append(array)
        return free

    def _siblings(self, left: Node, right: Node) -> bool:
        begin, width = left[0], left[1] - left[0]
        return begin % (2 * width) == 0 and right[1] == min(begin + 2 * width, self.leaves)


def combine(
    nodes: dict[Node, np.ndarray], leaves: int, ufunc: Ufunc, out: np.ndarray | None = None
) -> np.ndarray:
    """Reduce the results of `nodes`, which cover all leaves once, to that of the root.

    The arrays in `nodes` serve as scratch memory: their content is lost.

    Args:
        nodes: for (begin, end) of nodes as `frontier` gives them, their flat results.
        leaves: of the whole tree.
        ufunc: see `fold`.
        out: where the root goes; it may be one of the arrays. None takes one of them.

    Raises:
        ValueError: a leaf is not covered.
    """
    with np.errstate(all="ignore"):
        root = _combine_node(nodes, (0, leaves), ufunc, out)
    if out is None or root is out:
        return root
    out[...] = root  # there was a single node
    return out


def _combine_node(
    nodes: dict[Node, np.ndarray], node: Node, ufunc: Ufunc, out: np.ndarray | None = None
) -> np.ndarray:
    if node in nodes:
        return nodes[node]
    begin, end = node
    if end - begin < 2:
        raise ValueError(f"combine: no node covers leaf {begin}; given are {sorted(nodes)}")
    middle = begin + _left_leaves(end - begin)
    left = _combine_node(nodes, (begin, middle), ufunc)
    right = _combine_node(nodes, (middle, end), ufunc)
    target = left if out is None else out
    ufunc(left, right, out=target)
    return target


def check_shards(shards: Sequence[np.ndarray], leaves: int, size: int) -> list[np.ndarray]:
    """The virtual shards of one rank as flat contiguous arrays (views where that is possible).

    Args:
        shards: NumPy arrays of one shape and dtype.
        leaves: V, the number of shards of all ranks together.
        size: n, the number of ranks.

    Raises:
        ValueError: V is not a multiple of n; not V/n shards; shards of different shapes or dtypes.
    """
    if size < 1 or leaves < 1 or leaves % size:
        raise ValueError(
            f"{leaves} virtual shards cannot be held in equal blocks by {size} ranks; choose a "
            f"multiple of {size} as the number of shards"
        )
    if len(shards) != leaves // size:
        raise ValueError(
            f"each of {size} ranks must hold {leaves // size} of {leaves} virtual shards, this one "
            f"brought {len(shards)}"
        )
    first = shards[0]
    for index, shard in enumerate(shards):
        if shard.shape != first.shape or shard.dtype != first.dtype:
            raise ValueError(
                f"virtual shards must be alike: the first is {first.dtype} {list(first.shape)}, "
                f"number {index} is {shard.dtype} {list(shard.shape)}"
            )
    return [np.ascontiguousarray(shard).reshape(-1) for shard in shards]


def tree_all_reduce(
    shards: Sequence[np.ndarray],
    leaves: int,
    rank: int,
    size: int,
    ufunc: Ufunc,
    all_to_all: AllToAll,
    all_gather: AllGather,
    folded: bool = False,
) -> np.ndarray:
    """Reduce the virtual shards that all ranks hold, in the tree over all shards.

    Rank r of n holds shards r·V/n to (r+1)·V/n. Each rank folds its own frontier nodes; part p of
    each goes to rank p, which folds them to the root; all ranks gather the parts. The bits are the
    same for every n that divides V. Where V/n is a power of two each rank has one node, and sends
    2S(n−1)/n bytes for shards of S bytes, the least that an all-reduce can send.

    Args:
        shards: this rank's V/n arrays in order, flat, of one size and dtype; they stay as they are.
        leaves: V, the number of shards of all ranks together.
        rank, size: of this process, and n.
        ufunc: see `fold`.
        all_to_all: called as all_to_all(out, buffer, out_counts, in_counts): part p of `buffer`,
            in_counts[p] elements, goes to rank p; out_counts[r] elements come from rank r.
        all_gather: called as all_gather(out, buffer, counts).
        folded: `shards` are the arrays of a `Frontier` instead, which may be changed.

    Returns:
        An array of a shard's size, the same on every rank; a new one, or with `folded` one of ours.

    The arguments are those that `check_shards` has let through.
    """
    each = leaves // size
    if size == 1:
        return shards[0] if folded else fold(shards, ufunc)
    fronts = [frontier(leaves, r * each, (r + 1) * each) for r in range(size)]
    count, dtype = shards[0].size, shards[0].dtype
    edges = [p * count // size for p in range(size + 1)]
    widths = [edges[p + 1] - edges[p] for p in range(size)]

    first = rank * each
    parts = [[a] for a in shards] if folded else [shards[b - first : e - first] for b, e in fronts[rank]]
    mine = _fold_nodes(parts, edges, ufunc)
    out_counts = [len(front) * widths[rank] for front in fronts]
    received = np.empty(sum(out_counts), dtype)
    all_to_all(received, mine, out_counts, [len(fronts[rank]) * width for width in widths])

    rows = received.reshape(sum(map(len, fronts)), widths[rank])
    nodes = dict(zip((node for front in fronts for node in front), rows))
    result = np.empty(count, dtype)
    all_gather(result, combine(nodes, leaves, ufunc), widths)
    return result


def _fold_nodes(
    nodes: Sequence[Sequence[np.ndarray]], edges: list[int], ufunc: Ufunc
) -> np.ndarray:
    """Nodes, given by their leaves, as one flat array: for each part p, part p of every node."""
    first = nodes[0][0]
    sent = np.empty(len(nodes) * first.size, first.dtype)
    at = 0
    for low, high in zip(edges, edges[1:]):
        for leaves in nodes:
            fold([leaf[low:high] for leaf in leaves], ufunc, sent[at : at + high - low])
            at += high - low
    return sent
