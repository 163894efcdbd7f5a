"""Other libraries and Python itself: shared memory, copies, legacy types, switches, no GPU."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest

import disttorch as torch


# ---------------------------------------------------------------- NumPy, buffers, DLPack
def test_numpy_shares_memory_both_ways():
    a = np.zeros((2, 3), np.float32)
    t = torch.from_numpy(a)
    t[0, 1] = 5
    a[1, 2] = 7
    assert t[1, 2].item() == 7 and a[0, 1] == 5
    assert t.numpy() is a or np.shares_memory(t.numpy(), a)
    assert np.shares_memory(t.t()[1:].numpy(), a)
    assert np.shares_memory(np.asarray(t), a)
    assert not np.shares_memory(np.array(t), a)
    assert np.asarray(t, dtype=np.float64).dtype == np.float64
    with pytest.raises(TypeError, match="expected np.ndarray"):
        torch.from_numpy([1, 2])


def test_dlpack_both_ways():
    t = torch.arange(6.0).reshape(2, 3)
    a = np.from_dlpack(t)
    a[0, 0] = 9
    assert t[0, 0].item() == 9
    back = torch.from_dlpack(a)
    back[1, 1] = -1
    assert t[1, 1].item() == -1
    assert torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(t))[1, 1].item() == -1
    assert t.__dlpack_device__() == (1, 0)
    assert torch.from_dlpack(t, copy=True).data_ptr() != t.data_ptr()
    with pytest.raises(BufferError, match="require gradient"):
        np.from_dlpack(torch.ones(2, requires_grad=True))
    with pytest.raises(BufferError):
        np.from_dlpack(torch.ones(1).expand(3))


def test_frombuffer_and_asarray():
    raw = bytearray(np.arange(4, dtype=np.int16).tobytes())
    t = torch.frombuffer(raw, dtype=torch.int16)
    raw[0] = 42
    assert t.tolist() == [42, 1, 2, 3]
    assert torch.frombuffer(raw, dtype=torch.int16, count=2, offset=2).tolist() == [1, 2]
    for options, words in (({"offset": 9}, "offset"), ({"count": 9}, "requested buffer length"),
                           ({"offset": 1}, "multiple of element size")):
        with pytest.raises(ValueError, match=words):
            torch.frombuffer(raw, dtype=torch.int16, **options)
    a = np.ones(2)
    assert np.shares_memory(torch.asarray(a).numpy(), a)
    assert not np.shares_memory(torch.asarray(a, copy=True).numpy(), a)
    assert torch.asarray([1, 2.5]).dtype is torch.float32
    with pytest.raises(ValueError, match="can't alias"):
        torch.asarray([1, 2], copy=False)
    with pytest.raises(ValueError, match="can't alias"):
        torch.asarray(a, dtype=torch.float32, copy=False)
    assert torch.asarray(a, requires_grad=True).requires_grad


def test_matplotlib_takes_tensors():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots()
    (line,) = axes.plot(torch.arange(4), torch.arange(4.0) ** 2)
    axes.imshow(torch.rand(3, 3))
    axes.hist(torch.randn(50))
    assert line.get_ydata().tolist() == [0, 1, 4, 9]
    figure.savefig(io.BytesIO())
    pyplot.close(figure)


def test_numpy_functions_take_tensors():
    t = torch.tensor([1.0, 4.0])
    np.testing.assert_array_equal(np.sqrt(t.numpy()), [1, 2])
    assert np.mean(t.numpy()) == 2.5
    np.testing.assert_allclose(t, [1, 4])
    assert list(t) == [1.0, 4.0]
    assert [1, 2, 3][torch.tensor(1)] == 2
    assert f"{torch.tensor(1.5):.1f}" == "1.5"


# ---------------------------------------------------------------- copies
def test_copies():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    x.grad = torch.ones(2)
    x.note = [1]
    deep, shallow = copy.deepcopy(x), copy.copy(x)
    assert deep.data_ptr() != x.data_ptr() and deep.grad is not x.grad and deep.note == [1]
    assert deep.note is not x.note and deep.is_leaf and deep.requires_grad
    assert shallow.data_ptr() == x.data_ptr() and shallow.requires_grad and shallow.note is x.note
    both = copy.deepcopy([x, x])
    assert both[0] is both[1]
    loaded = pickle.loads(pickle.dumps({"x": x, "b": torch.ones(1).bfloat16()}))
    assert loaded["x"].requires_grad and loaded["x"].note == [1]
    assert loaded["b"].dtype is torch.bfloat16
    for copier in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(RuntimeError, match="graph leaves"):
            copier(x * 2)


# ---------------------------------------------------------------- storages and legacy types
def test_storages():
    t = torch.arange(6.0).reshape(2, 3)
    v = t[1, 1:]
    assert t.untyped_storage().data_ptr() == v.untyped_storage().data_ptr() == t.data_ptr()
    assert t.untyped_storage().nbytes() == 24 and v.storage().size() == 6
    assert v.storage_offset() == 4 and v.storage().tolist() == [0, 1, 2, 3, 4, 5]
    v.storage()[4] = 40.0
    assert t[1, 1].item() == 40
    assert t.is_set_to(t.detach()) and not t.is_set_to(v)
    assert torch.is_storage(t.storage()) and not torch.is_storage(t)
    assert not t.is_shared()
    s = torch.UntypedStorage(4)
    s.fill_(7)
    assert s.tolist() == [7] * 4 and s.clone().data_ptr() != s.data_ptr()
    assert isinstance(torch.ByteStorage(), torch.storage.TypedStorage)


def test_legacy_types():
    assert torch.FloatTensor([1, 2]).dtype is torch.float32
    assert torch.LongTensor(2, 3).shape == (2, 3)
    assert torch.ByteTensor([1]).tolist() == [1]
    assert isinstance(torch.ones(1), torch.FloatTensor)
    assert not isinstance(torch.ones(1), torch.DoubleTensor)
    assert not isinstance(torch.ones(1), torch.cuda.FloatTensor)
    assert type(torch.FloatTensor(1)) is torch.Tensor
    assert torch.ones(1).type() == "torch.FloatTensor"
    assert torch.ones(1).type("torch.LongTensor").dtype is torch.int64
    assert torch.ones(1).type(torch.HalfTensor).dtype is torch.float16
    assert torch.ones(1).type(torch.float64).dtype is torch.float64
    assert str(torch.FloatTensor) == "torch.FloatTensor"
    with pytest.raises(ValueError, match="invalid type"):
        torch.ones(1).type("FloatTensor")
    try:
        torch.set_default_tensor_type(torch.DoubleTensor)
        assert torch.ones(1).dtype is torch.float64
        torch.set_default_tensor_type("torch.FloatTensor")
        assert torch.ones(1).dtype is torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


# ---------------------------------------------------------------- switches, versions
def test_switches_hold_what_was_set():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    with pytest.raises(RuntimeError):
        torch.set_num_threads(0)
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.get_float32_matmul_precision() == "highest"
    torch.set_float32_matmul_precision("high")
    assert torch.backends.cuda.matmul.allow_tf32
    torch.set_float32_matmul_precision("highest")
    assert not torch.backends.cuda.matmul.allow_tf32
    with pytest.raises(RuntimeError, match="precision"):
        torch.set_float32_matmul_precision("low")
    with torch.backends.cudnn.flags(benchmark=True):
        assert torch.backends.cudnn.benchmark
    assert not torch.backends.cudnn.benchmark


def test_version_compares_as_a_version():
    v = torch.__version__
    assert v >= "2.0" and v > "2.9.1" and v < "3" and v >= (2, 1) and v != "2.12"
    assert v == "2.13.0" and v.split("+")[0] == "2.13.0" and isinstance(v, str)
    assert int(v.split(".")[0]) == 2 and torch.version.cuda is None


def test_compile_and_jit_hand_functions_back():
    def f(x):
        return x + 1

    assert torch.compile(f) is f and torch.compile(mode="max-autotune")(f) is f
    assert torch.jit.script(f) is f and torch.compiler.disable(f) is f
    with pytest.raises(NotImplementedError, match="torch.load"):
        torch.jit.load("m.pt")


def test_missing_names_say_so():
    for get in (lambda: torch.no_such_name, lambda: torch.cuda.no_such_name,
                lambda: torch.utils.no_such_name, lambda: torch.autograd.no_such_name):
        with pytest.raises(AttributeError, match="disttorch lacks it"):
            get()


def test_extensions_in_cpp_say_what_to_do_instead():
    from disttorch.utils import cpp_extension

    for call in (lambda: cpp_extension.load("fast", ["fast.cpp"]), cpp_extension.BuildExtension,
                 lambda: cpp_extension.load_inline(name="fast", cpp_sources="int f();"),
                 lambda: cpp_extension.CUDAExtension("fast", ["fast.cu"], extra_compile_args=["-O3"]),
                 lambda: cpp_extension.CppExtension(name="fast", sources=[])):
        with pytest.raises(NotImplementedError, match="RawKernel"):
            call()
    assert cpp_extension.BuildExtension.with_options(use_ninja=False) is cpp_extension.BuildExtension


# ---------------------------------------------------------------- no GPU
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu():
    c = torch.cuda
    assert c.device_count() == 0 and not c.is_initialized() and not c.is_bf16_supported()
    assert c.memory_allocated() == c.max_memory_allocated() == c.memory_reserved() == 0
    assert c.get_rng_state_all() == [] and c.memory_stats() == {}
    for nothing in (c.empty_cache, c.seed_all, c.reset_peak_memory_stats, lambda: c.manual_seed(1),
                    lambda: c.manual_seed_all(1), lambda: c.set_rng_state_all([])):
        assert nothing() is None
    with c.stream(None):
        pass
    assert torch.version.cuda is None and c.default_generators == () and c.get_arch_list() == []
    for needs_one in (c.current_device, c.synchronize, c.Stream, c.Event, c.current_stream,
                      c.get_device_name, c.mem_get_info, lambda: c.set_device(0), c.get_rng_state,
                      lambda: c.FloatTensor(3), c.cudart, c.utilization, c.profiler.start,
                      c.get_device_properties):
        with pytest.raises(AssertionError, match="not compiled with CUDA"):
            needs_one()
        with pytest.raises(RuntimeError):
            needs_one()
    with pytest.raises(RuntimeError):
        torch.zeros(1, device="cuda")
    with pytest.raises(AttributeError, match="non-CUDA"):
        torch.ones(1).__cuda_array_interface__  # noqa: B018
    assert not torch.accelerator.is_available() and torch.accelerator.current_accelerator() is None
    with pytest.raises(RuntimeError, match="none is available"):
        torch.accelerator.synchronize()
    assert not torch.mps.is_available() and not torch.xpu.is_available()
    assert not torch.backends.mps.is_available()
    with pytest.raises(RuntimeError, match="lacks"):
        torch.xpu.synchronize()


def test_assert_close():
    close = torch.testing.assert_close
    close(torch.ones(2), torch.ones(2) + 1e-7)
    close({"a": [1.0, torch.ones(1)]}, {"a": [1.0, torch.ones(1)]})
    close(torch.tensor(float("nan")), torch.tensor(float("nan")), equal_nan=True)
    close(torch.ones(2), torch.ones(2, dtype=torch.float64), check_dtype=False)
    for a, b, words in (
        (torch.ones(2), torch.tensor([1.0, 1.1]), r"Mismatched elements: 1 / 2"),
        (torch.ones(2), torch.ones(3), "shape"),
        (torch.ones(2), torch.ones(2).double(), "dtype"),
        ([torch.ones(1)], [torch.zeros(1)], r"item \[0\]"),
        (torch.arange(3), torch.tensor([0, 1, 3]), "not equal"),
        (torch.tensor(float("nan")), torch.tensor(float("nan")), "not close"),
        ([1], [1, 2], "length"), ("a", "b", "No comparison"),
    ):
        with pytest.raises(AssertionError, match=words):
            close(a, b)
    with pytest.raises(ValueError, match="both"):
        close(torch.ones(1), torch.ones(1), rtol=1e-3)
