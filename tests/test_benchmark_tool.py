"""torch.utils.benchmark: what Timer runs and how results are summed up; no time is asserted."""

from __future__ import annotations

import pytest

import disttorch as torch
from disttorch.utils.benchmark import Compare, Measurement, Timer


class Clock:
    """A clock that moves by the work done: one second per entry."""

    def __init__(self):
        self.done = []

    def __call__(self):
        return float(len(self.done))


def test_timeit_runs_the_statement_so_often():
    clock = Clock()
    made = Timer("work.append(1)", globals={"work": clock.done}, timer=clock).timeit(200)
    assert made.number_per_run == 200 and made.raw_times == [200.0] and made.mean == 1.0
    assert len(clock.done) == 202  # two to warm up


def test_autoranges_stop_when_they_should():
    clock, blocks = Clock(), []
    timer = Timer("work.append(1)", "extra = 1", globals={"work": clock.done}, timer=clock)
    made = timer.blocked_autorange(lambda n, s: blocks.append((n, s)), min_run_time=10)
    assert made.raw_times == [1.0] * 10 and blocks == [(1, 1.0)] * 10
    assert made.iqr == 0 and timer.adaptive_autorange(min_run_time=6).raw_times == [1.0] * 6


def test_threads_are_set_while_measuring_and_put_back():
    before, seen = torch.get_num_threads(), []
    Timer("seen.append(torch.get_num_threads())", globals={"seen": seen}, num_threads=1).timeit(2)
    assert set(seen) == {1} and torch.get_num_threads() == before


def test_statistics_and_text():
    made = Measurement(2, [2.0, 4.0, 6.0, 8.0, 100.0], label="op", sub_label="big")
    assert (made.median, made.mean, made.iqr) == (3.0, 12.0, 2.0)
    assert repr(made).startswith("op: big\n  median 3.00 s, IQR 2.00 s, mean 12.00 s")


def test_comparison_has_a_cell_per_measurement(capsys):
    results = [
        Measurement(1, [t], label="sum", sub_label=size, description=who)
        for size, who, t in (("10", "a", 1e-6), ("10", "b", 2e-6), ("20", "a", 3e-3))
    ]
    comparison = Compare(results[:2])
    comparison.extend_results(results[2:])
    comparison.print()
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split() == ["sum", "threads", "a", "b"]
    assert first.split() == ["10", "1", "1.00", "us", "2.00", "us"]
    assert second.split() == ["20", "1", "3.00", "ms"]


def test_other_languages_are_refused():
    with pytest.raises(NotImplementedError, match="Python only"):
        Timer(language="c++")
