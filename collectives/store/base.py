"""The interface of a store, as users of torch.distributed know it, and the stores without a server."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import timedelta

from .table import Op, Table, timed_out

Value = str | bytes
DEFAULT_TIMEOUT = timedelta(seconds=300)


def _bytes(value: Value, what: str) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    raise TypeError(f"{what} of a store must be str or bytes, got {type(value).__name__}")


def _check_timeout(timeout: timedelta) -> timedelta:
    if not isinstance(timeout, timedelta):
        raise TypeError(f"timeout must be a datetime.timedelta, got {type(timeout).__name__}")
    return timeout


class Store:
    """Keys and values that all ranks see: how they find each other before they can communicate.

    Keys are str, values str or bytes and come back as bytes. A store is thread-safe: a thread that
    waits for a key does not keep others from setting it. Subclasses implement `_run`.

    Attributes:
        timeout: how long `get`, `wait` and the like wait for a key; 0 means without limit.
    """

    def __init__(self, timeout: timedelta = DEFAULT_TIMEOUT) -> None:
        self._timeout = _check_timeout(timeout)

    def _run(
        self, op: Op, args: Sequence[bytes], keys: Sequence[bytes] = (), timeout: float = 0.0
    ) -> list[bytes]:
        """Wait until all `keys` are there, then carry out `op`, in one indivisible step.

        Args:
            op, args: see `Table`.
            keys: to wait for.
            timeout: seconds; 0 waits without limit.

        Raises:
            StoreTimeout: a key did not appear in time.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how to carry out {op.name}")

    @property
    def timeout(self) -> timedelta:
        return self._timeout

    def set_timeout(self, timeout: timedelta) -> None:
        """Change how long `get`, `wait` and the like wait for a key."""
        self._timeout = _check_timeout(timeout)

    def set(self, key: str, value: Value) -> None:
        """Give `key` a value, whether or not it had one."""
        self._run(Op.SET, [_bytes(key, "a key"), _bytes(value, "a value")])

    def get(self, key: str) -> bytes:
        """The value of `key`; waits for it if it is not there yet.

        Raises:
            StoreTimeout: it did not appear within `timeout`.
        """
        return self.multi_get([key])[0]

    def add(self, key: str, amount: int) -> int:
        """Add to a counter, which begins at 0, and return its new value.

        Raises:
            ValueError: `key` has a value that is no integer.
        """
        return int(self._run(Op.ADD, [_bytes(key, "a key"), b"%d" % amount])[0])

    def append(self, key: str, value: Value) -> None:
        """Add `value` to the end of the value of `key`."""
        self._run(Op.APPEND, [_bytes(key, "a key"), _bytes(value, "a value")])

    def compare_set(self, key: str, expected: Value, desired: Value) -> bytes:
        """Set `key` to `desired` if its value is `expected`, and return its value afterwards.

        A key that is not there is set if `expected` is empty; otherwise `expected` is returned,
        as PyTorch does it.
        """
        args = [_bytes(key, "a key"), _bytes(expected, "a value"), _bytes(desired, "a value")]
        return self._run(Op.COMPARE_SET, args)[0]

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        """Return when all `keys` are there.

        Raises:
            StoreTimeout: naming the keys that did not appear within `timeout`.
        """
        self._run(Op.NOTHING, (), [_bytes(key, "a key") for key in keys], self._seconds(timeout))

    def check(self, keys: Sequence[str]) -> bool:
        """Whether all `keys` are there. Does not wait."""
        return self._run(Op.CHECK, [_bytes(key, "a key") for key in keys]) == [b"1"]

    def delete_key(self, key: str) -> bool:
        """Remove `key`; whether it was there."""
        return self._run(Op.DELETE, [_bytes(key, "a key")]) == [b"1"]

    def num_keys(self) -> int:
        """Number of keys. As in PyTorch, a TCPStore or FileStore counts one of its own."""
        return int(self._run(Op.COUNT, ())[0])

    def list_keys(self) -> list[str]:
        """The keys that were set, in the order in which they were."""
        return [key.decode() for key in self._run(Op.LIST, ()) if not key.startswith(b"\x00")]

    def multi_get(self, keys: Sequence[str]) -> list[bytes]:
        """The values of several keys; waits until all are there."""
        wanted = [_bytes(key, "a key") for key in keys]
        return self._run(Op.GET, wanted, wanted, self._seconds())

    def multi_set(self, keys: Sequence[str], values: Sequence[Value]) -> None:
        """Give several keys their values in one step."""
        if len(keys) != len(values):
            raise ValueError(f"multi_set got {len(keys)} keys but {len(values)} values")
        pairs = [
            item
            for key, value in zip(keys, values)
            for item in (_bytes(key, "a key"), _bytes(value, "a value"))
        ]
        self._run(Op.SET, pairs)

    def has_extended_api(self) -> bool:
        """Whether append, multi_get, multi_set and queues work: they always do."""
        return True

    def queue_push(self, key: str, value: Value) -> None:
        """Put `value` at the end of the queue `key`."""
        self._run(Op.PUSH, [_bytes(key, "a key"), _bytes(value, "a value")])

    def queue_pop(self, key: str, block: bool = True) -> bytes:
        """Take the first value of the queue `key`.

        Raises:
            StoreTimeout: `block`, and the queue stayed empty for `timeout`.
            QueueEmpty: not `block`, and the queue is empty.
        """
        name = _bytes(key, "a key")
        return self._run(Op.POP, [name], [name] if block else (), self._seconds())[0]

    def queue_len(self, key: str) -> int:
        """Number of values in the queue `key`."""
        return int(self._run(Op.LENGTH, [_bytes(key, "a key")])[0])

    def barrier(self, key: str, world_size: int, timeout: timedelta | None = None) -> None:
        """Return when `world_size` processes have called it with this `key`.

        Raises:
            StoreTimeout: not all came within `timeout`.
        """
        if self.add(f"{key}/num_members", 1) == world_size:
            self.set(f"{key}/last_member", "<val_ignored>")
        self.wait([f"{key}/last_member"], timeout)

    def clone(self) -> Store:
        """Another handle of the same store, with a timeout of its own."""
        raise NotImplementedError(f"{type(self).__name__} cannot be cloned")

    def _seconds(self, timeout: timedelta | None = None) -> float:
        return (self._timeout if timeout is None else _check_timeout(timeout)).total_seconds()


class HashStore(Store):
    """A store inside this process, for its threads."""

    def __init__(self) -> None:
        super().__init__()
        self._table = Table()
        self._changed = threading.Condition()

    def _run(
        self, op: Op, args: Sequence[bytes], keys: Sequence[bytes] = (), timeout: float = 0.0
    ) -> list[bytes]:
        with self._changed:
            there = self._changed.wait_for(lambda: not self._table.missing(keys), timeout or None)
            if not there:
                raise timed_out("this HashStore", self._table.missing(keys), timeout)
            answer = self._table.run(op, args)
            self._changed.notify_all()
            return answer

    def clone(self) -> HashStore:
        other = HashStore()
        other._table, other._changed, other._timeout = self._table, self._changed, self._timeout
        return other


class PrefixStore(Store):
    """Puts "prefix/" before every key of another store, so that users of one store stay apart.

    Args:
        prefix: without the slash.
        store: any store, also one of a user's own class.
    """

    def __init__(self, prefix: str, store: Store) -> None:
        if not isinstance(store, Store):
            raise TypeError(f"PrefixStore needs a Store, got {type(store).__name__}")
        super().__init__(store.timeout)
        self._prefix = prefix
        self._store = store

    @property
    def prefix(self) -> str:
        return self._prefix

    @property
    def underlying_store(self) -> Store:
        return self._store

    @property
    def timeout(self) -> timedelta:
        return self._store.timeout

    def set_timeout(self, timeout: timedelta) -> None:
        self._store.set_timeout(timeout)

    def _key(self, key: str) -> str:
        return f"{self._prefix}/{_bytes(key, 'a key').decode()}"

    def set(self, key: str, value: Value) -> None:
        self._store.set(self._key(key), value)

    def get(self, key: str) -> bytes:
        return self._store.get(self._key(key))

    def add(self, key: str, amount: int) -> int:
        return self._store.add(self._key(key), amount)

    def append(self, key: str, value: Value) -> None:
        self._store.append(self._key(key), value)

    def compare_set(self, key: str, expected: Value, desired: Value) -> bytes:
        return self._store.compare_set(self._key(key), expected, desired)

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        if timeout is None:  # so that a user's own store may have the short form only
            self._store.wait([self._key(key) for key in keys])
        else:
            self._store.wait([self._key(key) for key in keys], timeout)

    def check(self, keys: Sequence[str]) -> bool:
        return self._store.check([self._key(key) for key in keys])

    def delete_key(self, key: str) -> bool:
        return self._store.delete_key(self._key(key))

    def num_keys(self) -> int:
        """Number of keys of the underlying store, as in PyTorch."""
        return self._store.num_keys()

    def list_keys(self) -> list[str]:
        start = self._key("")
        return [key.removeprefix(start) for key in self._store.list_keys() if key.startswith(start)]

    def multi_get(self, keys: Sequence[str]) -> list[bytes]:
        return self._store.multi_get([self._key(key) for key in keys])

    def multi_set(self, keys: Sequence[str], values: Sequence[Value]) -> None:
        self._store.multi_set([self._key(key) for key in keys], values)

    def has_extended_api(self) -> bool:
        return self._store.has_extended_api()

    def queue_push(self, key: str, value: Value) -> None:
        self._store.queue_push(self._key(key), value)

    def queue_pop(self, key: str, block: bool = True) -> bytes:
        return self._store.queue_pop(self._key(key), block)

    def queue_len(self, key: str) -> int:
        return self._store.queue_len(self._key(key))

    def clone(self) -> PrefixStore:
        return PrefixStore(self._prefix, self._store.clone())
