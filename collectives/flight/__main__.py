"""`python -m collectives.flight DIR`: who is missing where."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from ..timeline import wall_offsets, write_trace
from .reading import find, read, tell

EXAMPLE = """\
example:
  DISTTORCH_FLIGHT_DIR=flight disttorch-run -n 4 train.py    # hangs, or fails
  pkill -USR2 -f train.py                                    # only if it hangs: writes the records
  python -m collectives.flight flight

  Group 'world' (ranks 0, 1, 2, 3)
    ranks 0, 2 and 3 came to call 12; rank 1 came to call 11.
    rank 0 waits in all_reduce(float32 [4], SUM) at train.py:31 (call 12) since 5.0 s, for rank 1.
    MISSING: rank 1 did not come to the last call.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 if nobody is missing, 1 if somebody is, 2 if there is nothing to read."""
    parser = argparse.ArgumentParser(
        prog="python -m collectives.flight",
        description="Read the flight records of a job's ranks and say who is missing where.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("directory", help="where the records are: rank0.json, rank1.json, ...")
    parser.add_argument("--json", action="store_true", help="print the finding as JSON")
    parser.add_argument("--stack", type=int, default=6, metavar="N", help="frames to show per rank (6)")
    parser.add_argument("--trace", metavar="FILE", help="also write a timeline for ui.perfetto.dev")
    options = parser.parse_args(arguments)
    try:
        records, complaints = read(options.directory)
    except OSError as error:
        print(f"python -m collectives.flight: {error}", file=sys.stderr)
        return 2
    if options.trace and records:
        write_trace(options.trace, records, wall_offsets(records))
    finding = find(records, complaints)
    if options.json:
        print(json.dumps(finding.as_dict(), indent=1))
    else:
        print(tell(finding, options.stack))
    if not records:
        print(f"there is no flight record in {options.directory}", file=sys.stderr)
        return 2
    amiss = any(group.behind or group.waiting or group.mismatches for group in finding.groups)
    return 1 if finding.lacking or amiss else 0


if __name__ == "__main__":
    sys.exit(main())
