"""FileStore: a store in a file that all processes can open, for example on a shared file system.

The file is a log of the operations that change the store, in the order in which they happened. Each
process keeps a table and carries out in it what the others have added to the log since it last
looked. Reading and appending happen under a lock of the file, so an operation is indivisible.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
import weakref
from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any

from ..wire import pack, take
from .base import Store
from .table import WRITES, Op, QueueEmpty, StoreError, Table, timed_out

_USERS = b"\x00users"  # processes that have the store open, plus _LEFT for each that has left
_LEFT = 1 << 32
_PAUSE = 0.005  # seconds between two looks at the file


class _Log:
    """The file and the table it amounts to."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._table = Table()
        self._read = 0  # bytes of the file that are in the table
        self._process = os.getpid()
        self._lock = threading.Lock()  # flock does not keep threads of one process apart

    def run(self, op: int, args: Sequence[bytes], keys: Sequence[bytes] = ()) -> list[bytes] | None:
        """Carry out `op` if all `keys` are there, else return None."""
        with self._locked():
            if self._table.missing(keys):
                return None
            answer = self._table.run(op, args)
            if op in WRITES:
                self._append(pack(op, args))
            return answer

    def missing(self, keys: Sequence[bytes]) -> list[bytes]:
        with self._locked():
            return self._table.missing(keys)

    @contextmanager
    def _locked(self) -> Any:
        with self._lock:
            if os.getpid() != self._process:
                # A lock belongs to the open file, which a forked child shares with its parent.
                self.fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
                self._process = os.getpid()
            fcntl.flock(self.fd, fcntl.LOCK_EX)
            try:
                self._catch_up()
                yield
            finally:
                fcntl.flock(self.fd, fcntl.LOCK_UN)

    def _catch_up(self) -> None:
        size = os.fstat(self.fd).st_size
        if size < self._read:
            raise StoreError(f"{self.path} has become shorter: something else writes to it")
        if size == self._read:
            return
        data = bytearray()
        while len(data) < size - self._read:
            more = os.pread(self.fd, size - self._read - len(data), self._read + len(data))
            if not more:
                break
            data += more
        whole = len(data)
        while (record := take(data)) is not None:
            try:
                self._table.run(*record)
            except (ValueError, QueueEmpty) as error:
                raise StoreError(f"{self.path} is no log of a FileStore: {error}") from None
        if data:
            raise StoreError(
                f"{self.path} ends in the middle of a record: a process died while it wrote; "
                "remove the file and start the job again"
            )
        self._read += whole

    def _append(self, record: bytes) -> None:
        view = memoryview(record)
        while view:
            view = view[os.write(self.fd, view) :]
        self._read += len(record)


class FileStore(Store):
    """A store in a file.

    Args:
        file_name: made if it is not there. A file left over from a job that was killed holds that
            job's keys: remove it first.
        world_size: number of processes that will use the file. When as many have left, the file is
            removed; with -1 it is kept.

    Attributes:
        path: of the file.
    """

    def __init__(self, file_name: str, world_size: int = -1) -> None:
        super().__init__()
        self._keeper: FileStore | None = None
        self.path = os.fspath(file_name)
        self.world_size = world_size
        try:
            self._log = _Log(self.path)
        except OSError as error:
            raise StoreError(
                f"cannot open the file of a FileStore, {self.path}: {error.strerror}"
            ) from error
        self._log.run(Op.ADD, [_USERS, b"1"])
        self._finalizer = weakref.finalize(self, _leave, self._log, world_size)

    def close(self) -> None:
        """Leave the store; the last one removes the file."""
        self._finalizer()

    def clone(self) -> FileStore:
        other = object.__new__(FileStore)
        other.__dict__.update(self.__dict__)
        other._keeper = self  # the file stays as long as any of the two is used
        return other

    def _run(
        self, op: Op, args: Sequence[bytes], keys: Sequence[bytes] = (), timeout: float = 0.0
    ) -> list[bytes]:
        deadline = time.monotonic() + timeout if timeout else float("inf")
        while (answer := self._log.run(op, args, keys)) is None:
            if time.monotonic() >= deadline:
                raise timed_out(f"the file {self.path}", self._log.missing(keys), timeout)
            time.sleep(_PAUSE)
        return answer


def _leave(log: _Log, world_size: int) -> None:
    if os.getpid() != log._process:
        return  # a forked child is no user of its own
    try:
        answer = log.run(Op.ADD, [_USERS, b"%d" % (_LEFT - 1)])
        left, users = divmod(int(answer[0]) if answer else 0, _LEFT)
        if world_size > 0 and left >= world_size and users == 0:
            os.unlink(log.path)
    except (OSError, StoreError):
        pass  # somebody has removed the file already
    finally:
        os.close(log.fd)
