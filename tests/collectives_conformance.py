"""What every backend must do, as functions of a group: calls x dtypes x sizes x layouts, scenarios.

Ranks never share data by accident: each rank's values come from its own random stream, and every
rank can compute all ranks' values to know the expected result.

Values are chosen so that exact results exist (small integers and binary fractions), so comparisons
are exact except for complex averages. Values of 16-bit types use all their bits: rounding after
every addition instead of once gives another sum.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from functools import lru_cache
from functools import reduce as fold

import ml_dtypes
import numpy as np
import pytest

from collectives import CollectiveError, CollectiveTimeout, Group, PremulSum, ReduceOp, tree

INTEGERS = [np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)]
HALVES = [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
FLOATS = [np.dtype(np.float32), np.dtype(np.float64)]
COMPLEX = [np.dtype(np.complex64), np.dtype(np.complex128)]
BOOL = np.dtype(bool)
DTYPES = [BOOL, *INTEGERS, *HALVES, *FLOATS, *COMPLEX]
LAYOUTS = ["contiguous", "strided", "transposed", "reversed"]
SIZES = {0: LAYOUTS, 1: LAYOUTS, 105: LAYOUTS, 20001: ["contiguous", "transposed"]}
CALLS = [
    "all_reduce",
    "reduce",
    "reduce_scatter",
    "broadcast",
    "all_gather",
    "all_to_all",
    "gather",
    "scatter",
    "send_recv",
]
REDUCING = CALLS[:3]


def ops_of(dtype: np.dtype) -> list[ReduceOp]:
    """The ops that have a meaning for a dtype."""
    ops = [ReduceOp.SUM, ReduceOp.PRODUCT]
    if dtype not in COMPLEX:
        ops += [ReduceOp.MIN, ReduceOp.MAX]
    if dtype == BOOL or dtype in INTEGERS:
        return [*ops, ReduceOp.BAND, ReduceOp.BOR, ReduceOp.BXOR]
    return [*ops, ReduceOp.AVG]


def values(rank: int, dtype: np.dtype, size: int, op: ReduceOp | None = None) -> np.ndarray:
    """Rank `rank`'s values, different on every rank."""
    return _values(rank, dtype, size, op is ReduceOp.PRODUCT)


@lru_cache(maxsize=128)  # every rank wants every rank's values
def _values(rank: int, dtype: np.dtype, size: int, factors: bool) -> np.ndarray:
    rng = np.random.default_rng([rank, size, DTYPES.index(dtype)])
    if dtype == BOOL:
        return rng.random(size) < 0.6
    if dtype in INTEGERS:
        # Four factors up to 3 fit into int8.
        top = 4 if factors else 31
        return rng.integers(0 if dtype.kind == "u" else 1 - top, top, size).astype(dtype)
    if factors:
        result = rng.choice([-1.5, -1.0, 0.5, 1.0, 1.5, 2.0], size)
    elif dtype in HALVES:
        bits = 11 if dtype == HALVES[0] else 8
        result = rng.integers(2 ** (bits - 1), 2**bits, size) * rng.choice([-1.0, 1.0], size)
    else:
        result = rng.integers(-512, 512, size) / 8
    if dtype in COMPLEX:
        return (result + 1j * rng.permutation(result)).astype(dtype)
    return result.astype(dtype)


def reduced(per_rank: list[np.ndarray], op: ReduceOp) -> np.ndarray:
    """The expected reduction, computed widely and rounded once."""
    dtype = per_rank[0].dtype
    wide = {"b": bool, "i": np.int64, "u": np.uint64, "c": np.complex128}.get(dtype.kind, float)
    arrays = [array.astype(wide) for array in per_rank]
    if op in (ReduceOp.SUM, ReduceOp.AVG):
        total = np.sum(arrays, axis=0) if wide is not bool else np.any(arrays, axis=0)
        if op is ReduceOp.AVG:
            # The quotient is taken in the reducing type (float32 for 16 bits), then rounded.
            total = total.astype(np.float32 if dtype in HALVES else dtype)
            total = total / total.dtype.type(len(arrays))
    else:
        function = {
            ReduceOp.PRODUCT: np.logical_and if wide is bool else np.multiply,
            ReduceOp.MIN: np.minimum,
            ReduceOp.MAX: np.maximum,
            ReduceOp.BAND: np.bitwise_and,
            ReduceOp.BOR: np.bitwise_or,
            ReduceOp.BXOR: np.bitwise_xor,
        }[op]
        total = fold(function, arrays)
    with np.errstate(over="ignore"):
        return total.astype(dtype)


class Laid:
    """Values in memory of a given layout, with a frame around them that must stay as it is."""

    def __init__(self, flat: np.ndarray, layout: str) -> None:
        size = flat.size
        rows = math.gcd(size, 3) if size else 3
        # uint8 memory of a fixed pattern; the array is a view of part of it.
        self._memory = np.full((2 * size + 8) * flat.itemsize, 0x41, np.uint8)
        cells = self._memory.view(flat.dtype)
        if layout == "contiguous":
            self.array = cells[4 : 4 + size]
        elif layout == "strided":
            self.array = cells[3 : 3 + 2 * size : 2][:size].reshape(rows, -1)
        elif layout == "transposed":
            self.array = cells[4 : 4 + size].reshape(-1, rows).T
        else:
            self.array = cells[4 : 4 + size][::-1]
        if not np.shares_memory(self.array, self._memory) and size:
            raise ValueError(f"layout {layout} made a copy")
        inside = np.zeros_like(self._memory)
        mark = inside.view(np.uint8)
        offset = self.array.__array_interface__["data"][0] - self._memory.ctypes.data
        index = np.full(self.array.shape, offset)
        for axis, stride in enumerate(self.array.strides):
            shape = [1] * self.array.ndim
            shape[axis] = -1
            index = index + (np.arange(self.array.shape[axis]) * stride).reshape(shape)
        for byte in range(flat.itemsize):
            mark[index.ravel() + byte] = 1
        self._frame = inside == 0
        self.array[...] = flat.reshape(self.array.shape)

    def check(self, expected: np.ndarray, exact: bool = True) -> None:
        assert self.array.dtype == expected.dtype
        got = self.array.reshape(-1)
        if expected.dtype == BOOL:  # a bool whose byte is 2 would pass for True
            got, expected = np.ascontiguousarray(got).view(np.uint8), expected.view(np.uint8)
        if exact:
            wrong = np.flatnonzero(got != expected)
        else:
            wrong = np.flatnonzero(~np.isclose(got, expected, rtol=1e-6, atol=1e-6))
        assert wrong.size == 0, (
            f"{wrong.size} of {got.size} elements differ, first at {wrong[0]}: "
            f"got {got[wrong[0]]}, expected {expected[wrong[0]]}"
        )
        assert (self._memory[self._frame] == 0x41).all(), "memory outside of the array was written"


def cases(call: str) -> Iterator[tuple[np.dtype, int, str, ReduceOp | None]]:
    for dtype in DTYPES:
        for size in SIZES:
            for layout in SIZES[size]:
                ops: list[ReduceOp | None] = [None]
                if call in REDUCING:
                    ops = list(ops_of(dtype))
                for op in ops:
                    yield dtype, size, layout, op


def check_call(group: Group, call: str) -> tuple[int, list[str], set[str]]:
    """Run all cases of one call; return their number, what failed, and the dtypes really used."""
    failures, used = [], set()
    for number, (dtype, size, layout, op) in enumerate(cases(call)):
        root = number % group.size
        asynchronous = number % 2 == 1
        used.add(values(0, dtype, 1).dtype.name)
        try:
            _CHECKS[call](group, dtype, size, layout, op, root, asynchronous)
        except AssertionError as error:
            failures.append(
                f"rank {group.rank} of {group.size}: {call} {dtype} size {size} {layout} {op} "
                f"root {root} async {asynchronous}: {error}"
            )
    return number + 1, failures, used


def _done(work: object, asynchronous: bool) -> None:
    assert (work is not None) == asynchronous
    if work is not None:
        assert work.wait() is True
        assert work.is_completed() and work.exception() is None


def _all_reduce(group, dtype, size, layout, op, root, asynchronous):
    mine = Laid(values(group.rank, dtype, size, op), layout)
    assert mine.array.dtype == dtype
    _done(group.all_reduce(mine.array, op, async_op=asynchronous), asynchronous)
    everyone = [values(rank, dtype, size, op) for rank in range(group.size)]
    mine.check(reduced(everyone, op), exact=dtype not in COMPLEX)


def _reduce(group, dtype, size, layout, op, root, asynchronous):
    mine = Laid(values(group.rank, dtype, size, op), layout)
    assert mine.array.dtype == dtype
    _done(group.reduce(mine.array, root, op, async_op=asynchronous), asynchronous)
    everyone = [values(rank, dtype, size, op) for rank in range(group.size)]
    expected = reduced(everyone, op) if group.rank == root else everyone[group.rank]
    mine.check(expected, exact=dtype not in COMPLEX)


def _reduce_scatter(group, dtype, size, layout, op, root, asynchronous):
    total = size * group.size
    out = Laid(np.zeros(size, dtype), layout)
    mine = Laid(values(group.rank, dtype, total, op), layout)
    assert out.array.dtype == dtype
    _done(group.reduce_scatter(out.array, mine.array, op, async_op=asynchronous), asynchronous)
    everyone = [values(rank, dtype, total, op) for rank in range(group.size)]
    part = slice(group.rank * size, (group.rank + 1) * size)
    out.check(reduced(everyone, op)[part], exact=dtype not in COMPLEX)
    mine.check(everyone[group.rank])


def _broadcast(group, dtype, size, layout, op, root, asynchronous):
    mine = Laid(values(group.rank, dtype, size), layout)
    assert mine.array.dtype == dtype
    _done(group.broadcast(mine.array, root, async_op=asynchronous), asynchronous)
    mine.check(values(root, dtype, size))


def _all_gather(group, dtype, size, layout, op, root, asynchronous):
    out = Laid(np.zeros(size * group.size, dtype), layout)
    mine = Laid(values(group.rank, dtype, size), layout)
    assert out.array.dtype == dtype
    _done(group.all_gather(out.array, mine.array, async_op=asynchronous), asynchronous)
    out.check(np.concatenate([values(rank, dtype, size) for rank in range(group.size)]))
    mine.check(values(group.rank, dtype, size))


def _all_to_all(group, dtype, size, layout, op, root, asynchronous):
    total = size * group.size
    out = Laid(np.zeros(total, dtype), layout)
    mine = Laid(values(group.rank, dtype, total), layout)
    assert out.array.dtype == dtype
    _done(group.all_to_all(out.array, mine.array, async_op=asynchronous), asynchronous)
    part = slice(group.rank * size, (group.rank + 1) * size)
    out.check(np.concatenate([values(rank, dtype, total)[part] for rank in range(group.size)]))
    mine.check(values(group.rank, dtype, total))


def _gather(group, dtype, size, layout, op, root, asynchronous):
    mine = Laid(values(group.rank, dtype, size), layout)
    assert mine.array.dtype == dtype
    out = Laid(np.zeros(size * group.size, dtype), layout) if group.rank == root else None
    work = group.gather(out and out.array, mine.array, root, async_op=asynchronous)
    _done(work, asynchronous)
    if out is not None:
        out.check(np.concatenate([values(rank, dtype, size) for rank in range(group.size)]))
    mine.check(values(group.rank, dtype, size))


def _scatter(group, dtype, size, layout, op, root, asynchronous):
    total = size * group.size
    out = Laid(np.zeros(size, dtype), layout)
    assert out.array.dtype == dtype
    whole = Laid(values(root, dtype, total), layout) if group.rank == root else None
    work = group.scatter(out.array, whole and whole.array, root, async_op=asynchronous)
    _done(work, asynchronous)
    out.check(values(root, dtype, total)[group.rank * size : (group.rank + 1) * size])


def _send_recv(group, dtype, size, layout, op, root, asynchronous):
    if group.size == 1:
        return
    following, before = (group.rank + 1) % group.size, (group.rank - 1) % group.size
    mine = Laid(values(group.rank, dtype, size), layout)
    other = Laid(np.zeros(size, dtype), layout)
    assert other.array.dtype == dtype
    if asynchronous:
        arriving = group.irecv(other.array, before, tag=7)
        leaving = group.isend(mine.array, following, tag=7)
        assert arriving.wait() and leaving.wait()
        assert arriving.source == before
    else:
        # Around the ring: someone must receive first.
        if group.rank == 0:
            group.send(mine.array, following)
            assert group.recv(other.array, before) == before
        else:
            assert group.recv(other.array, None) == before
            group.send(mine.array, following)
    other.check(values(before, dtype, size))
    mine.check(values(group.rank, dtype, size))


_CHECKS: dict[str, Callable] = {
    "all_reduce": _all_reduce,
    "reduce": _reduce,
    "reduce_scatter": _reduce_scatter,
    "broadcast": _broadcast,
    "all_gather": _all_gather,
    "all_to_all": _all_to_all,
    "gather": _gather,
    "scatter": _scatter,
    "send_recv": _send_recv,
}


# ---- scenarios ---------------------------------------------------------------------------------


def several_outstanding(group: Group) -> None:
    """Many operations under way, a synchronous one among them, waited for from last to first."""
    arrays = [np.full(1000 + i, float(group.rank * 100 + i)) for i in range(12)]
    works = [group.all_reduce(array, async_op=True) for array in arrays]
    now = np.array([group.rank + 1])
    group.all_reduce(now)  # must neither overtake nor be overtaken
    assert now[0] == group.size * (group.size + 1) // 2
    source = np.full(3, group.rank, np.int16)
    out = np.empty(3 * group.size, np.int16)
    works.append(group.all_gather(out, source, async_op=True))
    for work in reversed(works):
        assert work.wait()
    ranks = range(group.size)
    for i, array in enumerate(arrays):
        assert (array == sum(rank * 100 + i for rank in ranks)).all()
    assert out.tolist() == np.repeat(np.arange(group.size), 3).tolist()


def wait_with_timeout(group: Group) -> None:
    """A barrier is not complete before the last rank comes; a wait that timed out may go on."""
    if group.size == 1:
        assert group.barrier(async_op=True).wait(5)
        return
    go = np.zeros(1, np.uint8)
    last = group.size - 1
    if group.rank == last:
        group.recv(go, 0)
        group.barrier()
        return
    work = group.barrier(async_op=True)
    if group.rank == 0:
        with pytest.raises(TimeoutError, match="barrier is not complete after 0.05 seconds"):
            work.wait(0.05)
        assert not work.is_completed() and work.exception() is None
        group.send(go, last)
    assert work.wait() and work.is_completed()


def receive_with_timeout(group: Group) -> None:
    if group.size == 1:
        return
    array = np.zeros(4, np.float32)
    if group.rank == 0:
        work = group.irecv(array.reshape(2, 2).T, 1, tag=3)
        assert not work.is_completed()
        with pytest.raises(TimeoutError, match="recv is not complete"):
            work.wait(0.02)
        group.send(np.ones(1), 1)
        assert work.wait(60)
        assert array.tolist() == [1, 3, 2, 4]
    if group.rank == 1:
        group.recv(np.empty(1), 0)
        group.send(np.array([1, 2, 3, 4], np.float32), 0, tag=3)


def messages_keep_their_order_and_tags(group: Group) -> None:
    if group.size == 1:
        return
    if group.rank == 0:
        works = [group.isend(np.array([10 * tag + i]), 1, tag) for i in range(3) for tag in (1, 2)]
        for work in works:
            work.wait()
    if group.rank == 1:
        received = {}
        works = []
        for tag in (2, 1):
            for i in range(3):
                received[tag, i] = np.zeros(1, int)
                works.append(group.irecv(received[tag, i], 0, tag))
        for work in reversed(works):
            work.wait()
        assert all(received[tag, i][0] == 10 * tag + i for tag, i in received)


def message_of_another_size(group: Group) -> None:
    if group.size == 1:
        return
    if group.rank == 0:
        group.send(np.ones(3), 1)
    if group.rank == 1:
        with pytest.raises(ValueError, match="rank 0 sent"):
            group.recv(np.zeros(5), 0)


def splitting(group: Group) -> None:
    """Halves by parity, in reversed order; both work at once; a rank may stay out."""
    half = group.split(group.rank % 2, key=-group.rank)
    mates = [rank for rank in reversed(range(group.size)) if rank % 2 == group.rank % 2]
    assert (half.size, half.rank) == (len(mates), mates.index(group.rank))
    assert half.name.startswith(f"{group.name}/")
    assert len(set(half.all_gather_object(half.name))) == 1
    assert half.members == tuple(group.members[rank] for rank in mates)
    work = half.all_reduce(array := np.array([2**group.rank]), async_op=True)
    total = np.array([1])
    group.all_reduce(total)
    work.wait()
    assert array[0] == sum(2**rank for rank in mates) and total[0] == group.size
    assert half.all_gather_object(group.rank) == mates
    if half.size > 1:
        nested = half.split(0)
        assert nested.all_gather_object(group.rank) == mates
    half.close()
    if group.size > 1 and hasattr(group, "way"):
        with pytest.raises(CollectiveError, match="cannot be used any more: it was closed"):
            half.barrier()
    alone = group.split(0 if group.rank == group.size - 1 else None)
    if group.rank == group.size - 1:
        assert (alone.size, alone.rank) == (1, 0)
        alone.all_reduce(array)
    else:
        assert alone is None


def groups_made_by_their_ranks(group: Group) -> None:
    """Only the new group's ranks call; two of the same ranks stay apart."""
    ranks = [rank for rank in reversed(range(group.size)) if rank != 1] or [0]
    if group.rank in ranks:
        first, second = group.subset(ranks, "first"), group.subset(ranks, "second")
        assert (first.size, first.rank) == (len(ranks), ranks.index(group.rank))
        assert first.members == tuple(group.members[rank] for rank in ranks)
        work = second.all_reduce(later := np.array([1.0]), async_op=True)
        assert first.all_gather_object(group.rank) == ranks
        work.wait()
        assert later[0] == len(ranks)
    with pytest.raises(ValueError, match="hold this one"):
        group.subset([(group.rank + 1) % group.size] if group.size > 1 else [], "wrong")


def objects(group: Group) -> None:
    mine = {"rank": group.rank, "text": "x" * 1000 * group.rank, "array": np.arange(group.rank)}
    everyone = group.all_gather_object(mine)
    for rank, value in enumerate(everyone):
        assert value["rank"] == rank and len(value["text"]) == 1000 * rank
        assert value["array"].tolist() == list(range(rank))
    root = group.size - 1
    assert group.broadcast_object(("from", group.rank), root) == ("from", root)
    assert group.broadcast_object(None if group.rank else [1, 2]) == [1, 2]
    gathered = group.gather_object(mine["text"], root)
    assert (gathered is None) == (group.rank != root)
    assert gathered is None or [len(text) for text in gathered] == [1000 * r for r in range(group.size)]
    wishes = [{"for": rank} for rank in range(group.size)] if group.rank == root else None
    assert group.scatter_object(wishes, root) == {"for": group.rank}
    with pytest.raises(ValueError, match="scatter_object: root 0 needs"):
        if group.rank == 0:
            group.scatter_object([0] * (group.size + 1), 0)
        else:
            raise ValueError("scatter_object: root 0 needs what it has not")
    if group.size > 1:
        following, before = (group.rank + 1) % group.size, (group.rank - 1) % group.size
        if group.rank == 0:
            group.send_object(mine, following)
            assert group.recv_object(None)[1] == before
        else:
            assert group.recv_object(before)[0]["rank"] == before
            group.send_object(mine, following)


def unequal_parts(group: Group) -> None:
    """Parts of 0, 1, 2, … and of many thousand elements; the ranks' counts may be anything."""
    n, rank = group.size, group.rank
    for scale, dtype in ((1, np.float64), (7001, np.float32), (3, np.bool_)):
        counts = [scale * (r % 3) for r in range(n)]
        ends = np.cumsum([0, *counts])
        everyone = [values(r, np.dtype(dtype), counts[r]) for r in range(n)]
        out = np.zeros(ends[-1], dtype)
        group.all_gather(out, everyone[rank], counts=counts)
        assert (out == np.concatenate(everyone)).all()
        root = n // 2
        out = np.zeros(ends[-1], dtype) if rank == root else None
        group.gather(out, everyone[rank], root, counts=counts)
        assert out is None or (out == np.concatenate(everyone)).all()
        mine = np.zeros(counts[rank], dtype)
        group.scatter(mine, np.concatenate(everyone) if rank == root else None, root, counts=counts)
        assert (mine == everyone[rank]).all()
        whole = [values(r, np.dtype(dtype), int(ends[-1])) for r in range(n)]
        group.reduce_scatter(mine, whole[rank], ReduceOp.SUM, counts=counts)
        assert (mine == reduced(whole, ReduceOp.SUM)[ends[rank] : ends[rank + 1]]).all()
        # Rank r sends r + p parts to rank p.
        sends = [scale * ((rank + p) % 4) for p in range(n)]
        takes = [scale * ((p + rank) % 4) for p in range(n)]
        source = np.concatenate([np.full(c, rank * n + p) for p, c in enumerate(sends)]).astype(dtype)
        target = np.zeros(sum(takes), dtype)
        group.all_to_all(target, source, out_counts=takes, in_counts=sends)
        expected = [np.full(c, p * n + rank) for p, c in enumerate(takes)]
        assert (target == np.concatenate(expected).astype(dtype)).all()
    with pytest.raises(ValueError, match="add up to"):
        group.all_gather(np.zeros(3 * n), np.zeros(3), counts=[2] * n)
    with pytest.raises(ValueError, match=r"counts of at least 0, one per rank, got \[-1"):
        group.all_gather(np.zeros(3 * n), np.zeros(3), counts=[-1] * n)
    with pytest.raises(ValueError, match="both out_counts and in_counts"):
        group.all_to_all(np.zeros(n), np.zeros(n), out_counts=[1] * n)


def multiplied_before_summing(group: Group) -> None:
    op = PremulSum(0.5 if group.rank == 0 else 0.5)
    total = sum(range(1, group.size + 1)) / 2
    for dtype in (np.float32, np.float16, np.complex64):
        mine = np.full(5, group.rank + 1, dtype)
        group.all_reduce(mine, op)
        assert (mine == total).all()
        mine = np.full(5, group.rank + 1, dtype)
        group.reduce(mine, 0, op)
        assert (mine == (total if group.rank == 0 else group.rank + 1)).all()
        mine, out = np.full(2 * group.size, group.rank + 1, dtype), np.zeros(2, dtype)
        group.reduce_scatter(out, mine, op)
        assert (out == total).all() and (mine == group.rank + 1).all()
    with pytest.raises(TypeError, match=r"PREMUL_SUM\(0.5\) needs a floating"):
        group.all_reduce(np.ones(2, np.int32), op)


def _where_order_matters(rank: int, size: int) -> np.ndarray:
    rng = np.random.default_rng(rank)
    return (rng.standard_normal(size) * 10.0 ** rng.integers(-4, 5, size)).astype(np.float32)


def same_bits_every_time(group: Group) -> None:
    """Deterministic reductions are those of the tree over the ranks, of any size and call."""
    group.deterministic = True
    for size in (1, 1000, 70001, 300000):
        everyone = [_where_order_matters(rank, size) for rank in range(group.size)]
        expected = tree.fold(everyone, np.add)
        mine = everyone[group.rank].copy()
        group.all_reduce(mine)
        assert (mine == expected).all()
        mine = everyone[group.rank].copy()
        group.reduce(mine, group.size - 1)
        if group.rank == group.size - 1:
            assert (mine == expected).all()
        part = size // group.size
        out = np.zeros(part, np.float32)
        group.reduce_scatter(out, everyone[group.rank][: part * group.size])
        assert (out == expected[group.rank * part : (group.rank + 1) * part]).all()
    group.deterministic = False


def virtual_shards(group: Group) -> None:
    """The sum of V shards has the same bits on any number of ranks that divides V."""
    for total in (12, 24):
        shards = [_where_order_matters(v, 501).reshape(3, 167) for v in range(total)]
        each = total // group.size
        mine = shards[group.rank * each : (group.rank + 1) * each]
        result = group.tree_all_reduce(mine, total)
        expected = tree.fold([shard.reshape(-1) for shard in shards], np.add).reshape(3, 167)
        assert result.shape == (3, 167) and (result == expected).all()
        assert (result != sum(shards[1:], shards[0])).any()  # else the order would not show
    with pytest.raises(ValueError, match="shards given, but each of"):
        group.tree_all_reduce([np.zeros(2)] * 13, 12)


def several_threads(group: Group) -> None:
    """Threads of one rank, each with a group of its own, in any order between them; and two threads
    that wait for works of one group."""
    n, rank = group.size, group.rank
    parts = [group.split(0) for _ in range(3)]
    errors: list[BaseException] = []

    def use(part: Group, seed: int) -> None:
        rng = np.random.default_rng(seed)  # the same on all ranks
        try:
            for turn in range(40):
                size = int(rng.integers(1, 5000))
                array = np.full(size, rank + turn, np.float64)
                work = part.all_reduce(array, async_op=bool(rng.integers(2)))
                out = np.empty(n, np.int64)
                part.all_gather(out, np.array([rank * turn]))
                if work is not None:
                    work.wait()
                assert (array == n * (n - 1) / 2 + n * turn).all()
                assert out.tolist() == [r * turn for r in range(n)]
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=use, args=(part, i)) for i, part in enumerate(parts)]
    arrays = [np.full(1000, float(rank + i)) for i in range(20)]
    works = [group.all_reduce(array, async_op=True) for array in arrays]
    threads += [threading.Thread(target=lambda w=w: w.wait()) for w in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    assert all((a == n * (n - 1) / 2 + n * i).all() for i, a in enumerate(arrays))


def absent_rank_is_named(group: Group) -> None:
    """A barrier with a time limit names who did not come."""
    group.monitored_barrier(30)
    if group.size == 1:
        return
    trial = group.split(0)
    last = trial.size - 1
    if group.rank != last:
        said = f"monitored_barrier.* rank {last} has not come"
        with pytest.raises(CollectiveTimeout, match=said) as caught:
            trial.monitored_barrier(0.3)
        assert caught.value.missing == [group.members[last]]
    group.barrier()


def input_inside_output(group: Group) -> None:
    """A rank's part of the output may be its input, as sharded parameters need it."""
    out = np.zeros(4 * group.size, np.float32)
    mine = out[4 * group.rank : 4 * (group.rank + 1)]
    mine[...] = group.rank + 1
    group.all_gather(out, mine)
    assert out.tolist() == np.repeat(np.arange(1.0, group.size + 1), 4).tolist()
    whole = np.arange(2 * group.size, dtype=float) * (group.rank + 1)
    group.reduce_scatter(whole[:2], whole)
    factor = group.size * (group.size + 1) / 2
    assert whole[:2].tolist() == [2 * group.rank * factor, (2 * group.rank + 1) * factor]


def scalars_and_shapes(group: Group) -> None:
    scalar = np.array(group.rank + 1.0, np.float32)
    group.all_reduce(scalar, ReduceOp.MAX)
    assert scalar.shape == () and scalar == group.size
    rows = np.empty((group.size, 2, 3), np.int8)
    group.all_gather(rows, np.full((2, 3), group.rank, np.int8))
    assert (rows == np.arange(group.size).reshape(-1, 1, 1)).all()


def overflow_is_a_value(group: Group) -> None:
    """Beyond its range a 16-bit sum is inf, without a warning."""
    array = np.array([60000.0], np.float16)
    group.all_reduce(array)
    assert array[0] == (np.inf if group.size > 1 else 60000)


def refusals(group: Group) -> None:
    """Bad arguments raise before anything is sent, so the group stays usable."""
    n, good = group.size, np.zeros(4, np.float32)
    frozen = np.zeros(2)
    frozen.flags.writeable = False

    def refuse(error: type[Exception], text: str, call: Callable, *arguments: object) -> None:
        with pytest.raises(error, match=text):
            call(*arguments)

    refuse(ValueError, rf"root must be a rank of group .* 0 to {n - 1}, got {n}",
           group.broadcast, good, n)
    refuse(ValueError, "got -1", group.reduce, good, -1)
    refuse(TypeError, "True", group.broadcast, good, True)
    refuse(ValueError, r"read-only", group.all_reduce, frozen)
    refuse(TypeError, "got list", group.all_reduce, [1.0])
    refuse(TypeError, "got float", group.all_reduce, 1.0)
    for dtype in ("O", "U3", "M8[s]", ">f4", np.longdouble, "i4,f4"):
        refuse(TypeError, "cannot be sent", group.all_reduce, np.zeros(2, dtype))
    refuse(TypeError, "BAND needs an integer", group.all_reduce, good, ReduceOp.BAND)
    refuse(TypeError, "MAX needs values with an order", group.all_reduce,
           np.zeros(2, np.complex64), ReduceOp.MAX)
    for dtype in (bool, np.int32):
        refuse(TypeError, "AVG needs a floating", group.all_reduce, np.zeros(2, dtype),
               ReduceOp.AVG)
    refuse(TypeError, "op must be a ReduceOp, got 'sum'", group.all_reduce, good, "sum")
    refuse(ValueError, rf"{n} x 4 = {4 * n} are needed", group.all_gather,
           np.zeros(4 * n + 1, np.float32), good)
    refuse(TypeError, "out has dtype float64, the input has float32", group.all_gather,
           np.zeros(4 * n), good)
    refuse(ValueError, "are needed", group.reduce_scatter, good, np.zeros(4 * n + 1, np.float32))
    refuse(ValueError, "itself", group.send, good, group.rank)
    refuse(ValueError, "itself", group.irecv, good, group.rank)
    refuse(ValueError, f"got {n}", group.isend, good, n)
    refuse(ValueError, "color must be None or at least 0, got -2", group.split, -2)
    if n > 1:
        refuse(ValueError, "do not divide", group.all_to_all, np.zeros(n + 1), np.zeros(n + 1))
        refuse(ValueError, "tag must be", group.send, good, (group.rank + 1) % n, -1)
        if group.rank == 0:
            refuse(ValueError, "is needed on the root", group.gather, None, good, 0)
        else:
            refuse(ValueError, "must be None except on the root", group.gather, good, good, 0)
    one = np.ones(1)
    group.all_reduce(one)
    assert one[0] == n


def byte_ledger(group: Group) -> None:
    n = group.size
    group.reset_ledger()
    assert group.ledger() == {}
    group.all_reduce(np.zeros(100, np.float32))
    group.all_reduce(np.zeros(50, np.float16), async_op=True).wait()
    group.all_gather(np.zeros(8 * n), np.zeros(8))
    group.broadcast(np.zeros(10, np.int8), 0)
    group.barrier()
    ledger = group.ledger()
    figures = {
        "calls": 2,
        "payload_bytes": 500,  # 100 x 4 + 50 x 2
        "transport_bytes": 600,  # float16 travels as float32
        "lower_bound_bytes": pytest.approx(2 * 500 * (n - 1) / n),
    }
    assert ledger["all_reduce"] == ledger["all_reduce"] | figures
    assert ledger["all_reduce"]["seconds"] > 0
    assert ledger["all_gather"]["payload_bytes"] == 64 * n
    assert ledger["all_gather"]["lower_bound_bytes"] == pytest.approx(64 * (n - 1))
    assert ledger["broadcast"]["lower_bound_bytes"] == pytest.approx(10 * (n - 1) / n)
    assert ledger["barrier"]["calls"] == 1 and ledger["barrier"]["payload_bytes"] == 0
    if n > 1:
        following, before = (group.rank + 1) % n, (group.rank - 1) % n
        work = group.isend(np.zeros(3), following)
        group.recv(np.zeros(3), before)
        work.wait()
        assert group.ledger()["send"]["lower_bound_bytes"] == 24
        assert group.ledger()["recv"]["payload_bytes"] == 24
        assert group.ledger()["recv"]["lower_bound_bytes"] == 0
    group.reset_ledger()
    assert group.ledger() == {}


def what_really_moved(group: Group) -> None:
    """No algorithm here moves more than it must, by all ranks' counts; native calls are not seen."""
    n = group.size
    if n == 1 or not hasattr(group, "way"):
        return
    ways = {type(group.way(call, 1 << 20)).__name__ for call in ("all_reduce", "all_gather")}
    group.reset_ledger()
    size = 60 * 1024 * n
    group.all_reduce(np.zeros(size, np.float32))
    group.all_gather(np.zeros(size, np.float32), np.zeros(size // n, np.float32))
    group.reduce_scatter(np.zeros(size // n, np.float32), np.zeros(size, np.float32))
    group.all_to_all(np.zeros(size, np.float32), np.zeros(size, np.float32))
    for call, figures in group.ledger().items():
        most = max(figures["received_bytes"], figures["sent_bytes"])
        mean = np.array([most])
        group.all_reduce(mean)
        if ways == {"NativeMPI"}:
            assert 0 <= mean[0] / n < 10_000  # the fingerprints
        elif ways == {"Hierarchy"}:  # bytes inside a node come on top
            assert figures["lower_bound_bytes"] <= mean[0] / n
        else:
            assert mean[0] / n == pytest.approx(figures["lower_bound_bytes"], rel=0.01), call


SCENARIOS: list[Callable[[Group], None]] = [
    several_outstanding,
    wait_with_timeout,
    receive_with_timeout,
    messages_keep_their_order_and_tags,
    splitting,
    groups_made_by_their_ranks,
    objects,
    input_inside_output,
    scalars_and_shapes,
    overflow_is_a_value,
    refusals,
    byte_ledger,
    message_of_another_size,
    unequal_parts,
    multiplied_before_summing,
    same_bits_every_time,
    virtual_shards,
    several_threads,
    what_really_moved,
    absent_rank_is_named,
]
