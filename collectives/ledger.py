"""Counts what a group was asked to move and what moved, beside the least that any algorithm must send.

For every call type a ledger keeps eight figures:

- `calls` (counted): calls made by this rank.
- `payload_bytes` (counted): size of the data in the caller's dtype, S below.
- `transport_bytes` (counted): size of the same data as handed to the transport. It differs from
  the payload only where float16 and bfloat16 are reduced, since those travel as float32.
- `lower_bound_bytes` (theory): what a rank must send at least, averaged over the ranks of the
  group, for a payload S and n ranks, each rank holding its own full-size input:

  | call | S | lower bound |
  |---|---|---|
  | all_reduce, tree_all_reduce | the array (the sum of all shards) | 2 S (n-1)/n |
  | all_gather(_object) | the gathered output | S (n-1)/n |
  | reduce_scatter | the input | S (n-1)/n |
  | all_to_all | the input | S (n-1)/n |
  | broadcast(_object), reduce | the array | S (n-1)/n |
  | gather(_object), scatter(_object) | the whole on the root | S (n-1)/n² |
  | send | the array | S |
  | recv, barrier, monitored_barrier, split | | 0 |

  Parts of unequal sizes count by their total: all_gather's and reduce_scatter's bounds stay exact;
  in all_to_all a rank's own part is taken as S/n.
- `seconds` (measured): from the start of each call to its end, waiting for other ranks included.
- `messages`, `sent_bytes`, `received_bytes` (counted): what this rank has really moved to and from
  others, through sockets, MPI messages or shared memory; 0 where a library moves the data by an
  algorithm of its own choice, as in a native MPI or NCCL collective.

The bounds of all_reduce, all_gather and reduce_scatter are those of P. Patarasuk and X. Yuan,
"Bandwidth optimal all-reduce algorithms for clusters of workstations", JPDC 69 (2009).
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from threading import get_ident

from .call import Call

FIGURES = (
    "calls", "payload_bytes", "transport_bytes", "seconds", "messages", "sent_bytes", "received_bytes",
)  # fmt: skip
_FREE = ("recv", "barrier", "monitored_barrier", "split")
_ROOTED_WHOLE = ("gather", "scatter", "gather_object", "scatter_object")


def lower_bound(call: str, payload_bytes: int, n: int) -> Fraction:
    """Bytes a rank must send at least for one `call` (mean over ranks; table above)."""
    others = Fraction(n - 1, n)
    if call in ("all_reduce", "tree_all_reduce"):
        return 2 * payload_bytes * others
    if call in _ROOTED_WHOLE:
        return payload_bytes * others / n
    if call == "send":
        return Fraction(payload_bytes)
    if call in _FREE:
        return Fraction(0)
    return payload_bytes * others


class Ledger:
    """The counts of one rank of one group of `n` ranks. Threads may count at the same time."""

    def __init__(self, n: int) -> None:
        self._n = n
        # One row for each call type and thread: so a row has one writer, and needs no lock.
        self._rows: dict[tuple[str, int], list[float]] = {}

    def add(self, call: Call, messages: int = 0, sent_bytes: int = 0, received_bytes: int = 0) -> None:
        """Count a call that has ended well, and what moved; its times give the seconds."""
        row = self._row(call.name)
        row[0] += 1
        row[1] += call.payload_bytes
        row[2] += call.transport_bytes
        row[3] += call.ended - call.started  # nanoseconds in here
        row[4] += messages
        row[5] += sent_bytes
        row[6] += received_bytes

    def _row(self, call: str) -> list[float]:
        key = (call, get_ident())
        row = self._rows.get(key)
        if row is None:
            row = self._rows[key] = [0] * len(FIGURES)
        return row

    def as_dict(self) -> dict[str, dict[str, float]]:
        """A copy: call type -> the eight figures described above."""
        totals: dict[str, dict[str, float]] = {}
        for (call, _), row in sorted(self._rows.copy().items()):
            figures = totals.setdefault(call, dict.fromkeys(FIGURES, 0))
            for name, value in zip(FIGURES, row):
                figures[name] += value / 1e9 if name == "seconds" else value
        for call, figures in totals.items():
            # Each bound is linear in S, so the bound of the sum is the sum of bounds.
            bound = lower_bound(call, int(figures["payload_bytes"]), self._n)
            figures["lower_bound_bytes"] = float(bound)
        return totals

    def reset(self) -> None:
        self._rows = {}


_HEADER = ("call", "calls", "payload", "moved", "lower bound", "ratio", "seconds", "busbw GB/s")


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """The figures of `Ledger.as_dict` as a text table.

    "moved" is what this rank really sent, "ratio" that over the lower bound, and "busbw" the lower
    bound over the seconds: the rate that an algorithm without waste would have needed, so figures of
    different calls and numbers of ranks can be compared. "-" stands where a figure is not known.

    Args:
        rows: call type (or any other label) -> the eight figures.
    """
    lines = [_HEADER]
    for label, figures in rows.items():
        bound, seconds = figures["lower_bound_bytes"], figures["seconds"]
        sent = figures["sent_bytes"]
        known = sent > 0 or figures["messages"] > 0
        lines.append(
            (
                label,
                f"{figures['calls']:.0f}",
                bytes_text(figures["payload_bytes"]),
                bytes_text(sent) if known else "-",
                bytes_text(bound),
                f"{sent / bound:.2f}" if known and bound else "-",
                f"{seconds:.3f}" if seconds else "-",
                f"{bound / seconds / 1e9:.2f}" if seconds and bound else "-",
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADER))]
    text = []
    for line in lines:
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:])]
        text.append("  ".join(cells).rstrip())
    return "\n".join(text)


def bytes_text(count: float) -> str:
    """ "512 B", "1.5 KiB", "64.0 MiB"."""
    if count < 1024:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        count /= 1024
        if count < 1024:
            return f"{count:.1f} {unit}"
    return f"{count / 1024:.1f} TiB"
