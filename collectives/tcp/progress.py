"""Who moves the messages of `tcp` on: the sockets of one process, and the operations under way on them.

Who waits drives: it polls all sockets, takes what comes and sends on what could not go out yet, for
all threads; the others sleep until it tells them. While operations are under way and nobody waits, a
background thread drives. So two ranks that both send first do not block each other, and a small
message costs no switch of threads.

A message goes straight into the posted buffer if its receive was posted before it came; otherwise
into a buffer of its own.
"""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from ..wire import FRAME, WireError
from ..work import CollectiveError
from .connection import Connection
from .operations import SIZES, Lost, Message, Operation, Receive, Send, fits, misfit

_MOST = 1 << 40  # elements of one message
_SPIN = 50e-6  # seconds for which a waiting thread looks again and again before it sleeps
_FIRST_LOOK, _LAST_LOOK = 1e-3, 10e-3  # seconds between two questions to the watch
_DOZE = 2e-3  # seconds for which operations may stay without a driver
_IDLE = 50  # dozes without anything under way until the background thread sleeps for good
_CLOSING = 30.0  # seconds that `close` waits for messages to go out


class Engine:
    """The sockets of one process and what is under way on them, shared by all its transports."""

    def __init__(self, rank: int, size: int, sockets: dict[int, socket.socket]) -> None:
        self.rank = rank
        self.size = size
        self.closed = False
        self._process = os.getpid()
        self.parts: Counter[tuple[int, tuple[int, ...], str]] = Counter()  # made by `sub`
        self._posted: defaultdict[tuple[int, int], list[Receive]] = defaultdict(list)
        self._unexpected: defaultdict[tuple[int, int], list[Message]] = defaultdict(list)
        self._lock = threading.Lock()  # of the two above and of operations' ends
        self._under_way = 0
        self._seat = threading.Lock()  # held by the thread that drives
        self._progress = threading.Condition()  # for threads that wait and do not drive
        self._sleepers = 0
        self._last_driven = 0.0
        self._background: threading.Thread | None = None
        self._in_background = False  # the background thread drives
        self._needed = threading.Event()
        self._selector = selectors.DefaultSelector()
        self._wake, woken = socket.socketpair()
        woken.setblocking(False)
        self._selector.register(woken, selectors.EVENT_READ, None)
        self._woken = woken
        self.connections = {peer: Connection(sock, peer, self) for peer, sock in sockets.items()}
        for connection in self.connections.values():
            self._selector.register(connection.sock, selectors.EVENT_READ, connection)

    # What transports ask for

    def send(self, item: Send, context: int, tag: int, code: int, buffer: np.ndarray, dst: int) -> None:
        self._check_open()
        raw = buffer.view(np.uint8).data
        if dst == self.rank:
            return self._send_to_self(item, context, tag, code, buffer)
        item.parts = [memoryview(FRAME.pack(context, tag, code, buffer.size))]
        if len(raw):
            item.parts.append(raw)
        with self._lock:
            self._under_way += 1
        self.connections[dst].send(item)
        if not item.done:
            self._call_background()

    def receive(self, item: Receive, context: int) -> None:
        self._check_open()
        key = context, item.tag
        gone = ""
        with self._lock:
            message = _take(self._unexpected, key, lambda m: item.src is None or m.peer == item.src)
            here = message is not None and message.arrived
            if message is not None:
                message.receive = item
            else:
                gone = self._all_gone(item.peers)
                if not gone:
                    self._posted[key].append(item)
            if not here:
                self._under_way += 1
        if message is not None and here:
            self._deliver(message, counted=False)
        elif gone:
            self._end(item, Lost(gone))
        else:
            self._call_background()

    def wait_for(self, item: Operation, timeout: float | None) -> bool:
        """Drive until `item` is done, or have another thread do so; False when the time is up."""
        now = time.monotonic()
        deadline = None if timeout is None else now + timeout
        pause = _FIRST_LOOK
        next_look = now + pause
        while not item.done and time.monotonic() < now + _SPIN:
            self._look_for(item)
            if not item.done:
                os.sched_yield()  # ranks may outnumber cores, and the other one wait for this one
        while not item.done:
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                return False
            if now >= next_look:
                self._ask_watch(item)
                pause = min(pause * 1.25, _LAST_LOOK)
                next_look = now + pause
            self._drive_or_sleep(item, pause if deadline is None else min(pause, deadline - now))
        return True

    def _look_for(self, item: Operation) -> None:
        """One short look for what `item` waits for: at one socket, where it waits for one peer."""
        connection = self.connections.get(item.peers[0]) if len(item.peers) == 1 else None
        if connection is None or connection.ended or connection.unsent:
            self._drive_or_sleep(item, 0.0)
        elif self._seat.acquire(blocking=False):
            try:
                self._check_open()
                connection.read()
            finally:
                self._leave_seat()
        else:
            self._drive_or_sleep(item, 0.0)

    def glance(self) -> None:
        """Take what has come, unless another thread is at it."""
        if not self.closed and self._seat.acquire(blocking=False):
            try:
                self._turn(0.0)
            finally:
                self._leave_seat()

    def close(self) -> None:
        """Send what is under way, say goodbye, and free everything."""
        if self.closed or self._process != os.getpid():
            return
        deadline = time.monotonic() + _CLOSING
        while any(c.unsent for c in self.connections.values()) and time.monotonic() < deadline:
            self._drive_or_sleep(None, 0.01)
        self.closed = True
        self._needed.set()
        self._wake.send(b"x")
        if self._background is not None:
            self._background.join()
        with self._seat:
            for connection in self.connections.values():
                if not connection.ended:
                    self._selector.unregister(connection.sock)
                connection.close()
            self._selector.close()
            self._woken.close()
            self._wake.close()

    # What connections tell

    def begin(
        self, peer: int, context: int, tag: int, dtype: int, count: int
    ) -> tuple[Message, memoryview]:
        if dtype >= len(SIZES) or count > _MOST:
            raise WireError(f"{count} elements of dtype {dtype}")
        message = Message(peer, (context, tag), dtype, count)
        key = message.key
        with self._lock:
            receive = _take(self._posted, key, lambda r: r.src is None or r.src == peer)
            if receive is None:
                self._unexpected[key].append(message)
            message.receive = receive
        if receive is not None and fits(receive, message):
            return message, receive.buffer.view(np.uint8).data
        message.buffer = np.empty(count * SIZES[dtype], np.uint8)
        return message, message.buffer.data

    def arrived(self, message: Message) -> None:
        with self._lock:
            message.arrived = True
            receive = message.receive
        if receive is not None:
            self._deliver(message)

    def broken_off(self, message: Message, connection: Connection) -> None:
        with self._lock:
            if message.receive is None:
                _take(self._unexpected, message.key, lambda m: m is message)
        if message.receive is not None:
            self._end(message.receive, Lost(_obituary(connection)))

    def sent(self, item: Send) -> None:
        self._end(item)

    def unsendable(self, item: Send, connection: Connection) -> None:
        self._end(item, Lost(_obituary(connection)))

    def want_to_write(self, connection: Connection, wanted: bool) -> None:
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if wanted else 0)
        with self._lock:
            if not connection.ended:
                self._selector.modify(connection.sock, events, connection)

    def lost(self, connection: Connection) -> None:
        lost = []
        with self._lock:
            self._selector.unregister(connection.sock)
            for items in self._posted.values():
                for item in items[:]:
                    if gone := self._all_gone(item.peers):
                        items.remove(item)
                        lost.append((item, gone))
        for item, gone in lost:
            self._end(item, Lost(gone))

    # Driving

    def _drive_or_sleep(self, item: Operation | None, limit: float) -> bool:
        """One turn of at most `limit` seconds; whether anything happened."""
        if self._seat.acquire(blocking=False):
            try:
                return self._turn(limit)
            finally:
                self._leave_seat()
        with self._progress:
            self._sleepers += 1
            try:
                if self._in_background:
                    self._wake.send(b"x")  # it leaves the seat to us
                if item is not None and item.done:
                    return True
                return self._progress.wait(limit or _FIRST_LOOK)
            finally:
                self._sleepers -= 1

    def _leave_seat(self) -> None:
        self._seat.release()
        if self._sleepers:
            with self._progress:
                self._progress.notify_all()

    def _turn(self, limit: float) -> bool:
        """Wait up to `limit` seconds for something to happen and deal with it; the driver's work."""
        self._check_open()
        events = self._selector.select(limit)
        self._last_driven = time.monotonic()
        for key, mask in events:
            connection = key.data
            if connection is None:
                self._empty_wake()
                continue
            if mask & selectors.EVENT_WRITE:
                connection.flush()
            if mask & selectors.EVENT_READ and not connection.ended:
                connection.read()
        return bool(events)

    def _check_open(self) -> None:
        if self.closed or self._process != os.getpid():
            why = "has closed its transport" if self.closed else "is the parent of this forked process"
            raise CollectiveError(f"rank {self.rank} {why}: nothing more can be sent or received here")

    def _empty_wake(self) -> None:
        try:
            self._woken.recv(4096)
        except BlockingIOError:
            pass

    def _ask_watch(self, item: Operation) -> None:
        try:
            item.transport.watch.look(item.about, item.peers)
        except Exception:
            # The rank may have left after it did its part: take what it sent before.
            while not item.done and self._drive_or_sleep(item, 0.0):
                pass
            if not item.done:
                raise

    def _call_background(self) -> None:
        if self._needed.is_set():
            return
        self._needed.set()
        if self._background is None:
            with self._lock:
                if self._background is None:
                    self._background = threading.Thread(
                        target=self._drive_in_background, name="collectives tcp", daemon=True
                    )
                    self._background.start()

    def _drive_in_background(self) -> None:
        idle = 0
        while True:
            self._needed.wait()
            time.sleep(_DOZE)
            if self.closed:
                return
            if not self._under_way:
                idle += 1
                if idle > _IDLE:
                    idle = 0
                    self._needed.clear()
                    if self._under_way:  # it came between the question and the answer
                        self._needed.set()
                continue
            idle = 0
            if time.monotonic() - self._last_driven > _DOZE and self._seat.acquire(blocking=False):
                self._in_background = True
                try:
                    while self._under_way and not self._sleepers:
                        self._turn(0.1)
                except CollectiveError:
                    return  # closed
                finally:
                    self._in_background = False
                    self._leave_seat()

    # Ends

    def _deliver(self, message: Message, counted: bool = True) -> None:
        receive = message.receive
        assert receive is not None
        if not fits(receive, message):
            return self._end(receive, misfit(receive, message), counted)
        if message.buffer is not None:
            receive.buffer.view(np.uint8)[:] = message.buffer
        receive.source = receive.transport.members.index(message.peer)
        self._end(receive, None, counted)

    def _end(self, item: Operation, error: BaseException | None = None, counted: bool = True) -> None:
        item.error = error
        item.done = True
        if counted:
            with self._lock:
                self._under_way -= 1
        if item._listener is not None:
            item._tell()
        if self._sleepers:
            with self._progress:
                self._progress.notify_all()

    def _all_gone(self, peers: Sequence[int]) -> str:
        """Why none of `peers` can send any more; "" if one can."""
        reason = ""
        for peer in peers:
            connection = self.connections.get(peer)
            if connection is None or not connection.ended:
                return ""
            reason = reason or _obituary(connection)
        return reason

    def _send_to_self(
        self, item: Send, context: int, tag: int, code: int, buffer: np.ndarray
    ) -> None:
        message, target = self.begin(self.rank, context, tag, code, buffer.size)
        target[:] = buffer.view(np.uint8).data
        self.arrived(message)
        self._end(item, counted=False)


Item = TypeVar("Item")


def _take(
    table: dict[tuple[int, int], list[Item]], key: tuple[int, int], matches: Callable[[Item], bool]
) -> Item | None:
    """Remove and return the first item under `key` that matches."""
    items = table.get(key)
    for index, item in enumerate(items or ()):
        if matches(item):
            assert items is not None
            del items[index]
            if not items:
                del table[key]  # tags may be used once only: leave nothing behind
            return item
    return None


def _obituary(connection: Connection) -> str:
    return f"rank {connection.peer} is gone: {connection.gone}; its own output says why"
