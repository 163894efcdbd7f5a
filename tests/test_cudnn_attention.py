"""How attention goes through cuDNN: what its graphs are told, and the addresses that plans are run with.

A stand-in for the frontend computes with NumPy what the graph describes, at these addresses.
"""

from __future__ import annotations

import threading
from contextlib import nullcontext
from types import SimpleNamespace

import fake_cudnn
import ml_dtypes
import numpy as np
import pytest

import disttorch as torch
from disttorch.backend import CPU, attention_kernels
from disttorch.backend.gpu import attention, cudnn

TOP_LEFT = object()


class SdpaGraph(fake_cudnn.QuickGraph):
    """``cudnn.pygraph`` of one attention."""

    def sdpa(self, q, k, v, generate_stats, attn_scale, **masking):
        assert generate_stats
        return self._put("forward", (q, k, v), 2, attn_scale, masking)

    def sdpa_backward(self, q, k, v, o, dO, stats, attn_scale, **masking):
        self.library.asked.append(("deterministic", masking.pop("use_deterministic_algorithm", False)))
        return self._put("backward", (q, k, v, o, dO, stats), 3, attn_scale, masking)

    def _put(self, name, operands, results, scale, masking):
        assert masking in ({}, {"diagonal_alignment": TOP_LEFT, "diagonal_band_right_bound": 0})
        if self.library.refuses == name:
            raise RuntimeError("not supported")
        self.name, self.operands, self.options = name, operands, (bool(masking), scale, 0.0, None)
        made = [fake_cudnn.FakeTensor(virtual=True) for _ in range(results)]
        self.results = made
        self.tensors += made
        return made

    def execute(self, pointers, workspace, handle=None):
        self.library.ran.append((self.name, workspace != 0, self.library.streams[handle]))
        given = [np.asarray(t.at(pointers[t.uid]), np.float64) for t in self.operands]
        if self.name == "forward":
            made = attention_kernels.attention_forward(CPU, *given, None, *self.options)
        else:
            q, k, v, out, g, stats = given
            made = attention_kernels.attention_backward(
                CPU, g, q, k, v, None, out, stats[..., 0], *self.options)
        for tensor, array in zip(self.results, made):
            place = tensor.at(pointers[tensor.uid])
            place[...] = array.reshape(place.shape)


class Array(np.ndarray):
    """A NumPy array with an address as CuPy's have it, at a multiple of 16."""

    data = property(lambda self: SimpleNamespace(ptr=self.ctypes.data))


def placed(values):
    memory = np.zeros(values.nbytes + 16, np.uint8)
    start = -memory.ctypes.data % 16
    out = memory[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
    out[...] = values
    return out.view(Array)


class Namespace:
    index, device = 0, nullcontext()

    def __init__(self, cupy, library):
        self.cupy, self.library = cupy, library

    @staticmethod
    def empty(shape, dtype):
        return placed(np.full(shape, np.nan, dtype))

    @staticmethod
    def ascontiguousarray(a):
        return a

    def __getattr__(self, name):
        return getattr(CPU, name)


@pytest.fixture
def xp(monkeypatch):
    library = fake_cudnn.library(graph=SdpaGraph)
    library.refuses = ""
    library.diagonal_alignment = SimpleNamespace(TOP_LEFT=TOP_LEFT)
    for where, name, value in (
            (cudnn, "_library", lambda: (library, "")), (cudnn, "_plans", {}),
            (cudnn, "_local", threading.local()), (attention, "_forwards", {}),
            (attention, "_backwards", {}), (attention, "_alone", {}), (attention, "_asked", set())):
        monkeypatch.setattr(where, name, value)
    monkeypatch.setattr(attention, "_SHORT", 0)
    cuda = SimpleNamespace(get_current_stream=lambda: SimpleNamespace(ptr=11),
                           alloc=lambda size: SimpleNamespace(ptr=1 << 20))
    return Namespace(SimpleNamespace(cuda=cuda), library)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("heads", "packed"), [(4, False), (2, False), (4, True)])
def test_values_and_gradients(xp, heads, packed, dtype, causal):
    kind, random = np.dtype(getattr(ml_dtypes, dtype, dtype)), np.random.default_rng(0)

    def drawn(*shape):
        return placed(random.standard_normal(shape).astype(kind))

    if packed:
        whole = drawn(2, 9, 3, 4, 16)
        q, k, v = (whole[:, :, i].transpose(0, 2, 1, 3) for i in range(3))
    else:
        q, k, v = drawn(2, 4, 9, 16), drawn(2, heads, 12, 16), drawn(2, heads, 12, 8)
    wide = [np.asarray(a, np.float64) for a in (q, k, v)]
    for _ in range(2):  # decided, and by what was decided
        out, logs = attention.attention_forward(xp, q, k, v, None, causal, 0.3, 0.0, None)
        g = drawn(*out.shape)
        grads = attention.attention_backward(xp, g, q, k, v, None, out, logs, causal, 0.3, 0.0, None)
        want, want_logs = attention_kernels.attention_forward(CPU, *wide, None, causal, 0.3, 0.0, None)
        wanted = attention_kernels.attention_backward(
            CPU, np.asarray(g, np.float64), *wide, None, want, want_logs, causal, 0.3, 0.0, None)
        np.testing.assert_allclose(logs, want_logs, atol=1e-4)
        for a, b in zip((out, *grads), (want, *wanted)):
            assert a.dtype == kind and a.shape == b.shape
            np.testing.assert_allclose(np.asarray(a, np.float64), b, atol=0.05, rtol=0.02)
            assert not packed or a.transpose(0, 2, 1, 3).flags.c_contiguous
    assert [name for name, *_ in xp.library.ran] == ["forward", "backward"] * 2
    assert xp.library.asked == ["plans", ("deterministic", False), "plans"] and xp.library.turns == 1


def test_the_same_bits_are_not_asked_of_cudnn(xp, monkeypatch):
    """Then its forward is taken without nondeterministic plans, and backward is ours."""
    ours = []
    monkeypatch.setattr(attention.own, "backward",
                        lambda *given: lambda g, q, k, v, *rest: ours.append(1) or (q, k, v))
    q = placed(np.ones((1, 2, 8, 16), np.float16))
    torch.use_deterministic_algorithms(True)
    try:
        out, logs = attention.attention_forward(xp, q, q, q, None, True, 0.3, 0.0, None)
        attention.attention_backward(xp, out, q, q, q, None, out, logs, True, 0.3, 0.0, None)
    finally:
        torch.use_deterministic_algorithms(False)
    assert xp.library.asked == ["plans", ("without", ("NONDETERMINISTIC",))] and ours == [1]
    assert [name for name, *_ in xp.library.ran] == ["forward"]


@pytest.mark.parametrize("refuses", ["", "forward", "backward"])
def test_heads_wider_than_our_kernels(xp, refuses):
    """Where cuDNN has plans for both directions; the formula takes a gradient that lies otherwise."""
    xp.library.refuses = refuses
    q, k, v = (placed(np.random.default_rng(i).standard_normal((1, 2, 6, 160)).astype(np.float16))
               for i in range(3))
    for _ in range(2):
        assert attention.attention_fits(xp, q, k, v, None, 0.0, 0.1, True) == (not refuses)
        assert not attention.attention_fits(xp, q, k, v, None, 0.5, 0.1, True)
    wider = placed(np.zeros((1, 1, 6, 264), np.float16))
    assert not attention.attention_fits(xp, wider, wider, wider, None, 0.0, 0.1)
    if refuses:
        return
    out, logs = attention.attention_forward(xp, q, k, v, None, True, 0.1, 0.0, None)
    wide = [np.asarray(a, np.float64) for a in (q, k, v)]
    want, want_logs = attention_kernels.attention_forward(CPU, *wide, None, True, 0.1, 0.0, None)
    np.testing.assert_allclose(np.asarray(out, np.float64), want, atol=0.01)
    g = placed(np.random.default_rng(9).standard_normal(out.shape).astype(np.float16))
    wanted = attention_kernels.attention_backward(
        CPU, np.asarray(g, np.float64), *wide, None, want, want_logs, True, 0.1, 0.0, None)
    for xp.library.refuses, given in (("", g), ("backward", turned(g))):
        grads = attention.attention_backward(xp, given, q, k, v, None, out, logs, True, 0.1, 0.0, None)
        for a, b in zip(grads, wanted):
            assert a.dtype == np.float16
            np.testing.assert_allclose(np.asarray(a, np.float64), b, atol=0.02, rtol=0.02)
    assert [name for name, *_ in xp.library.ran] == ["forward", "backward"]


def turned(a):
    """The same numbers, heads beside each other in memory."""
    return placed(a.transpose(0, 2, 1, 3).copy()).transpose(0, 2, 1, 3)


def test_cudnn_alone(xp, monkeypatch):
    """Where only cuDNN is allowed, what it has no plan for is not served, in any direction."""
    for name in ("flash", "mem_efficient"):
        monkeypatch.setitem(attention_kernels.ALLOWED, name, False)
    arrays = [placed(np.ones((1, 2, n, 16), np.float16)) for n in (8, 9, 10)]
    for q, xp.library.refuses in zip(arrays, ("", "forward", "backward")):
        served = attention.attention_fits(xp, q, q, q, None, 0.0, 0.3, False)
        assert served == (not xp.library.refuses)
    torch.use_deterministic_algorithms(True)
    try:
        assert not attention.attention_fits(xp, *[arrays[0]] * 3, None, 0.0, 0.3, False)
    finally:
        torch.use_deterministic_algorithms(False)
