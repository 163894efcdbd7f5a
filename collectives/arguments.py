"""Checks of a call's arguments, before anything is sent. Each raises with the values in the text."""

from __future__ import annotations

import operator
import zlib
from collections.abc import Sequence
from typing import Any

from .buffers import Array


def member(rank: int, size: int, group: str, what: str) -> int:
    """`rank` as an index; ValueError outside the group, TypeError for what is no rank."""
    if isinstance(rank, bool):
        raise TypeError(f"{what} must be a rank, got {rank}")
    index = operator.index(rank)
    if not 0 <= index < size:
        raise ValueError(f"{what} must be a rank of group {group!r}, 0 to {size - 1}, got {rank}")
    return index


def tag(value: int, largest: int) -> int:
    """A message's tag; ValueError outside 0 to `largest`."""
    index = operator.index(value)
    if not 0 <= index <= largest:
        raise ValueError(f"tag must be from 0 to {largest}, got {value}")
    return index


def only_on_root(array: Array | None, what: str, root: int, rank: int) -> None:
    """ValueError where an array that only the root has is missing there, or given elsewhere."""
    if (array is not None) != (rank == root):
        needed = "is needed on the root" if array is None else "must be None except on the root"
        raise ValueError(f"{what} {needed} (root {root}, this is rank {rank})")


def divides(array: Array, size: int, call: str) -> None:
    """ValueError where an array cannot be cut into equal parts for all ranks."""
    if array.size % size:
        raise ValueError(
            f"{call}: {array.size} elements of shape {tuple(array.shape)} do not divide into "
            f"{size} equal parts"
        )


def counts(values: Sequence[int], size: int, whole: Array | None, what: str) -> tuple[int, ...]:
    """The elements of each rank's part, checked against the array that holds all parts.

    Raises:
        ValueError: not one count for each rank, a negative one, or a sum that is not the array's
            size.
    """
    parts = tuple(operator.index(value) for value in values)
    if len(parts) != size or min(parts) < 0:
        raise ValueError(f"{what} must be {size} counts of at least 0, one per rank, got {list(parts)}")
    if whole is not None and sum(parts) != whole.size:
        raise ValueError(
            f"{what} {list(parts)} add up to {sum(parts)}, but the array of shape "
            f"{tuple(whole.shape)} has {whole.size} elements"
        )
    return parts


def part(parts: Sequence[int], rank: int, array: Array, what: str) -> None:
    """ValueError where this rank's array has not the size that the counts give it."""
    if array.size != parts[rank]:
        raise ValueError(
            f"{what} of shape {tuple(array.shape)} has {array.size} elements on rank {rank}, but "
            f"counts {list(parts)} say {parts[rank]}"
        )


def digest(parts: Sequence[int] | None) -> int:
    """An integer that tells lists of counts apart, the same in every process."""
    return 0 if parts is None else zlib.crc32(repr(tuple(parts)).encode()) + 1


def same_dtype(out: Array, array: Any, call: str) -> None:
    """TypeError where an output has not the dtype of its input."""
    if out.dtype != array.dtype:
        raise TypeError(f"{call}: out has dtype {out.dtype}, the input has {array.dtype}")


def shards(
    arrays: Sequence[Array], total: int, size: int, nodes: int | None = None
) -> list[Array]:
    """This rank's virtual shards, flat and contiguous.

    Args:
        nodes: how many arrays to expect where they are folded already.

    Raises:
        ValueError: `total` is no multiple of `size`; not total / size arrays; different shapes.
        TypeError: different dtypes.
    """
    if total < 1 or total % size:
        raise ValueError(f"tree_all_reduce: {total} shards do not divide over {size} ranks")
    if nodes is not None and len(arrays) != nodes:
        raise ValueError(
            f"tree_all_reduce: {len(arrays)} nodes given, but this rank's frontier has {nodes}"
        )
    if nodes is None and len(arrays) != total // size:
        raise ValueError(
            f"tree_all_reduce: {len(arrays)} shards given, but each of {size} ranks holds "
            f"{total // size} of {total}"
        )
    first = arrays[0]
    for array in arrays:
        same_dtype(array, first, "tree_all_reduce")
        if array.shape != first.shape:
            raise ValueError(
                f"tree_all_reduce: shards of shapes {tuple(first.shape)} and {tuple(array.shape)}"
            )
    return [array.reshape(-1) for array in arrays]
