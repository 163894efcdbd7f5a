"""NCCL: arrays in GPU memory, from GPU to GPU, ordered with the rest of the GPU's work.

    group = nccl.connect(control)          # on every rank, with its GPU current
    group.all_reduce(gradients)            # returns at once; the current stream waits, the CPU does not
    work = group.all_reduce(other, async_op=True)
    ...                                    # kernels put into the current stream run beside it
    work.wait()                            # what comes after in the current stream sees the result

The control group (any other Group: MPI, tcp, local) exchanges the communicator's id, carries arrays
in host memory, compares the ranks' calls before they start, since NCCL itself hangs where they
differ, and knows which ranks are alive; a thread watches the calls under way (`work`).

Streams. Collectives run in one stream of the group's own. An event recorded in the caller's stream
when the call is made lets it wait for the arrays' content, and an event behind it is what the result
is waited for by. Messages (isend, irecv) run in two further streams with communicators of their own,
one for messages to higher ranks and one for those to lower: two ranks that send to each other
before they receive do not block each other. Tags tell nothing apart: messages between two ranks
arrive in the order in which they were sent.

CUDA graphs. In a stream under capture a call becomes part of the graph: the group's stream joins the
capture by the event and is joined by `wait`, which every captured call needs. Replays are launches on
the GPU like any other; the ranks compared their calls at the capture, and nobody watches over the
replays. A graph must be gone before its group is closed.

Ranks that share a GPU: NCCL refuses them before 2.30, and allows it later where
NCCL_MULTI_RANK_GPU_ENABLE=1. Otherwise `cuda_ipc` carries out NCCL's calls between the processes, and
where that is closed, too, arrays go over the control group, through host memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from .. import buffers, device
from ..buffers import FLOATS, HALVES, Array, Op, PremulSum, ReduceOp, Reduction, name_of
from ..call import Call
from ..group import Group, Job
from ..work import CollectiveError, CollectiveTimeout, RankFailedError, Work
from . import binding as bindings
from . import cuda_ipc
from .binding import IN_PROGRESS, SUCCESS, Binding, NcclError
from .calls import NcclCalls
from .work import CapturedWork, Overseer, StreamWork

# NCCL has no 16-bit integers; in 32 bits their results wrap around alike.
_WIDER = {"int16": np.dtype(np.int32), "uint16": np.dtype(np.uint32)}
GRACE = 2.0  # seconds in which a call may still end after a rank has left


def connect(control: Group, gpu: Any = None, binding: Binding | None = None) -> NCCLGroup:
    """A group of `control`'s ranks for arrays on the GPU that is current; a collective call.

    Args:
        control: stays usable by itself.
        gpu, binding: other than this process's GPU and library; for tests.

    Raises:
        RuntimeError: on every rank, where some rank has no GPU or finds no NCCL.
    """
    own = control.split(0, control.rank)
    assert own is not None
    made = NCCLGroup(own, control.name, gpu, binding)
    made.store = getattr(control, "store", None)
    return made


class DeviceCall(Call):
    """A call on arrays in GPU memory."""

    __slots__ = ()


@dataclasses.dataclass
class Lane:
    """A communicator, and the stream in which its operations run."""

    comm: Any
    stream: Any
    address: int


class NCCLGroup(NcclCalls, Group):
    """Made by `connect` and `split`.

    Attributes:
        shared: which ranks share a GPU, as lists of ranks, if that keeps the group from using NCCL;
            else empty.
        store: the control group's, where its ranks met in one.
    """

    backend = "nccl"
    store: Any = None

    def __init__(
        self, control: Group, name: str, gpu: Any = None, binding: Binding | None = None,
        speaks: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(
            control.rank, control.size, name, control.members, control.timeout, control.flight
        )
        self._control = control
        self.largest_tag = control.largest_tag
        self._lanes: list[Lane] = []
        self._batch: list[tuple[Lane, Callable[[], None], StreamWork]] | None = None
        self._captured: set[CapturedWork] = set()  # calls of a graph that nobody has waited for
        self._failure: BaseException | None = None
        self._lock = threading.Lock()  # held while NCCL is called
        self._failing = threading.Lock()
        self._overseer = Overseer(f"nccl {name} rank {self.rank}", self._check, self._fail)
        self._gpu, self._binding = gpu, binding  # type: ignore[assignment]
        self.shared, version = self._meet()
        self._library = self._binding
        if self.shared:
            ipc = cuda_ipc.connect(control)
            if speaks and self.rank == 0:
                self._notice(version, "through host memory" if ipc is None else "through CUDA IPC")
            self._binding = ipc  # type: ignore[assignment]
        if self._binding is not None:
            self.takes_device_arrays = True
            self._connect()

    # ---- making and ending --------------------------------------------------------------------

    def _meet(self) -> tuple[list[list[int]], int]:
        """Find this rank's GPU and library and compare: ranks that share a GPU and may not, and
        NCCL's version."""
        identity, version, error = "", 0, ""
        try:
            self._gpu = self._gpu or device.Gpu()
            identity = self._gpu.identity()
            self._binding = self._binding or bindings.load()
            version = self._binding.version()
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
        enabled = os.environ.get(bindings.MULTI_RANK_VARIABLE) == "1"
        told = self._control.all_gather_object((identity, version, enabled, error))
        users = defaultdict(list)
        for rank, (where, *_) in enumerate(told):
            users[where].append(rank)
        shared = [ranks for where, ranks in users.items() if where and len(ranks) > 1]
        allowed = all(on and v >= bindings.MULTI_RANK_VERSION for _, v, on, _ in told)
        lacking = {rank: t[3] for rank, t in enumerate(told) if t[3] and not (shared and t[0])}
        if lacking:
            rank, reason = next(iter(lacking.items()))
            raise RuntimeError(
                f"group {self.name!r} cannot use NCCL: rank {self.members[rank]} of "
                f"{len(lacking)} rank(s) without it says {reason}"
            )
        return ([] if allowed else shared), version

    def _notice(self, version: int, way: str) -> None:
        names = " and ".join(str(self.members[rank]) for rank in self.shared[0])
        number = ".".join(map(str, (version // 10000, version // 100 % 100, version % 100)))
        warnings.warn(
            f"ranks {names} share a GPU, which NCCL {number} refuses: arrays of group {self.name!r} go "
            f"{way}. Start one rank per GPU, or use NCCL 2.30 or later with "
            f"{bindings.MULTI_RANK_VARIABLE}=1",
            stacklevel=2,
        )

    def _connect(self) -> None:
        """Make the communicators: one for collectives and, among several ranks, two for messages."""
        call = Call("connect")
        call.group, call.timeout = self.name, self.timeout
        for _ in range(self._binding.lanes if self.size > 1 else 1):
            made = self._binding.unique_id() if self.rank == 0 else b""
            unique_id = self._control.broadcast_object(made, 0)
            stream = self._gpu.stream()
            with self._gpu.on(stream):
                comm = self._binding.init_rank(self.size, unique_id, self.rank)
            self._lanes.append(Lane(comm, stream, self._gpu.address(stream)))
            self._settle(self._lanes[-1], call)
        self._main = self._lanes[0]

    def _split(self, call: Call, color: int | None, key: int) -> Group | None:
        part = self._control._split(call, color, key)
        if part is None:
            return None
        name = f"{self.name}/{call.number}.{color}"
        return NCCLGroup(part, name, self._gpu, self._library, speaks=False)

    def _subset(self, ranks: Sequence[int], name: str) -> Group:
        part = self._control._subset(ranks, name)
        return NCCLGroup(part, name, self._gpu, self._library, speaks=False)

    def close(self) -> None:
        """Wait for everything under way, on the GPU too, and free the communicators."""
        super().close()
        for work in self._overseer.under_way():
            work.block()
        lanes, self._lanes = self._lanes, []
        if self._failure is None:
            with self._lock:
                for lane in lanes:
                    self._binding.destroy(lane.comm)
        self._control.close()

    # ---- starting calls -----------------------------------------------------------------------

    def _stage(self, array: Array, reduction: Reduction | None = None) -> Any:
        if not self.takes_device_arrays or not device.is_device_array(array):
            # The bridge to host memory, where the control group reduces what it can reduce.
            return buffers.Staged(array, None if reduction is None else reduction.wire, False)
        if self._gpu.index_of(array) != self._gpu.index:
            raise ValueError(
                f"group {self.name!r} works on GPU {self._gpu.index} of rank {self.rank}, but the array "
                f"of shape {tuple(array.shape)} lies on GPU {self._gpu.index_of(array)}: move it there"
            )
        return device.Staged(array, None if reduction is None else reduction.wire)

    def _reduction(self, array: Array, op: Op) -> Reduction:
        if not self.takes_device_arrays or not device.is_device_array(array):
            return super()._reduction(array, op)
        name = name_of(array.dtype)
        if self.deterministic:
            return Reduction.plan(array.dtype, op, self.size, False)  # as every other backend
        plan = Reduction.plan(array.dtype, op, self.size, True)
        wire = _WIDER.get(name, plan.wire)
        if isinstance(op, PremulSum) and self._binding.multiplies and name in (*HALVES, *FLOATS):
            return dataclasses.replace(plan, wire=wire, op=op, factor=None)  # type: ignore[arg-type]
        if plan.divisor != 1:
            return dataclasses.replace(plan, wire=wire, op=ReduceOp.AVG, divisor=1)
        return dataclasses.replace(plan, wire=wire)

    def _call(self, name: str, array: Any, *args: Any, **kwargs: Any) -> Call:
        call = super()._call(name, array, *args, **kwargs)
        if self.takes_device_arrays and device.is_device_array(array):
            call.__class__ = DeviceCall
        return call

    def _collective(self, call: Call, job: Job, async_op: bool) -> Work | None:
        if not isinstance(call, DeviceCall):
            return super()._collective(call, job, async_op)
        ready = self._gpu.record()  # in the thread whose stream made the arrays
        made: list[StreamWork] = []
        super()._collective(call, lambda c: made.append(self._launch(c, job, ready)), False)
        if async_op:
            return made[0]
        made[0].wait()
        return None

    def _launch(self, call: Call, job: Job, ready: Any) -> StreamWork:
        """Put a collective into the group's stream, behind the event `ready`."""
        self._check_alive(call)
        captured = self._capturing(call)
        try:
            # In a capture the ranks compare their calls once, for all replays
            self._control._agree(call)
        except (RankFailedError, CollectiveTimeout) as error:
            self._fail(error)
            raise
        lane = self._main
        self._gpu.wait(ready, lane.stream)
        try:
            with self._gpu.on(lane.stream):
                job(call)
        except (RankFailedError, CollectiveTimeout) as error:
            self._fail(error)
            raise
        return self._under_way(call, self._gpu.record(lane.stream), job, None, captured)

    def _under_way(self, call: Call, done: Any, keep: Any, finish: Any, captured: bool) -> StreamWork:
        """The handle of a call: one that is looked after, or one of a graph. ``done`` may come later."""
        if captured:
            return CapturedWork(call, self._gpu, done, keep, finish, self._captured)
        work = StreamWork(call, self._gpu, done, keep, finish)
        if done is not None:
            self._overseer.add(work)
        return work

    def _capturing(self, call: Call) -> bool:
        """Whether the call becomes part of a CUDA graph.

        Raises:
            RuntimeError: if its way from GPU to GPU leads through the host.
        """
        if not self._gpu.capturing():
            return False
        if self._binding.meets:
            raise RuntimeError(
                f"{call} of group {self.name!r} cannot be captured in a CUDA graph: ranks that share a "
                "GPU meet on the host; start one rank per GPU"
            )
        return True

    def _enqueue(self, call: Call, lane: Lane, issues: Sequence[Callable[[], None]]) -> None:
        """Call NCCL: several operations as one group."""
        meets = self._binding.meets
        if not issues and not meets:
            return
        with self._lock:
            self._check_alive(call)
            if len(issues) == 1 and not meets:
                issues[0]()
            else:
                self._binding.group_start()
                try:
                    for issue in issues:
                        issue()
                finally:
                    self._binding.group_end()
        self._settle(lane, call)

    def _settle(self, lane: Lane, call: Call) -> None:
        """Wait until NCCL has taken what it was given (a non-blocking communicator takes its time)."""
        pause = 1e-6
        while (state := self._binding.async_error(lane.comm)) == IN_PROGRESS:
            try:
                self._look(call, call.started / 1e9, time.perf_counter())
            except CollectiveError as error:
                self._fail(error)
                raise
            time.sleep(pause)
            pause = min(2 * pause, 1e-3)
        if state != SUCCESS:
            self._check_alive(call)
            refused = self._nccl_error(call, state)
            self._fail(refused)
            raise refused

    def _barrier(self, call: Call) -> None:
        for work in self._overseer.under_way():
            work.block()
        self._control._barrier(call)

    def _agree(self, call: Call) -> None:
        self._control._agree(call)

    def tree_all_reduce(
        self,
        shards: Sequence[Array],
        total: int,
        op: ReduceOp = ReduceOp.SUM,
        folded: bool = False,
    ) -> Array:
        """As in `Group`; arrays in GPU memory are reduced by the CPU, for the same bits everywhere."""
        if not shards or not device.is_device_array(shards[0]):
            return super().tree_all_reduce(shards, total, op, folded)
        gpu = self._gpu
        host = [gpu.to_host(s) for s in shards]
        return gpu.from_host(super().tree_all_reduce(host, total, op, folded))

    # ---- messages -----------------------------------------------------------------------------

    @contextlib.contextmanager
    def coalesced(self) -> Iterator[None]:
        """Messages of GPU arrays begun inside are carried out as one at the end.

        Needed where ranks send to each other in a ring or otherwise wait for one another: apart,
        each message waits for the one before it.
        """
        if self._batch is not None:
            yield
            return
        self._batch = []
        try:
            yield
        finally:
            batch, self._batch = self._batch, None
            if batch:
                self._start(batch[0][2].of, batch)

    def _isend(self, call: Call, buffer: Array, dst: int, tag: int) -> Work:
        if isinstance(buffer, np.ndarray):
            return self._control._isend(call, buffer, dst, tag)
        if self._binding.lanes == 1:
            return self._control._isend(call, self._gpu.to_host(buffer).view(np.uint8), dst, tag)
        return self._message_lane(call, buffer, dst, self._binding.send, dst > self.rank, None)

    def _irecv(
        self, call: Call, buffer: Array, src: int | None, tag: int, store: Callable[[], None]
    ) -> Work:
        if isinstance(buffer, np.ndarray):
            return self._control._irecv(call, buffer, src, tag, store)
        if self._binding.lanes == 1:
            host = np.empty(buffer.nbytes, np.uint8)

            def bring() -> None:
                buffer[...] = self._gpu.from_host(host.view(buffer.dtype))
                store()

            return self._control._irecv(call, host, src, tag, bring)
        if src is None:
            raise ValueError(
                f"irecv: NCCL cannot receive from any rank (rank {self.rank} of group {self.name!r}): "
                "name the sender, or receive into an array in host memory"
            )

        def finish() -> int | None:
            store()
            return src

        return self._message_lane(call, buffer, src, self._binding.recv, src < self.rank, finish)

    def _message_lane(
        self, call: Call, buffer: Array, peer: int, function: Any, up: bool, finish: Any
    ) -> StreamWork:
        lane, size, count = self._lanes[1 if up else 2], bindings.TYPES["uint8"], buffer.nbytes
        self._gpu.wait(self._gpu.record(), lane.stream)
        work = self._under_way(call, None, buffer, finish, self._capturing(call))
        pointer = self._gpu.pointer(buffer)

        def issue() -> None:
            if count:
                function(lane.comm, pointer, count, size, peer, lane.address)

        if self._batch is not None:
            self._batch.append((lane, issue, work))
        else:
            self._start(call, [(lane, issue, work)])
        return work

    def _start(self, call: Call, batch: Sequence[tuple[Lane, Callable[[], None], StreamWork]]) -> None:
        self._enqueue(call, batch[0][0], [issue for _, issue, _ in batch])
        for lane in {id(lane): lane for lane, _, _ in batch}.values():
            self._settle(lane, call)
        for lane, _, work in batch:
            work.started(self._gpu.record(lane.stream))
            if not isinstance(work, CapturedWork):
                self._overseer.add(work)

    # ---- what goes wrong ----------------------------------------------------------------------

    def _check_alive(self, call: Call) -> None:
        if self._failure is not None:
            raise CollectiveError(
                f"{call} on rank {self.members[self.rank]}: the NCCL communicator of group "
                f"{self.name!r} was aborted: {self._failure}"
            ) from self._failure
        if not self._lanes:
            raise CollectiveError(f"{call}: group {self.name!r} has been closed")

    def _check(self, work: StreamWork) -> None:
        """Raise what is wrong with a call under way; the overseer asks."""
        for lane in list(self._lanes):
            state = self._binding.async_error(lane.comm)
            if state not in (SUCCESS, IN_PROGRESS):
                raise self._nccl_error(work.of, state)
        try:
            self._look(work.of, work.begun, time.monotonic())
        except RankFailedError:
            # It may have left after doing its part: then the kernel here is about to end.
            end = time.monotonic() + GRACE
            while not work.poll():
                if time.monotonic() > end:
                    raise
                time.sleep(1e-3)

    def _look(self, call: Call, begun: float, now: float) -> None:
        watch = getattr(self._control, "watch", None)
        if watch is not None:
            watch.look(None, [m for rank, m in enumerate(self.members) if rank != self.rank])
        if call.timeout is not None and now - begun > call.timeout:
            raise CollectiveTimeout(
                f"{call} in group {self.name!r} is not complete on the GPU of rank "
                f"{self.members[self.rank]} after {call.timeout:g} s"
            )

    def _nccl_error(self, call: Call, state: int) -> NcclError:
        return NcclError(
            f"{call} in group {self.name!r} on rank {self.members[self.rank]}: "
            f"NCCL reports {self._binding.error_text(state)}"
        )

    def _fail(self, error: BaseException) -> None:
        """Abort the communicators, which ends the kernels under way, and end their calls."""
        with self._failing:
            if self._failure is not None:
                return
            self._failure = error
        # A blocking binding may be inside NCCL, where only the abort gets it out.
        held = self._lock.acquire(timeout=1.0)
        try:
            for lane in self._lanes:
                with contextlib.suppress(NcclError):
                    self._binding.abort(lane.comm)
        finally:
            if held:
                self._lock.release()
        self._overseer.end_all(error)
