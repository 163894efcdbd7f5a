"""The calls of a group on flat buffers in GPU memory, as NCCL's operations.

| call | NCCL |
|---|---|
| all_reduce, reduce, broadcast | the same |
| all_gather, reduce_scatter | the same; of unequal parts: one group of broadcasts, of reduces |
| gather, scatter, all_to_all | one group of sends and receives |

16-bit floats are reduced as they are, bool as bytes; complex sums as pairs of reals. What NCCL
cannot reduce (products of complex values, bitwise ops) and reductions in deterministic mode are
exchanged first and then folded by this rank's GPU, in the tree by rank order (`tree`).
Buffers in host memory go over the control group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from .. import check
from ..backend import Backend, Counts
from ..buffers import COMPLEX, UFUNCS, Array, PremulSum, ReduceOp, name_of
from ..call import Call
from .binding import OPS, TYPES, Binding

Issue = Callable[[], None]
_REAL = {"complex64": np.dtype(np.float32), "complex128": np.dtype(np.float64)}


class NcclCalls(Backend):
    """Mixed into `NCCLGroup`, whose attributes it uses."""

    rank: int
    size: int
    members: tuple[int, ...]
    deterministic: bool
    _binding: Binding
    _control: Any
    _gpu: Any
    _main: Any  # the lane of collectives
    _enqueue: Callable[..., None]

    # ---- reductions ---------------------------------------------------------------------------

    def _all_reduce(self, call: Call, buffer: Array, op: ReduceOp) -> None:
        if isinstance(buffer, np.ndarray):
            self._control._all_reduce(call, buffer, op)
        elif self._reduces(buffer, op):
            reals, lane = _reals(buffer), self._main
            with self._op(op, reals) as number:
                self._enqueue(call, lane, [lambda: self._binding.all_reduce(
                    lane.comm, self._at(reals), self._at(reals), reals.size, _type(reals), number,
                    lane.address)])  # fmt: skip
        elif buffer.size:
            counts = _shares(buffer.size, self.size)
            part = self._gpu.empty(counts[self.rank], buffer.dtype)
            self._fold(call, part, buffer, op, counts)
            self._all_gather(call, buffer, part, counts)

    def _reduce(self, call: Call, buffer: Array, op: ReduceOp, root: int) -> None:
        if isinstance(buffer, np.ndarray):
            self._control._reduce(call, buffer, op, root)
        elif self._reduces(buffer, op):
            reals, lane = _reals(buffer), self._main
            with self._op(op, reals) as number:
                self._enqueue(call, lane, [lambda: self._binding.reduce(
                    lane.comm, self._at(reals), self._at(reals), reals.size, _type(reals), number,
                    root, lane.address)])  # fmt: skip
        else:
            counts = [buffer.size if rank == root else 0 for rank in range(self.size)]
            self._fold(call, buffer if self.rank == root else buffer[:0], buffer, op, counts)

    def _reduce_scatter(
        self, call: Call, out: Array, buffer: Array, op: ReduceOp, counts: Counts
    ) -> None:
        if isinstance(buffer, np.ndarray):
            self._control._reduce_scatter(call, out, buffer, op, counts)
            return
        if not self._reduces(buffer, op):
            self._fold(call, out, buffer, op, self._counts(counts, buffer))
            return
        lane, source, target = self._main, _reals(buffer), _reals(out)
        scale, kind, binding = source.size // max(buffer.size, 1), _type(source), self._binding
        with self._op(op, source) as number:
            if counts is None:
                issues = [lambda: binding.reduce_scatter(
                    lane.comm, self._at(source), self._at(target), target.size, kind, number,
                    lane.address)]  # fmt: skip
            else:
                parts = self._cut(source, [count * scale for count in counts])

                def reduce(r: int, part: Array) -> None:
                    binding.reduce(
                        lane.comm, self._at(part), self._at(target if r == self.rank else part),
                        part.size, kind, number, r, lane.address)  # fmt: skip

                issues = [partial(reduce, r, part) for r, part in enumerate(parts) if part.size]
            self._enqueue(call, lane, issues)

    def _reduces(self, buffer: Array, op: ReduceOp) -> bool:
        """Whether NCCL can do this reduction, and in this mode may."""
        ordered = self._binding.ordered and name_of(buffer.dtype) not in COMPLEX
        if self.deterministic and not ordered and op is not ReduceOp.MIN and op is not ReduceOp.MAX:
            return False
        if name_of(buffer.dtype) in COMPLEX:
            return op in (ReduceOp.SUM, ReduceOp.AVG)
        return isinstance(op, PremulSum) or (op in OPS and name_of(buffer.dtype) in TYPES)

    def _op(self, op: ReduceOp, buffer: Array) -> _Op:
        return _Op(self._binding, self._main.comm, op, buffer)

    def _fold(
        self, call: Call, out: Array, buffer: Array, op: ReduceOp, counts: Sequence[int]
    ) -> None:
        """`out` becomes this rank's part of the reduction of all buffers, in the tree by rank."""
        received = self._gpu.empty(out.size * self.size, buffer.dtype)
        self._exchange(call, received, buffer, [out.size] * self.size, counts)
        parts = self._cut(received, [out.size] * self.size)
        while len(parts) > 1:  # neighbours are combined, an odd one out is carried up
            pairs = [UFUNCS[op](a, b) for a, b in zip(parts[::2], parts[1::2])]
            parts = pairs + parts[2 * len(pairs) :]
        if out.size:
            out[...] = parts[0]

    # ---- moves --------------------------------------------------------------------------------

    def _broadcast(self, call: Call, buffer: Array, root: int) -> None:
        if isinstance(buffer, np.ndarray):
            self._control._broadcast(call, buffer, root)
            return
        lane, (kind, scale) = self._main, _movable(buffer)
        self._enqueue(call, lane, [lambda: self._binding.broadcast(
            lane.comm, self._at(buffer), self._at(buffer), buffer.size * scale, kind, root,
            lane.address)])  # fmt: skip

    def _all_gather(self, call: Call, out: Array, buffer: Array, counts: Counts) -> None:
        if isinstance(out, np.ndarray):
            self._control._all_gather(call, out, buffer, counts)
            return
        lane, binding, (kind, scale) = self._main, self._binding, _movable(buffer)
        if counts is None:
            issues = [lambda: binding.all_gather(
                lane.comm, self._at(buffer), self._at(out), buffer.size * scale, kind,
                lane.address)]  # fmt: skip
        else:
            def broadcast(r: int, part: Array) -> None:
                binding.broadcast(
                    lane.comm, self._at(buffer if r == self.rank else part), self._at(part),
                    part.size * scale, kind, r, lane.address)  # fmt: skip

            parts = self._cut(out, counts)
            issues = [partial(broadcast, r, part) for r, part in enumerate(parts) if part.size]
        self._enqueue(call, lane, issues)

    def _all_to_all(
        self, call: Call, out: Array, buffer: Array, out_counts: Counts, in_counts: Counts
    ) -> None:
        if isinstance(out, np.ndarray):
            self._control._all_to_all(call, out, buffer, out_counts, in_counts)
            return
        if out_counts is not None and in_counts is not None:
            self._check_fits(call, out_counts, in_counts)
        self._exchange(
            call, out, buffer, self._counts(out_counts, out), self._counts(in_counts, buffer)
        )

    def _check_fits(self, call: Call, expected: Sequence[int], sent: Sequence[int]) -> None:
        """Raise on every rank where one expects another count than is sent to it."""
        mine = np.array([*sent, *expected], np.int64)
        table = np.empty(mine.size * self.size, np.int64)
        self._control._all_gather(call.step("counts", "int64", table.size), table, mine, None)
        rows = table.reshape(self.size, 2, self.size).tolist()
        check.fits(call, self.members, [row[0] for row in rows], [row[1] for row in rows])

    def _exchange(
        self, call: Call, out: Array, buffer: Array, outs: Sequence[int], ins: Sequence[int]
    ) -> None:
        targets, sources = self._cut(out, outs), self._cut(buffer, ins)
        if sources[self.rank].size:
            targets[self.rank][...] = sources[self.rank]
        others = [rank for rank in range(self.size) if rank != self.rank]
        self._transfer(
            call,
            [(sources[rank], rank) for rank in others],
            [(targets[rank], rank) for rank in others],
        )

    def _gather(
        self, call: Call, out: Array | None, buffer: Array, root: int, counts: Counts
    ) -> None:
        if isinstance(buffer, np.ndarray):
            self._control._gather(call, out, buffer, root, counts)
        elif out is None:
            self._transfer(call, [(buffer, root)], [])
        else:
            parts = self._cut(out, self._counts(counts, out))
            if buffer.size:
                parts[root][...] = buffer
            self._transfer(call, [], [(p, rank) for rank, p in enumerate(parts) if rank != root])

    def _scatter(
        self, call: Call, out: Array, buffer: Array | None, root: int, counts: Counts
    ) -> None:
        if isinstance(out, np.ndarray):
            self._control._scatter(call, out, buffer, root, counts)
        elif buffer is None:
            self._transfer(call, [], [(out, root)])
        else:
            parts = self._cut(buffer, self._counts(counts, buffer))
            if out.size:
                out[...] = parts[root]
            self._transfer(call, [(p, rank) for rank, p in enumerate(parts) if rank != root], [])

    def _transfer(
        self, call: Call, sends: Sequence[tuple[Array, int]], receives: Sequence[tuple[Array, int]]
    ) -> None:
        """One group of sends and receives on the lane of collectives."""
        binding, lane = self._binding, self._main
        issues: list[Issue] = []

        def move(function: Callable[..., None], part: Array, peer: int) -> None:
            kind, scale = _movable(part)
            function(lane.comm, self._at(part), part.size * scale, kind, peer, lane.address)

        for function, pairs in ((binding.send, sends), (binding.recv, receives)):
            issues += [partial(move, function, part, peer) for part, peer in pairs if part.size]
        self._enqueue(call, lane, issues)

    # ---- shared -------------------------------------------------------------------------------

    def _at(self, buffer: Array) -> int:
        return self._gpu.pointer(buffer)

    def _counts(self, counts: Counts, whole: Array) -> Sequence[int]:
        return [whole.size // self.size] * self.size if counts is None else counts

    def _cut(self, whole: Array, counts: Sequence[int]) -> list[Array]:
        """The ranks' parts of a flat array, as views."""
        ends = np.cumsum(counts).tolist()
        return [whole[end - count : end] for count, end in zip(counts, ends)]


class _Op:
    """NCCL's number of an op, for the time of one call: PREMUL_SUM has one made for it."""

    def __init__(self, binding: Binding, comm: Any, op: Any, buffer: Array) -> None:
        self._binding, self._comm, self._op, self._buffer = binding, comm, op, buffer
        self._made: int | None = None

    def __enter__(self) -> int:
        if not isinstance(self._op, PremulSum):
            return OPS[self._op]
        factor = np.array([self._op.factor]).astype(self._buffer.dtype)
        self._made = self._binding.premul_sum(self._comm, factor, _type(self._buffer))
        return self._made

    def __exit__(self, *exc: Any) -> None:
        if self._made is not None:
            self._binding.drop_op(self._comm, self._made)


def _type(buffer: Array) -> int:
    return TYPES[name_of(buffer.dtype)]


def _movable(buffer: Array) -> tuple[int, int]:
    """NCCL's type for moving a buffer, and how many of its elements make one of the buffer's."""
    number = TYPES.get(name_of(buffer.dtype))
    return (TYPES["uint8"], buffer.dtype.itemsize) if number is None else (number, 1)


def _reals(buffer: Array) -> Array:
    """Complex values as twice as many reals: their sums are the same."""
    real = _REAL.get(name_of(buffer.dtype))
    return buffer if real is None else buffer.view(real)


def _shares(elements: int, n: int) -> list[int]:
    """Nearly equal parts."""
    return [elements // n + (rank < elements % n) for rank in range(n)]
