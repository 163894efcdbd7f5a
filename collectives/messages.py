"""Messages between two ranks: the part of `Group` that is no collective."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

from . import arguments
from .backend import Backend
from .buffers import Array, check_array, empty_bytes, from_bytes, lengths, name_of
from .call import Call
from .ledger import Ledger
from .work import Work


class Messages(Backend):
    """Sending and receiving; mixed into `Group`, whose attributes it uses."""

    rank: int
    size: int
    name: str
    members: tuple[int, ...]
    timeout: float | None
    flight: Any
    _ledger: Ledger
    _stage: Callable[..., Any]

    def isend(self, array: Array, dst: int, tag: int = 0) -> Work:
        """Start sending `array` to rank `dst` (not this one); keep it unchanged until `wait`."""
        dst = self._peer(dst, "isend: dst")
        check_array(array, "isend: array", written=False)
        tag = arguments.tag(tag, self.largest_tag)
        staged = self._stage(array)
        call = self._message("send", array, staged.nbytes, dst)
        return self._followed(call, self._isend(call, staged.load(), dst, tag))

    def irecv(self, array: Array, src: int | None, tag: int = 0) -> Work:
        """Start receiving into `array`, which must have the size and dtype of what is sent.

        `src` None takes a message from any rank; `Work.source` then names it after `wait`.
        """
        if src is not None:
            src = self._peer(src, "irecv: src")
        check_array(array, "irecv: array", written=True)
        tag = arguments.tag(tag, self.largest_tag)
        staged = self._stage(array)
        buffer = staged.load(read=False)
        call = self._message("recv", array, staged.nbytes, -1 if src is None else src)
        work = self._irecv(call, buffer, src, tag, lambda: staged.store(buffer))
        return self._followed(call, work)

    def send(self, array: Array, dst: int, tag: int = 0) -> None:
        """Send `array` to rank `dst`; return when it may be changed again."""
        self.isend(array, dst, tag).wait()

    def recv(self, array: Array, src: int | None, tag: int = 0) -> int:
        """Receive into `array` from rank `src` (None: any rank); return the sender's rank."""
        work = self.irecv(array, src, tag)
        work.wait()
        assert work.source is not None
        return work.source

    def send_object(self, value: Any, dst: int, tag: int = 0) -> None:
        """Send a Python object, pickled: only between the trusted ranks of one job."""
        data = from_bytes(pickle.dumps(value))
        size = self.isend(lengths(data.size), dst, tag)
        content = self.isend(data, dst, tag)
        size.wait()
        content.wait()

    def recv_object(self, src: int | None, tag: int = 0) -> tuple[Any, int]:
        """Receive what `send_object` sent; returns the object and the sender's rank."""
        size = lengths(0)
        source = self.recv(size, src, tag)
        data = empty_bytes(int(size[0]))
        self.recv(data, source, tag)
        return pickle.loads(data.data), source

    def _message(self, name: str, array: Array, transport: int, peer: int) -> Call:
        call = Call(name, name_of(array.dtype), array.size, array.shape, "", peer)
        call.payload_bytes, call.transport_bytes = array.nbytes, transport
        call.group, call.timeout = self.name, self.timeout
        return call

    def _followed(self, call: Call, work: Work) -> Work:
        """The same work, whose end is recorded."""
        self.flight.begin(call)

        def ended(error: BaseException | None) -> None:
            self.flight.end(call, error)
            if error is None:
                moved = call.transport_bytes
                sent, received = (moved, 0) if call.name == "send" else (0, moved)
                self._ledger.add(call, 1, sent, received)

        work.when_ended(ended)
        return work

    def _peer(self, rank: int, what: str) -> int:
        index = arguments.member(rank, self.size, self.name, what)
        if index == self.rank:
            raise ValueError(f"{what} is this rank itself ({rank}); copy the array instead")
        return index
