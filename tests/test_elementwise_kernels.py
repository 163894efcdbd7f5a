"""Elementwise kernels without a GPU: the short ways of ``xp.fused``, every expression through NVRTC, and
what a launch hands to the driver."""

from __future__ import annotations

import ctypes
import struct
import sys
import types

import cuda_host
import numpy as np
import nvrtc
import pytest

from disttorch.backend.gpu import elementwise, launch, source
from disttorch.backend.gpu.expressions import TABLE


class Array:
    """As much of CuPy's array as the short ways look at, over NumPy's."""

    def __init__(self, shape, dtype=None, values=None):
        self.values = np.empty(shape, dtype) if values is None else values
        for name in ("shape", "strides", "dtype", "ndim", "size", "itemsize"):
            setattr(self, name, getattr(self.values, name))

    @property
    def _c_contiguous(self):
        return self.values.flags.c_contiguous


class Module:
    def __init__(self, code, options, backend):
        self.library = cuda_host.compile_text(code, options, "elementwise.cu")

    def get_function(self, name):
        made = cuda_host.Kernel(self.library, name)
        return lambda grid, block, args, shared_mem=0: made(
            grid, block, tuple(a.values if isinstance(a, Array) else a for a in args), shared_mem)


class Twin:
    """CuPy by name; hashable, as a module is."""

    ndarray, RawModule = Array, Module
    cuda = types.SimpleNamespace(runtime=types.SimpleNamespace(getDevice=lambda: 0), alloc=None)


@pytest.mark.skipif(not cuda_host.available(), reason="needs g++")
def test_short_ways_agree_with_general_ones():
    fused = elementwise.Fused(Twin)
    x = np.random.default_rng(0).standard_normal((7, 700)).astype("f4")
    a, b = Array(None, values=x), Array(None, values=x[::-1].copy())
    for _ in range(2):  # the second time by the short way
        assert np.array_equal(fused.add(a, b).values, x + b.values)
        assert np.array_equal(fused.mul(a, 2.5).values, x * np.float32(2.5))
        assert np.array_equal(fused.sub(1, a).values, 1 - x)
        np.testing.assert_allclose(fused.tanh(a).values, np.tanh(x), 1e-6)
    out = Array((7, 700), np.dtype("f4"))
    assert fused.add(a, b, out=out) is out and np.array_equal(out.values, x + b.values)
    odd = Array(None, values=x.reshape(-1)[1:])  # not aligned to 16 bytes
    assert np.array_equal(fused.add(odd, odd).values, 2 * odd.values)
    assert fused.add(a, Array(None, values=x.astype("f8"))) is NotImplemented
    assert fused.add(a, 1j) is NotImplemented


@pytest.mark.skipif(nvrtc.library_path() is None, reason="NVRTC is missing")
@pytest.mark.parametrize("name", TABLE)
def test_every_expression_compiles(name):
    spec = TABLE[name]
    value, memory = ("float", "bfloat16") if "f" in spec.types else ("i64", "int64")
    arrays = [k for k in spec.operands if k in "ace"][:3]
    letters, places = iter("abc"), []
    numbers = iter("pq")
    for kind in spec.operands:
        places.append(next(letters) if kind in "ace" else next(numbers))
    names = dict(zip("xyzw", places))
    texts = [elementwise._OPERAND.sub(lambda m: names[m[0]], t) for t in spec.results]
    values = {"VALUE": value, "RESULT": spec.result or memory, "NDIM": 1,
              "NUMBERS": sum(p in "pq" for p in places)}
    values |= dict(zip(("FIRST", "SECOND", "THIRD"), ["bool" if k == "c" else memory for k in arrays]))
    values |= dict(zip(("EXPR", "EXPR1"), texts))
    options = source.options(tuple(values.items()))
    assert nvrtc.compile_source(source.text("elementwise"), options, "sm_90").startswith(b"\x7fELF")


def test_driver_gets_packed_arguments(monkeypatch):
    """The address of the machine code, the shape, the stream, and all arguments in C's layout."""
    calls, failing = [], []

    class DriverError(Exception):
        pass

    def put(address, gx, gy, gz, bx, by, bz, shared, stream, parameters, extra):
        if failing:
            raise failing.pop()
        words = (ctypes.c_void_p * 5).from_address(extra)
        size = ctypes.c_size_t.from_address(words[3]).value
        assert (words[0], words[2], words[4], parameters) == (1, 2, None, 0)
        shape = (address, gx, gy, gz, bx, by, bz, shared, stream)
        calls.append((shape, ctypes.string_at(words[1], size)))

    driver = types.SimpleNamespace(launchKernel=put, CUDADriverError=DriverError)
    for name, module in (("cupy_backends", {}), ("cupy_backends.cuda", {}),
                         ("cupy_backends.cuda.api", {"driver": driver})):
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(__path__=[], **module))
    monkeypatch.setitem(sys.modules, "cupy_backends.cuda.api.driver", driver)
    attached = []
    runtime = types.SimpleNamespace(getDevice=lambda: 3, setDevice=attached.append)
    stream = types.SimpleNamespace(ptr=77)
    cuda = types.SimpleNamespace(get_current_stream=lambda: stream, runtime=runtime)
    cupy = types.SimpleNamespace(ndarray=Array, cuda=cuda)
    function = types.SimpleNamespace(kernel=types.SimpleNamespace(ptr=4096))
    a = Array((2,), "f4")
    a.data = types.SimpleNamespace(ptr=0x7F0000000010)
    kinds = (Array, type(None), np.float32, int, float)
    launch.launcher(cupy, function, kinds)((5, 2), (64,), 16, a, None, np.float32(1.5), 7, 0.25)
    failing.append(DriverError())  # a thread without a context: attached, then launched
    launch.launcher(cupy, function, kinds, 256)(9, a, None, np.float32(1.5), 7, 0.25)
    packed = struct.pack("PPfqd", 0x7F0000000010, 0, 1.5, 7, 0.25)
    assert calls == [((4096, 5, 2, 1, 64, 1, 1, 16, 77), packed),
                     ((4096, 9, 1, 1, 256, 1, 1, 0, 77), packed)]
    assert attached == [3]
    with pytest.raises(TypeError, match="arrays, numbers"):
        launch.launcher(cupy, function, (str,))
