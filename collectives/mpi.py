"""Ranks as MPI processes. The only file that imports mpi4py; importing it initialises MPI.

Messages are `MPITransport`, MPI's own collectives `NativeMPI`. The latter are blocking MPI calls,
because MPI_Iallreduce advances only inside MPI calls. Measured with mpich 5.0, 2 ranks on 2 cores:
six 4 MiB all-reduces beside 12.5 ms in which the ranks' cores are free (as when a GPU computes) take
12.8 ms in a communication thread, 21 as MPI_Iallreduce, 19 one after the other.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import secrets
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from mpi4py import MPI

from . import check, failure, flight, selection
from .backend import Counts
from .buffers import Array, name_of
from .call import Call
from .processes import ProcessesGroup
from .settings import DEFAULT_TIMEOUT, settings
from .transport import Transport, node_identity
from .watch.process import Watch
from .work import CommunicationThread, PolledWork, Work

# Buffers arrive in these dtypes only: `buffers` turns bool into bytes, moves 16-bit floats as
# 16-bit words, and reduces them as float32.
_TYPES = {
    "uint8": MPI.UINT8_T,
    "uint16": MPI.UINT16_T,
    "uint32": MPI.UINT32_T,
    "uint64": MPI.UINT64_T,
    "int8": MPI.INT8_T,
    "int16": MPI.INT16_T,
    "int32": MPI.INT32_T,
    "int64": MPI.INT64_T,
    "float32": MPI.FLOAT,
    "float64": MPI.DOUBLE,
    "complex64": MPI.C_FLOAT_COMPLEX,
    "complex128": MPI.C_DOUBLE_COMPLEX,
}

_OPS = {
    np.add: MPI.SUM,
    np.multiply: MPI.PROD,
    np.minimum: MPI.MIN,
    np.maximum: MPI.MAX,
    np.bitwise_and: MPI.BAND,
    np.bitwise_or: MPI.BOR,
    np.bitwise_xor: MPI.BXOR,
}

HEADER_BYTES = 16
PACKED_BYTES = 4096  # messages up to this size travel behind their header, in one piece
SPIN_SECONDS = 50e-6
SEGMENTS = ("/dev/shm/mpich_shm_", "/dev/shm/sm_segment.")
LOOK_SECONDS = 1e-3
LATE_SECONDS = 0.1

_world: ProcessesGroup | None = None


def world(timeout: float | None = DEFAULT_TIMEOUT) -> ProcessesGroup:
    """The group of all ranks of this MPI job; the first call prepares the process.

    From then on a rank that fails (uncaught exception, SystemExit with a status) ends the job:
    see `failure`.

    Raises:
        RuntimeError: MPI was initialised without MPI_THREAD_MULTIPLE, or the job was started by
            another MPI's mpiexec than the one mpi4py uses.
    """
    global _world
    if _world is None:
        _check_environment()
        comm = MPI.COMM_WORLD.Dup()  # messages of other users of MPI_COMM_WORLD never match ours
        watch = _start_watch(comm)
        failure.install(comm.rank, _abort, _drain, watch)
        nodes = comm.allgather(node_identity())
        transport = MPITransport(comm, tuple(range(comm.size)), nodes)
        transport.watch = watch
        selection.share(comm.allgather)
        _world = ProcessesGroup(transport, "world", watch, timeout)
    return _world


def _start_watch(comm: MPI.Comm) -> Any:
    secret = comm.bcast(secrets.token_bytes(32) if comm.rank == 0 else None)
    recorder = flight.recorder()
    recorder.rank, recorder.size = comm.rank, comm.size
    return Watch.start(
        comm.rank, comm.size, comm.allgather, recorder=recorder, secret=secret, abort=_abort
    )


def cuda_aware() -> bool:
    """Whether MPI says that it reads and writes device memory by itself.

    Asked by the extension that Open MPI and MPICH share; a library without it is not. On an MPI
    that is not CUDA-aware, passing a device pointer crashes the process.
    """
    try:
        query = ctypes.CDLL(MPI.__file__).MPIX_Query_cuda_support
    except (OSError, AttributeError):
        return False
    return bool(query())


def _check_environment() -> None:
    level = MPI.Query_thread()
    if level < MPI.THREAD_MULTIPLE:
        raise RuntimeError(
            f"MPI runs at thread level {level}, MPI_THREAD_MULTIPLE ({MPI.THREAD_MULTIPLE}) is "
            "needed: leave mpi4py.rc.thread_level at 'multiple' and use an MPI built for it"
        )
    size = MPI.COMM_WORLD.size
    for name in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "WORLD_SIZE"):
        wanted = os.environ.get(name, "")
        if wanted.isdigit() and int(wanted) != size:
            raise RuntimeError(
                f"{name} is {wanted} but MPI_COMM_WORLD has {size} rank(s): the job was started "
                "by the mpiexec of another MPI than mpi4py uses "
                f"({MPI.Get_library_version().split(chr(10))[0].strip()}), or {name} is stale"
            )


def _abort(status: int) -> None:
    if not MPI.Is_finalized():
        _unlink_shared_segments()
        MPI.COMM_WORLD.Abort(status)


def _unlink_shared_segments() -> None:
    """Remove the names of the shared memory that MPICH or Open MPI has mapped here.

    They do so themselves in MPI_Finalize, which a job that is aborted never reaches.
    """
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
            paths = {line.split(maxsplit=5)[-1].strip() for line in maps}
    except OSError:  # not Linux
        return
    for path in paths:
        if path.startswith(SEGMENTS) and not path.endswith("(deleted)"):
            with contextlib.suppress(OSError):
                os.unlink(path)


def _drain() -> None:
    if not MPI.Is_finalized():
        CommunicationThread.drain_all()


def _spec(buffer: Array) -> list:
    return [buffer, buffer.size, _TYPES[name_of(buffer.dtype)]]


def _parts(buffer: Array, counts: Counts, n: int) -> list:
    kind = _TYPES[name_of(buffer.dtype)]
    if counts is None:
        return [buffer, buffer.size // n, kind]
    starts = [0, *np.cumsum(counts[:-1]).tolist()]
    return [buffer, (list(counts), starts), kind]


# ---- messages ------------------------------------------------------------------------------------


class MPITransport(Transport):
    """Messages over one communicator, which it owns.

    A message is a header (dtype, elements) and the data: in one piece where it is small, so that a
    receiver of another size or dtype is told instead of getting plausible wrong numbers.
    """

    backend = "mpi"

    def __init__(self, comm: MPI.Intracomm, members: tuple[int, ...], nodes: Sequence[str]) -> None:
        self.comm = comm
        self.rank, self.size = comm.rank, comm.size
        self.members = members
        self.largest_tag = comm.Get_attr(MPI.TAG_UB) or 32767
        self.takes_device_arrays = cuda_aware()
        self._nodes = list(nodes)

    def native(self, watch: Any) -> NativeMPI:
        """MPI's own collectives among these ranks."""
        return NativeMPI(self.comm, self.members, watch)

    def node_of(self) -> list[str]:
        return self._nodes

    def sub(self, ranks: Sequence[int], name: str) -> MPITransport:
        ranks = list(ranks)
        group = self.comm.Get_group().Incl(ranks)
        # The tag keeps apart what threads make at the same time.
        comm = self.comm.Create_group(group, zlib.crc32(name.encode()) % 32768)
        group.Free()
        members = tuple(self.members[rank] for rank in ranks)
        part = MPITransport(comm, members, [self._nodes[rank] for rank in ranks])
        part.watch = self.watch
        return part

    def close(self) -> None:
        if not MPI.Is_finalized():
            self.comm.Free()

    def isend(self, buffer: Array, dst: int, tag: int) -> Work:
        requests = [
            self.comm.Isend([part, part.nbytes, MPI.BYTE], dst, tag) for part in _message(buffer)
        ]
        return self._work("send", requests, [dst], lambda: None)

    def irecv(self, buffer: Array, src: int | None, tag: int) -> Work:
        if not isinstance(buffer, np.ndarray):
            return self._receive_on_device(buffer, src, tag)
        status = MPI.Status()
        source = MPI.ANY_SOURCE if src is None else src
        packed = buffer.nbytes <= PACKED_BYTES
        first = np.empty(HEADER_BYTES + PACKED_BYTES, np.uint8)
        request = self.comm.Irecv([first, first.nbytes, MPI.BYTE], source, tag)
        rest: list[MPI.Request] = []

        def check_header() -> None:
            code, count = first[:HEADER_BYTES].view(np.int64).tolist()
            if code != _code(buffer.dtype) or count != buffer.size:
                raise ValueError(
                    f"recv of {buffer.size} x {buffer.dtype} with tag {tag}: rank "
                    f"{self.members[status.source]} sent {count} x {_DTYPE_OF.get(code, code)}"
                )

        def ready() -> bool:
            if not rest and not request.Test(status):
                return False
            if not rest:
                check_header()
                if packed:
                    end = HEADER_BYTES + buffer.nbytes
                    buffer.view(np.uint8)[:] = first[HEADER_BYTES:end]
                    return True
                spec = [buffer, buffer.nbytes, MPI.BYTE]
                rest.append(self.comm.Irecv(spec, status.source, tag))
            return rest[0].Test()

        peers = [src] if src is not None else [r for r in range(self.size) if r != self.rank]
        return self._polled("recv", ready, peers, lambda: status.source)

    def _receive_on_device(self, buffer: Array, src: int | None, tag: int) -> Work:
        raise NotImplementedError(
            f"recv of a GPU array ({buffer.size} x {buffer.dtype}) through CUDA-aware MPI is not built: "
            "receive into host memory and copy, or use the NCCL backend"
        )

    def _work(
        self, name: str, requests: list, peers: list[int], finish: Callable[[], int | None]
    ) -> Work:
        return self._polled(name, lambda: MPI.Request.Testall(requests), peers, finish)

    def _polled(
        self, name: str, ready: Callable[[], bool], peers: list[int], finish: Callable[[], int | None]
    ) -> Work:
        members = [self.members[rank] for rank in peers]

        def block(timeout: float | None) -> bool:
            return wait_for(ready, timeout, lambda: self.watch.look(None, members))

        return PolledWork(name, ready, block, finish)


def wait_for(ready: Callable[[], bool], timeout: float | None, look: Callable[[], None]) -> bool:
    """Ask `ready` again and again: at first without pause, then sleeping, looking for trouble.

    Returns:
        False after `timeout` seconds.
    """
    if ready():
        return True
    begin = now = time.perf_counter()
    pause = 20e-6
    next_look = begin + LOOK_SECONDS
    while not ready():
        now = time.perf_counter()
        if timeout is not None and now - begin >= timeout:
            return False
        if now >= next_look:
            try:
                look()
            except Exception:
                if _comes_late(ready):
                    return True
                raise
            next_look = now + LOOK_SECONDS
        if now - begin > SPIN_SECONDS:
            time.sleep(pause)
            pause = min(2 * pause, LOOK_SECONDS)
    return True


def _comes_late(ready: Callable[[], bool]) -> bool:
    """Whether what a rank sent before it left still comes in: MPI may need several looks for it."""
    end = time.perf_counter() + LATE_SECONDS
    while not ready():
        if time.perf_counter() > end:
            return False
        time.sleep(LOOK_SECONDS)
    return True


_CODES = {name: number for number, name in enumerate(_TYPES)}
_DTYPE_OF = {number: name for name, number in _CODES.items()}


def _code(dtype: np.dtype) -> int:
    return _CODES[name_of(dtype)]


def _message(buffer: Array) -> list[np.ndarray]:
    """A message's pieces, as bytes."""
    header = np.array([_code(buffer.dtype), buffer.size], np.int64).view(np.uint8)
    content = buffer.view(np.uint8)
    if buffer.nbytes <= PACKED_BYTES:
        return [np.concatenate([header, content])]
    return [header, content]


# ---- MPI's own collectives -----------------------------------------------------------------------


class NativeMPI:
    """Calls carried out by MPI, after the ranks have compared them.

    A blocking MPI call cannot be interrupted: should a rank die in the middle of one, the watch ends
    this process with the sentence that an exception would have carried.
    """

    def __init__(self, comm: MPI.Comm, members: tuple[int, ...], watch: Any) -> None:
        self._comm = comm
        self._members = members
        self._watch = watch

    def agree(self, call: Call) -> None:
        """Return when all ranks have come with the same call; else raise on every rank."""
        if settings.checks and self._comm.size > 1:
            self.barrier(call)

    def barrier(self, call: Call) -> None:
        """`agree`, also where checks are off."""
        check.compare(call, self._members, functools.partial(self._exchange, call))

    def _exchange(self, call: Call, mine: np.ndarray, everyone: np.ndarray) -> None:
        request = self._comm.Iallgather(_spec(mine), _parts(everyone, None, self._comm.size))
        missing = [m for rank, m in enumerate(self._members) if rank != self._comm.rank]
        wait_for(request.Test, None, lambda: self._watch.look(call, missing))

    def all_reduce(self, call: Call, buffer: Array, ufunc: Any) -> None:
        self.agree(call)
        with self._watch.blocked(call):
            self._comm.Allreduce(MPI.IN_PLACE, _spec(buffer), _OPS[ufunc])

    def reduce(self, call: Call, buffer: Array, ufunc: Any, root: int) -> None:
        self.agree(call)
        with self._watch.blocked(call):
            if self._comm.rank == root:
                self._comm.Reduce(MPI.IN_PLACE, _spec(buffer), _OPS[ufunc], root)
            else:
                self._comm.Reduce(_spec(buffer), None, _OPS[ufunc], root)

    def reduce_scatter(
        self, call: Call, out: Array, buffer: Array, ufunc: Any, counts: Counts = None
    ) -> None:
        self.agree(call)
        with self._watch.blocked(call):
            if counts is None:
                parts = _parts(buffer, None, self._comm.size)
                self._comm.Reduce_scatter_block(parts, _spec(out), _OPS[ufunc])
            else:
                self._comm.Reduce_scatter(_spec(buffer), _spec(out), list(counts), _OPS[ufunc])

    def broadcast(self, call: Call, buffer: Array, root: int) -> None:
        self.agree(call)
        with self._watch.blocked(call):
            self._comm.Bcast(_spec(buffer), root)

    def all_gather(self, call: Call, out: Array, buffer: Array, counts: Counts = None) -> None:
        self.agree(call)
        with self._watch.blocked(call):
            if counts is None:
                self._comm.Allgather(_spec(buffer), _parts(out, None, self._comm.size))
            else:
                self._comm.Allgatherv(_spec(buffer), _parts(out, counts, self._comm.size))

    def all_to_all(
        self, call: Call, out: Array, buffer: Array, out_counts: Counts = None, in_counts: Counts = None
    ) -> None:
        self.agree(call)
        n = self._comm.size
        if in_counts is None or out_counts is None:
            with self._watch.blocked(call):
                self._comm.Alltoall(_parts(buffer, None, n), _parts(out, None, n))
            return
        if settings.checks:
            exchange = functools.partial(self._exchange, call)
            check.compare_counts(call, self._members, exchange, out_counts, in_counts)
        with self._watch.blocked(call):
            self._comm.Alltoallv(_parts(buffer, in_counts, n), _parts(out, out_counts, n))

    def gather(
        self, call: Call, out: Array | None, buffer: Array, root: int, counts: Counts = None
    ) -> None:
        self.agree(call)
        target = None if out is None else _parts(out, counts, self._comm.size)
        with self._watch.blocked(call):
            if counts is None:
                self._comm.Gather(_spec(buffer), target, root)
            else:
                self._comm.Gatherv(_spec(buffer), target, root)

    def scatter(
        self, call: Call, out: Array, buffer: Array | None, root: int, counts: Counts = None
    ) -> None:
        self.agree(call)
        source = None if buffer is None else _parts(buffer, counts, self._comm.size)
        with self._watch.blocked(call):
            if counts is None:
                self._comm.Scatter(source, _spec(out), root)
            else:
                self._comm.Scatterv(source, _spec(out), root)
