"""The contract of a group of ranks, shared by all backends.

`Group` checks arguments, stages arrays, records calls and keeps their order. A backend only moves
flat contiguous buffers (`backend.Backend`).
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Sequence
from typing import Any

from . import arguments, flight, tree
from .backend import Backend, Counts
from .buffers import (
    UFUNCS,
    Array,
    Op,
    ReduceOp,
    Reduction,
    Staged,
    check_array,
    check_fit,
    may_overlap,
    name_of,
)
from .call import Call
from .ledger import Ledger
from .messages import Messages
from .objects import Objects
from .settings import settings
from .work import CollectiveError, CollectiveTimeout, CommunicationThread, MismatchError, Work

Job = Callable[[Call], None]


class Group(Messages, Objects, Backend):
    """Ranks that exchange arrays with each other.

    Arrays are NumPy arrays (or device arrays, see `device`) of the dtypes in `buffers.DTYPES`, of
    any shape and memory layout. Every rank of the group must make the same collective calls in the
    same order, with arrays of the same size and dtype; where ranks do not, every one of them gets
    one MismatchError that says who called what, and where.

    With `async_op=True` a collective returns a `Work` at once; neither the arrays' content may be
    read nor changed until `Work.wait` has returned. Several may be under way, and they are carried
    out in the order of the calls. Without it, the call returns None when the result is there.

    Checked on every call, before anything is sent:
        TypeError: not an array; a dtype that cannot be sent, or that the op has no meaning for;
            `out` and input of different dtypes.
        ValueError: a read-only array that would be written; sizes that do not fit; a root or peer
            outside the group.

    Raised while waiting for others:
        MismatchError: the ranks did not make the same call. The group cannot be used any more.
        RankFailedError: a rank that is needed has ended, with its reason.
        CollectiveTimeout: a rank has not come within `timeout` seconds, and where it is instead.

    Attributes:
        rank: this process's place in the group, 0 to size - 1.
        size: number of ranks.
        name: for messages; the same on every rank.
        members: the rank in the whole job of each rank here.
        timeout: seconds that a call may wait for other ranks; None for no limit.
        flight: the flight recorder of this rank's last calls.
        deterministic: whether reductions follow one tree by rank order (`tree`), so that their
            bits depend on nothing but the values and the number of ranks. On one node and between
            threads they do so anyway. Follows `collectives.set_deterministic` until set.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        name: str,
        members: Sequence[int],
        timeout: float | None,
        recorder: flight.Recorder,
    ) -> None:
        self.rank = rank
        self.size = size
        self.name = name
        self.members = tuple(members)
        self.timeout = timeout
        self._deterministic: bool | None = None
        self._calls = 0
        self._unusable: str | None = None  # why
        # Held while a call is carried out: two threads of the user's may come at the same time.
        self._busy = threading.RLock()
        self._thread = CommunicationThread(f"collectives {name} rank {rank}")
        self.flight = recorder
        recorder.groups[name] = self.members
        self._ledger = Ledger(size)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, rank {self.rank} of {self.size})"

    @property
    def deterministic(self) -> bool:
        chosen = self._deterministic
        return settings.deterministic if chosen is None else chosen

    @deterministic.setter
    def deterministic(self, value: bool) -> None:
        self._deterministic = bool(value)

    # ---- reductions ---------------------------------------------------------------------------

    def all_reduce(
        self, array: Array, op: Op = ReduceOp.SUM, async_op: bool = False
    ) -> Work | None:
        """Replace `array` on every rank by the reduction of all ranks' arrays."""
        check_array(array, "all_reduce: array", written=True)
        reduction = self._reduction(array, op)
        staged = self._stage(array, reduction)

        def job(call: Call) -> None:
            buffer = reduction.prepare(staged.load())
            self._all_reduce(call, buffer, reduction.op)
            reduction.finish(buffer)
            staged.store(buffer)

        call = self._call("all_reduce", array, array.nbytes, staged.nbytes, reduction.name)
        return self._collective(call, job, async_op)

    def reduce(
        self, array: Array, root: int, op: Op = ReduceOp.SUM, async_op: bool = False
    ) -> Work | None:
        """Replace `array` on `root` by the reduction of all ranks' arrays; others keep theirs."""
        root = self._member(root, "reduce: root")
        here = self.rank == root
        check_array(array, "reduce: array", written=here)
        reduction = self._reduction(array, op)
        staged = self._stage(array, reduction)

        def job(call: Call) -> None:
            # Multiplying must not show in the arrays of ranks that keep theirs.
            private = reduction.factor is not None and not here
            buffer = reduction.prepare(staged.load(private=private))
            self._reduce(call, buffer, reduction.op, root)
            if here:
                reduction.finish(buffer)
                staged.store(buffer)

        call = self._call("reduce", array, array.nbytes, staged.nbytes, reduction.name, root)
        return self._collective(call, job, async_op)

    def reduce_scatter(
        self,
        out: Array,
        array: Array,
        op: Op = ReduceOp.SUM,
        async_op: bool = False,
        counts: Counts = None,
    ) -> Work | None:
        """Reduce all ranks' arrays and give rank r the r-th part in `out`.

        Args:
            counts: elements of each rank's part, the same on all ranks; None: equal parts.
        """
        check_array(out, "reduce_scatter: out", written=True)
        check_array(array, "reduce_scatter: array", written=False)
        parts = self._parts(counts, array, out, "reduce_scatter", "(array against out)")
        reduction = self._reduction(array, op)
        target, source = self._stage(out, reduction), self._stage(array, reduction)
        private = may_overlap(out, array) or reduction.factor is not None

        def job(call: Call) -> None:
            received = target.load(read=False)
            buffer = reduction.prepare(source.load(private=private))
            self._reduce_scatter(call, received, buffer, reduction.op, parts)
            reduction.finish(received)
            target.store(received)

        call = self._call(
            "reduce_scatter", array, array.nbytes, source.nbytes, reduction.name, extra=parts
        )
        return self._collective(call, job, async_op)

    def tree_all_reduce(
        self,
        shards: Sequence[Array],
        total: int,
        op: ReduceOp = ReduceOp.SUM,
        folded: bool = False,
    ) -> Array:
        """The reduction of `total` virtual shards in one fixed binary tree, on every rank.

        The bits of the result depend on the shards and their number only, not on how many ranks
        hold them: rank r of n holds shards r·V/n to (r+1)·V/n - 1 of V. See `tree`.

        Args:
            shards: this rank's arrays, all of one dtype, shape and a 32- or 64-bit type.
            total: V, a multiple of the group's size.
            folded: `shards` are the arrays of a `tree.Frontier` that all of this rank's have gone
                into; they may be changed, and the result may be one of them.

        Returns:
            A new array of the shards' shape.

        Raises:
            ValueError: not V/n shards; shards of different shapes or dtypes.
        """
        nodes = None
        if folded and total % self.size == 0:
            each = total // self.size
            nodes = len(tree.frontier(total, self.rank * each, (self.rank + 1) * each))
        flat = arguments.shards(shards, total, self.size, nodes)
        reduction = self._reduction(shards[0], op)
        if reduction.divisor != 1 or reduction.factor is not None or reduction.wire != flat[0].dtype:
            raise TypeError(f"tree_all_reduce: {op} of {flat[0].dtype} is not built: convert first")
        result: list[Array] = []

        def job(call: Call) -> None:
            def exchange(out: Array, buffer: Array, outs: Counts, ins: Counts) -> None:
                step = call.step("exchange", name_of(buffer.dtype), flat[0].size)
                self._all_to_all(step, out, buffer, outs, ins)

            def gather(out: Array, buffer: Array, counts: Counts) -> None:
                step = call.step("gather", name_of(buffer.dtype), out.size)
                self._all_gather(step, out, buffer, counts)

            ufunc = UFUNCS[reduction.op]
            result.append(
                tree.tree_all_reduce(
                    flat, total, self.rank, self.size, ufunc, exchange, gather, folded
                )
            )

        size = shards[0].nbytes
        call = self._call("tree_all_reduce", shards[0], size, size, reduction.name)
        self._collective(call, job, False)
        return result[0].reshape(shards[0].shape)

    # ---- moves --------------------------------------------------------------------------------

    def broadcast(self, array: Array, root: int, async_op: bool = False) -> Work | None:
        """Replace `array` on every rank by that of `root`."""
        root = self._member(root, "broadcast: root")
        sending = self.rank == root
        check_array(array, "broadcast: array", written=not sending)
        staged = self._stage(array)

        def job(call: Call) -> None:
            buffer = staged.load(read=sending)
            self._broadcast(call, buffer, root)
            if not sending:
                staged.store(buffer)

        call = self._call("broadcast", array, array.nbytes, staged.nbytes, root=root)
        return self._collective(call, job, async_op)

    def all_gather(
        self, out: Array, array: Array, async_op: bool = False, counts: Counts = None
    ) -> Work | None:
        """Fill `out` with all ranks' arrays, in rank order, on every rank.

        Args:
            counts: elements of each rank's array, the same on all ranks; None: all of one size.
        """
        check_array(out, "all_gather: out", written=True)
        check_array(array, "all_gather: array", written=False)
        parts = self._parts(counts, out, array, "all_gather")
        job = self._out_of_place(lambda c, o, a: self._all_gather(c, o, a, parts), out, array)
        call = self._call("all_gather", out, out.nbytes, out.nbytes, extra=parts)
        return self._collective(call, job, async_op)

    def all_to_all(
        self,
        out: Array,
        array: Array,
        async_op: bool = False,
        out_counts: Counts = None,
        in_counts: Counts = None,
    ) -> Work | None:
        """Send the r-th part of `array` to rank r; `out` collects what comes, in rank order.

        Args:
            out_counts, in_counts: elements received from and sent to each rank. Both on all ranks,
                or neither (equal parts) on all. Raises MismatchError where they do not agree.
        """
        check_array(out, "all_to_all: out", written=True)
        check_array(array, "all_to_all: array", written=False)
        arguments.same_dtype(out, array, "all_to_all")
        if (out_counts is None) != (in_counts is None):
            raise ValueError("all_to_all: give both out_counts and in_counts, or neither")
        if out_counts is None or in_counts is None:
            check_fit(out, array, 1, "all_to_all")
            arguments.divides(array, self.size, "all_to_all")
            outs = ins = None
        else:
            outs = arguments.counts(out_counts, self.size, out, "all_to_all: out_counts")
            ins = arguments.counts(in_counts, self.size, array, "all_to_all: in_counts")
        job = self._out_of_place(lambda c, o, a: self._all_to_all(c, o, a, outs, ins), out, array)
        call = self._call("all_to_all", array, array.nbytes, array.nbytes, uneven=outs is not None)
        return self._collective(call, job, async_op)

    def gather(
        self,
        out: Array | None,
        array: Array,
        root: int,
        async_op: bool = False,
        counts: Counts = None,
    ) -> Work | None:
        """Fill `out` on `root` with all ranks' arrays, in rank order; `out` is None elsewhere."""
        root = self._member(root, "gather: root")
        arguments.only_on_root(out, "gather: out", root, self.rank)
        check_array(array, "gather: array", written=False)
        total = array.nbytes * self.size
        if out is None:
            parts = self._parts(counts, None, array, "gather")
            source = self._stage(array)

            def send(call: Call) -> None:
                self._gather(call, None, source.load(), root, parts)

            job: Job = send
        else:
            check_array(out, "gather: out", written=True)
            parts = self._parts(counts, out, array, "gather")
            job = self._out_of_place(
                lambda c, o, a: self._gather(c, o, a, root, parts), out, array
            )
        if parts is not None:
            total = sum(parts) * array.itemsize
        call = self._call("gather", array, total, total, root=root, extra=parts)
        return self._collective(call, job, async_op)

    def scatter(
        self,
        out: Array,
        array: Array | None,
        root: int,
        async_op: bool = False,
        counts: Counts = None,
    ) -> Work | None:
        """Give rank r the r-th part of `array`, which only `root` has (None elsewhere)."""
        root = self._member(root, "scatter: root")
        arguments.only_on_root(array, "scatter: array", root, self.rank)
        check_array(out, "scatter: out", written=True)
        total = out.nbytes * self.size
        if array is None:
            parts = self._parts(counts, None, out, "scatter")
            target = self._stage(out)

            def receive(call: Call) -> None:
                received = target.load(read=False)
                self._scatter(call, received, None, root, parts)
                target.store(received)

            job: Job = receive
        else:
            check_array(array, "scatter: array", written=False)
            parts = self._parts(counts, array, out, "scatter", "(array against out)")
            job = self._out_of_place(
                lambda c, o, a: self._scatter(c, o, a, root, parts), out, array
            )
        if parts is not None:
            total = sum(parts) * out.itemsize
        call = self._call("scatter", out, total, total, root=root, extra=parts)
        return self._collective(call, job, async_op)

    # ---- meeting ------------------------------------------------------------------------------

    def barrier(self, async_op: bool = False) -> Work | None:
        """Wait until every rank has come here."""
        return self._collective(Call("barrier"), self._barrier, async_op)

    def monitored_barrier(self, timeout: float | None = None) -> None:
        """`barrier` with a time limit of its own, after which every waiting rank is told who
        is missing, and where those are.

        Args:
            timeout: seconds; None for the group's.

        Raises:
            CollectiveTimeout: its `missing` are the job's ranks that did not come.
        """
        call = Call("monitored_barrier")
        call.timeout = timeout
        self._collective(call, self._barrier, False)

    def split(self, color: int | None, key: int = 0) -> Group | None:
        """Make one new group of all ranks with the same `color`; a collective call.

        Args:
            color: at least 0; None takes part in no new group and gets None.
            key: new ranks follow its order, then that of the ranks here.
        """
        if color is not None and operator.index(color) < 0:
            raise ValueError(f"split: color must be None or at least 0, got {color}")
        made: list[Group | None] = []

        def job(call: Call) -> None:
            made.append(self._split(call, color, operator.index(key)))

        self._collective(Call("split"), job, False)
        part = made[0]
        if part is not None:
            part._deterministic, part.timeout = self._deterministic, self.timeout
        return part

    def subset(self, ranks: Sequence[int], name: str) -> Group:
        """Make a group of some ranks, which alone call this, in the same order with the same name.

        Args:
            ranks: of this group, in the order of their ranks in the new one; this rank is one.
            name: tells the group from others of the same ranks.

        Raises:
            ValueError: a rank twice, or this one not among them.
        """
        members = [self._member(rank, "subset: ranks") for rank in ranks]
        if len(set(members)) < len(members) or self.rank not in members:
            raise ValueError(
                f"subset: ranks must be different and hold this one ({self.rank}), got {members}"
            )
        part: Group = self._subset(members, f"{self.name}/{name}")
        part._deterministic, part.timeout = self._deterministic, self.timeout
        return part

    # ---- counts, end --------------------------------------------------------------------------

    def ledger(self) -> dict[str, dict[str, float]]:
        """This rank's counts per call type since the last reset; `ledger` says what each is."""
        return self._ledger.as_dict()

    def reset_ledger(self) -> None:
        """Start counting again from zero."""
        self._ledger.reset()

    def close(self) -> None:
        """Wait for everything under way; raise the first error that no `Work.wait` has shown."""
        self._thread.drain()

    # ---- shared by the calls above ------------------------------------------------------------

    def _reduction(self, array: Array, op: Op) -> Reduction:
        return Reduction.plan(array.dtype, op, self.size, self.reduces_halves)

    def _stage(self, array: Array, reduction: Reduction | None = None) -> Staged:
        wire = None if reduction is None else reduction.wire
        return Staged(array, wire, self.takes_device_arrays)

    def _out_of_place(
        self, transport: Callable[[Call, Array, Array], None], out: Array, array: Array
    ) -> Job:
        target, source = self._stage(out), self._stage(array)
        private = may_overlap(out, array)

        def job(call: Call) -> None:
            received = target.load(read=False)
            transport(call, received, source.load(private=private))
            target.store(received)

        return job

    def _parts(
        self, counts: Counts, whole: Array | None, mine: Array, call: str, note: str = ""
    ) -> tuple[int, ...] | None:
        """Checked counts; None for equal parts."""
        if counts is None:
            if whole is not None:
                check_fit(whole, mine, self.size, f"{call} {note}".rstrip())
            return None
        if whole is not None:
            arguments.same_dtype(whole, mine, call)
        parts = arguments.counts(counts, self.size, whole, f"{call}: counts")
        arguments.part(parts, self.rank, mine, f"{call}: this rank's array")
        return parts

    def _call(
        self,
        name: str,
        array: Any,
        payload: int,
        transport: int,
        op: str = "",
        root: int = -1,
        extra: Counts = None,
        uneven: bool = False,
    ) -> Call:
        count = array.size
        if uneven:
            count = -1  # each rank sends what it likes; the backend compares the counts
        elif extra is not None and name in ("gather", "scatter"):
            count = sum(extra)
        return Call(
            name, name_of(array.dtype), count, array.shape, op, root, payload, transport,
            arguments.digest(extra),
        )  # fmt: skip

    def _collective(self, call: Call, job: Job, async_op: bool) -> Work | None:
        """Carry out a call in its turn, here and now or in the communication thread."""
        if self._unusable is not None:
            raise CollectiveError(
                f"{call} on rank {self.rank}: group {self.name!r} cannot be used any more: "
                f"{self._unusable}"
            )
        call.group = self.name
        self._may_begin(call)
        self._calls += 1
        call.number = self._calls
        if call.timeout is None:
            call.timeout = self.timeout
        if async_op:
            return self._thread.put(call.name, lambda: self._perform(call, job))
        if self._thread.idle:
            # A hand-over to the thread costs several times a small reduction.
            self._perform(call, job)
        else:
            # Behind what is under way, or ranks would differ.
            self._thread.put(call.name, lambda: self._perform(call, job)).wait()
        return None

    def _count(self, call: Call) -> None:
        """Enter a call that has ended into the ledger; a backend knows what moved for it."""
        self._ledger.add(call)

    def _may_begin(self, call: Call) -> None:
        """Raise where it is known that a call would be in vain."""

    def _perform(self, call: Call, job: Job) -> None:
        with self._busy:
            self.flight.begin(call)
            try:
                job(call)
            except BaseException as error:
                self.flight.end(call, error)
                if isinstance(error, MismatchError | CollectiveTimeout):
                    self._unusable = "its ranks went different ways: " + str(error).partition("\n")[0]
                raise
            self.flight.end(call)
            self._count(call)

    def _member(self, rank: int, what: str) -> int:
        return arguments.member(rank, self.size, self.name, what)

