"""From the flight records of all ranks to who is missing where."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .recorder import FORMAT

Record = Mapping[str, Any]
_NAME = re.compile(r"rank(\d+)\.json")
_NEEDED = {"rank": int, "size": int, "clock_ns": int, "wall_ns": int, "calls": list, "groups": dict}
_CALL = ("name", "dtype", "shape", "op", "root", "group", "number", "started", "ended", "state", "site")


@dataclass
class GroupState:
    """How far the ranks of one group have come.

    Attributes:
        group: its name.
        members: ranks in the job; those with calls in the records where the members are not noted.
        furthest: rank -> number of its last call; 0 for a rank without one.
        waiting: one entry for each rank inside a call, or whose call failed while it waited: "rank",
            "call", "number", "seconds" (since it began, or failed), "error", and "for", the ranks it
            waits for where it is known.
        behind: ranks that have not come to the call furthest ahead, and are in no call of the group.
        mismatches: one sentence for each number at which ranks made different calls.
    """

    group: str
    members: list[int]
    furthest: dict[int, int] = field(default_factory=dict)
    waiting: list[dict[str, Any]] = field(default_factory=list)
    behind: list[int] = field(default_factory=list)
    mismatches: list[str] = field(default_factory=list)


@dataclass
class Finding:
    """What the records of one job say.

    Attributes:
        size: number of ranks in the job.
        ranks: those whose record was read.
        lacking: those without a readable record.
        complaints: one sentence for each file that could not be used.
        groups: how far each group has come.
        last: rank -> its last call, where it was at the end, why it was written.
    """

    size: int = 0
    ranks: list[int] = field(default_factory=list)
    lacking: list[int] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    groups: list[GroupState] = field(default_factory=list)
    last: dict[int, dict[str, Any]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def read(directory: str | os.PathLike[str]) -> tuple[list[Record], list[str]]:
    """The records in a directory, in rank order, and a sentence for each file that is none.

    Raises:
        FileNotFoundError: there is no such directory.
    """
    folder = Path(directory)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no directory: give the one named by DISTTORCH_FLIGHT_DIR")
    records: dict[int, Record] = {}
    complaints = []
    for path in sorted(folder.iterdir()):
        name = _NAME.fullmatch(path.name)
        if name is None:
            if not path.name.startswith("."):  # left by a rank that died while it wrote
                complaints.append(f"{path.name} is not named rank<R>.json and was left out")
            continue
        try:
            record = _checked(json.loads(path.read_text(encoding="utf-8")), int(name[1]))
        except (ValueError, OSError) as error:
            complaints.append(f"{path.name} was left out: {_reason(error)}")
            continue
        records[record["rank"]] = record
    return [records[rank] for rank in sorted(records)], complaints


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
        return "it is torn or no JSON at all"
    return str(error)


def _checked(record: Any, rank: int) -> Record:
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ValueError(f"it is no {FORMAT!r}")
    for key, kind in _NEEDED.items():
        if not isinstance(record.get(key), kind):
            raise ValueError(f"its {key!r} is missing or of a wrong type")
    if record["rank"] != rank:
        raise ValueError(f"it says it is of rank {record['rank']}")
    for call in record["calls"]:
        if not isinstance(call, dict) or any(key not in call for key in _CALL):
            raise ValueError("one of its calls lacks fields")
    return record


def find(records: Sequence[Record], complaints: Sequence[str] = ()) -> Finding:
    """Compare the records of one job."""
    finding = Finding(complaints=list(complaints))
    sizes = sorted({record["size"] for record in records})
    if len(sizes) > 1:
        finding.complaints.append(f"the records say the job has {sizes} ranks: they are of several jobs")
    finding.ranks = [record["rank"] for record in records]
    finding.size = max([*sizes, *(rank + 1 for rank in finding.ranks)], default=0)
    finding.lacking = [rank for rank in range(finding.size) if rank not in finding.ranks]
    for record in records:
        finding.last[record["rank"]] = _last(record)
    names = dict.fromkeys(call["group"] for record in records for call in record["calls"])
    finding.groups = [_group(name, records) for name in names]
    return finding


def _last(record: Record) -> dict[str, Any]:
    last = max(record["calls"], key=lambda call: call["started"], default=None)
    stacks = record.get("stacks") or {}
    stack = list(stacks.get("MainThread") or next(iter(stacks.values()), []))
    ours = tuple(record.get("ours") or ())
    while ours and len(stack) > 1 and stack[-1].startswith(ours):
        stack.pop()  # how we wait is not what the reader looks for
    return {
        "call": None if last is None else call_text(last),
        "state": None if last is None else last["state"],
        "number": None if last is None else last["number"],
        "group": None if last is None else last["group"],
        "seconds": None if last is None else _age(last, record),
        "reasons": list(record.get("reasons") or ()),
        "stack": stack,
    }


def _age(call: Mapping[str, Any], record: Record) -> float:
    return (record["clock_ns"] - (call["ended"] or call["started"])) / 1e9


def call_text(call: Mapping[str, Any]) -> str:
    """As `Call.__str__`: "all_reduce(float32 [4], SUM) at train.py:31"."""
    parts = [] if call["dtype"] == "-" else [f"{call['dtype']} {list(call['shape'])}"]
    if call["op"]:
        parts.append(str(call["op"]))
    if call["root"] >= 0:
        parts.append(f"root {call['root']}")
    return f"{call['name']}({', '.join(parts)}) at {call['site']}"


def _group(name: str, records: Sequence[Record]) -> GroupState:
    noted = [record["groups"][name] for record in records if name in record["groups"]]
    calling = [r["rank"] for r in records if any(call["group"] == name for call in r["calls"])]
    state = GroupState(name, sorted(set(noted[0] if noted else calling)))
    kinds: dict[int, dict[int, Mapping[str, Any]]] = {}  # number -> rank -> call
    for record in records:
        rank = record["rank"]
        if rank not in state.members:
            continue
        # Messages between two ranks have no number: nobody else makes that call.
        calls = [call for call in record["calls"] if call["group"] == name]
        reached = record.get("reached") or {}  # of a call that the ring no longer holds, too
        state.furthest[rank] = max([call["number"] for call in calls] + [reached.get(name, 0)])
        for call in calls:
            if call["number"] and _comparable(call):
                kinds.setdefault(call["number"], {})[rank] = call
            if call["state"] == "under way" or call.get("waiting_for"):
                state.waiting.append(
                    {
                        "rank": rank,
                        "call": call_text(call),
                        "number": call["number"],
                        "seconds": _age(call, record),
                        "for": list(call.get("waiting_for") or ()),
                        "error": call.get("error", ""),
                    }
                )
    front = max(state.furthest.values(), default=0)
    inside = {entry["rank"] for entry in state.waiting}
    state.behind = [r for r, number in state.furthest.items() if number < front and r not in inside]
    for number, calls_of in sorted(kinds.items()):
        state.mismatches += _mismatch(number, calls_of)
    return state


def _comparable(call: Mapping[str, Any]) -> bool:
    return isinstance(call.get("fingerprint"), int)


def _mismatch(number: int, calls: Mapping[int, Mapping[str, Any]]) -> list[str]:
    by_print: dict[int, list[int]] = {}
    for rank, call in sorted(calls.items()):
        by_print.setdefault(call["fingerprint"], []).append(rank)
    if len(by_print) < 2:
        return []
    parts = [f"{_ranks(members)} made {call_text(calls[members[0]])}" for members in by_print.values()]
    return [f"call {number} differs: {'; '.join(parts)}"]


def _ranks(ranks: Sequence[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    return f"ranks {', '.join(map(str, ranks[:-1]))} and {ranks[-1]}"


def tell(finding: Finding, stack_lines: int = 6) -> str:
    """The finding in plain words."""
    lines = [f"{len(finding.ranks)} of {finding.size} ranks left a record."]
    lines += [f"! {complaint}" for complaint in finding.complaints]
    if finding.lacking:
        lines.append(
            f"! No record of {_ranks(finding.lacking)}: killed before it could write, or it ended well."
        )
    for group in finding.groups:
        lines += ["", f"Group {group.group!r} (ranks {', '.join(map(str, group.members))})"]
        lines += [f"  {sentence}" for sentence in _group_sentences(group, finding)]
    for rank, last in finding.last.items():
        lines += ["", f"Rank {rank}"]
        lines += [f"  {sentence}" for sentence in _rank_sentences(last, stack_lines)]
    return "\n".join(lines)


def _group_sentences(group: GroupState, finding: Finding) -> list[str]:
    by_number: dict[int, list[int]] = {}
    for rank, number in sorted(group.furthest.items()):
        by_number.setdefault(number, []).append(rank)
    said = [
        f"{_ranks(members)} came to call {number}" if number else f"{_ranks(members)} made no call"
        for number, members in sorted(by_number.items(), reverse=True)
    ]
    sentences = ["; ".join(said) + "."]
    sentences += [f"MISMATCH: {text}." for text in group.mismatches]
    for entry in group.waiting:
        place = f" (call {entry['number']})" if entry["number"] else ""
        awaited = f", for {_ranks(entry['for'])}" if entry["for"] else ""
        waits = "waited in vain" if entry["error"] else "waits"
        since = "" if entry["error"] else f" since {entry['seconds']:.1f} s"
        sentences.append(f"rank {entry['rank']} {waits} in {entry['call']}{place}{since}{awaited}.")
    absent = [rank for rank in group.members if rank in finding.lacking]
    if group.behind:
        sentences.append(f"MISSING: {_ranks(group.behind)} did not come to the last call.")
    if absent and (group.waiting or group.behind):
        sentences.append(f"MISSING: {_ranks(absent)} left no record, and may be the one waited for.")
    if not group.waiting and not group.behind and not group.mismatches:
        sentences.append("Nobody waits.")
    return sentences


def _rank_sentences(last: Mapping[str, Any], stack_lines: int) -> list[str]:
    sentences = [f"written because: {reason.partition(chr(10))[0]}" for reason in last["reasons"]]
    if last["call"] is None:
        sentences.append("it made no call.")
    else:
        when = "began" if last["state"] == "under way" else "ended"
        place = f"call {last['number']} of group {last['group']!r}, " if last["number"] else ""
        sentences.append(
            f"last call: {last['call']} ({place}{last['state']}, {when} {last['seconds']:.1f} s before)."
        )
    if last["stack"] and stack_lines:
        sentences.append("stack (innermost last):")
        sentences += [f"  {line}" for line in last["stack"][-stack_lines:]]
    return sentences
