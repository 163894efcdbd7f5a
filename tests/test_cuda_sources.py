"""Every CUDA C file compiles for every architecture, in all its variants, without a warning."""

from __future__ import annotations

import nvrtc
import pytest

from disttorch.backend.gpu import source

needs_nvrtc = pytest.mark.skipif(
    nvrtc.library_path() is None, reason="NVRTC is missing: pip install nvidia-cuda-nvrtc")


@needs_nvrtc
@pytest.mark.parametrize("architecture", nvrtc.ARCHITECTURES)
@pytest.mark.parametrize("family", source.families())
def test_family_compiles(family, architecture):
    for values in source.variants(family):
        code = nvrtc.compile_source(source.text(family), source.options(values), architecture)
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
