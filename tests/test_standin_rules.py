"""The stand-in for CuPy is as strict as it says (tests/cupy_standin), each rule by something planted."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import cuda_host
import pytest

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(not cuda_host.available(), reason="needs g++ and an x86-64 processor")

RULES = {
    "values_and_views": """
        a = cupy.arange(12, dtype=np.float32).reshape(3, 4)
        b = a[1:, ::2]
        b += 10
        assert (cupy.asnumpy(a) == [[0, 1, 2, 3], [14, 5, 16, 7], [18, 9, 20, 11]]).all()
        assert b.base is a.base and b.data.ptr == a.data.ptr + 16 and not b.flags.c_contiguous
        assert type(a.sum()) is cupy.ndarray and a.sum().shape == () and float(a.sum()) == 106
        assert (a.T + a.T).flags.f_contiguous and (a @ a.T).dtype == np.float32
    """,
    "nothing_becomes_a_numpy_array_by_itself": """
        a = cupy.ones(3)
        for call in (lambda: np.asarray(a), lambda: a + np.ones(3), lambda: np.ones(3) + a,
                     lambda: cupy.add(a, [1, 2, 3]), lambda: cupy.concatenate([a, np.ones(3)]),
                     lambda: a.__setitem__(slice(None), np.ones(3)), lambda: np.copyto(np.ones(3), a)):
            with pytest.raises(TypeError):
                call()
        assert (a + np.float64(1) + 1).get().tolist() == [3, 3, 3]
    """,
    "blocks_of_arrays_that_end_in_a_cycle_are_used_again": """
        import gc
        before = cupy.get_default_memory_pool().total_bytes()
        for _ in range(3):
            ring = [cupy.ones(1000)]
            ring.append(ring)
            del ring
            gc.collect()
        assert cupy.get_default_memory_pool().total_bytes() == before + 8192
    """,
    "places_out_of_range_are_taken_modulo": """
        a, i = cupy.arange(12).reshape(3, 4), cupy.asarray([5, -4])
        assert a[i].get().tolist() == a.take(i, axis=0).get().tolist() == [[8, 9, 10, 11]] * 2
        assert a[:, i].get().tolist() == [[1, 0], [5, 4], [9, 8]] and a[..., i, None].shape == (3, 2, 1)
        a[i] = 0
        assert a.sum() == 28
        assert cupy.take_along_axis(a, i[None], 1).get().tolist() == [[1, 0], [5, 4], [0, 0]]
    """,
    "capsules_tell_their_device": """
        a = cupy.arange(6)
        assert type(a.__dlpack__()).__name__ == "PyCapsule" and a.__dlpack_device__() == (2, 0)
        assert cupy.from_dlpack(a).data.ptr == a.data.ptr
    """,
    "what_cupy_lacks_is_lacking": """
        a, half = cupy.ones((2, 3, 3)), cupy.ones((2, 3, 3), np.float16)
        for call in (lambda: a.flags.writeable, lambda: cupy.nditer, lambda: a.setflags,
                     lambda: cupy.char, lambda: a.newbyteorder):
            with pytest.raises(AttributeError):
                call()
        with pytest.raises(TypeError, match="sparse"):
            cupy.indices((2, 3), sparse=True)
        with pytest.raises(NotImplementedError):
            cupy.maximum.accumulate(a)
        with pytest.raises(NotImplementedError):
            cupy.multiply.at(a, 0, 2)
        with pytest.raises(TypeError, match="cuBLAS"):
            cupy.matmul(half, half)
        with pytest.raises(TypeError, match="bfloat16"):
            cupy.sort(cupy.ones(3, ml_dtypes.bfloat16))
    """,
    "reads_by_the_host_are_counted": """
        a = cupy.arange(3)
        with order.no_host_reads():
            b = a * 2 + cupy.exp(a)
            b[1:] = 0
        for call in (lambda: int(a[1]), lambda: bool(a[0]), a.get, a.tolist, lambda: a[a > 1],
                     lambda: a[[0, 1]], lambda: cupy.asarray(np.ones(3)), a.device.synchronize):
            with pytest.raises(AssertionError, match="^1 |^2 |; 1 "), order.no_host_reads():
                call()
    """,
    "memory_of_another_stream_needs_an_event": """
        s, a = cupy.cuda.Stream(non_blocking=True), cupy.zeros(4)
        with s, pytest.raises(order.RaceError, match="reads bytes 0 to 32.*while setitem.*stream 0x0"):
            a + 1
        event = cupy.cuda.Event()
        event.record()
        s.wait_event(event)
        with s:
            a += 1
        with pytest.raises(order.RaceError, match="while add"):
            a.get()
        s.synchronize()
        assert a.get().tolist() == [1] * 4
        with cupy.cuda.Stream():  # streams that block keep in step with the default stream
            a += 1
        assert a.get().tolist() == [2] * 4
    """,
    "parts_of_one_array_may_belong_to_two_streams": """
        streams, a = [cupy.cuda.Stream(non_blocking=True) for _ in range(2)], cupy.zeros(8)
        cupy.cuda.Device().synchronize()
        for s, part in zip(streams, (a[:4], a[4:])):
            with s:
                part += 1
        with streams[0], pytest.raises(order.RaceError):
            a[3:5] += 1
    """,
    "a_freed_block_that_another_stream_reads": """
        s, a = cupy.cuda.Stream(non_blocking=True), cupy.zeros(4)
        cupy.cuda.Device().synchronize()
        with s:
            b = a + 1
        address = a.data.ptr
        del a
        a = cupy.empty(4)
        assert a.data.ptr == address and np.isnan(a.get()).all()
        with pytest.raises(order.RaceError, match="belonged to an array that has ended"):
            a[...] = 0
        s.synchronize()
        a[...] = 0
    """,
    "events_are_not_done_at_once": """
        event = cupy.cuda.Event()
        cupy.zeros(3)
        event.record()
        assert not event.done and event.done
        cupy.zeros(3)
        event.record()
        cupy.cuda.get_current_stream().synchronize()
        assert event.done
    """,
    "captures_compute_when_they_are_launched": """
        s, a, out = cupy.cuda.Stream(non_blocking=True), cupy.zeros(3), cupy.zeros(3)
        cupy.cuda.Device().synchronize()
        with s:
            s.begin_capture()
            cupy.add(a, 1, out=out)
            out *= 2
            b = out + a
            graph = s.end_capture()
            assert out.get().tolist() == [0, 0, 0] and np.isnan(b.get()).all()
            a[...] = 5
            graph.launch()
            assert out.get().tolist() == [12] * 3 and b.get().tolist() == [17] * 3
            graph.launch()
            assert out.get().tolist() == [12] * 3
    """,
    "what_a_capture_refuses": """
        s, side = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))
        a, half = cupy.ones(3), cupy.ones((3, 3))
        cupy.cuda.Device().synchronize()
        with pytest.raises(order.CaptureError):
            cupy.cuda.Stream.null.begin_capture()
        for call in (lambda: float(a[0]), a.get, s.synchronize, a.device.synchronize, lambda: a[a > 0],
                     lambda: cupy.asarray(np.ones(3)), lambda: cupy.matmul(half, half),
                     lambda: s.record().synchronize(), lambda: s.record().done):
            with s:
                s.begin_capture()
                try:
                    with pytest.raises((order.CaptureError, NotImplementedError)):
                        call()
                finally:
                    s.end_capture()
        with s, pytest.raises(order.CaptureError, match="Unjoined"):
            s.begin_capture()
            side.wait_event(s.record())
            with side:
                a + 1
            s.end_capture()
    """,
    "the_pool_counts_and_has_an_end": """
        pool = cupy.get_default_memory_pool()
        used = pool.used_bytes()
        a = cupy.empty(100, np.float32)
        assert pool.used_bytes() - used == 512 and pool.total_bytes() >= pool.used_bytes()
        del a
        assert pool.used_bytes() == used
        with pytest.raises(cupy.cuda.memory.OutOfMemoryError):
            cupy.empty(1 << 45, np.uint8)
        pool.set_limit(size=pool.total_bytes() + 1024)
        with pytest.raises(cupy.cuda.memory.OutOfMemoryError, match="limit"):
            cupy.empty(1 << 20)
        pool.set_limit(size=0)
    """,
    "kernels_run_and_are_watched": """
        text = ('extern "C" __global__ void twice(const float* x, float* out, long long n) {'
                ' long long i = blockIdx.x * blockDim.x + threadIdx.x; if (i <= n) out[i] = 2 * x[i]; }')
        kernel = cupy.RawModule(code=text).get_function("twice")
        x, out = cupy.arange(64, dtype=np.float32), cupy.zeros(64, np.float32)
        kernel((1,), (64,), (x, out, 64))
        assert out.get().tolist() == [2 * i for i in range(64)]
        with pytest.raises(cuda_host.KernelError, match="outside memory: byte 256 of a block of 256"):
            kernel((2,), (64,), (x, out, 64))
        with pytest.raises(cuda_host.KernelError, match="argument 2 is passed as float64"):
            kernel((1,), (64,), (x, out, 64.0))
        with pytest.raises(cuda_host.KernelError, match="argument 0 is an array of float64"):
            kernel((1,), (64,), (x.astype(np.float64), out, 64))
        with pytest.raises(cuda_host.KernelError, match="blocks of"):
            kernel((1,), (2048,), (x, out, 64))
        with pytest.raises(cuda_host.KernelError, match="must be asked for"):
            kernel((1,), (64,), (x, out, 64), shared_mem=50000)
        side = cupy.cuda.Stream(non_blocking=True)
        with side, pytest.raises(order.RaceError, match="twice"):
            kernel((1,), (64,), (x, out, 64))
    """,
}

START = """
import cupy_standin.plugin
import cuda_host, cupy, ml_dtypes, numpy as np, pytest
from cupy_standin import order
"""


@pytest.mark.parametrize("name", RULES)
def test_rule(name):
    # in a process of its own: this one must go on without a module named cupy
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    done = subprocess.run([sys.executable, "-c", START + textwrap.dedent(RULES[name])],
                          env=environment, cwd=HERE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
