"""Counts what a group was asked to move, beside the least that any algorithm must send.

For every call type a ledger keeps four figures:

- `calls` (counted): calls made by this rank.
- `payload_bytes` (counted): size of the data in the caller's dtype, S below.
- `transport_bytes` (counted): size of the same data as handed to the transport. It differs from
  the payload only where float16 and bfloat16 are reduced, since those travel as float32, and
  where all_gather_object pads pickled objects to one length.
- `lower_bound_bytes` (theory): what a rank must send at least, averaged over the ranks of the
  group, for a payload S and n ranks, each rank holding its own full-size input:

  | call | S | lower bound |
  |---|---|---|
  | all_reduce | the array | 2 S (n-1)/n |
  | all_gather(_object) | the gathered output | S (n-1)/n |
  | reduce_scatter | the input | S (n-1)/n |
  | all_to_all | the input | S (n-1)/n |
  | broadcast(_object), reduce | the array | S (n-1)/n |
  | gather, scatter | the whole on the root | S (n-1)/n² |
  | send | the array | S |
  | recv, barrier, split | | 0 |

What MPI really puts on the wire is its own choice of algorithm and is not visible from here.
The bounds of all_reduce, all_gather and reduce_scatter are those of P. Patarasuk and X. Yuan,
"Bandwidth optimal all-reduce algorithms for clusters of workstations", JPDC 69 (2009).
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from fractions import Fraction


def lower_bound(call: str, payload_bytes: int, n: int) -> Fraction:
    """Bytes a rank must send at least for one `call` (mean over ranks; table above)."""
    others = Fraction(n - 1, n)
    if call == "all_reduce":
        return 2 * payload_bytes * others
    if call in ("gather", "scatter"):
        return payload_bytes * others / n
    if call == "send":
        return Fraction(payload_bytes)
    if call in ("recv", "barrier", "split"):
        return Fraction(0)
    return payload_bytes * others


@dataclass
class _Entry:
    calls: int = 0
    payload_bytes: int = 0
    transport_bytes: int = 0


class Ledger:
    """The counts of one rank of one group of `n` ranks."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._entries: dict[str, _Entry] = {}
        self._lock = threading.Lock()

    def count(self, call: str, payload_bytes: int, transport_bytes: int) -> None:
        with self._lock:
            entry = self._entries.setdefault(call, _Entry())
            entry.calls += 1
            entry.payload_bytes += payload_bytes
            entry.transport_bytes += transport_bytes

    def as_dict(self) -> dict[str, dict[str, float]]:
        """A copy: call type -> the four figures described above."""
        with self._lock:
            return {
                call: {
                    "calls": entry.calls,
                    "payload_bytes": entry.payload_bytes,
                    "transport_bytes": entry.transport_bytes,
                    # Each bound is linear in S, so the bound of the sum is the sum of bounds.
                    "lower_bound_bytes": float(lower_bound(call, entry.payload_bytes, self._n)),
                }
                for call, entry in sorted(self._entries.items())
            }

    def reset(self) -> None:
        with self._lock:
            self._entries.clear()
