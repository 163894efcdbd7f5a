"""NCCL's calls between ranks that share a GPU, or a node, through memory that they open to each other.

NCCL refuses two ranks on one GPU; CUDA lets processes open each other's device memory (CUDA IPC).
Each rank offers one segment, in two halves that are used in turn. A step of a call is: copy what
others need into the own half, wait for the GPU, meet the others (a barrier of the control group),
read what is needed from their halves. The next step uses the other half: when the ranks meet there,
all have read the one before. Long arrays take several steps.

Reductions follow the tree by rank order (`tree`), 16-bit floats in float32, rounded once: the same
bits as between threads or through shared memory. A call returns when the GPU has done it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..buffers import UFUNCS, ReduceOp
from ..call import Call
from .binding import OPS, SUCCESS, TYPES, Binding

HALF = 32 << 20  # bytes
_NAMES = {number: name for name, number in TYPES.items()}
_OPS = {number: op for op, number in OPS.items()}


class CudaRuntime:
    """Device memory by address, with CuPy."""

    def __init__(self) -> None:
        import cupy

        self._cupy, self._runtime = cupy, cupy.cuda.runtime

    def allocate(self, nbytes: int) -> int:
        return self._runtime.malloc(nbytes)

    def free(self, address: int) -> None:
        self._runtime.free(address)

    def offer(self, address: int) -> Any:
        """What another process opens the memory by."""
        return self._runtime.ipcGetMemHandle(address)

    def open(self, offered: Any) -> int:
        return self._runtime.ipcOpenMemHandle(offered)

    def shut(self, address: int) -> None:
        self._runtime.ipcCloseMemHandle(address)

    def copy(self, target: int, source: int, nbytes: int, stream: int) -> None:
        default = 4  # cudaMemcpyDefault
        self._runtime.memcpyAsync(target, source, nbytes, default, stream)

    def synchronize(self, stream: int) -> None:
        self._runtime.streamSynchronize(stream)

    def array(self, address: int, count: int, name: str) -> Any:
        """The memory there as a flat array."""
        dtype = _dtype(name)
        memory = self._cupy.cuda.UnownedMemory(address, count * dtype.itemsize, None)
        return self._cupy.ndarray(count, dtype, self._cupy.cuda.MemoryPointer(memory, 0))


class Segments:
    """A communicator: this rank's segment and those of the others, in rank order."""

    def __init__(self, own: int, addresses: Sequence[int]) -> None:
        self.own, self.addresses = own, list(addresses)
        self.steps = 0


def connect(control: Any, runtime: Any = None) -> IpcBinding | None:
    """The way through CUDA IPC, or None on all ranks where it is closed to one; a collective call."""
    size, rank = control.size, control.rank
    own, addresses, offered, error = 0, [0] * size, None, ""
    try:
        runtime = runtime or CudaRuntime()
        own = runtime.allocate(2 * HALF)
        offered = runtime.offer(own)
    except Exception as raised:
        error = str(raised) or type(raised).__name__
    told = control.all_gather_object((offered, error))
    if not any(text for _, text in told):
        try:
            for peer, (each, _) in enumerate(told):
                addresses[peer] = own if peer == rank else runtime.open(each)
        except Exception as raised:
            error = str(raised) or type(raised).__name__
    works = not any(control.all_gather_object(error))
    binding = IpcBinding(control, runtime, Segments(own, addresses))
    if works:
        return binding
    if own:
        binding.destroy(binding.segments)
    return None


class IpcBinding(Binding):
    """Carries out at once what NCCL would enqueue. Groups: see `group_end`."""

    name, blocking, multiplies = "CUDA IPC", True, False
    lanes, meets, ordered = 1, True, True

    def __init__(self, control: Any, runtime: Any, segments: Segments) -> None:
        self.control, self.runtime, self.segments = control, runtime, segments
        self._group: list[Callable[[], None]] | None = None
        self._sends: dict[int, tuple[int, int]] = {}
        self._receives: dict[int, tuple[int, int]] = {}
        self._stream = 0

    def version(self) -> int:
        return 0

    def unique_id(self) -> bytes:
        return b""

    def init_rank(self, size: int, unique_id: bytes, rank: int) -> Segments:
        return self.segments

    # ---- one step -----------------------------------------------------------------------------

    def _step(
        self,
        publish: Sequence[tuple[int, int, int]],
        read: Callable[[list[int]], None],
        stream: int,
    ) -> None:
        """Copy (place in the half, address, bytes) into the own half; then `read` from all halves."""
        segments, runtime = self.segments, self.runtime
        half = segments.steps % 2 * HALF
        segments.steps += 1
        for place, address, nbytes in publish:
            if nbytes:
                runtime.copy(segments.own + half + place, address, nbytes, stream)
        runtime.synchronize(stream)
        meeting = Call("CUDA IPC")
        meeting.group, meeting.timeout = self.control.name, self.control.timeout
        self.control._barrier(meeting)
        read([address + half for address in segments.addresses])
        runtime.synchronize(stream)

    def _run(self, action: Callable[[], None]) -> None:
        if self._group is None:
            action()
        else:
            self._group.append(action)

    def _fold(self, at: list[int], place: int, count: int, type_: int, op: int, target: int) -> None:
        """Reduce `count` elements at `place` of all halves into `target`."""
        name, runtime = _NAMES[type_], self.runtime
        parts = [runtime.array(address + place, count, name) for address in at]
        if name in ("float16", "bfloat16"):
            parts = [part.astype(np.dtype(np.float32)) for part in parts]
        ufunc = UFUNCS[ReduceOp.SUM if _OPS[op] is ReduceOp.AVG else _OPS[op]]
        n = len(parts)
        while len(parts) > 1:
            pairs = [ufunc(a, b) for a, b in zip(parts[::2], parts[1::2])]
            parts = pairs + parts[2 * len(pairs) :]
        result = parts[0]
        if _OPS[op] is ReduceOp.AVG and n > 1:
            result /= result.dtype.type(n)
        runtime.array(target, count, name)[...] = result.astype(_dtype(name))

    # ---- calls --------------------------------------------------------------------------------

    def all_reduce(self, comm, send, recv, count, type_, op, stream):
        self.reduce(comm, send, recv, count, type_, op, -1, stream)

    def reduce(self, comm, send, recv, count, type_, op, root, stream):
        size = _dtype(_NAMES[type_]).itemsize
        here = root in (-1, self.control.rank)

        def action() -> None:
            for begin, n in _pieces(count, HALF // size):
                offset = begin * size

                def read(at: list[int], n: int = n, offset: int = offset) -> None:
                    if here:
                        self._fold(at, 0, n, type_, op, recv + offset)

                self._step([(0, send + offset, n * size)], read, stream)

        self._run(action)

    def reduce_scatter(self, comm, send, recv, count, type_, op, stream):
        ranks, rank, size = self.control.size, self.control.rank, _dtype(_NAMES[type_]).itemsize
        room = HALF // ranks // size * size

        def action() -> None:
            for begin, n in _pieces(count, room // size):

                def read(at: list[int], n: int = n, begin: int = begin) -> None:
                    self._fold(at, rank * room, n, type_, op, recv + begin * size)

                parts = [
                    (r * room, send + (r * count + begin) * size, n * size) for r in range(ranks)
                ]
                self._step(parts, read, stream)

        self._run(action)

    def broadcast(self, comm, send, recv, count, type_, root, stream):
        nbytes, here = count * _dtype(_NAMES[type_]).itemsize, self.control.rank == root

        def action() -> None:
            for begin, n in _pieces(nbytes, HALF):

                def read(at: list[int], n: int = n, begin: int = begin) -> None:
                    if not here or send != recv:
                        self.runtime.copy(recv + begin, at[root], n, stream)

                self._step([(0, send + begin, n)] if here else [], read, stream)

        self._run(action)

    def all_gather(self, comm, send, recv, count, type_, stream):
        nbytes = count * _dtype(_NAMES[type_]).itemsize

        def action() -> None:
            for begin, n in _pieces(nbytes, HALF):
                def read(at: list[int], n: int = n, begin: int = begin) -> None:
                    for rank, address in enumerate(at):
                        self.runtime.copy(recv + rank * nbytes + begin, address, n, stream)

                self._step([(0, send + begin, n)], read, stream)

        self._run(action)

    # ---- groups -------------------------------------------------------------------------------

    def send(self, comm, pointer, count, type_, peer, stream):
        self._sends[peer] = (pointer, count * _dtype(_NAMES[type_]).itemsize)
        self._stream = stream

    def recv(self, comm, pointer, count, type_, peer, stream):
        self._receives[peer] = (pointer, count * _dtype(_NAMES[type_]).itemsize)
        self._stream = stream

    def group_start(self) -> None:
        self._group, self._sends, self._receives = [], {}, {}

    def group_end(self) -> None:
        """Carry out a group: its collectives one after another, or its sends and receives as one
        exchange, in which every rank takes part, also one that has nothing to send or receive."""
        group, self._group = self._group or [], None
        for action in group:
            action()
        if not group:
            self._exchange()

    def _exchange(self) -> None:
        ranks, rank = self.control.size, self.control.rank
        room = HALF // ranks
        longest = max((n for _, n in self._sends.values()), default=0)
        rounds = max(self.control.all_gather_object(-(-longest // room)))

        def left(part: tuple[int, int], begin: int) -> int:
            return max(0, min(room, part[1] - begin))

        for begin in range(0, rounds * room, room):
            def read(at: list[int], begin: int = begin) -> None:
                for peer, part in self._receives.items():
                    if left(part, begin):
                        source = at[peer] + rank * room
                        self.runtime.copy(part[0] + begin, source, left(part, begin), self._stream)

            publish = [
                (peer * room, part[0] + begin, left(part, begin)) for peer, part in self._sends.items()
            ]
            self._step(publish, read, self._stream)

    # ---- the rest -----------------------------------------------------------------------------

    def premul_sum(self, comm, factor, type_):
        raise NotImplementedError("values are multiplied before they are reduced")

    def drop_op(self, comm, op):
        raise NotImplementedError("values are multiplied before they are reduced")

    def async_error(self, comm):
        return SUCCESS

    def error_text(self, error):
        return f"status {error}"

    def abort(self, comm):
        """Nothing waits on the GPU. The memory stays: others may be reading it."""

    def destroy(self, comm):
        for address in comm.addresses:
            if address not in (0, comm.own):
                self.runtime.shut(address)
        self.runtime.free(comm.own)


def _dtype(name: str) -> np.dtype:
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def _pieces(count: int, most: int) -> list[tuple[int, int]]:
    """(begin, size) of the pieces of `count` elements that have at most `most`."""
    return [(begin, min(most, count - begin)) for begin in range(0, count, most)]
