"""One trace of all ranks' calls, for Perfetto (ui.perfetto.dev) or chrome://tracing.

A process row per rank, a thread row per group; the clocks of all ranks are moved to that of one of
them. Format: "Trace Event Format", complete events ("X") and flow-free metadata ("M").
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Snapshot = Mapping[str, Any]  # what `flight.Recorder.snapshot` returns


def clock_offset(exchanges: Iterable[tuple[int, int, int]]) -> int:
    """Nanoseconds by which the other clock is ahead of ours.

    Of all exchanges the one with the shortest way there and back counts, its two halves taken as
    equal: the error is at most half of that way (D. Mills, RFC 5905, section 10).

    Args:
        exchanges: (when we sent, by our clock; the other's clock; when its answer came, by ours).

    Raises:
        ValueError: there are none.
    """
    best = min(exchanges, key=lambda exchange: exchange[2] - exchange[0], default=None)
    if best is None:
        raise ValueError("clock_offset needs at least one exchange with the other rank")
    sent, theirs, came = best
    return theirs - (sent + came) // 2


def wall_offsets(snapshots: Sequence[Snapshot]) -> dict[int, int]:
    """Offsets from the wall clocks in the snapshots, for records that outlived their ranks.

    As good as the nodes' wall clocks agree: milliseconds where they follow NTP.

    Returns:
        rank -> nanoseconds by which its clock is ahead of that of the first snapshot's rank.
    """
    if not snapshots:
        return {}
    base = snapshots[0]["clock_ns"] - snapshots[0]["wall_ns"]
    return {each["rank"]: each["clock_ns"] - each["wall_ns"] - base for each in snapshots}


def trace(snapshots: Sequence[Snapshot], offsets: Mapping[int, int] | None = None) -> dict[str, Any]:
    """The trace as a JSON-able dictionary.

    Args:
        snapshots: one of each rank.
        offsets: rank -> nanoseconds by which its clock is ahead (`Watch.clock_offsets`, of any one
            rank); None: all clocks are the same, as on one node.

    Raises:
        ValueError: two snapshots of one rank, or no offset for a rank.
    """
    seen = [each["rank"] for each in snapshots]
    if len(set(seen)) != len(seen):
        raise ValueError(f"a trace needs one snapshot of each rank, got those of ranks {sorted(seen)}")
    if offsets is not None and (without := sorted(set(seen) - set(offsets))):
        raise ValueError(f"no clock offset is given for ranks {without}")
    shifts = dict.fromkeys(seen, 0) if offsets is None else offsets
    starts = [
        call["started"] - shifts[each["rank"]] for each in snapshots for call in each["calls"]
    ]
    origin = min(starts, default=0)
    events: list[dict[str, Any]] = []
    for each in sorted(snapshots, key=lambda one: one["rank"]):
        events += _rank_events(each, origin + shifts[each["rank"]])
    return {"traceEvents": events, "displayTimeUnit": "ns"}


def _rank_events(snapshot: Snapshot, origin: int) -> list[dict[str, Any]]:
    rank = snapshot["rank"]
    title = f"rank {rank} ({snapshot.get('host', '?')}, pid {snapshot.get('pid', '?')})"
    events = [
        _metadata("process_name", rank, 0, name=title),
        _metadata("process_sort_index", rank, 0, sort_index=rank),
    ]
    rows: dict[str, int] = {}
    for call in snapshot["calls"]:
        row = rows.get(call["group"])
        if row is None:
            row = rows[call["group"]] = len(rows)
            events.append(_metadata("thread_name", rank, row, name=f"group {call['group'] or '-'}"))
        end = call["ended"] or snapshot["clock_ns"]  # under way: drawn up to when it was looked at
        events.append(
            {
                "name": call["name"],
                "cat": call["state"],
                "ph": "X",
                "pid": rank,
                "tid": row,
                "ts": (call["started"] - origin) / 1e3,  # microseconds
                "dur": max(0, end - call["started"]) / 1e3,
                "args": _arguments(call),
            }
        )
    return events


def _arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    shown = {
        "number": call["number"],
        "dtype": call["dtype"],
        "shape": list(call["shape"]),
        "bytes": call["payload_bytes"],
        "site": call["site"],
        "state": call["state"],
    }
    if call["op"]:
        shown["op"] = call["op"]
    if call["root"] >= 0:
        shown["root"] = call["root"]
    if call["error"]:
        shown["error"] = call["error"]
    return shown


def _metadata(kind: str, rank: int, row: int, **values: Any) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": rank, "tid": row, "args": values}


def write_trace(
    path: str | os.PathLike[str],
    snapshots: Sequence[Snapshot],
    offsets: Mapping[int, int] | None = None,
) -> None:
    """Write `trace(snapshots, offsets)` to `path`.

    Raises:
        ValueError: as `trace`.
        OSError: the file cannot be written.
    """
    content = trace(snapshots, offsets)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file)
