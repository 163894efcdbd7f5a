"""What a rank is about to do: one collective call, as ranks compare it, record it and name it.

Two ranks make *the same call* when their fingerprints are equal: name, dtype, elements, op and root.
Where sizes may differ between ranks (all_gather of unequal parts), `count` is -1 and does not count.
"""

from __future__ import annotations

import os
import sys
import time
import zlib
from functools import cache
from types import CodeType
from typing import Any

_HERE = os.path.dirname(os.path.abspath(__file__))
_MASK = (1 << 63) - 1


class Call:
    """One call of one rank of one group.

    Attributes:
        name: "all_reduce", "broadcast", …
        dtype: name of the caller's dtype; "-" where there is no array.
        count: elements that every rank must bring; -1 where ranks may differ.
        extra: anything else that must be equal on all ranks, as an integer (a digest of counts).
        shape: of the caller's array, for messages.
        op: name of the reduction; "".
        root: rank in the group; -1 where there is none.
        group: the group's name.
        number: the how many-th collective call of this rank in this group it is, from 1.
        code, line: where the user made the call.
        fingerprint: positive 63-bit integer, equal on all ranks that make the same call.
        payload_bytes, transport_bytes: for the ledger.
        timeout: seconds that it may take; None for the watch's default.
        started, ended: nanoseconds of `time.perf_counter_ns`; 0 before it happened.
        error: what it raised, as text; "".
        whole: the call that this one is a step of; itself where it is none.
    """

    __slots__ = (
        "name", "dtype", "count", "shape", "op", "root", "group", "number", "code", "line",
        "fingerprint", "payload_bytes", "transport_bytes", "timeout", "started", "ended", "error",
        "whole",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        dtype: str = "-",
        count: int = 0,
        shape: tuple[int, ...] = (),
        op: str = "",
        root: int = -1,
        payload_bytes: int = 0,
        transport_bytes: int = 0,
        extra: int = 0,
    ) -> None:
        self.name = name
        self.dtype = dtype
        self.count = count
        self.shape = shape
        self.op = op
        self.root = root
        self.payload_bytes = payload_bytes
        self.transport_bytes = transport_bytes
        self.group = ""
        self.number = 0
        self.code, self.line = caller()
        self.fingerprint = (
            _kind(name, dtype, op)
            ^ (count + 2) * 0x9E3779B97F4A7C15
            ^ (root + 2) * 0xC2B2AE3D27D4EB4F
            ^ extra * 0x165667B19E3779F9
        ) & _MASK | 1
        self.timeout: float | None = None
        self.started = time.perf_counter_ns()
        self.ended = 0
        self.error = ""
        self.whole = self

    @property
    def site(self) -> str:
        """Where the user made the call, as "train.py:31"."""
        return f"{os.path.basename(self.code.co_filename)}:{self.line}"

    def __str__(self) -> str:
        parts = []
        if self.dtype != "-":
            parts.append(f"{self.dtype} {list(self.shape)}")
        if self.op:
            parts.append(self.op)
        if self.root >= 0:
            parts.append(f"root {self.root}")
        return f"{self.name}({', '.join(parts)}) at {self.site}"

    def step(self, name: str, dtype: str = "-", count: int = 0, root: int = -1) -> Call:
        """A call that is a part of this one: same place in the user's code, checked by itself."""
        part = Call(f"{self.name}: {name}", dtype, count, (count,) if count else (), "", root)
        part.code, part.line, part.group = self.code, self.line, self.group
        part.number, part.timeout, part.whole = self.number, self.timeout, self.whole
        return part

    def as_dict(self) -> dict[str, Any]:
        """For the flight record's JSON."""
        left_out = ("code", "line", "whole")
        record = {name: getattr(self, name) for name in self.__slots__ if name not in left_out}
        record["file"], record["line"] = self.code.co_filename, self.line
        record["shape"] = list(self.shape)
        return record


@cache
def _kind(name: str, dtype: str, op: str) -> int:
    text = f"{name} {dtype} {op}".encode()
    # Python's own hash differs from process to process.
    return zlib.crc32(text) << 31 ^ zlib.adler32(text)


_ours: dict[CodeType, bool] = {}
_OUR_FOLDERS = [_HERE + os.sep]


def hide(folder: str) -> None:
    """Count `folder`'s files as ours: the call is attributed to the code that called them."""
    _OUR_FOLDERS.append(os.path.abspath(folder) + os.sep)
    _ours.clear()


def caller() -> tuple[CodeType, int]:
    """The innermost frame that is not ours: its code and line."""
    frame = sys._getframe(2)
    while True:
        code = frame.f_code
        mine = _ours.get(code)
        if mine is None:
            mine = _ours[code] = code.co_filename.startswith(tuple(_OUR_FOLDERS))
        above = frame.f_back
        if not mine or above is None:
            return code, frame.f_lineno
        frame = above
