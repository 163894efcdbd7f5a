"""A thousand random programs of collectives between threads, against NumPy.

A program is a list of calls of any kind, dtype, size, op and root, some of them asynchronous and waited
for only at its end, some in a group of every second rank. What each rank must hold afterwards is
computed from all ranks' values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from collectives_conformance import DTYPES, REDUCING, ops_of, reduced, values
from hypothesis import given, settings
from hypothesis import strategies as st

from collectives import Group, ReduceOp, run_ranks

CALLS = (*REDUCING, "broadcast", "all_gather", "all_to_all", "gather", "scatter", "unequal", "object")


@dataclass(frozen=True)
class Step:
    """One call; `pick` chooses what depends on the number of ranks."""

    call: str
    dtype: np.dtype
    size: int
    pick: int
    later: bool
    in_part: bool

    @property
    def op(self) -> ReduceOp:
        ops = ops_of(self.dtype)
        return ops[self.pick % len(ops)]


STEPS = st.builds(
    Step, st.sampled_from(CALLS), st.sampled_from(DTYPES), st.sampled_from([0, 1, 3, 64, 1000]),
    st.integers(0, 1000), st.booleans(), st.booleans(),
)  # fmt: skip
Check = Callable[[], None]


def run(group: Group, step: Step) -> tuple[object, Check]:
    """Make the call; returns its work or None, and what to check once it has ended."""
    n, rank, root = group.size, group.rank, step.pick % group.size
    op = step.op if step.call in REDUCING else None
    size, dtype = step.size, step.dtype

    def all_values(count: int) -> list[np.ndarray]:
        return [values(r + 10 * step.pick, dtype, count, op).copy() for r in range(n)]

    each, whole = all_values(size), all_values(size * n)
    part = slice(rank * size, (rank + 1) * size)
    mine, out, large = each[rank].copy(), np.zeros(size, dtype), np.zeros(size * n, dtype)
    if step.call == "all_reduce":
        work, got, expected = group.all_reduce(mine, op, step.later), mine, reduced(each, op)
    elif step.call == "reduce":
        work, got = group.reduce(mine, root, op, step.later), mine
        expected = reduced(each, op) if rank == root else each[rank]
    elif step.call == "reduce_scatter":
        work, got = group.reduce_scatter(out, whole[rank].copy(), op, step.later), out
        expected = reduced(whole, op)[part]
    elif step.call == "broadcast":
        work, got, expected = group.broadcast(mine, root, step.later), mine, each[root]
    elif step.call == "all_gather":
        work, got = group.all_gather(large, mine, step.later), large
        expected = np.concatenate(each)
    elif step.call == "all_to_all":
        work, got = group.all_to_all(large, whole[rank].copy(), step.later), large
        expected = np.concatenate([each[part] for each in whole])
    elif step.call == "gather":
        got = large if rank == root else None
        work, expected = group.gather(got, mine, root, step.later), np.concatenate(each)
    elif step.call == "scatter":
        source = whole[root].copy() if rank == root else None
        work, got, expected = group.scatter(out, source, root, step.later), out, whole[root][part]
    elif step.call == "unequal":
        counts = [(size + r * step.pick) % 97 for r in range(n)]
        parts = [values(r + 10 * step.pick, dtype, c) for r, c in enumerate(counts)]
        got, expected = np.zeros(sum(counts), dtype), np.concatenate(parts)
        work = group.all_gather(got, parts[rank].copy(), step.later, counts)
    else:
        assert group.all_gather_object((rank, step.pick)) == [(r, step.pick) for r in range(n)]
        return None, lambda: None

    def check() -> None:
        if got is None:
            return
        if dtype.kind == "c":
            assert np.allclose(got, expected, rtol=1e-5)
        else:
            assert (got == expected).all(), (step, got[:5], expected[:5])

    return work, check


@given(st.integers(1, 4), st.lists(STEPS, min_size=1, max_size=6))
@settings(max_examples=1000, deadline=None)
def test_a_thousand_programs(n, program):
    def rank_main(group: Group) -> None:
        part = group.split(0 if group.rank % 2 == 0 else None)
        under_way = []
        for step in program:
            where = part if step.in_part else group
            if where is not None:
                work, check = run(where, step)
                if work is None:
                    check()
                else:
                    under_way.append((work, check))
        for work, check in reversed(under_way):
            work.wait()
            check()

    run_ranks(n, rank_main, timeout=60)
