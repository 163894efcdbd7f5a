"""Counters, schedules and TensorBoard's events against PyTorch's."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest

import disttorch as dt
from disttorch.utils.flop_counter import FlopCounterMode

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

RNG = np.random.default_rng(3)

# name: (model, shape of its input, whether the input requires grad). No groups: PyTorch's count of
# their weight's gradient is too large by the number of groups.
MODELS = {
    "mlp": (lambda n: n.Sequential(n.Linear(6, 8), n.ReLU(), n.Linear(8, 3)), (5, 6), True),
    "mlp_no_input_gradient": (lambda n: n.Sequential(n.Linear(6, 8), n.Linear(8, 3)), (5, 6), False),
    "conv": (
        lambda n: n.Sequential(n.Conv2d(4, 6, 3, 2, 1), n.ReLU(), n.Conv2d(6, 3, 1)),
        (2, 4, 9, 8), True,
    ),
    "conv_no_input_gradient": (lambda n: n.Conv1d(2, 5, 4, dilation=2), (3, 2, 20), False),
    "conv_transposed": (lambda n: n.ConvTranspose2d(4, 3, 3, stride=2), (2, 4, 5, 6), True),
    "attention": (lambda n: n.MultiheadAttention(8, 2, batch_first=True), (2, 5, 8), True),
}


def flops_of(library, mode, nn, name, training):
    build, shape, wants = MODELS[name]
    model, x = build(nn), library.ones(*shape, requires_grad=wants)
    with mode(display=False) as counter:
        inputs = (x, x, x) if name == "attention" else (x,)
        y = model(*inputs)
        if training:
            (y[0] if isinstance(y, tuple) else y).sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_flops(name, training):
    from torch.utils.flop_counter import FlopCounterMode as Theirs

    theirs = flops_of(torch, Theirs, torch.nn, name, training)
    assert flops_of(dt, FlopCounterMode, dt.nn, name, training) == theirs > 0


def test_schedules():
    ours, theirs = dt.profiler.schedule, torch.profiler.schedule
    choices = (0, 1, 2), (0, 1), (1, 3), (0, 2), (0, 2)
    for wait, warmup, active, repeat, skip in itertools.product(*choices):
        options = {"wait": wait, "warmup": warmup, "active": active, "repeat": repeat,
                   "skip_first": skip}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # both advise to warm up
            a, b = ours(**options), theirs(**options)
        assert [a(i).name for i in range(25)] == [b(i).name for i in range(25)], options


VALUES = {
    "normal": RNG.standard_normal(500), "one": np.array([3.0]), "same": np.zeros(4),
    "large": RNG.uniform(-1e6, 1e9, 50),
}


@pytest.fixture
def theirs_summary():
    pytest.importorskip("tensorboard")
    return pytest.importorskip("torch.utils.tensorboard.summary")


@pytest.mark.parametrize("bins", ["tensorflow", 7, [-5.0, 0.0, 1.0, 2.5, 1e10]])
@pytest.mark.parametrize("name", VALUES)
def test_histograms(theirs_summary, name, bins):
    from disttorch.utils.tensorboard import summary

    mine = summary.histogram("h", VALUES[name], bins).value[0].histo
    limits = summary.exponential_bins() if bins == "tensorflow" else bins
    if isinstance(limits, int):
        limits = np.histogram(VALUES[name], bins=limits)[1].tolist()
    other = theirs_summary.histogram("h", VALUES[name], limits).value[0].histo
    np.testing.assert_allclose(list(mine.bucket), list(other.bucket))
    np.testing.assert_allclose(list(mine.bucket_limit), list(other.bucket_limit), 1e-12, 1e-12)
    for key in ("min", "max", "num", "sum", "sum_squares"):
        np.testing.assert_allclose(getattr(mine, key), getattr(other, key), 1e-12, 1e-12)


def test_pr_curve_and_text_and_scalar(theirs_summary):
    from disttorch.utils.tensorboard import summary

    labels, scores, weights = RNG.integers(0, 2, 60), RNG.uniform(0, 1, 60), RNG.uniform(0, 2, 60)
    mine = summary.pr_curve("p", labels, scores, 31, weights).value[0]
    other = theirs_summary.pr_curve("p", labels, scores, 31, weights).value[0]
    np.testing.assert_allclose(list(mine.tensor.float_val), list(other.tensor.float_val), 1e-6, 1e-6)
    assert mine.metadata == other.metadata and mine.tensor.tensor_shape == other.tensor.tensor_shape
    assert summary.scalar("s", 1.25) == theirs_summary.scalar("s", 1.25)
    assert summary.text("t", "x").value[0].tensor == theirs_summary.text("t", "x").value[0].tensor


@pytest.mark.parametrize(("shape", "letters"), [
    ((3, 5, 7), "CHW"), ((5, 7, 3), "HWC"), ((5, 7), "HW"), ((10, 3, 4, 6), "NCHW"),
    ((9, 4, 6, 3), "NHWC"),
])
def test_pictures(theirs_summary, shape, letters):
    pytest.importorskip("PIL")
    import io

    from PIL import Image

    from disttorch.utils.tensorboard import summary

    for picture in (RNG.uniform(0, 1, shape), RNG.integers(0, 256, shape).astype("uint8")):
        pixels = []
        mine = summary.image("i", picture, letters)
        for made in (mine, theirs_summary.image("i", picture, dataformats=letters)):
            data = made.value[0].image.encoded_image_string
            pixels.append(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int))
        # PyTorch multiplies in float32: a value may round to its neighbour
        assert np.abs(pixels[0] - pixels[1]).max() <= 1
