"""Python objects between ranks: the part of `Group` that pickles.

Unpickling runs code, so these calls are for the ranks of one job, which trust each other: backends
let nobody else in.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any

from . import arguments
from .backend import Backend
from .buffers import Array, empty_bytes, from_bytes, lengths
from .call import Call
from .work import Work


class Objects(Backend):
    """Collectives on objects; mixed into `Group`, whose attributes it uses."""

    rank: int
    size: int
    name: str
    _collective: Callable[[Call, Callable[[Call], None], bool], Work | None]

    def broadcast_object(self, value: Any, root: int = 0) -> Any:
        """Return `root`'s value on every rank; the others' argument is ignored."""
        root = arguments.member(root, self.size, self.name, "broadcast_object: root")
        data = from_bytes(pickle.dumps(value)) if self.rank == root else empty_bytes(0)
        received: list[Array] = []

        def job(call: Call) -> None:
            length = lengths(data.size)
            self._broadcast(call.step("length", "int64", 1, root), length, root)
            size = int(length[0])
            buffer = data if self.rank == root else empty_bytes(size)
            self._broadcast(call.step("content", "uint8", size, root), buffer, root)
            received.append(buffer)
            call.payload_bytes = call.transport_bytes = buffer.nbytes

        self._collective(Call("broadcast_object", root=root), job, False)
        return value if self.rank == root else pickle.loads(received[0].data)

    def all_gather_object(self, value: Any) -> list[Any]:
        """Return every rank's value, in rank order."""
        data = from_bytes(pickle.dumps(value))
        received: list[Any] = []

        def job(call: Call) -> None:
            counts = self._everyones_length(call, data)
            everyone = empty_bytes(sum(counts))
            step = call.step("content", "uint8", everyone.size)
            self._all_gather(step, everyone, data, counts)
            received.extend(_unpacked(everyone, counts))
            call.payload_bytes = call.transport_bytes = everyone.nbytes

        self._collective(Call("all_gather_object"), job, False)
        return received

    def gather_object(self, value: Any, root: int = 0) -> list[Any] | None:
        """Return every rank's value, in rank order, on `root`; None elsewhere."""
        root = arguments.member(root, self.size, self.name, "gather_object: root")
        data = from_bytes(pickle.dumps(value))
        received: list[Any] = []

        def job(call: Call) -> None:
            counts = self._everyones_length(call, data)
            everyone = empty_bytes(sum(counts)) if self.rank == root else None
            self._gather(call.step("content", "uint8", sum(counts), root), everyone, data, root, counts)
            if everyone is not None:
                received.extend(_unpacked(everyone, counts))
            call.payload_bytes = call.transport_bytes = sum(counts)

        self._collective(Call("gather_object", root=root), job, False)
        return received if self.rank == root else None

    def scatter_object(self, values: Sequence[Any] | None, root: int = 0) -> Any:
        """Return entry r of `root`'s `values` on rank r; others give None.

        Raises:
            ValueError: on the root, not one value for each rank.
        """
        root = arguments.member(root, self.size, self.name, "scatter_object: root")
        parts: list[Array] = []
        if self.rank == root:
            if values is None or len(values) != self.size:
                got = "None" if values is None else f"{len(values)} values"
                raise ValueError(f"scatter_object: root {root} needs {self.size} values, got {got}")
            parts = [from_bytes(pickle.dumps(value)) for value in values]
        received: list[Any] = []

        def job(call: Call) -> None:
            sizes = lengths(*([part.size for part in parts] or [0] * self.size))
            self._broadcast(call.step("lengths", "int64", self.size, root), sizes, root)
            counts = sizes.tolist()
            mine = empty_bytes(counts[self.rank])
            whole = None
            if parts:
                whole = from_bytes(b"".join(part.tobytes() for part in parts))
            self._scatter(call.step("content", "uint8", sum(counts), root), mine, whole, root, counts)
            received.append(pickle.loads(mine.data))
            call.payload_bytes = call.transport_bytes = sum(counts)

        self._collective(Call("scatter_object", root=root), job, False)
        return received[0]

    def _everyones_length(self, call: Call, data: Array) -> list[int]:
        sizes = lengths(*[0] * self.size)
        self._all_gather(call.step("lengths", "int64", self.size), sizes, lengths(data.size), None)
        return sizes.tolist()


def _unpacked(everyone: Array, counts: Sequence[int]) -> list[Any]:
    values, begin = [], 0
    for count in counts:
        values.append(pickle.loads(everyone[begin : begin + count].data))
        begin += count
    return values
