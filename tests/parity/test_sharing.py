"""Sharing memory with PyTorch, and names that must behave as there."""

from __future__ import annotations

import numpy as np
import pytest

import disttorch as dt

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64", "int32", "uint8",
                                   "bool", "complex64"])
def test_dlpack_shares_memory_both_ways(dtype):
    ours = dt.arange(6).reshape(2, 3).to(getattr(dt, dtype))
    theirs = torch.from_dlpack(ours)
    theirs[0, 0] = 1
    assert ours[0, 0].item() == 1 and str(theirs.dtype) == str(ours.dtype)
    theirs = torch.zeros(2, 3, dtype=getattr(torch, dtype))
    ours = dt.from_dlpack(theirs)
    ours[1, 2] = 1
    assert theirs[1, 2].item() == 1 and ours.data_ptr() == theirs.data_ptr()
    assert dt.from_dlpack(theirs.t()).stride() == theirs.t().stride()
    assert dt.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(theirs))[1, 2].item() == 1


def test_numpy_protocols():
    ours, theirs = dt.ones(3), torch.ones(3)
    assert np.shares_memory(torch.asarray(ours.numpy()).numpy(), ours.numpy())
    assert dt.asarray(theirs.numpy()).data_ptr() == theirs.data_ptr()
    assert dt.tensor(theirs).tolist() == [1, 1, 1]


NAMES = ["untyped_storage", "storage", "is_shared", "type", "is_pinned", "get_device", "stride",
         "storage_offset", "data_ptr", "element_size", "is_contiguous"]


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("name", NAMES)
def test_reprs_of_simple_methods(name):
    a, b = getattr(dt.ones(3), name)(), getattr(torch.ones(3), name)()
    assert repr(a) == repr(b) or isinstance(b, int) and isinstance(a, int)


@pytest.mark.parametrize("version", ["2.0", "2.12.1", "2.13.0", "2.14", "3.0", (2, 1), (2, 14)])
def test_version_comparisons(version):
    ours, theirs = dt.__version__, torch.__version__
    for compare in ("__lt__", "__le__", "__gt__", "__ge__"):
        if str(version) != "2.13.0":  # theirs has a local build number
            assert getattr(ours, compare)(version) == getattr(theirs, compare)(version)


@pytest.mark.parametrize("name", [
    "device_count", "memory_allocated", "max_memory_allocated", "memory_reserved", "empty_cache",
    "is_initialized", "is_bf16_supported", "get_rng_state_all", "memory_stats", "get_arch_list",
    "current_device", "synchronize", "get_device_name", "current_stream",
    "mem_get_info"])
def test_cuda_without_a_gpu(name):
    if torch.cuda.is_available() or dt.cuda.is_available():
        pytest.skip("there is a GPU")
    try:
        want = getattr(torch.cuda, name)()
    except Exception as error:
        with pytest.raises(type(error), match="not compiled with CUDA"):
            getattr(dt.cuda, name)()
        return
    assert getattr(dt.cuda, name)() == want
