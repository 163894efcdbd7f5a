"""Pooling, resizing and padding on the GPU against the CPU in float64."""

from __future__ import annotations

import numpy as np
import pytest
from gpu import laid

import disttorch as torch
import disttorch.nn.functional as F

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device, or no CuPy"),
]
all_types = pytest.mark.parametrize("name", laid.DTYPES)
POOLS = {
    "max1d": (lambda x: F.max_pool1d(x, 3, 2, 1), (2, 3, 9)),
    "max2d": (lambda x: F.max_pool2d(x, 3, 2, 1), (2, 3, 7, 6)),
    "max2d unbatched": (lambda x: F.max_pool2d(x, 2), (3, 4, 6)),
    "max2d dilated": (lambda x: F.max_pool2d(x, 2, 1, 1, 2), (2, 2, 5, 6)),
    "max3d": (lambda x: F.max_pool3d(x, 2), (1, 2, 4, 4, 3)),
    "adaptive max": (lambda x: F.adaptive_max_pool2d(x, (3, 2)), (2, 3, 7, 5)),
    "avg1d": (lambda x: F.avg_pool1d(x, 2), (2, 3, 8)),
    "avg2d": (lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), (2, 3, 7, 6)),
    "avg3d": (lambda x: F.avg_pool3d(x, (2, 1, 2), 1), (1, 2, 3, 4, 3)),
    "adaptive avg": (lambda x: F.adaptive_avg_pool2d(x, (3, 2)), (2, 3, 7, 5)),
    "adaptive avg even": (lambda x: F.adaptive_avg_pool2d(x, (3, 2)), (2, 3, 6, 4)),
    "global avg": (lambda x: F.adaptive_avg_pool2d(x, 1), (2, 3, 6, 4)),
    "nearest": (lambda x: F.interpolate(x, scale_factor=2), (2, 3, 4, 5)),
    "bilinear": (lambda x: F.interpolate(x, (7, 3), mode="bilinear"), (2, 3, 4, 5)),
    "bicubic": (lambda x: F.interpolate(x, (6, 9), mode="bicubic", align_corners=True), (1, 2, 4, 5)),
    "reflect": (lambda x: F.pad(x, (1, 2, 2, 1), mode="reflect"), (1, 2, 4, 5)),
}


@all_types
@pytest.mark.parametrize("case", POOLS)
def test_values_and_gradients(case, name):
    function, shape = POOLS[case]
    laid.check(function, [laid.drawn(1, shape, name)], name)


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "case", ["max2d", "max3d", "adaptive max", "adaptive avg", "nearest", "bilinear"])
def test_channels_last(case, name):
    function, shape = POOLS[case]
    laid.check(function, [laid.drawn(1, shape, name, True)], name, last=True)


@all_types
@pytest.mark.parametrize("case, shape", [
    ("max2d", (2, 16, 7, 6)), ("max2d dilated", (2, 8, 5, 6)), ("max3d", (1, 8, 4, 4, 3)),
    ("adaptive max", (2, 8, 7, 5)), ("max2d", (1, 12, 5, 5))])
def test_maxima_of_many_channels(case, shape, name):
    """Channels that fill 16 bytes, and some that do not."""
    out, *_ = laid.check(POOLS[case][0], [laid.drawn(1, shape, name, True)], name, last=True)
    wide, there = laid.drawn(1, shape, name, True)
    if case == "max2d":
        found = F.max_pool2d(there, 3, 2, 1, return_indices=True)[1].cpu().numpy()
        np.testing.assert_array_equal(found, F.max_pool2d(wide, 3, 2, 1, return_indices=True)[1].numpy())


def test_places_of_the_maxima():
    wide, there = laid.drawn(1, (2, 3, 6, 7), "float32")
    _, want = F.max_pool2d(wide, 3, 2, 1, return_indices=True)
    out, places = F.max_pool2d(there, 3, 2, 1, return_indices=True)
    assert places.dtype is torch.int64
    np.testing.assert_array_equal(places.cpu().numpy(), want.numpy())
    assert F.max_unpool2d(out, places, 3, 2, 1, output_size=(6, 7)).shape == there.shape


def test_nan_wins_and_minus_infinity_is_a_value():
    x = torch.tensor([[[1.0, float("nan"), 3.0, 4.0, -float("inf"), -float("inf")]]]).cuda()
    got = F.max_pool1d(x, 2).cpu().numpy()
    np.testing.assert_array_equal(got, [[[np.nan, 4.0, -np.inf]]])


def test_integers_go_by_the_plain_formula():
    x = torch.arange(12).reshape(1, 3, 4).cuda()
    np.testing.assert_array_equal(F.max_pool2d(x, 2).cpu().numpy(), [[[5, 7]]])


def test_second_derivatives():
    def penalty(device):
        x = torch.tensor(np.random.default_rng(0).standard_normal((1, 2, 6))).to(device).requires_grad_()
        (g,) = torch.autograd.grad((F.max_pool1d(x, 3, 2) ** 3).sum(), x, create_graph=True)
        (g ** 2).sum().backward()
        return x.grad.cpu().numpy()

    np.testing.assert_allclose(penalty("cuda"), penalty("cpu"), rtol=1e-9)
