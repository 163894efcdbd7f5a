"""The NCCL backend on a GPU and a library made of threads (`fake_nccl`): values, order, errors."""

from __future__ import annotations

import gc
import sys
import threading
import time
import types
import weakref

import collectives_conformance as conformance
import ml_dtypes
import numpy as np
import pytest
from fake_nccl import FakeArray, FakeEvent, FakeGpu, FakeLibrary, FakeNccl, FakeRuntime

from collectives import (
    CollectiveTimeout,
    MismatchError,
    PremulSum,
    RankFailedError,
    ReduceOp,
    device,
    nccl,
    run_ranks,
)
from collectives.buffers import may_overlap
from collectives.nccl import binding as nccl_binding
from collectives.nccl import cuda_ipc
from collectives.nccl import work as nccl_work
from collectives.nccl.binding import NcclError
from collectives.work import CollectiveError

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class Rank:
    """What a test's rank works with."""

    def __init__(self, control, library, gpus=None, **binding):
        self.gpu = gpus[control.rank] if gpus else FakeGpu()
        self.binding = FakeNccl(library, **binding)
        self.group = nccl.connect(control, self.gpu, self.binding)
        self.rank, self.size = control.rank, control.size

    def array(self, values, dtype=np.float32):
        return FakeArray(self.gpu, np.array(values, dtype))

    def put(self, action):
        """Give the caller's stream something to do."""
        self.gpu.current.put(action)

    def hold(self):
        """Stop the caller's stream until the event returned is set."""
        gate = FakeEvent()
        self.gpu.current.wait_for(gate)
        return gate.flag


def ranks(n, fn, library=None, timeout=30, **options):
    """Run `fn(Rank)` on n ranks; returns (results, the library)."""
    library = library or FakeLibrary()

    def start(control):
        here = Rank(control, library, **options)
        result = fn(here)
        here.group.close()
        return result

    return run_ranks(n, start, timeout=timeout), library


# ---- values --------------------------------------------------------------------------------------

HERE = threading.local()


class DeviceLaid(conformance.Laid):
    """The conformance suite's arrays, in the fake GPU's memory."""

    def __init__(self, flat, layout):
        super().__init__(flat, layout)
        self._host = self.array
        self.array = FakeArray(HERE.gpu, self._host)

    def check(self, expected, exact=True):
        HERE.gpu.current.drain()
        self.array = self._host
        super().check(expected, exact)


def wait_and_block(work, asynchronous):
    assert (work is not None) == asynchronous
    if work is not None:
        assert work.wait() is True
        work.block()
        assert work.is_completed() and work.exception() is None


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("call", [c for c in conformance.CALLS if c != "send_recv"])
def test_conformance(call, n, monkeypatch):
    monkeypatch.setattr(conformance, "Laid", DeviceLaid)
    monkeypatch.setattr(conformance, "_done", wait_and_block)
    few = {0: ["contiguous"], 1: ["contiguous"], 105: ["contiguous", "transposed", "reversed"]}
    monkeypatch.setattr(conformance, "SIZES", few)

    def fn(here):
        HERE.gpu = here.gpu
        return conformance.check_call(here.group, call)

    results, library = ranks(n, fn, timeout=100)
    for count, failures, used in results:
        assert failures == []
        assert used == {dtype.name for dtype in conformance.DTYPES}
        assert count >= 5 * len(conformance.DTYPES)
    assert library.log or (n == 1 and call in ("gather", "scatter", "all_to_all"))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_deterministic_mode_gives_the_bits_of_the_local_backend(n):
    values = [np.random.default_rng(r).normal(0, 10.0 ** (4 * r), 1001).astype(np.float32)
              for r in range(n)]

    def plain(group):
        mine = values[group.rank].copy()
        group.all_reduce(mine)
        return mine

    def fn(here):
        here.group.deterministic = True
        mine, part = here.array(values[here.rank]), here.array(np.zeros(7))
        here.group.all_reduce(mine)
        here.group.reduce_scatter(part, here.array(values[here.rank][: 7 * n]))
        return mine.get(), part.get()

    want = run_ranks(n, plain)[0]
    results, library = ranks(n, fn)
    for rank, (whole, part) in enumerate(results):
        assert np.array_equal(whole, want)
        assert np.array_equal(part, want[7 * rank : 7 * rank + 7])
    assert not any("reduce" in name for _, name, *_ in library.log)


def test_tree_of_virtual_shards_on_the_gpu():
    shards = [np.random.default_rng(i).normal(0, 1e3, (3, 5)).astype(np.float32) for i in range(4)]
    want = run_ranks(1, lambda g: g.tree_all_reduce(shards, 4))[0]

    def fn(here):
        mine = [here.array(s) for s in shards[2 * here.rank : 2 * here.rank + 2]]
        got = here.group.tree_all_reduce(mine, 4)
        assert isinstance(got, FakeArray)
        return got.get()

    for got in ranks(2, fn)[0]:
        assert np.array_equal(got, want)


def test_nccl_reduces_halves_averages_and_factors_itself():
    def fn(here):
        a = here.array([1, 2], BFLOAT16)
        here.group.all_reduce(a)
        b = here.array([1, 4], np.float16)
        here.group.all_reduce(b, ReduceOp.AVG)
        c = here.array([1, 2], BFLOAT16)
        here.group.all_reduce(c, PremulSum(0.5))
        d = here.array([1 + 2j], np.complex64)
        here.group.all_reduce(d, ReduceOp.AVG)
        return [x.get().tolist() for x in (a, b, c, d)]

    results, library = ranks(2, fn)
    assert results == [[[2, 4], [1, 4], [1, 2], [1 + 2j]]] * 2
    used = [entry[1:] for entry in library.log if entry[0] == 0]
    assert used == [
        ("all_reduce", "bfloat16", 0, 2), ("all_reduce", "float16", 4, 2),
        ("all_reduce", "bfloat16", "PREMUL", 2), ("all_reduce", "float32", 4, 2),
    ]  # fmt: skip


def test_a_binding_without_premul_multiplies_first():
    def fn(here):
        a = here.array([1, 2, 3])
        here.group.all_reduce(a, PremulSum(2.0))
        b = here.array([here.rank + 1.0])
        here.group.reduce(b, 0, PremulSum(3.0))
        return a.get().tolist(), b.get().tolist()

    results, library = ranks(2, fn, multiplies=False)
    assert results == [([4, 8, 12], [9]), ([4, 8, 12], [2])]
    assert "PREMUL" not in {entry[3] for entry in library.log}


@pytest.mark.parametrize("n", [1, 2, 3])
def test_unequal_parts(n):
    counts = [3, 0, 2][:n]
    total = sum(counts)

    def fn(here):
        r, group = here.rank, here.group
        begin = sum(counts[:r])
        whole = here.array(np.zeros(total))
        group.all_gather(whole, here.array(np.full(counts[r], r + 1.0)), counts=counts)
        part = here.array(np.zeros(counts[r]))
        group.reduce_scatter(part, here.array(np.arange(total)), counts=counts)
        assert part.get().tolist() == (n * np.arange(begin, begin + counts[r])).tolist()
        root = n - 1
        out = here.array(np.zeros(total)) if r == root else None
        group.gather(out, here.array(np.full(counts[r], r + 1.0)), root, counts=counts)
        back = here.array(np.zeros(counts[r]))
        group.scatter(back, out, root, counts=counts)
        assert back.get().tolist() == [r + 1.0] * counts[r]
        outs, ins = [s + 1 for s in range(n)], [r + 1] * n
        got = here.array(np.zeros(sum(outs)))
        group.all_to_all(got, here.array(np.full(sum(ins), r)), out_counts=outs, in_counts=ins)
        assert got.get().tolist() == [s for s in range(n) for _ in range(s + 1)]
        return whole.get().tolist()

    want = [r + 1.0 for r in range(n) for _ in range(counts[r])]
    assert ranks(n, fn)[0] == [want] * n


def test_counts_that_do_not_agree_are_an_error_everywhere():
    def fn(here):
        outs = [1, 2] if here.rank == 0 else [1, 1]
        with pytest.raises(MismatchError, match="rank 1 sends 1 elements to rank 0, which expects 2"):
            here.group.all_to_all(here.array(np.zeros(sum(outs))), here.array(np.zeros(2)),
                                  out_counts=outs, in_counts=[1, 1])

    _, library = ranks(2, fn)
    assert library.log == []


def test_host_arrays_and_objects_go_over_the_control_group():
    def fn(here):
        a = np.full(3, here.rank + 1.0)
        here.group.all_reduce(a, ReduceOp.AVG)
        assert here.group.all_gather_object(here.rank) == [0, 1]
        here.group.barrier()
        if here.rank == 0:
            here.group.send(np.arange(2.0), 1, tag=3)
        else:
            b = np.zeros(2)
            assert here.group.recv(b, None, tag=3) == 0 and b.tolist() == [0, 1]
        half = np.full(2, 300.0, np.float16)
        here.group.all_reduce(half, ReduceOp.AVG)
        assert half.tolist() == [300, 300]
        return a.tolist()

    results, library = ranks(2, fn)
    assert results == [[1.5] * 3] * 2 and library.log == []


def test_split():
    def fn(here):
        part = here.group.split(here.rank % 2, -here.rank)
        a = here.array([float(here.rank)])
        part.all_reduce(a)
        got = a.get().tolist()
        assert here.group.split(None) is None
        assert (part.size, part.rank) == ((2, 1 - here.rank // 2) if here.rank % 2 == 0 else (1, 0))
        part.close()
        return got

    assert ranks(3, fn)[0] == [[2.0], [1.0], [2.0]]


# ---- order ---------------------------------------------------------------------------------------


def test_a_call_waits_for_what_the_callers_stream_has_yet_to_do():
    def fn(here):
        a = here.array([0.0, 0.0])
        gate = here.hold()
        here.put(lambda: a.data.__setitem__(slice(None), here.rank + 1))
        work = here.group.all_reduce(a, async_op=True)
        lane = here.group._main.stream
        lane.settle()  # it could have run away with zeros by now
        assert not work.is_completed()
        gate.set()
        work.block()
        return a.data.tolist()

    assert ranks(2, fn)[0] == [[3, 3]] * 2


def test_staging_copies_wait_too():
    def fn(here):
        memory = np.zeros(8, np.float32)
        a = FakeArray(here.gpu, memory[::2])  # not contiguous: copied first
        gate = here.hold()
        here.put(lambda: memory.__setitem__(slice(None), here.rank + 1))
        work = here.group.all_reduce(a, async_op=True)
        here.group._main.stream.settle()
        gate.set()
        work.wait()
        here.gpu.current.drain()
        return memory.tolist()

    assert ranks(2, fn)[0] == [[3, 1, 3, 1, 3, 1, 3, 1], [3, 2, 3, 2, 3, 2, 3, 2]]


def test_the_callers_stream_waits_for_the_result_and_the_cpu_does_not():
    came = threading.Event()

    def fn(here):
        a, seen = here.array([1.0]), []
        if here.rank == 1:
            gate = here.hold()
        here.group.all_reduce(a)  # returns although rank 1's part has not even been computed
        here.put(lambda: seen.append(float(a.data[0])))
        if here.rank == 1:
            assert came.wait(20)
            gate.set()
        else:
            here.gpu.current.settle()
            assert seen == []
            came.set()
        here.gpu.current.drain()
        return seen

    assert ranks(2, fn)[0] == [[2.0]] * 2


def test_wait_orders_the_stream_that_waits():
    """A result is waited for on another stream than the call was made on."""

    def fn(here):
        a, other, seen = here.array([1.0]), here.gpu.stream(), []
        gate = here.hold()
        work = here.group.all_reduce(a, async_op=True)
        with here.gpu.on(other):
            work.wait()
            here.put(lambda: seen.append(float(a.data[0])))
        other.settle()
        assert seen == []
        gate.set()
        other.drain()
        return seen

    assert ranks(2, fn)[0] == [[2.0]] * 2


def test_calls_run_in_the_order_in_which_they_were_made():
    def fn(here):
        a = here.array([1.0])
        works = [here.group.all_reduce(a, async_op=True) for _ in range(10)]
        for work in reversed(works):
            work.wait()
        return a.get().tolist()

    assert ranks(2, fn)[0] == [[1024.0]] * 2


def test_arrays_are_kept_until_the_gpu_is_done_with_them():
    def fn(here):
        gate = here.hold()
        a = here.array([1.0])
        alive = weakref.ref(a)
        work = here.group.all_reduce(a, async_op=True)
        del a
        gc.collect()
        assert alive() is not None
        gate.set()
        work.block()
        gc.collect()
        return alive() is None

    assert ranks(2, fn)[0] == [True] * 2


def test_a_time_limit_holds_the_cpu():
    def fn(here):
        gate = here.hold()
        work = here.group.all_reduce(here.array([1.0]), async_op=True)
        with pytest.raises(TimeoutError, match="all_reduce is not complete after 0.01 seconds"):
            work.wait(0.01)
        gate.set()
        assert work.wait(20) and work.is_completed()

    ranks(2, fn)


# ---- messages ------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["send", "recv"])
def test_two_ranks_send_to_each_other(first):
    def fn(here):
        peer = 1 - here.rank
        mine, other = here.array([here.rank, 7], BFLOAT16), here.array([0, 0], BFLOAT16)
        if first == "send":
            works = [here.group.isend(mine, peer), here.group.irecv(other, peer)]
        else:
            works = [here.group.irecv(other, peer), here.group.isend(mine, peer)]
        for work in works:
            work.block()
            assert work.wait()
        assert works[first == "send"].source == peer
        return other.get().tolist()

    assert ranks(2, fn)[0] == [[1, 7], [0, 7]]


def test_messages_wait_for_the_callers_stream_and_fill_other_layouts():
    def fn(here):
        if here.rank == 0:
            a = here.array([0.0, 0.0])
            gate = here.hold()
            here.put(lambda: a.data.__setitem__(slice(None), 5))
            work = here.group.isend(a, 1)
            here.group._lanes[1].stream.settle()
            gate.set()
            work.block()
            return None
        memory = np.zeros(4, np.float32)
        here.group.recv(FakeArray(here.gpu, memory[::2]), 0)
        here.gpu.current.drain()
        return memory.tolist()

    assert ranks(2, fn)[0][1] == [5, 0, 5, 0]


def test_coalesced_messages_go_round_a_ring():
    def fn(here):
        n, r = here.size, here.rank
        mine, other = here.array([r]), here.array([-1])
        with here.group.coalesced():
            arriving = here.group.irecv(other, (r - 1) % n)
            with pytest.raises(RuntimeError, match="leave `coalesced` before waiting"):
                arriving.wait()
            leaving = here.group.isend(mine, (r + 1) % n)
        arriving.wait()
        leaving.wait()
        return other.get().tolist()

    assert ranks(3, fn)[0] == [[2], [0], [1]]


def test_receiving_from_anyone_is_refused():
    def fn(here):
        with pytest.raises(ValueError, match="cannot receive from any rank"):
            here.group.irecv(here.array([0]), None)

    ranks(2, fn)


# ---- what goes wrong -----------------------------------------------------------------------------


def test_different_calls_are_an_error_before_nccl_is_asked():
    def fn(here):
        a = here.array(np.zeros(3 + here.rank))
        with pytest.raises(MismatchError, match="rank 0: all_reduce.*rank 1: all_reduce"):
            here.group.all_reduce(a)
        with pytest.raises(CollectiveError, match="cannot be used any more"):
            here.group.all_reduce(a)

    _, library = ranks(2, fn)
    assert library.log == []


class Trouble:
    """A watch that knows of a dead rank when told."""

    def __init__(self):
        self.dead = ""

    def look(self, call, missing, timeout=None):
        if self.dead:
            raise RankFailedError(self.dead)


def test_a_dead_rank_aborts_the_survivors(monkeypatch):
    monkeypatch.setattr(nccl.group, "GRACE", 0.05)
    monkeypatch.setattr(nccl_work, "PERIOD", 0.01)
    died = threading.Event()

    def fn(here):
        a = here.array([1.0])
        watch = here.group._control.watch = Trouble()
        here.group.all_reduce(a)
        if here.rank == 1:  # stops inside the next call, as a process that is killed
            here.hold()
            here.group.all_reduce(a, async_op=True)
            assert died.wait(20)
            here.group._fail(RankFailedError("this rank"))
            return None
        work = here.group.all_reduce(a, async_op=True)
        watch.dead = "rank 1 was killed by signal 9"
        with pytest.raises(RankFailedError, match="killed by signal 9"):
            work.block()
        assert all(comm.aborted for comm in here.binding.comms)
        died.set()
        here.gpu.current.drain()  # what waits on the GPU comes free, too
        with pytest.raises(CollectiveError, match="was aborted: rank 1 was killed"):
            here.group.all_reduce(a)
        assert work.exception() is not None and work.is_completed()

    ranks(2, fn)


def test_a_call_that_takes_too_long(monkeypatch):
    monkeypatch.setattr(nccl_work, "PERIOD", 0.01)

    def fn(here):
        here.group.timeout = 0.2
        here.hold()
        work = here.group.all_reduce(here.array([1.0, 2.0]), async_op=True)
        with pytest.raises(CollectiveTimeout, match=r"all_reduce\(float32 \[2\].*is not complete on "
                                                    r"the GPU of rank . after 0.2 s"):
            work.block()

    ranks(2, fn)


def test_errors_of_nccl(monkeypatch):
    monkeypatch.setattr(nccl_work, "PERIOD", 0.01)

    def fn(here):
        gate = here.hold()
        work = here.group.all_reduce(here.array([1.0]), async_op=True)
        here.binding.comms[0].error = 6
        with pytest.raises(NcclError, match="all_reduce.*rank .: NCCL reports fake error 6"):
            work.block()
        gate.set()

    ranks(2, fn)


def test_a_call_that_nccl_refuses():
    def fn(here):
        here.binding.refuse = NcclError("NCCL: invalid usage")
        with pytest.raises(NcclError, match="invalid usage"):
            here.group.all_reduce(here.array([1.0]))
        here.binding.refuse = None
        a = here.array([1.0])
        here.group.all_reduce(a)
        return a.get().tolist()

    assert ranks(2, fn)[0] == [[2.0]] * 2


def test_an_array_on_another_gpu():
    def fn(here):
        stray = FakeArray(FakeGpu(index=3), np.zeros(2, np.float32))
        with pytest.raises(ValueError, match="works on GPU 0 of rank 0, but the array.*lies on GPU 3"):
            here.group.all_reduce(stray)

    ranks(1, fn)


def test_overlap_of_device_arrays_is_told_by_addresses():
    class Array:
        __cuda_array_interface__: dict = {}

        def __init__(self, first, shape, strides):
            self.data, self.shape, self.strides = types.SimpleNamespace(ptr=first), shape, strides
            self.size, self.itemsize = int(np.prod(shape)), 4

    whole = Array(1000, (10,), (4,))
    for other, together in (
        (Array(1036, (1,), (4,)), True), (Array(1040, (5,), (4,)), False),
        (Array(960, (10,), (4,)), False),
        (Array(1072, (10,), (-8,)), True), (Array(1040, (0,), (4,)), False),
        (Array(900, (2, 2), (100, 4)), True), (np.zeros(2), True),
    ):  # fmt: skip
        assert may_overlap(whole, other) is together and may_overlap(other, whole) is together


def test_a_closed_group():
    def fn(here):
        a = here.array([1.0])
        here.group.all_reduce(a)
        here.group.close()
        assert all(comm.destroyed for comm in here.binding.comms)

    run_ranks(2, lambda control: fn(Rank(control, library)), timeout=30) if (
        library := FakeLibrary()) else None


# ---- ranks that share a GPU ----------------------------------------------------------------------


@pytest.fixture
def ipc(monkeypatch):
    """CUDA IPC is open between the ranks; a step moves 64 bytes for each rank."""
    monkeypatch.setattr(cuda_ipc, "CudaRuntime", lambda: FakeRuntime(HERE.gpu))
    monkeypatch.setattr(cuda_ipc, "HALF", 192)
    monkeypatch.setattr(FakeRuntime, "opened", [])


def sharing(n, fn, alone=False):
    """As `ranks`, all on one GPU."""
    gpus, library = [FakeGpu(uuid="one") for _ in range(n)], FakeLibrary()

    def start(control):
        HERE.gpu = gpus[control.rank]
        here = Rank(control, library, gpus)
        result = fn(here)
        here.group.close()
        return result

    with pytest.warns(UserWarning, match="share a GPU, which NCCL 2.28.9 refuses: arrays of group "
                                         "'world' go through CUDA IPC") as seen:
        results = run_ranks(n, start, timeout=100)
    assert len(seen) == 1 and (alone or library.log == [])
    return results


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("call", conformance.CALLS)
def test_conformance_through_cuda_ipc(call, n, ipc, monkeypatch):
    monkeypatch.setattr(conformance, "Laid", DeviceLaid)
    few = {0: ["contiguous"], 1: ["contiguous"], 105: ["contiguous", "transposed"]}
    monkeypatch.setattr(conformance, "SIZES", few)
    if call != "send_recv":
        monkeypatch.setattr(conformance, "_done", wait_and_block)
    for _, failures, used in sharing(n, lambda here: conformance.check_call(here.group, call)):
        assert failures == []
        assert used == {dtype.name for dtype in conformance.DTYPES}
    assert FakeRuntime.opened == []  # all memory of others was given back


def test_cuda_ipc_gives_the_bits_of_the_local_backend(ipc):
    values = [np.random.default_rng(r).normal(0, 10.0 ** (4 * r), 101).astype(np.float32)
              for r in range(3)]

    def plain(group):
        mine, half = values[group.rank].copy(), values[group.rank].astype(BFLOAT16)
        group.all_reduce(mine)
        group.all_reduce(half, ReduceOp.AVG)
        return mine, half

    def fn(here):
        mine, half = here.array(values[here.rank]), here.array(values[here.rank], BFLOAT16)
        here.group.all_reduce(mine)
        here.group.all_reduce(half, ReduceOp.AVG)
        here.group.deterministic = True
        again = here.array(values[here.rank])
        here.group.all_reduce(again)
        return mine.get(), half.get(), again.get()

    want, want_half = run_ranks(3, plain)[0]
    for got, half, again in sharing(3, fn):
        assert np.array_equal(got, want) and np.array_equal(again, want)
        assert np.array_equal(half.view(np.uint16), want_half.view(np.uint16))


def test_cuda_ipc_unequal_parts_and_split(ipc):
    def fn(here):
        r, group = here.rank, here.group
        outs, ins = [40 * s for s in range(3)], [40 * r] * 3
        got = here.array(np.zeros(sum(outs)))
        group.all_to_all(got, here.array(np.full(sum(ins), r)), out_counts=outs, in_counts=ins)
        assert got.get().tolist() == [s for s in range(3) for _ in range(40 * s)]
        part = group.split(0 if r else 1)
        a = here.array([float(r)])
        part.all_reduce(a)
        part.close()
        return part.shared, a.get().tolist()

    # Rank 0 is alone on its GPU in a group of its own, and NCCL takes it
    assert sharing(3, fn, alone=True) == [([], [0.0]), ([[0, 1]], [3.0]), ([[0, 1]], [3.0])]


class FakeBridge:
    """Through host memory, without CuPy."""

    def __init__(self, array):
        self.array = array

    def download(self, read):
        return self.array.get()

    def upload(self, host):
        self.array[...] = host.copy()


def test_ranks_on_one_gpu_go_through_host_memory(monkeypatch):
    monkeypatch.setattr(device, "HostBridge", FakeBridge)
    gpus, library = [FakeGpu(uuid="one"), FakeGpu(uuid="one"), FakeGpu()], FakeLibrary()

    def fn(here):
        assert here.group.shared == [[0, 1]]
        a = here.array([1.0, 2.0], BFLOAT16)
        here.group.all_reduce(a, ReduceOp.AVG)
        work = here.group.all_reduce(a, async_op=True)
        work.wait()
        if here.rank == 0:
            here.group.send(a, 1)
        elif here.rank == 1:
            here.group.recv(a, 0)
        return a.get().tolist()

    with pytest.warns(UserWarning, match="ranks 0 and 1 share a GPU, which NCCL 2.28.9 refuses") as seen:
        results, _ = ranks(3, fn, library, gpus=gpus)
    assert results == [[3, 6]] * 3 and library.log == [] and len(seen) == 1


def test_ranks_on_one_gpu_where_nccl_allows_it(monkeypatch):
    monkeypatch.setenv("NCCL_MULTI_RANK_GPU_ENABLE", "1")
    gpus, library = [FakeGpu(uuid="one"), FakeGpu(uuid="one")], FakeLibrary(version=23004)

    def fn(here):
        a = here.array([1.0])
        here.group.all_reduce(a)
        return here.group.shared, a.get().tolist()

    assert ranks(2, fn, library, gpus=gpus)[0] == [([], [2.0])] * 2


def test_a_rank_without_a_gpu_is_named_on_all_ranks(monkeypatch):
    def broken():
        raise RuntimeError("no CUDA device")

    monkeypatch.setattr(device, "Gpu", broken)

    def fn(control):
        gpu = FakeGpu() if control.rank == 0 else None
        with pytest.raises(RuntimeError, match="rank 1 of 1 rank.s. without it says .*no CUDA"):
            nccl.connect(control, gpu, FakeNccl(library))

    library = FakeLibrary()
    run_ranks(2, fn, timeout=30)


# ---- the library's bindings ----------------------------------------------------------------------


def test_no_binding_says_what_to_install(monkeypatch):
    for name in ("nccl", "nccl.bindings", "cupy", "cupy.cuda"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RuntimeError, match="finds no NCCL .nccl4py: .*cupy: .*install nccl4py"):
        nccl_binding.load()
    monkeypatch.setenv("DISTTORCH_NCCL_BINDING", "other")
    with pytest.raises(ValueError, match="set it to one of nccl4py, cupy"):
        nccl_binding.load()


def test_nccl4py_is_called_with_integers_in_its_order(monkeypatch):
    calls = []

    class Bindings(types.ModuleType):
        class NCCLError(Exception):
            status = 5

        class UniqueId:
            @staticmethod
            def from_buffer(data):
                return ("id", bytes(data))

        class Config:
            blocking = 1

        def __getattr__(self, name):
            def function(*arguments):
                calls.append((name, *arguments))
                if name == "send":
                    raise Bindings.NCCLError("invalid usage")
                return {"get_version": 22809, "get_unique_id": b"x" * 128}.get(name, 3)

            return function

    package = types.ModuleType("nccl.bindings")
    package.nccl = Bindings("nccl")
    monkeypatch.setitem(sys.modules, "nccl", types.ModuleType("nccl"))
    monkeypatch.setitem(sys.modules, "nccl.bindings", package)
    binding = nccl_binding.load()
    assert binding.name == "nccl4py" and binding.version() == 22809
    assert binding.unique_id() == b"x" * 128
    comm = binding.init_rank(4, b"y" * 128, 2)
    binding.all_reduce(comm, 11, 12, 5, 7, 0, 99)
    binding.reduce_scatter(comm, 11, 12, 5, 9, 2, 99)
    binding.broadcast(comm, 11, 12, 5, 1, 3, 99)
    binding.recv(comm, 11, 5, 1, 3, 99)
    assert binding.premul_sum(comm, np.ones(1, np.float32), 7) == 3
    with pytest.raises(NcclError, match="invalid usage"):
        binding.send(comm, 11, 5, 1, 3, 99)
    name, size, unique_id, rank, config = next(c for c in calls if c[0] == "comm_init_rank_config")
    assert (size, unique_id, rank, config.blocking) == (4, ("id", b"y" * 128), 2, 0)
    assert ("all_reduce", 11, 12, 5, 7, 0, comm, 99) in calls
    assert ("reduce_scatter", 11, 12, 5, 9, 2, comm, 99) in calls
    assert ("broadcast", 11, 12, 5, 1, 3, comm, 99) in calls
    assert ("recv", 11, 5, 1, 3, comm, 99) in calls


def test_watching_ends_when_nothing_is_under_way():
    def fn(here):
        here.group.all_reduce(here.array([1.0]), async_op=True).block()
        end = time.monotonic() + 20
        while here.group._overseer._thread is not None and time.monotonic() < end:
            time.sleep(0.01)
        return here.group._overseer._thread

    assert ranks(2, fn)[0] == [None, None]


def test_calls_of_a_captured_stream_are_held_until_waited_for_and_never_asked():
    def fn(here):
        here.gpu.capturing = lambda: True
        here.gpu.done = lambda event: pytest.fail("an event of a graph was asked")
        a = here.array([1.0, here.rank])
        work = here.group.all_reduce(a, async_op=True)
        kept = weakref.ref(work)
        del work
        gc.collect()
        held = kept() in here.group._captured and not here.group._overseer._under_way
        with pytest.raises(RuntimeError, match="host cannot wait"):
            kept().block()
        assert not kept().is_completed()
        kept().wait(5.0)  # a limit is nothing that the host could keep
        gone = not here.group._captured
        here.group.broadcast(a, 0)
        del here.gpu.capturing, here.gpu.done
        return held, gone, len(here.group._captured), a.get().tolist()

    assert ranks(2, fn)[0] == [(True, True, 0, [2.0, 1.0])] * 2


def test_ranks_that_share_a_gpu_cannot_be_captured():
    def fn(here):
        here.gpu.capturing = lambda: True
        here.binding.meets = True
        with pytest.raises(RuntimeError, match="meet on the host; start one rank per GPU"):
            here.group.all_reduce(here.array([1.0]))
        here.binding.meets = False
        del here.gpu.capturing

    ranks(2, fn)
