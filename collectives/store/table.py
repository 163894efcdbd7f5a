"""What every store is underneath: keys with values, queues, and the operations on them.

Operations take and return lists of bytes, so that one and the same table is called directly
(HashStore), over a connection (TCPStore) and from the log in a file (FileStore).
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from ..work import CollectiveError


class StoreError(CollectiveError):
    """A store could not do what was asked."""


class StoreTimeout(StoreError, TimeoutError):
    """A key did not appear in time."""


class StoreConnectionError(StoreError):
    """The process that hosts a store cannot be reached, or is gone."""


class QueueEmpty(StoreError):
    """Nothing in the queue, and the caller did not want to wait."""


class Op(enum.IntEnum):
    """What a store can do; the numbers are the protocol's."""

    NOTHING = 0  # only wait
    SET = 1  # key, value, key, value, ...
    GET = 2  # key, ...
    ADD = 3  # key, integer
    APPEND = 4  # key, value
    COMPARE_SET = 5  # key, expected, desired
    DELETE = 6  # key
    CHECK = 7  # key, ...
    COUNT = 8
    LIST = 9
    PUSH = 10  # key, value
    POP = 11  # key
    LENGTH = 12  # key


WRITES = frozenset({Op.SET, Op.ADD, Op.APPEND, Op.COMPARE_SET, Op.DELETE, Op.PUSH, Op.POP})


class Table:
    """The content of a store. Not thread-safe."""

    def __init__(self) -> None:
        self._values: dict[bytes, bytes] = {}
        self._queues: dict[bytes, deque[bytes]] = {}

    def missing(self, keys: Iterable[bytes]) -> list[bytes]:
        """Those of `keys` that have neither a value nor anything in a queue."""
        return [key for key in keys if key not in self._values and key not in self._queues]

    def run(self, op: int, args: Sequence[bytes]) -> list[bytes]:
        """Carry out one operation.

        Raises:
            ValueError: there is no such operation, or it makes no sense for the value that is there.
            QueueEmpty: POP from an empty queue.
        """
        method, count = _METHODS[Op(op)]
        if count is not None and len(args) != count or op == Op.SET and len(args) % 2:
            raise ValueError(f"{Op(op).name} does not take {len(args)} arguments")
        return method(self, *args)

    def _nothing(self) -> list[bytes]:
        return []

    def _set(self, *pairs: bytes) -> list[bytes]:
        self._values.update(zip(pairs[::2], pairs[1::2]))
        return []

    def _get(self, *keys: bytes) -> list[bytes]:
        missing = [key for key in keys if key not in self._values]
        if missing:
            raise ValueError(f"{names(missing)} is a queue: read it with queue_pop")
        return [self._values[key] for key in keys]

    def _add(self, key: bytes, amount: bytes) -> list[bytes]:
        old = self._values.get(key, b"0")
        try:
            new = b"%d" % (int(old) + int(amount))
        except ValueError:
            raise ValueError(
                f"add to key {names([key])}: its value {old[:40]!r} is no integer"
            ) from None
        self._values[key] = new
        return [new]

    def _append(self, key: bytes, value: bytes) -> list[bytes]:
        self._values[key] = self._values.get(key, b"") + value
        return []

    def _compare_set(self, key: bytes, expected: bytes, desired: bytes) -> list[bytes]:
        old = self._values.get(key)
        # PyTorch's rule: an absent key counts as empty, and is answered by what was expected.
        if old is None and expected:
            return [expected]
        if old is None or old == expected:
            self._values[key] = desired
            return [desired]
        return [old]

    def _delete(self, key: bytes) -> list[bytes]:
        gone = [self._values.pop(key, None), self._queues.pop(key, None)]
        return [b"0" if gone == [None, None] else b"1"]

    def _check(self, *keys: bytes) -> list[bytes]:
        return [b"0" if self.missing(keys) else b"1"]

    def _count(self) -> list[bytes]:
        return [b"%d" % (len(self._values) + len(self._queues))]

    def _list(self) -> list[bytes]:
        return [*self._values, *self._queues]

    def _push(self, key: bytes, value: bytes) -> list[bytes]:
        self._queues.setdefault(key, deque()).append(value)
        return []

    def _pop(self, key: bytes) -> list[bytes]:
        queue = self._queues.get(key)
        if queue is None:
            raise QueueEmpty(f"queue {names([key])} is empty")
        value = queue.popleft()
        if not queue:
            del self._queues[key]
        return [value]

    def _length(self, key: bytes) -> list[bytes]:
        return [b"%d" % len(self._queues.get(key, ()))]


# With the number of arguments; None where it may be any.
_METHODS: dict[Op, tuple[Callable[..., list[bytes]], int | None]] = {
    Op.NOTHING: (Table._nothing, 0),
    Op.SET: (Table._set, None),
    Op.GET: (Table._get, None),
    Op.ADD: (Table._add, 2),
    Op.APPEND: (Table._append, 2),
    Op.COMPARE_SET: (Table._compare_set, 3),
    Op.DELETE: (Table._delete, 1),
    Op.CHECK: (Table._check, None),
    Op.COUNT: (Table._count, 0),
    Op.LIST: (Table._list, 0),
    Op.PUSH: (Table._push, 2),
    Op.POP: (Table._pop, 1),
    Op.LENGTH: (Table._length, 1),
}


def names(keys: Iterable[bytes], most: int = 8) -> str:
    """Keys as a message shows them."""
    shown = [repr(key.decode(errors="replace")) for key in keys]
    more = f" and {len(shown) - most} more" if len(shown) > most else ""
    return ", ".join(shown[:most]) + more


def timed_out(where: str, missing: Sequence[bytes], timeout: float) -> StoreTimeout:
    """The error of a wait that was in vain."""
    return StoreTimeout(
        f"Wait timeout: no value for {'key' if len(missing) == 1 else 'keys'} {names(missing)} in "
        f"{where} after {timeout:g} s"
    )
