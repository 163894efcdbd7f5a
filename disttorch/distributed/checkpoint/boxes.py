"""Boxes of a tensor's indices: do they cover it, once; what do two have in common.

A box is (offsets, sizes), one number a dimension. A tensor without dimensions is one box of no
numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from .metadata import ChunkStorageMetadata

Region = tuple[list[int], list[int], list[int]]


def overlap(saved: ChunkStorageMetadata, wanted: ChunkStorageMetadata) -> Region | None:
    """What two boxes share: (offsets in saved, offsets in wanted, lengths); None for nothing."""
    in_saved, in_wanted, lengths = [], [], []
    for a, n, b, m in zip(saved.offsets, saved.sizes, wanted.offsets, wanted.sizes):
        start, end = max(a, b), min(a + n, b + m)
        if end <= start:
            return None
        in_saved.append(start - a)
        in_wanted.append(start - b)
        lengths.append(end - start)
    return in_saved, in_wanted, lengths


def problems(size: Sequence[int], chunks: Sequence[ChunkStorageMetadata]) -> list[str]:
    """What keeps boxes from covering a tensor of this shape exactly once; empty if they do."""
    found = []
    for chunk in chunks:
        inside = all(
            o >= 0 and n >= 0 and o + n <= s for o, n, s in zip(chunk.offsets, chunk.sizes, size)
        )
        if len(chunk.offsets) != len(size) or not inside:
            found.append(f"has out of bounds chunk: tensor-size:{tuple(size)} chunk: {_text(chunk)}")
    if found:
        return found
    for one, other in _overlapping(size, chunks):
        found.append(f"has overlapping chunks: {_text(one)} {_text(other)}")
    volume, covered = math.prod(size), sum(math.prod(c.sizes) for c in chunks)
    if volume != covered:
        found.append(f"invalid fill tensor-volume: {volume} chunks-volume: {covered}")
    return found


def _overlapping(
    size: Sequence[int], chunks: Sequence[ChunkStorageMetadata]
) -> list[tuple[ChunkStorageMetadata, ChunkStorageMetadata]]:
    """Pairs that share an element, by a sweep along the dimension with most starting points."""
    chunks = [c for c in chunks if math.prod(c.sizes)]
    if not len(size):
        return [(chunks[0], other) for other in chunks[1:]]
    dim = max(range(len(size)), key=lambda d: len({c.offsets[d] for c in chunks}))
    pairs: list[tuple[ChunkStorageMetadata, ChunkStorageMetadata]] = []
    active: list[ChunkStorageMetadata] = []
    for chunk in sorted(chunks, key=lambda c: c.offsets[dim]):
        start = chunk.offsets[dim]
        active = [other for other in active if other.offsets[dim] + other.sizes[dim] > start]
        pairs += [(other, chunk) for other in active if overlap(other, chunk) is not None]
        active.append(chunk)
    return pairs


def _text(chunk: ChunkStorageMetadata) -> str:
    return f"offsets {tuple(chunk.offsets)} sizes {tuple(chunk.sizes)}"


def slices_text(offsets: Sequence[int], sizes: Sequence[int]) -> str:
    """A box as it would be cut out: "[0:4,8:16]"."""
    return "[" + ",".join(f"{o}:{o + n}" for o, n in zip(offsets, sizes)) + "]"


__all__ = ["overlap", "problems", "slices_text"]
