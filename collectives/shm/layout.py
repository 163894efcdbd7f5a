"""What lies where in the segment of a group.

posts      a 128-byte line a rank: its counter, and the fingerprints of its last two calls
sleepers   a row a rank: byte k says that rank k sleeps until this rank posts
cores      a bit a core, a row a rank: where the rank may run
windows    a line a rank: what it lets the others read of its own memory (`peers`)
counts     a row a rank, for the last two calls: what it sends to each rank and expects from each
notes      a text or a few bytes a rank
slots      three a rank, for data
"""

from __future__ import annotations

from functools import cached_property

LINE = 128  # processors fetch 64-byte lines in pairs
CORE_BYTES = 128
NOTE_BYTES = 2048
SLOTS = 3
_PAGE = 4096


def slot_bytes_for(size: int) -> int:
    """The slots that `size` ranks get unless they ask for others.

    Half a mebibyte gives the best speed where three of them share a core's L2 cache with the caller's
    data; all ranks together take at most 12 MiB (a container's /dev/shm often has 64).
    """
    slot = min(512 << 10, (4 << 20) // size)
    return max(slot // 4096 * 4096, 64 * size)


def _up(nbytes: int, unit: int) -> int:
    return -(-nbytes // unit) * unit


class Layout:
    """Offsets in bytes, for `size` ranks with slots of `slot_bytes`.

    Raises:
        ValueError: the slots are no multiple of 64 bytes, or have less than 64 bytes a rank.
    """

    def __init__(self, size: int, slot_bytes: int) -> None:
        if slot_bytes % 64 or slot_bytes < 64 * size:
            raise ValueError(
                f"a slot of {slot_bytes} bytes for {size} ranks: take a multiple of 64, "
                f"at least {64 * size}"
            )
        self.size = size
        self.slot_bytes = slot_bytes
        self.row_bytes = _up(size, LINE)
        self.sleepers = size * LINE
        self.cores = self.sleepers + size * self.row_bytes
        self.windows = self.cores + size * CORE_BYTES
        self.counts = self.windows + size * LINE
        self.notes = self.counts + 2 * size * 2 * size * 8
        self.slots = _up(self.notes + size * NOTE_BYTES, _PAGE)

    @cached_property
    def nbytes(self) -> int:
        return _up(self.slots + self.size * SLOTS * self.slot_bytes, _PAGE)

    def post(self, rank: int) -> int:
        return rank * LINE

    def fingerprint(self, rank: int, turn: int) -> int:
        return rank * LINE + 16 + 8 * turn

    def sleeper_row(self, rank: int) -> int:
        return self.sleepers + rank * self.row_bytes

    def core_row(self, rank: int) -> int:
        return self.cores + rank * CORE_BYTES

    def note(self, rank: int) -> int:
        return self.notes + rank * NOTE_BYTES

    def slot(self, rank: int, which: int) -> int:
        return self.slots + (rank * SLOTS + which) * self.slot_bytes
