"""The flight recorder: the last calls of a rank, and how to read what all ranks have left behind.

Every rank keeps its last calls in a ring. When a call fails, another rank fails, the program ends
by an exception, or SIGUSR2 comes, the ring is written to `rank<R>.json` in DISTTORCH_FLIGHT_DIR.
`python -m collectives.flight DIR` reads the records of all ranks and says who is missing where.

Recording costs well below a microsecond a call: calls are kept as they are, and nothing is formatted
before somebody asks.
"""

from __future__ import annotations

from .recorder import FORMAT, Recorder, innermost, is_users, last_words, recorder, stack, stacks

__all__ = ["FORMAT", "Recorder", "innermost", "is_users", "last_words", "recorder", "stack", "stacks"]
