"""How tensors print, character for character."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import disttorch as dt
from disttorch.printing import printoptions

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

RNG = np.random.default_rng(3)
SHAPES = [(), (1,), (3,), (7,), (0,), (2, 0), (0, 3, 2), (2, 3), (12, 3), (1, 1, 1), (2, 3, 4),
          (2, 2, 2, 2), (40,), (30, 40), (1001,), (1100, 2), (7, 8, 30), (3, 700)]
DTYPES = ["float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool",
          "complex64", "complex128"]
OPTIONS = [{}, {"precision": 2}, {"threshold": 5}, {"edgeitems": 1, "threshold": 3},
           {"linewidth": 40}, {"sci_mode": True}, {"sci_mode": False}, {"profile": "short"},
           {"profile": "full"}]


def draw(kind, shape):
    values = RNG.standard_normal(shape)
    return {
        "normal": lambda: values,
        "whole": lambda: np.round(values * 50),
        "wide": lambda: values * 10.0 ** RNG.integers(-6, 7, shape),
        "tiny": lambda: values * 1e-6,
        "huge": lambda: np.round(values * 1e4) * 1e5,
        "zeros": lambda: np.zeros(shape),
        "special": lambda: np.where(values > 0.5, np.inf, np.where(values < -0.5, np.nan, values)),
        "whole_special": lambda: np.where(values > 0.5, -np.inf, np.round(values * 9)),
    }[kind]()


KINDS = ["normal", "whole", "wide", "tiny", "huge", "zeros", "special", "whole_special"]


def both(array, dtype):
    with np.errstate(all="ignore"):
        if dtype.startswith("complex"):
            array = array + 1j * np.flip(array)
        elif not dtype.startswith(("float", "bfloat")):
            array = np.nan_to_num(array, posinf=3, neginf=-4)
            array = np.abs(array) % 200 if dtype == "uint8" else array % 1000
        theirs = torch.tensor(np.asarray(array)).to(getattr(torch, dtype))
        return dt.tensor(np.asarray(array)).to(getattr(dt, dtype)), theirs


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_repr(kind, dtype):
    for shape in SHAPES:
        ours, theirs = both(draw(kind, shape), dtype)
        assert repr(ours) == repr(theirs)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options(options):
    for kind, shape in itertools.product(KINDS, SHAPES):
        ours, theirs = both(draw(kind, shape), "float32")
        with printoptions(**options), torch._tensor_str.printoptions(**options):
            assert repr(ours) == repr(theirs)


def test_suffixes():
    for m in (dt, torch):
        m.manual_seed(0)
    x, y = dt.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    for f in (lambda a: a, lambda a: a * 2, lambda a: a.sum(), lambda a: a.detach().double(),
              lambda a: a.expand(9, 3) + 1, lambda a: a.view(1, 3).half(),
              lambda a: a[:0]):
        assert repr(f(x)) == repr(f(y))
        assert str(f(x)) == str(f(y))


def test_default_dtype():
    try:
        dt.set_default_dtype(dt.float64), torch.set_default_dtype(torch.float64)
        assert repr(dt.ones(2)) == repr(torch.ones(2))
        assert repr(dt.ones(2).float()) == repr(torch.ones(2).float())
        assert repr(dt.zeros(0)) == repr(torch.zeros(0))
    finally:
        dt.set_default_dtype(dt.float32), torch.set_default_dtype(torch.float32)


def test_format_and_subclasses():
    for m in (dt, torch):
        assert f"{m.tensor(3.14159):.2f}" == "3.14"
        assert f"{m.tensor(7):d}" == "7"
        with pytest.raises(TypeError):
            f"{m.ones(2):.2f}"
    assert f"{dt.ones(2)}" == f"{torch.ones(2)}"
    for make in (lambda m: m.tensor(1.25, requires_grad=True) * 2, lambda m: m.tensor(True),
                 lambda m: m.nn.Parameter(m.tensor(2.0)), lambda m: m.ones(2, requires_grad=True)):
        assert f"{make(dt)}" == f"{make(torch)}"  # a single number without "tensor(...)", tracked or not
    assert f"{dt.tensor(1.25, requires_grad=True):8.3f}" == "   1.250"
    for m in (dt, torch):
        with pytest.raises(TypeError, match="Parameter"):
            f"{m.nn.Parameter(m.tensor(2.0)):.2f}"
    assert dt.Size((2, 3)).__repr__() == repr(torch.Size((2, 3)))
