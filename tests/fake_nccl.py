"""A GPU and an NCCL library made of threads and NumPy arrays, for tests of order without a GPU.

Every stream is a thread that works off its queue; array operations, events and NCCL's calls are
entries of the current stream's queue, so what does not wait for an event may really come too early.
`FakeStream.settle` returns when a stream can get no further by itself. As in the real library, ranks
that do not make the same call hang until their communicator is aborted.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import threading
import weakref
from collections import defaultdict, deque
from functools import reduce
from typing import Any

import numpy as np

from collectives.buffers import HALVES
from collectives.nccl.binding import IN_PROGRESS, OPS, SUCCESS, TYPES, Binding, NcclError

NAMES = {number: name for name, number in TYPES.items()}
UFUNCS = {0: np.add, 1: np.multiply, 2: np.maximum, 3: np.minimum, 4: np.add}
AVG = 4
LIMIT = 20.0  # seconds after which a test that hangs fails


# ---- streams and events --------------------------------------------------------------------------


class FakeEvent:
    def __init__(self):
        self.flag = threading.Event()


class FakeStream:
    """A queue and the thread that works it off."""

    _addresses = itertools.count(1000)
    by_address: dict[int, FakeStream] = {}

    def __init__(self):
        self.address = next(self._addresses)
        self.by_address[self.address] = self
        self._changed = threading.Condition()
        self._queue: deque = deque()
        self._stuck = self._busy = False
        self.errors: list[BaseException] = []
        threading.Thread(target=self._run, daemon=True).start()

    def put(self, action) -> None:
        with self._changed:
            self._queue.append(action)
            self._changed.notify_all()

    def _run(self):
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue)
                action, self._busy = self._queue.popleft(), True
            try:
                action()
            except BaseException as error:
                self.errors.append(error)
            with self._changed:
                self._busy = False
                self._changed.notify_all()

    @contextlib.contextmanager
    def waiting(self):
        """Around a wait in the stream's own thread."""
        with self._changed:
            self._stuck = True
            self._changed.notify_all()
        yield
        with self._changed:
            self._stuck = False

    def wait_for(self, event: FakeEvent) -> None:
        """Entry: go on when the event has come."""

        def action():
            if not event.flag.is_set():
                with self.waiting():
                    assert event.flag.wait(LIMIT), "an event never came"

        self.put(action)

    def settle(self) -> None:
        """Return when the stream has nothing to do, or waits for something else."""
        with self._changed:
            assert self._changed.wait_for(
                lambda: self._stuck or not (self._queue or self._busy), LIMIT)

    def drain(self) -> None:
        """Return when everything put in so far is done."""
        end = FakeEvent()
        self.put(end.flag.set)
        assert end.flag.wait(LIMIT), "a stream hangs"
        assert not self.errors, self.errors


class FakeGpu:
    """What `collectives.device.Gpu` offers. One per rank; `uuid` tells GPUs apart."""

    def __init__(self, index: int = 0, uuid: str = ""):
        self.index, self.uuid = index, uuid or f"gpu {id(self)}"
        self._local = threading.local()
        self.default = FakeStream()

    @property
    def current(self) -> FakeStream:
        return getattr(self._local, "stream", self.default)

    def identity(self):
        return self.uuid

    def index_of(self, array):
        return array.gpu.index

    def stream(self):
        return FakeStream()

    def address(self, stream):
        return stream.address

    @contextlib.contextmanager
    def on(self, stream):
        before, self._local.stream = self.current, stream
        try:
            yield
        finally:
            self._local.stream = before

    def record(self, stream=None):
        event = FakeEvent()
        (stream or self.current).put(event.flag.set)
        return event

    def wait(self, event, stream=None):
        (stream or self.current).wait_for(event)

    def capturing(self):
        return False

    def done(self, event):
        return event.flag.is_set()

    def pointer(self, array):
        return array.data.__array_interface__["data"][0]

    def empty(self, size, dtype):
        return FakeArray(self, np.empty(size, dtype))

    def to_host(self, array):
        return array.get()

    def from_host(self, array):
        return FakeArray(self, array.copy())


class FakeArray:
    """A device array: its shape is known at once, its content when its stream has come there.

    As in CuPy's pool its memory is free for other use when the stream that it was allocated for has
    done what it had been given by then; other streams do not count.
    """

    def __init__(self, gpu: FakeGpu, data: np.ndarray, stream: FakeStream | None = None):
        self.gpu, self.data = gpu, data
        self.home = gpu.current if stream is None else stream
        weakref.finalize(self, _free, self.home, data).atexit = False

    shape = property(lambda self: self.data.shape)
    dtype = property(lambda self: self.data.dtype)
    size = property(lambda self: self.data.size)
    ndim = property(lambda self: self.data.ndim)
    nbytes = property(lambda self: self.data.nbytes)
    itemsize = property(lambda self: self.data.itemsize)
    flags = property(lambda self: self.data.flags)
    __cuda_array_interface__ = property(lambda self: {"shape": self.shape})

    def _view(self, data):
        assert np.shares_memory(data, self.data) or data.size == 0
        return FakeArray(self.gpu, data, self.home)

    def reshape(self, *shape):
        return self._view(self.data.reshape(*shape))

    def view(self, dtype):
        return self._view(self.data.view(dtype))

    def __getitem__(self, index):
        return self._view(self.data[index])

    def _new(self, dtype, shape, fill):
        made = FakeArray(self.gpu, np.empty(shape, dtype))
        self.gpu.current.put(lambda: fill(made.data))
        return made

    def flatten(self):
        return self._new(self.dtype, self.size, lambda out: np.copyto(out, self.data.reshape(-1)))

    def astype(self, dtype, copy=True):
        if self.dtype == dtype and not copy:
            return self
        return self._new(dtype, self.shape, lambda out: np.copyto(out, self.data, casting="unsafe"))

    def __setitem__(self, index, value):
        source = value.data if isinstance(value, FakeArray) else value
        self.gpu.current.put(lambda: self.data.__setitem__(index, source))

    def __imul__(self, factor):
        self.gpu.current.put(lambda: np.multiply(self.data, factor, out=self.data))
        return self

    def __itruediv__(self, divisor):
        self.gpu.current.put(lambda: np.true_divide(self.data, divisor, out=self.data))
        return self

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        assert method == "__call__" and not kwargs
        return self._new(self.dtype, self.shape, lambda out: ufunc(*(i.data for i in inputs), out=out))

    def __array__(self, *args, **kwargs):
        raise TypeError("a device array does not become a host array by itself")

    def get(self) -> np.ndarray:
        """The content, once the current stream has come here."""
        self.gpu.current.drain()
        return self.data.copy()


def _free(stream: FakeStream, data: np.ndarray) -> None:
    stream.put(lambda: data)


class FakeRuntime:
    """What `nccl.cuda_ipc.CudaRuntime` offers; one for each rank, whose GPU it is given."""

    opened: list[int] = []

    def __init__(self, gpu: FakeGpu):
        self.gpu, self.memory = gpu, {}

    def allocate(self, nbytes):
        memory = np.full(nbytes, 0xEE, np.uint8)
        address = memory.__array_interface__["data"][0]
        self.memory[address] = memory
        return address

    def free(self, address):
        assert address in self.memory  # kept: other ranks' streams may still stand on it

    def offer(self, address):
        return ("handle", address)

    def open(self, offered):
        self.opened.append(offered[1])
        return offered[1]

    def shut(self, address):
        self.opened.remove(address)

    def copy(self, target, source, nbytes, stream):
        FakeStream.by_address[stream].put(lambda: ctypes.memmove(target, source, nbytes))

    def synchronize(self, stream):
        FakeStream.by_address[stream].drain()

    def array(self, address, count, name):
        return FakeArray(self.gpu, _array(address, count, TYPES[name]))


# ---- the library ---------------------------------------------------------------------------------


class _Room:
    """What the ranks of one communicator share."""

    changed = threading.Condition()  # one for all rooms: a group may wait in several

    def __init__(self, size: int):
        self.size = size
        self.meetings: dict[Any, dict[int, Any]] = defaultdict(dict)
        self.done: set = set()
        self.posts: dict[tuple[int, int], deque] = defaultdict(deque)


class FakeComm:
    def __init__(self, room: _Room, rank: int):
        self.room, self.rank = room, rank
        self.calls = 0
        self.aborted = self.destroyed = False
        self.progress = 2  # how often `async_error` still says "in progress"
        self.error = SUCCESS


class FakeLibrary:
    """What all ranks' bindings share; `log` holds (rank, call, type, op or peer, count)."""

    def __init__(self, version: int = 22809):
        self.version = version
        self.log: list[tuple] = []
        self.rooms: dict[bytes, _Room] = {}
        self.lock = threading.Lock()
        self.ids = itertools.count(1)


class FakeNccl(Binding):
    """One rank's binding."""

    name, blocking = "fake", False

    def __init__(self, library: FakeLibrary, multiplies: bool = True):
        self.library, self.multiplies = library, multiplies
        self.comms: list[FakeComm] = []
        self.refuse: NcclError | None = None
        self._group = threading.local()
        self._factors: dict[int, float] = {}
        self._ops = itertools.count(100)

    def version(self):
        return self.library.version

    def unique_id(self):
        return str(next(self.library.ids)).encode().ljust(128, b"\0")

    def init_rank(self, size, unique_id, rank):
        with self.library.lock:
            room = self.library.rooms.setdefault(unique_id, _Room(size))
        assert room.size == size
        self.comms.append(FakeComm(room, rank))
        return self.comms[-1]

    # Each call becomes an entry of its stream; inside a group, entries of one step.

    def _put(self, comm, stream, name, kind, what, count, action):
        if self.refuse is not None:
            raise self.refuse
        assert not (comm.aborted or comm.destroyed), "a communicator was used after its end"
        assert comm.progress == 0, "a call was made before the last one had been taken"
        self.library.log.append((comm.rank, name, NAMES[kind], what, count))
        entry = (comm, FakeStream.by_address[stream], action)
        group = getattr(self._group, "entries", None)
        if group is None:
            self._run([entry])
        else:
            group.append(entry)

    def _run(self, entries):
        by_stream = defaultdict(list)
        for comm, stream, action in entries:
            comm.progress = 2
            by_stream[stream].append(action)
        for stream, actions in by_stream.items():
            # All begin before any is waited for: that is what a group is for.
            stream.put(lambda actions=actions, stream=stream: _together(actions, stream))

    def group_start(self):
        self._group.entries = []

    def group_end(self):
        entries, self._group.entries = self._group.entries, None
        self._run(entries)

    def _meet(self, comm, key, brought, perform):
        """An action: all ranks bring something; the last one performs."""
        number, comm.calls = comm.calls, comm.calls + 1
        room = comm.room

        def begin():
            with room.changed:
                meeting = room.meetings[number, key]
                meeting[comm.rank] = brought
                if len(meeting) == room.size:
                    perform([meeting[rank] for rank in range(room.size)])
                    room.done.add((number, key))
                    room.changed.notify_all()

            return lambda: comm.aborted or (number, key) in room.done

        return room, begin

    def _reduction(self, comm, name, send, recv, count, total, kind, op, stream, place):
        factor = self._factors.get(op)  # of PREMUL_SUM: each rank's own

        def perform(all_brought):
            values = [_wide(_array(source, total, kind)) for source, _, _ in all_brought]
            if factor is not None:
                values = [v * each for v, (_, _, each) in zip(values, all_brought)]
            result = reduce(UFUNCS.get(op, np.add), values)
            if op == AVG:
                result = result / len(values)
            for rank, (_, target, _) in enumerate(all_brought):
                part = place(rank, result)
                if part is not None:
                    _array(target, part.size, kind)[...] = part.astype(_dtype(kind))

        shown = "PREMUL" if factor is not None else op
        self._put(comm, stream, name, kind, shown, count,
                  self._meet(comm, (name, count, kind, shown), (send, recv, factor), perform))

    def all_reduce(self, comm, send, recv, count, type_, op, stream):
        self._reduction(comm, "all_reduce", send, recv, count, count, type_, op, stream,
                        lambda rank, all_: all_)

    def reduce(self, comm, send, recv, count, type_, op, root, stream):
        self._reduction(comm, f"reduce to {root}", send, recv, count, count, type_, op, stream,
                        lambda rank, all_: all_ if rank == root else None)

    def reduce_scatter(self, comm, send, recv, count, type_, op, stream):
        self._reduction(comm, "reduce_scatter", send, recv, count, count * comm.room.size, type_, op,
                        stream, lambda rank, all_: all_[rank * count : (rank + 1) * count])

    def broadcast(self, comm, send, recv, count, type_, root, stream):
        def perform(pairs):
            source = _array(pairs[root][0], count, type_).copy()
            for _, target in pairs:
                _array(target, count, type_)[...] = source

        self._put(comm, stream, "broadcast", type_, root, count,
                  self._meet(comm, ("broadcast", count, type_, root), (send, recv), perform))

    def all_gather(self, comm, send, recv, count, type_, stream):
        def perform(pairs):
            whole = np.concatenate([_array(source, count, type_) for source, _ in pairs])
            for _, target in pairs:
                _array(target, whole.size, type_)[...] = whole

        self._put(comm, stream, "all_gather", type_, -1, count,
                  self._meet(comm, ("all_gather", count, type_), (send, recv), perform))

    def send(self, comm, pointer, count, type_, peer, stream):
        def begin():
            post = {"data": _array(pointer, count, type_), "taken": False}
            with room.changed:
                room.posts[comm.rank, peer].append(post)
                room.changed.notify_all()
            return lambda: comm.aborted or post["taken"]

        room = comm.room
        self._put(comm, stream, "send", type_, peer, count, (room, begin))

    def recv(self, comm, pointer, count, type_, peer, stream):
        def begin():
            def done():
                if comm.aborted:
                    return True
                posts = room.posts[peer, comm.rank]
                if state or not posts:
                    return bool(state)
                post = posts.popleft()
                _array(pointer, count, type_)[...] = post["data"]
                post["taken"] = True
                state.append(1)
                room.changed.notify_all()
                return True

            state: list[int] = []
            return done

        room = comm.room
        self._put(comm, stream, "recv", type_, peer, count, (room, begin))

    def premul_sum(self, comm, factor, type_):
        number = next(self._ops)
        assert factor.dtype == _dtype(type_) and factor.size == 1
        self._factors[number] = float(factor[0])
        return number

    def drop_op(self, comm, op):
        assert op in self._factors  # what was enqueued with it goes on, so it stays known

    def async_error(self, comm):
        if comm.error != SUCCESS:
            return comm.error
        if comm.progress:
            comm.progress -= 1
            return IN_PROGRESS
        return SUCCESS

    def error_text(self, error):
        return f"fake error {error}"

    def abort(self, comm):
        with comm.room.changed:
            comm.aborted = True
            comm.room.changed.notify_all()

    def destroy(self, comm):
        comm.destroyed = True


def _all_done(waits):
    states = [done() for done in waits]  # all are asked: what is asked takes its message
    return all(states)


def _together(actions, stream):
    """In a stream's thread: begin all, then wait for all."""
    waits = [begin() for _, begin in actions]
    with _Room.changed:
        if not _all_done(waits):
            with stream.waiting():
                came = _Room.changed.wait_for(lambda: _all_done(waits), LIMIT)
                assert came, "NCCL hangs"


def _dtype(kind):
    import ml_dtypes

    name = NAMES[kind]
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def _wide(values):
    return values.astype(np.float32) if values.dtype.name in HALVES else values


def _array(pointer, count, kind):
    """The memory at an address."""
    dtype = _dtype(kind)
    raw = (ctypes.c_char * (count * dtype.itemsize)).from_address(pointer)
    return np.frombuffer(raw, dtype)


assert set(OPS.values()) == set(UFUNCS)
