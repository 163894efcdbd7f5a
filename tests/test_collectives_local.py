"""The conformance suite on ranks that are threads, and what only the local backend promises."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from collectives_conformance import CALLS, DTYPES, SCENARIOS, check_call

import collectives
from collectives import MismatchError, RankFailedError, ReduceOp, run_ranks, single

RANKS = [1, 2, 3, 4]


@pytest.mark.parametrize("n", RANKS)
@pytest.mark.parametrize("call", CALLS)
def test_conformance(call, n):
    for count, failures, used in run_ranks(n, lambda group: check_call(group, call)):
        assert failures == []
        assert used == {dtype.name for dtype in DTYPES}
        assert count >= 14 * len(DTYPES)


@pytest.mark.parametrize("n", RANKS)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_scenario(scenario, n):
    run_ranks(n, scenario)


def test_single_rank_needs_no_threads():
    before = threading.active_count()
    group = single()
    array = np.arange(3.0)
    group.all_reduce(array, ReduceOp.AVG)
    assert array.tolist() == [0, 1, 2] and (group.rank, group.size) == (0, 1)
    assert threading.active_count() == before


def test_results_in_rank_order_and_world():
    def fn(group):
        assert collectives.world() is group
        return group.rank * 10

    assert run_ranks(4, fn) == [0, 10, 20, 30]


def test_sum_goes_in_rank_order():
    """(1e8 + 1) - 1e8 is 0 in float32, while 1e8 - 1e8 + 1 is 1."""
    values = [np.float32(1e8), np.float32(1), np.float32(-1e8)]

    def fn(group):
        array = np.array([values[group.rank]])
        group.all_reduce(array)
        return float(array[0])

    assert run_ranks(3, fn) == [0.0] * 3


class Boom(Exception):
    pass


@pytest.mark.parametrize("waiting", ["barrier", "recv", "async", "split"])
def test_failing_rank_wakes_the_others(waiting):
    seen = {}

    def fn(group):
        if group.rank == 1:
            raise Boom("out of luck")
        try:
            if waiting == "barrier":
                group.barrier()
            elif waiting == "recv":
                group.recv(np.zeros(1), 1)
            elif waiting == "split":
                group.split(0)
            else:
                group.all_reduce(np.zeros(1), async_op=True).wait()
        except RankFailedError as error:
            seen[group.rank] = str(error)
            raise

    with pytest.raises(Boom, match="out of luck") as caught:
        run_ranks(3, fn)
    assert caught.value.__notes__ == ["raised on rank 1 of 3 local ranks"]
    # The caller gets the first failure at once, so a woken rank may still be on its way out.
    for text in seen.values():
        assert "rank 1 failed with Boom: out of luck" in text


def test_every_waiting_rank_is_woken():
    woken = [threading.Event() for _ in range(3)]

    def fn(group):
        if group.rank == 1:
            raise Boom
        try:
            group.barrier()
        finally:
            woken[group.rank].set()

    with pytest.raises(Boom):
        run_ranks(3, fn)
    assert woken[0].wait(30) and woken[2].wait(30)


@pytest.mark.parametrize("call", ["all_reduce", "recv", "recv_any", "subgroup"])
def test_rank_that_returns_early_is_named(call):
    def fn(group):
        half = group.split(0)
        if group.rank == 0:
            return
        if call == "all_reduce":
            group.all_reduce(np.zeros(2))
        elif call == "subgroup":
            half.barrier()
        else:
            group.recv(np.zeros(2), 0 if call == "recv" else None)

    with pytest.raises(RankFailedError, match=r"ranks \[0\] have returned without taking part"):
        run_ranks(2, fn)


def test_work_left_behind_by_a_returning_rank_is_finished():
    arrays = [np.ones(2), np.ones(2)]

    def fn(group):
        work = group.all_reduce(arrays[group.rank], async_op=True)
        if group.rank == 0:
            work.wait()

    run_ranks(2, fn)
    assert all(array.tolist() == [2, 2] for array in arrays)


def test_error_nobody_waited_for_is_raised_at_the_end():
    def fn(group):
        group.all_reduce(np.zeros(2 + group.rank), async_op=True)

    with pytest.raises(MismatchError):
        run_ranks(2, fn)


def test_different_calls_are_named():
    def sizes(group):
        group.all_reduce(np.zeros(2 + group.rank, np.float32))

    with pytest.raises(
        MismatchError,
        match=r"rank 0: all_reduce\(float32 \[2\], SUM\) at test_collectives_local.py:\d+; "
        r"rank 1: all_reduce\(float32 \[3\], SUM",
    ):
        run_ranks(2, sizes)

    def roots(group):
        group.broadcast(np.zeros(2), group.rank)

    with pytest.raises(MismatchError, match="root 0.*root 1"):
        run_ranks(2, roots)


def test_async_error_is_raised_at_every_wait():
    def fn(group):
        work = group.all_reduce(np.zeros(2 + group.rank), async_op=True)
        for _ in range(2):
            with pytest.raises(MismatchError):
                work.wait()
        assert work.is_completed() and isinstance(work.exception(), MismatchError)

    run_ranks(2, fn)


def test_timeout_of_the_whole_run():
    def fn(group):
        group.recv(np.zeros(1), 1 - group.rank)

    with pytest.raises(TimeoutError, match=r"ranks \[0, 1\] did not end in 0.2 seconds"):
        run_ranks(2, fn, timeout=0.2)


def test_exit_is_an_error_of_its_rank():
    def fn(group):
        if group.rank == 1:
            raise SystemExit(3)
        group.barrier()

    with pytest.raises(SystemExit, match="3"):
        run_ranks(2, fn)


def test_no_ranks():
    with pytest.raises(ValueError, match="at least 1 rank, got 0"):
        run_ranks(0, lambda group: None)
