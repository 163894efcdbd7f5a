"""Collectives between the ranks of one node, through memory that they share.

A rank writes what others need into its own slots, posts, waits until all have posted, and reads
theirs: `segment` is the memory, `layout` says what lies where in it, `signals` is posting and waiting,
`pipeline` how long payloads pass through short slots. `peers` reads the longest ones straight from
the other ranks' memory, where the system allows it; `small` prepares what the shortest ones need.
`meetings`, `reductions` and `engine` are the calls. Nothing here knows groups, sockets or MPI.
"""

from .engine import NodeEngine
from .segment import Segment, available, why_not

__all__ = ["NodeEngine", "Segment", "available", "why_not"]
