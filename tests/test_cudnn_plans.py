"""How convolutions go through cuDNN: what its graphs are told, which plan is taken, how it is run.

A stand-in for the frontend computes with NumPy at the addresses that a plan is run with.
"""

from __future__ import annotations

import threading
from contextlib import nullcontext
from types import SimpleNamespace

import fake_cudnn
import numpy as np
import pytest

import disttorch as torch
from disttorch.backend import CPU, layouts
from disttorch.backend.dtypes import bfloat16, float16, float32, float64
from disttorch.backend.gpu import convolution, cudnn, graphs


class Array(np.ndarray):
    """A NumPy array with an address as CuPy's have it."""

    data = property(lambda self: SimpleNamespace(ptr=self.ctypes.data))


class Namespace:
    index, device, ndarray = 0, nullcontext(), np.ndarray

    def __init__(self, library):
        self.streams = [11]
        cuda = SimpleNamespace(
            get_current_stream=lambda: SimpleNamespace(ptr=self.streams[-1]),
            alloc=lambda size: SimpleNamespace(ptr=1 << 20), get_elapsed_time=lambda a, b: b.at - a.at,
            Event=lambda: Event(library))
        self.cupy = SimpleNamespace(cuda=cuda)

    def __getattr__(self, name):
        return getattr(CPU, name)

    @staticmethod
    def empty(shape, dtype):
        return np.full(shape, np.nan, dtype).view(Array)

    @staticmethod
    def ascontiguousarray(a):
        return np.ascontiguousarray(a).view(Array)

    @staticmethod
    def channel_sum(g):
        return CPU.channel_sum(wide(g)).astype(g.dtype)


class Event:
    def __init__(self, library):
        self.library = library

    def record(self):
        self.at = self.library.clock

    def synchronize(self):
        pass


@pytest.fixture
def with_library(monkeypatch):
    """``f(**options)``: a namespace whose cuDNN is the stand-in."""
    def install(**options):
        made = fake_cudnn.library(**options)
        monkeypatch.setattr(cudnn, "_library", lambda: (made, ""))
        monkeypatch.setattr(cudnn, "_plans", {})
        monkeypatch.setattr(cudnn, "_local", threading.local())
        monkeypatch.setattr(convolution, "_decided", {})
        return Namespace(made), made

    return install


def drawn(seed, shape, dtype, last=False):
    values = np.random.default_rng(seed).standard_normal(shape).astype(dtype)
    return (layouts.copied(CPU, values, True) if last else values).view(Array)


def wide(a):
    return np.asarray(a).astype(np.float64)


GEOMETRIES = {  # input, weight, stride, padding, dilation, groups
    "1d": ((2, 3, 9), (4, 3, 3), (2,), (1,), (1,), 1),
    "2d": ((2, 8, 5, 6), (8, 8, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    "strided": ((2, 8, 7, 6), (4, 8, 3, 2), (2, 1), (1, 2), (1, 1), 1),
    "dilated": ((2, 4, 8, 8), (6, 4, 3, 2), (1, 1), (0, 1), (2, 3), 1),
    "grouped": ((2, 16, 5, 5), (8, 8, 3, 3), (2, 2), (1, 1), (1, 1), 2),
    "depthwise": ((2, 6, 5, 4), (12, 1, 3, 3), (1, 1), (1, 1), (1, 1), 6),
    "3d": ((1, 2, 4, 5, 3), (3, 2, 2, 3, 2), (1, 2, 1), (1, 1, 0), (1, 1, 2), 1),
}


@pytest.mark.parametrize("graph", [fake_cudnn.QuickGraph, fake_cudnn.FakeGraph])
@pytest.mark.parametrize("dtype", [float32.np, bfloat16.np, float16.np], ids=str)
@pytest.mark.parametrize("case", GEOMETRIES)
def test_values_and_gradients(with_library, case, dtype, graph):
    xp, library = with_library(graph=graph)
    shape, kernel, *options = GEOMETRIES[case]
    for last in (False, True)[: 1 if len(shape) == 3 else 2]:
        x, w = drawn(1, shape, dtype, last), drawn(2, kernel, dtype, last)
        for _ in range(2):  # decided, and by what was decided
            out = convolution.conv(xp, x, w, None, *options)
            g = drawn(3, out.shape, dtype, not last and case == "2d")  # laid out anew
            found = [out, *convolution.conv_grads(xp, g, x, w, (True, True, True), *options)]
            wanted = [CPU.conv(wide(x), wide(w), None, *options),
                      *CPU.conv_grads(wide(g), wide(x), wide(w), (True, True, True), *options)]
            for a, b in zip(found, wanted):
                assert a.dtype == dtype
                np.testing.assert_allclose(wide(a), b, rtol=2e-2, atol=5e-2)
            assert all(layouts.is_dense(a, last) for a in found[:3])
        back = convolution.conv_input_grad(xp, g, w, shape[2:], *options)
        np.testing.assert_array_equal(wide(back), wide(found[1]))
        again = convolution.conv_weight_grad(xp, x, g, kernel[2:], *options)
        np.testing.assert_array_equal(wide(again), wide(found[2]))
    assert (library.quick > 0) == (graph is fake_cudnn.QuickGraph)


def test_a_plan_is_made_once_and_the_stream_told_when_it_changes(with_library):
    xp, library = with_library()
    x, w = drawn(1, (2, 8, 6, 6), float16.np, True), drawn(2, (8, 8, 3, 3), float16.np, True)
    options = (1, 1), (1, 1), (1, 1), 1
    for _ in range(3):
        convolution.conv(xp, x, w, None, *options)
    assert library.asked == ["plans"] and library.turns == 1
    xp.streams.append(12)
    convolution.conv(xp, x, w, None, *options)
    xp.streams.pop()
    convolution.conv(xp, x, w, None, *options)
    assert [stream for _, _, stream in library.ran] == [11, 11, 11, 12, 11] and library.turns == 3


def test_addresses_are_made_multiples_of_16(with_library):
    xp, _ = with_library()
    w, memory = drawn(2, (4, 3, 3, 3), float32.np), np.zeros(2 * 3 * 36 + 8, np.float32)
    options = (1, 1), (0, 0), (1, 1), 1
    for shift in range(4):
        x = memory[shift : shift + 216].reshape(2, 3, 6, 6).view(Array)
        x[...] = drawn(1, x.shape, float32.np)
        out = convolution.conv(xp, x, w, None, *options)
        want = CPU.conv(np.asarray(x), np.asarray(w), None, *options)
        np.testing.assert_allclose(out, want, atol=1e-4)


def test_notes_that_leave_plans_out(with_library):
    notes = [("TENSOR_CORE",), ("DOWN_CONVERT_INPUTS",), ("NONDETERMINISTIC",), ()]
    taken = {}
    for name, dtype in (("float32", float32.np), ("float16", float16.np)):
        x, w = drawn(1, (1, 2, 4, 4), dtype), drawn(2, (2, 2, 3, 3), dtype)
        for tf32 in (True, False):
            for fixed in (True, False):
                xp, library = with_library(times=(1.0,) * 4, notes=notes)
                with torch.backends.cudnn.flags(allow_tf32=tf32, deterministic=fixed):
                    convolution.conv(xp, x, w, None, (1, 1), (0, 0), (1, 1), 1)
                left_out = dict([a for a in library.asked if a != "plans"]).get("without", ())
                taken[name, tf32, fixed] = library.ran[0][0], set(left_out)
    assert taken["float32", True, False] == (0, {"DOWN_CONVERT_INPUTS"})
    assert taken["float32", False, False] == (2, {"TENSOR_CORE", "DOWN_CONVERT_INPUTS"})
    assert taken["float32", False, True] == (
        3, {"TENSOR_CORE", "DOWN_CONVERT_INPUTS", "NONDETERMINISTIC"})
    assert taken["float16", False, True] == (0, {"NONDETERMINISTIC"})
    assert taken["float16", False, False] == (0, set())


def test_tf32_as_in_pytorch():
    assert torch.backends.cudnn.allow_tf32 and cudnn.allow_tf32()
    with torch.backends.cudnn.flags(fp32_precision="ieee"):
        assert not cudnn.allow_tf32()
        torch.backends.cudnn.conv.fp32_precision = "tf32"
        try:
            assert cudnn.allow_tf32()
        finally:
            torch.backends.cudnn.conv.fp32_precision = "none"
    with torch.backends.cudnn.flags(allow_tf32=False):
        assert not cudnn.allow_tf32()


def test_deterministic_algorithms_leave_nondeterministic_plans_out(with_library):
    xp, library = with_library(times=(1.0, 1.0), notes=[("NONDETERMINISTIC",), ()])
    x, w = drawn(1, (1, 2, 4, 4), float16.np), drawn(2, (2, 2, 3, 3), float16.np)
    options = (1, 1), (0, 0), (1, 1), 1
    convolution.conv(xp, x, w, None, *options)
    torch.use_deterministic_algorithms(True)
    try:
        convolution.conv(xp, x, w, None, *options)
    finally:
        torch.use_deterministic_algorithms(False)
    convolution.conv(xp, x, w, None, *options)
    assert [built for built, _, _ in library.ran] == [0, 1, 0]


def test_benchmark_keeps_the_fastest_that_works(with_library):
    xp, library = with_library(times=(5.0, 1.0, 3.0, 2.0, 0.5), notes=[()] * 5, broken={1})
    x, w = drawn(1, (1, 2, 4, 4), float16.np), drawn(2, (2, 2, 3, 3), float16.np)
    options = (1, 1), (0, 0), (1, 1), 1
    with torch.backends.cudnn.flags(benchmark=True, benchmark_limit=4):
        for _ in range(2):
            out = convolution.conv(xp, x, w, None, *options)
    wanted = CPU.conv(wide(x), wide(w), None, *options)
    np.testing.assert_allclose(wide(out), wanted, atol=1e-2)
    timed, run = library.ran[:-2], library.ran[-2:]
    assert {built for built, _, _ in timed} == {0, 2, 3}  # not those that fail, nor beyond the limit
    assert [r[:2] for r in run] == [(3, True)] * 2
    convolution.conv(xp, x, w, None, *options)
    assert library.ran[-1][:2] == (0, False), "without benchmark: the heuristics' first choice"


@pytest.mark.parametrize("ms, taken", [(2.0, True), (9.0, False)])
@pytest.mark.parametrize("last", [True, False])
def test_benchmark_takes_the_bias_into_the_kernel_where_that_is_faster(
        with_library, monkeypatch, ms, taken, last):
    xp, library = with_library(times=(5.0,), fused=ms)
    added = []

    def bias_adder(xp, shape, dtype, last):
        def add(out, bias):
            added.append(1)
            library.clock += 1
            out += np.asarray(bias).reshape(-1, 1, 1)
        return add

    monkeypatch.setattr(convolution.own, "bias_adder", bias_adder)
    x, w, b = drawn(1, (2, 8, 4, 4), float16.np, last), drawn(2, (3, 8, 3, 3), float16.np), drawn(
        3, (3,), float16.np)
    options = (1, 1), (0, 0), (1, 1), 1
    with torch.backends.cudnn.flags(benchmark=True):
        convolution.conv(xp, x, w, b, *options)
        added.clear()
        out = convolution.conv(xp, x, w, b, *options)
    assert added == ([] if taken else [1])
    np.testing.assert_allclose(
        wide(out), CPU.conv(wide(x), wide(w), wide(b), *options), rtol=1e-2, atol=1e-2)
    convolution.conv(xp, x, w, b, *options)
    assert len(added) == (1 if taken else 2), "without benchmark: two launches"


def test_no_timing_in_a_capture(with_library, monkeypatch):
    xp, library = with_library(times=(5.0, 1.0))
    x, w = drawn(1, (1, 2, 4, 4), float16.np), drawn(2, (2, 2, 3, 3), float16.np)
    options = (1, 1), (0, 0), (1, 1), 1
    with torch.backends.cudnn.flags(benchmark=True):
        monkeypatch.setattr(graphs, "is_capturing", lambda: True)
        convolution.conv(xp, x, w, None, *options)
        assert [built for built, _, _ in library.ran] == [0]
        monkeypatch.setattr(graphs, "is_capturing", lambda: False)
        convolution.conv(xp, x, w, None, *options)
        monkeypatch.setattr(graphs, "is_capturing", lambda: True)
        before = len(library.ran)
        convolution.conv(xp, x, w, None, *options)
    assert [built for built, _, _ in library.ran[before:]] == [1], "what was timed serves in a capture"


def test_a_refusal_is_told_and_remembered(with_library):
    xp, library = with_library(broken={0})
    with pytest.raises(cudnn.Unsupported, match="no plan for.*No execution plans"):
        cudnn.plan(xp, ("a",), lambda graph, lib: convolution.describe(
            graph, "conv_fprop", (1, 2, 4, 4), (2, 2, 3, 3), (1, 2, 2, 2), False, (1, 1), (0, 0), (1, 1),
            float16.np))
    with pytest.raises(cudnn.Unsupported):
        cudnn.plan(xp, ("a",), None)
    assert library.asked == ["plans"]


def test_switched_off_or_of_a_type_that_it_does_not_know(with_library):
    xp, library = with_library()
    x, w = drawn(1, (1, 2, 4, 4), float64.np), drawn(2, (2, 2, 3, 3), float64.np)
    decide = convolution._by_cudnn
    shape, options = (1, 2, 2, 2), ((1, 1), (0, 0), (1, 1))
    assert decide(xp, "conv_fprop", x, w, shape, False, *options) is None
    x, w = x.astype(np.float32), w.astype(np.float32)
    with torch.backends.cudnn.flags(enabled=False):
        assert decide(xp, "conv_fprop", x, w, shape, False, *options) is None
    assert decide(xp, "conv_fprop", x, w, shape, False, *options) is not None and not library.ran
