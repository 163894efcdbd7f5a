"""Ledger and timeline: pure functions over counts and snapshots."""

from __future__ import annotations

import json
import threading

import pytest

from collectives.call import Call
from collectives.flight import Recorder
from collectives.ledger import FIGURES, Ledger, bytes_text, lower_bound, table
from collectives.timeline import clock_offset, trace, wall_offsets, write_trace

# ---- ledger -----------------------------------------------------------------------------------------


def made(name: str, payload: int, seconds: float) -> Call:
    call = Call(name, payload_bytes=payload, transport_bytes=2 * payload)
    call.ended = call.started + int(seconds * 1e9)
    return call


def test_ledger_adds_up():
    ledger = Ledger(4)
    ledger.add(made("all_reduce", 1000, 0.5))
    ledger.add(made("all_reduce", 200, 0.25), 6, 1800, 1700)
    ledger.add(made("send", 40, 0))
    figures = ledger.as_dict()
    assert list(figures) == ["all_reduce", "send"]
    assert figures["all_reduce"] == {
        "calls": 2, "payload_bytes": 1200, "transport_bytes": 2400, "seconds": pytest.approx(0.75),
        "messages": 6, "sent_bytes": 1800, "received_bytes": 1700, "lower_bound_bytes": 1800.0,
    }  # fmt: skip
    assert figures["send"]["lower_bound_bytes"] == 40 and figures["send"]["seconds"] == 0
    ledger.reset()
    assert ledger.as_dict() == {}


def test_ledger_counts_of_several_threads_are_all_kept():
    ledger = Ledger(2)
    call = made("barrier", 0, 0.001)
    barrier = threading.Barrier(4)

    def work() -> None:
        barrier.wait()
        for _ in range(5000):
            ledger.add(call)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.as_dict()["barrier"]["calls"] == 20000
    assert ledger.as_dict()["barrier"]["seconds"] == pytest.approx(20.0)


@pytest.mark.parametrize("n", [1, 2, 3, 8])
@pytest.mark.parametrize(
    "call, bound",
    [
        ("all_reduce", lambda s, n: 2 * s * (n - 1) / n),
        ("tree_all_reduce", lambda s, n: 2 * s * (n - 1) / n),
        ("all_gather", lambda s, n: s * (n - 1) / n),
        ("all_gather_object", lambda s, n: s * (n - 1) / n),
        ("reduce_scatter", lambda s, n: s * (n - 1) / n),
        ("all_to_all", lambda s, n: s * (n - 1) / n),
        ("broadcast", lambda s, n: s * (n - 1) / n),
        ("reduce", lambda s, n: s * (n - 1) / n),
        ("gather", lambda s, n: s * (n - 1) / n**2),
        ("scatter", lambda s, n: s * (n - 1) / n**2),
        ("gather_object", lambda s, n: s * (n - 1) / n**2),
        ("send", lambda s, n: s),
        ("recv", lambda s, n: 0),
        ("barrier", lambda s, n: 0),
        ("monitored_barrier", lambda s, n: 0),
    ],
)
def test_lower_bounds(call, bound, n):
    assert float(lower_bound(call, 720, n)) == pytest.approx(bound(720, n))


def test_table_shows_what_is_known():
    ledger = Ledger(2)
    ledger.add(made("all_reduce", 1 << 20, 0.002), 2, 1 << 20, 1 << 20)
    ledger.add(made("barrier", 0, 0.001))
    header, reduced, barrier = table(ledger.as_dict()).splitlines()
    cells = [" ".join(line.split()) for line in (header, reduced, barrier)]
    assert cells == [
        "call calls payload moved lower bound ratio seconds busbw GB/s",
        "all_reduce 1 1.0 MiB 1.0 MiB 1.0 MiB 1.00 0.002 0.52",
        "barrier 1 0 B - 0 B - 0.001 -",
    ]
    assert len(FIGURES) + 1 == len(ledger.as_dict()["barrier"])


@pytest.mark.parametrize(
    "count, text",
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 30, "3.0 GiB"), (5 << 40, "5.0 TiB")],
)
def test_bytes_as_text(count, text):
    assert bytes_text(count) == text


# ---- timeline ---------------------------------------------------------------------------------------


def test_clock_offset_takes_the_shortest_way():
    # The other clock is 1000 ahead; the second exchange is the quick one, and symmetric.
    assert clock_offset([(0, 1900, 1000), (2000, 3010, 2020), (5000, 6400, 5500)]) == 1000
    with pytest.raises(ValueError, match="at least one exchange"):
        clock_offset([])


def snapshot(rank: int, shift: int) -> dict:
    """A rank whose clock is `shift` ns ahead, with two groups; its last call is under way."""
    recorder = Recorder()
    recorder.rank, recorder.size = rank, 2
    for number, (group, start, end) in enumerate(
        [("world", 1_000, 3_000), ("part", 4_000, 6_000), ("world", 7_000, 0)], 1
    ):
        call = Call("all_reduce", "float32", 4, (4,), "SUM", payload_bytes=16)
        call.group, call.number = group, number
        recorder.begin(call)
        if end:
            recorder.end(call)
        call.started, call.ended = start + shift, end and end + shift
    record = recorder.snapshot()
    record["clock_ns"] = 9_000 + shift
    record["wall_ns"] = 1_000_000
    return record


def test_trace_has_a_row_for_each_rank_and_group_on_one_clock():
    records = [snapshot(0, 50), snapshot(1, 10_000_050)]
    found = trace(records, {0: 0, 1: 10_000_000})
    calls = [event for event in found["traceEvents"] if event["ph"] == "X"]
    assert [(e["pid"], e["tid"], e["ts"], e["dur"], e["cat"]) for e in calls] == [
        (rank, row, ts, dur, state)
        for rank in (0, 1)
        for row, ts, dur, state in [
            (0, 0.0, 2.0, "done"), (1, 3.0, 2.0, "done"), (0, 6.0, 2.0, "under way"),
        ]
    ]
    arguments = calls[0]["args"]
    assert arguments["site"].startswith("test_timeline.py:") and arguments["bytes"] == 16
    assert (arguments["dtype"], arguments["shape"], arguments["op"]) == ("float32", [4], "SUM")
    names = [e["args"]["name"] for e in found["traceEvents"] if e["ph"] == "M" and "name" in e["args"]]
    assert names[0].startswith("rank 0 (") and names[1:3] == ["group world", "group part"]


def test_trace_checks_its_input():
    with pytest.raises(ValueError, match=r"one snapshot of each rank, got those of ranks \[0, 0\]"):
        trace([snapshot(0, 0), snapshot(0, 0)])
    with pytest.raises(ValueError, match=r"no clock offset is given for ranks \[1\]"):
        trace([snapshot(0, 0), snapshot(1, 0)], {0: 0})
    assert trace([]) == {"traceEvents": [], "displayTimeUnit": "ns"}


def test_wall_clocks_align_records_of_ended_ranks(tmp_path):
    records = [snapshot(0, 0), snapshot(1, 777_000)]
    assert wall_offsets(records) == {0: 0, 1: 777_000}
    write_trace(tmp_path / "trace.json", records, wall_offsets(records))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert {e["ts"] for e in events if e["ph"] == "X"} == {0.0, 3.0, 6.0}
