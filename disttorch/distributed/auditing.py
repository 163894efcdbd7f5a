"""Do all ranks still have the same weights? A checksum of each parameter, compared across ranks.

Data-parallel ranks stay equal only as long as each applies the same update to the same values. A
rank that skipped a step, loaded another file, drew other random numbers or has faulty memory goes
on without an error, and the loss looks almost right. The comparison costs one pass over the
parameters and two small calls.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import collectives

from ..backend import CPU, namespace_of, ndarray
from ..nn import Module
from ..tensor import Tensor
from .process_group import ProcessGroup, belonging

_CHUNK = 1 << 22


def audit(
    module: Module, every: int | None = None, group: ProcessGroup | None = None
) -> Any:
    """Compare the parameters of `module` across ranks; all ranks of the group must call it.

    Args:
        module: of the same parameters on all ranks.
        every: None compares now. A number compares before each `every`-th training forward of the
            module from now on.
        group: the ranks; None: all.

    Returns:
        None, or with `every` a handle whose `remove()` ends it.

    Raises:
        RuntimeError: on every rank, if a parameter's bits are not the same everywhere; it names the
            parameters and the ranks.
        ValueError: `every` below 1.
    """
    if every is None:
        compare(list(module.named_parameters()), belonging(group))
        return None
    auditor = Auditor(module, every, belonging(group))
    return module.register_forward_pre_hook(lambda module, args: auditor.forward())


class Auditor:
    """Audits every so many calls of `forward`, the first time at the `every`-th one.

    Args:
        module, every, group: as of `audit`.
        ignored: names of parameters that may differ.
    """

    def __init__(
        self, module: Module, every: int, group: ProcessGroup, ignored: Sequence[str] = ()
    ) -> None:
        if every < 1:
            raise ValueError(f"audit: every must be at least 1, got {every}")
        self.module, self.every, self.group = module, every, group
        self.ignored, self.count = set(ignored), 0

    def forward(self) -> None:
        """Count a forward; compare if it is its turn. Forwards in evaluation do not count."""
        if not self.module.training:
            return
        self.count += 1
        if self.count % self.every == 0:
            named = self.module.named_parameters()
            compare([(n, p) for n, p in named if n not in self.ignored], self.group)


def compare(named: Sequence[tuple[str, Tensor]], group: ProcessGroup) -> None:
    """Raise RuntimeError on every rank of the group unless the tensors' bits are equal on all."""
    if group.size() == 1 or not named:
        return
    sums = [checksum(t) for _, t in named]
    whole = zlib.crc32(repr(sums).encode())
    # The least and the greatest of all ranks' sums in one call: the least is minus the greatest of
    # the negatives.
    ends = CPU.array([whole, -whole])
    group.ranks.all_reduce(ends, collectives.ReduceOp.MAX)
    if ends[0] == -ends[1]:
        return
    rows = group.ranks.all_gather_object(sums)
    raise RuntimeError(_message([name for name, _ in named], rows, group.members))


def checksum(t: Tensor) -> int:
    """A number that depends on every bit of the tensor: CRC-32, on a GPU a weighted sum of words."""
    data = t._data
    if isinstance(data, ndarray):
        # As bytes: the buffer protocol does not know bfloat16
        return zlib.crc32(data.reshape(-1).view("uint8").data)
    xp = namespace_of(data)
    width = {1: xp.uint8, 2: xp.uint16}.get(data.itemsize, xp.uint32)
    words = xp.ascontiguousarray(data).reshape(-1).view(width)
    total = 0
    for start in range(0, words.size, _CHUNK):  # in pieces: each takes 24 bytes a word
        piece = words[start : start + _CHUNK].astype(xp.uint64)
        total += int((piece * (2 * xp.arange(piece.size, dtype=xp.uint64) + 1)).sum())
        total = total * 3 % (1 << 64)
    return total


def _message(names: Sequence[str], rows: Sequence[Sequence[int]], members: Sequence[int]) -> str:
    found = []
    for name, column in zip(names, zip(*rows)):
        if len(set(column)) == 1:
            continue
        usual = Counter(column).most_common(1)[0][0]  # the lowest rank's of those equally common
        drifted = [members[i] for i, value in enumerate(column) if value != usual]
        found.append(f"{name!r} on rank {', '.join(map(str, drifted))}")
    shown = "; ".join(found[:10]) + (f"; and {len(found) - 10} more" if len(found) > 10 else "")
    return (
        f"audit: {len(found)} of {len(names)} parameters have drifted apart between ranks: {shown} "
        "(against the most common values; with two ranks, rank 0's). Look for a rank whose step "
        "was skipped or whose gradient was not reduced, and go on from a checkpoint"
    )


__all__ = ["audit"]
