"""The switches of matrix products on GPUs: PyTorch's names, values and errors."""

from __future__ import annotations

import pytest

import disttorch as torch
from disttorch.backend import precision
from disttorch.backends import cuda


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    for name, value in vars(precision.Precision()).items():
        monkeypatch.setattr(precision.PRECISION, name, value)


def told():
    matmul = torch.backends.cuda.matmul
    return torch.get_float32_matmul_precision(), matmul.allow_tf32, matmul.fp32_precision


def test_three_names_of_one_switch():
    """What PyTorch 2.13 answers after each of these."""
    matmul = torch.backends.cuda.matmul
    assert told() == ("highest", False, "none")
    for word, tf32 in (("high", True), ("medium", True), ("highest", False)):
        torch.set_float32_matmul_precision(word)
        assert told() == (word, tf32, "tf32" if tf32 else "ieee")
    matmul.allow_tf32 = True
    assert told() == ("high", True, "tf32")
    matmul.allow_tf32 = False
    assert told() == ("highest", False, "ieee")
    matmul.fp32_precision = "tf32"
    assert told() == ("high", True, "tf32") and precision.PRECISION.tf32
    matmul.fp32_precision = "none"
    assert told() == ("highest", False, "none") and not precision.PRECISION.tf32


def test_reductions_of_16_bit_products():
    matmul = torch.backends.cuda.matmul
    assert matmul.allow_fp16_reduced_precision_reduction is True
    matmul.allow_bf16_reduced_precision_reduction = False
    assert matmul.allow_fp16_reduced_precision_reduction and not precision.PRECISION.bfloat16_sums
    assert matmul.allow_bf16_reduced_precision_reduction is False
    assert matmul.allow_bf16_reduced_precision_reduction_split_k is True
    matmul.allow_fp16_reduced_precision_reduction = (False, False)
    assert matmul.allow_fp16_reduced_precision_reduction_split_k is False
    matmul.allow_fp16_reduced_precision_reduction = [True]
    assert precision.PRECISION.float16_sums and matmul.allow_fp16_reduced_precision_reduction_split_k
    assert matmul.allow_fp16_accumulation is False
    matmul.allow_fp16_accumulation = False


@pytest.mark.parametrize(("name", "value", "kind", "text"), [
    ("allow_tf32", 1, RuntimeError, "set_allow_tf32_cublas expects a bool, but got int"),
    ("fp32_precision", "bf16", RuntimeError, "backend 'cuda' does not support precision 'bf16'"),
    ("fp32_precision", "x", RuntimeError, "Unknown precision: x"),
    ("allow_fp16_reduced_precision_reduction", 1, TypeError, "expects a bool or a tuple/list of bools"),
    ("allow_fp16_reduced_precision_reduction", (), TypeError, "one or two bools, but got 0"),
    ("allow_fp16_reduced_precision_reduction", (True, 1), TypeError, "a bool for allow_splitk"),
    ("allow_bf16_reduced_precision_reduction", (True, False), RuntimeError, "allow_splitk=False is not"),
    ("allow_fp16_accumulation", True, RuntimeError, "allow_fp16_accumulation=True is not supported"),
    ("anything", 1, AttributeError, "Unknown attribute anything"),
])
def test_wrong_values(name, value, kind, text):
    with pytest.raises(kind, match=text):
        setattr(cuda.matmul, name, value)
    assert told() == ("highest", False, "none")


def test_wrong_names():
    with pytest.raises(AttributeError, match="Unknown attribute anything"):
        _ = cuda.matmul.anything
    with pytest.raises(RuntimeError, match="Invalid float32 matmul precision 'low'"):
        torch.set_float32_matmul_precision("low")
