"""The contract of a group of ranks, shared by all backends.

`Group` checks arguments, stages arrays, counts bytes and orders calls. A backend only moves flat
contiguous buffers: it implements the methods whose names begin with an underscore at the end.
"""

from __future__ import annotations

import operator
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from .buffers import (
    Array,
    ReduceOp,
    Reduction,
    Staged,
    check_array,
    check_fit,
    empty_bytes,
    from_bytes,
    lengths,
    may_overlap,
)
from .ledger import Ledger
from .work import CommunicationThread, Work


class Group(ABC):
    """Ranks that exchange arrays with each other.

    Arrays are NumPy arrays (or device arrays, see `device`) of the dtypes in `buffers.DTYPES`, of
    any shape and memory layout. Every rank of the group must make the same collective calls in the
    same order, with arrays of the same size and dtype.

    With `async_op=True` a collective returns a `Work` at once; neither the arrays' content may be
    read nor changed until `Work.wait` has returned. Several may be under way, and they are carried
    out in the order of the calls. Without it, the call returns None when the result is there.

    Checked on every call, before anything is sent:
        TypeError: not an array; a dtype that cannot be sent, or that the op has no meaning for;
            `out` and input of different dtypes.
        ValueError: a read-only array that would be written; sizes that do not fit; a root or peer
            outside the group.

    Attributes:
        rank: this process's place in the group, 0 to size - 1.
        size: number of ranks.
        name: for messages; the same on every rank.
    """

    #: Whether the backend's methods accept buffers in device memory.
    takes_device_arrays = False
    #: The largest tag that a message may carry; MPI guarantees this much.
    largest_tag = 32767

    def __init__(self, rank: int, size: int, name: str) -> None:
        self.rank = rank
        self.size = size
        self.name = name
        self._thread = CommunicationThread(f"collectives {name} rank {rank}")
        self._ledger = Ledger(size)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, rank {self.rank} of {self.size})"

    # ---- collectives on arrays ---------------------------------------------------------------

    def all_reduce(
        self, array: Array, op: ReduceOp = ReduceOp.SUM, async_op: bool = False
    ) -> Work | None:
        """Replace `array` on every rank by the reduction of all ranks' arrays."""
        check_array(array, "all_reduce: array", written=True)
        reduction = Reduction.plan(array.dtype, op, self.size)
        staged = self._stage(array, reduction)

        def job() -> None:
            buffer = staged.load()
            self._all_reduce(buffer, reduction.op)
            reduction.finish(buffer)
            staged.store(buffer)

        return self._collective("all_reduce", job, async_op, array.nbytes, staged.nbytes)

    def reduce(
        self, array: Array, root: int, op: ReduceOp = ReduceOp.SUM, async_op: bool = False
    ) -> Work | None:
        """Replace `array` on `root` by the reduction of all ranks' arrays; others keep theirs."""
        root = self._member(root, "reduce: root")
        check_array(array, "reduce: array", written=self.rank == root)
        reduction = Reduction.plan(array.dtype, op, self.size)
        staged = self._stage(array, reduction)

        def job() -> None:
            buffer = staged.load()
            self._reduce(buffer, reduction.op, root)
            if self.rank == root:
                reduction.finish(buffer)
                staged.store(buffer)

        return self._collective("reduce", job, async_op, array.nbytes, staged.nbytes)

    def broadcast(self, array: Array, root: int, async_op: bool = False) -> Work | None:
        """Replace `array` on every rank by that of `root`."""
        root = self._member(root, "broadcast: root")
        sending = self.rank == root
        check_array(array, "broadcast: array", written=not sending)
        staged = self._stage(array)

        def job() -> None:
            buffer = staged.load(read=sending)
            self._broadcast(buffer, root)
            if not sending:
                staged.store(buffer)

        return self._collective("broadcast", job, async_op, array.nbytes, staged.nbytes)

    def all_gather(self, out: Array, array: Array, async_op: bool = False) -> Work | None:
        """Fill `out` (size x n elements) with all ranks' arrays, in rank order, on every rank."""
        check_array(out, "all_gather: out", written=True)
        check_array(array, "all_gather: array", written=False)
        check_fit(out, array, self.size, "all_gather")
        job = self._out_of_place(self._all_gather, out, array)
        return self._collective("all_gather", job, async_op, out.nbytes, out.nbytes)

    def reduce_scatter(
        self, out: Array, array: Array, op: ReduceOp = ReduceOp.SUM, async_op: bool = False
    ) -> Work | None:
        """Reduce all ranks' arrays and give rank r the r-th of n equal parts in `out`."""
        check_array(out, "reduce_scatter: out", written=True)
        check_array(array, "reduce_scatter: array", written=False)
        check_fit(array, out, self.size, "reduce_scatter (array against out)")
        reduction = Reduction.plan(array.dtype, op, self.size)
        target, source = self._stage(out, reduction), self._stage(array, reduction)
        private = may_overlap(out, array)

        def job() -> None:
            received = target.load(read=False)
            self._reduce_scatter(received, source.load(private=private), reduction.op)
            reduction.finish(received)
            target.store(received)

        return self._collective("reduce_scatter", job, async_op, array.nbytes, source.nbytes)

    def all_to_all(self, out: Array, array: Array, async_op: bool = False) -> Work | None:
        """Send the r-th of n equal parts of `array` to rank r; `out` collects in rank order."""
        check_array(out, "all_to_all: out", written=True)
        check_array(array, "all_to_all: array", written=False)
        check_fit(out, array, 1, "all_to_all")
        self._check_divides(array, "all_to_all")
        job = self._out_of_place(self._all_to_all, out, array)
        return self._collective("all_to_all", job, async_op, array.nbytes, array.nbytes)

    def gather(
        self, out: Array | None, array: Array, root: int, async_op: bool = False
    ) -> Work | None:
        """Fill `out` on `root` with all ranks' arrays, in rank order; `out` is None elsewhere."""
        root = self._member(root, "gather: root")
        self._check_only_on_root(out, "gather: out", root)
        check_array(array, "gather: array", written=False)
        source = self._stage(array)
        total = array.nbytes * self.size
        if out is None:
            return self._collective(
                "gather", lambda: self._gather(None, source.load(), root), async_op, total, total
            )
        check_array(out, "gather: out", written=True)
        check_fit(out, array, self.size, "gather")
        job = self._out_of_place(lambda o, a: self._gather(o, a, root), out, array)
        return self._collective("gather", job, async_op, total, total)

    def scatter(
        self, out: Array, array: Array | None, root: int, async_op: bool = False
    ) -> Work | None:
        """Give rank r the r-th of n equal parts of `array`, which only `root` has (else None)."""
        root = self._member(root, "scatter: root")
        self._check_only_on_root(array, "scatter: array", root)
        check_array(out, "scatter: out", written=True)
        total = out.nbytes * self.size
        if array is None:
            target = self._stage(out)

            def receive() -> None:
                received = target.load(read=False)
                self._scatter(received, None, root)
                target.store(received)

            return self._collective("scatter", receive, async_op, total, total)
        check_array(array, "scatter: array", written=False)
        check_fit(array, out, self.size, "scatter (array against out)")
        job = self._out_of_place(lambda o, a: self._scatter(o, a, root), out, array)
        return self._collective("scatter", job, async_op, total, total)

    def barrier(self, async_op: bool = False) -> Work | None:
        """Wait until every rank has come here."""
        return self._collective("barrier", self._barrier, async_op, 0, 0)

    # ---- messages between two ranks ----------------------------------------------------------

    def isend(self, array: Array, dst: int, tag: int = 0) -> Work:
        """Start sending `array` to rank `dst` (not this one); keep it unchanged until `wait`."""
        dst = self._peer(dst, "isend: dst")
        check_array(array, "isend: array", written=False)
        staged = self._stage(array)
        self._ledger.count("send", array.nbytes, staged.nbytes)
        return self._isend(staged.load(), dst, self._tag(tag))

    def irecv(self, array: Array, src: int | None, tag: int = 0) -> Work:
        """Start receiving into `array`, which must have the size and dtype of what is sent.

        `src` None takes a message from any rank; `Work.source` then names it after `wait`.
        """
        if src is not None:
            src = self._peer(src, "irecv: src")
        check_array(array, "irecv: array", written=True)
        staged = self._stage(array)
        buffer = staged.load(read=False)
        self._ledger.count("recv", array.nbytes, staged.nbytes)
        return self._irecv(buffer, src, self._tag(tag), lambda: staged.store(buffer))

    def send(self, array: Array, dst: int, tag: int = 0) -> None:
        """Send `array` to rank `dst`; return when it may be changed again."""
        self.isend(array, dst, tag).wait()

    def recv(self, array: Array, src: int | None, tag: int = 0) -> int:
        """Receive into `array` from rank `src` (None: any rank); return the sender's rank."""
        work = self.irecv(array, src, tag)
        work.wait()
        assert work.source is not None
        return work.source

    # ---- Python objects ----------------------------------------------------------------------

    def broadcast_object(self, value: Any, root: int = 0) -> Any:
        """Return `root`'s value on every rank; the others' argument is ignored.

        Values are pickled, and unpickling runs code: only for the trusted ranks of one job.
        """
        root = self._member(root, "broadcast_object: root")
        data = from_bytes(pickle.dumps(value)) if self.rank == root else empty_bytes(0)
        received: list[Array] = []

        def job() -> None:
            length = lengths(data.size)
            self._broadcast(length, root)
            buffer = data if self.rank == root else empty_bytes(int(length[0]))
            self._broadcast(buffer, root)
            received.append(buffer)

        self._run("broadcast_object", job, False)
        moved = received[0].nbytes
        self._ledger.count("broadcast_object", moved, moved)
        return value if self.rank == root else pickle.loads(received[0])

    def all_gather_object(self, value: Any) -> list[Any]:
        """Return every rank's value, in rank order. Pickled: see `broadcast_object`."""
        data = from_bytes(pickle.dumps(value))
        sizes = lengths(*[0] * self.size)
        received: list[Any] = []

        def job() -> None:
            self._all_gather(sizes, lengths(data.size))
            widest = int(sizes.max())
            padded, everyone = empty_bytes(widest), empty_bytes(widest * self.size)
            padded[: data.size] = data
            self._all_gather(everyone, padded)
            rows = everyone.reshape(self.size, widest)
            received.extend(pickle.loads(row[:n].tobytes()) for row, n in zip(rows, sizes))

        self._run("all_gather_object", job, False)
        self._ledger.count("all_gather_object", int(sizes.sum()), int(sizes.max()) * self.size)
        return received

    # ---- groups, counts, end -----------------------------------------------------------------

    def split(self, color: int | None, key: int = 0) -> Group | None:
        """Make one new group of all ranks with the same `color`; a collective call.

        Args:
            color: at least 0; None takes part in no new group and gets None.
            key: new ranks follow its order, then that of the ranks here.
        """
        if color is not None and operator.index(color) < 0:
            raise ValueError(f"split: color must be None or at least 0, got {color}")
        made: list[Group | None] = []
        self._collective(
            "split", lambda: made.append(self._split(color, operator.index(key))), False, 0, 0
        )
        return made[0]

    def ledger(self) -> dict[str, dict[str, float]]:
        """This rank's counts per call type since the last reset; `ledger` says what each is."""
        return self._ledger.as_dict()

    def reset_ledger(self) -> None:
        """Start counting again from zero."""
        self._ledger.reset()

    def close(self) -> None:
        """Wait for everything under way; raise the first error that no `Work.wait` has shown."""
        self._thread.drain()

    # ---- shared by the calls above -----------------------------------------------------------

    def _stage(self, array: Array, reduction: Reduction | None = None) -> Staged:
        wire = None if reduction is None else reduction.wire
        return Staged(array, wire, self.takes_device_arrays)

    def _out_of_place(
        self, transport: Callable[[Array, Array], None], out: Array, array: Array
    ) -> Callable[[], None]:
        target, source = self._stage(out), self._stage(array)
        private = may_overlap(out, array)

        def job() -> None:
            received = target.load(read=False)
            transport(received, source.load(private=private))
            target.store(received)

        return job

    def _collective(
        self, call: str, job: Callable[[], None], async_op: bool, payload: int, transport: int
    ) -> Work | None:
        self._ledger.count(call, payload, transport)
        return self._run(call, job, async_op)

    def _run(self, call: str, job: Callable[[], None], async_op: bool) -> Work | None:
        if async_op:
            return self._thread.put(call, job)
        if self._thread.idle:
            job()  # here and now: a hand-over to the thread costs several times a small reduction
        else:
            self._thread.put(call, job).wait()  # behind what is under way, or ranks would differ
        return None

    def _member(self, rank: int, what: str) -> int:
        if isinstance(rank, bool):
            raise TypeError(f"{what} must be a rank, got {rank}")
        index = operator.index(rank)
        if not 0 <= index < self.size:
            raise ValueError(
                f"{what} must be a rank of group {self.name!r}, 0 to {self.size - 1}, got {rank}"
            )
        return index

    def _peer(self, rank: int, what: str) -> int:
        index = self._member(rank, what)
        if index == self.rank:
            raise ValueError(f"{what} is this rank itself ({rank}); copy the array instead")
        return index

    def _tag(self, tag: int) -> int:
        index = operator.index(tag)
        if not 0 <= index <= self.largest_tag:
            raise ValueError(f"tag must be from 0 to {self.largest_tag}, got {tag}")
        return index

    def _check_only_on_root(self, array: Array | None, what: str, root: int) -> None:
        if (array is not None) != (self.rank == root):
            needed = "is needed on the root" if array is None else "must be None except on the root"
            raise ValueError(f"{what} {needed} (root {root}, this is rank {self.rank})")

    def _check_divides(self, array: Array, call: str) -> None:
        if array.size % self.size:
            raise ValueError(
                f"{call}: {array.size} elements of shape {tuple(array.shape)} do not divide into "
                f"{self.size} equal parts"
            )

    # ---- what a backend implements, on flat contiguous buffers --------------------------------

    @abstractmethod
    def _all_reduce(self, buffer: Array, op: ReduceOp) -> None:
        """Reduce in place; `op` is never AVG, the dtype never bool or 16-bit."""

    @abstractmethod
    def _reduce(self, buffer: Array, op: ReduceOp, root: int) -> None:
        """Reduce in place on `root`; leave the buffer alone elsewhere."""

    @abstractmethod
    def _reduce_scatter(self, out: Array, buffer: Array, op: ReduceOp) -> None: ...

    @abstractmethod
    def _broadcast(self, buffer: Array, root: int) -> None: ...

    @abstractmethod
    def _all_gather(self, out: Array, buffer: Array) -> None: ...

    @abstractmethod
    def _all_to_all(self, out: Array, buffer: Array) -> None: ...

    @abstractmethod
    def _gather(self, out: Array | None, buffer: Array, root: int) -> None: ...

    @abstractmethod
    def _scatter(self, out: Array, buffer: Array | None, root: int) -> None: ...

    @abstractmethod
    def _barrier(self) -> None: ...

    @abstractmethod
    def _split(self, color: int | None, key: int) -> Group | None: ...

    @abstractmethod
    def _isend(self, buffer: Array, dst: int, tag: int) -> Work: ...

    @abstractmethod
    def _irecv(
        self, buffer: Array, src: int | None, tag: int, store: Callable[[], None]
    ) -> Work: ...
