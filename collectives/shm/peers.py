"""Reading other ranks' memory where the system allows it: long arrays are copied once.

Through slots every byte is copied twice: into a slot by its owner, and out of it by who needs it.
Linux's `process_vm_readv` copies from another process's memory into one's own:

    tell where my array lies; meet; read from the others' arrays; meet

After the second meeting everybody has read, and owners may change their arrays again. Nobody ever
*writes* into another's memory: a rank that gives up (its time is up, Ctrl-C) takes its array back, and
a write that comes late would damage it. A late read only spoils what the reader got, and the reader
knows: who gives up says so in the segment first, and readers look there when they have read. A rank
that has died cannot be read, nor come to the meeting. So an error never becomes wrong data.

Whether all ranks can read each other is tried at the first call that is long enough. Linux refuses it
between users, to processes with fewer capabilities, under some seccomp filters, and, where Yama's
`ptrace_scope` is 1 or more (many distributions' default), to everybody but parents. Nothing here asks
for an exception (`PR_SET_PTRACER`), which would also let debuggers in: that is for the user to decide
(`sysctl kernel.yama.ptrace_scope=0`). Data goes through slots then, as with DISTTORCH_SHM_DIRECT=0.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import numpy as np

from ..call import Call
from ..work import RankFailedError
from .layout import LINE, Layout
from .signals import Signals, Watch

Array = np.ndarray[Any, np.dtype[Any]]

#: Bytes of one system call; between them Python sees Ctrl-C.
READ_BYTES = 4 << 20

_MIB = 1 << 20
_NEVER = 1 << 62
#: From how many bytes on a call reads directly (of the longest array that passes from one rank to
#: another, or of the array that is reduced) where each rank has a core. Slots, which stay in the
#: caches, are as fast as long as the arrays fit there too, and reductions divide their work better.
ROOMY = {
    "broadcast": 24 * _MIB,
    "gather": 24 * _MIB,
    "scatter": 24 * _MIB,
    "all_gather": 8 * _MIB,
    "all_to_all": 4 * _MIB,
    "reduce_scatter": 64 * _MIB,
    "all_reduce": _NEVER,
}
#: With more ranks than cores each meeting, of which slots need one a block, changes processes.
CROWDED = {
    "broadcast": 8 * _MIB,
    "gather": 8 * _MIB,
    "scatter": _MIB,
    "all_gather": 8 * _MIB,
    "all_to_all": _MIB,
    "reduce_scatter": 8 * _MIB,
    "all_reduce": 16 * _MIB,
}

_PATIENCE = 2.0  # seconds for the watch to learn why a rank's memory is gone
_PID, _TOKEN_AT, _TOKEN, _VERDICT, _ADDRESS, _NBYTES, _ABANDONED = range(7)
_WORDS = LINE // 8
_YES, _CROWDED = 1, 2
_NUMBER, _POINTER, _SIZE = ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong


class _Range(ctypes.Structure):
    _fields_ = [("address", ctypes.c_void_p), ("nbytes", ctypes.c_size_t)]


_readv = getattr(ctypes.CDLL(None, use_errno=True), "process_vm_readv", None)
if _readv is not None:
    _readv.restype = ctypes.c_ssize_t
    _readv.argtypes = [_NUMBER, _POINTER, _SIZE, _POINTER, _SIZE, _SIZE]


class PeerMemory:
    """The arrays that the ranks of a node offer to each other. Used by one thread at a time.

    Args:
        memory: the segment.
        layout: what lies where in it.
        rank: of this process in the group.
        members: the job's number of each rank of the group.
        signals: for meetings.
        watch: says why a rank's memory is gone.
        least_bytes: from how many bytes on arrays are read so, the same on all ranks; None chooses.

    Attributes:
        allowed: whether all ranks can read each other's memory; None until it was tried.
        limits: for each call, from how many bytes on it asks `ready`; the same on all ranks.
    """

    def __init__(
        self,
        memory: Array,
        layout: Layout,
        rank: int,
        members: Sequence[int],
        signals: Signals,
        watch: Watch,
        least_bytes: int | None = None,
    ) -> None:
        self._rank, self._members = rank, members
        self._signals, self._watch = signals, watch
        self._chosen = None if least_bytes is None else dict.fromkeys(ROOMY, least_bytes)
        self.allowed: bool | None = None
        first = {call: min(ROOMY[call], CROWDED[call]) for call in ROOMY}  # to try it at all
        self.limits = dict.fromkeys(ROOMY, _NEVER) if layout.size == 1 else self._chosen or first
        rows = memory[layout.windows : layout.windows + layout.size * LINE]
        self._words = rows.view(np.int64).data  # reading one takes less time than with an array
        self._mine = rank * _WORDS
        self._rows = range(0, layout.size * _WORDS, _WORDS)
        self._ranges = (_Range * 3)()  # to, from, and also from
        self._to = ctypes.addressof(self._ranges)
        self._from = self._to + ctypes.sizeof(_Range)
        self._token = np.array([secrets.randbits(62)], np.int64)
        self._probe = np.zeros(1, np.int64)
        self._probe_at = self._probe.ctypes.data
        self._put(_PID, os.getpid())
        self._put(_TOKEN_AT, self._token.ctypes.data)
        self._put(_TOKEN, int(self._token[0]))

    def offer(self, array: Array | None = None) -> Offer:
        """Let others read a contiguous array, from the next meeting to the end of the `with` block.

        Args:
            array: None on ranks that have nothing to give.
        """
        nbytes = 0 if array is None else array.nbytes
        self._put(_NBYTES, nbytes)
        self._put(_ADDRESS, self._probe_at)
        if array is not None and nbytes and self.allowed is not False:
            # Memory of a device driver cannot be read so; an address of 0 says it.
            address = array.ctypes.data
            self._put(_ADDRESS, address if self._readable(address, nbytes) else 0)
        return Offer(self)

    def ready(self, call: Call) -> bool:
        """Whether all arrays offered can be read. All ranks have met since, and all ask."""
        if self.allowed is None:
            self._try(call)
        return self.allowed is True and all(self._words[row + _ADDRESS] for row in self._rows)

    def read(self, call: Call, rank: int, begin: int, out: Array) -> None:
        """Fill `out`, contiguous, from byte `begin` on of what `rank` offers.

        Raises:
            RankFailedError, or what the watch raises: the rank, or its memory, is gone.
        """
        row, left, target = rank * _WORDS, out.nbytes, out.ctypes.data
        pid, source, nbytes = (self._words[row + word] for word in (_PID, _ADDRESS, _NBYTES))
        if begin + left > nbytes:  # checks of calls may be off
            self._gone(call, rank, f"offers {nbytes} bytes, and {begin + left} are needed")
        source += begin
        while left:
            done = self._read(pid, source, target, min(left, READ_BYTES))
            if done <= 0:
                why = os.strerror(ctypes.get_errno()) if done else "nothing is there"
                self._gone(call, rank, f"cannot be read by rank {self._members[self._rank]}: {why}")
            source, target, left = source + done, target + done, left - done

    def finish(self, call: Call, meanwhile: Callable[[], None] | None = None) -> None:
        """Return when all have read, and what this rank has read is sure to be right.

        Args:
            meanwhile: what this rank has left to do that concerns nobody else.
        """
        self._signals.post()
        if meanwhile is not None:
            meanwhile()
        self._signals.wait(call)
        # Who sets the flag has not yet let go of its array: not set, what was read was there.
        for rank, row in enumerate(self._rows):
            if self._words[row + _ABANDONED]:
                self._gone(call, rank, "was taken back before all had read it")

    def abandon(self) -> None:
        """Say that this rank's array is about to change although others may be reading it."""
        self._put(_ABANDONED, 1)

    def _put(self, word: int, value: int) -> None:
        self._words[self._mine + word] = value

    def _try(self, call: Call) -> None:
        """Read every rank's token, and tell each other whether it was possible."""
        words = self._words
        can = os.environ.get("DISTTORCH_SHM_DIRECT") != "0" and all(
            # A rank in another container may have a number that means another process here.
            self._read(words[row + _PID], words[row + _TOKEN_AT], self._probe_at, 8) == 8
            and self._probe[0] == words[row + _TOKEN]
            for row in self._rows
        )
        self._put(_VERDICT, _YES * can | _CROWDED * bool(self._signals.crowded()))
        self._signals.post()
        self._signals.wait(call)
        verdicts = [words[row + _VERDICT] for row in self._rows]
        self.allowed = all(verdict & _YES for verdict in verdicts)
        crowded = any(verdict & _CROWDED for verdict in verdicts)
        if not self.allowed:
            self.limits = dict.fromkeys(ROOMY, _NEVER)
        elif self._chosen is None:
            self.limits = CROWDED if crowded else ROOMY

    def _read(self, pid: int, source: int, target: int, nbytes: int) -> int:
        """Bytes read, or -1."""
        if _readv is None:
            return -1
        to, from_, _ = self._ranges
        to.address, to.nbytes = target, nbytes
        from_.address, from_.nbytes = source, nbytes
        return _readv(pid, self._to, 1, self._from, 1, 0)

    def _readable(self, address: int, nbytes: int) -> bool:
        """Whether this rank's array could be read so, by its first and last bytes."""
        if _readv is None:
            return False
        to, first, last = self._ranges
        to.address, to.nbytes = self._probe_at, 2
        first.address, first.nbytes = address, 1
        last.address, last.nbytes = address + nbytes - 1, 1
        return _readv(self._words[self._mine + _PID], self._to, 1, self._from, 2, 0) == 2

    def _gone(self, call: Call, rank: int, why: str) -> None:
        """Raise; if possible, what the watch knows about the rank."""
        until = time.monotonic() + _PATIENCE
        while time.monotonic() < until:
            self._watch.look(call, [self._members[rank]])
            time.sleep(0.001)
        raise RankFailedError(
            f"{call} cannot complete on rank {self._members[self._rank]}: the memory of rank "
            f"{self._members[rank]} {why}; look for that rank's error, and if it has none, set "
            "DISTTORCH_SHM_DIRECT=0, which copies through shared memory only"
        )


class Offer:
    """The time in which others may read what this rank offers."""

    def __init__(self, peers: PeerMemory) -> None:
        self._peers = peers

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._peers.abandon()
