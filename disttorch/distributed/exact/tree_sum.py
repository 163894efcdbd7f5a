"""Arrays of the virtual shards, added up in the one tree over all shards of all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from collectives import tree

from ...backend import namespace_of
from ..process_group import ProcessGroup


class TreeSum:
    """The sum over V shards of some arrays of one dtype and device, side by side in one.

    Floats of 16 bits are added in float32. A shard may leave an array out: it counts as zeros.

    Args:
        like: arrays of the shapes and the dtype to come, the same on every rank.
        group: the ranks; rank r of n holds shards r·V/n to (r+1)·V/n - 1.
        shards: V.
    """

    def __init__(self, like: Sequence[Any], group: ProcessGroup, shards: int) -> None:
        self.group, self.shards = group, shards
        self.shapes = [a.shape for a in like]
        self.dtype = like[0].dtype
        self.wide = self.dtype if self.dtype.itemsize > 2 else "float32"
        self.xp = namespace_of(like[0])
        self.edges = [0]
        for a in like:
            self.edges.append(self.edges[-1] + a.size)
        self._free: list[Any] = []
        self.restart()

    def restart(self) -> None:
        """Forget what has been pushed."""
        first = self.group.rank() * (self.shards // self.group.size())
        self._kept = tree.Frontier(self.shards, first, self.xp.add)

    def push(self, arrays: Sequence[Any], size: int = 0) -> None:
        """Take in this rank's next shard.

        Args:
            arrays: as announced; None for one left out.
            size: the shard's samples, summed up as well.
        """
        count = self.edges[-1]
        left = self._kept.sibling()
        if left is not None:  # added where it would go next, without a copy
            for i, (low, high, array) in enumerate(zip(self.edges, self.edges[1:], arrays)):
                left[low:high] += 0 if array is None else array.reshape(-1)
                left[count + i] += array is not None
            left[-1] += size
            self._free += self._kept.combined()
            return
        flat = self._free.pop() if self._free else self.xp.empty(count + len(arrays) + 1, self.wide)
        for low, high, array in zip(self.edges, self.edges[1:], arrays):
            flat[low:high] = 0 if array is None else array.reshape(-1)
        # Who was there travels along: the counts are exact, and cost no message of their own.
        for i, array in enumerate(arrays):
            flat[count + i] = array is not None
        flat[-1] = size
        self._free += self._kept.push(flat)

    def total(self) -> tuple[list[Any], list[int], int]:
        """(sums, how many shards had each, samples of all) once every rank has pushed its shards.

        The sums are new arrays, the same bits on every rank, of the dtype in which they were added.
        """
        flat = self.group.ranks.tree_all_reduce(self._kept.arrays, self.shards, folded=True)
        # The others serve the next sum; one of them may be the memory of the result itself.
        self._free += [a for a in self._kept.arrays if a is not flat and a is not flat.base]
        self.restart()
        sums = [
            flat[low:high].reshape(shape)
            for low, high, shape in zip(self.edges, self.edges[1:], self.shapes)
        ]
        here = flat[self.edges[-1] :].tolist()
        return sums, [round(_real(x)) for x in here[:-1]], round(_real(here[-1]))

    def mean(self) -> tuple[list[Any], list[int], int]:
        """Like `total`, but the sums divided by V, in the announced dtype."""
        sums, counts, samples = self.total()
        for array in sums:
            array /= self.shards
        if self.wide != self.dtype:
            sums = [array.astype(self.dtype) for array in sums]
        return sums, counts, samples


def _real(value: Any) -> float:
    return value.real if isinstance(value, complex) else value
