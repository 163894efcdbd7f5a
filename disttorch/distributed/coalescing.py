"""Several calls made as one: what `_coalescing_manager` collects and then carries out.

Small tensors cost mostly latency. Inside the manager all_reduce, all_gather_into_tensor and
reduce_scatter_tensor are only noted down; at its end each run of tensors of one dtype and one
operation is packed into one buffer and moved by one call.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from ..tensor import Tensor
from . import arguments
from .process_group import Group, ProcessGroup, resolve
from .work import Work, all_of


class _Held(NamedTuple):
    """One call that waits: what PyTorch calls `_CollOp`."""

    call: Callable
    tensor: Tensor
    output: Tensor | None
    op: Any


class _CoalescingManager:
    """What the `with` statement binds: the handles of what it started.

    Attributes:
        works: the handles, after the end of the block.
    """

    def __init__(self) -> None:
        self.works: list[Work] = []
        self.held: list[_Held] = []

    def append(self, work: Work | None) -> None:
        """Add a handle."""
        if work is not None:
            self.works.append(work)

    def wait(self) -> None:
        """Wait for everything."""
        for work in self.works:
            work.wait()


class _HeldWork(Work):
    """What an asynchronous call inside the manager returns: it has not started yet."""

    def __init__(self) -> None:
        super().__init__([])

    def wait(self, timeout: Any = None) -> bool:
        raise RuntimeError(
            "this call was made inside a coalescing manager and starts at the end of the block: "
            "wait for the manager instead (`with ... as cm: ...; cm.wait()`)"
        )

    def is_completed(self) -> bool:
        return False


@contextlib.contextmanager
def _coalescing_manager(
    group: Group = None, device: Any = None, async_ops: bool = False
) -> Iterator[_CoalescingManager]:
    """Carry out the collectives made inside, all of one kind, in as few calls as their dtypes allow.

    Args:
        group: the group of all of them.
        device: accepted as in PyTorch; what is coalesced does not depend on it.
        async_ops: do not wait at the end of the block; `cm.wait()` does.

    Raises:
        ValueError: a manager inside another one of the same group.
        RuntimeError: calls of different kinds inside.
    """
    pg = resolve(group)
    manager = _CoalescingManager()
    if pg is None:
        yield manager
        return
    if pg.coalescing is not None:
        raise ValueError("ProcessGroup has non-empty op list at the start of coalescing")
    pg.coalescing = manager
    try:
        yield manager
    finally:
        pg.coalescing = None
    if manager.held:
        manager.append(_start(pg, manager.held, async_ops))
    if not async_ops:
        manager.wait()


def hold(
    pg: ProcessGroup, call: Callable, tensor: Tensor, output: Tensor | None, op: Any, async_op: bool
) -> Work | None:
    """Note a call down for the end of the block."""
    pg.coalescing.held.append(_Held(call, tensor, output, op))
    return _HeldWork() if async_op else None


def _start(pg: ProcessGroup, held: Sequence[_Held], async_ops: bool) -> Work | None:
    names = sorted({each.call.__name__ for each in held})
    if len(names) > 1:
        raise RuntimeError(
            "Coalescing manager requires all collectives to be the same type, but got mixed "
            f"types: {names}"
        )
    carry_out = _PACKED[names[0]]
    works = []
    for (_, op), run in groupby(held, key=lambda each: (each.tensor.dtype, each.op)):
        same = list(run)
        works.append(
            carry_out(pg, [e.tensor for e in same], [e.output for e in same], op, async_ops)
        )
    return all_of(works) if async_ops else None


def _all_reduce(
    pg: ProcessGroup, inputs: list[Tensor], outputs: list[Any], op: Any, async_op: bool
) -> Work | None:
    found = [t._data for t in inputs]
    whole = arguments.pack(found)
    return arguments.run(
        async_op,
        lambda later: pg.ranks.all_reduce(whole, op, later),
        inputs,
        lambda: arguments.unpack(whole, found),
    )


def all_gather(
    pg: ProcessGroup, inputs: list[Tensor], outputs: list[Tensor], op: Any, async_op: bool
) -> Work | None:
    """Fill each output (group size x the input's elements) with all ranks' inputs."""
    mine = arguments.pack([t._data for t in inputs])
    whole = arguments.flat_like(mine, mine.size * pg.size())
    return arguments.run(
        async_op,
        lambda later: pg.ranks.all_gather(whole, mine, later),
        outputs,
        lambda: _by_tensor(whole.reshape(pg.size(), -1), [t._data for t in outputs]),
    )


def reduce_scatter(
    pg: ProcessGroup, inputs: list[Tensor], outputs: list[Tensor], op: Any, async_op: bool
) -> Work | None:
    """Reduce each input and give every rank its part of each."""
    n = pg.size()
    rows = [t._data.reshape(n, -1) for t in inputs]
    whole = arguments.pack([row[r] for r in range(n) for row in rows])
    mine = arguments.flat_like(whole, whole.size // n)
    return arguments.run(
        async_op,
        lambda later: pg.ranks.reduce_scatter(mine, whole, op, later),
        outputs,
        lambda: arguments.unpack(mine, [t._data for t in outputs]),
    )


def _by_tensor(rows: Any, outputs: list[Any]) -> None:
    """Rank r's row holds its part of every output, one after the other."""
    begin, n = 0, rows.shape[0]
    for out in outputs:
        width = out.size // n
        out[...] = rows[:, begin : begin + width].reshape(out.shape)
        begin += width


_PACKED = {
    "all_reduce": _all_reduce,
    "all_gather_single": all_gather,
    "reduce_scatter_single": reduce_scatter,
}
