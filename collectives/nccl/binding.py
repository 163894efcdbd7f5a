"""The NCCL library as about fifteen calls on integers: pointers, streams, counts and type numbers.

Two bindings offer them: nccl4py (NVIDIA's own, `pip install nccl4py`), with communicators that
never block the caller and so can be aborted at any moment, and `cupy.cuda.nccl`, which comes with
CuPy and blocks. `load` takes the first that is there. NCCL itself comes with either
(`nvidia-nccl-cu12`, `nvidia-nccl-cu13`).
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from ..buffers import ReduceOp

#: NCCL's number of each dtype that it can reduce.
TYPES = {
    "int8": 0, "uint8": 1, "int32": 2, "uint32": 3, "int64": 4, "uint64": 5,
    "float16": 6, "float32": 7, "float64": 8, "bfloat16": 9,
}  # fmt: skip
OPS = {ReduceOp.SUM: 0, ReduceOp.PRODUCT: 1, ReduceOp.MAX: 2, ReduceOp.MIN: 3, ReduceOp.AVG: 4}
SUCCESS, IN_PROGRESS = 0, 7
UNIQUE_ID_BYTES = 128
VARIABLE = "DISTTORCH_NCCL_BINDING"
#: From here on NCCL can let several ranks use one GPU, where this variable is 1.
MULTI_RANK_VERSION, MULTI_RANK_VARIABLE = 23000, "NCCL_MULTI_RANK_GPU_ENABLE"


class NcclError(RuntimeError):
    """NCCL refused a call, or one that was under way failed."""


class Binding(ABC):
    """What the library is asked for. `comm` is an object of the binding's own kind.

    Calls on buffers only enqueue: they take device addresses, element counts, NCCL's type and op
    numbers and a stream's address, and raise NcclError where NCCL refuses.

    Attributes:
        name: for messages.
        blocking: whether a call may wait for other ranks.
        multiplies: whether `premul_sum` exists.
        lanes: communicators that a group of several ranks needs: one for collectives, two for
            messages; 1 where messages go another way.
        meets: whether all ranks must take part in every group, also with nothing to send.
        ordered: whether reductions follow the tree by rank order anyway.
    """

    lanes = 3
    meets = ordered = False

    name: str
    blocking: bool
    multiplies: bool

    @abstractmethod
    def version(self) -> int:
        """22809 is 2.28.9."""

    @abstractmethod
    def unique_id(self) -> bytes:
        """What one rank makes and all ranks of a new communicator must have."""

    @abstractmethod
    def init_rank(self, size: int, unique_id: bytes, rank: int) -> Any:
        """A communicator on the current device. If not `blocking` it is not ready before
        `async_error` says SUCCESS."""

    @abstractmethod
    def all_reduce(self, comm: Any, send: int, recv: int, count: int, type_: int, op: int,
                   stream: int) -> None: ...

    @abstractmethod
    def reduce(self, comm: Any, send: int, recv: int, count: int, type_: int, op: int, root: int,
               stream: int) -> None: ...

    @abstractmethod
    def broadcast(self, comm: Any, send: int, recv: int, count: int, type_: int, root: int,
                  stream: int) -> None: ...

    @abstractmethod
    def all_gather(self, comm: Any, send: int, recv: int, count: int, type_: int,
                   stream: int) -> None:
        """`count` elements from each rank."""

    @abstractmethod
    def reduce_scatter(self, comm: Any, send: int, recv: int, count: int, type_: int, op: int,
                       stream: int) -> None:
        """`count` elements for each rank."""

    @abstractmethod
    def send(self, comm: Any, pointer: int, count: int, type_: int, peer: int, stream: int) -> None: ...

    @abstractmethod
    def recv(self, comm: Any, pointer: int, count: int, type_: int, peer: int, stream: int) -> None: ...

    @abstractmethod
    def group_start(self) -> None:
        """What follows in this thread is one operation, until `group_end`."""

    @abstractmethod
    def group_end(self) -> None: ...

    @abstractmethod
    def premul_sum(self, comm: Any, factor: np.ndarray, type_: int) -> int:
        """An op that sums values multiplied by `factor` (one element of the buffers' dtype)."""

    @abstractmethod
    def drop_op(self, comm: Any, op: int) -> None:
        """Free what `premul_sum` made; calls that were given it go on."""

    @abstractmethod
    def async_error(self, comm: Any) -> int:
        """SUCCESS, IN_PROGRESS or the number of an error."""

    @abstractmethod
    def error_text(self, error: int) -> str: ...

    @abstractmethod
    def abort(self, comm: Any) -> None:
        """End everything under way on this rank and free the communicator."""

    @abstractmethod
    def destroy(self, comm: Any) -> None:
        """Free a communicator that has nothing under way."""


class Nccl4py(Binding):
    """NVIDIA's binding: non-blocking communicators, calls that release the GIL."""

    name, blocking, multiplies = "nccl4py", False, True

    def __init__(self) -> None:
        from nccl.bindings import nccl

        self._nccl = nccl
        self._config = nccl.Config()
        self._config.blocking = 0
        self.version()  # loads the library, or says why it cannot

    def _call(self, function: Any, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except self._nccl.NCCLError as error:
            if getattr(error, "status", None) == IN_PROGRESS:
                return None  # begun; `async_error` tells how it goes on
            raise NcclError(f"NCCL: {error}") from error

    def version(self) -> int:
        return self._call(self._nccl.get_version)

    def unique_id(self) -> bytes:
        return bytes(memoryview(self._call(self._nccl.get_unique_id)))

    def init_rank(self, size: int, unique_id: bytes, rank: int) -> Any:
        made = self._nccl.UniqueId.from_buffer(bytearray(unique_id))
        return self._call(self._nccl.comm_init_rank_config, size, made, rank, self._config)

    def all_reduce(self, comm, send, recv, count, type_, op, stream):
        self._call(self._nccl.all_reduce, send, recv, count, type_, op, comm, stream)

    def reduce(self, comm, send, recv, count, type_, op, root, stream):
        self._call(self._nccl.reduce, send, recv, count, type_, op, root, comm, stream)

    def broadcast(self, comm, send, recv, count, type_, root, stream):
        self._call(self._nccl.broadcast, send, recv, count, type_, root, comm, stream)

    def all_gather(self, comm, send, recv, count, type_, stream):
        self._call(self._nccl.all_gather, send, recv, count, type_, comm, stream)

    def reduce_scatter(self, comm, send, recv, count, type_, op, stream):
        self._call(self._nccl.reduce_scatter, send, recv, count, type_, op, comm, stream)

    def send(self, comm, pointer, count, type_, peer, stream):
        self._call(self._nccl.send, pointer, count, type_, peer, comm, stream)

    def recv(self, comm, pointer, count, type_, peer, stream):
        self._call(self._nccl.recv, pointer, count, type_, peer, comm, stream)

    def group_start(self) -> None:
        self._call(self._nccl.group_start)

    def group_end(self) -> None:
        self._call(self._nccl.group_end)

    def premul_sum(self, comm, factor, type_):
        host_immediate = 1  # ncclScalarHostImmediate: the value is read before the call returns
        create = self._nccl.red_op_create_pre_mul_sum
        return self._call(create, factor.ctypes.data, type_, host_immediate, comm)

    def drop_op(self, comm, op):
        self._call(self._nccl.red_op_destroy, op, comm)

    def async_error(self, comm):
        return int(self._call(self._nccl.comm_get_async_error, comm))

    def error_text(self, error):
        return self._nccl.get_error_string(error)

    def abort(self, comm):
        self._call(self._nccl.comm_abort, comm)

    def destroy(self, comm):
        self._call(self._nccl.comm_destroy, comm)


class CupyNccl(Binding):
    """CuPy's binding: its calls may block until other ranks come, above all `init_rank`."""

    name, blocking, multiplies = "cupy.cuda.nccl", True, False

    def __init__(self) -> None:
        from cupy.cuda import nccl

        if not nccl.available:
            raise ImportError("this CuPy finds no libnccl")
        self._nccl = nccl
        self.version()

    def _call(self, function: Any, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except self._nccl.NcclError as error:
            raise NcclError(f"NCCL: {error}") from error

    def version(self) -> int:
        return self._call(self._nccl.get_version)

    def unique_id(self) -> bytes:
        return bytes(value & 0xFF for value in self._call(self._nccl.get_unique_id))

    def init_rank(self, size: int, unique_id: bytes, rank: int) -> Any:
        try:
            return self._call(self._nccl.NcclCommunicator, size, unique_id, rank)
        except TypeError:  # before CuPy 14 it was a tuple of signed numbers
            signed = tuple(int(value) for value in np.frombuffer(unique_id, np.int8))
            return self._call(self._nccl.NcclCommunicator, size, signed, rank)

    def all_reduce(self, comm, send, recv, count, type_, op, stream):
        self._call(comm.allReduce, send, recv, count, type_, op, stream)

    def reduce(self, comm, send, recv, count, type_, op, root, stream):
        self._call(comm.reduce, send, recv, count, type_, op, root, stream)

    def broadcast(self, comm, send, recv, count, type_, root, stream):
        self._call(comm.broadcast, send, recv, count, type_, root, stream)

    def all_gather(self, comm, send, recv, count, type_, stream):
        self._call(comm.allGather, send, recv, count, type_, stream)

    def reduce_scatter(self, comm, send, recv, count, type_, op, stream):
        self._call(comm.reduceScatter, send, recv, count, type_, op, stream)

    def send(self, comm, pointer, count, type_, peer, stream):
        self._call(comm.send, pointer, count, type_, peer, stream)

    def recv(self, comm, pointer, count, type_, peer, stream):
        self._call(comm.recv, pointer, count, type_, peer, stream)

    def group_start(self) -> None:
        self._call(self._nccl.groupStart)

    def group_end(self) -> None:
        self._call(self._nccl.groupEnd)

    def premul_sum(self, comm, factor, type_):
        raise NotImplementedError("cupy.cuda.nccl has no PREMUL_SUM")

    def drop_op(self, comm, op):
        raise NotImplementedError("cupy.cuda.nccl has no PREMUL_SUM")

    def async_error(self, comm):
        try:
            comm.check_async_error()
        except self._nccl.NcclError as error:
            return error.status
        return SUCCESS

    def error_text(self, error):
        return f"status {error}"

    def abort(self, comm):
        comm.abort()

    def destroy(self, comm):
        comm.destroy()


BINDINGS = {"nccl4py": Nccl4py, "cupy": CupyNccl}


def load() -> Binding:
    """The first binding that is installed and finds the library.

    DISTTORCH_NCCL_BINDING=nccl4py or =cupy asks for one of them.

    Raises:
        RuntimeError: none can be used, with the reason of each.
        ValueError: DISTTORCH_NCCL_BINDING names none.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted and wanted not in BINDINGS:
        raise ValueError(f"{VARIABLE}={wanted}: set it to one of {', '.join(BINDINGS)}, or unset it")
    reasons = []
    for name, kind in BINDINGS.items():
        if wanted in ("", name):
            try:
                return kind()
            except Exception as error:  # a missing library is reported in many ways
                reasons.append(f"{name}: {error}")
    raise RuntimeError(
        f"the NCCL backend finds no NCCL ({'; '.join(reasons)}): install nccl4py, or CuPy with "
        "nvidia-nccl-cu12 (CUDA 12) or nvidia-nccl-cu13 (CUDA 13)"
    )
