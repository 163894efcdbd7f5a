"""Ranks as MPI processes. The only file that imports mpi4py; importing it initialises MPI.

Asynchronous collectives are blocking MPI calls in the group's communication thread, because
MPI_Iallreduce advances only inside MPI calls. Measured with mpich 5.0, 2 ranks on 2 cores:

- Six 4 MiB all-reduces beside 12.5 ms in which the ranks' cores are free (as when a GPU computes):
  thread 12.8 ms, MPI_Iallreduce 21, one after the other 19. Where NumPy keeps every core busy,
  there is nothing to gain, and the thread is about as fast as one after the other.
- An 8-byte all-reduce: 3 us in MPI, 7 us from the calling thread, 30 us and more through the
  communication thread. So synchronous calls run in the calling thread, unless others are queued.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Callable

from mpi4py import MPI

from . import failure
from .buffers import Array, ReduceOp, name_of
from .group import Group
from .work import CommunicationThread, PolledWork, Work, poll_until

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
    ReduceOp.SUM: MPI.SUM,
    ReduceOp.PRODUCT: MPI.PROD,
    ReduceOp.MIN: MPI.MIN,
    ReduceOp.MAX: MPI.MAX,
    ReduceOp.BAND: MPI.BAND,
    ReduceOp.BOR: MPI.BOR,
    ReduceOp.BXOR: MPI.BXOR,
}

_threads: weakref.WeakSet[CommunicationThread] = weakref.WeakSet()
_world: MPIGroup | None = None


def world() -> MPIGroup:
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
        failure.install(MPI.COMM_WORLD.rank, _abort, _drain)
        # Our own communicator: messages of other users of MPI_COMM_WORLD never match ours.
        _world = MPIGroup(MPI.COMM_WORLD.Dup(), "world")
    return _world


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
        MPI.COMM_WORLD.Abort(status)


def _drain() -> None:
    if not MPI.Is_finalized():
        for thread in list(_threads):
            thread.drain()


def _spec(buffer: Array) -> list:
    return [buffer, buffer.size, _TYPES[name_of(buffer.dtype)]]


class MPIGroup(Group):
    """A group over one MPI communicator, which it owns. Made by `world` and `split`."""

    def __init__(self, comm: MPI.Comm, name: str) -> None:
        super().__init__(comm.rank, comm.size, name)
        self._comm = comm
        self.takes_device_arrays = cuda_aware()
        self.largest_tag = comm.Get_attr(MPI.TAG_UB) or Group.largest_tag
        _threads.add(self._thread)

    def _all_reduce(self, buffer: Array, op: ReduceOp) -> None:
        self._comm.Allreduce(MPI.IN_PLACE, _spec(buffer), _OPS[op])

    def _reduce(self, buffer: Array, op: ReduceOp, root: int) -> None:
        if self.rank == root:
            self._comm.Reduce(MPI.IN_PLACE, _spec(buffer), _OPS[op], root)
        else:
            self._comm.Reduce(_spec(buffer), None, _OPS[op], root)

    def _reduce_scatter(self, out: Array, buffer: Array, op: ReduceOp) -> None:
        self._comm.Reduce_scatter_block(self._parts(buffer), _spec(out), _OPS[op])

    def _broadcast(self, buffer: Array, root: int) -> None:
        self._comm.Bcast(_spec(buffer), root)

    def _all_gather(self, out: Array, buffer: Array) -> None:
        self._comm.Allgather(_spec(buffer), self._parts(out))

    def _all_to_all(self, out: Array, buffer: Array) -> None:
        self._comm.Alltoall(self._parts(buffer), self._parts(out))

    def _gather(self, out: Array | None, buffer: Array, root: int) -> None:
        self._comm.Gather(_spec(buffer), None if out is None else self._parts(out), root)

    def _scatter(self, out: Array, buffer: Array | None, root: int) -> None:
        self._comm.Scatter(None if buffer is None else self._parts(buffer), _spec(out), root)

    def _barrier(self) -> None:
        self._comm.Barrier()

    def _split(self, color: int | None, key: int) -> Group | None:
        comm = self._comm.Split(MPI.UNDEFINED if color is None else color, key)
        return None if comm == MPI.COMM_NULL else MPIGroup(comm, f"{self.name}/{color}")

    def _isend(self, buffer: Array, dst: int, tag: int) -> Work:
        request = self._comm.Isend(_spec(buffer), dst, tag)
        return PolledWork("send", request.Test, _blocking(request), lambda: None)

    def _irecv(
        self, buffer: Array, src: int | None, tag: int, store: Callable[[], None]
    ) -> Work:
        status = MPI.Status()
        request = self._comm.Irecv(_spec(buffer), MPI.ANY_SOURCE if src is None else src, tag)

        def finish() -> int:
            # A longer message is MPI's own error; a shorter one would leave old values behind.
            received = status.Get_count(MPI.BYTE)
            if received != buffer.nbytes:
                raise ValueError(
                    f"recv of {buffer.nbytes} bytes ({buffer.size} x {buffer.dtype}), tag {tag}: "
                    f"rank {status.source} sent {received} bytes"
                )
            store()
            return status.source

        return PolledWork(
            "recv", lambda: request.Test(status), _blocking(request, status), finish
        )

    def _parts(self, buffer: Array) -> list:
        return [buffer, buffer.size // self.size, _TYPES[name_of(buffer.dtype)]]


def _blocking(
    request: MPI.Request, status: MPI.Status | None = None
) -> Callable[[float | None], bool]:
    def block(timeout: float | None) -> bool:
        if timeout is None:
            request.Wait(status)
            return True
        return poll_until(lambda: request.Test(status), timeout)

    return block
