"""Every CUDA C file compiles for every architecture, in all its variants, without a warning."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import nvrtc
import pytest

from disttorch.backend.gpu import source

needs_nvrtc = pytest.mark.skipif(
    nvrtc.library_path() is None, reason="NVRTC is missing: pip install nvidia-cuda-nvrtc")


@pytest.fixture(scope="module")
def compiled(request):
    """What is asked for, by family and architecture, as many at once as there are processors."""
    asked = [item.callspec.params for item in request.session.items
             if getattr(item, "originalname", "") == "test_family_compiles"]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield {(a["family"], a["architecture"]): pool.submit(compile_family, **a) for a in asked}
        pool.shutdown(cancel_futures=True)


def compile_family(family: str, architecture: str) -> dict:
    """The machine code of all variants."""
    return {values: nvrtc.compile_source(source.text(family), source.options(values), architecture)
            for values in source.variants(family)}


@needs_nvrtc
@pytest.mark.parametrize("architecture", nvrtc.ARCHITECTURES)
@pytest.mark.parametrize("family", source.families())
def test_family_compiles(family, architecture, compiled):
    for values, code in compiled[family, architecture].result().items():
        assert code.startswith(b"\x7fELF"), (family, values)


@needs_nvrtc
def test_an_error_is_told():
    with pytest.raises(RuntimeError, match=r"sm_90.*undefined_name"):
        nvrtc.compile_source("__global__ void f() { undefined_name; }", (), "sm_90")


def test_includes_are_put_in_once():
    text = source.text("softmax")
    assert text.count("struct half_t {") == 1 and '#include "' not in text


def test_options_name_c_types():
    assert source.options((("ELEMENT", "bfloat16"), ("CAUSAL", 1))) == (
        "-std=c++17", "-DELEMENT=bf16_t", "-DCAUSAL=1")
