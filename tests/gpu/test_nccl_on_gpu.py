"""NCCL with one rank on a real GPU: every call, dtype and layout; order of streams; both bindings."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

import disttorch as torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device, or no CuPy"),
]
if torch.cuda.is_available():
    import collectives_conformance as conformance
    import cupy
    from gpu import device_arrays

    from collectives import CollectiveError, PremulSum, ReduceOp, nccl, single
    from collectives.nccl import binding as nccl_binding


of_a_gpu = pytest.mark.skipif(
    torch.cuda.is_available() and "stand-in" in torch.cuda.get_device_name(),
    reason="products that take a GPU")


@pytest.fixture(params=["nccl4py", "cupy"])
def group(request, monkeypatch):
    if request.param == "nccl4py" and importlib.util.find_spec("nccl") is None:
        pytest.skip("nccl4py is not installed")
    monkeypatch.setenv("DISTTORCH_NCCL_BINDING", request.param)
    made = nccl.connect(single())
    yield made
    made.close()


@pytest.mark.parametrize("call", ["all_reduce", "reduce", "reduce_scatter", "broadcast", "all_gather",
                                  "all_to_all", "gather", "scatter"])
def test_conformance(group, call, monkeypatch):
    monkeypatch.setattr(conformance, "Laid", device_arrays.DeviceLaid)
    monkeypatch.setattr(conformance, "_done", device_arrays.wait)
    count, failures, used = conformance.check_call(group, call)
    assert failures == []
    assert used == {dtype.name for dtype in conformance.DTYPES}
    assert count >= 14 * len(conformance.DTYPES)


def test_the_whole_gpu_library_is_reached(group):
    assert group._binding.version() >= 21000
    assert group._binding.name == {True: "cupy.cuda.nccl", False: "nccl4py"}[group._binding.blocking]
    assert isinstance(group._binding, nccl_binding.Binding)


@of_a_gpu
def test_a_call_waits_for_the_callers_stream(group):
    side = cupy.cuda.Stream(non_blocking=True)
    with side:
        a = cupy.random.rand(4096, 4096, dtype=cupy.float32)
        for _ in range(20):  # milliseconds of work before the value is there
            b = a @ a
        b[...] = 7
        work = group.all_reduce(b, async_op=True)
        work.wait()
        total = b.sum(dtype=cupy.float64)
    side.synchronize()
    assert float(total) == 7 * 4096 * 4096
    work.block()
    assert work.is_completed()


@of_a_gpu
def test_the_cpu_does_not_wait(group):
    a = cupy.random.rand(8192, 8192, dtype=cupy.float32)
    small = cupy.ones(4, np.float32)
    group.all_reduce(small)
    cupy.cuda.Device().synchronize()
    for _ in range(50):
        b = a @ a
    work = group.all_reduce(small, async_op=True)
    assert not work.is_completed()  # behind about a second of products
    work.block()
    assert work.is_completed() and b.shape == a.shape


def test_ops_that_are_nccls_own(group):
    half = cupy.asarray([1, 2], torch.bfloat16.np)
    group.all_reduce(half, PremulSum(0.5))
    device_arrays.same(half.astype(np.float32), [0.5, 1])
    a = cupy.asarray([1 + 2j, 3], np.complex64)
    group.all_reduce(a, ReduceOp.AVG)
    device_arrays.same(a, [1 + 2j, 3])
    group.deterministic = True
    b = cupy.arange(5, dtype=np.float32)
    group.all_reduce(b)
    device_arrays.same(b, range(5))
    device_arrays.same(group.tree_all_reduce([b, b], 2), [0, 2, 4, 6, 8])


def test_unequal_parts_and_empty(group):
    out = cupy.zeros(3, np.int16)
    group.all_gather(out, cupy.arange(3, dtype=np.int16), counts=[3])
    device_arrays.same(out, [0, 1, 2])
    group.reduce_scatter(out, cupy.arange(3, dtype=np.int16) + 1, counts=[3])
    device_arrays.same(out, [1, 2, 3])
    group.all_to_all(out, cupy.zeros(3, np.int16), out_counts=[3], in_counts=[3])
    device_arrays.same(out, [0, 0, 0])
    group.all_reduce(cupy.zeros(0))


def test_input_inside_output(group):
    out = cupy.arange(6, dtype=np.float32)
    group.all_gather(out[1:4], out[2:5], counts=[3])
    device_arrays.same(out, [0, 2, 3, 4, 4, 5])
    group.reduce_scatter(out[:3], out[::-1][:3])
    device_arrays.same(out, [5, 4, 4, 4, 4, 5])


def test_split_close_and_abort(group):
    part = group.split(0)
    a = cupy.ones(3)
    part.all_reduce(a)
    device_arrays.same(a, [1, 1, 1])
    part._fail(CollectiveError("as a test"))
    with pytest.raises(CollectiveError, match="was aborted: as a test"):
        part.all_reduce(a)
    part.close()
    group.all_reduce(a)
    device_arrays.same(a, [1, 1, 1])


def test_host_arrays_and_objects(group):
    a = np.ones(3)
    group.all_reduce(a)
    assert a.tolist() == [1, 1, 1] and group.broadcast_object("x") == "x"


def test_many_calls_with_arrays_that_are_dropped(group):
    """Temporaries of the group's stream must not be overwritten by later ones."""
    expected = cupy.arange(10007, dtype=np.float32)
    outs = []
    for i in range(200):
        strided = cupy.repeat(expected + i, 2)[::2]
        out = cupy.empty(10007, np.float32)
        group.all_gather(out, strided, async_op=i % 2 == 0)
        outs.append(out)
    cupy.cuda.Device().synchronize()
    for i, out in enumerate(outs):
        assert bool((out == expected + i).all())
